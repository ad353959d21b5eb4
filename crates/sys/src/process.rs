//! Processes: forked, cloned into namespaces, replaced by programs.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::{bequeath, checked};

/// Runs `work` in a child process and answers its pid. The child never returns: it ends with what `work`
/// says. It starts with the signals' default actions and none blocked. Only for processes of one thread,
/// whose locks nobody else can hold.
///
/// # Errors
/// Those of fork(2).
pub fn fork(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: the process has one thread (see above), so the child may use everything it inherits.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            reset_signals();
            run(work)
        }
        pid => Ok(pid),
    }
}

/// How [`clone_process`] makes a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewProcess<'a> {
    /// `CLONE_NEW…` flags: the namespaces that it gets of its own.
    pub namespaces: u64,
    /// It becomes a child of the caller's parent.
    pub sibling: bool,
    /// The v2 cgroup that it begins in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

#[repr(C)]
#[derive(Default)]
pub(crate) struct CloneArguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

impl CloneArguments {
    pub(crate) fn new(flags: u64, exit_signal: u64) -> Self {
        Self { flags, exit_signal, ..Self::default() }
    }
}

/// As [`fork`], but into namespaces, a cgroup, or beside this process. The child inherits this process'
/// signal actions.
///
/// # Errors
/// Those of clone3(2).
pub fn clone_process(how: NewProcess<'_>, work: impl FnOnce() -> i32) -> io::Result<i32> {
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut flags = how.namespaces;
    // With a parent that is not this process, the signal is that of this process.
    let exit_signal = if how.sibling { 0 } else { libc::SIGCHLD as u64 };
    if how.sibling {
        flags |= libc::CLONE_PARENT as u64;
    }
    let cgroup = how.cgroup.map_or(0, |fd| {
        flags |= CLONE_INTO_CGROUP;
        fd.as_raw_fd() as u64
    });
    let arguments = CloneArguments { flags, exit_signal, cgroup, ..CloneArguments::default() };
    // SAFETY: without CLONE_VM this is a fork: the child has memory of its own, and this process one
    // thread (see above).
    match checked(unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<CloneArguments>())
    })? {
        0 => run(work),
        pid => Ok(pid as i32),
    }
}

fn run(work: impl FnOnce() -> i32) -> ! {
    let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or(101);
    // SAFETY: ends the process without running what belongs to the parent.
    unsafe { libc::_exit(code) }
}

/// Handlers of the parent write to descriptors that the child has not; what is ignored or blocked would
/// stay so in programs.
fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: default actions run no code of ours. Those that cannot be changed are left.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: the set is initialised by the call before it is used.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Sets a variable of this process' environment.
///
/// # Errors
/// When there are other threads, which could read it meanwhile.
pub fn set_variable(name: &str, value: &std::ffi::OsStr) -> io::Result<()> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("the environment cannot be changed while there are threads"));
    }
    // SAFETY: no other thread exists that could read or write the environment, and none starts meanwhile,
    // since this one would have to start it.
    unsafe { std::env::set_var(name, value) };
    Ok(())
}

/// Replaces this program by another one. It returns only when that fails.
#[must_use]
pub fn execute(path: &CStr, arguments: &[impl AsRef<CStr>], environment: &[impl AsRef<CStr>]) -> io::Error {
    let pointers = |list: &mut dyn Iterator<Item = *const libc::c_char>| {
        list.chain([std::ptr::null()]).collect::<Vec<_>>()
    };
    let arguments = pointers(&mut arguments.iter().map(|text| text.as_ref().as_ptr()));
    let environment = pointers(&mut environment.iter().map(|text| text.as_ref().as_ptr()));
    // SAFETY: all strings are NUL-terminated, both lists end with a null pointer, and they outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// A program to be started by [`spawn`].
#[derive(Clone, Copy, Debug)]
pub struct Program<'a> {
    /// Where it is; nothing is searched.
    pub path: &'a CStr,
    /// Its arguments, its own name first.
    pub arguments: &'a [CString],
    /// All of its environment.
    pub environment: &'a [CString],
    /// The only descriptors that it gets, and under which numbers. What is missing of 0, 1 and 2 it
    /// inherits.
    pub descriptors: &'a [(BorrowedFd<'a>, RawFd)],
    /// It is killed when the thread that started it ends.
    pub mortal: bool,
}

/// Starts a program; answers its pid. Whoever collects children gets its end. Waits until it runs.
///
/// # Errors
/// Those of fork(2) and execve(2).
pub fn spawn(program: &Program<'_>) -> io::Result<i32> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let pid = fork(|| {
        let error = become_program(program, &write);
        let number = error.raw_os_error().unwrap_or(libc::EINVAL);
        let _ = rustix::io::write(&write, &number.to_ne_bytes());
        127
    })?;
    drop(write);
    let mut number = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(&read, &mut number))? {
        0 => Ok(pid),
        _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(number))),
    }
}

fn become_program(program: &Program<'_>, kept: &OwnedFd) -> io::Error {
    // Away from all wanted numbers first, then to them.
    const ABOVE: RawFd = 64;
    let place = || -> io::Result<OwnedFd> {
        let kept = rustix::io::fcntl_dupfd_cloexec(kept, ABOVE)?;
        let mut moved = Vec::new();
        for (fd, number) in program.descriptors {
            moved.push((rustix::io::fcntl_dupfd_cloexec(fd, ABOVE)?, *number));
        }
        for (fd, number) in &moved {
            bequeath(fd, *number)?;
        }
        if program.mortal {
            // SAFETY: has no preconditions.
            checked(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) }.into())?;
        }
        Ok(kept)
    };
    match place() {
        Ok(_kept) => execute(program.path, program.arguments, program.environment),
        Err(error) => error,
    }
}

/// Has a program killed when the thread that starts it ends.
pub fn die_with_parent(command: &mut std::process::Command) {
    use std::os::unix::process::CommandExt;
    // SAFETY: in the new process only prctl is called, and no memory is allocated.
    unsafe {
        command.pre_exec(|| {
            checked(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL).into())?;
            Ok(())
        })
    };
}

/// Sends a signal by number, real-time ones included.
///
/// # Errors
/// Those of kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: has no preconditions.
    checked(unsafe { libc::kill(pid, signal) }.into())?;
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    /// Waits for a child; its exit code.
    pub(crate) fn end_of(pid: i32) -> i32 {
        use rustix::process::{Pid, WaitOptions, waitpid};
        let (_, status) = waitpid(Pid::from_raw(pid), WaitOptions::empty()).unwrap().unwrap();
        status.exit_status().unwrap_or(-1)
    }

    #[test]
    fn a_forked_child_does_its_work_and_ends() {
        let parent = std::process::id();
        let child = fork(|| i32::from(std::os::unix::process::parent_id() != parent)).unwrap();
        assert_eq!(end_of(child), 0);
    }

    #[test]
    fn a_cloned_child_is_the_first_of_its_own_processes() {
        let how = NewProcess { namespaces: libc::CLONE_NEWPID as u64, ..NewProcess::default() };
        let child = clone_process(how, || i32::from(std::process::id() != 1)).unwrap();
        assert_eq!(end_of(child), 0);
    }

    #[test]
    fn a_program_finds_descriptors_where_it_was_told() {
        let (mut read, write) = std::io::pipe().unwrap();
        let arguments = [c"sh".into(), c"-c".into(), c"echo $WHAT >&5".into()];
        let program = Program {
            path: c"/bin/sh",
            arguments: &arguments,
            environment: &[c"WHAT=here".into()],
            descriptors: &[(write.as_fd(), 5)],
            mortal: true,
        };
        let child = spawn(&program).unwrap();
        let mut said = [0; 5];
        read.read_exact(&mut said).unwrap();
        assert_eq!((end_of(child), &said), (0, b"here\n"));
        let missing = spawn(&Program { path: c"/nonexistent", ..program }).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
        rustix::process::wait(rustix::process::WaitOptions::empty()).unwrap();
    }
}
