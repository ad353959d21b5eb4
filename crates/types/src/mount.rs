//! A mount to be made: type, source, a sub-path of the target and options.

/// One mount of a list that together makes a root file system.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    /// `bind`, `overlay`, … or a daemon-side transformer such as `format/overlay`.
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Sub-path inside the directory that the list is mounted on; usually empty.
    pub target: String,
    /// Options in the manner of mount(8).
    pub options: Vec<String>,
}
