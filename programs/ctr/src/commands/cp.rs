//! `cp`: files out of a container and into it, as docker copies them.

use std::ffi::OsString;
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use corten_tree::{Root, clean};
use corten_types::{Error, Result, ResultExt};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::fs::{FileType, OFlags, fstat, readlinkat};
use rustix::io::Errno;

use crate::client::Daemon;
use crate::commands::containers;
use crate::files::{RootFs, Taken, pack, unpack};

/// Links that lead to links, at most.
const LINKS: usize = 40;

/// Copy files out of a container and into it.
#[derive(Debug, Args)]
pub struct Cp {
    /// Keep owners, and on the way out what gives rights, too: setuid, capabilities, access lists.
    #[arg(short, long)]
    archive: bool,
    /// Copy what a link leads to.
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// CONTAINER:PATH, a path, or - for an archive on standard input.
    #[arg(required = true, value_name = "SOURCE")]
    from: String,
    /// CONTAINER:PATH, a path, or - for an archive on standard output.
    #[arg(required = true, value_name = "DESTINATION")]
    to: String,
}

/// An end of a copy, as it was written.
enum Place {
    Here(String),
    In(String, String),
    Stream,
}

impl Place {
    fn read(text: &str) -> Self {
        match text.split_once(':') {
            _ if text == "-" => Self::Stream,
            Some((id, path)) if !id.is_empty() && !id.contains('/') && !id.starts_with('.') => {
                Self::In(id.to_owned(), path.to_owned())
            }
            _ => Self::Here(text.to_owned()),
        }
    }
}

/// What is copied: a file or folder below a root, or an archive.
enum Source {
    Tree {
        root: Root,
        path: PathBuf,
        follow: bool,
        is_folder: bool,
        /// The name that it has; none where the folder's contents are meant.
        name: Option<OsString>,
    },
    Archive,
}

impl Cp {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let source = self.source(daemon).await?;
        let to = match Place::read(&self.to) {
            Place::Stream => return on_a_thread(move || send(source)).await,
            Place::Here(path) => {
                let owner = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
                let (root, path) = here(&path)?;
                Target { shown: self.to.clone(), root, path, owner, rights: self.archive }
            }
            Place::In(id, path) => {
                let container = containers::get(daemon, &id).await?;
                let RootFs { root, owner } = RootFs::open(daemon, &container).await?;
                Target { shown: path.clone(), root, path: path.into(), owner, rights: true }
            }
        };
        let as_folder = self.to.ends_with('/');
        let keep = self.archive;
        on_a_thread(move || copy(source, &to, as_folder, keep)).await
    }

    async fn source(&self, daemon: &Daemon) -> Result<Source> {
        let (root, path, text) = match Place::read(&self.from) {
            Place::Stream => return Ok(Source::Archive),
            Place::Here(text) => {
                let given = Path::new(&text);
                let path = match self.follow_link {
                    true => given.canonicalize().with_context(|| text.clone())?,
                    false => given.to_owned(),
                };
                // The path itself is trusted; what lies below it is gone through by handles.
                let above = path.parent().filter(|_| path.file_name().is_some() && !ends_in_itself(&text));
                let (folder, rest) = match (above, path.file_name()) {
                    (Some(above), Some(name)) => (above.to_owned(), PathBuf::from(name)),
                    _ => (path.clone(), PathBuf::from(".")),
                };
                let folder = if folder.as_os_str().is_empty() { PathBuf::from(".") } else { folder };
                let root = Root::open(&folder).with_context(|| text.clone())?;
                (root, rest, text)
            }
            Place::In(id, text) => {
                let container = containers::get(daemon, &id).await?;
                (RootFs::open(daemon, &container).await?.root, PathBuf::from(&text), text)
            }
        };
        let follow = self.follow_link || text.ends_with('/') || ends_in_itself(&text);
        let flags = if follow { OFlags::PATH } else { OFlags::PATH | OFlags::NOFOLLOW };
        let found = root.open_at(&path, flags).map_err(|errno| told(&self.from, errno))?;
        let is_folder = kind(&found)? == FileType::Directory;
        let name = clean(text.as_bytes()).file_name().map(ToOwned::to_owned);
        let name = name.filter(|_| !ends_in_itself(&text));
        Ok(Source::Tree { root, path, follow, is_folder, name })
    }
}

/// Whether a path says that the contents of a folder are meant.
fn ends_in_itself(text: &str) -> bool {
    text.is_empty() || text == "." || text.ends_with("/.") || text == "/"
}

fn told(what: &str, errno: Errno) -> Error {
    Error::from(std::io::Error::from(errno)).context(what.to_owned())
}

fn kind(found: &std::os::fd::OwnedFd) -> Result<FileType> {
    let stat = fstat(found).map_err(std::io::Error::from)?;
    Ok(FileType::from_raw_mode(stat.st_mode))
}

/// Where a copy goes.
struct Target {
    /// As people wrote it.
    shown: String,
    root: Root,
    path: PathBuf,
    owner: (u32, u32),
    /// Whether what gives rights is kept: nothing of a container gets them here unless asked for.
    rights: bool,
}

/// A path of ours, links resolved: a folder that is there, or a name in one.
fn here(text: &str) -> Result<(Root, PathBuf)> {
    let path = Path::new(text);
    let real = path.canonicalize();
    if let Ok(folder) = real.as_ref().map(PathBuf::as_path)
        && folder.is_dir()
    {
        return Ok((Root::open(folder).with_context(|| text.to_owned())?, PathBuf::from(".")));
    }
    let path = real.unwrap_or_else(|_| path.to_owned());
    let above = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().ok_or_else(|| Error::not_found(text.to_owned()))?;
    Ok((Root::open(above).with_context(|| above.display().to_string())?, PathBuf::from(name)))
}

impl Target {
    /// The folder that an archive is put into, and the name that its top gets there.
    fn place(&self, source: &Source, as_folder: bool) -> Result<(PathBuf, PathBuf)> {
        let shown = &self.shown;
        let path = self.resolved()?;
        let found = self.root.open_at(&path, OFlags::PATH);
        let there = match found {
            Ok(found) => {
                let kind = kind(&found)?;
                if !matches!(kind, FileType::Directory | FileType::RegularFile) {
                    let text = format!("cannot copy to {shown}: it is neither a file nor a folder");
                    return Err(Error::failed_precondition(text));
                }
                Some(kind == FileType::Directory)
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(told(shown, errno)),
        };
        let Source::Tree { is_folder, name, .. } = source else {
            return match there {
                Some(true) => Ok((path, PathBuf::new())),
                _ => Err(Error::failed_precondition(format!("{shown} is no folder: an archive needs one"))),
            };
        };
        match there {
            Some(true) => Ok((path, name.as_ref().map(PathBuf::from).unwrap_or_default())),
            Some(false) if *is_folder => {
                Err(Error::failed_precondition(format!("cannot copy a folder to {shown}: it is a file")))
            }
            None if as_folder && !is_folder => Err(Error::not_found(format!("folder {shown}"))),
            _ => {
                let name = path.file_name().ok_or_else(|| Error::not_found(shown.clone()))?;
                let above = path.parent().unwrap_or(Path::new("")).to_owned();
                Ok((above, PathBuf::from(name)))
            }
        }
    }

    /// The path without a link at its end: what a link leads to is replaced, not the link.
    fn resolved(&self) -> Result<PathBuf> {
        let mut path = self.path.clone();
        for _ in 0..LINKS {
            let Ok(found) = self.root.open_at(&path, OFlags::PATH | OFlags::NOFOLLOW) else {
                return Ok(path);
            };
            if kind(&found)? != FileType::Symlink {
                return Ok(path);
            }
            let target = readlinkat(&found, c"", Vec::new()).map_err(std::io::Error::from)?;
            let target = Path::new(std::ffi::OsStr::new(target.to_str().unwrap_or_default())).to_owned();
            path = path.parent().unwrap_or(Path::new("")).join(target);
        }
        Err(told(&self.shown, Errno::LOOP))
    }
}

async fn on_a_thread(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    tokio::task::spawn_blocking(work).await.map_err(|failed| Error::internal(failed.to_string()))?
}

/// Writes an archive to standard output.
fn send(source: Source) -> Result<()> {
    if std::io::stdout().is_terminal() {
        return Err(Error::failed_precondition("an archive is nothing for a terminal: send it to a file"));
    }
    match source {
        Source::Archive => Err(Error::invalid_argument("one end of a copy must be a path")),
        Source::Tree { root, path, follow, name, .. } => {
            let name = PathBuf::from(name.unwrap_or_default());
            pack(&root, &path, &name, follow, BufWriter::new(Out))
        }
    }
}

/// Standard output, whose reader may go.
struct Out;

impl Write for Out {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        crate::output::bytes(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn copy(source: Source, to: &Target, as_folder: bool, keep: bool) -> Result<()> {
    let (base, name) = to.place(&source, as_folder)?;
    let taken = Taken { owner: (!keep).then_some(to.owner), rights: to.rights };
    let Source::Tree { root, path, follow, .. } = source else {
        return unpack(&to.root, &base, taken, Counted::new(std::io::stdin().lock()));
    };
    let (reader, writer) = std::io::pipe()?;
    let packing = std::thread::spawn(move || {
        let mut out = BufWriter::with_capacity(64 << 10, writer);
        pack(&root, &path, &name, follow, &mut out)?;
        out.flush().map_err(Error::from)
    });
    let mut reader = Counted::new(reader);
    let unpacked = unpack(&to.root, &base, taken, &mut reader);
    if unpacked.is_ok() {
        // An archive has an end behind its end.
        std::io::copy(&mut reader, &mut std::io::sink())?;
    }
    drop(reader);
    let packed = packing.join().unwrap_or_else(|_| Err(Error::internal("packing failed")));
    match (packed, unpacked) {
        // Who cannot read on says what failed, unless it only heard of it.
        (Err(packed), Err(unpacked)) if packed.message().ends_with("broken pipe") => Err(unpacked),
        (Err(packed), _) => Err(packed),
        (Ok(()), unpacked) => unpacked,
    }
}

/// Counts what is read, and tells people who wait longer than a second.
struct Counted<R> {
    inner: R,
    begun: Instant,
    count: u64,
    bar: Option<ProgressBar>,
}

impl<R> Counted<R> {
    fn new(inner: R) -> Self {
        Self { inner, begun: Instant::now(), count: 0, bar: None }
    }
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        if self.bar.is_none()
            && self.begun.elapsed() > Duration::from_secs(1)
            && std::io::stderr().is_terminal()
        {
            let style = ProgressStyle::with_template("copied {bytes}, {bytes_per_sec}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
            self.bar = Some(ProgressBar::new(0).with_style(style));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(self.count);
        }
        Ok(count)
    }
}

impl<R> Drop for Counted<R> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_a_copy_are_told_apart() {
        let read = |text: &str| match Place::read(text) {
            Place::Here(path) => format!("here {path}"),
            Place::In(id, path) => format!("{id} {path}"),
            Place::Stream => "stream".to_owned(),
        };
        let places = ["-", "a:/x", "a:", "./a:b", "/x:y", ":x", "x", "dir/a:b"].map(read);
        assert_eq!(
            places,
            ["stream", "a /x", "a ", "here ./a:b", "here /x:y", "here :x", "here x", "here dir/a:b"]
        );
        assert!([".", "/", "a/.", ""].into_iter().all(ends_in_itself) && !ends_in_itself("a/"));
    }
}
