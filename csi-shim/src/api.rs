//! One request to the Kubernetes API: HTTP/1.1 over TLS, on a connection of its own.
//!
//! By hand, since the kube crate makes the shim's binary two and a half times as large and is
//! needed for nothing else. Where the server is and who we are is read anew for each request:
//! tokens and certificates are rotated, and a request is rare.

use std::path::{Path, PathBuf};
use std::pin::{Pin, pin};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::body::{Body, Incoming};
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use tonic::codegen::http::{HeaderValue, Method, Request, Uri, header};

/// Where Kubernetes puts a pod's service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// More than any object that is asked for: etcd's limit is 1.5 MiB.
const LARGEST: usize = 2 << 20;

/// Where the API server is, and how to log in there.
#[derive(Debug, Clone)]
pub enum Source {
    /// As a pod: the service account that is mounted into it.
    ServiceAccount,
    /// A kubeconfig file in JSON; its current context.
    Kubeconfig(PathBuf),
}

/// What a request needs.
struct Access {
    host: String,
    port: u16,
    /// PEM.
    authority: Vec<u8>,
    token: String,
}

impl Source {
    fn access(&self) -> Result<Access, String> {
        match self {
            Self::ServiceAccount => service_account().map_err(|e| {
                format!(
                    "log in to Kubernetes with the pod's service account: {e}; outside of a pod: \
                     --kubeconfig, or --no-kubernetes"
                )
            }),
            Self::Kubeconfig(path) => {
                kubeconfig(path).map_err(|e| format!("use the kubeconfig {}: {e}", path.display()))
            }
        }
    }

    /// The status and the body of the answer.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn get(&self, path: &str) -> Result<(u16, Vec<u8>), String> {
        self.send(Method::GET, path, "", String::new()).await
    }

    /// The same of a request with a body of that type.
    ///
    /// # Errors
    /// Why there is no answer. It may have been done all the same.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &'static str,
        body: String,
    ) -> Result<(u16, Vec<u8>), String> {
        let source = self.clone();
        let access = tokio::task::spawn_blocking(move || source.access());
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .body(body)
            .map_err(|e| e.to_string())?;
        access.await.map_err(|e| e.to_string())??.send(request).await
    }
}

impl Access {
    async fn send(&self, request: Request<String>) -> Result<(u16, Vec<u8>), String> {
        let bare = self.host.trim_matches(['[', ']']);
        let at = match bare.contains(':') {
            true => format!("[{bare}]:{}", self.port),
            false => format!("{bare}:{}", self.port),
        };
        let tls = self.tls()?;
        let answer = self.ask(&at, tls, request).await;
        answer.map_err(|e| format!("the Kubernetes API at {at}: {e}"))
    }

    async fn ask(
        &self,
        at: &str,
        tls: ClientConfig,
        mut request: Request<String>,
    ) -> Result<(u16, Vec<u8>), Box<dyn std::error::Error + Send + Sync>> {
        let host = self.host.trim_matches(['[', ']']).to_owned();
        let stream = TcpStream::connect((host.as_str(), self.port)).await?;
        let name = ServerName::try_from(host)?;
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        for (name, value) in [
            (header::HOST, at),
            (header::ACCEPT, "application/json"),
            (header::AUTHORIZATION, &format!("Bearer {}", self.token)),
        ] {
            request.headers_mut().insert(name, HeaderValue::from_str(value)?);
        }
        let answer = async {
            let answer = sender.send_request(request).await?;
            Ok((answer.status().as_u16(), read(answer.into_body()).await?))
        };
        // The connection is driven by whoever waits for the answer, and ends with it.
        let (mut connection, mut answer) = (pin!(connection), pin!(answer));
        tokio::select! {
            biased;
            answer = &mut answer => answer,
            ended = &mut connection => {
                ended?;
                // What came before its end is still there.
                answer.await
            }
        }
    }

    fn tls(&self) -> Result<ClientConfig, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.authority) {
            let certificate = certificate.map_err(|e| format!("read the cluster's CA: {e}"))?;
            roots.add(certificate).map_err(|e| format!("use the cluster's CA: {e}"))?;
        }
        Ok(ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth())
    }
}

async fn read(mut body: Incoming) -> Result<Vec<u8>, Box<dyn std::error::Error + Send + Sync>> {
    let mut all = Vec::new();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(data) = frame?.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > LARGEST {
            return Err(format!("its answer is larger than {LARGEST} bytes").into());
        }
    }
    Ok(all)
}

fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn service_account() -> Result<Access, String> {
    let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
    let port = variable("KUBERNETES_SERVICE_PORT")?;
    let token = read_file(&Path::new(ACCOUNT).join("token"))?;
    Ok(Access {
        host: variable("KUBERNETES_SERVICE_HOST")?,
        port: port.parse().map_err(|e| format!("KUBERNETES_SERVICE_PORT={port}: {e}"))?,
        authority: read_file(&Path::new(ACCOUNT).join("ca.crt"))?,
        token: String::from_utf8_lossy(&token).trim().to_owned(),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Kubeconfig {
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
    current_context: String,
}

/// A list's entry: which of the three it holds depends on the list.
#[derive(Deserialize)]
struct Named {
    name: String,
    cluster: Option<Cluster>,
    user: Option<User>,
    context: Option<Context>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority_data: String,
}

#[derive(Deserialize)]
struct User {
    token: String,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

fn kubeconfig(path: &Path) -> Result<Access, String> {
    let file: Kubeconfig = serde_json::from_slice(&read_file(path)?).map_err(|e| {
        format!(
            "{e}; it has to be JSON with certificate-authority-data and a token, as `kubectl \
             config view --raw --flatten -o json` prints it"
        )
    })?;
    let lacks = |what: &str| format!("it has no {what}");
    let named = |all: Vec<Named>, name: &str| all.into_iter().find(|n| n.name == name);
    let context = named(file.contexts, &file.current_context)
        .and_then(|n| n.context)
        .ok_or_else(|| lacks("context of the name current-context"))?;
    let cluster = named(file.clusters, &context.cluster)
        .and_then(|n| n.cluster)
        .ok_or_else(|| lacks("cluster of the context's name"))?;
    let user = named(file.users, &context.user)
        .and_then(|n| n.user)
        .ok_or_else(|| lacks("user of the context's name"))?;
    let server: Uri = cluster.server.parse().map_err(|e| format!("server: {e}"))?;
    if server.scheme_str() != Some("https") || !matches!(server.path(), "" | "/") {
        return Err(format!("server {server}: expected https://HOST[:PORT]"));
    }
    let authority = STANDARD
        .decode(cluster.certificate_authority_data)
        .map_err(|e| format!("certificate-authority-data: {e}"))?;
    Ok(Access {
        host: server.host().unwrap_or_default().to_owned(),
        port: server.port_u16().unwrap_or(443),
        authority,
        token: user.token,
    })
}
