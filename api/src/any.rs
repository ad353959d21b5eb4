//! Any: bare type URLs are sent, prefixed ones understood (spec 01, trap 19).

use corten_types::{Any, Error, Result};

/// Wraps a message; the type URL is its full name.
pub fn pack<M: prost::Message + prost::Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

/// Unwraps a message of the type that is asked for.
///
/// # Errors
/// NotFound `type with url X` for another type, Unknown, with Go's text, for bytes that are not a message.
pub fn unpack<M: prost::Message + prost::Name + Default>(any: &Any) -> Result<M> {
    if message_name(&any.type_url) != M::full_name() {
        return Err(Error::not_found(format!("type with url {}", any.type_url)));
    }
    M::decode(any.value.as_slice())
        .map_err(|_| Error::unknown("proto: cannot parse invalid wire-format data"))
}

/// Whether a type URL can be one of those that containerd knows: other ones are refused as unknown types.
#[must_use]
pub fn is_registered(type_url: &str) -> bool {
    let packages = ["containerd.", "google.protobuf.", "google.rpc.", "io.containerd.", "runtimeoptions."];
    packages.iter().any(|package| message_name(type_url).starts_with(package))
}

/// The message's full name: what follows the last slash of a type URL.
#[must_use]
pub fn message_name(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or(type_url)
}
