//! The little that the daemon itself reads from a container's OCI specification. The bytes go to
//! the bundle verbatim; nothing is written back.

use serde::Deserialize;
use serde::de::IgnoredAny;

/// The parts of `config.json` that decide how its bundle is made.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct SpecView {
    linux: Option<Linux>,
    mounts: Option<Vec<Mount>>,
    annotations: Option<Annotations>,
}

/// Those that name the group of containers which share a shim (spec 02 §3.2).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Annotations {
    #[serde(rename = "io.containerd.runc.v2.group")]
    group: Option<String>,
    #[serde(rename = "io.kubernetes.cri.sandbox-id")]
    sandbox: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
    gid_mappings: Option<Vec<Mapping>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Mapping {
    #[serde(rename = "containerID")]
    container_id: u32,
    #[serde(rename = "hostID")]
    host_id: u32,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Mount {
    uid_mappings: Option<Vec<IgnoredAny>>,
    gid_mappings: Option<Vec<IgnoredAny>>,
}

impl SpecView {
    /// Reads a specification. One that cannot be read is for the OCI runtime to complain about.
    pub fn parse(spec: &[u8]) -> Self {
        serde_json::from_slice(spec).unwrap_or_default()
    }

    /// The host's group of the container's root, if it runs in a user namespace.
    pub fn remapped_root_group(&self) -> Option<u32> {
        let linux = self.linux.as_ref()?;
        linux.namespaces.iter().flatten().find(|namespace| namespace.r#type == "user")?;
        let mut mappings = linux.gid_mappings.iter().flatten();
        mappings.find(|mapping| mapping.container_id == 0).map(|mapping| mapping.host_id)
    }

    /// The group of containers that this one shares its shim with.
    pub fn group(&self) -> Option<&str> {
        let annotations = self.annotations.as_ref()?;
        annotations.group.as_deref().or(annotations.sandbox.as_deref())
    }

    /// Whether a mount is to be idmapped, which the OCI runtime must be able to do.
    pub fn has_idmapped_mounts(&self) -> bool {
        let given =
            |mappings: &Option<Vec<IgnoredAny>>| mappings.as_ref().is_some_and(|list| !list.is_empty());
        self.mounts.iter().flatten().any(|mount| given(&mount.uid_mappings) || given(&mount.gid_mappings))
    }
}

/// Whether the JSON of an OCI runtime's features says that it makes idmapped mounts.
pub(crate) fn features_have_idmap(features: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(features)
        .ok()
        .and_then(|features| features.pointer("/linux/mountExtensions/idmap/enabled")?.as_bool())
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remapped_group_needs_a_user_namespace() {
        let mapped = r#"{"linux":{"namespaces":[{"type":"pid"},{"type":"user"}],
            "gidMappings":[{"containerID":5,"hostID":9,"size":1},{"containerID":0,"hostID":100000,"size":65536}]}}"#;
        assert_eq!(SpecView::parse(mapped.as_bytes()).remapped_root_group(), Some(100_000));
        let without = mapped.replace("\"user\"", "\"uts\"");
        assert_eq!(SpecView::parse(without.as_bytes()).remapped_root_group(), None);
        for odd in ["", "null", "[]", r#"{"linux":null,"mounts":null}"#, r#"{"linux":7}"#] {
            assert_eq!(SpecView::parse(odd.as_bytes()).remapped_root_group(), None, "{odd}");
        }
    }

    #[test]
    fn idmapped_mounts_are_seen() {
        let plain = r#"{"mounts":[{"destination":"/proc"},{"uidMappings":[],"gidMappings":null}]}"#;
        assert!(!SpecView::parse(plain.as_bytes()).has_idmapped_mounts());
        let mapped = r#"{"mounts":[{"destination":"/a","uidMappings":[{"containerID":0}]}]}"#;
        assert!(SpecView::parse(mapped.as_bytes()).has_idmapped_mounts());
        assert!(features_have_idmap(br#"{"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#));
        assert!(!features_have_idmap(br#"{"linux":{"mountExtensions":{}}}"#));
        assert!(!features_have_idmap(b"runc"));
    }
}
