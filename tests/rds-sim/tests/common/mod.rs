//! A simulator without a kernel target, and a client that trusts its certificate only.
#![allow(dead_code)]

pub(crate) mod ssh;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) struct Running {
    dir: tempfile::TempDir,
    args: Vec<String>,
    child: Child,
    pub(crate) rest: String,
    pub(crate) ssh: String,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Running {
        let dir = tempfile::tempdir().unwrap();
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        let child = launch(&dir, &args);
        let mut running = Running { dir, args, child, rest: String::new(), ssh: String::new() };
        running.wait_until_ready();
        running
    }

    fn wait_until_ready(&mut self) {
        let stdout = self.child.stdout.take().unwrap();
        assert!(
            BufReader::new(stdout).lines().map_while(Result::ok).any(|l| l == "ready"),
            "rds-sim did not start"
        );
        let endpoints: Value = serde_json::from_str(&self.file("endpoints.json")).unwrap();
        self.rest = endpoints["rest"].as_str().unwrap().to_owned();
        self.ssh = endpoints["ssh"].as_str().unwrap().to_owned();
    }

    /// Killed without a chance to tidy up, then started anew.
    pub(crate) fn restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = launch(&self.dir, &self.args);
        self.wait_until_ready();
    }

    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn ctl(&self, args: &[&str]) -> Value {
        let out = Command::new(env!("CARGO_BIN_EXE_rds-sim"))
            .args(["ctl", "--state-dir"])
            .arg(self.dir.path())
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub(crate) fn until(&self, what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "timed out waiting for {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn get(&self, path: &str) -> (u16, Value) {
        self.request("GET", path, "")
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> (u16, Value) {
        self.request("POST", path, body)
    }

    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        self.try_request(method, path, body).unwrap()
    }

    /// Status and JSON body (null when it is no JSON); an error when there was no answer.
    pub(crate) fn try_request(
        &self,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, Value)> {
        self.ask("cert.pem", PATIENCE, method, path, body)
    }

    /// Another root than the certificate itself.
    pub(crate) fn trusting(
        &self,
        root: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, Value)> {
        self.ask(root, PATIENCE, method, path, body)
    }

    pub(crate) fn request_within(
        &self,
        patience: Duration,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, Value)> {
        self.ask("cert.pem", patience, method, path, body)
    }

    fn ask(
        &self,
        root: &str,
        patience: Duration,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<(u16, Value)> {
        let stream = TcpStream::connect(&self.rest)?;
        stream.set_read_timeout(Some(patience))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(self.path(root)).unwrap()).unwrap();
        let config =
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connection =
            ClientConnection::new(Arc::new(config), name).map_err(std::io::Error::other)?;
        let mut tls = StreamOwned::new(connection, stream);
        let credentials = format!("admin:{}", self.file("password"));
        let credentials = base64::engine::general_purpose::STANDARD.encode(credentials);
        let request = format!(
            "{method} /rest{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Basic {credentials}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        tls.write_all(request.as_bytes())?;
        let mut answer = String::new();
        // The end of the body is known by its length; a missing close_notify does not matter.
        let read = tls.read_to_string(&mut answer);
        if answer.is_empty() {
            read?;
        }
        let (head, body) =
            answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no answer"))?;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok((status, serde_json::from_str(body).unwrap_or(Value::Null)))
    }
}

fn launch(dir: &tempfile::TempDir, args: &[String]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rds-sim"))
        .arg("--state-dir")
        .arg(dir.path())
        .args([
            "--rest-addr",
            "127.0.0.1:0",
            "--ssh-addr",
            "127.0.0.1:0",
            "--portal",
            "127.0.0.1:4420",
        ])
        .args(["--no-nvmet", "--ssh-host-key", "ed25519"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
