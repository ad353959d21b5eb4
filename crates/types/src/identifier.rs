//! Identifiers of containers, tasks, execs, sandboxes and namespaces (spec 01 §0.2).

use std::fmt;

use crate::error::{Error, Result};

const MAX_LENGTH: usize = 76;
const PATTERN: &str = "^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$";

/// Checks an identifier: runs of letters and digits joined by single `.`, `_` or `-`, 1 to 76 bytes.
/// A valid identifier is safe as a path component.
///
/// # Errors
/// InvalidArgument, in the words of the original.
pub fn validate(identifier: &str) -> Result<()> {
    if identifier.is_empty() {
        return Err(Error::invalid_argument("identifier must not be empty"));
    }
    if identifier.len() > MAX_LENGTH {
        return Err(Error::invalid_argument(format!(
            "identifier {identifier:?} greater than maximum length ({MAX_LENGTH} characters)"
        )));
    }
    let well_formed = identifier
        .split(['.', '_', '-'])
        .all(|run| !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    if !well_formed {
        return Err(Error::invalid_argument(format!("identifier {identifier:?} must match {PATTERN}")));
    }
    Ok(())
}

/// The name of a namespace, checked.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Namespace(String);

impl Namespace {
    /// # Errors
    /// InvalidArgument as [`validate`] has it.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        validate(&name)?;
        Ok(Self(name))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_follow_the_rule() {
        for good in ["a", "k8s.io", "a-b_c.d", "0"] {
            assert!(validate(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "-a", "a-", "a..b", "é", &"a".repeat(77)] {
            assert!(validate(bad).is_err(), "{bad}");
        }
        assert_eq!(
            validate("a b").unwrap_err().to_string(),
            "identifier \"a b\" must match ^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$: invalid argument"
        );
    }
}
