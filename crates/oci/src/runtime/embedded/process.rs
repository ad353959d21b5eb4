//! What a process is when its program begins: user, capabilities, limits, streams; and the program itself.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, Mode, OFlags, openat};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::config::{Personality, Process, Scheduler, Seccomp};
use super::rootfs::words;
use super::seccomp::{self, Listener};
use super::state::{State, started};
use super::{Failure, Streams};

/// Most of a `passwd` that is read.
const PASSWD: u64 = 4 << 20;

/// The host's `/proc`, which a container cannot have exchanged.
#[derive(Debug)]
pub(super) struct Proc(OwnedFd);

impl Proc {
    pub(super) fn open() -> Result<Self, Failure> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, "/proc", flags, Mode::empty());
        opened.map(Self).map_err(|error| format!("open /proc: {}", words(error)))
    }

    /// The pid of this process as the host sees it.
    pub(super) fn own_pid(&self) -> Result<i32, Failure> {
        let link = rustix::fs::readlinkat(&self.0, "self", Vec::new()).map_err(words)?;
        link.to_string_lossy().parse().map_err(|_| "/proc/self leads nowhere".to_owned())
    }

    /// Whether a container's first process has not ended; from within the container, too.
    pub(super) fn has(&self, state: &State) -> bool {
        let mut stat = String::new();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let read = openat(&self.0, format!("{}/stat", state.pid), flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|file| std::fs::File::from(file).read_to_string(&mut stat));
        read.is_ok() && started(&stat) == Some(state.started)
    }

    fn exists(&self, path: &str) -> bool {
        rustix::fs::accessat(&self.0, path, Access::EXISTS, AtFlags::empty()).is_ok()
    }

    /// Writes to a file, by its path below `/proc`.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let written = openat(&self.0, path, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|file| std::fs::File::from(file).write_all(text.as_bytes()));
        written.map_err(|error| format!("write /proc/{path}: {}", words(error)))
    }
}

impl Process {
    /// Everything that must be set while this still has all privileges; see [`Process::become_user`].
    pub(super) fn limit(&self, proc: &Proc) -> Result<(), Failure> {
        if let Some(score) = self.oom_score_adj {
            proc.write("self/oom_score_adj", &score.to_string())?;
        }
        for limit in &self.rlimits {
            let (resource, number) =
                resource(&limit.kind).ok_or_else(|| format!("invalid rlimit type {:?}", limit.kind))?;
            let value = |value: u64| (value != u64::MAX).then_some(value);
            let wanted = Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
            rustix::process::setrlimit(resource, wanted)
                .map_err(|error| format!("error setting rlimit type {number}: {}", words(error)))?;
        }
        if let Some(wanted) = &self.io_priority {
            let class = match wanted.class.as_str() {
                "IOPRIO_CLASS_RT" => 1,
                "" | "IOPRIO_CLASS_BE" => 2,
                "IOPRIO_CLASS_IDLE" => 3,
                other => return Err(format!("invalid io priority class {other:?}")),
            };
            corten_sys::set_io_priority(class, wanted.priority)
                .map_err(|error| format!("failed to set io priority: {}", words(error)))?;
        }
        self.scheduler.as_ref().map_or(Ok(()), schedule)
    }

    /// Drops to the user and capabilities. What still needs privileges has been done.
    pub(super) fn become_user(
        &self,
        proc: &Proc,
        filter: Option<&Seccomp>,
        listener: Option<&Listener>,
    ) -> Result<(), Failure> {
        let failed = |what: &'static str| move |error: rustix::io::Errno| format!("{what}: {}", words(error));
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).map_err(failed("set no_new_privs"))?;
        } else if let Some(filter) = filter {
            seccomp::load(filter, listener, proc)?;
        }
        self.label(proc)?;
        let (uid, gid) = (rustix::fs::Uid::from_raw(self.user.uid), rustix::fs::Gid::from_raw(self.user.gid));
        own_streams(self.user.uid);
        let wanted = self.capabilities.as_ref().map(Sets::parse);
        if let Some(wanted) = &wanted {
            wanted.drop_bounding()?;
        }
        // It may be reachable only with the privileges of now, or only as the user.
        let entered = rustix::process::chdir(&self.cwd);
        rustix::thread::set_keep_capabilities(true).map_err(failed("keep capabilities"))?;
        match corten_sys::set_groups(&self.user.additional_gids) {
            // A user namespace may not allow it, and then there is nothing to drop.
            Err(error)
                if error.kind() == std::io::ErrorKind::PermissionDenied
                    && self.user.additional_gids.is_empty() => {}
            other => other.map_err(|error| format!("setgroups: {}", words(error)))?,
        }
        rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(failed("setgid"))?;
        rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(failed("setuid"))?;
        rustix::thread::set_keep_capabilities(false).map_err(failed("keep no capabilities"))?;
        if let Some(wanted) = &wanted {
            wanted.apply()?;
        }
        if entered.is_err() {
            rustix::process::chdir(&self.cwd).map_err(|error| {
                format!("chdir to cwd ({:?}) set in config.json failed: {}", self.cwd, words(error))
            })?;
        }
        if let Some(umask) = self.user.umask {
            rustix::process::umask(Mode::from_raw_mode(umask));
        }
        Ok(())
    }

    fn label(&self, proc: &Proc) -> Result<(), Failure> {
        if !self.apparmor_profile.is_empty() {
            let text = format!("exec {}", self.apparmor_profile);
            // Where several security modules are stacked each has a folder of its own.
            let own = "self/attr/apparmor/exec";
            let path = if proc.exists(own) { own } else { "self/attr/exec" };
            proc.write(path, &text).map_err(|error| {
                format!("unable to apply apparmor profile: apparmor failed to apply profile: {error}")
            })?;
        }
        if !self.selinux_label.is_empty() {
            proc.write("self/attr/exec", &self.selinux_label)
                .map_err(|error| format!("can't set process label: {error}"))?;
        }
        Ok(())
    }

    /// Finds the program as the process itself will see it.
    pub(super) fn program(&self) -> Result<PathBuf, Failure> {
        let name = self.args.first().map(String::as_str).unwrap_or_default();
        let path = self.env.iter().rev().find_map(|variable| variable.strip_prefix("PATH="));
        find(name, path.unwrap_or("/bin:/usr/bin"))
    }

    /// Becomes the program; returns only when that fails.
    pub(super) fn execute(&self, program: &Path, streams: &Streams) -> Failure {
        let text = |text: &[u8]| CString::new(text).unwrap_or_default();
        let path = text(program.as_os_str().as_bytes());
        let args: Vec<CString> = self.args.iter().map(|arg| text(arg.as_bytes())).collect();
        let mut environment: Vec<CString> = self.env.iter().map(|one| text(one.as_bytes())).collect();
        if !self.env.iter().any(|one| one.starts_with("HOME=")) {
            environment.push(text(format!("HOME={}", home(self.user.uid)).as_bytes()));
        }
        if streams.listening > 0 {
            let told = [format!("LISTEN_FDS={}", streams.listening), "LISTEN_PID=1".to_owned()];
            environment.extend(told.map(|one| text(one.as_bytes())));
        }
        corten_sys::close_on_exec(3 + i32::try_from(streams.more).unwrap_or(0));
        let error = corten_sys::execute(&path, &args, &environment);
        format!("exec {}: {}", program.display(), words(error))
    }
}

fn schedule(wanted: &Scheduler) -> Result<(), Failure> {
    let policy = match wanted.policy.as_str() {
        "SCHED_OTHER" => 0,
        "SCHED_FIFO" => 1,
        "SCHED_RR" => 2,
        "SCHED_BATCH" => 3,
        "SCHED_IDLE" => 5,
        "SCHED_DEADLINE" => 6,
        other => return Err(format!("invalid scheduler policy {other:?}")),
    };
    let mut flags = 0;
    for flag in &wanted.flags {
        flags |= match flag.as_str() {
            "SCHED_FLAG_RESET_ON_FORK" => 0x1,
            "SCHED_FLAG_RECLAIM" => 0x2,
            "SCHED_FLAG_DL_OVERRUN" => 0x4,
            "SCHED_FLAG_KEEP_POLICY" => 0x8,
            "SCHED_FLAG_KEEP_PARAMS" => 0x10,
            "SCHED_FLAG_UTIL_CLAMP_MIN" => 0x20,
            "SCHED_FLAG_UTIL_CLAMP_MAX" => 0x40,
            other => return Err(format!("invalid scheduler flag {other:?}")),
        };
    }
    let how = corten_sys::Scheduling {
        policy,
        flags,
        nice: wanted.nice,
        priority: wanted.priority,
        runtime: wanted.runtime,
        deadline: wanted.deadline,
        period: wanted.period,
    };
    corten_sys::set_scheduling(how).map_err(|error| format!("error setting scheduler: {}", words(error)))
}

/// Another execution domain.
pub(super) fn set_personality(wanted: &Personality) -> Result<(), Failure> {
    let domain = match wanted.domain.as_str() {
        "LINUX" => 0,
        "LINUX32" => 8,
        other => return Err(format!("invalid personality domain {other:?}")),
    };
    corten_sys::set_personality(domain).map_err(|error| format!("set personality: {}", words(error)))
}

/// Standard streams by number; what is missing is `/dev/null`.
pub(super) fn place_streams(streams: [Option<&OwnedFd>; 3]) -> Result<(), Failure> {
    let failed = |error: std::io::Error| format!("standard streams: {}", words(error));
    // Away from the first numbers before these are given out.
    let mut moved = Vec::new();
    for stream in streams {
        let fd = match stream {
            Some(fd) => rustix::io::fcntl_dupfd_cloexec(fd, 10),
            None => openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()),
        };
        moved.push(fd.map_err(|error| failed(error.into()))?);
    }
    for (number, fd) in (0..).zip(&moved) {
        corten_sys::bequeath(fd, number).map_err(failed)?;
    }
    Ok(())
}

/// Pipes and terminals that the process has as streams become its user's: `/dev/stdout` can be opened.
fn own_streams(uid: u32) {
    for stream in [std::io::stdin().as_fd(), std::io::stdout().as_fd(), std::io::stderr().as_fd()] {
        let Ok(stat) = rustix::fs::fstat(stream) else { continue };
        let is_null = stat.st_rdev == rustix::fs::makedev(1, 3);
        if !is_null && stat.st_uid != uid {
            // Files of others may not be given away; then they stay as they are.
            rustix::fs::fchown(stream, Some(rustix::fs::Uid::from_raw(uid)), None).ok();
        }
    }
}

/// Where a user is at home, by the container's own `passwd`.
fn home(uid: u32) -> String {
    let root = corten_tree::Root::open(Path::new("/"));
    let text = root.and_then(|root| root.read(Path::new("etc/passwd"), PASSWD)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().find(|line| line.split(':').nth(2).and_then(|one| one.parse().ok()) == Some(uid));
    let home = line.and_then(|line| line.split(':').nth(5)).filter(|home| !home.is_empty());
    home.unwrap_or("/").to_owned()
}

/// Finds a program as execvp(3) would, or says why not.
fn find(name: &str, path: &str) -> Result<PathBuf, Failure> {
    let quoted = format!("{name:?}");
    if name.contains('/') {
        return match Path::new(name).metadata() {
            Ok(metadata) if metadata.is_dir() => Err(format!("exec: {quoted}: permission denied")),
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

/// Capabilities by number.
struct Sets {
    bounding: u64,
    effective: u64,
    inheritable: u64,
    permitted: u64,
    ambient: u64,
}

impl Sets {
    fn parse(wanted: &super::config::Capabilities) -> Self {
        // What this kernel does not know cannot be given, and is no reason to fail.
        let set = |names: &[String]| {
            names.iter().filter_map(|name| capability(name)).fold(0, |all, one| all | 1 << one)
        };
        let inheritable = set(&wanted.inheritable);
        Self {
            bounding: set(&wanted.bounding),
            effective: set(&wanted.effective),
            inheritable,
            permitted: set(&wanted.permitted),
            ambient: set(&wanted.ambient),
        }
    }

    fn drop_bounding(&self) -> Result<(), Failure> {
        for number in 0..64 {
            if self.bounding & 1 << number != 0 {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one(number)) {
                // Behind the last that this kernel knows.
                Err(rustix::io::Errno::INVAL) => break,
                other => other.map_err(|error| format!("unable to apply bounding set: {}", words(error)))?,
            }
        }
        Ok(())
    }

    fn apply(&self) -> Result<(), Failure> {
        let set = CapabilitySet::from_bits_retain;
        let sets = CapabilitySets {
            effective: set(self.effective),
            permitted: set(self.permitted),
            inheritable: set(self.inheritable),
        };
        rustix::thread::set_capabilities(None, sets)
            .map_err(|error| format!("unable to apply caps: {}", words(error)))?;
        rustix::thread::clear_ambient_capability_set()
            .map_err(|error| format!("unable to clear ambient caps: {}", words(error)))?;
        for number in (0..64).filter(|number| self.ambient & 1 << number != 0) {
            // Only what is permitted and inheritable can be ambient.
            rustix::thread::configure_capability_in_ambient_set(one(number), true).ok();
        }
        Ok(())
    }
}

fn one(number: u32) -> CapabilitySet {
    CapabilitySet::from_bits_retain(1 << number)
}

/// Capabilities by their numbers.
#[rustfmt::skip]
pub(super) const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
];

/// The number of a capability, by its name.
fn capability(name: &str) -> Option<u32> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let number = CAPABILITIES.iter().position(|known| *known == name)?;
    let number = u32::try_from(number).ok()?;
    rustix::thread::capability_is_in_bounding_set(one(number)).is_ok().then_some(number)
}

/// A resource by name, and its number for messages.
fn resource(name: &str) -> Option<(Resource, u32)> {
    let resource = match name.strip_prefix("RLIMIT_")? {
        "CPU" => Resource::Cpu,
        "FSIZE" => Resource::Fsize,
        "DATA" => Resource::Data,
        "STACK" => Resource::Stack,
        "CORE" => Resource::Core,
        "RSS" => Resource::Rss,
        "NPROC" => Resource::Nproc,
        "NOFILE" => Resource::Nofile,
        "MEMLOCK" => Resource::Memlock,
        "AS" => Resource::As,
        "LOCKS" => Resource::Locks,
        "SIGPENDING" => Resource::Sigpending,
        "MSGQUEUE" => Resource::Msgqueue,
        "NICE" => Resource::Nice,
        "RTPRIO" => Resource::Rtprio,
        "RTTIME" => Resource::Rttime,
        _ => return None,
    };
    Some((resource, resource as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_their_absence_is_told_as_clients_expect() {
        assert!(find("sh", "/nonexistent:/bin").unwrap().ends_with("sh"));
        assert_eq!(
            find("no-such", "/bin").unwrap_err(),
            "exec: \"no-such\": executable file not found in $PATH"
        );
        assert_eq!(
            find("/no/such", "").unwrap_err(),
            "exec: \"/no/such\": stat /no/such: no such file or directory"
        );
        assert_eq!(find("/etc", "").unwrap_err(), "exec: \"/etc\": permission denied");
        assert_eq!(find("/etc/passwd", "").unwrap_err(), "exec: \"/etc/passwd\": permission denied");
    }

    #[test]
    fn capabilities_and_resources_have_the_kernels_numbers() {
        assert_eq!(
            (capability("CAP_CHOWN"), capability("CAP_SYS_ADMIN"), capability("CAP_NEW")),
            (Some(0), Some(21), None)
        );
        assert_eq!(resource("RLIMIT_NOFILE").map(|(_, number)| number), Some(7));
        assert!(resource("NOFILE").is_none());
    }
}
