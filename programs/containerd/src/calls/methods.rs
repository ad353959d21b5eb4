//! The methods of the services, with the ways in which they stream.

/// Whether a method's requests or answers are streams.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Unary,
    ServerStream,
    BidiStream,
}

impl Kind {
    /// As metrics have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unary => "unary",
            Self::ServerStream => "server_stream",
            Self::BidiStream => "bidi_stream",
        }
    }
}

/// The kind of a method.
pub fn kind(service: &str, method: &str) -> Kind {
    let streams = |list: &[(&str, &str)]| list.contains(&(service, method));
    if streams(&SERVER_STREAMS) {
        Kind::ServerStream
    } else if streams(&BIDI_STREAMS) {
        Kind::BidiStream
    } else {
        Kind::Unary
    }
}

const CONTENT: &str = "containerd.services.content.v1.Content";

const SERVER_STREAMS: [(&str, &str); 7] = [
    ("containerd.services.containers.v1.Containers", "ListStream"),
    (CONTENT, "List"),
    (CONTENT, "Read"),
    ("containerd.services.events.v1.Events", "Subscribe"),
    ("containerd.services.mounts.v1.Mounts", "List"),
    ("containerd.services.snapshots.v1.Snapshots", "List"),
    ("grpc.health.v1.Health", "Watch"),
];

const BIDI_STREAMS: [(&str, &str); 2] =
    [(CONTENT, "Write"), ("containerd.services.streaming.v1.Streaming", "Stream")];

/// Services and the names of their methods.
pub const SERVICES: [(&str, &[&str]); 17] = [
    (
        "containerd.services.containers.v1.Containers",
        &["Get", "List", "ListStream", "Create", "Update", "Delete"],
    ),
    (CONTENT, &["Info", "Update", "List", "Delete", "Read", "Status", "ListStatuses", "Write", "Abort"]),
    ("containerd.services.diff.v1.Diff", &["Apply", "Diff"]),
    ("containerd.services.events.v1.Events", &["Publish", "Forward", "Subscribe"]),
    ("containerd.services.images.v1.Images", &["Get", "List", "Create", "Update", "Delete"]),
    ("containerd.services.introspection.v1.Introspection", &["Plugins", "Server", "PluginInfo"]),
    (
        "containerd.services.leases.v1.Leases",
        &["Create", "Delete", "List", "AddResource", "DeleteResource", "ListResources"],
    ),
    ("containerd.services.mounts.v1.Mounts", &["Activate", "Deactivate", "Info", "Update", "List"]),
    ("containerd.services.namespaces.v1.Namespaces", &["Get", "List", "Create", "Update", "Delete"]),
    (
        "containerd.services.sandbox.v1.Controller",
        &["Create", "Start", "Platform", "Stop", "Wait", "Status", "Shutdown", "Metrics", "Update"],
    ),
    ("containerd.services.sandbox.v1.Store", &["Create", "Update", "Delete", "List", "Get"]),
    (
        "containerd.services.snapshots.v1.Snapshots",
        &["Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "List", "Usage", "Cleanup"],
    ),
    ("containerd.services.streaming.v1.Streaming", &["Stream"]),
    (
        "containerd.services.tasks.v1.Tasks",
        &[
            "Create",
            "Start",
            "Delete",
            "DeleteProcess",
            "Get",
            "List",
            "Kill",
            "Exec",
            "ResizePty",
            "CloseIO",
            "Pause",
            "Resume",
            "ListPids",
            "Checkpoint",
            "Update",
            "Metrics",
            "Wait",
        ],
    ),
    ("containerd.services.transfer.v1.Transfer", &["Transfer"]),
    ("containerd.services.version.v1.Version", &["Version"]),
    ("grpc.health.v1.Health", &["Check", "List", "Watch"]),
];

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn descriptions(folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                descriptions(&entry.path(), found);
            } else {
                found.push(std::fs::read_to_string(entry.path()).unwrap());
            }
        }
    }

    #[test]
    fn the_table_is_that_of_the_descriptions() {
        let mut found = Vec::new();
        for folder in ["containerd/services", "grpc"] {
            let api = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../api/proto").join(folder);
            descriptions(&api, &mut found);
        }
        let mut methods = 0;
        for text in found {
            let after = |word: &str, line: &str| {
                Some(line.trim().strip_prefix(word)?.split([' ', '(', ';', '{']).next()?.to_owned())
            };
            let package = text.lines().find_map(|line| after("package ", line)).unwrap();
            if package.ends_with("events.ttrpc.v1") {
                continue;
            }
            let mut service = String::new();
            for line in text.lines() {
                if let Some(name) = after("service ", line) {
                    service = format!("{package}.{name}");
                }
                let Some(method) = after("rpc ", line) else { continue };
                let expected = match (line.contains("(stream"), line.contains("returns (stream")) {
                    (true, true) if line.matches("(stream").count() == 2 => Kind::BidiStream,
                    (_, true) => Kind::ServerStream,
                    _ => Kind::Unary,
                };
                assert_eq!(kind(&service, &method), expected, "{service}/{method}");
                let known = SERVICES.iter().find(|known| known.0 == service);
                let known = known.unwrap_or_else(|| panic!("{service} is missing"));
                assert!(known.1.contains(&method.as_str()), "{service}/{method} is missing");
                methods += 1;
            }
        }
        assert!(methods > 70, "{methods}");
    }
}
