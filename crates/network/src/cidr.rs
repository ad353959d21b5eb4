//! An address with the length of its network's prefix: `10.88.0.1/16`, `fd00::1/64`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use corten_types::{Error, Result};

/// An address in a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    /// The address, or that of the network.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub length: u8,
}

impl Cidr {
    /// An address and the length of its prefix.
    ///
    /// # Errors
    /// InvalidArgument when the prefix is longer than the address.
    pub fn new(address: IpAddr, length: u8) -> Result<Self> {
        let cidr = Self { address, length };
        if length > cidr.bits() {
            return Err(Error::invalid_argument(format!("invalid CIDR address: {address}/{length}")));
        }
        Ok(cidr)
    }

    /// The network of this address alone.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self { address, length: if address.is_ipv4() { 32 } else { 128 } }
    }

    /// Bits of an address of this family.
    #[must_use]
    pub fn bits(&self) -> u8 {
        if self.address.is_ipv4() { 32 } else { 128 }
    }

    /// The same network by its first address.
    #[must_use]
    pub fn network(&self) -> Self {
        let host = u32::from(self.bits() - self.length);
        let number = number(self.address).checked_shr(host).and_then(|it| it.checked_shl(host));
        Self { address: self.at(number.unwrap_or(0)), length: self.length }
    }

    /// The last address of the network.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        let host = u32::from(self.bits() - self.length);
        let ones = 1_u128.checked_shl(host).map_or(u128::MAX, |bit| bit - 1);
        self.at(number(self.network().address) | ones)
    }

    /// The address of the network that is told its broadcast address; IPv6 and the smallest networks have none.
    #[must_use]
    pub fn broadcast(&self) -> Option<Ipv4Addr> {
        match self.last() {
            IpAddr::V4(last) if self.length < 31 => Some(last),
            _ => None,
        }
    }

    /// Whether an address lies in the network.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4()
            && Self { address, length: self.length }.network().address == self.network().address
    }

    /// Whether two networks have an address in common.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.network().address) || other.contains(self.network().address)
    }

    /// An address of this family by its number.
    fn at(&self, number: u128) -> IpAddr {
        to_address(number, self.address.is_ipv4())
    }
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A number as an address; of IPv4 only its lower bits count.
pub(crate) fn to_address(number: u128, v4: bool) -> IpAddr {
    match v4 {
        #[expect(clippy::cast_possible_truncation, reason = "the lower bits are meant")]
        true => Ipv4Addr::from_bits(number as u32).into(),
        false => Ipv6Addr::from_bits(number).into(),
    }
}

impl FromStr for Cidr {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::invalid_argument(format!("invalid CIDR address: {text}"));
        let (address, length) = text.split_once('/').ok_or_else(bad)?;
        let length = Some(length).filter(|length| length.bytes().all(|byte| byte.is_ascii_digit()));
        let length = length.and_then(|length| length.parse().ok()).ok_or_else(bad)?;
        Self::new(address.parse().map_err(|_| bad())?, length).map_err(|_| bad())
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl serde::Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn networks_have_ends_and_overlap() {
        assert_eq!(cidr("10.88.3.4/16").network().to_string(), "10.88.0.0/16");
        assert_eq!(cidr("10.88.3.4/16").broadcast().unwrap().to_string(), "10.88.255.255");
        assert_eq!(cidr("fd00::5/64").last().to_string(), "fd00::ffff:ffff:ffff:ffff");
        assert_eq!(cidr("0.0.0.0/0").last().to_string(), "255.255.255.255");
        assert_eq!(cidr("::1/0").network().to_string(), "::/0");
        assert!(cidr("10.0.0.0/8").overlaps(&cidr("10.88.0.0/16")));
        assert!(cidr("10.88.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.88.0.0/16").overlaps(&cidr("10.89.0.0/16")));
        assert!(!cidr("0.0.0.0/0").overlaps(&cidr("fd00::/8")));
        for bad in ["", "10.0.0.1", "10.0.0.0/33", "10.0.0.0/+8", "x/8", "fd00::/129", "10.0.0.0/"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_network_contains_its_ends_and_nothing_beside(bits: u32, length in 1_u8..=32) {
            let cidr = Cidr::new(Ipv4Addr::from_bits(bits).into(), length).unwrap();
            let (first, last) = (cidr.network().address, cidr.last());
            proptest::prop_assert!(cidr.contains(first) && cidr.contains(last) && cidr.contains(cidr.address));
            if let Some(above) = number(last).checked_add(1).filter(|above| *above <= u32::MAX.into()) {
                proptest::prop_assert!(!cidr.contains(to_address(above, true)));
            }
        }
    }
}
