//! Labels: what clients and the daemon write beside an object (spec 01 §0.3).

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Label keys and values, in byte order of the keys.
pub type Labels = BTreeMap<String, String>;

const MAX_SIZE: usize = 4096;
const SHOWN_KEY: usize = 64;

/// Checks the size of every label.
///
/// # Errors
/// InvalidArgument for a label whose key and value together exceed 4096 bytes.
pub fn validate(labels: &Labels) -> Result<()> {
    for (key, value) in labels {
        let size = key.len() + value.len();
        if size > MAX_SIZE {
            let end =
                (0..=SHOWN_KEY.min(key.len())).rev().find(|&end| key.is_char_boundary(end)).unwrap_or(0);
            return Err(Error::invalid_argument(format!(
                "label key and value length ({size} bytes) greater than maximum size ({MAX_SIZE} bytes), key: {}",
                &key[..end]
            )));
        }
    }
    Ok(())
}

/// Drops labels with an empty value: that is how clients delete one.
pub fn drop_empty(labels: &mut Labels) {
    labels.retain(|_, value| !value.is_empty());
}
