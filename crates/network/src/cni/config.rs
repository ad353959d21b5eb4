//! Configuration: files of one plugin, or of a list of them (spec 06 §2.2).

use std::path::{Path, PathBuf};

use corten_types::{Error, Result, ResultExt};
use serde_json::{Map, Value, json};

use super::Version;

/// The largest configuration that is read.
const LARGEST: u64 = 1 << 20;

/// One plugin's part.
#[derive(Clone, Debug, PartialEq)]
pub struct PluginConfig {
    /// The plugin's name, which is that of its program.
    pub kind: String,
    /// Everything that it is told.
    pub value: Map<String, Value>,
}

impl PluginConfig {
    fn read(value: &Value) -> Result<Self> {
        let bad = |why: &str| Error::unknown(format!("error parsing configuration: {why}"));
        let value = value.as_object().ok_or_else(|| bad("not an object"))?;
        match value.get("type") {
            Some(Value::String(kind)) if !kind.is_empty() => {
                // A path would lead out of the folders of plugins.
                if kind.contains('/') || kind == "." || kind == ".." {
                    return Err(bad(&format!("invalid plugin name: {kind}")));
                }
                Ok(Self { kind: kind.clone(), value: value.clone() })
            }
            None | Some(Value::String(_)) => Err(bad("missing 'type'")),
            Some(_) => Err(bad("'type' is not a string")),
        }
    }

    /// Whether it wants to be told a value under `runtimeConfig`.
    #[must_use]
    pub fn has_capability(&self, name: &str) -> bool {
        self.value.get("capabilities").and_then(|all| all.get(name)).and_then(Value::as_bool).unwrap_or(false)
    }

    /// As errors name it.
    #[must_use]
    pub fn describe(&self) -> String {
        match self.value.get("name").and_then(Value::as_str) {
            Some(name) if !name.is_empty() => format!("type={:?} name={name:?}", self.kind),
            _ => format!("type={:?}", self.kind),
        }
    }
}

/// A network: a list of plugins that attach one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkConfig {
    /// Its name.
    pub name: String,
    /// The version that its plugins are spoken to in; as written, so perhaps empty.
    pub version: String,
    /// CHECK is not asked for.
    pub disable_check: bool,
    /// GC is not asked for.
    pub disable_gc: bool,
    /// In the order of ADD.
    pub plugins: Vec<PluginConfig>,
    /// The list as it was read, or as a single plugin was made one.
    pub bytes: Vec<u8>,
}

impl NetworkConfig {
    /// Reads a list of plugins. `folder` is where files with more plugins of it may be.
    ///
    /// # Errors
    /// In words, what is missing or wrong.
    pub fn from_list(data: &[u8], folder: Option<&Path>) -> Result<Self> {
        let bad = |why: &str| Error::unknown(format!("error parsing configuration list: {why}"));
        let value: Value = serde_json::from_slice(data).map_err(|error| bad(&error.to_string()))?;
        let name = match value.get("name") {
            Some(Value::String(name)) => name.clone(),
            None => return Err(bad("no name")),
            Some(_) => return Err(bad("invalid name type")),
        };
        validate_name(&name)?;
        let only_inlined = flag(&value, "loadOnlyInlinedPlugins")?;
        let inlined = match value.get("plugins") {
            Some(Value::Array(plugins)) => plugins.as_slice(),
            None if !only_inlined && folder.is_some() => &[],
            None => return Err(bad("no 'plugins' key")),
            Some(_) => return Err(bad("invalid 'plugins' type")),
        };
        let read = |(number, plugin)| {
            PluginConfig::read(plugin).context(format!("failed to parse plugin config {number}"))
        };
        let mut plugins = inlined.iter().enumerate().map(read).collect::<Result<Vec<_>>>()?;
        if let Some(folder) = folder.filter(|_| !only_inlined) {
            plugins.extend(beside(&folder.join(&name))?);
        }
        if plugins.is_empty() {
            return Err(match value.get("plugins") {
                Some(_) => bad("no plugins in list"),
                None => Error::unknown("no plugin configs found"),
            });
        }
        Ok(Self {
            version: version(&value)?,
            disable_check: flag(&value, "disableCheck")?,
            disable_gc: flag(&value, "disableGC")?,
            bytes: data.to_owned(),
            name,
            plugins,
        })
    }

    /// Makes a list of a single plugin's configuration.
    ///
    /// # Errors
    /// In words, what is missing or wrong.
    pub fn from_plugin(data: &[u8]) -> Result<Self> {
        let bad = |why: String| Error::unknown(format!("error parsing configuration: {why}"));
        let value: Value = serde_json::from_slice(data).map_err(|error| bad(error.to_string()))?;
        let plugin = PluginConfig::read(&value)?;
        let name = value.get("name").and_then(Value::as_str).unwrap_or_default();
        let list = json!({"name": name, "cniVersion": version(&value)?, "plugins": [plugin.value]});
        Self::from_list(list.to_string().as_bytes(), None)
    }

    /// Reads a file, by its ending.
    ///
    /// # Errors
    /// As containerd's, with the file's name.
    pub fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        let data = read_file(path);
        if path.extension().is_some_and(|ending| ending == "conflist") {
            let failed = |failed: Error| {
                invalid(format!("failed to load CNI config list file {shown}: {}", failed.message()))
            };
            return data.and_then(|data| Self::from_list(&data, path.parent())).map_err(failed);
        }
        let failed =
            |failed: Error| invalid(format!("failed to load CNI config file {shown}: {}", failed.message()));
        let data = data.map_err(failed)?;
        Self::from_plugin(&data).map_err(failed)
    }

    /// The version that counts.
    ///
    /// # Errors
    /// InvalidArgument for what is none.
    pub fn parsed_version(&self) -> Result<Version> {
        self.version.parse()
    }
}

fn invalid(text: String) -> Error {
    Error::unknown(format!("{text}: invalid cni config"))
}

/// Letters, digits, `_`, `.`, `-`; a letter or digit first. Of networks and of containers.
pub(crate) fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

fn validate_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(Error::unknown("missing network name:"));
    }
    if !is_name(name) {
        return Err(Error::unknown(format!("invalid characters found in network name; {name}")));
    }
    Ok(())
}

/// The version that is said, or the highest of several that is known here.
fn version(value: &Value) -> Result<String> {
    let bad = |what: &str| Error::unknown(format!("error parsing configuration list: invalid {what} type"));
    let mut said: Vec<&str> = Vec::new();
    match value.get("cniVersion") {
        Some(Value::String(one)) => said.push(one),
        Some(_) => return Err(bad("cniVersion")),
        None => {}
    }
    match value.get("cniVersions") {
        Some(Value::Array(several)) => {
            for one in several {
                said.push(one.as_str().ok_or_else(|| bad("cniVersions"))?);
            }
        }
        Some(_) => return Err(bad("cniVersions")),
        None => {}
    }
    let mut best: Option<(Version, &str)> = None;
    let alone = said.len() == 1;
    for text in said {
        let version: Version = text.parse()?;
        if (alone || version <= Version::NEWEST) && best.is_none_or(|(known, _)| version > known) {
            best = Some((version, text));
        }
    }
    Ok(best.map(|(_, text)| text.to_owned()).unwrap_or_default())
}

/// A truth value, perhaps as text.
fn flag(value: &Value, name: &str) -> Result<bool> {
    match value.get(name) {
        None => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => {
            Err(Error::unknown(format!("error parsing configuration list: invalid value {other} for {name}")))
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>> {
    let read = || -> Result<Vec<u8>> {
        use std::io::Read;
        let mut data = Vec::new();
        std::fs::File::open(path)?.take(LARGEST + 1).read_to_end(&mut data)?;
        match u64::try_from(data.len()).is_ok_and(|length| length <= LARGEST) {
            true => Ok(data),
            false => Err(Error::invalid_argument("larger than 1 MiB")),
        }
    };
    read().with_context(|| format!("error reading {}", path.display()))
}

/// The plugins of a network that lie in files of a folder with its name.
fn beside(folder: &Path) -> Result<Vec<PluginConfig>> {
    let read = |path: PathBuf| {
        let data = read_file(&path)?;
        let value: Value =
            serde_json::from_slice(&data).map_err(|error| Error::unknown(error.to_string()))?;
        PluginConfig::read(&value).with_context(|| format!("error loading {}", path.display()))
    };
    files(folder, &["conf"])?.into_iter().map(read).collect()
}

/// Files of a folder with certain endings, by name; none where there is no folder.
fn files(folder: &Path, endings: &[&str]) -> Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("open {}", folder.display()))?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if endings.contains(&ending) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// The networks of a folder: of the first `most` files by name, of all with 0.
///
/// # Errors
/// When there is none, or one of these is broken: then none counts.
pub fn load(folder: &Path, most: usize) -> Result<Vec<NetworkConfig>> {
    let mut files = files(folder, &["conf", "conflist", "json"])?;
    if files.is_empty() {
        let text = format!("no network config found in {}: cni plugin not initialized", folder.display());
        return Err(Error::unknown(text));
    }
    if most > 0 {
        files.truncate(most);
    }
    files.iter().map(|file| NetworkConfig::read(file)).collect()
}

/// A network of a folder by name; broken files beside it are left alone.
///
/// # Errors
/// NotFound, which tells of the broken files.
pub fn find(folder: &Path, name: &str) -> Result<NetworkConfig> {
    let mut broken = Vec::new();
    for file in files(folder, &["conf", "conflist", "json"])? {
        match NetworkConfig::read(&file) {
            Ok(config) if config.name == name => return Ok(config),
            Ok(_) => {}
            Err(failed) => broken.push(failed.message().to_owned()),
        }
    }
    let missing = Error::not_found(format!("network {name:?} in {}", folder.display()));
    Err(if broken.is_empty() {
        missing
    } else {
        missing.with_hint(format!("files that cannot be read: {}", broken.join("; ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<NetworkConfig> {
        NetworkConfig::from_list(text.as_bytes(), None)
    }

    #[test]
    fn lists_are_read_and_what_is_wrong_is_told() {
        let good = list(
            r#"{"name":"n","cniVersion":"1.0.0","disableCheck":"TRUE","plugins":[{"type":"a"},{"type":"b"}]}"#,
        );
        let good = good.unwrap();
        assert_eq!((good.name.as_str(), good.version.as_str(), good.disable_check), ("n", "1.0.0", true));
        assert_eq!(good.plugins[1].describe(), "type=\"b\"");
        let versions = r#"{"name":"n","cniVersion":"0.4.0","cniVersions":["1.0.0","0.3.1","9.0.0"],"plugins":[{"type":"a"}]}"#;
        assert_eq!(list(versions).unwrap().version, "1.0.0");
        for (text, why) in [
            ("", "error parsing configuration list: "),
            ("{}", "error parsing configuration list: no name"),
            (r#"{"name":5}"#, "error parsing configuration list: invalid name type"),
            (r#"{"name":"a/b","plugins":[{"type":"a"}]}"#, "invalid characters found in network name; a/b"),
            (r#"{"name":"n"}"#, "error parsing configuration list: no 'plugins' key"),
            (r#"{"name":"n","plugins":{}}"#, "error parsing configuration list: invalid 'plugins' type"),
            (r#"{"name":"n","plugins":[]}"#, "error parsing configuration list: no plugins in list"),
            (
                r#"{"name":"n","plugins":[{}]}"#,
                "failed to parse plugin config 0: error parsing configuration: missing 'type'",
            ),
            (
                r#"{"name":"n","plugins":[{"type":"../x"}]}"#,
                "failed to parse plugin config 0: error parsing configuration: invalid plugin name",
            ),
            (
                r#"{"name":"n","disableGC":3,"plugins":[{"type":"a"}]}"#,
                "error parsing configuration list: invalid value 3",
            ),
        ] {
            let failed = list(text).unwrap_err();
            assert!(failed.message().starts_with(why), "{text}: {failed}");
        }
    }

    #[test]
    fn a_folder_gives_its_first_files_by_name_or_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let load = |most| load(folder.path(), most);
        let text = load(1).unwrap_err().message().to_owned();
        assert!(
            text.starts_with("no network config found in ") && text.ends_with(": cni plugin not initialized"),
            "{text}"
        );
        std::fs::write(path("20-b.conf"), r#"{"name":"b","cniVersion":"0.3.1","type":"x"}"#).unwrap();
        std::fs::write(path("10-a.conflist"), r#"{"name":"a","plugins":[{"type":"x"}]}"#).unwrap();
        std::fs::write(path("05-a.conf~"), "garbage").unwrap();
        std::fs::create_dir(path("00.conf")).unwrap();
        let names = |most| load(most).unwrap().into_iter().map(|one| one.name).collect::<Vec<_>>();
        assert_eq!((names(1), names(0)), (vec!["a".to_owned()], vec!["a".to_owned(), "b".to_owned()]));
        std::fs::create_dir(path("a")).unwrap();
        std::fs::write(path("a/more.conf"), r#"{"type":"y"}"#).unwrap();
        assert_eq!(load(1).unwrap()[0].plugins.len(), 2);
        std::fs::write(path("30-c.json"), r#"{"name":"c"}"#).unwrap();
        let failed = load(0).unwrap_err();
        assert!(failed.message().ends_with("configuration: missing 'type': invalid cni config"), "{failed}");
        assert_eq!(names(2).len(), 2, "what is not selected does no harm");
        assert_eq!(find(folder.path(), "b").unwrap().name, "b");
        let missing = find(folder.path(), "z").unwrap_err();
        assert!(missing.is_not_found() && missing.hint().unwrap().contains("30-c.json"));
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"(\{|\}|\[|\]|"name"|"plugins"|"type"|:|,|"a"|1|true){0,20}"#) {
            let _ = list(&text);
            let _ = NetworkConfig::from_plugin(text.as_bytes());
        }
    }
}
