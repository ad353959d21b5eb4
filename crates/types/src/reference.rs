//! Image references as resolvers read them (spec 03 §1): `host[/path][:tag][@digest]`. Nothing is
//! completed here; [`Reference::familiar`] completes names the way docker's users type them.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::{Digest, ResultExt};

/// A reference with a host, kept as given.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// Host and path.
    pub locator: String,
    /// What follows: `tag`, `tag@digest` or `@digest`; may be empty.
    pub object: String,
}

impl Reference {
    /// The host with its port, as written.
    #[must_use]
    pub fn host(&self) -> &str {
        self.locator.split('/').next().unwrap_or_default()
    }

    /// The repository: what follows the host.
    #[must_use]
    pub fn path(&self) -> &str {
        self.locator.split_once('/').map_or("", |(_, path)| path)
    }

    /// The tag, if there is one.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.object.split('@').next().filter(|tag| !tag.is_empty())
    }

    /// The digest, if there is one.
    ///
    /// # Errors
    /// InvalidArgument when what follows the `@` is not a digest.
    pub fn digest(&self) -> Result<Option<Digest>> {
        let digest = self.object.split_once('@').map(|(_, digest)| digest);
        digest.map(|digest| digest.parse().with_context(|| self.to_string())).transpose()
    }

    /// Completes a name as docker does: `alpine` becomes `docker.io/library/alpine:latest`.
    ///
    /// # Errors
    /// InvalidArgument when there is no repository in it.
    pub fn familiar(name: &str) -> Result<Self> {
        let (first, rest) = name.split_once('/').unwrap_or(("", name));
        let is_host = first.contains(['.', ':']) || first == "localhost";
        let full = match (is_host, first) {
            (true, "index.docker.io") => format!("docker.io/{rest}"),
            (true, _) => name.to_owned(),
            (false, "") => format!("docker.io/library/{rest}"),
            (false, _) => format!("docker.io/{name}"),
        };
        let full = match full.strip_prefix("docker.io/") {
            Some(path) if !path.contains('/') => format!("docker.io/library/{path}"),
            _ => full,
        };
        let mut reference: Self = full.parse()?;
        if reference.object.is_empty() {
            reference.object = "latest".into();
        }
        Ok(reference)
    }
}

impl FromStr for Reference {
    type Err = Error;

    /// # Errors
    /// InvalidArgument: `invalid reference`, `hostname required`.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |what: &str| Error::invalid_argument(format!("{what} {text:?}"));
        if text.contains("://") || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(bad("invalid reference"));
        }
        let (host, path) = text.split_once('/').unwrap_or((text, ""));
        if host.is_empty() || host.contains('@') {
            return Err(Error::invalid_argument("hostname required"));
        }
        let Some(end) = path.find([':', '@']) else {
            return Ok(Self { locator: text.to_owned(), object: String::new() });
        };
        let (repository, object) = path.split_at(end);
        let object = object.strip_prefix(':').unwrap_or(object);
        Ok(Self { locator: format!("{host}/{repository}"), object: object.to_owned() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.locator)?;
        match self.object.as_str() {
            "" => Ok(()),
            object if object.starts_with('@') => f.write_str(object),
            object => write!(f, ":{object}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_taken_apart_and_put_together() {
        for (text, host, path, tag) in [
            ("docker.io/library/alpine:latest", "docker.io", "library/alpine", Some("latest")),
            ("localhost:5000/a:b", "localhost:5000", "a", Some("b")),
            ("127.0.0.1:5000/a/b", "127.0.0.1:5000", "a/b", None),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.host(), reference.path(), reference.tag()), (host, path, tag));
            assert_eq!(reference.to_string(), text);
        }
        let digest = Digest::sha256(b"");
        let text = format!("h.io/a:t@{digest}");
        let reference: Reference = text.parse().unwrap();
        assert_eq!((reference.tag(), reference.digest().unwrap()), (Some("t"), Some(digest)));
        assert_eq!(reference.to_string(), text);
        assert!("http://a/b".parse::<Reference>().is_err());
        assert!("/b".parse::<Reference>().is_err());
    }

    #[test]
    fn familiar_names_are_completed() {
        for (name, full) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3", "docker.io/library/alpine:3"),
            ("user/app", "docker.io/user/app:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("quay.io/a/b:c", "quay.io/a/b:c"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ] {
            assert_eq!(Reference::familiar(name).unwrap().to_string(), full);
        }
    }
}
