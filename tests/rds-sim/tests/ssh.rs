//! The console over SSH, as russh's client and the driver's wrapper see it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::Running;
use common::ssh::{dial, exec, login, try_dial};
use russh::keys::ssh_key::private::{Ed25519Keypair, KeypairData};
use russh::keys::{PrivateKey, PrivateKeyWithHashAlg};
use serde_json::{Value, json};

#[tokio::test]
async fn the_wrapper_tells_success_from_failure() {
    let sim = Running::start(&[]);
    let session = login(&sim).await;
    let wrap = |command: &str| {
        format!(r#":onerror e in={{ {command}; :put "S1 OK" }} do={{ :put "S1 ERR $e" }}"#)
    };
    let add = wrap(
        r#"/disk add type=file slot="a" file-path="/raid10/a.img" file-size=1048576 mount-filesystem=no comment="own\$er""#,
    );
    assert_eq!(exec(&session, &add).await, ("S1 OK\r\n".into(), Some(0)));
    let again = exec(&session, &add).await;
    assert_eq!(
        again,
        ("S1 ERR failure: already have such entry\r\n".into(), Some(0)),
        "exit status 0 on errors"
    );

    let read = r#":put [:serialize to=json options=json.no-string-conversion value=[/disk/print detail as-value where slot="a"]]"#;
    let (out, _) = exec(&session, read).await;
    let items: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (&items[0]["comment"], &items[0]["mount-filesystem"]),
        (&json!("own$er"), &json!(false))
    );
    assert_eq!(exec(&session, &read.replace("\"a\"", "\"b\"")).await.0, "[]\r\n");
    assert_eq!(
        exec(&session, "/dsik print").await.0,
        "bad command name dsik (line 1 column 2)\r\n"
    );
    assert_eq!(exec(&session, &wrap(r#"/disk remove [find slot="a"]"#)).await.0, "S1 OK\r\n");
    // Both transports see the same appliance.
    assert_eq!(sim.get("/disk?slot=a").1, json!([]));
    assert_eq!(sim.get("/file?name=raid10/a.img").1.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn who_may_log_in() {
    let key =
        PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[7; 32])), "test").unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), key.public_key().to_openssh().unwrap()).unwrap();
    let sim = Running::start(&["--authorized-keys", file.path().to_str().unwrap()]);
    let with_key = |key: PrivateKey| PrivateKeyWithHashAlg::new(Arc::new(key), None);

    let mut session = dial(&sim).await;
    assert!(!session.authenticate_password("admin", "wrong").await.unwrap().success());
    assert!(session.authenticate_publickey("admin", with_key(key)).await.unwrap().success());
    assert!(exec(&session, "/system/resource/print").await.0.contains("7.24"));

    let stranger =
        PrivateKey::new(KeypairData::from(Ed25519Keypair::from_seed(&[8; 32])), "test").unwrap();
    assert!(
        !dial(&sim)
            .await
            .authenticate_publickey("admin", with_key(stranger))
            .await
            .unwrap()
            .success()
    );
}

#[tokio::test]
async fn a_lost_answer_closes_the_connection() {
    let sim = Running::start(&[]);
    let session = login(&sim).await;
    sim.ctl(&["lose-answer", "exec"]);
    let (out, status) = exec(&session, ":put hello").await;
    assert_eq!((out.as_str(), status), ("", None));
    assert_eq!(exec(&login(&sim).await, ":put hello").await.0, "hello\r\n");
}

#[tokio::test]
async fn twenty_sessions_and_no_more() {
    let sim = Running::start(&[]);
    let mut sessions = Vec::new();
    for _ in 0..20 {
        sessions.push(login(&sim).await);
    }
    assert!(try_dial(&sim).await.is_err(), "the 21st");
    sessions.pop();
    // The end of one makes room for another, a moment later.
    let deadline = Instant::now() + Duration::from_secs(10);
    while try_dial(&sim).await.is_err() {
        assert!(Instant::now() < deadline, "no room");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_second_channel_stalls_behind_the_first() {
    let sim = Running::start(&[]);
    let session = login(&sim).await;
    sim.ctl(&["delay", "600", "--pattern", "/system/resource", "--times", "1"]);
    let started = Instant::now();
    let slow = exec(&session, "/system/resource/print");
    let other = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        exec(&session, ":put hello").await;
        started.elapsed()
    };
    let (_, other) = tokio::join!(slow, other);
    assert!(other >= Duration::from_millis(600), "{other:?}");
}
