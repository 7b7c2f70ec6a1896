//! The self-signed certificate, kept over restarts so that a client may pin it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::files;

/// TLS 1.2 and nothing newer, as `www-ssl`.
pub fn server_config(state_dir: &Path, sans: &[String]) -> anyhow::Result<Arc<ServerConfig>> {
    let (cert_path, key_path) = (state_dir.join("cert.pem"), state_dir.join("key.pem"));
    let sans_path = state_dir.join("cert.sans");
    let wanted = sans.join("\n");
    let current = fs::read_to_string(&sans_path).is_ok_and(|have| have == wanted);
    if !(current && cert_path.exists() && key_path.exists()) {
        let made = rcgen::generate_simple_self_signed(sans.to_vec())?;
        files::write_secret(&key_path, &made.signing_key.serialize_pem())?;
        fs::write(&cert_path, made.cert.pem())?;
        fs::write(&sans_path, wanted)?;
    }
    let pem = |e: rustls_pki_types::pem::Error| io::Error::other(e.to_string());
    let cert = CertificateDer::from_pem_file(&cert_path).map_err(pem)?;
    let key = PrivateKeyDer::from_pem_file(&key_path).map_err(pem)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS12])?
        .with_no_client_auth()
        .with_single_cert(vec![cert], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
