//! Versions of the interface.

use std::fmt;
use std::str::FromStr;

use corten_types::{Error, Result};

/// What is spoken here, in order.
pub const SUPPORTED: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32, u32, u32);

impl Version {
    /// The newest that is spoken here.
    pub const NEWEST: Self = Self(1, 1, 0);
    /// Interfaces and addresses are lists.
    pub const LISTS: Self = Self(0, 3, 0);
    /// The first with CHECK, and with the previous result for DEL.
    pub const CHECK: Self = Self(0, 4, 0);
    /// Addresses do not say their family.
    pub const ONE: Self = Self(1, 0, 0);
    /// The first with STATUS and GC.
    pub const STATUS: Self = Self(1, 1, 0);
}

impl FromStr for Version {
    type Err = Error;

    /// Nothing is the first version, which did not say it.
    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self(0, 1, 0));
        }
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse().ok()).flatten()
        };
        let parts: Option<Vec<u32>> = text.split('.').map(number).collect();
        match parts.as_deref() {
            Some([major]) => Ok(Self(*major, 0, 0)),
            Some([major, minor]) => Ok(Self(*major, *minor, 0)),
            Some([major, minor, micro]) => Ok(Self(*major, *minor, *micro)),
            _ => Err(Error::invalid_argument(format!("invalid version number {text:?}"))),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        let read = |text: &str| text.parse::<Version>().unwrap();
        assert!(SUPPORTED.is_sorted_by_key(|text| read(text)));
        assert!(read("0.10.0") > Version::CHECK && read("1.0") == Version::ONE && read("") < Version::LISTS);
        for bad in ["1.x", "1..0", "+1.0.0", "1.0.0.0", "-1"] {
            assert!(bad.parse::<Version>().is_err(), "{bad}");
        }
    }
}
