//! Image references (spec 03 §1): stub.

/// `host/path[:tag][@digest]`, kept as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Host and path.
    pub locator: String,
    /// What follows: `tag`, `tag@digest` or `@digest`.
    pub object: String,
}
