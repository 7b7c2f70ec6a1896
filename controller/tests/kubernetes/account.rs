//! In a pod: the API server by the pod's service account and nothing else.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::bench::*;
use crate::lab::*;

const DRIVER: &str = "account.example";
const NAMESPACE: &str = "storage";
/// What kubelet mounts, seen by nobody but what is started in it.
const MOUNTED: &str = "mount -t tmpfs tmpfs /var/run
account=/var/run/secrets/kubernetes.io/serviceaccount
mkdir -p \"$account\" && cp \"$0\"/* \"$account\" && exec \"$@\"";

/// A token of the account, the authority of the server, and the name of the namespace.
async fn write_account(client: &Client, dir: &Path) {
    std::fs::create_dir(dir).unwrap();
    put::<Namespace>(Api::all(client.clone()), json!({"metadata": {"name": NAMESPACE}})).await;
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
    put(accounts.clone(), json!({"metadata": {"name": "controller"}})).await;
    let request = TokenRequest { spec: TokenRequestSpec::default(), ..Default::default() };
    let made = accounts.create_token_request("controller", &Default::default(), &request).await;
    std::fs::write(dir.join("token"), made.unwrap().status.unwrap().token).unwrap();
    std::fs::write(dir.join("namespace"), NAMESPACE).unwrap();
    let text = std::fs::read(cluster().unwrap().kubeconfig()).unwrap();
    let config: Value = serde_json::from_slice(&text).unwrap();
    let authority = &config["clusters"][0]["cluster"]["certificate-authority-data"];
    let pem = base64::engine::general_purpose::STANDARD.decode(authority.as_str().unwrap());
    std::fs::write(dir.join("ca.crt"), pem.unwrap()).unwrap();
}

/// `unshare` with a mount namespace of its own, if that may be had here.
fn unshare() -> Option<Command> {
    let root = std::fs::metadata("/proc/self").unwrap().uid() == 0;
    let flags: &[&str] = if root { &["--mount"] } else { &["--map-root-user", "--mount"] };
    let command = || {
        let mut command = Command::new("unshare");
        command.args(flags);
        command
    };
    let mut probe = command();
    probe.args(["mount", "-t", "tmpfs", "tmpfs", "/var/run"]);
    probe.status().is_ok_and(|status| status.success()).then(command)
}

#[tokio::test]
async fn a_pods_service_account_is_enough() {
    let Some(cluster) = cluster() else { return };
    let Some(mut command) = unshare() else {
        eprintln!("SKIPPED: no mount namespace may be made here");
        return;
    };
    let (mut lab, client) = tokio::join!(Lab::start(), client(cluster));
    lab.controller.kill();
    let account = lab.path("account");
    write_account(&client, &account).await;
    let subject = json!({"kind": "ServiceAccount", "name": "controller", "namespace": NAMESPACE});
    allow(&client, NAMESPACE, subject, DRIVER).await;
    let leases = lease(&client, NAMESPACE, DRIVER).await;

    let address = cluster.address();
    let (host, port) = address.split_once(':').unwrap();
    command.args(["sh", "-c", MOUNTED]).arg(&account).arg(CONTROLLER);
    command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT", port);
    let mut pod = Replica::spawn(&lab, DRIVER, "pod", command).await;
    pod.leads_within(Duration::from_secs(10)).await;
    let holder = leases.get(DRIVER).await.unwrap().spec.unwrap().holder_identity.unwrap();
    assert!(holder.starts_with("pod_"), "{holder}");
    assert_eq!(pod.process.terminate().await, Some(0));
    let log = std::fs::read_to_string(&pod.log).unwrap();
    assert!(log.contains("given back") && !log.contains("orbidden"), "{log}");
}
