//! Expressions of rules. Each works on registers: a value is loaded, compared, looked up, acted upon.

use super::message::Attributes;

/// A register of 4 bytes; the first of a value that is longer.
pub(super) const R0: u32 = 8;

/// What is known of a packet.
#[derive(Clone, Copy)]
pub(super) enum Meta {
    InName = 6,
    OutName = 7,
    Family = 15,
    Protocol = 16,
}

/// Which part of a packet, where in it, and how many bytes.
#[derive(Clone, Copy)]
pub(super) enum Field {
    Source4,
    Source6,
    Destination4,
    Destination6,
    DestinationPort,
}

pub(super) const ACCEPT: u32 = 1;
pub(super) const DROP: u32 = 0;
const JUMP: u32 = -3_i32 as u32;

fn expression(name: &str, data: &Attributes) -> Attributes {
    Attributes::default().text(1, name).nested(2, data)
}

pub(super) fn meta(what: Meta, register: u32) -> Attributes {
    expression("meta", &Attributes::default().number(1, register).number(2, what as u32))
}

pub(super) fn load(field: Field, register: u32) -> Attributes {
    const NETWORK: u32 = 1;
    const TRANSPORT: u32 = 2;
    let (base, offset, length) = match field {
        Field::Source4 => (NETWORK, 12, 4),
        Field::Source6 => (NETWORK, 8, 16),
        Field::Destination4 => (NETWORK, 16, 4),
        Field::Destination6 => (NETWORK, 24, 16),
        Field::DestinationPort => (TRANSPORT, 2, 2),
    };
    let data = Attributes::default().number(1, register).number(2, base).number(3, offset).number(4, length);
    expression("payload", &data)
}

fn value(bytes: &[u8]) -> Attributes {
    Attributes::default().bytes(1, bytes)
}

fn compare(register: u32, operation: u32, bytes: &[u8]) -> Attributes {
    expression(
        "cmp",
        &Attributes::default().number(1, register).number(2, operation).nested(3, &value(bytes)),
    )
}

pub(super) fn equal(register: u32, bytes: &[u8]) -> Attributes {
    compare(register, 0, bytes)
}

pub(super) fn unequal(register: u32, bytes: &[u8]) -> Attributes {
    compare(register, 1, bytes)
}

/// Keeps the bits of a mask.
pub(super) fn mask(register: u32, mask: &[u8]) -> Attributes {
    let length = u32::try_from(mask.len()).unwrap_or(0);
    let zero = vec![0; mask.len()];
    let data = Attributes::default().number(1, register).number(2, register).number(3, length);
    expression("bitwise", &data.nested(4, &value(mask)).nested(5, &value(&zero)))
}

/// The rule goes on when the register's value is in a set.
pub(super) fn is_in(set: &str, register: u32) -> Attributes {
    expression("lookup", &Attributes::default().text(1, set).number(2, register))
}

/// The rule goes on when it is not.
pub(super) fn is_not_in(set: &str, register: u32) -> Attributes {
    expression("lookup", &Attributes::default().text(1, set).number(2, register).number(5, 1))
}

/// The value of a key replaces it, or the rule ends.
pub(super) fn map(map: &str, register: u32) -> Attributes {
    expression("lookup", &Attributes::default().text(1, map).number(2, register).number(3, register))
}

/// Whether the destination is the host's own: its kind of address is loaded.
pub(super) fn kind_of_destination(register: u32) -> Attributes {
    expression("fib", &Attributes::default().number(1, register).number(2, 3).number(3, 2))
}

/// Bits of what was done with the connection.
pub(super) fn connection_status(register: u32) -> Attributes {
    expression("ct", &Attributes::default().number(1, register).number(2, 2))
}

/// Leads to an address and a port from registers on.
pub(super) fn redirect(family: u8, address: u32, port: u32) -> Attributes {
    const DESTINATION: u32 = 1;
    let data = Attributes::default().number(1, DESTINATION).number(2, family.into()).number(3, address);
    expression("nat", &data.number(4, address).number(5, port).number(6, port))
}

/// Leaves under the address of the way out.
pub(super) fn masquerade() -> Attributes {
    expression("masq", &Attributes::default())
}

pub(super) fn verdict(code: u32) -> Attributes {
    let verdict = Attributes::default().number(1, code);
    expression(
        "immediate",
        &Attributes::default().number(1, 0).nested(2, &Attributes::default().nested(2, &verdict)),
    )
}

pub(super) fn jump(chain: &str) -> Attributes {
    let verdict = Attributes::default().number(1, JUMP).text(2, chain);
    expression(
        "immediate",
        &Attributes::default().number(1, 0).nested(2, &Attributes::default().nested(2, &verdict)),
    )
}
