//! Reading a folder of certs.d: `hosts.toml`, or certificate files in the manner of Docker.

use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_types::{Error, Result, ResultExt};
use toml::{Table, Value};

use super::{Capabilities, Tls};
use crate::url::Url;

/// One host as configured; what is missing has a default.
#[derive(Debug, Default)]
pub(super) struct Entry {
    pub address: Option<Url>,
    /// Path of the protocol, where an address is given.
    pub path: String,
    pub capabilities: Option<Capabilities>,
    pub headers: Vec<(String, String)>,
    pub tls: Tls,
    pub dial_timeout: Option<Duration>,
}

/// What a folder says.
#[derive(Debug, Default)]
pub(super) struct Configured {
    pub mirrors: Vec<Entry>,
    pub server: Entry,
}

/// Reads a folder. A broken hosts.toml is logged, and certificate files count instead.
pub(super) fn load(dir: &Path) -> Configured {
    let file = dir.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) => match parse(&text, dir) {
            Ok(configured) => return configured,
            Err(error) => tracing::error!(file = %file.display(), %error, "failed to decode hosts.toml"),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::error!(file = %file.display(), %error, "failed to read hosts.toml"),
    }
    Configured { server: Entry { tls: certificate_files(dir), ..Entry::default() }, mirrors: Vec::new() }
}

fn parse(text: &str, dir: &Path) -> Result<Configured> {
    let invalid = |error: toml::de::Error| Error::invalid_argument(error.to_string().trim_end());
    let table: Table = text.parse::<Table>().map_err(invalid)?;
    let server = table.get("server").map(string).transpose().context("server")?.unwrap_or_default();
    let mut configured = Configured { server: entry(&table, server, dir)?, mirrors: Vec::new() };
    // The parser keeps the order of the file, which is the order in which hosts are asked.
    match table.get("host") {
        None => {}
        Some(Value::Table(hosts)) => {
            for (name, value) in hosts {
                let Value::Table(table) = value else {
                    return Err(Error::invalid_argument(format!("host.{name:?} must be a table")));
                };
                configured.mirrors.push(entry(table, name, dir).with_context(|| format!("host.{name:?}"))?);
            }
        }
        Some(_) => return Err(Error::invalid_argument("host must be a table")),
    }
    Ok(configured)
}

fn entry(table: &Table, address: &str, dir: &Path) -> Result<Entry> {
    let mut entry = Entry::default();
    let mut override_path = false;
    for (key, value) in table {
        match key.as_str() {
            "capabilities" => entry.capabilities = Some(capabilities(value)?),
            "ca" => entry.tls.ca = strings(value).context(key)?.map(|path| dir.join(path)).collect(),
            "client" => entry.tls.client = client_pairs(value, dir)?,
            "skip_verify" => entry.tls.skip_verify = Some(boolean(value).context(key)?),
            "override_path" => override_path = boolean(value).context(key)?,
            "dial_timeout" => entry.dial_timeout = Some(duration(string(value).context(key)?)?),
            "header" => entry.headers = headers(value)?,
            "server" | "host" => {}
            other => tracing::warn!(key = other, folder = %dir.display(), "unknown key in hosts.toml"),
        }
    }
    if address.is_empty() {
        return Ok(entry);
    }
    let url = if address.contains("://") {
        Url::parse(address)?
    } else {
        Url::parse(&format!("https://{address}"))?
    };
    let path = url.target.split('?').next().unwrap_or_default().trim_end_matches('/');
    entry.path = match path {
        _ if override_path => path.to_owned(),
        _ if path.ends_with("/v2") => path.to_owned(),
        _ => format!("{path}/v2"),
    };
    entry.address = Some(url);
    Ok(entry)
}

fn string(value: &Value) -> Result<&str> {
    value.as_str().ok_or_else(|| Error::invalid_argument("must be a string"))
}

fn boolean(value: &Value) -> Result<bool> {
    value.as_bool().ok_or_else(|| Error::invalid_argument("must be true or false"))
}

/// A string or a list of strings.
fn strings(value: &Value) -> Result<impl Iterator<Item = &str>> {
    let list = match value {
        Value::String(text) => vec![text.as_str()],
        Value::Array(list) => list.iter().map(string).collect::<Result<_>>()?,
        _ => return Err(Error::invalid_argument("must be a string or a list of strings")),
    };
    Ok(list.into_iter())
}

fn capabilities(value: &Value) -> Result<Capabilities> {
    let mut found = Capabilities::NONE;
    for name in strings(value).context("capabilities")? {
        match name.to_ascii_lowercase().as_str() {
            "pull" => found.pull = true,
            "resolve" => found.resolve = true,
            "push" => found.push = true,
            "referrers" => found.referrers = true,
            _ => return Err(Error::invalid_argument(format!("unknown capability {name}"))),
        }
    }
    // An empty list says nothing.
    Ok(if found == Capabilities::NONE { Capabilities::ALL } else { found })
}

/// A string, a list of strings, or a list of `[certificate, key]`.
fn client_pairs(value: &Value, dir: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    let invalid = || Error::invalid_argument("invalid type for \"client\"");
    let list = match value {
        Value::String(text) => return Ok(vec![(dir.join(text), None)]),
        Value::Array(list) => list,
        _ => return Err(invalid()),
    };
    list.iter()
        .map(|item| match item {
            Value::String(text) => Ok((dir.join(text), None)),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(certificate), Value::String(key)] => {
                    Ok((dir.join(certificate), (!key.is_empty()).then(|| dir.join(key))))
                }
                _ => Err(invalid()),
            },
            _ => Err(invalid()),
        })
        .collect()
}

fn headers(value: &Value) -> Result<Vec<(String, String)>> {
    let Value::Table(table) = value else {
        return Err(Error::invalid_argument("header must be a table"));
    };
    let mut headers = Vec::new();
    for (name, value) in table {
        if http::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(Error::invalid_argument(format!("invalid header name {name:?}")));
        }
        for value in strings(value).with_context(|| format!("header {name}"))? {
            if http::HeaderValue::from_str(value).is_err() {
                return Err(Error::invalid_argument(format!("invalid value of header {name}")));
            }
            headers.push((name.clone(), value.to_owned()));
        }
    }
    Ok(headers)
}

/// A duration as Go writes it: `1h2m3.5s`, `300ms`.
pub(crate) fn duration(text: &str) -> Result<Duration> {
    let invalid = || Error::invalid_argument(format!("invalid duration {text:?}"));
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        seconds += number
            * match &rest[..end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                "ns" => 1e-9,
                _ => return Err(invalid()),
            };
        rest = &rest[end..];
    }
    if text.is_empty() {
        return Err(invalid());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

/// `*.crt` are authorities, `*.cert` with a `.key` of the same name identify us.
fn certificate_files(dir: &Path) -> Tls {
    let mut tls = Tls::default();
    let Ok(entries) = std::fs::read_dir(dir) else {
        return tls;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if key.is_file() {
                    tls.client.push((path, Some(key)));
                } else {
                    tracing::warn!(file = %path.display(), "certificate without a key");
                }
            }
            _ => {}
        }
    }
    tls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_go_writes_them() {
        for (text, millis) in
            [("1s", 1000), ("1m30s", 90_000), ("1.5s", 1500), ("300ms", 300), ("1h", 3_600_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "1", "s", "1x", "1..s", "-1s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn wrong_types_are_named() {
        for (text, want) in [
            ("skip_verify = 'no'", "skip_verify: must be true or false"),
            ("[host]\na = 1", "host.\"a\" must be a table"),
            ("[host.'https://a']\ncapabilities = ['fly']", "unknown capability fly"),
            ("[host.'ftp://a']", "invalid URL"),
            ("client = 3", "invalid type for \"client\""),
            ("server = 'https://a'\nserver = 'https://b'", "duplicate key"),
        ] {
            let error = parse(text, Path::new("/d")).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
