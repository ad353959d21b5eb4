//! Filters of requests for records.

use corten_types::{Error, Filter, Result};

/// Parses filters. For most records the original says the class of the error twice (spec 01 §0.5).
///
/// # Errors
/// InvalidArgument for a malformed filter.
pub(crate) fn parse(filters: &[String]) -> Result<Filter> {
    Filter::parse(filters)
        .map_err(|error| Error::bare(error.class(), format!("{error}: {}", error.class().text())))
}
