//! `oci-hook`: a program is run in place of this one, with facts about a container filled in.

use std::collections::HashMap;
use std::ffi::CString;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use corten_types::{Error, Result};
use serde::Deserialize;

use super::template;

/// The longest state or configuration, in bytes.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub struct OciHook {
    /// The program, by its path, and its arguments: templates with the functions id, bundle, rootfs, pid,
    /// status and annotation "key".
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    command: Vec<String>,
}

/// What runtimes tell their hooks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    root: Option<Root>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
}

struct Facts {
    state: State,
    rootfs: PathBuf,
}

impl OciHook {
    /// Becomes the other program.
    ///
    /// # Errors
    /// Malformed input or templates; a program that cannot be run.
    pub fn run(self) -> Result<()> {
        let state: State = json(std::io::stdin().lock())?;
        let path = state.bundle.join("config.json");
        let file = std::fs::File::open(&path).map_err(|error| {
            Error::unknown(format!("open {}: {}", path.display(), Error::from(error).message()))
        })?;
        let spec: Spec = json(file)?;
        let rootfs = state.bundle.join(spec.root.unwrap_or_default().path);
        let facts = Facts { state, rootfs };
        let expand = |text: &str| template::expand(text, &facts).map_err(Error::unknown);
        let arguments = self.command.iter().map(|text| expand(text)).collect::<Result<Vec<_>>>()?;
        let mut environment = Vec::new();
        for (name, value) in std::env::vars_os() {
            let entry = [name.as_bytes(), b"=", value.as_bytes()].concat();
            environment.push(match String::from_utf8(entry) {
                Ok(text) => c_string(expand(&text)?.into_bytes())?,
                Err(other) => c_string(other.into_bytes())?,
            });
        }
        let arguments =
            arguments.into_iter().map(|text| c_string(text.into())).collect::<Result<Vec<_>>>()?;
        let program = arguments.first().ok_or_else(|| Error::invalid_argument("no program to run"))?;
        Err(Error::from(corten_sys::execute(program, &arguments, &environment)))
    }
}

fn json<T: serde::de::DeserializeOwned>(reader: impl Read) -> Result<T> {
    serde_json::from_reader(reader.take(LONGEST)).map_err(|error| Error::unknown(error.to_string()))
}

fn c_string(bytes: Vec<u8>) -> Result<CString> {
    CString::new(bytes).map_err(|_| Error::invalid_argument("a NUL in an argument"))
}

impl template::Functions for Facts {
    fn call(&self, name: &str, arguments: &[String]) -> Option<std::result::Result<String, usize>> {
        let path =
            |path: &Path| String::from_utf8_lossy(&path.as_os_str().to_owned().into_vec()).into_owned();
        let text = match name {
            "annotation" => {
                let [key] = arguments else { return Some(Err(1)) };
                return Some(Ok(self.state.annotations.get(key).cloned().unwrap_or_default()));
            }
            "id" => self.state.id.clone(),
            "status" => self.state.status.clone(),
            "pid" => self.state.pid.to_string(),
            "bundle" => path(&self.state.bundle),
            "rootfs" => path(&self.rootfs),
            _ => return None,
        };
        Some(if arguments.is_empty() { Ok(text) } else { Err(0) })
    }
}
