//! The configuration file, of any version (spec 00 §5). Keys that are not known here warn and are ignored.

use std::path::{Path, PathBuf};

use corten_types::{Error, Result, ResultExt};
use toml::{Table, Value};

const FILE: &str = "/etc/containerd/config.toml";
/// The newest version that is understood.
const NEWEST: i64 = 4;

/// What is in force.
#[derive(Clone, Debug)]
pub struct Config {
    pub root: PathBuf,
    pub state: PathBuf,
    pub grpc_address: PathBuf,
    pub ttrpc_address: PathBuf,
    pub uid: u32,
    pub gid: u32,
    pub log_level: String,
    pub log_format: String,
    pub disabled_plugins: Vec<String>,
    pub required_plugins: Vec<String>,
    /// Warnings of reading, told once there is a log.
    pub warnings: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            grpc_address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            uid: 0,
            gid: 0,
            log_level: "info".into(),
            log_format: "text".into(),
            disabled_plugins: Vec::new(),
            required_plugins: Vec::new(),
            warnings: Vec::new(),
        }
    }
}

impl Config {
    /// Reads the file: without a name the usual one, which may be absent.
    ///
    /// # Errors
    /// An absent file that was named; TOML that is none; a version from the future.
    pub fn load(file: Option<&Path>) -> Result<Self> {
        let path = file.unwrap_or(Path::new(FILE));
        let mut config = Self::default();
        let text = match std::fs::read_to_string(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && file.is_none() => {
                return Ok(config);
            }
            other => other.with_context(|| format!("failed to load TOML: {}", path.display()))?,
        };
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            Error::invalid_argument(format!("failed to load TOML from {}: {error}", path.display()))
        })?;
        config.merge(&table, path)?;
        Ok(config)
    }

    fn merge(&mut self, table: &Table, path: &Path) -> Result<()> {
        let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
        if version > NEWEST {
            return Err(Error::unknown(format!(
                "failed to load TOML from {}: expected containerd config version equal to or less than `{NEWEST}`, got `{version}`",
                path.display()
            )));
        }
        let mut ttrpc = None;
        for (key, value) in table {
            match (key.as_str(), value) {
                (
                    "version" | "imports" | "oom_score" | "temp" | "cgroup" | "timeouts"
                    | "stream_processors" | "proxy_plugins",
                    _,
                ) => {}
                ("root", Value::String(text)) => self.root = text.into(),
                ("state", Value::String(text)) => self.state = text.into(),
                ("disabled_plugins", Value::Array(list)) => self.disabled_plugins = uris(list, version)?,
                ("required_plugins", Value::Array(list)) => self.required_plugins = uris(list, version)?,
                ("grpc", Value::Table(grpc)) => self.server(grpc, &mut ttrpc),
                ("ttrpc", Value::Table(server)) => ttrpc = address(server).or(ttrpc),
                ("debug", Value::Table(debug)) => {
                    self.log_level = string(debug, "level").unwrap_or_else(|| self.log_level.clone());
                    self.log_format = string(debug, "format").unwrap_or_else(|| self.log_format.clone());
                }
                ("metrics", _) => {}
                ("plugins", Value::Table(plugins)) => {
                    if let Some(Value::Table(grpc)) = plugins.get("io.containerd.server.v1.grpc") {
                        // From version 4 on ttrpc does not follow (spec 00, trap 1).
                        self.server(grpc, &mut None);
                    }
                    if let Some(Value::Table(server)) = plugins.get("io.containerd.server.v1.ttrpc") {
                        ttrpc = address(server).or(ttrpc);
                    }
                }
                _ => self.warnings.push(format!("Ignoring unknown key in TOML: {key} ({})", path.display())),
            }
        }
        if let Some(ttrpc) = ttrpc {
            self.ttrpc_address = ttrpc;
        }
        Ok(())
    }

    fn server(&mut self, grpc: &Table, ttrpc: &mut Option<PathBuf>) {
        if let Some(address) = address(grpc) {
            ttrpc.get_or_insert_with(|| beside(&address));
            self.grpc_address = address;
        }
        let number =
            |key: &str| grpc.get(key).and_then(Value::as_integer).and_then(|id| u32::try_from(id).ok());
        self.uid = number("uid").unwrap_or(self.uid);
        self.gid = number("gid").unwrap_or(self.gid);
    }

    /// Flags override the file.
    pub fn apply_flags(
        &mut self,
        level: Option<String>,
        address: Option<PathBuf>,
        root: Option<PathBuf>,
        state: Option<PathBuf>,
    ) {
        if let Some(address) = address {
            self.ttrpc_address = beside(&address);
            self.grpc_address = address;
        }
        self.log_level = level.unwrap_or_else(|| self.log_level.clone());
        self.root = root.unwrap_or_else(|| self.root.clone());
        self.state = state.unwrap_or_else(|| self.state.clone());
    }

    /// # Errors
    /// Roots that are missing or the same.
    pub fn validate(&self) -> Result<()> {
        let required = |path: &Path, name: &str| {
            if path.as_os_str().is_empty() {
                Err(Error::unknown(format!("{name} must be specified")))
            } else {
                Ok(())
            }
        };
        required(&self.root, "root")?;
        required(&self.state, "state")?;
        if self.root == self.state {
            return Err(Error::unknown("root and state must be different paths"));
        }
        Ok(())
    }

    /// As a file of the newest version.
    pub fn to_toml(&self) -> String {
        let quoted = |path: &Path| format!("'{}'", path.display());
        let list = |items: &[String]| {
            let items: Vec<String> = items.iter().map(|item| format!("'{item}'")).collect();
            format!("[{}]", items.join(", "))
        };
        format!(
            "version = {NEWEST}\nroot = {}\nstate = {}\ntemp = ''\ndisabled_plugins = {}\nrequired_plugins = {}\noom_score = 0\nimports = []\n\n[debug]\n  level = '{}'\n  format = '{}'\n\n[plugins]\n  [plugins.'io.containerd.server.v1.grpc']\n    address = {}\n    uid = {}\n    gid = {}\n\n  [plugins.'io.containerd.server.v1.ttrpc']\n    address = {}\n",
            quoted(&self.root),
            quoted(&self.state),
            list(&self.disabled_plugins),
            list(&self.required_plugins),
            self.log_level,
            self.log_format,
            quoted(&self.grpc_address),
            self.uid,
            self.gid,
            quoted(&self.ttrpc_address),
        )
    }
}

/// The ttrpc socket beside a gRPC socket.
fn beside(address: &Path) -> PathBuf {
    format!("{}.ttrpc", address.display()).into()
}

fn string(table: &Table, key: &str) -> Option<String> {
    table.get(key)?.as_str().filter(|text| !text.is_empty()).map(str::to_owned)
}

fn address(table: &Table) -> Option<PathBuf> {
    string(table, "address").map(|text| text.trim_start_matches("unix://").into())
}

/// Version 1 names plugins without their type.
fn uris(list: &[Value], version: i64) -> Result<Vec<String>> {
    let mut uris = Vec::new();
    for name in list.iter().filter_map(Value::as_str) {
        if name.contains('.') {
            uris.push(name.to_owned());
        } else if version < 2 {
            let kind = match name {
                "aufs" | "btrfs" | "devmapper" | "native" | "overlayfs" | "zfs" => {
                    "io.containerd.snapshotter.v1"
                }
                _ => "io.containerd.grpc.v1",
            };
            uris.push(format!("{kind}.{name}"));
        } else {
            let text = format!("invalid disabled plugin URI {name:?} expect io.containerd.x.vx");
            return Err(Error::unknown(text));
        }
    }
    Ok(uris)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        let mut config = Config::default();
        config.merge(&text.parse().unwrap(), Path::new("test.toml"))?;
        Ok(config)
    }

    #[test]
    fn files_of_all_versions_are_read() {
        let docker = read("disabled_plugins = [\"cri\"]\n").unwrap();
        assert_eq!(docker.disabled_plugins, ["io.containerd.grpc.v1.cri"]);
        let two = read("version = 2\n[grpc]\naddress = \"/x/y\"\ngid = 7\n[odd]\n").unwrap();
        assert_eq!(two.ttrpc_address, Path::new("/x/y.ttrpc"));
        assert_eq!((two.gid, two.warnings.len()), (7, 1));
        let four = read("version = 4\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/a'\n").unwrap();
        assert_eq!(four.grpc_address, Path::new("/a"));
        assert_eq!(four.ttrpc_address, Config::default().ttrpc_address);
        assert!(read("version = 5").unwrap_err().to_string().contains("got `5`"));
        assert!(read(&Config::default().to_toml()).unwrap().warnings.is_empty());
    }
}
