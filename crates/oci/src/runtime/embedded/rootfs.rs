//! The container's file system. All is done in its own mount namespace before its root is entered, through
//! handles: nothing in the image can lead a mount, a device or a file out of it.

use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use corten_cgroups::Cgroups;
use corten_sys::{MountChange, change_mount, detached_clone};
use corten_tree::Root;
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, chownat, fstat, makedev, mkdirat, mknodat, openat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount_change, move_mount,
    unmount,
};

use super::Failure;
use super::config::{Config, Device, Mount};
use super::options::{Options, attribute, passed_on, propagation};

/// How often a missing path is followed through links that lead to nothing.
const LINKS: usize = 40;

/// What is made ready outside, before there is a container.
#[derive(Debug)]
pub(super) struct Outside {
    /// Sources of ID-mapped mounts, by their place in the list.
    pub mapped: Vec<Option<OwnedFd>>,
    /// The process is root only in a user namespace: devices are taken from the host.
    pub in_user_namespace: bool,
}

/// A root file system that is being built.
pub(super) struct Rootfs<'a> {
    root: Root,
    config: &'a Config,
    bundle: &'a Path,
    cgroups: &'a Cgroups,
    outside: &'a Outside,
    /// The host's `/dev/null`, by the mount that this namespace has of it.
    null: OwnedFd,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Folder,
    File,
}

impl<'a> Rootfs<'a> {
    /// Makes the root a mount of its own, and keeps what is mounted from here on to this namespace.
    pub(super) fn begin(
        config: &'a Config,
        bundle: &'a Path,
        cgroups: &'a Cgroups,
        outside: &'a Outside,
    ) -> Result<Self, Failure> {
        let (how, _) = passed_on(&config.linux.rootfs_propagation).unwrap_or((propagation::SLAVE, true));
        let how = match how {
            propagation::SHARED => MountPropagationFlags::SHARED,
            propagation::PRIVATE | propagation::UNBINDABLE => MountPropagationFlags::PRIVATE,
            _ => MountPropagationFlags::DOWNSTREAM,
        };
        mount_change("/", how | MountPropagationFlags::REC)
            .map_err(|error| format!("error preparing rootfs: make / {how:?}: {}", words(error)))?;
        let path = bundle.join(&config.root.path);
        let failed =
            |error: io::Error| format!("error preparing rootfs: {}: {}", path.display(), words(error));
        let tree = detached_clone(CWD, path.as_os_str(), true).map_err(failed)?;
        let alone = MountChange { propagation: propagation::PRIVATE, ..MountChange::default() };
        if how == MountPropagationFlags::SHARED {
            // A root can only be left where its entering is not passed on.
            change_mount(tree.as_fd(), &alone).map_err(failed)?;
            mount_change(&mount_point_of(&path).map_err(failed)?, MountPropagationFlags::PRIVATE)
                .map_err(|error| failed(error.into()))?;
        }
        move_mount(&tree, "", CWD, &path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
            .map_err(|error| failed(error.into()))?;
        let root = Root::open(&path).map_err(failed)?;
        let null = openat(CWD, "/dev/null", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| format!("open /dev/null: {}", words(error)))?;
        if fstat(&null).is_ok_and(|stat| stat.st_rdev != makedev(1, 3)) {
            return Err("/dev/null of this host is not the null device".into());
        }
        Ok(Self { root, config, bundle, cgroups, outside, null })
    }

    /// Mounts, devices, links, and what is hidden.
    pub(super) fn fill(&self) -> Result<(), Failure> {
        for (number, mount) in self.config.mounts.iter().enumerate() {
            let source = if mount.source.is_empty() { &mount.kind } else { &mount.source };
            self.mount(number, mount).map_err(|error| {
                let at = mount.destination.display();
                format!("error mounting {source:?} to rootfs at \"{at}\": {}", error.0)
            })?;
        }
        let from_host = |mount: &Mount| {
            mount.destination == Path::new("/dev")
                && (mount.kind == "bind" || mount.options.iter().any(|option| option.ends_with("bind")))
        };
        if !self.config.mounts.iter().any(from_host) {
            self.devices().map_err(|error| format!("error creating device nodes: {}", error.0))?;
            self.links().map_err(|error| format!("error setting up /dev symlinks: {}", error.0))?;
        }
        self.hide()
    }

    /// The folder that the process begins in, made if it is missing.
    pub(super) fn make_folder(&self, path: &Path) -> Result<(), Failure> {
        self.at(path, Missing::Folder)
            .map(drop)
            .map_err(|error| format!("mkdir {}: {}", path.display(), words(error)))
    }

    /// The root as a handle.
    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// Puts a terminal where the console is.
    pub(super) fn console(&self, terminal: BorrowedFd<'_>) -> Result<(), Failure> {
        let place = || -> io::Result<()> {
            let target = self.at(Path::new("/dev/console"), Missing::File)?;
            attach(&detached_clone(terminal, OsStr::new(""), false)?, &target)
        };
        place().map_err(|error| format!("/dev/console: {}", words(error)))
    }

    /// Makes this the root of the process and leaves everything else behind.
    pub(super) fn enter(self, pivot: bool) -> Result<(), Failure> {
        let failed = |what: &'static str| {
            move |error: Errno| format!("error jailing process inside rootfs: {what}: {}", words(error))
        };
        let how = passed_on(&self.config.linux.rootfs_propagation);
        if self.config.root.readonly {
            let change = MountChange { set: attribute::READ_ONLY, ..MountChange::default() };
            change_mount(self.root.handle(), &change)
                .map_err(|error| format!("error setting rootfs as readonly: {}", words(error)))?;
        }
        let root = self.root.handle();
        rustix::process::fchdir(root).map_err(failed("fchdir"))?;
        if pivot {
            let old = openat(CWD, "/", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(failed("open /"))?;
            rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
            rustix::process::fchdir(&old).map_err(failed("fchdir"))?;
            // What is taken away here must not be taken away from the host.
            mount_change(".", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
                .map_err(failed("make the old root a slave"))?;
            unmount(".", UnmountFlags::DETACH).map_err(failed("unmount the old root"))?;
        } else {
            rustix::mount::mount_move(".", "/").map_err(failed("move the root"))?;
            rustix::process::chroot(".").map_err(failed("chroot"))?;
        }
        // What is passed on could not be a root that is entered.
        if let Some((propagation, recursive)) = how.filter(|(how, _)| *how != propagation::SLAVE) {
            let change = MountChange { propagation, recursive, ..MountChange::default() };
            change_mount(self.root.handle(), &change)
                .map_err(|error| format!("error setting rootfs propagation: {}", words(error)))?;
        }
        rustix::process::chdir("/").map_err(failed("chdir /"))
    }

    // === mounts ===

    fn mount(&self, number: usize, mount: &Mount) -> Result<(), Plain> {
        let options = Options::parse(&mount.options).map_err(Plain)?;
        if mount.kind == "cgroup" || mount.kind == "cgroup2" {
            return self.mount_cgroups(mount, &options);
        }
        if options.bind || mount.kind == "bind" {
            return self.mount_bind(number, mount, &options);
        }
        let known = self.root.open_at(&mount.destination, OFlags::PATH).ok();
        let target = self.at(&mount.destination, Missing::Folder)?;
        if options.remount {
            let change = MountChange { set: options.set, clear: options.clear, ..MountChange::default() };
            return Ok(change_mount(target.as_fd(), &change)?);
        }
        let made = filesystem(&mount.kind, &mount.source, &options)?;
        if let Some(known) = known.as_ref().filter(|_| options.copy_up && mount.kind == "tmpfs") {
            corten_tree::copy(&path_of(known).join("."), &path_of(&made).join("."))
                .map_err(|error| Plain(format!("tmpcopyup: {}", words(error))))?;
        }
        attach(&made, &target)?;
        if let Some(known) = known
            && mount.kind == "tmpfs"
            && !options.data.iter().any(|option| option.starts_with("mode="))
        {
            let mode = Mode::from_raw_mode(fstat(&known)?.st_mode & 0o7777);
            rustix::fs::fchmod(openat(&made, ".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?, mode)
                .ok();
        }
        pass_on(&made, &options)?;
        Ok(())
    }

    fn mount_bind(&self, number: usize, mount: &Mount, options: &Options) -> Result<(), Plain> {
        let made;
        let tree = match self.outside.mapped.get(number).and_then(Option::as_ref) {
            Some(tree) => tree,
            None => {
                let source = self.bundle.join(&mount.source);
                made = detached_clone(CWD, source.as_os_str(), options.recursive)
                    .map_err(|error| Plain(format!("stat {}: {}", mount.source, words(error))))?;
                &made
            }
        };
        let is_folder = FileType::from_raw_mode(fstat(tree)?.st_mode) == FileType::Directory;
        let missing = if is_folder { Missing::Folder } else { Missing::File };
        let target = self.at(&mount.destination, missing)?;
        if options.set | options.clear != 0 {
            let change = MountChange { set: options.set, clear: options.clear, ..MountChange::default() };
            change_mount(tree.as_fd(), &change)?;
        }
        if options.set_all | options.clear_all != 0 {
            let change = MountChange {
                set: options.set_all,
                clear: options.clear_all,
                recursive: true,
                ..MountChange::default()
            };
            change_mount(tree.as_fd(), &change)?;
        }
        attach(tree, &target)?;
        pass_on(tree, options)?;
        Ok(())
    }

    /// The container's own cgroups: one folder on v2, one for each hierarchy on v1.
    fn mount_cgroups(&self, mount: &Mount, options: &Options) -> Result<(), Plain> {
        let target = self.at(&mount.destination, Missing::Folder)?;
        let bind = |folder: &Path, target: &OwnedFd| -> io::Result<()> {
            let tree = detached_clone(CWD, folder.as_os_str(), false)?;
            let change = MountChange { set: options.set, clear: options.clear, ..MountChange::default() };
            change_mount(tree.as_fd(), &change)?;
            attach(&tree, target)
        };
        if let Some(folder) = self.cgroups.unified().filter(|_| self.cgroups.is_unified()) {
            return Ok(bind(folder, &target)?);
        }
        let data = Options { data: vec!["mode=755".into()], ..Options::default() };
        let base = filesystem("tmpfs", "tmpfs", &data)?;
        attach(&base, &target)?;
        for one in &self.cgroups.v1 {
            let Some(name) = hierarchy_name(&one.controllers) else { continue };
            let target = self.at(&mount.destination.join(&name), Missing::Folder)?;
            bind(&one.folder, &target)?;
            if one.controllers.len() > 1 {
                for alias in &one.controllers {
                    let place = openat(&base, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                    ignore_existing(rustix::fs::symlinkat(&name, &place, alias))?;
                }
            }
        }
        let change = MountChange { set: options.set, ..MountChange::default() };
        Ok(change_mount(base.as_fd(), &change)?)
    }

    // === devices ===

    fn devices(&self) -> Result<(), Plain> {
        let usual = [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9), ("tty", 0)];
        for (name, minor) in usual {
            let path = Path::new("/dev").join(name);
            if self.config.linux.devices.iter().any(|device| device.path == path) {
                continue;
            }
            let major = if name == "tty" { 5 } else { 1 };
            let device =
                Device { kind: "c".into(), path, major, minor, file_mode: Some(0o666), ..Device::default() };
            self.device(&device)?;
        }
        for device in &self.config.linux.devices {
            // The terminal multiplexer is the container's own.
            if device.path != Path::new("/dev/ptmx") {
                self.device(device)?;
            }
        }
        Ok(())
    }

    fn device(&self, device: &Device) -> Result<(), Plain> {
        let shown = || device.path.display().to_string();
        let name =
            device.path.file_name().ok_or_else(|| Plain(format!("{:?} is no device path", device.path)))?;
        let folder = self.at(device.path.parent().unwrap_or(Path::new("/")), Missing::Folder)?;
        if self.outside.in_user_namespace {
            return self.device_from_host(device);
        }
        let kind = match device.kind.as_str() {
            "c" | "u" => FileType::CharacterDevice,
            "b" => FileType::BlockDevice,
            "p" => FileType::Fifo,
            other => return Err(Plain(format!("invalid device type {other:?} of {}", shown()))),
        };
        let narrow =
            |number: i64| u32::try_from(number).map_err(|_| Plain(format!("device number of {}", shown())));
        let number =
            if kind == FileType::Fifo { 0 } else { makedev(narrow(device.major)?, narrow(device.minor)?) };
        let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
        match mknodat(&folder, name, kind, mode, number) {
            Err(Errno::EXIST) => {
                // Left by an earlier container on the same files, or the image's: it must be the right one.
                let found =
                    openat(&folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                let stat = fstat(&found)?;
                if FileType::from_raw_mode(stat.st_mode) != kind
                    || (kind != FileType::Fifo && stat.st_rdev != number)
                {
                    return self.device_from_host(device);
                }
            }
            Err(Errno::PERM) => return self.device_from_host(device),
            other => other.map_err(|error| Plain(format!("mknod {}: {}", shown(), words(error))))?,
        }
        let (uid, gid) = (device.uid.unwrap_or(0), device.gid.unwrap_or(0));
        if (uid, gid) != (0, 0) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chownat(&folder, name, owner.0, owner.1, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    }

    fn device_from_host(&self, device: &Device) -> Result<(), Plain> {
        let target = self.at(&device.path, Missing::File)?;
        let tree = detached_clone(CWD, device.path.as_os_str(), false)
            .map_err(|error| Plain(format!("{}: {}", device.path.display(), words(error))))?;
        Ok(attach(&tree, &target)?)
    }

    fn links(&self) -> Result<(), Plain> {
        let folder = self.at(Path::new("/dev"), Missing::Folder)?;
        let links = [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ];
        for (name, target) in links {
            ignore_existing(rustix::fs::symlinkat(target, &folder, name))?;
        }
        if self.root.open_at(Path::new("/proc/kcore"), OFlags::PATH).is_ok() {
            ignore_existing(rustix::fs::symlinkat("/proc/kcore", &folder, "core"))?;
        }
        let link = || rustix::fs::symlinkat("pts/ptmx", &folder, "ptmx");
        match link() {
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&folder, "ptmx", rustix::fs::AtFlags::empty())?;
                Ok(link()?)
            }
            other => Ok(other?),
        }
    }

    // === what is hidden or cannot be changed ===

    fn hide(&self) -> Result<(), Failure> {
        let mut mask: Option<OwnedFd> = None;
        for path in &self.config.linux.masked_paths {
            self.mask(path, &mut mask)
                .map_err(|error| format!("can't mask path \"{}\": {}", path.display(), words(error)))?;
        }
        for path in &self.config.linux.readonly_paths {
            self.protect(path)
                .map_err(|error| format!("can't make \"{}\" read-only: {}", path.display(), words(error)))?;
        }
        Ok(())
    }

    fn mask(&self, path: &Path, mask: &mut Option<OwnedFd>) -> io::Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        if FileType::from_raw_mode(fstat(&target)?.st_mode) != FileType::Directory {
            return attach(&detached_clone(self.null()?.as_fd(), OsStr::new(""), false)?, &target);
        }
        // One empty folder serves for all.
        match mask {
            Some(mask) => attach(&detached_clone(mask.as_fd(), OsStr::new(""), false)?, &target),
            None => {
                let options = Options {
                    set: attribute::READ_ONLY,
                    data: vec!["nr_blocks=1".into(), "nr_inodes=1".into()],
                    ..Options::default()
                };
                let made = filesystem("tmpfs", "tmpfs", &options)?;
                attach(&made, &target)?;
                *mask = Some(made);
                Ok(())
            }
        }
    }

    /// The container's own null device if it is one: it tells nothing about the host's.
    fn null(&self) -> io::Result<OwnedFd> {
        let own = self.root.open_at(Path::new("/dev/null"), OFlags::PATH | OFlags::NOFOLLOW).ok();
        let is_null = |fd: &OwnedFd| {
            fstat(fd).is_ok_and(|stat| {
                FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
                    && stat.st_rdev == makedev(1, 3)
            })
        };
        own.filter(is_null).map_or_else(|| self.null.try_clone(), Ok)
    }

    fn protect(&self, path: &Path) -> io::Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = detached_clone(target.as_fd(), OsStr::new(""), true)?;
        change_mount(tree.as_fd(), &MountChange { set: attribute::READ_ONLY, ..MountChange::default() })?;
        attach(&tree, &target)
    }

    fn existing(&self, path: &Path) -> io::Result<Option<OwnedFd>> {
        match self.root.open_at(path, OFlags::PATH) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// What a path leads to inside of the root; what is missing of it is made.
    fn at(&self, path: &Path, missing: Missing) -> io::Result<OwnedFd> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            match self.root.open_at(&path, OFlags::PATH) {
                Err(Errno::NOENT) => {}
                other => return Ok(other?),
            }
            if let Some(link) = self.make(&path, missing)? {
                path = link;
            }
        }
        Err(Errno::LOOP.into())
    }

    /// Makes the first part that is missing and all behind it; answers another path when that part is a link
    /// to nothing.
    fn make(&self, path: &Path, missing: Missing) -> io::Result<Option<PathBuf>> {
        let parts: Vec<&OsStr> = path
            .components()
            .filter_map(|part| if let Component::Normal(name) = part { Some(name) } else { None })
            .collect();
        let mut behind = PathBuf::from("/");
        for (number, part) in parts.iter().enumerate() {
            let folder = self.root.open_at(&behind, OFlags::PATH | OFlags::DIRECTORY)?;
            behind.push(part);
            if self.root.open_at(&behind, OFlags::PATH).is_ok() {
                continue;
            }
            let is_last = number + 1 == parts.len();
            let made = if is_last && missing == Missing::File {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                openat(&folder, *part, flags, Mode::from_raw_mode(0o644)).map(drop)
            } else {
                mkdirat(&folder, *part, Mode::from_raw_mode(0o755))
            };
            match made {
                Err(Errno::EXIST) => {
                    let link = rustix::fs::readlinkat(&folder, *part, Vec::new())?;
                    let mut to =
                        behind.parent().unwrap_or(Path::new("/")).join(OsStr::from_bytes(link.to_bytes()));
                    to.extend(parts.iter().skip(number + 1));
                    return Ok(Some(to));
                }
                other => other?,
            }
        }
        Ok(None)
    }
}

/// The mount that a path lies on.
fn mount_point_of(path: &Path) -> io::Result<PathBuf> {
    let path = path.canonicalize()?;
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    // Names with spaces are written in another way there: then the mount above is taken, and refused later.
    let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
    let found = points.filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
    Ok(found.unwrap_or(Path::new("/")).to_owned())
}

/// A new mount of a file system.
fn filesystem(kind: &str, source: &str, options: &Options) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|error| match error {
        Errno::NODEV => io::Error::new(ErrorKind::Unsupported, "no such device"),
        other => other.into(),
    })?;
    if !source.is_empty() {
        fsconfig_set_string(&context, "source", source)?;
    }
    for option in &options.data {
        match option.split_once('=') {
            Some((key, value)) => fsconfig_set_string(&context, key, value),
            None => fsconfig_set_flag(&context, option),
        }
        .map_err(|error| {
            io::Error::new(io::Error::from(error).kind(), format!("option {option:?}: {}", words(error)))
        })?;
    }
    if options.is_read_only() && kind != "tmpfs" {
        fsconfig_set_flag(&context, "ro")?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(u32::try_from(options.attributes()).unwrap_or(0));
    Ok(fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

fn attach(tree: &OwnedFd, target: &OwnedFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(tree, "", target, "", flags)?)
}

fn pass_on(tree: &OwnedFd, options: &Options) -> io::Result<()> {
    if options.propagation == 0 {
        return Ok(());
    }
    let change = MountChange {
        propagation: options.propagation,
        recursive: options.propagation_recursive,
        ..MountChange::default()
    };
    change_mount(tree.as_fd(), &change)
}

/// Where a v1 hierarchy is mounted by custom: by its controllers, or its name.
fn hierarchy_name(controllers: &[String]) -> Option<String> {
    let name = controllers.join(",");
    Some(name.strip_prefix("name=").unwrap_or(&name).to_owned())
        .filter(|name| !name.is_empty() && !name.contains('/'))
}

fn ignore_existing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// An error's words alone, as programs in C print them.
pub(super) fn words(error: impl Into<io::Error>) -> String {
    let text = error.into().to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_lowercase().chain(letters).collect())
}

/// The reason for a failure, to which it is added later what failed.
struct Plain(String);

impl From<io::Error> for Plain {
    fn from(error: io::Error) -> Self {
        Self(words(error))
    }
}

impl From<Errno> for Plain {
    fn from(error: Errno) -> Self {
        Self(words(error))
    }
}

/// The number of a handle as a path, for calls that know no handles.
pub(super) fn path_of(fd: &impl AsRawFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}
