//! The SSH protocol, as narrow as RouterOS's: exec, one at a time on a connection, 20 sessions.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use russh::keys::ssh_key::PublicKey;
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handler, Msg, PublicKeyOffer, Session, VerifiedPublicKey,
};
use russh::{
    Channel, ChannelId, Disconnect, MethodKind, MethodSet, Preferred, cipher, compression, kex, mac,
};
use tokio::net::TcpStream;
use tokio::sync::{Mutex, Semaphore};

use super::exec::exec;
use super::keys::acceptable;
use super::shell::{Event, Shell};
use crate::management::Mode;
use crate::ros::policy::Policy;
use crate::sim::Sim;

const MAX_SESSIONS: usize = 20;
/// Bytes between the socket and the session.
const PIPE: usize = 64 << 10;

/// What all connections share.
pub struct Server {
    sim: Arc<Sim>,
    config: Arc<Config>,
    authorized: Vec<PublicKey>,
    sessions: Semaphore,
}

impl Server {
    pub fn new(sim: Arc<Sim>, host_key: PrivateKey, authorized: Vec<PublicKey>) -> Server {
        let config = Config {
            server_id: russh::SshId::Standard(Cow::Borrowed("SSH-2.0-ROSSSH")),
            methods: MethodSet::from(&[MethodKind::PublicKey, MethodKind::Password][..]),
            // Short: tests try wrong passwords often.
            auth_rejection_time: Duration::from_millis(100),
            auth_rejection_time_initial: Some(Duration::ZERO),
            keys: vec![host_key],
            preferred: preferred(),
            nodelay: true,
            ..Config::default()
        };
        Server { sim, config: Arc::new(config), authorized, sessions: Semaphore::new(MAX_SESSIONS) }
    }

    /// Serves one connection until it ends; beyond the limit it is closed at once.
    pub async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let Ok(_session) = self.sessions.try_acquire() else { return };
        let connection = Connection {
            server: self.clone(),
            turn: Arc::new(Mutex::new(())),
            width: self.sim.config.switches.console_width,
            shells: HashMap::new(),
        };
        // The session is a task of the library's, which goes on when this future is dropped or
        // left alone (`management`). So its bytes pass through here: then they stop.
        let (mut wire, session_end) = tokio::io::duplex(PIPE);
        let session = async {
            match russh::server::run_stream(self.config.clone(), session_end, connection).await {
                Ok(running) => {
                    if let Err(e) = running.await {
                        tracing::debug!("ssh: {e}");
                    }
                }
                Err(e) => tracing::debug!("ssh: {e}"),
            }
        };
        let bytes = tokio::io::copy_bidirectional(&mut stream, &mut wire);
        let _ = tokio::join!(session, bytes);
    }
}

/// No SHA-1 anywhere; host key algorithms in RouterOS's order.
fn preferred() -> Preferred {
    Preferred {
        kex: Cow::Borrowed(&[
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::DH_G16_SHA512,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_SERVER,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_SERVER,
        ]),
        host_key_certificates: Cow::Borrowed(&[]),
        key: Cow::Borrowed(&[
            Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
            Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
            Algorithm::Ed25519,
        ]),
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

struct Connection {
    server: Arc<Server>,
    /// Parallel exec channels stall: the next one waits for the one before.
    turn: Arc<Mutex<()>>,
    /// Columns, as the user's console options or the terminal say.
    width: usize,
    shells: HashMap<ChannelId, Shell>,
}

impl Connection {
    /// A user may be followed by console options, as in `admin+cet1024w` (manual, "Console login
    /// options"), which 7.25.0 ignored (ROUTEROS.md).
    fn user<'a>(&mut self, given: &'a str) -> &'a str {
        let Some((user, options)) = given.split_once('+') else { return given };
        let version = self.server.sim.config.ros_version;
        let ignored = (version.minor, version.patch.unwrap_or(0)) == (25, 0);
        let width = options.strip_suffix('w').map(|o| o.trim_start_matches(char::is_alphabetic));
        if let Some(width) = width.and_then(|w| w.parse().ok()).filter(|_| !ignored) {
            self.width = width;
        }
        user
    }

    fn knows(&self, user: &str, key: &PublicKey) -> bool {
        let booted = self.server.sim.management.mode() != Mode::Unauthorised;
        let known = self.server.authorized.iter().any(|k| k.key_data() == key.key_data());
        booted && self.admitted(user) && known
    }
}

impl Connection {
    /// The user, if it may use SSH at all.
    fn admitted(&self, user: &str) -> bool {
        let config = &self.server.sim.config;
        user == config.user && config.policies.contains(&Policy::Ssh)
    }
}

fn verdict(accepted: bool) -> Auth {
    if accepted { Auth::Accept } else { Auth::reject() }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_password(&mut self, user: &str, password: &str) -> Result<Auth, Self::Error> {
        let user = self.user(user);
        let sim = &self.server.sim;
        let booted = sim.management.mode() != Mode::Unauthorised;
        Ok(verdict(booted && self.admitted(user) && password == sim.password))
    }

    async fn auth_publickey_offered(
        &mut self,
        user: &str,
        offer: PublicKeyOffer<'_>,
    ) -> Result<Auth, Self::Error> {
        let user = self.user(user);
        Ok(verdict(acceptable(offer.algorithm) && self.knows(user, offer.public_key)))
    }

    async fn auth_publickey(
        &mut self,
        user: &str,
        key: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let user = self.user(user);
        Ok(verdict(acceptable(key.algorithm) && self.knows(user, key.public_key)))
    }

    async fn channel_open_session(
        &mut self,
        _channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        let line = String::from_utf8_lossy(data).into_owned();
        let width = self.width;
        let (sim, turn, handle) = (self.server.sim.clone(), self.turn.clone(), session.handle());
        tokio::spawn(async move {
            let _turn = turn.lock().await;
            match exec(&sim, &line, width).await {
                Some(text) => {
                    // The client may be gone already; there is nobody to tell.
                    let _ = handle.data(channel, text).await;
                    let _ = handle.exit_status_request(channel, 0).await;
                    let _ = handle.eof(channel).await;
                    let _ = handle.close(channel).await;
                }
                None => {
                    let _ = handle
                        .disconnect(Disconnect::ByApplication, String::new(), String::new())
                        .await;
                }
            }
        });
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        _term: &str,
        columns: u32,
        _rows: u32,
        _pixel_width: u32,
        _pixel_height: u32,
        _modes: &[(russh::Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        if columns > 0 {
            self.width = usize::try_from(columns).unwrap_or(self.width);
        }
        session.channel_success(channel)
    }

    /// A console to type into.
    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(channel)?;
        let shell = Shell::new(&self.server.sim.config.user);
        session.data(channel, shell.prompt())?;
        self.shells.insert(channel, shell);
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(shell) = self.shells.get_mut(&channel) else { return Ok(()) };
        for event in shell.typed(data) {
            match event {
                Event::Echo(text) => session.data(channel, text)?,
                Event::Quit => {
                    session.eof(channel)?;
                    session.close(channel)?;
                }
                Event::Line(line) => {
                    let Some(text) = exec(&self.server.sim, &line, self.width).await else {
                        let gone = Disconnect::ByApplication;
                        session.disconnect(gone, "", "")?;
                        return Ok(());
                    };
                    session.data(channel, format!("{text}{}", shell.prompt()))?;
                }
            }
        }
        Ok(())
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        _: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_failure(channel)
    }
}
