//! What only SSH has: host keys, user keys, and a console that exits with 0 whatever happens.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod lab;

use std::path::Path;

use lab::*;
use tonic::Code;

const ID: &str = "pvc-3f1e1c0a-9d6e-4a3c-8f54-0c7a6a0b7e11";

async fn ssh(flags: &[&str], credentials: impl FnOnce(&Path)) -> Lab {
    Lab::start_via(Via::Ssh, flags, credentials).await
}

fn key(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/keys").join(name);
    std::fs::read_to_string(path).unwrap()
}

async fn a_whole_life(lab: &Lab) {
    lab.create(ID).await.unwrap();
    lab.publish(ID, "node-1").await.unwrap();
    lab.unpublish(ID, "node-1").await.unwrap();
    lab.delete(ID).await.unwrap();
    assert!(lab.item(ID).await.is_none() && !lab.file_exists(ID).await);
}

#[tokio::test]
async fn only_the_right_host_key_is_trusted() {
    let other = key("ed25519.pub");
    let lab = ssh(&[], |dir| std::fs::write(dir.join("ssh-host-key"), &other).unwrap()).await;
    let before = lab.requests();
    refused(lab.create(ID).await, Code::FailedPrecondition, "ssh-host-key");
    refused(lab.delete(ID).await, Code::FailedPrecondition, "which is not pinned");
    assert_eq!(lab.requests(), before);
    // Its own key, as a key and not as a fingerprint, takes effect without a restart.
    let own = std::fs::read_to_string(lab.path("rds/ssh_host_key.pub")).unwrap();
    std::fs::write(lab.path("secrets/ssh-host-key"), format!("127.0.0.1 {own}")).unwrap();
    lab.create(ID).await.unwrap();
    // Rotated while a connection is open.
    std::fs::write(lab.path("secrets/ssh-host-key"), &other).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "ssh-host-key");
    std::fs::remove_file(lab.path("secrets/ssh-host-key")).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "ssh-host-key");
}

#[tokio::test]
async fn user_keys_come_before_the_password_and_ecdsa_is_refused() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    let public = |name| {
        let private = russh::keys::decode_secret_key(&key(name), None).unwrap();
        private.public_key().to_openssh().unwrap()
    };
    let text = ["ed25519", "rsa", "ecdsa"].map(public).join("\n");
    std::fs::write(keys.path(), text).unwrap();
    let lab = ssh(&["--authorized-keys", keys.path().to_str().unwrap()], |dir| {
        std::fs::remove_file(dir.join("password")).unwrap();
        std::fs::write(dir.join("ssh-privatekey"), key("ed25519")).unwrap();
    })
    .await;
    a_whole_life(&lab).await;
    // Another key, read while the connection of the first is open.
    std::fs::write(lab.path("secrets/ssh-privatekey"), key("rsa")).unwrap();
    a_whole_life(&lab).await;
    std::fs::write(lab.path("secrets/ssh-privatekey"), key("ecdsa")).unwrap();
    refused(lab.create(ID).await, Code::FailedPrecondition, "use ed25519");
    // A key that the appliance does not know: the password is tried, where there is one.
    let stranger = tempfile::tempdir().unwrap();
    let path = stranger.path().join("key");
    let made = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&path)
        .status();
    assert!(made.unwrap().success());
    std::fs::copy(&path, lab.path("secrets/ssh-privatekey")).unwrap();
    refused(lab.create(ID).await, Code::Unauthenticated, "ssh-privatekey");
    std::fs::copy(lab.path("rds/password"), lab.path("secrets/password")).unwrap();
    a_whole_life(&lab).await;
    let log = lab.controller_log();
    let password = std::fs::read_to_string(lab.path("rds/password")).unwrap();
    let secret_line = key("ed25519").lines().nth(1).unwrap().to_owned();
    assert!(!log.contains(password.trim()) && !log.contains(&secret_line), "secret in the log");
}

#[tokio::test]
async fn an_rsa_host_key_and_each_way_in_which_the_console_may_answer() {
    for flags in [
        ["--ssh-host-key", "rsa", "--ssh-json", "typed", "--ssh-error-context"],
        ["--ssh-host-key", "ed25519", "--ssh-json", "strings", "--ids-after-reboot=renumber"],
    ] {
        let lab = ssh(&flags, |_| {}).await;
        a_whole_life(&lab).await;
        // A refusal in the console's own words, with and without the place it came from.
        lab.ctl(&["reject", "disk/add", "--detail", "failure: not enough space"]);
        refused(lab.create(ID).await, Code::ResourceExhausted, "not enough space");
        assert!(!lab.file_exists(ID).await);
    }
}

#[tokio::test]
async fn a_connection_is_used_again_and_made_anew_when_it_is_gone() {
    let lab = ssh(&[], |_| {}).await;
    lab.create(ID).await.unwrap();
    for _ in 0..30 {
        // More than the appliance's twenty sessions: none may be left behind.
        lab.ctl(&["lose-answer", "disk/print"]);
        refused(lab.publish(ID, "node-1").await, Code::Unavailable, "");
        lab.publish(ID, "node-1").await.unwrap();
        lab.unpublish(ID, "node-1").await.unwrap();
    }
}
