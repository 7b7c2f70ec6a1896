//! What the SSH transport needs of the credentials directory: `password` and/or
//! `ssh-privatekey`, and `ssh-host-key`, which the appliance must prove.
//!
//! Each line of `ssh-host-key` is a fingerprint (`SHA256:...`, as `ssh-keygen -lf` prints
//! it), or a public key, alone or behind a host name as in known_hosts or the output of
//! `ssh-keyscan`. The host name is not compared: the file is about one appliance.

use std::sync::Arc;

use russh::keys::{Algorithm, HashAlg, PrivateKey, PublicKey, decode_secret_key};

use super::{CredentialsDir, CredentialsError, Secret};
use crate::config::{Scheme, user_name};

const HOST_KEY: &str = "ssh-host-key";
const USER_KEY: &str = "ssh-privatekey";

/// What was read, complete and well-formed.
#[derive(Clone)]
pub struct SshCredentials {
    /// RouterOS user.
    pub username: String,
    /// Its password, if there is one.
    pub password: Option<Secret>,
    /// Its private key, which is tried before the password.
    pub key: Option<Arc<PrivateKey>>,
    /// What the server's key must be one of.
    pub host_keys: HostKeys,
}

/// The keys that the appliance may have. At least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostKeys(Vec<Pin>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pin {
    Key(PublicKey),
    Fingerprint(String),
}

impl HostKeys {
    /// Reads the text of `ssh-host-key`.
    ///
    /// # Errors
    /// What is wrong with which line.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = text.lines().enumerate().map(|(n, line)| (n + 1, line.trim()));
        let pins: Vec<Pin> = lines
            .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
            .map(|(n, line)| pin(line).map_err(|why| format!("line {n}: {why}")))
            .collect::<Result<_, _>>()?;
        if pins.is_empty() {
            return Err("has neither a key nor a fingerprint in it".into());
        }
        Ok(Self(pins))
    }

    /// Whether the appliance may have this key.
    #[must_use]
    pub fn accept(&self, key: &PublicKey) -> bool {
        self.0.iter().any(|pin| match pin {
            Pin::Key(pinned) => pinned.key_data() == key.key_data(),
            Pin::Fingerprint(pinned) => *pinned == fingerprint(key),
        })
    }

    /// The kinds of keys that can be accepted; `None` if a fingerprint leaves that open. An
    /// appliance with two keys must be asked for the one that is pinned.
    #[must_use]
    pub fn kinds(&self) -> Option<Vec<Algorithm>> {
        let kind = |pin: &Pin| match pin {
            Pin::Key(key) => Some(key.algorithm()),
            Pin::Fingerprint(_) => None,
        };
        self.0.iter().map(kind).collect()
    }
}

/// As OpenSSH prints it, `SHA256:` and base64 without padding.
#[must_use]
pub fn fingerprint(key: &PublicKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

fn pin(line: &str) -> Result<Pin, String> {
    if line.starts_with('@') {
        return Err("markers such as @revoked are not supported; give plain keys".into());
    }
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    if let Some(found) = words.iter().find(|w| w.starts_with("SHA256:")) {
        // 32 bytes in base64 without padding.
        let digits = found.trim_start_matches("SHA256:").trim_end_matches('=');
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
        return match digits.len() == 43 && digits.bytes().all(plain) {
            true => Ok(Pin::Fingerprint(format!("SHA256:{digits}"))),
            false => Err("expected SHA256: and 43 characters of base64".into()),
        };
    }
    let named = |w: &&&str| w.starts_with("ssh-") || w.starts_with("ecdsa-");
    let at = words.iter().position(|w| named(&w)).unwrap_or(words.len());
    let (Some(kind), Some(data)) = (words.get(at), words.get(at + 1)) else {
        return Err("neither a public key nor a SHA256 fingerprint".into());
    };
    PublicKey::from_openssh(&format!("{kind} {data}"))
        .map(Pin::Key)
        .map_err(|_| "the public key cannot be read".into())
}

impl PartialEq for SshCredentials {
    fn eq(&self, other: &Self) -> bool {
        let id = |c: &Self| c.key.as_ref().map(|k| k.public_key().clone());
        self.username == other.username
            && self.password == other.password
            && id(self) == id(other)
            && self.host_keys == other.host_keys
    }
}

impl CredentialsDir {
    /// Reads what SSH needs. The user is the URL's, else that of the file `username`.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub async fn load_ssh(
        &self,
        url_user: Option<&str>,
    ) -> Result<SshCredentials, CredentialsError> {
        let url_user = url_user.map(str::to_owned);
        self.aside(move |dir| dir.load_ssh_here(url_user.as_deref())).await
    }

    fn load_ssh_here(&self, url_user: Option<&str>) -> Result<SshCredentials, CredentialsError> {
        let username = match url_user {
            Some(user) => user.to_owned(),
            None => user_name(&self.line("username")?).map_err(|why| self.bad("username", &why))?,
        };
        let key = match self.read(USER_KEY)? {
            None => None,
            Some(bytes) => Some(Arc::new(self.user_key(&bytes)?)),
        };
        let password = match self.read("password")? {
            None => None,
            Some(_) => Some(Secret(self.line("password")?)),
        };
        if key.is_none() && password.is_none() {
            return Err(self.bad("password", "missing, and so is ssh-privatekey; one is needed"));
        }
        let host_keys = match self.read(HOST_KEY)? {
            None => {
                return Err(self.bad(
                    HOST_KEY,
                    "missing; put the appliance's public host key or its SHA256 fingerprint \
                     there (the host key is always verified)",
                ));
            }
            Some(text) => HostKeys::parse(&String::from_utf8_lossy(&text))
                .map_err(|why| self.bad(HOST_KEY, &why))?,
        };
        Ok(SshCredentials { username, password, key, host_keys })
    }

    /// Whether the files that this way to the appliance needs can be used.
    ///
    /// # Errors
    /// As [`Self::load`] and [`Self::load_ssh`].
    pub async fn check(&self, scheme: &Scheme) -> Result<(), CredentialsError> {
        match scheme {
            Scheme::Https => self.load().await.map(drop),
            Scheme::Ssh { user } => self.load_ssh(user.as_deref()).await.map(drop),
        }
    }

    fn user_key(&self, bytes: &[u8]) -> Result<PrivateKey, CredentialsError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.bad(USER_KEY, "is not text"))?;
        // The library's error may quote what it read: say nothing of it.
        let key = decode_secret_key(text, None).map_err(|_| {
            self.bad(
                USER_KEY,
                "cannot be read; expected an ed25519 or RSA private key without a passphrase, \
                 as ssh-keygen -t ed25519 -N '' makes it",
            )
        })?;
        match key.algorithm() {
            Algorithm::Ed25519 | Algorithm::Rsa { .. } => Ok(key),
            other => Err(self.bad(
                USER_KEY,
                &format!(
                    "is a key of kind {other}, which RouterOS does not take from users; use \
                     ed25519 (ssh-keygen -t ed25519) or RSA"
                ),
            )),
        }
    }
}

#[cfg(test)]
#[path = "ssh_tests.rs"]
mod tests;
