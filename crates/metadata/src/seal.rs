//! Seals: behind each record lie the moment of its writing and a checksum over it and its key, as fields of
//! the message that readers pass over. They tell what is whole, and what is newer, in a damaged file.

use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970, fixed64, as field 100.
const WRITTEN: [u8; 2] = [0xa1, 0x06];
/// CRC-32 of key, record and moment, fixed32, as field 101.
const CHECKSUM: [u8; 2] = [0xad, 0x06];
const LENGTH: usize = 2 + 8 + 2 + 4;

/// Appends a seal to a record.
pub(crate) fn seal(key: &[u8], mut record: Vec<u8>) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
    record.extend_from_slice(&WRITTEN);
    record.extend_from_slice(&u64::try_from(now).unwrap_or(u64::MAX).to_le_bytes());
    let checksum = checksum(key, &record);
    record.extend_from_slice(&CHECKSUM);
    record.extend_from_slice(&checksum.to_le_bytes());
    record
}

/// When a record was written, in microseconds since 1970; nothing when it is not what was written.
pub(crate) fn written(key: &[u8], record: &[u8]) -> Option<u64> {
    let (sealed, end) = record.split_at_checked(record.len().checked_sub(6)?)?;
    let moment = sealed.get(record.len().checked_sub(LENGTH)?..)?;
    let stored = u32::from_le_bytes(end.strip_prefix(&CHECKSUM)?.try_into().ok()?);
    let moment = u64::from_le_bytes(moment.strip_prefix(&WRITTEN)?.try_into().ok()?);
    (stored == checksum(key, sealed)).then_some(moment)
}

fn checksum(key: &[u8], sealed: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(sealed);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::records::Number;

    #[test]
    fn a_sealed_record_reads_as_before_and_shows_any_change() {
        let number = Number { value: 7 };
        let sealed = seal(b"key", number.encode_to_vec());
        assert_eq!(Number::decode(sealed.as_slice()).unwrap(), number);
        assert!(written(b"key", &sealed).unwrap() > 1_700_000_000_000_000);
        assert_eq!(written(b"kex", &sealed), None);
        for at in 0..sealed.len() {
            let mut other = sealed.clone();
            other[at] ^= 4;
            assert_eq!(written(b"key", &other), None, "{at}");
            assert_eq!(written(b"key", &sealed[..at]), None, "{at}");
        }
    }
}
