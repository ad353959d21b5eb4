//! Which keys exist, and of which types their values are: those of the defaults, and some that have no default.

use std::path::Path;

use corten_types::{Error, Result};
use toml::de::{DeTable, DeValue};
use toml::{Table, Value};

use crate::file::{malformed, place};
use crate::{DEFAULTS, Warning, duration};

/// Sections of files before version 4, with what stands for each type.
const OLD_SECTIONS: &str = "
[grpc]
address = ''
tcp_address = ''
tcp_tls_ca = ''
tcp_tls_cert = ''
tcp_tls_key = ''
tcp_tls_common_name = ''
uid = 0
gid = 0
max_recv_message_size = 0
max_send_message_size = 0
[ttrpc]
address = ''
uid = 0
gid = 0
[debug]
address = ''
uid = 0
gid = 0
[metrics]
address = ''
grpc_histogram = false
";

/// Sections with entries of one form, by any name.
const ENTRIES: &str = "
[proxy_plugins]
type = ''
address = ''
platform = ''
exports = {}
capabilities = []
[stream_processors]
accepts = []
returns = ''
path = ''
args = []
env = []
";

/// Options of plugins that are shown only where they are set.
const WITHOUT_DEFAULT: [(&str, &str); 2] =
    [("io.containerd.transfer.v1.local", "unpack_config"), ("io.containerd.transfer.v1.local", "registry")];

/// Checks one file: warns of unknown keys, and gives its version.
///
/// # Errors
/// Values of wrong types.
pub fn check_file(
    table: &mut Table,
    spans: &DeTable<'_>,
    text: &str,
    path: &Path,
    warnings: &mut Vec<Warning>,
) -> Result<i64> {
    let mut file = File { spans, text, path, warnings };
    if let Some(value) = table.get("version")
        && !value.is_integer()
    {
        return Err(file.wrong(&["version"], value, &Value::Integer(0)));
    }
    let version = table.get("version").and_then(Value::as_integer).unwrap_or(1);
    let mut known = DEFAULTS.clone();
    if version < 4 {
        let old: Table = OLD_SECTIONS.parse().unwrap_or_default();
        for (key, value) in old {
            match (known.get_mut(&key), value) {
                (Some(Value::Table(new)), Value::Table(old)) => new.extend(old),
                (_, value) => drop(known.insert(key, value)),
            }
        }
    }
    file.level(table, &known)?;
    if version < 0 {
        return Ok(1);
    }
    Ok(version.max(1))
}

struct File<'a> {
    spans: &'a DeTable<'a>,
    text: &'a str,
    path: &'a Path,
    warnings: &'a mut Vec<Warning>,
}

impl File<'_> {
    /// The top of a file.
    fn level(&mut self, table: &mut Table, known: &Table) -> Result<()> {
        let entries: Table = ENTRIES.parse().unwrap_or_default();
        let keys: Vec<String> = table.keys().cloned().collect();
        for key in keys {
            let Some(value) = table.get_mut(&key) else { continue };
            let path = [key.as_str()];
            let Some(form) = known.get(&key).or_else(|| entries.get(&key)) else {
                self.unknown(&path);
                table.remove(&key);
                continue;
            };
            self.typed(&path, value, form)?;
            let Value::Table(section) = value else { continue };
            match key.as_str() {
                // Checked when all files are merged.
                "plugins" => {}
                "timeouts" => {
                    for (name, value) in section.iter_mut() {
                        let form = Value::String("text".into());
                        self.typed(&[&key, name], value, &form)?;
                    }
                }
                "proxy_plugins" | "stream_processors" => {
                    let form = entries.get(&key).and_then(Value::as_table).cloned().unwrap_or_default();
                    for (name, value) in section.iter_mut() {
                        self.typed(&[&key, name], value, &Value::Table(Table::new()))?;
                        let Value::Table(entry) = value else { continue };
                        self.section(&[&key, name], entry, &form)?;
                    }
                }
                _ => {
                    let form = form.as_table().cloned().unwrap_or_default();
                    self.section(&path, section, &form)?;
                }
            }
        }
        Ok(())
    }

    /// A table whose keys are known.
    fn section(&mut self, path: &[&str], table: &mut Table, known: &Table) -> Result<()> {
        let keys: Vec<String> = table.keys().cloned().collect();
        for key in keys {
            let path: Vec<&str> = path.iter().copied().chain([key.as_str()]).collect();
            match (table.get_mut(&key), known.get(&key)) {
                (Some(value), Some(form)) => self.typed(&path, value, form)?,
                _ => {
                    self.unknown(&path);
                    table.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn typed(&self, path: &[&str], value: &mut Value, form: &Value) -> Result<()> {
        if fit(value, form) { Ok(()) } else { Err(self.wrong(path, value, form)) }
    }

    fn wrong(&self, path: &[&str], value: &Value, form: &Value) -> Error {
        let (row, column) = self.place(path, true);
        let (got, wanted) = (name(value), name(form));
        malformed(row, column, &format!("cannot decode TOML {got} into {} of type {wanted}", path.join(".")))
    }

    fn unknown(&mut self, path: &[&str]) {
        let (row, column) = self.place(path, false);
        self.warnings.push(Warning {
            message: "Ignoring unknown key in TOML".into(),
            fields: vec![
                ("column", column.to_string()),
                ("error", UNKNOWN.into()),
                ("file", self.path.display().to_string()),
                ("key", path.join(" ")),
                ("row", row.to_string()),
            ],
        });
    }

    /// Where a key or its value stands.
    fn place(&self, path: &[&str], value: bool) -> (usize, usize) {
        let mut table = self.spans;
        let mut at = 0;
        for name in path {
            let Some((key, found)) = table.iter().find(|(key, _)| key.get_ref() == name) else { break };
            at = if value { found.span().start } else { key.span().start };
            match found.get_ref() {
                DeValue::Table(within) => table = within,
                _ => break,
            }
        }
        place(self.text.as_bytes(), at)
    }
}

const UNKNOWN: &str = "strict mode: fields in the document are missing in the target struct";

/// Checks the table of a plugin, as all files together have it.
///
/// # Errors
/// Values of wrong types.
pub fn check_plugin(uri: &str, value: &Value, defaults: &Table, warnings: &mut Vec<Warning>) -> Result<()> {
    let Value::Table(table) = value else {
        let text = format!("toml: cannot decode TOML {} into plugins.{uri} of type table", name(value));
        return Err(Error::unknown(text));
    };
    let Some(known) = plugin(defaults, uri) else { return Ok(()) };
    for (key, value) in table {
        match known.get(key) {
            None if WITHOUT_DEFAULT.contains(&(uri, key)) => {}
            None => warnings.push(Warning {
                message: "Ignoring unknown key in TOML for plugin".into(),
                fields: vec![("error", UNKNOWN.into()), ("key", key.clone()), ("plugin", uri.into())],
            }),
            Some(Value::String(form)) if is_duration(form) && value.is_str() => {
                let text = value.as_str().unwrap_or_default();
                duration::parse(text)
                    .map_err(|_| Error::unknown(format!("toml: time: invalid duration {text:?}")))?;
            }
            Some(form) if fit(&mut value.clone(), form) => {}
            Some(form) => {
                let (got, wanted) = (name(value), name(form));
                let text = format!("toml: cannot decode TOML {got} into {uri} {key} of type {wanted}");
                return Err(Error::unknown(text));
            }
        }
    }
    Ok(())
}

/// Takes unknown keys away from the tables of known plugins, and gives values the forms of the defaults.
pub fn normalize(whole: &mut Table, defaults: &Table) {
    if let Some(Value::Table(plugins)) = whole.get_mut("plugins") {
        for (uri, value) in plugins.iter_mut() {
            let Value::Table(table) = value else { continue };
            let Some(known) = plugin(defaults, uri) else {
                sort(table);
                continue;
            };
            table.retain(|key, _| known.contains_key(key) || WITHOUT_DEFAULT.contains(&(uri, key)));
            for (key, value) in table.iter_mut() {
                known.get(key).map(|form| fit(value, form));
            }
        }
        sort(plugins);
    }
}

fn plugin<'a>(defaults: &'a Table, uri: &str) -> Option<&'a Table> {
    defaults.get("plugins")?.get(uri)?.as_table()
}

pub fn sort(table: &mut Table) {
    let mut entries: Vec<(String, Value)> = std::mem::take(table).into_iter().collect();
    entries.sort_by(|(one, _), (other, _)| one.cmp(other));
    table.extend(entries);
}

/// Whether a value is of a form's type; numbers for durations and floats become such.
fn fit(value: &mut Value, form: &Value) -> bool {
    match (&mut *value, form) {
        (Value::Integer(nanoseconds), Value::String(text)) if is_duration(text) => {
            let nanoseconds = u64::try_from(*nanoseconds).unwrap_or(0);
            *value = duration::format(std::time::Duration::from_nanos(nanoseconds)).into();
            true
        }
        (Value::String(own), Value::String(text)) if is_duration(text) => {
            // One that is none is told where it is used.
            if let Ok(read) = duration::parse(own) {
                *own = duration::format(read);
            }
            true
        }
        (Value::Integer(number), Value::Float(_)) => {
            *value = Value::Float(*number as f64);
            true
        }
        (Value::Array(list), Value::Array(_)) => {
            list.iter().all(|item| matches!(item, Value::String(_) | Value::Table(_)))
        }
        (value, form) => value.same_type(form),
    }
}

/// Whether a default says that its option is a duration.
fn is_duration(text: &str) -> bool {
    text != "0" && duration::parse(text).is_ok()
}

fn name(value: &Value) -> &'static str {
    value.type_str()
}
