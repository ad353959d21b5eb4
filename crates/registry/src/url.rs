//! Addresses of registries: scheme, authority and what follows, kept as they are shown in messages.

use std::fmt;

use corten_types::{Error, Result};
use http::Uri;

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
}

impl Scheme {
    /// The name before `://`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that applies where none is written.
    #[must_use]
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// An absolute address. It holds no user information, and its target starts with a slash.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Url {
    /// Scheme.
    pub scheme: Scheme,
    /// `host` or `host:port`, as written.
    pub authority: String,
    /// Path and query.
    pub target: String,
}

impl Url {
    /// An address of known parts; `target` is escaped where it has to be.
    #[must_use]
    pub fn new(scheme: Scheme, authority: impl Into<String>, target: &str) -> Self {
        Self { scheme, authority: authority.into(), target: escape(target) }
    }

    /// Reads an absolute `http` or `https` address; user information in it is dropped.
    ///
    /// # Errors
    /// InvalidArgument for anything else.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = || Error::invalid_argument(format!("invalid URL {text:?}"));
        let uri: Uri = escape(text).parse().map_err(|_| invalid())?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().ok_or_else(invalid)?.as_str();
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if authority.is_empty() || authority.starts_with(':') {
            return Err(invalid());
        }
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
        Ok(Self { scheme, authority: authority.to_owned(), target })
    }

    /// The address that a `Location` header names, seen from here.
    ///
    /// # Errors
    /// InvalidArgument for an address that cannot be read.
    pub fn join(&self, location: &str) -> Result<Self> {
        if location.contains("://") {
            return Self::parse(location);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{}://{rest}", self.scheme.as_str()));
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let target = if location.starts_with('/') {
            location.to_owned()
        } else if location.starts_with('?') {
            format!("{path}{location}")
        } else {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            format!("{folder}/{location}")
        };
        Ok(Self::new(self.scheme, self.authority.clone(), &target))
    }

    /// Host without port and without the brackets of an IPv6 address.
    #[must_use]
    pub fn host(&self) -> &str {
        split_port(&self.authority).0
    }

    /// The port as written, or the scheme's.
    #[must_use]
    pub fn port(&self) -> u16 {
        split_port(&self.authority).1.unwrap_or(self.scheme.default_port())
    }

    /// Whether a port is written.
    #[must_use]
    pub fn has_port(&self) -> bool {
        split_port(&self.authority).1.is_some()
    }

    /// Whether both lead to the same scheme, host and port.
    #[must_use]
    pub fn same_origin(&self, other: &Self) -> bool {
        self.scheme == other.scheme
            && self.port() == other.port()
            && self.host().eq_ignore_ascii_case(other.host())
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.scheme.as_str(), self.authority, self.target)
    }
}

/// Host (without brackets) and port of `host[:port]`.
pub(crate) fn split_port(authority: &str) -> (&str, Option<u16>) {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, after) = rest.split_once(']').unwrap_or((rest, ""));
        return (host, after.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') => (host, port.parse().ok()),
        _ => (authority, None),
    }
}

/// Escapes one value of a query.
pub(crate) fn escape_value(value: &str) -> String {
    percent(value, |byte| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte))
}

/// Escapes what may not stand in an address at all, and leaves its structure alone.
fn escape(text: &str) -> String {
    percent(text, |byte| byte.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&byte))
}

fn percent(text: &str, plain: impl Fn(u8) -> bool) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if plain(byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_shown_alike() {
        for text in ["http://a/", "https://a:1/b?c=d", "https://[::1]:5000/v2/"] {
            assert_eq!(Url::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Url::parse("https://user:secret@a/b").unwrap().to_string(), "https://a/b");
        assert_eq!(Url::parse("https://a?b=c").unwrap().to_string(), "https://a/?b=c");
        for text in ["", "a", "ftp://a/", "http://", "/v2", "http://:1/"] {
            assert!(Url::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn locations_are_seen_from_where_they_came() {
        let from = Url::parse("https://a:1/v2/x/y?q=1").unwrap();
        for (location, want) in [
            ("http://b/c", "http://b/c"),
            ("//b/c", "https://b/c"),
            ("/c d", "https://a:1/c%20d"),
            ("c?d", "https://a:1/v2/x/c?d"),
            ("?z=1", "https://a:1/v2/x/y?z=1"),
        ] {
            assert_eq!(from.join(location).unwrap().to_string(), want);
        }
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let a = Url::parse("https://a/x").unwrap();
        assert!(a.same_origin(&Url::parse("https://A:443/y").unwrap()));
        assert!(!a.same_origin(&Url::parse("http://a/x").unwrap()));
        assert!(!a.same_origin(&Url::parse("https://a:444/x").unwrap()));
        assert_eq!(split_port("[::1]:80"), ("::1", Some(80)));
        assert_eq!(split_port("::1"), ("::1", None));
    }
}
