//! The last step of a container's process, in runc's words where it fails.

use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};

/// Executes the process of a specification.
#[derive(Clone)]
pub(crate) struct Process;

/// Finds a program as execvp(3) would, or says why not.
fn find(name: &str, path: &str) -> Result<PathBuf, String> {
    let quoted = format!("{name:?}");
    if name.contains('/') {
        let metadata = Path::new(name).metadata();
        return match metadata {
            Ok(metadata) if metadata.is_dir() => Err(format!("exec: {quoted}: is a directory")),
            Ok(metadata) if metadata.permissions().mode() & 0o111 == 0 => {
                Err(format!("exec: {quoted}: permission denied"))
            }
            Ok(_) => Ok(name.into()),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                Err(format!("exec: {quoted}: permission denied"))
            }
            Err(_) => Err(format!("exec: {quoted}: stat {name}: no such file or directory")),
        };
    }
    let mut denied = false;
    for folder in path.split(':') {
        let candidate = Path::new(if folder.is_empty() { "." } else { folder }).join(name);
        if let Ok(metadata) = candidate.metadata()
            && metadata.is_file()
        {
            if metadata.permissions().mode() & 0o111 != 0 {
                return Ok(candidate);
            }
            denied = true;
        }
    }
    let why = if denied { "permission denied" } else { "executable file not found in $PATH" };
    Err(format!("exec: {quoted}: {why}"))
}

fn program(spec: &Spec) -> Result<(PathBuf, Vec<String>), String> {
    let process = spec.process().as_ref().ok_or("process property must not be empty")?;
    let args = process.args().clone().unwrap_or_default();
    let first = args.first().ok_or("args must not be empty")?;
    let env = process.env().clone().unwrap_or_default();
    let path = env.iter().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or("/bin:/usr/bin");
    Ok((find(first, path)?, args))
}

impl Executor for Process {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        program(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let (path, args) = program(spec).map_err(ExecutorError::Other)?;
        let text = |text: &str| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let path = text(&path.to_string_lossy())?;
        let args = args.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
        let env = spec.process().as_ref().and_then(|process| process.env().clone()).unwrap_or_default();
        let env = env.iter().map(|variable| text(variable)).collect::<Result<Vec<_>, _>>()?;
        let Err(error) = nix::unistd::execve(&path, &args, &env);
        let why = std::io::Error::from(error).to_string().to_lowercase();
        let why = why.split(" (os error").next().unwrap_or_default();
        Err(ExecutorError::Other(format!("exec {}: {why}", path.to_string_lossy())))
    }
}
