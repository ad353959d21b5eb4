//! The form of topics.

use corten_types::{Error, Result, identifier};

/// Checks a topic: `/component/…`, each an identifier.
pub(crate) fn validate(topic: &str) -> Result<()> {
    let bad = |why: &str| Error::invalid_argument(format!("envelope topic {topic:?}: {why}"));
    if topic.is_empty() {
        return Err(bad("must not be empty"));
    }
    let Some(rest) = topic.strip_prefix('/') else { return Err(bad("must start with '/'")) };
    if rest.is_empty() {
        return Err(bad("must have at least one component"));
    }
    for component in rest.split('/') {
        if let Err(error) = identifier::validate(component) {
            return Err(bad(&format!("failed validation on component {component:?}: {error}")));
        }
    }
    Ok(())
}
