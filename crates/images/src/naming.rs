//! Under which names an image is recorded (spec 03 §8, §10).

use std::collections::BTreeMap;

use corten_types::{Descriptor, Error, Result};

/// Annotation with the full name of an image in an archive.
pub const IMAGE_NAME: &str = "io.containerd.image.name";
/// Annotation with the tag (or name) of an image in an archive.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A name, or a rule for names, beside the image's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageReference {
    /// Name or prefix.
    pub name: String,
    /// Whether names are made of the prefix and what an archive says.
    pub is_prefix: bool,
    /// Whether full names of an archive are kept although they do not begin with the prefix.
    pub allow_overwrite: bool,
    /// Whether `name@digest` is recorded.
    pub add_digest: bool,
    /// Whether `name@digest` is left out where a name was found.
    pub skip_named_digest: bool,
}

/// The names that an image of an archive gets by the rules.
#[must_use]
pub fn of_archived(descriptor: &Descriptor, rules: &[ImageReference]) -> Vec<String> {
    let mut names = Vec::new();
    for rule in rules.iter().filter(|rule| rule.is_prefix) {
        let digest = || format!("{}@{}", rule.name, descriptor.digest);
        match annotated(&descriptor.annotations, &rule.name, rule.allow_overwrite) {
            None if rule.add_digest => names.push(digest()),
            None => {}
            Some(name) => {
                names.push(name);
                if rule.add_digest && !rule.skip_named_digest {
                    names.push(digest());
                }
            }
        }
    }
    names.dedup();
    names
}

/// The names that a pulled image gets beside its own.
#[must_use]
pub fn beside(descriptor: &Descriptor, rules: &[ImageReference]) -> Vec<String> {
    rules
        .iter()
        .filter(|rule| !rule.is_prefix)
        .map(|rule| match rule.add_digest {
            true => format!("{}@{}", rule.name, descriptor.digest),
            false => rule.name.clone(),
        })
        .collect()
}

/// The name that annotations give: the full one as it is, else the tag after `base`. A full name in the
/// place of a tag is kept if it begins with `base`, or if `overwrite` allows any.
#[must_use]
pub fn annotated(annotations: &BTreeMap<String, String>, base: &str, overwrite: bool) -> Option<String> {
    let text = |key: &str| annotations.get(key).filter(|text| !text.is_empty());
    if let Some(name) = text(IMAGE_NAME) {
        return Some(name.clone());
    }
    let name = text(REF_NAME)?;
    if !name.contains(['/', ':', '@']) {
        return Some(format!("{base}:{name}"));
    }
    (overwrite || begins_with(name, base)).then(|| name.clone())
}

fn begins_with(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// A name as Docker's users write it in full: `alpine` is `docker.io/library/alpine:latest`.
///
/// # Errors
/// InvalidArgument for what is no name.
pub fn normalize(name: &str) -> Result<String> {
    let invalid = || Error::invalid_argument(format!("invalid reference format: {name:?}"));
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(invalid());
    }
    let (host, rest) = match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
        _ => ("docker.io", name),
    };
    let host = if host == "index.docker.io" { "docker.io" } else { host };
    let (path, digest) = match rest.split_once('@') {
        Some((path, digest)) => (path, Some(digest)),
        None => (rest, None),
    };
    let (path, tag) = match path.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (path, None),
    };
    let word = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    let path_is_good = path.split('/').all(word) && !path.bytes().any(|b| b.is_ascii_uppercase());
    if !path_is_good || tag.is_some_and(|tag| !word(tag)) {
        return Err(invalid());
    }
    let library = if host == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let mut full = format!("{host}/{library}{path}");
    match (tag, digest) {
        (Some(tag), _) => full.push_str(&format!(":{tag}")),
        (None, None) => full.push_str(":latest"),
        (None, Some(_)) => {}
    }
    if let Some(digest) = digest {
        digest.parse::<corten_types::Digest>().map_err(|_| invalid())?;
        full.push_str(&format!("@{digest}"));
    }
    Ok(full)
}

/// The tag of a full name, for the annotation of an archive.
#[must_use]
pub fn tag_of(name: &str) -> &str {
    let path = name.rsplit_once('/').map_or(name, |(_, path)| path);
    let path = path.split('@').next().unwrap_or(path);
    path.rsplit_once(':').map_or("", |(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use corten_types::{Digest, media_type};

    use super::*;

    fn descriptor(annotations: &[(&str, &str)]) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256(b"m"), 1);
        for (key, value) in annotations {
            descriptor.annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        descriptor
    }

    fn prefix(name: &str) -> ImageReference {
        ImageReference { name: name.to_owned(), is_prefix: true, ..ImageReference::default() }
    }

    #[test]
    fn archived_images_are_named_by_rule() {
        let digest = Digest::sha256(b"m");
        let tag = descriptor(&[(REF_NAME, "1.0")]);
        let full = descriptor(&[(REF_NAME, "reg.example/a:1")]);
        let named = descriptor(&[(IMAGE_NAME, "docker.io/library/a:1"), (REF_NAME, "1")]);
        let bare = descriptor(&[]);
        let plain = prefix("base");
        let overwrite = ImageReference { allow_overwrite: true, ..plain.clone() };
        let digests = ImageReference { add_digest: true, ..plain.clone() };
        let skip = ImageReference { skip_named_digest: true, ..digests.clone() };
        let by_digest = format!("base@{digest}");
        let none: [&str; 0] = [];
        assert_eq!(of_archived(&tag, &[plain.clone()]), ["base:1.0"]);
        assert_eq!(of_archived(&full, &[plain.clone()]), none);
        assert_eq!(of_archived(&full, &[prefix("reg.example/a")]), ["reg.example/a:1"]);
        assert_eq!(of_archived(&full, &[prefix("reg.exam")]), none);
        assert_eq!(of_archived(&full, &[overwrite]), ["reg.example/a:1"]);
        assert_eq!(of_archived(&named, &[plain.clone()]), ["docker.io/library/a:1"]);
        assert_eq!(of_archived(&bare, &[plain]), none);
        assert_eq!(of_archived(&bare, &[skip.clone()]), [by_digest.as_str()]);
        assert_eq!(of_archived(&tag, &[digests]), ["base:1.0", &by_digest]);
        assert_eq!(of_archived(&tag, &[skip]), ["base:1.0"]);
        assert_eq!(of_archived(&tag, &[ImageReference { name: "x".to_owned(), ..Default::default() }]), none);
    }

    #[test]
    fn docker_names_are_written_out() {
        let digest = Digest::sha256(b"x");
        for (name, want) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("alpine:3", "docker.io/library/alpine:3".to_owned()),
            ("a/b", "docker.io/a/b:latest".to_owned()),
            ("index.docker.io/a/b:1", "docker.io/a/b:1".to_owned()),
            ("localhost/a", "localhost/a:latest".to_owned()),
            ("localhost:5000/a:1", "localhost:5000/a:1".to_owned()),
            (&format!("a@{digest}"), format!("docker.io/library/a@{digest}")),
        ] {
            assert_eq!(normalize(name).unwrap(), want);
        }
        for name in ["", "A", "a b", "a:", "a//b", "a@sha256:1", ":5000", "a:b:c"] {
            assert!(normalize(name).is_err(), "{name}");
        }
        assert_eq!(tag_of("localhost:5000/a:1"), "1");
        assert_eq!(tag_of("localhost:5000/a"), "");
    }
}
