//! An SSH client that trusts the simulator's host key only.

use std::sync::Arc;

use russh::ChannelMsg;
use russh::client::{AuthResult, Config, Handle, Handler, connect};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use serde_json::Value;

use super::Running;

pub(crate) struct Pinned(String);

impl Handler for Pinned {
    type Error = russh::Error;
    async fn check_server_key(
        &mut self,
        key: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(match key {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                key.fingerprint(HashAlg::Sha256).to_string() == self.0
            }
            _ => false,
        })
    }
}

pub(crate) async fn dial(sim: &Running) -> Handle<Pinned> {
    try_dial(sim).await.unwrap()
}

pub(crate) async fn try_dial(sim: &Running) -> Result<Handle<Pinned>, russh::Error> {
    let endpoints: Value = serde_json::from_str(&sim.file("endpoints.json")).unwrap();
    let pin = endpoints["ssh_fingerprint"].as_str().unwrap().to_owned();
    connect(Arc::new(Config::default()), sim.ssh.as_str(), Pinned(pin)).await
}

pub(crate) async fn login(sim: &Running) -> Handle<Pinned> {
    login_as(sim, "admin").await
}

pub(crate) async fn login_as(sim: &Running, user: &str) -> Handle<Pinned> {
    let mut session = dial(sim).await;
    let result = session.authenticate_password(user, sim.file("password")).await.unwrap();
    assert!(matches!(result, AuthResult::Success));
    session
}

pub(crate) async fn exec(session: &Handle<Pinned>, line: &str) -> (String, Option<u32>) {
    let mut channel = session.channel_open_session().await.unwrap();
    channel.exec(true, line).await.unwrap();
    let (mut out, mut status) = (Vec::new(), None);
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } => out.extend_from_slice(&data),
            ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
            _ => {}
        }
    }
    (String::from_utf8(out).unwrap(), status)
}
