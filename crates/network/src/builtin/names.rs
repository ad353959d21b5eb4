//! The files of a container that tell names: `hosts`, `resolv.conf`, `hostname`. They lie on the host, are bound into the
//! container, and are rewritten in place while it runs.

use std::fmt::Write as _;
use std::io::{Read, Seek, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use corten_types::{Result, ResultExt};

/// The servers that are asked where the host has only itself.
const FALLBACK: [&str; 2] = ["1.1.1.1", "8.8.8.8"];

/// The files of a container.
#[derive(Clone, Debug)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those in a folder.
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Where they are bound, and where they lie.
    #[must_use]
    pub fn mounts(&self) -> [(&'static str, PathBuf); 3] {
        let at = |name: &str| self.folder.join(name);
        [
            ("/etc/hosts", at("hosts")),
            ("/etc/resolv.conf", at("resolv.conf")),
            ("/etc/hostname", at("hostname")),
        ]
    }

    /// Whether they were made.
    pub(super) fn exist(&self) -> bool {
        self.folder.join("hosts").is_file()
    }

    /// Makes them, before the container is attached. `servers` and `search` replace the host's.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn create(&self, hostname: &str, servers: &[IpAddr], search: &[String]) -> Result<()> {
        let make = || -> Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
            std::fs::write(self.folder.join("resolv.conf"), resolver(&host, servers, search))?;
            std::fs::write(self.folder.join("hostname"), format!("{hostname}\n"))?;
            std::fs::write(self.folder.join("hosts"), hosts(&[]))?;
            Ok(())
        };
        make().with_context(|| format!("make the files of names in {}", self.folder.display()))
    }

    /// Says who there is, if that has changed.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn tell(&self, known: &[(IpAddr, Vec<String>)]) -> Result<()> {
        let path = self.folder.join("hosts");
        let tell = || -> Result<()> {
            let mut file = match std::fs::File::options().read(true).write(true).open(&path) {
                // The container is being removed.
                Err(gone) if gone.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                other => other?,
            };
            let (mut old, new) = (String::new(), hosts(known));
            file.read_to_string(&mut old)?;
            if old != new {
                // The container has this file and no other: it cannot be replaced.
                file.rewind()?;
                file.write_all(new.as_bytes())?;
                file.set_len(new.len() as u64)?;
            }
            Ok(())
        };
        tell().with_context(|| format!("write {}", path.display()))
    }

    /// Takes them away.
    ///
    /// # Errors
    /// Those of the file system.
    pub(super) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).context(format!("remove {}", self.folder.display()))
            }
            _ => Ok(()),
        }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn hosts(known: &[(IpAddr, Vec<String>)]) -> String {
    let mut text = String::from("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for (address, names) in known {
        let _ = writeln!(text, "{address}\t{}", names.join(" "));
    }
    text
}

/// The host's file without servers that only the host reaches.
fn resolver(host: &str, servers: &[IpAddr], search: &[String]) -> String {
    let mut named: Vec<String> = servers.iter().map(IpAddr::to_string).collect();
    let mut rest = String::new();
    for line in host.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) if servers.is_empty() => {
                let loopback = server.split('%').next().and_then(|it| it.parse::<IpAddr>().ok());
                if loopback.is_none_or(|address| !address.is_loopback()) {
                    named.push(server.to_owned());
                }
            }
            (Some("search" | "domain"), Some(_)) if search.is_empty() => rest.extend([line, "\n"]),
            (Some("options"), Some(_)) => rest.extend([line, "\n"]),
            _ => {}
        }
    }
    if named.is_empty() {
        named.extend(FALLBACK.map(str::to_owned));
    }
    let mut text: String = named.iter().map(|server| format!("nameserver {server}\n")).collect();
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    text + &rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_that_only_the_host_reaches_are_left_out() {
        let host = "# x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nsearch a b\noptions ndots:2\n";
        assert_eq!(resolver(host, &[], &[]), "nameserver 192.0.2.1\nsearch a b\noptions ndots:2\n");
        assert!(resolver("nameserver ::1", &[], &[]).starts_with("nameserver 1.1.1.1\n"));
        let asked = resolver(host, &["192.0.2.9".parse().unwrap()], &["c".into()]);
        assert_eq!(asked, "nameserver 192.0.2.9\nsearch c\noptions ndots:2\n");
    }

    #[test]
    fn names_are_told_in_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path().join("c"));
        files.create("me", &[], &[]).unwrap();
        let path = folder.path().join("c/hosts");
        let number = || std::fs::metadata(&path).unwrap().ino();
        let before = number();
        let known = |last: u8| ([10, 0, 0, last].into(), vec![format!("c{last}"), "alias".to_owned()]);
        files.tell(&[known(1), known(2)]).unwrap();
        files.tell(&[known(2)]).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.ends_with("ip6-loopback\n10.0.0.2\tc2 alias\n"), "{text}");
        assert_eq!(number(), before);
        files.remove().unwrap();
        files.remove().unwrap();
    }
}
