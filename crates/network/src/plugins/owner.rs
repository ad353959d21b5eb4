//! Whose an address, a link or a port is.

use std::fmt;

/// A container and its interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    /// Id of the container.
    pub id: String,
    /// Name of the interface in it.
    pub ifname: String,
}

impl Owner {
    /// A number that is always the same for an owner, and different for others: 44 bits of it can be told in the name of
    /// a link.
    #[must_use]
    pub fn number(&self) -> u64 {
        number(&[self.id.as_bytes(), b"/", self.ifname.as_bytes()].concat())
    }

    /// As it is written beside a port of a network; short enough for the kernel.
    #[must_use]
    pub fn mark(&self, network: &str) -> String {
        const LONGEST: usize = 240;
        let text = format!("{network}/{self}");
        match text.len() {
            0..=LONGEST => text,
            _ => format!("{network}/{:016x}", self.number()).chars().take(LONGEST).collect(),
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.id, self.ifname)
    }
}

/// FNV-1a: it must stay what it is, since names are made of it.
pub(crate) fn number(data: &[u8]) -> u64 {
    data.iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_is_told_in_short() {
        let owner = Owner { id: "c".repeat(300), ifname: "eth0".into() };
        assert!(owner.mark("net").len() <= 240 && owner.mark("net").starts_with("net/"));
        let short = Owner { id: "ns-c".into(), ifname: "eth0".into() };
        assert_eq!(short.mark("net"), "net/ns-c/eth0");
        assert_eq!(number(b"a"), 0xaf63_dc4c_8601_ec8c);
    }
}
