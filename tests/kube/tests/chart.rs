//! What the chart gives, for each example of its schema, put before a real API server: nothing of
//! it may be refused, and no pod may have more rights than is said.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams, ValidationDirective};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::{Api, Client, Config};
use rds_kube::{Cluster, manifests};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(60);

async fn client(cluster: &Cluster) -> Client {
    let file = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Client::try_from(config).unwrap()
}

fn api(client: &Client, object: &Value) -> Api<DynamicObject> {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let version = word(&object["apiVersion"]);
    let (group, version) = version.split_once('/').unwrap_or(("", &version));
    let kind = word(&object["kind"]);
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

/// As `kubectl apply --server-side --dry-run=server --validate=strict` does.
async fn would_apply(client: &Client, object: &Value) -> Result<(), String> {
    let name = object["metadata"]["name"].as_str().unwrap();
    let mut params = PatchParams::apply("rds-csi-test").dry_run();
    params.field_validation = Some(ValidationDirective::Strict);
    let done = api(client, object).patch(name, &params, &Patch::Apply(object)).await;
    done.map(drop).map_err(|error| format!("{} {name}: {error}", object["kind"]))
}

async fn apply(client: &Client, object: &Value) {
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply("rds-csi-test");
    api(client, object).patch(name, &params, &Patch::Apply(object)).await.unwrap();
}

/// The definitions of what other projects add. `false`: they are not here.
async fn definitions(client: &Client) -> bool {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/crds");
    let Ok(files) = std::fs::read_dir(&dir) else {
        assert!(
            std::env::var_os("RDS_KUBE_REQUIRED").is_none(),
            "{} is missing: tests/kube/crds.sh",
            dir.display()
        );
        eprintln!("SKIPPED: kinds of other projects, whose definitions tests/kube/crds.sh fetches");
        return false;
    };
    for file in files {
        let file = file.unwrap().path();
        if file.extension().is_some_and(|e| e == "yaml") {
            for definition in manifests::yaml(&file).unwrap() {
                apply(client, &definition).await;
            }
        }
    }
    true
}

fn is_builtin(object: &Value) -> bool {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    !["snapshot.storage.k8s.io/", "monitoring.coreos.com/"].iter().any(|p| version.starts_with(p))
}

/// Until the kind of this object is served, which takes a moment after its definition.
async fn would_be_applied(client: &Client, object: &Value) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match would_apply(client, object).await {
            Err(e) if e.contains("404") && !is_builtin(object) && begun.elapsed() < LIMIT => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            done => return done,
        }
    }
}

fn namespace(name: &str, level: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
        "labels": {"pod-security.kubernetes.io/enforce": level}}})
}

#[tokio::test]
async fn a_real_api_server_takes_all_of_it() {
    let Some(cluster) = Cluster::start().unwrap() else { return };
    let client = client(&cluster).await;
    let complete = definitions(&client).await;
    let mut refused = Vec::new();
    let mut taken = 0;
    for name in manifests::names().unwrap() {
        let objects = manifests::objects(&name).unwrap();
        // A dry run does not make it for those that are to be in it.
        let home = objects.iter().find(|object| object["kind"] == "Namespace").unwrap();
        apply(&client, home).await;
        for object in objects.iter().filter(|object| complete || is_builtin(object)) {
            match would_be_applied(&client, object).await {
                Ok(()) => taken += 1,
                Err(why) => refused.push(format!("{name}: {why}")),
            }
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n"));
    assert!(taken > 100, "{taken}");

    // That it looks: a field that does not exist, a value that is none.
    let objects = manifests::objects("minimal").unwrap();
    let deployment = || objects.iter().find(|o| o["kind"] == "Deployment").unwrap().clone();
    let mut wrong = deployment();
    wrong["spec"]["template"]["spec"]["containers"][0]["readOnly"] = true.into();
    assert!(would_apply(&client, &wrong).await.unwrap_err().contains("readOnly"));
    let mut wrong = deployment();
    wrong["spec"]["template"]["spec"]["dnsPolicy"] = "Sometimes".into();
    assert!(would_apply(&client, &wrong).await.unwrap_err().contains("dnsPolicy"));

    pods_have_no_more_rights_than_is_said(&client).await;
}

/// Whether a pod of this template is let into a namespace.
async fn lets_in(client: &Client, namespace: &str, template: &Value) -> Result<(), String> {
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "probe", "namespace": namespace, "labels": template["metadata"]["labels"]},
        "spec": template["spec"]});
    let params = PostParams { dry_run: true, ..Default::default() };
    let object = serde_json::from_value(pod.clone()).unwrap();
    api(client, &pod).create(&params, &object).await.map(drop).map_err(|e| e.to_string())
}

/// By the API server's own Pod Security admission.
async fn pods_have_no_more_rights_than_is_said(client: &Client) {
    for level in ["restricted", "baseline", "privileged"] {
        apply(client, &namespace(level, level)).await;
    }
    let mut seen = [0; 3];
    for name in manifests::names().unwrap() {
        for object in manifests::objects(&name).unwrap() {
            let template = object["spec"]["template"].clone();
            match (object["kind"].as_str(), object["metadata"]["name"].as_str()) {
                (Some("Deployment"), Some("rds-csi-controller")) => {
                    seen[0] += 1;
                    lets_in(client, "restricted", &template).await.unwrap();
                }
                (Some("DaemonSet"), Some("rds-csi-agent")) => {
                    seen[1] += 1;
                    let why = lets_in(client, "baseline", &template).await.unwrap_err();
                    assert!(why.contains("privileged"), "{why}");
                    lets_in(client, "privileged", &template).await.unwrap();
                }
                (Some("DaemonSet"), Some(_)) => {
                    seen[2] += 1;
                    only_directories_and_root(client, template).await;
                }
                _ => {}
            }
        }
    }
    assert!(seen[0] >= 5 && seen[1] >= 1 && seen[2] >= 5, "{seen:?}");
}

/// What an agent in a pod cannot do without, and that nothing but kubelet's directory is shared back.
#[test]
fn the_agents_pod_shares_with_the_host_what_it_has_to() {
    let objects = manifests::objects("agent-daemonset").unwrap();
    let agent = objects
        .iter()
        .find(|o| o["kind"] == "DaemonSet" && o["metadata"]["name"] == "rds-csi-agent")
        .unwrap();
    let strategy = &agent["spec"]["updateStrategy"];
    assert!(strategy["rollingUpdate"]["maxSurge"].as_u64().unwrap_or(0) == 0, "two on one host");
    let spec = &agent["spec"]["template"]["spec"];
    for namespace in ["hostNetwork", "hostPID"] {
        assert_eq!(spec[namespace], true, "{namespace}");
    }
    assert_eq!(spec["automountServiceAccountToken"], false);
    let container = &spec["containers"][0];
    assert_eq!(container["securityContext"]["privileged"], true);
    let on_the_host = |volume: &Value| {
        let volumes = spec["volumes"].as_array().unwrap();
        let found = volumes.iter().find(|v| v["name"] == *volume).unwrap();
        found["hostPath"]["path"].as_str().unwrap().to_owned()
    };
    let mut seen = Vec::new();
    for mount in container["volumeMounts"].as_array().unwrap() {
        let path = mount["mountPath"].as_str().unwrap();
        // The agent tells kubelet paths as it sees them itself.
        assert_eq!(path, on_the_host(&mount["name"]));
        assert_ne!(mount["readOnly"], true, "{path}");
        let propagation = mount["mountPropagation"].as_str().unwrap_or("None");
        let expected = if path == "/var/lib/kubelet" { "Bidirectional" } else { "None" };
        assert_eq!(propagation, expected, "{path}");
        seen.push(path);
    }
    for needed in
        ["/dev", "/sys", "/run/udev", "/run/rds-csi", "/var/lib/rds-csi", "/var/lib/kubelet"]
    {
        assert!(seen.contains(&needed), "{needed}");
    }
    // Where the rules go has to be where udevd looks, and a directory that the pod has.
    let environment = container["env"].as_array().unwrap();
    let rules = environment.iter().find(|e| e["name"] == "RDS_CSI_UDEV_RULES_DIR").unwrap();
    assert_eq!(rules["value"], "/run/udev/rules.d");
}

/// The shim is `restricted` but for three directories of the host and root's user id.
async fn only_directories_and_root(client: &Client, mut template: Value) {
    let spec = &mut template["spec"];
    // A type of SELinux is an exception that its user makes.
    spec["securityContext"].as_object_mut().unwrap().remove("seLinuxOptions");
    let why = lets_in(client, "restricted", &template).await.unwrap_err();
    assert!(why.contains("hostPath") && why.contains("runAsUser=0"), "{why}");
    let why = lets_in(client, "baseline", &template).await.unwrap_err();
    assert!(why.contains("hostPath") && !why.contains("runAsUser"), "{why}");

    let spec = &mut template["spec"];
    let volumes = spec["volumes"].as_array_mut().unwrap();
    assert_eq!(volumes.len(), 3);
    for volume in volumes {
        assert!(volume.get("hostPath").is_some(), "{volume}");
        *volume = json!({"name": volume["name"], "emptyDir": {}});
    }
    let why = lets_in(client, "restricted", &template).await.unwrap_err();
    assert!(!why.contains("hostPath") && why.contains("runAsUser=0"), "{why}");
    lets_in(client, "baseline", &template).await.unwrap();
    let user = &mut template["spec"]["securityContext"];
    user["runAsUser"] = 65532.into();
    user["runAsNonRoot"] = true.into();
    lets_in(client, "restricted", &template).await.unwrap();
}
