//! Filters of system calls, compiled by libseccomp. Calls that a profile leaves to somebody else to decide about are
//! told on a descriptor, which goes to that one's socket.

use std::io::IoSlice;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use super::config::{Argument, Seccomp};
use super::process::Proc;
use super::state::State;
use super::{Failure, rootfs};

/// The action that leaves the decision to somebody else.
const NOTIFY: &str = "SCMP_ACT_NOTIFY";
/// The call that tells that one where to look: it cannot be waited for itself.
const TELLS: &str = "sendmsg";

/// What can be done with a call.
pub(super) const ACTIONS: [&str; 9] = [
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_LOG",
    NOTIFY,
    "SCMP_ACT_TRACE",
    "SCMP_ACT_TRAP",
];

/// How an argument is compared.
pub(super) const OPERATORS: [&str; 7] = [
    "SCMP_CMP_EQ",
    "SCMP_CMP_GE",
    "SCMP_CMP_GT",
    "SCMP_CMP_LE",
    "SCMP_CMP_LT",
    "SCMP_CMP_MASKED_EQ",
    "SCMP_CMP_NE",
];

/// What can be said about a filter as a whole.
pub(super) const FLAGS: [&str; 4] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
];

/// Who decides about calls, if the profile leaves any to him. Connected before the container's file system takes the
/// place of ours.
pub(super) struct Listener {
    stream: UnixStream,
    metadata: String,
    state: State,
}

impl Listener {
    pub(super) fn connect(wanted: Option<&Seccomp>, state: &State) -> Result<Option<Self>, Failure> {
        let Some(wanted) = wanted.filter(|wanted| wanted.notifies()) else { return Ok(None) };
        if wanted.listener_path.is_empty() {
            return Err(format!("seccomp: {NOTIFY} needs a listenerPath"));
        }
        let tells = |group: &super::config::Syscall| {
            group.action == NOTIFY && group.names.iter().any(|name| name == TELLS)
        };
        if wanted.default_action == NOTIFY || wanted.syscalls.iter().any(tells) {
            return Err(format!(
                "seccomp: {NOTIFY} cannot be used for {TELLS}, by which the listener is told"
            ));
        }
        let stream = UnixStream::connect(&wanted.listener_path).map_err(|error| {
            format!(
                "unable to connect with seccomp fd path {:?}: {}",
                wanted.listener_path,
                rootfs::words(error)
            )
        })?;
        Ok(Some(Self { stream, metadata: wanted.listener_metadata.clone(), state: state.clone() }))
    }

    /// Hands the descriptor over, with the state of the process that the specification wants.
    fn tell(&self, proc: &Proc, filter: &ScmpFilterContext) -> Result<(), Failure> {
        let number = filter.get_notify_fd().map_err(words)?;
        // It is the filter's, who closes it.
        let fd = ManuallyDrop::new(corten_sys::inherited(number).map_err(rootfs::words)?);
        let pid = proc.own_pid()?;
        let state = State { pid, ..self.state.clone() };
        let process = serde_json::json!({
            "ociVersion": state.oci_version, "fds": ["seccompFd"], "pid": pid,
            "metadata": self.metadata, "state": state.to_json("creating"),
        });
        let (text, fds) = (process.to_string(), [fd.as_fd()]);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let sent = sendmsg(&self.stream, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL);
        sent.map(drop)
            .map_err(|error| format!("unable to tell the seccomp listener: {}", rootfs::words(error)))
    }
}

/// Loads a filter for this process and all that come from it.
pub(super) fn load(wanted: &Seccomp, listener: Option<&Listener>, proc: &Proc) -> Result<(), Failure> {
    let default = action(&wanted.default_action, wanted.default_errno_ret)?;
    let mut filter = ScmpFilterContext::new(default).map_err(words)?;
    // Who asks for privileges drops them in another place.
    filter.set_ctl_nnp(false).map_err(words)?;
    for name in &wanted.architectures {
        let name = name.strip_prefix("SCMP_ARCH_").unwrap_or(name);
        let arch =
            architecture(name).ok_or_else(|| format!("string {name} is not a valid arch for seccomp"))?;
        filter.add_arch(arch).map_err(words)?;
    }
    for flag in &wanted.flags {
        match flag.as_str() {
            "SECCOMP_FILTER_FLAG_TSYNC" => {}
            "SECCOMP_FILTER_FLAG_LOG" => drop(filter.set_ctl_log(true).map_err(words)?),
            "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => drop(filter.set_ctl_ssb(true).map_err(words)?),
            "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV" => {}
            other => return Err(format!("seccomp flag {other:?} is not supported")),
        }
    }
    for group in &wanted.syscalls {
        let action = action(&group.action, group.errno_ret)?;
        if action == default {
            continue;
        }
        for name in &group.names {
            // Profiles name calls that other kernels and architectures have.
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            add(&mut filter, action, call, &group.args)
                .map_err(|error| format!("error adding seccomp rule for syscall {name}: {error}"))?;
        }
    }
    filter.load().map_err(|error| format!("error loading seccomp filter into kernel: {error}"))?;
    listener.map_or(Ok(()), |listener| listener.tell(proc, &filter))
}

/// Conditions on one argument are alternatives, on several they hold together.
fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    call: ScmpSyscall,
    arguments: &[Argument],
) -> Result<(), Failure> {
    let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>()?;
    let mut indices: Vec<u32> = arguments.iter().map(|one| one.index).collect();
    indices.sort_unstable();
    indices.dedup();
    if conditions.is_empty() {
        filter.add_rule(action, call).map_err(words)?;
    } else if indices.len() == conditions.len() {
        filter.add_rule_conditional(action, call, &conditions).map_err(words)?;
    } else {
        for one in conditions {
            filter.add_rule_conditional(action, call, &[one]).map_err(words)?;
        }
    }
    Ok(())
}

fn condition(argument: &Argument) -> Result<ScmpArgCompare, Failure> {
    let (operation, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (ScmpCompareOp::NotEqual, argument.value),
        "SCMP_CMP_LT" => (ScmpCompareOp::Less, argument.value),
        "SCMP_CMP_LE" => (ScmpCompareOp::LessOrEqual, argument.value),
        "SCMP_CMP_EQ" => (ScmpCompareOp::Equal, argument.value),
        "SCMP_CMP_GE" => (ScmpCompareOp::GreaterEqual, argument.value),
        "SCMP_CMP_GT" => (ScmpCompareOp::Greater, argument.value),
        "SCMP_CMP_MASKED_EQ" => (ScmpCompareOp::MaskedEqual(argument.value), argument.value_two),
        other => return Err(format!("string {other} is not a valid operator for seccomp")),
    };
    Ok(ScmpArgCompare::new(argument.index, operation, value))
}

fn action(name: &str, number: Option<u32>) -> Result<ScmpAction, Failure> {
    const EPERM: u32 = 1;
    let number = number.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => ScmpAction::KillThread,
        "SCMP_ACT_KILL_PROCESS" => ScmpAction::KillProcess,
        "SCMP_ACT_TRAP" => ScmpAction::Trap,
        "SCMP_ACT_ERRNO" => ScmpAction::Errno(i32::try_from(number).unwrap_or(1)),
        "SCMP_ACT_TRACE" => ScmpAction::Trace(u16::try_from(number).unwrap_or(1)),
        "SCMP_ACT_ALLOW" => ScmpAction::Allow,
        "SCMP_ACT_LOG" => ScmpAction::Log,
        NOTIFY => ScmpAction::Notify,
        other => return Err(format!("string {other} is not a valid action for seccomp")),
    })
}

/// Architectures by name.
pub(super) const ARCHITECTURES: [(&str, ScmpArch); 23] = [
    ("X86", ScmpArch::X86),
    ("X86_64", ScmpArch::X8664),
    ("X32", ScmpArch::X32),
    ("ARM", ScmpArch::Arm),
    ("AARCH64", ScmpArch::Aarch64),
    ("LOONGARCH64", ScmpArch::Loongarch64),
    ("M68K", ScmpArch::M68k),
    ("MIPS", ScmpArch::Mips),
    ("MIPS64", ScmpArch::Mips64),
    ("MIPS64N32", ScmpArch::Mips64N32),
    ("MIPSEL", ScmpArch::Mipsel),
    ("MIPSEL64", ScmpArch::Mipsel64),
    ("MIPSEL64N32", ScmpArch::Mipsel64N32),
    ("PPC", ScmpArch::Ppc),
    ("PPC64", ScmpArch::Ppc64),
    ("PPC64LE", ScmpArch::Ppc64Le),
    ("S390", ScmpArch::S390),
    ("S390X", ScmpArch::S390X),
    ("PARISC", ScmpArch::Parisc),
    ("PARISC64", ScmpArch::Parisc64),
    ("RISCV64", ScmpArch::Riscv64),
    ("SH", ScmpArch::Sh),
    ("SHEB", ScmpArch::Sheb),
];

fn architecture(name: &str) -> Option<ScmpArch> {
    if name == "NATIVE" {
        return Some(ScmpArch::Native);
    }
    ARCHITECTURES.iter().find(|(known, _)| *known == name).map(|(_, arch)| *arch)
}

fn words(error: libseccomp::error::SeccompError) -> Failure {
    format!("seccomp: {error}")
}
