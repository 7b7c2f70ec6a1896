//! Host key and authorized keys.

use std::convert::Infallible;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;
use rand::RngCore;
use russh::keys::ssh_key::rand_core::{TryCryptoRng, TryRng};
use russh::keys::ssh_key::{LineEnding, PublicKey};
use russh::keys::{Algorithm, HashAlg, PrivateKey};

use crate::config::HostKey;
use crate::files::write_secret;

/// The host key of `dir`, made on first use; its public half is beside it.
pub fn host_key(dir: &Path, kind: HostKey) -> anyhow::Result<PrivateKey> {
    let path = dir.join("ssh_host_key");
    if !path.exists() && !ssh_keygen(&path, kind) {
        let algorithm = match kind {
            HostKey::Rsa => Algorithm::Rsa { hash: None },
            HostKey::Ed25519 => Algorithm::Ed25519,
        };
        let key = PrivateKey::random(&mut Random, algorithm)?;
        write_secret(&path, &key.to_openssh(LineEnding::LF)?)?;
    }
    let key =
        PrivateKey::read_openssh_file(&path).with_context(|| format!("{}", path.display()))?;
    fs::write(dir.join("ssh_host_key.pub"), format!("{}\n", key.public_key().to_openssh()?))?;
    Ok(key)
}

/// `SHA256:...`
pub fn fingerprint(key: &PrivateKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

/// Making an RSA key takes a minute in an emulated guest; OpenSSH's tool is many times faster.
fn ssh_keygen(path: &Path, kind: HostKey) -> bool {
    let kind: &[&str] = match kind {
        HostKey::Rsa => &["-t", "rsa", "-b", "2048"],
        HostKey::Ed25519 => &["-t", "ed25519"],
    };
    let mut command = Command::new("ssh-keygen");
    command.args(kind).args(["-q", "-N", "", "-C", "rds-sim", "-f"]).arg(path);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|s| s.success()) && path.exists()
}

/// Keys that may log in; lines that are no key are ignored, as sshd does.
pub fn authorized(path: Option<&Path>) -> anyhow::Result<Vec<PublicKey>> {
    let Some(path) = path else { return Ok(Vec::new()) };
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    Ok(text.lines().filter_map(|line| PublicKey::from_openssh(line.trim()).ok()).collect())
}

/// ECDSA user keys do not work on RouterOS; RSA does, with SHA-2.
pub fn acceptable(algorithm: &Algorithm) -> bool {
    matches!(algorithm, Algorithm::Ed25519 | Algorithm::Rsa { hash: Some(_) })
}

/// The system's randomness for `ssh-key`, whose `rand_core` is newer than ours.
struct Random;

impl TryRng for Random {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(rand::rng().next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(rand::rng().next_u64())
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        rand::rng().fill_bytes(dst);
        Ok(())
    }
}

impl TryCryptoRng for Random {}

#[cfg(test)]
mod tests {
    use russh::keys::EcdsaCurve;

    use super::*;

    #[test]
    fn no_ecdsa_and_no_sha1() {
        assert!(acceptable(&Algorithm::Ed25519));
        assert!(acceptable(&Algorithm::Rsa { hash: Some(HashAlg::Sha256) }));
        assert!(!acceptable(&Algorithm::Rsa { hash: None }));
        assert!(!acceptable(&Algorithm::Ecdsa { curve: EcdsaCurve::NistP256 }));
    }
}
