//! A simulated appliance, and the real controller in front of it, for one test.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub)]

pub mod deaths;
pub mod go_driver;
pub mod metrics;
pub mod snapshots;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rds_csi_proto::csi::controller_client::ControllerClient;
use rds_csi_proto::csi::identity_client::IdentityClient;
use rds_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use rds_csi_proto::csi::*;
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

pub use volume_capability::access_mode::Mode;

pub const DIRECTORY: &str = "/raid10/volumes";
pub const MIB: i64 = 1 << 20;
/// Made in no time.
const HOST_KEY: [&str; 2] = ["--ssh-host-key", "ed25519"];

/// Which way the controller takes to the appliance.
///
/// Every file of tests runs over REST, and once more over SSH where a file `NAME_ssh.rs`
/// beside it includes it (`over_ssh.rs` several).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    Rest,
    Ssh,
}

pub const VIA: Via = if ends_with_ssh(env!("CARGO_CRATE_NAME")) { Via::Ssh } else { Via::Rest };

const fn ends_with_ssh(name: &str) -> bool {
    matches!(name.as_bytes(), [.., b'_', b's', b's', b'h'])
}

/// An appliance that has done what it was asked by the time that it answers.
pub const PROMPT: &[&str] = &[
    "--create-delay-ms=0",
    "--export-delay-ms=0",
    "--unexport-delay-ms=0",
    "--export-read-back=configured",
    "--pool=raid10:64T",
];

/// Commands that a call may send. Over REST a deletion needs one more: a request there is one
/// change, and file and item are two.
pub const CREATE: u64 = 3;
pub const PUBLISH: u64 = 2;
pub const DELETE: u64 = delete_commands(VIA);
pub const fn delete_commands(via: Via) -> u64 {
    match via {
        Via::Rest => 4,
        Via::Ssh => 3,
    }
}

/// What the controllers log. A bench is not to measure how they write.
const LOG: &str = match env!("CARGO_CRATE_NAME").as_bytes() {
    [.., b'_', b'b', b'e', b'n', b'c', b'h'] => "info",
    _ => "debug,h2=info,hyper=info,rustls=info,russh=info",
};

/// Ends its process with itself.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> Self {
        Self(command.spawn().unwrap())
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<Option<i32>> {
        self.0.try_wait().unwrap().map(|status| status.code())
    }

    /// Its memory, in millions of bytes.
    pub fn resident_mb(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        let kib: f64 = line.trim().trim_end_matches(" kB").parse().unwrap();
        kib * 1024.0 / 1e6
    }

    pub fn kill(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }

    /// Asks it to stop, and how it ended.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        for _ in 0..1000 {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        None
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

pub struct Lab {
    pub dir: tempfile::TempDir,
    pub controller: Process,
    pub sim: Process,
    pub rest: SocketAddr,
    pub url: String,
    password: String,
    pub channel: Channel,
}

/// `target/<profile>/rds-sim`, beside the `deps` folder that this test runs from.
fn rds_sim() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().and_then(Path::parent).unwrap().join("rds-sim");
    assert!(path.exists(), "{} is missing: cargo build -p rds-sim first", path.display());
    path
}

fn wait_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{what} did not come");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn log(dir: &Path, name: &str) -> std::fs::File {
    std::fs::OpenOptions::new().create(true).append(true).open(dir.join(name)).unwrap()
}

impl Lab {
    pub async fn start() -> Self {
        Self::start_with(&[], |_| {}).await
    }

    /// With further flags for the simulator, and credentials changed before the start.
    pub async fn start_with(flags: &[&str], credentials: impl FnOnce(&Path)) -> Self {
        Self::start_via(VIA, flags, credentials).await
    }

    pub async fn start_via(via: Via, flags: &[&str], credentials: impl FnOnce(&Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (sim, endpoints) = start_sim(dir.path(), "rds", "secrets", flags);
        let rest: SocketAddr = endpoints["rest"].as_str().unwrap().parse().unwrap();
        let password = std::fs::read_to_string(dir.path().join("rds/password")).unwrap();
        credentials(&dir.path().join("secrets"));
        let url = url_of(via, &endpoints);
        let controller = start_controller(dir.path(), &url, &[]);
        let channel = connect(dir.path().join("csi.sock")).await;
        Self { dir, controller, sim, rest, url, password: password.trim().to_owned(), channel }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn controller_log(&self) -> String {
        std::fs::read_to_string(self.path("controller.log")).unwrap()
    }

    /// Kills the controller outright and starts it anew.
    pub async fn restart_controller(&mut self, flags: &[&str]) {
        self.controller.kill();
        self.controller = start_controller(self.dir.path(), &self.url, flags);
        self.channel = connect(self.path("csi.sock")).await;
    }

    /// Starts it anew, to be killed at a named point (src/crash.rs).
    pub async fn restart_controller_at(&mut self, point: &str, flags: &[&str]) {
        self.controller.kill();
        let mut args = self.controller_args();
        args.extend(flags.iter().map(ToString::to_string));
        let mut command = controller(&args, self.dir.path());
        self.controller = Process(command.env("RDS_CSI_CRASH_AT", point).spawn().unwrap());
        self.channel = connect(self.path("csi.sock")).await;
    }

    /// The controller's flags.
    pub fn controller_args(&self) -> Vec<String> {
        controller_args(self.dir.path(), &self.url)
    }

    /// `rds-sim ctl ...`.
    pub fn ctl(&self, command: &[&str]) -> Value {
        ctl_of(&self.path("rds"), command)
    }

    /// How often the appliance was asked something, in all.
    pub fn requests(&self) -> u64 {
        self.ctl(&["stats"])["total"].as_u64().unwrap()
    }

    pub fn volumes(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    pub fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    /// A request by hand, as an administrator would make it: status and body.
    pub async fn rest(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let mut roots = rustls::RootCertStore::empty();
        let pem = std::fs::read(self.path("rds/cert.pem")).unwrap();
        roots.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tcp = TcpStream::connect(self.rest).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let mut tls =
            tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, tcp).await.unwrap();
        use base64::Engine;
        let user = format!("admin:{}", self.password);
        let basic = base64::engine::general_purpose::STANDARD.encode(user);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let text = format!(
            "{method} {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Basic {basic}\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        tls.write_all(text.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The simulator may close without close_notify.
        tls.read_to_end(&mut answer).await.ok();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").expect("an HTTP answer");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or(Value::Null))
    }

    /// The item with this slot, as the appliance prints it.
    pub async fn item(&self, slot: &str) -> Option<Value> {
        let (status, body) =
            self.rest("GET", &format!("/rest/disk?slot={slot}"), Value::Null).await;
        assert_eq!(status, 200, "{body}");
        body.as_array().unwrap().first().cloned()
    }

    pub async fn file_exists(&self, slot: &str) -> bool {
        let path = format!("/rest/file?name=raid10/volumes/{slot}.img");
        let (status, body) = self.rest("GET", &path, Value::Null).await;
        assert_eq!(status, 200, "{body}");
        !body.as_array().unwrap().is_empty()
    }

    pub async fn create(&self, name: &str) -> Result<Volume, Status> {
        self.create_with(create_request(name)).await
    }

    pub async fn create_with(&self, request: CreateVolumeRequest) -> Result<Volume, Status> {
        Ok(self.volumes().create_volume(request).await?.into_inner().volume.unwrap())
    }

    pub async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = DeleteVolumeRequest { volume_id: volume.into(), ..Default::default() };
        self.volumes().delete_volume(request).await.map(drop)
    }

    pub async fn publish(
        &self,
        volume: &str,
        node: &str,
    ) -> Result<HashMap<String, String>, Status> {
        let request = publish_request(volume, node, mount(Mode::SingleNodeWriter));
        self.publish_with(request).await
    }

    pub async fn publish_with(
        &self,
        request: ControllerPublishVolumeRequest,
    ) -> Result<HashMap<String, String>, Status> {
        let answer = self.volumes().controller_publish_volume(request).await?;
        Ok(answer.into_inner().publish_context)
    }

    pub async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            ..Default::default()
        };
        self.volumes().controller_unpublish_volume(request).await.map(drop)
    }
}

/// A simulated appliance with its state in `<dir>/<name>`, and credentials for it in
/// `<dir>/<secrets>`.
pub fn start_sim(dir: &Path, name: &str, secrets: &str, flags: &[&str]) -> (Process, Value) {
    let state = dir.join(name);
    let sim = Command::new(rds_sim())
        .args(["--rest-addr", "127.0.0.1:0", "--ssh-addr", "127.0.0.1:0"])
        .args(["--portal", "127.0.0.1:4420", "--no-nvmet"])
        .args(["--allocate", "sparse", "--dir", DIRECTORY, "--boot-stage-ms", "100"])
        .args(if flags.contains(&"--ssh-host-key") { &[][..] } else { &HOST_KEY })
        .args(flags)
        .arg("--state-dir")
        .arg(&state)
        .stdout(Stdio::null())
        .stderr(log(dir, &format!("{name}.log")))
        .spawn()
        .unwrap();
    let sim = Process(sim);
    let endpoints = wait_for("the simulator", || {
        let text = std::fs::read_to_string(state.join("endpoints.json")).ok()?;
        serde_json::from_str::<Value>(&text).ok()
    });
    let secrets = dir.join(secrets);
    std::fs::create_dir(&secrets).unwrap();
    std::fs::write(secrets.join("username"), "admin\n").unwrap();
    std::fs::copy(state.join("password"), secrets.join("password")).unwrap();
    std::fs::copy(state.join("cert.pem"), secrets.join("ca.crt")).unwrap();
    let host_key = endpoints["ssh_fingerprint"].as_str().unwrap();
    std::fs::write(secrets.join("ssh-host-key"), host_key).unwrap();
    (sim, endpoints)
}

/// The management interface of a simulated appliance.
pub fn url_of(via: Via, endpoints: &Value) -> String {
    match via {
        Via::Rest => format!("https://{}", endpoints["rest"].as_str().unwrap()),
        Via::Ssh => format!("ssh://admin@{}", endpoints["ssh"].as_str().unwrap()),
    }
}

/// `rds-sim ctl ...` of one of several.
pub fn ctl_of(state: &Path, command: &[&str]) -> Value {
    let out = Command::new(rds_sim())
        .args(["ctl", "--state-dir"])
        .arg(state)
        .args(command)
        .output()
        .unwrap();
    assert!(out.status.success(), "ctl {command:?}: {}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
}

fn controller_args(dir: &Path, url: &str) -> Vec<String> {
    let socket = format!("unix://{}", dir.join("csi.sock").display());

    let secrets = dir.join("secrets").display().to_string();
    ["--endpoint", &socket, "--rds-url", url, "--rds-credentials", &secrets]
        .into_iter()
        .chain(["--volume-path", DIRECTORY])
        .map(str::to_owned)
        .collect()
}

fn controller(args: &[String], dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rds-csi-controller"));
    command
        .args(args)
        .env("RDS_CSI_CLUSTER_ID", "lab")
        .env("RDS_CSI_NO_KUBERNETES", "true")
        .env("RUST_LOG", LOG)
        .stderr(log(dir, "controller.log"));
    command
}

fn start_controller(dir: &Path, url: &str, flags: &[&str]) -> Process {
    let mut command = controller(&controller_args(dir, url), dir);
    Process(command.args(flags).spawn().unwrap())
}

pub async fn connect(socket: PathBuf) -> Channel {
    for _ in 0..500 {
        let path = socket.clone();
        let connector = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_static("http://localhost");
        if let Ok(channel) = endpoint.connect_with_connector(connector).await {
            return channel;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the controller does not serve {}", socket.display());
}

pub fn mount(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn block(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn create_request(name: &str) -> CreateVolumeRequest {
    CreateVolumeRequest {
        name: name.into(),
        capacity_range: Some(CapacityRange { required_bytes: 64 * MIB, limit_bytes: 0 }),
        volume_capabilities: vec![mount(Mode::SingleNodeWriter)],
        ..Default::default()
    }
}

pub fn publish_request(
    volume: &str,
    node: &str,
    capability: VolumeCapability,
) -> ControllerPublishVolumeRequest {
    ControllerPublishVolumeRequest {
        volume_id: volume.into(),
        node_id: node.into(),
        volume_capability: Some(capability),
        ..Default::default()
    }
}

/// Code and a part of the message: both are what users see.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, text: &str) {
    let status = result.expect_err(text);
    assert_eq!(status.code(), code, "{}", status.message());
    assert!(status.message().contains(text), "{:?} lacks {text:?}", status.message());
}
