#![allow(clippy::unwrap_used)]
use proptest::prelude::*;

use super::*;

/// Keys that were made for this file and are used nowhere.
const ED25519: &str = include_str!("../../tests/keys/ed25519");
const RSA: &str = include_str!("../../tests/keys/rsa");
const ECDSA: &str = include_str!("../../tests/keys/ecdsa");
const LOCKED: &str = include_str!("../../tests/keys/ed25519-passphrase");

fn public(private: &str) -> PublicKey {
    decode_secret_key(private, None).unwrap().public_key().clone()
}

async fn load(files: &[(&str, &str)]) -> Result<SshCredentials, String> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        std::fs::write(dir.path().join(name), content).unwrap();
    }
    CredentialsDir::new(dir.path()).load_ssh(Some("csi")).await.map_err(|e| e.to_string())
}

#[tokio::test]
async fn a_key_or_a_password_and_always_the_host_key() {
    let pin = fingerprint(&public(RSA));
    let host = ("ssh-host-key", pin.as_str());
    for key in [ED25519, RSA] {
        let read = load(&[("ssh-privatekey", key), host]).await.unwrap();
        assert_eq!(read.key.as_ref().unwrap().public_key().key_data(), public(key).key_data());
        assert!(read.password.is_none());
    }
    let read = load(&[("password", "hunter2\n"), host]).await.unwrap();
    assert_eq!(read.password.unwrap().reveal(), "hunter2");
    for (files, want) in [
        (vec![host], "ssh-privatekey"),
        (vec![("password", "p")], "ssh-host-key"),
        (vec![("password", "p"), ("ssh-host-key", "\n# none\n")], "neither"),
        (vec![("ssh-privatekey", ECDSA), host], "use ed25519"),
        (vec![("ssh-privatekey", LOCKED), host], "without a passphrase"),
        (vec![("ssh-privatekey", "hunter2"), host], "cannot be read"),
    ] {
        let error = load(&files).await.err().unwrap();
        assert!(error.contains(want), "{want}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn host_keys_in_all_their_forms() {
    let (key, other) = (public(ED25519), public(RSA));
    let line = key.to_openssh().unwrap();
    for text in [
        line.clone(),
        format!("[10.0.0.1]:22 {line}"),
        format!("# made by ssh-keyscan\n10.0.0.1 {line} a comment\n"),
        fingerprint(&key),
        format!("256 {} admin@rds (ED25519)", fingerprint(&key)),
    ] {
        let pins = HostKeys::parse(&text).unwrap();
        assert!(pins.accept(&key), "{text}");
        assert!(!pins.accept(&other), "{text}");
    }
    let both = format!("{line}\n{}\n", other.to_openssh().unwrap());
    let both = HostKeys::parse(&both).unwrap();
    assert!(both.accept(&key) && both.accept(&other));
    assert_eq!(both.kinds().unwrap().len(), 2);
    assert_eq!(HostKeys::parse(&fingerprint(&key)).unwrap().kinds(), None);
    for bad in [
        "",
        "junk",
        "SHA256:short",
        "ssh-ed25519",
        "ssh-ed25519 AAAA",
        &format!("@revoked * {line}"),
        &format!("{line}\nMD5:00:11"),
    ] {
        assert!(HostKeys::parse(bad).is_err(), "{bad:?}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(text in ".{0,80}", tail in ".{0,40}") {
        let _ = HostKeys::parse(&text);
        let _ = HostKeys::parse(&format!("ssh-ed25519 {text}\nSHA256:{tail}"));
    }
}
