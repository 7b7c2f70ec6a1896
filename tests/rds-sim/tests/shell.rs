//! The console of a person, and its output beside recorded ones.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use common::Running;
use common::ssh::{exec, login};
use russh::ChannelMsg;

#[tokio::test]
async fn a_person_logs_in() {
    let sim = Running::start(&[]);
    let session = login(&sim).await;
    let mut channel = session.channel_open_session().await.unwrap();
    channel.request_pty(true, "xterm", 60, 25, 0, 0, &[]).await.unwrap();
    channel.request_shell(true).await.unwrap();
    let typed = "/disk add type=file slot=a file-path=raid10/a.img file-size=1M\r\
        /disk print detail\r/disk get a file-size\r:put [/disk get a file-size]\r/nonsense\rquit\r";
    channel.data(typed.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    let read = async {
        while let Some(message) = channel.wait().await {
            if let ChannelMsg::Data { data } = message {
                out.extend_from_slice(&data);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read).await.expect("quit ends it");
    let out = String::from_utf8(out).unwrap();
    assert!(out.starts_with("[admin@rds-sim] > "), "{out}");
    assert!(out.contains("slot=\"a\""), "{out}");
    assert!(out.contains("\r\n1048576\r\n"), "{out}");
    assert!(out.contains("bad command name nonsense (line 1 column 2)"), "{out}");
    let wrapped = out.lines().filter(|l| !l.contains("@rds-sim")).all(|l| l.trim_end().len() <= 60);
    assert!(wrapped, "60 columns: {out}");
}

#[tokio::test]
async fn health_is_printed_as_in_the_manual() {
    let sim = Running::start(&[]);
    let session = login(&sim).await;
    let one = "/system/health/print where name=\"cpu-temperature\"";
    let expected = include_str!("transcripts/health-one.txt").replace('\n', "\r\n");
    assert_eq!(exec(&session, one).await.0, expected);
}
