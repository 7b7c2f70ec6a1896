//! Certificates, tokens and kubeconfigs of one cluster.

use std::path::Path;

use anyhow::Context;
use base64::Engine;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::json;

/// Who may log in, and their groups. None but `admin` may do anything at first.
pub const USERS: &[(&str, &str)] = &[
    ("admin", "system:masters"),
    ("controller", "system:authenticated"),
    ("shim", "system:authenticated"),
    ("system:node:node-1", "system:nodes"),
    ("system:node:node-2", "system:nodes"),
];

pub(crate) const AUTHORITY: &str = "ca.crt";

/// Writes them all; gives the authority's certificate (DER).
pub(crate) fn write(dir: &Path, port: u16) -> anyhow::Result<Vec<u8>> {
    let put = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).with_context(|| format!("cannot write {name}"))
    };
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::from_params(&params, &key);

    put(AUTHORITY, &authority.pem())?;
    let server_key = KeyPair::generate()?;
    // The last one is that of the Service `kubernetes`, by which pods know it.
    let names = ["127.0.0.1", "localhost", "10.0.0.1"].map(str::to_owned).to_vec();
    let server = CertificateParams::new(names)?.signed_by(&server_key, &issuer)?;
    put("server.crt", &server.pem())?;
    put("server.key", &server_key.serialize_pem())?;
    let accounts = KeyPair::generate()?;
    put("accounts.key", &accounts.serialize_pem())?;
    put("accounts.pub", &accounts.public_key_pem())?;

    let mut tokens = String::new();
    for (user, group) in USERS {
        // A token only opens a server on the loopback that lives as long as one test.
        tokens += &format!("token-of-{user},{user},{user},{group}\n");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": {
                "server": format!("https://127.0.0.1:{port}"),
                "certificate-authority-data":
                    base64::engine::general_purpose::STANDARD.encode(authority.pem()),
            }}],
            "users": [{"name": user, "user": {"token": format!("token-of-{user}")}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
            "current-context": "test",
        });
        put(&format!("kubeconfig.{user}"), &config.to_string())?;
    }
    put("tokens.csv", &tokens)?;
    put(crate::audit::POLICY, &crate::audit::policy().to_string())?;
    Ok(authority.der().to_vec())
}
