//! Under which names an image is recorded (spec 03 §8, §10).

use std::collections::BTreeMap;

use corten_types::Descriptor;

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

/// The name that annotations give: the full one, else the tag after `base`. A full name, also one in the
/// place of a tag, counts if it begins with `base`, or if `overwrite` allows any.
#[must_use]
pub fn annotated(annotations: &BTreeMap<String, String>, base: &str, overwrite: bool) -> Option<String> {
    let text = |key: &str| annotations.get(key).filter(|text| !text.is_empty());
    let is_full = |name: &str| name.contains(['/', ':', '@']);
    let kept = |name: &str| overwrite || begins_with(name, base);
    if let Some(name) = text(IMAGE_NAME) {
        return (is_full(name) && kept(name)).then(|| name.clone());
    }
    let name = text(REF_NAME)?;
    if !is_full(name) {
        return Some(format!("{base}:{name}"));
    }
    kept(name).then(|| name.clone())
}

fn begins_with(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']))
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
        let complete = descriptor(&[(IMAGE_NAME, "docker.io/library/a:1"), (REF_NAME, "1")]);
        let bare = descriptor(&[]);
        let plain = prefix("base");
        let overwrite = ImageReference { allow_overwrite: true, ..plain.clone() };
        let digests = ImageReference { add_digest: true, ..plain.clone() };
        let skip = ImageReference { skip_named_digest: true, ..digests.clone() };
        let by_digest = format!("base@{digest}");
        let other = ImageReference { name: "x".to_owned(), ..ImageReference::default() };
        let named = |descriptor: &Descriptor, rule: &ImageReference| {
            of_archived(descriptor, std::slice::from_ref(rule))
        };
        let none: [&str; 0] = [];
        assert_eq!(named(&tag, &plain), ["base:1.0"]);
        assert_eq!(named(&full, &plain), none);
        assert_eq!(named(&full, &prefix("reg.example/a")), ["reg.example/a:1"]);
        assert_eq!(named(&full, &prefix("reg.exam")), none);
        assert_eq!(named(&full, &overwrite), ["reg.example/a:1"]);
        assert_eq!(named(&complete, &plain), none);
        assert_eq!(named(&complete, &overwrite), ["docker.io/library/a:1"]);
        assert_eq!(named(&complete, &prefix("docker.io/library")), ["docker.io/library/a:1"]);
        assert_eq!(named(&complete, &digests), [by_digest.as_str()]);
        assert_eq!(named(&bare, &plain), none);
        assert_eq!(named(&bare, &skip), [by_digest.as_str()]);
        assert_eq!(named(&tag, &digests), ["base:1.0", &by_digest]);
        assert_eq!(named(&tag, &skip), ["base:1.0"]);
        assert_eq!(named(&tag, &other), none);
    }
}
