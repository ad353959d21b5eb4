//! Filters of system calls, compiled by libseccomp.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use super::Failure;
use super::config::{Argument, Seccomp};

/// Loads a filter for this process and all that come from it.
pub(super) fn load(wanted: &Seccomp) -> Result<(), Failure> {
    if !wanted.listener_path.is_empty() {
        return Err("linux.seccomp.listenerPath is not supported by the embedded runtime".into());
    }
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
    filter.load().map_err(|error| format!("error loading seccomp filter into kernel: {error}"))
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
        "SCMP_ACT_NOTIFY" => return Err("SCMP_ACT_NOTIFY is not supported by the embedded runtime".into()),
        other => return Err(format!("string {other} is not a valid action for seccomp")),
    })
}

fn architecture(name: &str) -> Option<ScmpArch> {
    Some(match name {
        "NATIVE" => ScmpArch::Native,
        "X86" => ScmpArch::X86,
        "X86_64" => ScmpArch::X8664,
        "X32" => ScmpArch::X32,
        "ARM" => ScmpArch::Arm,
        "AARCH64" => ScmpArch::Aarch64,
        "LOONGARCH64" => ScmpArch::Loongarch64,
        "M68K" => ScmpArch::M68k,
        "MIPS" => ScmpArch::Mips,
        "MIPS64" => ScmpArch::Mips64,
        "MIPS64N32" => ScmpArch::Mips64N32,
        "MIPSEL" => ScmpArch::Mipsel,
        "MIPSEL64" => ScmpArch::Mipsel64,
        "MIPSEL64N32" => ScmpArch::Mipsel64N32,
        "PPC" => ScmpArch::Ppc,
        "PPC64" => ScmpArch::Ppc64,
        "PPC64LE" => ScmpArch::Ppc64Le,
        "S390" => ScmpArch::S390,
        "S390X" => ScmpArch::S390X,
        "PARISC" => ScmpArch::Parisc,
        "PARISC64" => ScmpArch::Parisc64,
        "RISCV64" => ScmpArch::Riscv64,
        "SH" => ScmpArch::Sh,
        "SHEB" => ScmpArch::Sheb,
        _ => return None,
    })
}

fn words(error: libseccomp::error::SeccompError) -> Failure {
    format!("seccomp: {error}")
}
