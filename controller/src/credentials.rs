//! The credentials directory: `username`, `password`, and what the appliance's certificate
//! is checked against, `ca.crt` and/or `cert.sha256`. [`ssh`] tells what SSH takes instead.
//!
//! It is read again for every request, which costs four small reads and makes rotation (a
//! Secret's symlink swap) take effect at once, without a watcher that could miss it.

pub mod ssh;

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use sha2::{Digest, Sha256};

/// A text that never shows itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, to be put on the wire and nowhere else.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// What was read, complete and well-formed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// RouterOS user.
    pub username: String,
    /// Its password.
    pub password: Secret,
    /// What the server must prove.
    pub trust: TrustMaterial,
}

/// What the server's certificate is checked against. At least one of the two is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustMaterial {
    /// From `ca.crt`: a private CA, or the appliance's own self-signed certificate.
    pub certificates: Vec<CertificateDer<'static>>,
    /// From `cert.sha256`: the fingerprint that the certificate must have.
    pub fingerprint: Option<[u8; 32]>,
}

/// A file of the directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("credentials: {path}: {cause}")]
pub struct CredentialsError {
    /// Which file.
    pub path: String,
    /// What is wrong with it; never its content.
    pub cause: String,
}

/// Where the credentials are.
#[derive(Debug, Clone)]
pub struct CredentialsDir(PathBuf);

impl CredentialsDir {
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads all files.
    ///
    /// # Errors
    /// Names the file that is missing or malformed.
    pub async fn load(&self) -> Result<Credentials, CredentialsError> {
        self.aside(Self::load_here).await
    }

    /// All files in one go on a thread that may block: this is done for each request, and
    /// going there costs more than reading them.
    async fn aside<T: Send + 'static>(
        &self,
        load: impl FnOnce(&Self) -> Result<T, CredentialsError> + Send + 'static,
    ) -> Result<T, CredentialsError> {
        let dir = self.clone();
        tokio::task::spawn_blocking(move || load(&dir))
            .await
            .unwrap_or_else(|e| Err(self.bad("", &format!("could not be read: {e}"))))
    }

    fn load_here(&self) -> Result<Credentials, CredentialsError> {
        let username = self.line("username")?;
        if username.contains(':') {
            // Basic authentication ends the user name at the first colon (RFC 7617).
            return Err(self.bad("username", "must not contain a colon"));
        }
        let password = Secret(self.line("password")?);
        let certificates = match self.read("ca.crt")? {
            None => Vec::new(),
            Some(pem) => self.certificates(&pem)?,
        };
        let fingerprint = match self.read("cert.sha256")? {
            None => None,
            Some(text) => Some(self.fingerprint(&text)?),
        };
        if certificates.is_empty() && fingerprint.is_none() {
            return Err(self.bad(
                "ca.crt",
                "missing; put the CA's certificate or the appliance's own self-signed one there, \
                 or its SHA-256 fingerprint into cert.sha256 (TLS is always verified)",
            ));
        }
        Ok(Credentials { username, password, trust: TrustMaterial { certificates, fingerprint } })
    }

    fn certificates(&self, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CredentialsError> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match found {
            Ok(list) if !list.is_empty() => Ok(list),
            Ok(_) => Err(self.bad("ca.crt", "has no PEM certificate in it")),
            Err(e) => Err(self.bad("ca.crt", &format!("is not PEM: {e}"))),
        }
    }

    fn fingerprint(&self, text: &[u8]) -> Result<[u8; 32], CredentialsError> {
        let digits: Vec<u8> =
            text.iter().copied().filter(|b| !b.is_ascii_whitespace() && *b != b':').collect();
        hex::decode(digits)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or_else(|| self.bad("cert.sha256", "expected 64 hexadecimal digits"))
    }

    fn line(&self, name: &str) -> Result<String, CredentialsError> {
        let bytes = self.read(name)?.ok_or_else(|| self.bad(name, "missing"))?;
        let text = String::from_utf8(bytes).map_err(|_| self.bad(name, "is not UTF-8"))?;
        // Editors end a file with a newline that is no part of the password.
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        if text.is_empty() || text.contains(['\n', '\r', '\0']) {
            return Err(self.bad(name, "expected one line of text"));
        }
        Ok(text.to_owned())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>, CredentialsError> {
        match std::fs::read(self.0.join(name)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.bad(name, &e.to_string())),
        }
    }

    fn bad(&self, name: &str, cause: &str) -> CredentialsError {
        CredentialsError { path: self.0.join(name).display().to_string(), cause: cause.to_owned() }
    }
}

/// SHA-256 of a certificate's DER, as `openssl x509 -fingerprint -sha256` prints it.
#[must_use]
pub fn fingerprint_of(certificate: &CertificateDer<'_>) -> [u8; 32] {
    Sha256::digest(certificate.as_ref()).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn dir(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[tokio::test]
    async fn a_password_is_read_without_its_newline_and_never_shown() {
        let pin = "ab:".repeat(31) + "AB\n";
        let d = dir(&[("username", "csi\n"), ("password", "hunter2 \n"), ("cert.sha256", &pin)]);
        let c = CredentialsDir::new(d.path()).load().await.unwrap();
        assert_eq!((c.username.as_str(), c.password.reveal()), ("csi", "hunter2 "));
        assert_eq!(c.trust.fingerprint, Some([0xab; 32]));
        assert!(!format!("{c:?}").contains("hunter2"));
    }

    #[tokio::test]
    async fn what_is_missing_is_named() {
        for (files, want) in [
            (vec![], "username"),
            (vec![("username", "u")], "password"),
            (vec![("username", "u"), ("password", "p")], "ca.crt"),
            (vec![("username", "u:v"), ("password", "p")], "username"),
            (vec![("username", "u"), ("password", "p"), ("ca.crt", "junk")], "ca.crt"),
            (vec![("username", "u"), ("password", "p"), ("cert.sha256", "12")], "cert.sha256"),
        ] {
            let d = dir(&files);
            let error = CredentialsDir::new(d.path()).load().await.unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
    }
}
