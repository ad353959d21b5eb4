//! What processes may do with devices: lines of v1, a program of v2.

use std::os::fd::AsFd;

use corten_types::{Error, Result, ResultExt};

use crate::Cgroups;
use crate::groups::write;
use crate::resources::DeviceRule;

/// Sets the rules; the last that fits an access counts, and without any nothing is restricted.
///
/// # Errors
/// InvalidArgument for rules that make no sense; the kernel's.
pub(crate) fn restrict(cgroups: &Cgroups, rules: &[DeviceRule]) -> Result<()> {
    if rules.is_empty() {
        return Ok(());
    }
    rules.iter().try_for_each(check)?;
    if let Some(folder) = cgroups.controller("devices") {
        return rules.iter().try_for_each(|rule| {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            write(&folder.join(file), &line(rule))
        });
    }
    if !cgroups.is_unified() {
        return Err(Error::failed_precondition("this host has no cgroup controller devices"));
    }
    let Some(group) = cgroups.open_v2()? else { return Ok(()) };
    let program = corten_sys::load_device_filter(&compile(rules)).context("load the filter of devices")?;
    corten_sys::attach_device_filter(program.as_fd(), group.as_fd()).context("attach the filter of devices")
}

fn check(rule: &DeviceRule) -> Result<()> {
    let kind = matches!(rule.kind.as_str(), "" | "a" | "b" | "c");
    let access = rule.access.chars().all(|one| matches!(one, 'r' | 'w' | 'm'));
    if kind && access {
        return Ok(());
    }
    Err(Error::invalid_argument(format!(
        "invalid device rule: type {:?}, access {:?}",
        rule.kind, rule.access
    )))
}

fn number(number: Option<i64>) -> Option<u32> {
    number.and_then(|number| u32::try_from(number).ok())
}

/// As `devices.allow` and `devices.deny` read it.
fn line(rule: &DeviceRule) -> String {
    let number = |value| number(value).map_or("*".into(), |value| value.to_string());
    let kind = if rule.kind.is_empty() { "a" } else { &rule.kind };
    let access = if rule.access.is_empty() { "rwm" } else { &rule.access };
    format!("{kind} {}:{} {access}", number(rule.major), number(rule.minor))
}

// The machine's instructions: code, registers, offset, value (kernel documentation, bpf/instruction-set).
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xb7;
const COPY: u8 = 0xbc;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const JUMP_UNLESS_SAME: u8 = 0x5d;
const RETURN: u8 = 0x95;

fn instruction(code: u8, to: u8, from: u8, offset: i16, value: i32) -> u64 {
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, from << 4 | to, low, high, a, b, c, d])
}

/// A program that goes through the rules from the last to the first. Registers: 2 type, 3 access, 4 major,
/// 5 minor.
fn compile(rules: &[DeviceRule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, 2, 1, 0, 0),
        instruction(COPY, 3, 2, 0, 0),
        instruction(AND, 2, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, 3, 0, 0, 16),
        instruction(LOAD_WORD, 4, 1, 4, 0),
        instruction(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let block = block(rule);
        let everything = block.len() == 2;
        program.extend(block);
        if everything {
            return program;
        }
    }
    // As v1 begins: everything is allowed.
    program.extend([instruction(MOVE, 0, 0, 0, 1), instruction(RETURN, 0, 0, 0, 0)]);
    program
}

/// One rule: jumps over its end unless all of it fits.
fn block(rule: &DeviceRule) -> Vec<u64> {
    enum Test {
        Type(i32),
        Access(i32),
        Number(u8, u32),
    }
    let mut tests = Vec::new();
    match rule.kind.as_str() {
        "b" => tests.push(Test::Type(1)),
        "c" => tests.push(Test::Type(2)),
        _ => {}
    }
    let bit = |one| match one {
        'm' => 1,
        'r' => 2,
        _ => 4,
    };
    let access = rule.access.chars().map(bit).fold(0, |all, one| all | one);
    if !matches!(access, 0 | 7) {
        tests.push(Test::Access(access));
    }
    let specific = matches!(rule.kind.as_str(), "b" | "c");
    for (register, value) in [(4, rule.major), (5, rule.minor)] {
        if let Some(value) = number(value).filter(|_| specific) {
            tests.push(Test::Number(register, value));
        }
    }
    let length: usize = tests.iter().map(|test| if matches!(test, Test::Access(_)) { 3 } else { 1 }).sum();
    let mut block = Vec::new();
    for test in tests {
        // To behind the two instructions of the verdict.
        let over = |block: &Vec<u64>, own: usize| i16::try_from(length - block.len() - own + 2).unwrap_or(0);
        match test {
            Test::Type(kind) => {
                let jump = over(&block, 1);
                block.push(instruction(JUMP_UNLESS_EQUAL, 2, 0, jump, kind));
            }
            Test::Number(register, value) => {
                let jump = over(&block, 1);
                // Numbers have 20 bits at most.
                let value = i32::try_from(value).unwrap_or(i32::MAX);
                block.push(instruction(JUMP_UNLESS_EQUAL, register, 0, jump, value));
            }
            Test::Access(allowed) => {
                // All that is asked for must be within what the rule names.
                let jump = over(&block, 3);
                block.push(instruction(COPY, 1, 3, 0, 0));
                block.push(instruction(AND, 1, 0, 0, allowed));
                block.push(instruction(JUMP_UNLESS_SAME, 1, 3, jump, 0));
            }
        }
    }
    block.push(instruction(MOVE, 0, 0, 0, i32::from(rule.allow)));
    block.push(instruction(RETURN, 0, 0, 0, 0));
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(allow: bool, kind: &str, major: i64, minor: i64, access: &str) -> DeviceRule {
        let number = |value| Some(value).filter(|value| *value >= 0);
        DeviceRule {
            allow,
            kind: kind.into(),
            major: number(major),
            minor: number(minor),
            access: access.into(),
        }
    }

    /// Runs a program as the kernel would; only what [`compile`] makes.
    fn allows(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [kind | access << 16, major, minor];
        let mut registers = [0_u64; 11];
        let mut at = 0_i64;
        loop {
            let bytes = program[usize::try_from(at).unwrap()].to_le_bytes();
            let (to, from) = (usize::from(bytes[1] & 15), usize::from(bytes[1] >> 4));
            let offset = i16::from_le_bytes([bytes[2], bytes[3]]);
            let value = i32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as u32;
            at += 1;
            let jumps = match bytes[0] {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4].into();
                    false
                }
                MOVE => {
                    registers[to] = value.into();
                    false
                }
                COPY => {
                    registers[to] = registers[from];
                    false
                }
                AND => {
                    registers[to] &= u64::from(value);
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= value;
                    false
                }
                JUMP_UNLESS_EQUAL => registers[to] != u64::from(value),
                JUMP_UNLESS_SAME => registers[to] != registers[from],
                RETURN => return registers[0] == 1,
                other => panic!("code {other:#x}"),
            };
            at += if jumps { i64::from(offset) } else { 0 };
        }
    }

    #[test]
    fn the_last_rule_that_fits_counts() {
        let (block, character, make, read, write) = (1, 2, 1, 2, 4);
        let rules = [
            rule(false, "a", -1, -1, "rwm"),
            rule(true, "c", -1, -1, "m"),
            rule(true, "c", 1, 3, "rw"),
            rule(true, "b", 8, -1, "r"),
            rule(false, "b", 8, 1, ""),
        ];
        let program = compile(&rules);
        assert!(allows(&program, character, read | write, 1, 3));
        assert!(allows(&program, character, make, 77, 77));
        assert!(!allows(&program, character, read, 1, 5));
        assert!(!allows(&program, character, read | make, 1, 3));
        assert!(allows(&program, block, read, 8, 0));
        assert!(!allows(&program, block, read | write, 8, 0));
        assert!(!allows(&program, block, read, 8, 1));
        assert!(
            allows(&compile(&rules[4..]), block, read, 9, 9),
            "without a rule for all, all else is allowed"
        );
        corten_sys::load_device_filter(&program).unwrap();
    }

    #[test]
    fn lines_are_as_v1_reads_them() {
        assert_eq!(line(&rule(true, "c", 5, -1, "")), "c 5:* rwm");
        assert_eq!(line(&rule(false, "", -1, -1, "rwm")), "a *:* rwm");
        assert!(check(&rule(true, "p", 1, 1, "r")).is_err() && check(&rule(true, "c", 1, 1, "x")).is_err());
    }
}
