//! Containers as the containers service answers them, put together from stored bytes: what is in a record is
//! neither read nor written again, which is most of what a long list would cost.

use corten_types::{Error, Result};
use prost::bytes::Buf;
use prost::encoding::{
    WireType, decode_key, decode_varint, encode_key, encode_varint, encoded_len_varint, key_len,
};

/// A record's field, and the number that the service gives it (`containerd.services.containers.v1.Container`).
const MOVED: [(u32, u32); 9] = [(1, 2), (2, 3), (5, 5), (6, 6), (7, 7), (8, 8), (9, 9), (10, 10), (11, 11)];
/// The record's fields that are those of one message for the service: name and options of the runtime.
const RUNTIME: [(u32, u32); 2] = [(3, 1), (4, 2)];
const RUNTIME_FIELD: u32 = 4;
/// Number of containers in the service's answer.
const CONTAINERS: u32 = 1;

/// Appends a container to an encoded `ListContainersResponse`.
///
/// # Errors
/// Internal for a record that is no message.
pub(crate) fn append(answer: &mut Vec<u8>, id: &str, record: &[u8]) -> Result<()> {
    let (mut container, mut runtime) = (length(1, id.len()), 0);
    each(record, |number, value| {
        if let Some(new) = find(&RUNTIME, number) {
            runtime += length(new, value.len());
        } else if let Some(new) = find(&MOVED, number) {
            container += length(new, value.len());
        }
    })?;
    container += length(RUNTIME_FIELD, runtime);
    answer.reserve(length(CONTAINERS, container));
    head(answer, CONTAINERS, container);
    field(answer, 1, id.as_bytes());
    let mut told = false;
    each(record, |number, value| {
        let Some(new) = find(&MOVED, number) else { return };
        if new > RUNTIME_FIELD && !told {
            append_runtime(answer, runtime, record);
            told = true;
        }
        field(answer, new, value);
    })?;
    if !told {
        append_runtime(answer, runtime, record);
    }
    Ok(())
}

fn append_runtime(answer: &mut Vec<u8>, length: usize, record: &[u8]) {
    head(answer, RUNTIME_FIELD, length);
    // It was read to its end before.
    let _ = each(record, |number, value| {
        if let Some(new) = find(&RUNTIME, number) {
            field(answer, new, value);
        }
    });
}

fn find(numbers: &[(u32, u32)], number: u32) -> Option<u32> {
    numbers.iter().find(|(old, _)| *old == number).map(|(_, new)| *new)
}

/// Bytes of a field with a value of so many.
fn length(number: u32, value: usize) -> usize {
    key_len(number) + encoded_len_varint(value as u64) + value
}

fn head(out: &mut Vec<u8>, number: u32, length: usize) {
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(length as u64, out);
}

fn field(out: &mut Vec<u8>, number: u32, value: &[u8]) {
    head(out, number, value.len());
    out.extend_from_slice(value);
}

/// Shows the fields of a record, in order.
fn each<'a>(mut record: &'a [u8], mut field: impl FnMut(u32, &'a [u8])) -> Result<()> {
    while record.has_remaining() {
        if let Some((number, value)) = next(&mut record)? {
            field(number, value);
        }
    }
    Ok(())
}

/// The next field; nothing for the fixed ones, which are the record's seal.
fn next<'a>(rest: &mut &'a [u8]) -> Result<Option<(u32, &'a [u8])>> {
    let damaged = || Error::internal("database: a record is damaged");
    let (number, wire) = decode_key(rest).map_err(|_| damaged())?;
    let length = match wire {
        WireType::LengthDelimited => decode_varint(rest).map_err(|_| damaged())?,
        WireType::SixtyFourBit => 8,
        WireType::ThirtyTwoBit => 4,
        _ => return Err(damaged()),
    };
    let length = usize::try_from(length).map_err(|_| damaged())?;
    let (value, behind) = rest.split_at_checked(length).ok_or_else(damaged)?;
    *rest = behind;
    Ok((wire == WireType::LengthDelimited).then_some((number, value)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use corten_api::services::containers as api;
    use corten_types::{Any, Labels};
    use proptest::prelude::*;
    use prost::Message;
    use prost_types::Timestamp;

    use super::*;
    use crate::records;
    use crate::seal::seal;

    fn message() -> impl Strategy<Value = Any> {
        (".{0,8}", proptest::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(type_url, value)| Any { type_url, value })
    }

    fn labels() -> impl Strategy<Value = Labels> {
        proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4)
    }

    proptest! {
        #[test]
        fn a_list_is_what_its_containers_encode_to(
            id in "[a-z]{1,20}",
            (labels, image, runtime, snapshotter) in (labels(), ".{0,8}", ".{0,8}", ".{0,8}"),
            (options, spec) in (proptest::option::of(message()), proptest::option::of(message())),
            extensions in proptest::collection::btree_map(".{0,8}", message(), 0..3),
            (sandbox, seconds) in (".{0,8}", proptest::option::of(any::<i64>())),
        ) {
            let created_at = seconds.map(|seconds| Timestamp { seconds, nanos: 5 });
            let record = records::Container {
                labels: labels.clone(),
                image: image.clone(),
                runtime: runtime.clone(),
                options: options.clone(),
                spec: spec.clone(),
                snapshotter: snapshotter.clone(),
                snapshot_key: id.clone(),
                created_at,
                updated_at: created_at,
                extensions: extensions.clone(),
                sandbox: sandbox.clone(),
            };
            let mut answer = Vec::new();
            for _ in 0..2 {
                append(&mut answer, &id, &seal(b"key", record.encode_to_vec())).unwrap();
            }
            let container = api::Container {
                id: id.clone(),
                labels,
                image,
                runtime: Some(api::container::Runtime { name: runtime, options }),
                spec,
                snapshotter,
                snapshot_key: id,
                created_at,
                updated_at: created_at,
                extensions,
                sandbox,
            };
            let expected = api::ListContainersResponse { containers: vec![container.clone(), container] };
            prop_assert_eq!(answer, expected.encode_to_vec());
        }

        #[test]
        fn bytes_that_are_no_record_are_refused_or_passed_over(record in proptest::collection::vec(any::<u8>(), 0..40)) {
            let mut answer = Vec::new();
            let done = append(&mut answer, "id", &record);
            prop_assert_eq!(done.is_err(), answer.is_empty());
        }
    }

    #[test]
    fn an_empty_record_is_a_container_without_anything() {
        let mut answer = Vec::new();
        append(&mut answer, "id", &[]).unwrap();
        let answer = api::ListContainersResponse::decode(answer.as_slice()).unwrap();
        assert_eq!(answer.containers[0].id, "id");
        assert_eq!(answer.containers[0].extensions, BTreeMap::new());
    }
}
