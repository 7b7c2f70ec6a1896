//! The certificate, kept over restarts so that a client may pin it, and what may be wrong with it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::Certificate;
use crate::files;

/// TLS 1.2 and nothing newer, as `www-ssl`.
pub fn server_config(
    state_dir: &Path,
    sans: &[String],
    kind: Certificate,
) -> anyhow::Result<Arc<ServerConfig>> {
    let (cert_path, key_path) = (state_dir.join("cert.pem"), state_dir.join("key.pem"));
    let sans_path = state_dir.join("cert.sans");
    let wanted = format!("{kind:?}\n{}", sans.join("\n"));
    let current = fs::read_to_string(&sans_path).is_ok_and(|have| have == wanted);
    if !(current && cert_path.exists() && key_path.exists()) {
        let (cert, key) = make(state_dir, sans, kind)?;
        files::write_secret(&key_path, &key.serialize_pem())?;
        fs::write(&cert_path, cert)?;
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

/// A certificate in PEM form, and its key.
fn make(state_dir: &Path, sans: &[String], kind: Certificate) -> anyhow::Result<(String, KeyPair)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(match kind {
        Certificate::WrongName => vec!["another.example".to_owned()],
        _ => sans.to_vec(),
    })?;
    let cert = match kind {
        Certificate::SelfSigned | Certificate::WrongName => params.self_signed(&key)?,
        Certificate::Expired => {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
            params.self_signed(&key)?
        }
        Certificate::PrivateCa => {
            let ca_key = KeyPair::generate()?;
            let mut ca = CertificateParams::new(Vec::new())?;
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            fs::write(state_dir.join("ca.pem"), ca.self_signed(&ca_key)?.pem())?;
            params.signed_by(&key, &Issuer::new(ca, ca_key))?
        }
    };
    Ok((cert.pem(), key))
}
