//! A verified and authenticated SSH connection that runs one command at a time.
//!
//! Facts about RouterOS behind this file: parallel channels on one connection stall; 20
//! sessions are all there are, so none may be left behind; it does not answer
//! `keepalive@openssh.com`; user keys of kind ECDSA are refused; `exec` exits with 0 always.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use russh::client::{AuthResult, Config, Handle, Handler, connect_stream};
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKeyOrCertificate};
use russh::{AlgorithmKind, Channel, ChannelMsg, Preferred, cipher, client, compression, kex, mac};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::config::RdsUrl;
use crate::credentials::ssh::{HostKeys, SshCredentials, fingerprint};

/// TCP and key exchange. RSA on an appliance that boots takes its time.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// All attempts to log in.
const AUTH_LIMIT: Duration = Duration::from_secs(10);
/// For a channel on an open connection: one round trip, or the connection is dead.
const CHANNEL_LIMIT: Duration = Duration::from_secs(5);
/// After that long without a byte the connection ends by itself, so that one which was given
/// up in the middle of anything cannot stay behind. Longer than any answer may take.
const SILENCE_LIMIT: Duration = Duration::from_secs(120);
/// No answer is larger: 10,000 disks with all their properties are about 10 MB.
const OUTPUT_LIMIT: usize = 64 << 20;

/// Why a line has no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// It did not leave this host.
    NotSent(String),
    /// It may have been carried out.
    Lost(String),
    /// The server is not proven to be the appliance.
    HostKey(String),
    /// The appliance refuses the user.
    Refused,
}

/// An open connection. Dropping it closes it.
pub(super) struct Session(Handle<Verify>);

impl Session {
    /// Connects, checks the host key, logs in.
    pub(super) async fn open(url: &RdsUrl, with: &SshCredentials) -> Result<Self, Failure> {
        let connected = timeout(CONNECT_LIMIT, connect(url, &with.host_keys)).await;
        let mut handle = connected.map_err(|_| {
            let seconds = CONNECT_LIMIT.as_secs();
            Failure::NotSent(format!("no SSH connection within {seconds} s"))
        })??;
        match timeout(AUTH_LIMIT, log_in(&mut handle, with)).await {
            Ok(Ok(true)) => Ok(Self(handle)),
            Ok(Ok(false)) => Err(Failure::Refused),
            Ok(Err(e)) => Err(Failure::NotSent(format!("logging in: {e}"))),
            Err(_) => {
                let seconds = AUTH_LIMIT.as_secs();
                Err(Failure::NotSent(format!("not logged in within {seconds} s")))
            }
        }
    }

    /// Runs one line and returns all that it printed. After a failure the connection must
    /// not be used again: what was sent on it may still be running.
    pub(super) async fn exec(&self, line: &str, limit: Duration) -> Result<Vec<u8>, Failure> {
        let channel = match timeout(CHANNEL_LIMIT, self.0.channel_open_session()).await {
            Ok(Ok(channel)) => channel,
            Ok(Err(e)) => return Err(Failure::NotSent(format!("opening a channel: {e}"))),
            Err(_) => return Err(Failure::NotSent("the open connection is silent".into())),
        };
        let deadline = Instant::now() + limit;
        match timeout_at(deadline, channel.exec(true, line)).await {
            Ok(Ok(())) => {}
            // It may have been written before the connection ended.
            Ok(Err(e)) => return Err(Failure::Lost(e.to_string())),
            Err(_) => return Err(Failure::Lost("it could not be sent in time".into())),
        }
        match timeout_at(deadline, answer(channel)).await {
            Ok(result) => result,
            Err(_) => Err(Failure::Lost(format!("no answer within {} s", limit.as_secs()))),
        }
    }
}

async fn connect(url: &RdsUrl, pins: &HostKeys) -> Result<Handle<Verify>, Failure> {
    let unreachable = |e: std::io::Error| Failure::NotSent(e.to_string());
    let tcp = TcpStream::connect((url.host(), url.port())).await.map_err(unreachable)?;
    tcp.set_nodelay(true).map_err(unreachable)?;
    let config = Config {
        preferred: preferred(pins),
        inactivity_timeout: Some(SILENCE_LIMIT),
        ..Config::default()
    };
    connect_stream(Arc::new(config), tcp, Verify(pins.clone())).await.map_err(|e| match e {
        Broken::HostKey(cause) => Failure::HostKey(cause),
        Broken::Ssh(russh::Error::NoCommonAlgo { kind: AlgorithmKind::Key, theirs, .. }) => {
            Failure::HostKey(format!("it offers only {}", theirs.join(", ")))
        }
        Broken::Ssh(e) => Failure::NotSent(e.to_string()),
    })
}

async fn log_in(handle: &mut Handle<Verify>, with: &SshCredentials) -> Result<bool, russh::Error> {
    if let Some(key) = &with.key {
        let hash = match key.algorithm() {
            // Never SHA-1. RouterOS that does not say what it takes takes SHA-256.
            Algorithm::Rsa { .. } => {
                let said = handle.best_supported_rsa_hash().await?;
                Some(said.flatten().unwrap_or(HashAlg::Sha256))
            }
            _ => None,
        };
        let key = PrivateKeyWithHashAlg::new(Arc::clone(key), hash);
        let answer = handle.authenticate_publickey(with.username.as_str(), key).await?;
        if matches!(answer, AuthResult::Success) {
            return Ok(true);
        }
    }
    let Some(password) = &with.password else { return Ok(false) };
    let answer = handle.authenticate_password(with.username.as_str(), password.reveal()).await?;
    Ok(matches!(answer, AuthResult::Success))
}

/// Everything up to the end of the channel.
async fn answer(mut channel: Channel<client::Msg>) -> Result<Vec<u8>, Failure> {
    let mut output = Vec::new();
    let mut ended = false;
    while let Some(message) = channel.wait().await {
        match message {
            ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => {
                if output.len() + data.len() > OUTPUT_LIMIT {
                    return Err(Failure::Lost(format!("more than {OUTPUT_LIMIT} bytes of answer")));
                }
                output.extend_from_slice(&data);
            }
            // Says that nothing was run.
            ChannelMsg::Failure => return Err(Failure::NotSent("exec is not allowed".into())),
            ChannelMsg::Eof | ChannelMsg::Close => ended = true,
            _ => {}
        }
    }
    match ended {
        true => Ok(output),
        false => Err(Failure::Lost("the connection ended before the answer did".into())),
    }
}

/// What is offered, best first: what RouterOS has, and nothing with SHA-1. With a pinned key
/// only its kind is asked for, since an appliance may have keys of both kinds.
fn preferred(pins: &HostKeys) -> Preferred {
    let all = [
        Algorithm::Ed25519,
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    let kinds = pins.kinds();
    // RSA keys sign with either hash.
    let rsa = |a: &Algorithm| matches!(a, Algorithm::Rsa { .. });
    let same = |a: &Algorithm, b: &Algorithm| a == b || (rsa(a) && rsa(b));
    let asked_for = |a: &Algorithm| kinds.as_ref().is_none_or(|k| k.iter().any(|k| same(k, a)));
    Preferred {
        kex: Cow::Borrowed(&[
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::DH_G16_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        ]),
        host_key_certificates: Cow::Borrowed(&[]),
        key: all.into_iter().filter(asked_for).collect(),
        cipher: Cow::Borrowed(&[
            cipher::AES_256_GCM,
            cipher::AES_256_CTR,
            cipher::AES_192_CTR,
            cipher::AES_128_CTR,
        ]),
        mac: Cow::Borrowed(&[
            mac::HMAC_SHA512_ETM,
            mac::HMAC_SHA256_ETM,
            mac::HMAC_SHA512,
            mac::HMAC_SHA256,
        ]),
        compression: Cow::Borrowed(&[compression::NONE]),
    }
}

/// Whether the server is the appliance. There is no way to switch this off.
struct Verify(HostKeys);

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("host key: {0}")]
    HostKey(String),
    #[error(transparent)]
    Ssh(#[from] russh::Error),
}

impl Handler for Verify {
    type Error = Broken;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, Broken> {
        match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } if self.0.accept(key) => Ok(true),
            PublicKeyOrCertificate::PublicKey { key, .. } => Err(Broken::HostKey(format!(
                "it is {} ({}), which is not pinned",
                fingerprint(key),
                key.algorithm()
            ))),
            PublicKeyOrCertificate::Certificate(_) => {
                Err(Broken::HostKey("it is a certificate; a plain key is expected".into()))
            }
        }
    }
}
