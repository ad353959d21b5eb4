//! Filter language (spec 01 §0.5): stub.

use crate::error::Result;

/// A parsed filter.
#[derive(Clone, Debug, Default)]
pub struct Filter;

/// What a filter is evaluated against.
pub trait Fields {
    /// Value of the field at `path`, or nothing when the field is absent.
    fn field(&self, path: &[&str]) -> Option<String>;
}

impl Filter {
    /// Parses the entries of a `filters` request field: entries are alternatives.
    ///
    /// # Errors
    /// InvalidArgument `filters: parse error: …`.
    pub fn parse<S: AsRef<str>>(_entries: &[S]) -> Result<Self> {
        Ok(Self)
    }

    /// Whether the object passes.
    pub fn matches(&self, _object: &dyn Fields) -> bool {
        true
    }
}
