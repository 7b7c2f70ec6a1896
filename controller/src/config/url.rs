//! Where the appliance is, and how it is spoken to.

use std::fmt;
use std::str::FromStr;

use hyper::Uri;

use super::Host;

/// `https://HOST[:PORT]` or `ssh://[USER@]HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RdsUrl {
    scheme: Scheme,
    host: Host,
    port: u16,
}

/// Which transport an [`RdsUrl`] asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scheme {
    /// REST over TLS.
    Https,
    /// Console commands over SSH.
    Ssh {
        /// Who logs in; without it, the credentials directory says.
        user: Option<String>,
    },
}

impl RdsUrl {
    #[must_use]
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }
    #[must_use]
    pub fn host(&self) -> &str {
        self.host.as_str()
    }
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
    /// For the Host header.
    #[must_use]
    pub fn authority(&self) -> String {
        match self.host().contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl fmt::Display for RdsUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.authority())
    }
}

impl FromStr for RdsUrl {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("http:") {
            return Err("plain HTTP would send the password in the clear; use https://".into());
        }
        let expected = || "expected https://HOST[:PORT] or ssh://USER@HOST[:PORT]".to_owned();
        let uri: Uri = text.parse().map_err(|_| expected())?;
        let authority = uri.authority().ok_or_else(expected)?;
        if uri.path_and_query().is_some_and(|p| p.as_str() != "/") {
            return Err(expected() + ", without a path");
        }
        let (user, place) = match authority.as_str().rsplit_once('@') {
            Some((user, place)) => (Some(user), place),
            None => (None, authority.as_str()),
        };
        let (scheme, default_port) = match (uri.scheme_str(), user) {
            (Some("https"), None) => (Scheme::Https, 443),
            (Some("https"), Some(_)) => {
                return Err("the user of the REST service is in the credentials directory, \
                            not in the URL"
                    .into());
            }
            (Some("ssh"), user) => (Scheme::Ssh { user: user.map(user_name).transpose()? }, 22),
            _ => return Err(expected()),
        };
        let port = match authority.port() {
            Some(port) => port.as_u16(),
            // `host:` and ports beyond 65535 are not ports to http::Uri.
            None if place.len() == authority.host().len() => default_port,
            None => return Err(expected()),
        };
        let host = authority.host();
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        Ok(Self { scheme, host: host.parse()?, port })
    }
}

/// A RouterOS user as it may be named for SSH.
///
/// What follows a `+` would be console options, which RouterOS 7.25.0 ignores and nothing
/// here needs; a `:` would begin a password, which has no place on a command line.
pub(crate) fn user_name(text: &str) -> Result<String, String> {
    let ok = (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-*".contains(&b));
    if ok {
        Ok(text.to_owned())
    } else {
        Err("the RouterOS user for SSH must be 1 to 64 letters, digits or ._-* (no password, \
             and no console options after a +)"
            .into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn urls() {
        for (text, want, user) in [
            ("https://10.0.0.1", "10.0.0.1:443", None),
            ("https://rds.example/", "rds.example:443", None),
            ("https://[fd00::1]:8443", "[fd00::1]:8443", None),
            ("ssh://csi@10.0.0.1", "10.0.0.1:22", Some("csi")),
            ("ssh://csi@[fd00::1]:2222", "[fd00::1]:2222", Some("csi")),
            ("ssh://rds.example", "rds.example:22", None),
        ] {
            let url = text.parse::<RdsUrl>().unwrap();
            assert_eq!(url.to_string(), want);
            match url.scheme() {
                Scheme::Https => assert!(text.starts_with("https:")),
                Scheme::Ssh { user: found } => assert_eq!(found.as_deref(), user),
            }
        }
        for (text, why) in [
            ("http://10.0.0.1", "in the clear"),
            ("https://u@10.0.0.1", "credentials directory"),
            ("https://10.0.0.1/rest", "without a path"),
            ("https://10.0.0.1:99999", "expected"),
            ("ssh://u:p@10.0.0.1", "no password"),
            ("ssh://u+cet1024w@10.0.0.1", "console options"),
            ("ssh://@10.0.0.1", "1 to 64"),
            ("ssh://u@10.0.0.1:", "expected"),
            ("telnet://10.0.0.1", "expected"),
            ("10.0.0.1", "expected"),
            ("", "expected"),
        ] {
            let error = text.parse::<RdsUrl>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_means_itself(text in "(https|ssh)://.{0,40}") {
            if let Ok(url) = text.parse::<RdsUrl>() {
                let again: RdsUrl = format!("https://{url}").parse().unwrap();
                prop_assert_eq!((again.host(), again.port()), (url.host(), url.port()));
            }
        }
        #[test]
        fn never_panics(text in ".*") {
            let _ = text.parse::<RdsUrl>();
        }
    }
}
