//! Platforms: what content is made for, and which content suits a machine (spec 03 §3).

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// Operating system and processor, in Go's names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Platform {
    /// Processor.
    #[serde(default)]
    pub architecture: String,
    /// Operating system.
    #[serde(default)]
    pub os: String,
    /// Version, for Windows.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Required features.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// Variant of the processor.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

impl Platform {
    /// The machine that this runs on.
    #[must_use]
    pub fn host() -> Self {
        Self::new("linux", std::env::consts::ARCH, "").normalized()
    }

    fn new(os: &str, architecture: &str, variant: &str) -> Self {
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Self::default()
        }
    }

    /// The same platform under its canonical names.
    #[must_use]
    pub fn normalized(&self) -> Self {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "" => "linux".to_owned(),
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = self.architecture.to_ascii_lowercase();
        let variant = self.variant.to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "x86", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) => ("arm", "v7"),
            ("armel", _) => ("arm", "v6"),
            ("arm", "" | "7") => ("arm", "v7"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "6") => ("arm", "v6"),
            ("arm", "8") => ("arm", "v8"),
            (architecture, variant) => (architecture, variant),
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned(), ..self.clone() }
    }

    /// What may run where this platform is asked for, best first.
    #[must_use]
    pub fn preferences(&self) -> Vec<Self> {
        let own = self.normalized();
        let with = |architecture: &str, variant: &str| Self {
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..own.clone()
        };
        let number = |text: &str| text.trim_start_matches('v').parse::<u32>().ok();
        let mut list = vec![own.clone()];
        match own.architecture.as_str() {
            "amd64" => {
                let level = number(&own.variant).unwrap_or(1);
                list.extend((2..level).rev().map(|level| with("amd64", &format!("v{level}"))));
                if level > 1 {
                    list.push(with("amd64", ""));
                }
                list.push(with("386", ""));
            }
            "arm" => {
                let level = number(&own.variant).unwrap_or(7);
                list.extend((5..level).rev().map(|level| with("arm", &format!("v{level}"))));
            }
            "arm64" => {
                let (major, minor) =
                    own.variant.trim_start_matches('v').split_once('.').unwrap_or((&own.variant, "0"));
                let major = number(major).unwrap_or(8);
                let minor = minor.parse::<u32>().unwrap_or(0);
                let name = |major: u32, minor: u32| match (major, minor) {
                    (8, 0) => String::new(),
                    (major, 0) => format!("v{major}"),
                    (major, minor) => format!("v{major}.{minor}"),
                };
                list.extend((0..minor).rev().map(|minor| with("arm64", &name(major, minor))));
                if major == 9 {
                    list.extend((0..=minor + 5).rev().map(|minor| with("arm64", &name(8, minor))));
                }
                list.extend((5..=8).rev().map(|level| with("arm", &format!("v{level}"))));
            }
            _ => {}
        }
        list
    }

    /// How well `content` suits this platform: 0 is best, nothing is not at all.
    #[must_use]
    pub fn rank(&self, content: &Self) -> Option<usize> {
        let content = content.normalized();
        let features = content.os_features.iter().all(|feature| self.os_features.contains(feature));
        self.preferences()
            .iter()
            .position(|wanted| {
                wanted.os == content.os
                    && wanted.architecture == content.architecture
                    && wanted.variant == content.variant
            })
            .filter(|_| features)
    }

    /// Whether `content` runs where this platform is asked for.
    #[must_use]
    pub fn accepts(&self, content: &Self) -> bool {
        self.rank(content).is_some()
    }

    /// Attestations and the like carry `unknown` and are never shown.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" || self.architecture == "unknown"
    }
}

const SYSTEMS: [&str; 10] =
    ["linux", "windows", "darwin", "macos", "freebsd", "netbsd", "openbsd", "solaris", "android", "plan9"];
const PROCESSORS: [&str; 22] = [
    "386", "i386", "amd64", "x86_64", "x86-64", "arm", "armhf", "armel", "arm64", "aarch64", "loong64",
    "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le", "riscv64", "s390x", "sparc64", "wasm", "x86",
];

impl FromStr for Platform {
    type Err = Error;

    /// Reads `os`, `arch`, `os/arch` or `os/arch/variant`; what is missing is this machine's.
    ///
    /// # Errors
    /// InvalidArgument for wildcards, unknown single words and other forms.
    fn from_str(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::invalid_argument(format!("{text:?}: {why}"));
        if text.contains('*') {
            return Err(bad("wildcards not yet supported"));
        }
        let parts: Vec<&str> = text.split('/').collect();
        let well_formed = |part: &&str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.()+%".contains(&b))
        };
        if !parts.iter().all(well_formed) {
            return Err(bad("not a platform specifier"));
        }
        let host = Self::host();
        let (os, version) = match parts.first().and_then(|os| os.split_once('(')) {
            Some((os, version)) => (os, version.trim_end_matches(')')),
            None => (*parts.first().unwrap_or(&""), ""),
        };
        let mut platform = match parts.as_slice() {
            [one] if SYSTEMS.contains(&os.to_ascii_lowercase().as_str()) => {
                let _ = one;
                Self::new(os, &host.architecture, "")
            }
            [one] if PROCESSORS.contains(&one.to_ascii_lowercase().as_str()) => Self::new(&host.os, one, ""),
            [_, architecture] => Self::new(os, architecture, ""),
            [_, architecture, variant] => Self::new(os, architecture, variant),
            [_] => return Err(bad("unknown operating system or architecture")),
            _ => return Err(bad("cannot parse platform specifier")),
        };
        platform.os_version = version.split('+').next().unwrap_or_default().to_owned();
        let mut platform = platform.normalized();
        if platform.architecture == "arm" && platform.variant == "v7" && parts.len() < 3 {
            platform.variant.clear();
        }
        if platform.architecture == "arm64" && parts.len() == 3 && platform.variant.is_empty() {
            platform.variant = "v8".to_owned();
        }
        Ok(platform)
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn specifiers_are_read_and_shown() {
        for (text, shown) in [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/arm", "linux/arm"),
            ("linux/arm64/v8", "linux/arm64/v8"),
            ("aarch64", "linux/arm64"),
        ] {
            assert_eq!(platform(text).to_string(), shown, "{text}");
        }
        for bad in ["", "*", "linux/*", "a/b/c/d", "neverheard"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
    }

    #[test]
    fn better_matches_rank_first() {
        let host = platform("linux/amd64/v3");
        let ranks: Vec<_> = ["linux/amd64/v3", "linux/amd64/v2", "linux/amd64", "linux/386"]
            .iter()
            .map(|text| host.rank(&platform(text)).unwrap())
            .collect();
        assert!(ranks.is_sorted());
        assert!(!host.accepts(&platform("linux/arm64")));
        assert!(!host.accepts(&platform("windows/amd64")));
        assert!(platform("linux/arm64").accepts(&platform("linux/arm/v6")));
        assert!(!platform("linux/arm/v6").accepts(&platform("linux/arm/v7")));
    }
}
