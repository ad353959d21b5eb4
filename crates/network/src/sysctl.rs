//! The kernel's settings below `net/`, each namespace's own. They are those of the calling thread's namespace: see
//! [`crate::NetworkNamespace::run`].

use std::path::PathBuf;

use corten_types::{Error, Result, ResultExt};

/// The value of a setting, for example of `net/ipv4/ip_forward`.
///
/// # Errors
/// InvalidArgument for other settings than those of the network; NotFound.
pub fn get(name: &str) -> Result<String> {
    let path = path(name)?;
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// Sets a setting, unless it has this value already.
///
/// # Errors
/// As [`get`]; those of the kernel.
pub fn set(name: &str, value: &str) -> Result<()> {
    let path = path(name)?;
    if get(name).is_ok_and(|old| old == value) {
        return Ok(());
    }
    std::fs::write(&path, value).with_context(|| format!("write {}", path.display()))
}

/// Names have slashes, since those of interfaces have dots; `net.ipv4.ip_forward` is understood.
fn path(name: &str) -> Result<PathBuf> {
    let name = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
    let plain = name.split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || !name.starts_with("net/") {
        return Err(Error::invalid_argument(format!("not a setting of the network: {name:?}")));
    }
    Ok(PathBuf::from("/proc/sys").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_belong_to_one_namespace() {
        let namespace = crate::NetworkNamespace::new().unwrap();
        let outside = get("net/ipv4/ip_default_ttl").unwrap();
        namespace.run(|| set("net.ipv4.ip_default_ttl", "77").unwrap()).unwrap();
        assert_eq!(namespace.run(|| get("net/ipv4/ip_default_ttl").unwrap()).unwrap(), "77");
        assert_eq!(get("net/ipv4/ip_default_ttl").unwrap(), outside);
    }

    #[test]
    fn nothing_else_is_touched() {
        for bad in ["kernel/hostname", "net/../kernel/hostname", "/net/x", "net//x", ""] {
            assert!(path(bad).is_err(), "{bad}");
        }
    }
}
