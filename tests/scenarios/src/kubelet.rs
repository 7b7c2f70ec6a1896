//! A node of `make e2e`: containerd and kubelet as upstream builds them, and the agent as a host
//! has it. Its API server is outside of the guest, and so is who tells the story: over a socket on
//! which commands are performed ([`crate::peer`]). The first of two guests has the appliance too.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::peer;
use crate::process::{Daemon, results, run, socket_up, tail};
use crate::stack::{APPLIANCE, AgentOptions, DIRECTORY, REST_PORT, Stack, udev_rules};

/// Where a package's agent has its socket, and the shim's DaemonSet looks for it.
const AGENT_DIR: &str = "/run/rds-csi";
const KUBELET: &str = "/var/lib/kubelet";
/// On a disk: what is in the guest's root lies in memory.
const DISK: &str = "/scratch/node";
const CONTAINERD: &str = "/run/containerd/containerd.sock";
const NETWORKS: &str = "/run/rds-e2e/cni";
/// Of the pods; never seen outside of the guest.
const PODS: &str = "10.88.0.0/16";
/// The Service `kubernetes`, which needs no kube-proxy to lead to the one API server.
const SERVICE: &str = "10.0.0.1";
/// What holds a pod's namespaces, under the name that it gets here.
const PAUSE: &str = "rds-e2e/pod:1";
/// Its own on the network to the host (tests/vm/guest/command.sh).
const GUEST: &str = "10.0.2.15";
const START: Duration = Duration::from_secs(120);
const COMMANDS_PORT: u16 = peer::COMMANDS.1;

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Its name in the cluster.
    #[arg(long)]
    pub(crate) node: String,
    /// Its address for others.
    #[arg(long)]
    address: String,
    /// The port of the API server, on the machine that the guest runs on.
    #[arg(long)]
    api_port: u16,
    /// Where tests/kube/node.sh built kubelet and containerd.
    #[arg(long)]
    tools: PathBuf,
    /// The appliance is in this guest.
    #[arg(long)]
    appliance: bool,
    /// The agent is a pod, and not ours to start.
    #[arg(long)]
    no_agent: bool,
}

pub(crate) async fn serve(options: &Options) -> Result<()> {
    let _appliance = if options.appliance {
        let appliance = Stack::start_appliance_alone(Path::new(DIRECTORY)).await?;
        for file in ["password", "cert.pem"] {
            fs::copy(Path::new(DIRECTORY).join("sim").join(file), results().join(file))?;
        }
        Some(appliance)
    } else {
        run(&["ip", "route", "add", peer::APPLIANCES, "via", peer::FIRST])?;
        None
    };
    network(options)?;
    run(&["hostname", &options.node])?;
    if !options.no_agent {
        udev_rules()?;
        tokio::spawn(keep_agent(agent().await?));
    }
    let mut containerd = containerd(options).await?;
    import()?;
    let mut kubelet = kubelet(options).await?;
    println!("{} is up", options.node);
    let commands = TcpListener::bind(("0.0.0.0", COMMANDS_PORT))?;
    let ended = async {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            for (name, daemon) in [("containerd", &mut containerd), ("kubelet", &mut kubelet)] {
                if daemon.has_ended()? {
                    bail!("{name} has ended:\n{}", tail(name, 30));
                }
            }
        }
    };
    tokio::select! {
        done = peer::perform_each(commands) => done,
        ended = ended => ended,
    }
}

/// Addresses of the cluster that mean something else here.
fn network(options: &Options) -> Result<()> {
    let host = std::env::var("RDS_VM_HOST").context("RDS_VM_HOST: start with --host-network")?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
    let api = format!("ip daddr {SERVICE} tcp dport 443 dnat to {host}:{}", options.api_port);
    let rest = format!("ip daddr {GUEST} tcp dport {REST_PORT} dnat to {APPLIANCE}:{REST_PORT}");
    let rest = if options.appliance { rest } else { String::new() };
    run(&[
        "nft",
        &format!(
            "table ip e2e {{\n\
         chain prerouting {{ type nat hook prerouting priority -100;\n{api}\n{rest}\n}}\n\
         chain output {{ type nat hook output priority -100;\n{api}\n}}\n\
         chain postrouting {{ type nat hook postrouting priority 100;\n\
         ip saddr {PODS} ip daddr != {PODS} masquerade\n}}\n}}\n"
        ),
    ])?;
    fs::create_dir_all(NETWORKS)?;
    let conf = json!({
        "cniVersion": "1.0.0", "name": "e2e",
        "plugins": [{
            "type": "ptp",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": "/run/rds-e2e/ipam"},
        }],
    });
    Ok(fs::write(Path::new(NETWORKS).join("10-e2e.conflist"), conf.to_string())?)
}

async fn agent() -> Result<Daemon> {
    Stack::start_agent(Path::new(AGENT_DIR), &AgentOptions::usual()?).await
}

/// As systemd does it: one that has ended is started again, soon.
async fn keep_agent(mut running: Daemon) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        if !running.has_ended().unwrap_or(true) {
            continue;
        }
        match agent().await {
            Ok(next) => running = next,
            Err(error) => println!("the agent does not start again: {error:#}"),
        }
    }
}

async fn containerd(options: &Options) -> Result<Daemon> {
    let config = format!(
        r#"version = 3
root = "{DISK}/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.blockfile",
    "io.containerd.snapshotter.v1.erofs", "io.containerd.nri.v1.nri",
    "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{CONTAINERD}"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/{PAUSE}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = false
[plugins."io.containerd.cri.v1.runtime".cni]
  bin_dirs = ["/usr/lib/cni"]
  conf_dir = "{NETWORKS}"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  BinaryName = "/usr/sbin/runc"
  SystemdCgroup = false
"#
    );
    let file = Path::new("/run/rds-e2e/containerd.toml");
    fs::write(file, config)?;
    let tools = options.tools.display();
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(options.tools.join("containerd"));
    command.arg("--config").arg(file).env("PATH", format!("{tools}:{path}"));
    let mut daemon = Daemon::start("containerd", command)?;
    socket_up(&mut daemon, Path::new(CONTAINERD), START).await?;
    let ctr = options.tools.join("ctr").display().to_string();
    let began = Instant::now();
    while run(&[&ctr, "-n", "k8s.io", "version"]).is_err() {
        ensure!(began.elapsed() < START, "containerd does not answer:\n{}", tail("containerd", 20));
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // For import and for people.
    fs::create_dir_all("/run/rds-e2e/bin")?;
    std::os::unix::fs::symlink(&ctr, "/run/rds-e2e/bin/ctr")?;
    Ok(daemon)
}

/// The images that the host has laid out for us: `NAME:TAG` with `+` in place of `/`.
fn import() -> Result<()> {
    for entry in fs::read_dir(results().join("images"))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|s| s.to_str()).context("an image's name")?;
        let name = name.replace('+', "/");
        let file = path.display().to_string();
        run(&[
            "/run/rds-e2e/bin/ctr",
            "-n",
            "k8s.io",
            "images",
            "import",
            "--index-name",
            &name,
            &file,
        ])?;
    }
    Ok(())
}

async fn kubelet(options: &Options) -> Result<Daemon> {
    let disk = format!("{DISK}/kubelet");
    fs::create_dir_all(&disk)?;
    fs::create_dir_all(KUBELET)?;
    run(&["mount", "--bind", &disk, KUBELET])?;
    // Where / is shared this is the disk's peer: what is mounted here shows there as well. One of
    // the two nodes stays so.
    if options.appliance {
        run(&["mount", "--make-rprivate", KUBELET])?;
        run(&["mount", "--make-rshared", KUBELET])?;
    }
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "containerRuntimeEndpoint": format!("unix://{CONTAINERD}"),
        "cgroupDriver": "cgroupfs", "cgroupsPerQOS": false, "enforceNodeAllocatable": [],
        "failSwapOn": false, "clusterDNS": ["10.0.0.10"],
        // Its disk is the guest's, and small.
        "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi", "imagefs.available": "1Mi"},
        "imageMinimumGCAge": "24h",
        "nodeStatusUpdateFrequency": "3s", "nodeLeaseDurationSeconds": 20,
        "syncFrequency": "10s",
    });
    fs::write("/run/rds-e2e/kubelet.json", config.to_string())?;
    let mut command = Command::new(options.tools.join("kubelet"));
    command
        .arg("--config=/run/rds-e2e/kubelet.json")
        .arg(format!("--kubeconfig={}", results().join("kubeconfig").display()))
        .arg(format!("--root-dir={KUBELET}"))
        .arg(format!("--hostname-override={}", options.node))
        .arg(format!("--node-ip={}", options.address));
    let mut daemon = Daemon::start("kubelet", command)?;
    let began = Instant::now();
    // Made once its plugin manager runs: nothing can be registered before.
    while !Path::new(KUBELET).join("plugins_registry").exists() {
        ensure!(
            !daemon.has_ended()? && began.elapsed() < START,
            "kubelet does not come up:\n{}",
            tail("kubelet", 30)
        );
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    Ok(daemon)
}
