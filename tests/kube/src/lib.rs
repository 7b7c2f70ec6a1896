//! A real etcd and kube-apiserver for tests, on this machine, with nothing else of Kubernetes:
//! no scheduler, no controllers, no kubelet. Whatever those would write, the test writes.
//!
//! The program is built by `tests/kube/build.sh` from the Go module proxy. Both processes end
//! with the one that started them, however that ends: they read a pipe that only it holds.

mod audit;
mod files;
pub mod manifests;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use tempfile::TempDir;

pub use self::files::USERS;

/// Set by `make test`: then a test that finds no server fails instead of being skipped.
const REQUIRED: &str = "RDS_KUBE_REQUIRED";
/// Emulation and neighbours make it slow; alone it takes some five seconds.
const START_LIMIT: Duration = Duration::from_secs(120);
/// Two programs that choose a free port at the same time may choose the same one.
const ATTEMPTS: usize = 3;

/// Whether pods get a token of their service account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceAccounts {
    /// No: nobody makes the accounts.
    None,
    /// Yes: a controller manager runs beside.
    Kept,
}

/// A cluster's front door.
pub struct Cluster {
    dir: TempDir,
    // In the order in which they are to end.
    server: Child,
    etcd: Child,
    port: u16,
}

impl Cluster {
    /// Starts one, or says why there is none here. `None` only where it is not required.
    ///
    /// # Errors
    /// If the program is missing although it is required, or does not come up.
    pub fn start() -> anyhow::Result<Option<Self>> {
        Self::start_with(ServiceAccounts::None)
    }

    /// The same, with or without tokens in pods.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_with(accounts: ServiceAccounts) -> anyhow::Result<Option<Self>> {
        let program = program();
        if !program.exists() {
            if std::env::var_os(REQUIRED).is_some() {
                bail!("{} is missing: tests/kube/build.sh", program.display());
            }
            eprintln!("SKIPPED: no Kubernetes API server here; tests/kube/build.sh builds one");
            return Ok(None);
        }
        let mut last = None;
        for _ in 0..ATTEMPTS {
            match Self::attempt(&program, accounts) {
                Ok(cluster) => return Ok(Some(cluster)),
                Err(e) => last = Some(e),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("not tried")))
    }

    fn attempt(program: &Path, accounts: ServiceAccounts) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("rds-kube").tempdir()?;
        let [client, peer, port] = free_ports()?;
        let trust = trust(files::write(dir.path(), port)?)?;
        let own = |name: &str| dir.path().join(name).display().to_string();
        let (client, peer) =
            (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        // Without its controller no pod could be created.
        let admission = match accounts {
            ServiceAccounts::None => "--disable-admission-plugins=ServiceAccount",
            ServiceAccounts::Kept => "--enable-admission-plugins=ServiceAccount",
        };
        let mut etcd = start(
            program,
            dir.path(),
            "etcd",
            &[
                format!("--data-dir={}", own("etcd")),
                format!("--listen-client-urls={client}"),
                format!("--advertise-client-urls={client}"),
                format!("--listen-peer-urls={peer}"),
                format!("--initial-advertise-peer-urls={peer}"),
                format!("--initial-cluster=default={peer}"),
                // What a test writes need not survive a power cut.
                "--unsafe-no-fsync".into(),
                "--log-level=warn".into(),
            ],
        )?;
        let server = start(
            program,
            dir.path(),
            "kube-apiserver",
            &[
                format!("--etcd-servers={client}"),
                "--bind-address=127.0.0.1".into(),
                "--advertise-address=127.0.0.1".into(),
                format!("--secure-port={port}"),
                format!("--cert-dir={}", own("")),
                format!("--tls-cert-file={}", own("server.crt")),
                format!("--tls-private-key-file={}", own("server.key")),
                format!("--token-auth-file={}", own("tokens.csv")),
                format!("--service-account-key-file={}", own("accounts.pub")),
                format!("--service-account-signing-key-file={}", own("accounts.key")),
                "--service-account-issuer=https://rds-kube.invalid".into(),
                "--service-cluster-ip-range=10.0.0.0/24".into(),
                "--authorization-mode=Node,RBAC".into(),
                // As everywhere: Pod Security says who may, not this.
                "--allow-privileged=true".into(),
                format!("--audit-policy-file={}", own(audit::POLICY)),
                format!("--audit-log-path={}", own(audit::LOG)),
                admission.into(),
            ],
        );
        let server = match server {
            Ok(server) => server,
            Err(e) => {
                end(&mut etcd);
                return Err(e);
            }
        };
        let mut cluster = Self { dir, server, etcd, port };
        cluster.wait_until_ready(&trust)?;
        Ok(cluster)
    }

    /// A kubeconfig of the user who may do everything.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig_of("admin")
    }

    /// A kubeconfig of one of [`USERS`]: what they may do is what RBAC objects say.
    #[must_use]
    pub fn kubeconfig_of(&self, user: &str) -> PathBuf {
        self.dir.path().join(format!("kubeconfig.{user}"))
    }

    /// Where it listens, on the loopback.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate of who signed the server's.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.dir.path().join(files::AUTHORITY)
    }

    /// The key by which a controller signs the tokens of service accounts.
    #[must_use]
    pub fn account_key(&self) -> PathBuf {
        self.dir.path().join("accounts.key")
    }

    /// `127.0.0.1:PORT`, with TLS.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The API server's process, for tests that stop it (SIGSTOP) and let it go on.
    #[must_use]
    pub fn server_pid(&self) -> u32 {
        self.server.id()
    }

    /// What one of [`USERS`] has asked for until now, refused or not: `VERB RESOURCE.GROUP`.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn asked_by(&self, user: &str) -> anyhow::Result<BTreeSet<String>> {
        audit::asked(self.dir.path(), user, None)
    }

    /// What somebody has asked for without having the right to it: one of [`USERS`], or a service
    /// account by its whole name.
    ///
    /// # Errors
    /// If the record cannot be read.
    pub fn forbidden_to(&self, user: &str) -> anyhow::Result<BTreeSet<String>> {
        audit::asked(self.dir.path(), user, Some("forbid"))
    }

    /// The end of what both processes wrote.
    #[must_use]
    pub fn logs(&self) -> String {
        ["etcd", "kube-apiserver"]
            .map(|name| {
                let text = std::fs::read_to_string(self.dir.path().join(format!("{name}.log")))
                    .unwrap_or_default();
                let lines: Vec<_> = text.lines().rev().take(15).collect();
                let end: Vec<_> = lines.into_iter().rev().collect();
                format!("{name}:\n{}", end.join("\n"))
            })
            .join("\n")
    }

    /// Until the server says that it is ready, with its own objects made (the priority
    /// classes and namespaces that others need).
    fn wait_until_ready(&mut self, trust: &Arc<ClientConfig>) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let mut ended = None;
            for (name, child) in [("etcd", &mut self.etcd), ("kube-apiserver", &mut self.server)] {
                if let Some(status) = child.try_wait()? {
                    ended = Some(format!("{name} ended with {status}"));
                }
            }
            if let Some(ended) = ended {
                bail!("{ended}:\n{}", self.logs());
            }
            if ready(self.port, trust) {
                return Ok(());
            }
            if begun.elapsed() > START_LIMIT {
                bail!("the API server is not ready after {START_LIMIT:?}:\n{}", self.logs());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Whether `/readyz` is answered with 200, which anybody may ask.
fn ready(port: u16, trust: &Arc<ClientConfig>) -> bool {
    let answer = || -> anyhow::Result<String> {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        let name = ServerName::try_from("localhost")?;
        let mut stream = StreamOwned::new(ClientConnection::new(Arc::clone(trust), name)?, socket);
        stream.write_all(b"GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut head = [0; 12];
        stream.read_exact(&mut head)?;
        Ok(String::from_utf8_lossy(&head).into_owned())
    };
    answer().is_ok_and(|head| head.ends_with(" 200"))
}

fn trust(authority: Vec<u8>) -> anyhow::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.into())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The workspace's target directory is where the test itself was built.
fn program() -> PathBuf {
    let target = std::env::var_os("RDS_KUBE").map(PathBuf::from);
    target.unwrap_or_else(|| {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/kube/rds-kube")
    })
}

fn free_ports<const N: usize>() -> anyhow::Result<[u16; N]> {
    // All held at once, so that they differ.
    let mut held = Vec::new();
    let mut ports = [0; N];
    for port in &mut ports {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        *port = listener.local_addr()?.port();
        held.push(listener);
    }
    Ok(ports)
}

fn start(program: &Path, dir: &Path, name: &str, flags: &[String]) -> anyhow::Result<Child> {
    let log = std::fs::File::create(dir.join(format!("{name}.log")))?;
    Command::new(program)
        .arg(name)
        .args(flags)
        // Held open by the Child: its end is our end.
        .env("RDS_KUBE_END_WITH_STDIN", "1")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        end(&mut self.server);
        end(&mut self.etcd);
    }
}

fn end(child: &mut Child) {
    child.kill().ok();
    child.wait().ok();
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_starts_and_ends() {
        let Some(cluster) = Cluster::start().unwrap() else { return };
        let (server, etcd) = (cluster.server.id(), cluster.etcd.id());
        drop(cluster);
        for pid in [server, etcd] {
            assert!(!Path::new(&format!("/proc/{pid}")).exists());
        }
    }
}
