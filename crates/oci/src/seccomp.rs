//! The seccomp profile that containers get by default (spec 04 §6.7): what a container needs is allowed, more with
//! the capabilities that imply it.

use serde_json::{Value, json};

const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown \
    chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime \
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old \
    epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod \
    fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock \
    fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate \
    ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat \
    getcpu getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 \
    getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid getpriority \
    getrandom getresgid getresgid32 getresuid getresuid32 getrlimit get_robust_list getrusage \
    getsid getsockname getsockopt get_thread_area gettid gettimeofday getuid getuid32 getxattr \
    getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel ioctl \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 ioprio_get ioprio_set io_setup \
    io_submit ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown \
    lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek \
    lremovexattr lseek lsetxattr lsm_get_self_attr lsm_list_modules lsm_set_self_attr lstat \
    lstat64 madvise membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock \
    mlock2 mlockall map_shadow_stack mmap mmap2 mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal \
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep \
    newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 \
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 \
    prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead \
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages \
    removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction \
    rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait \
    rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_getaffinity sched_getattr sched_getparam \
    sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler \
    sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile \
    sendfile64 sendmmsg sendmsg sendto setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 \
    setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 \
    setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid setsockopt \
    set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget \
    shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice \
    stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs \
    sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime \
    timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 \
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname \
    unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid \
    waitpid write writev";

/// What a capability allows beside.
const BY_CAPABILITY: [(&str, &str); 13] = [
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr \
         move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount \
         umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
];

/// Flags of clone(2) that make namespaces: mount, cgroup, uts, ipc, user, pid, network.
const NEW_NAMESPACES: u64 =
    0x0002_0000 | 0x0200_0000 | 0x0400_0000 | 0x0800_0000 | 0x1000_0000 | 0x2000_0000 | 0x4000_0000;

/// The profile for a process with these capabilities in its bounding set.
#[must_use]
pub fn default_profile(capabilities: &[String]) -> Value {
    let has = |name: &str| capabilities.iter().any(|known| known == name);
    let mut rules = vec![allow(ALLOWED)];
    for (value, op) in [(38, "SCMP_CMP_LT"), (39, "SCMP_CMP_EQ"), (40, "SCMP_CMP_GT")] {
        rules.push(allow_if("socket", json!([{"index": 0, "value": value, "op": op}])));
    }
    for value in [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff_u64] {
        rules.push(allow_if("personality", json!([{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}])));
    }
    if kernel_is_new() {
        rules.push(allow("process_vm_readv process_vm_writev ptrace"));
    }
    let (architectures, own) = architecture();
    rules.extend(own.iter().map(|names| allow(names)));
    for capability in capabilities {
        if let Some((_, names)) = BY_CAPABILITY.iter().find(|(known, _)| known == capability) {
            rules.push(allow(names));
        }
        if capability == "CAP_PERFMON" {
            rules.push(allow("perf_event_open"));
        }
    }
    if !has("CAP_SYS_ADMIN") {
        let argument = u64::from(std::env::consts::ARCH == "s390x");
        let mask = json!([{"index": argument, "value": NEW_NAMESPACES, "op": "SCMP_CMP_MASKED_EQ"}]);
        rules.push(allow_if("clone", mask));
        // Programs fall back to clone(2), whose flags can be looked at.
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({"defaultAction": "SCMP_ACT_ERRNO", "architectures": architectures, "syscalls": rules})
}

const ENOSYS: u32 = 38;

fn allow(names: &str) -> Value {
    json!({"names": names.split_whitespace().collect::<Vec<_>>(), "action": "SCMP_ACT_ALLOW"})
}

fn allow_if(name: &str, args: Value) -> Value {
    json!({"names": [name], "action": "SCMP_ACT_ALLOW", "args": args})
}

/// Architectures of this machine, and what only they have.
fn architecture() -> (&'static [&'static str], &'static [&'static str]) {
    match std::env::consts::ARCH {
        "x86_64" => (&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], &["arch_prctl modify_ldt"]),
        "aarch64" => (
            &["SCMP_ARCH_ARM", "SCMP_ARCH_AARCH64"],
            &["arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"],
        ),
        "s390x" => (
            &["SCMP_ARCH_S390", "SCMP_ARCH_S390X"],
            &["s390_pci_mmio_read s390_pci_mmio_write s390_runtime_instr"],
        ),
        "riscv64" => (&["SCMP_ARCH_RISCV64"], &["riscv_flush_icache riscv_hwprobe"]),
        "powerpc64" => (&[], &["sync_file_range2 swapcontext"]),
        "loongarch64" => (&["SCMP_ARCH_LOONGARCH64"], &[]),
        _ => (&[], &[]),
    }
}

/// From 4.8 on, tracing cannot be used to get around a profile.
fn kernel_is_new() -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (4, 8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_open_what_they_imply() {
        let names = |profile: &Value| -> Vec<String> {
            let rules = profile["syscalls"].as_array().unwrap().clone();
            let allowed = rules.into_iter().filter(|rule| rule["action"] == "SCMP_ACT_ALLOW");
            allowed
                .flat_map(|rule| serde_json::from_value::<Vec<String>>(rule["names"].clone()).unwrap())
                .collect()
        };
        let plain = names(&default_profile(&[]));
        assert!(plain.contains(&"read".to_owned()) && !plain.contains(&"mount".to_owned()));
        let admin = names(&default_profile(&["CAP_SYS_ADMIN".to_owned()]));
        assert!(admin.contains(&"mount".to_owned()));
    }
}
