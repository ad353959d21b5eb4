//! Points in time as the wire and labels carry them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, as a protobuf timestamp.
#[must_use]
pub fn now() -> prost_types::Timestamp {
    from_system(SystemTime::now())
}

/// A protobuf timestamp; times before 1970 are kept.
#[must_use]
pub fn from_system(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

/// The system's time of a protobuf timestamp; what does not fit is 1970.
#[must_use]
pub fn to_system(timestamp: &prost_types::Timestamp) -> SystemTime {
    SystemTime::try_from(*timestamp).unwrap_or(UNIX_EPOCH)
}

/// RFC 3339 in UTC with nanoseconds, as labels carry it.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or_default().to_string()
}

/// Reads RFC 3339 (any offset).
#[must_use]
pub fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    SystemTime::try_from(text.parse::<jiff::Timestamp>().ok()?).ok()
}

/// Nanoseconds within the second, used in generated names.
#[must_use]
pub fn nanos() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).subsec_nanos()
}
