//! Messages beside what was expected of them, and as text.

use prost_reflect::prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MapKey, ReflectMessage, Value};

const ANY: &str = "google.protobuf.Any";
const TIMESTAMP: &str = "google.protobuf.Timestamp";

/// Whether a text is as expected; `…` stands for any text.
pub fn text_is(expected: &str, actual: &str) -> bool {
    let mut parts = expected.split('…');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = actual.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Whether a message is as expected. With `more` it may have fields that nothing is said of.
pub fn message_is(
    pool: &DescriptorPool,
    expected: &DynamicMessage,
    actual: &DynamicMessage,
    more: bool,
) -> bool {
    let kind = expected.descriptor();
    if kind.full_name() == TIMESTAMP && expected.fields().next().is_none() {
        return true;
    }
    if let (ANY, Some(expected)) = (kind.full_name(), opened(pool, expected, true)) {
        return opened(pool, actual, false).is_some_and(|actual| {
            expected.descriptor() == actual.descriptor() && message_is(pool, &expected, &actual, more)
        });
    }
    kind.fields().all(|field| match (expected.has_field(&field), actual.has_field(&field)) {
        (true, true) => value_is(pool, &expected.get_field(&field), &actual.get_field(&field), more),
        (false, false) => true,
        (false, true) => more,
        (true, false) => false,
    })
}

fn value_is(pool: &DescriptorPool, expected: &Value, actual: &Value, more: bool) -> bool {
    match (expected, actual) {
        (Value::String(expected), Value::String(actual)) => text_is(expected, actual),
        (Value::Bytes(expected), Value::Bytes(actual)) => {
            expected == actual
                || matches!((std::str::from_utf8(expected), std::str::from_utf8(actual)), (Ok(e), Ok(a)) if text_is(e, a))
        }
        (Value::Message(expected), Value::Message(actual)) => message_is(pool, expected, actual, more),
        (Value::List(expected), Value::List(actual)) if more => {
            // In this order, with others between.
            let mut actual = actual.iter();
            expected.iter().all(|expected| actual.any(|actual| value_is(pool, expected, actual, more)))
        }
        (Value::List(expected), Value::List(actual)) => {
            expected.len() == actual.len()
                && expected
                    .iter()
                    .zip(actual)
                    .all(|(expected, actual)| value_is(pool, expected, actual, more))
        }
        (Value::Map(expected), Value::Map(actual)) => {
            (more || expected.len() == actual.len())
                && expected.iter().all(|(key, expected)| {
                    actual.get(key).is_some_and(|actual| value_is(pool, expected, actual, more))
                })
        }
        _ => expected == actual,
    }
}

/// What is in an Any: with `written` as a table writes it (`'=text format'`), else as it is on the wire.
fn opened(pool: &DescriptorPool, any: &DynamicMessage, written: bool) -> Option<DynamicMessage> {
    let (url, value) = (any.get_field_by_name("type_url")?, any.get_field_by_name("value")?);
    let kind = pool.get_message_by_name(url.as_str()?.rsplit('/').next()?)?;
    let value = value.as_bytes()?;
    if written {
        let text = std::str::from_utf8(value.strip_prefix(b"=")?).unwrap();
        Some(DynamicMessage::parse_text_format(kind, text).unwrap_or_else(|error| panic!("{text}: {error}")))
    } else {
        DynamicMessage::decode(kind, value.clone()).ok()
    }
}

/// A message from its text, with what is written in Anys packed.
pub fn request(pool: &DescriptorPool, message: &mut DynamicMessage) {
    if message.descriptor().full_name() == ANY {
        if let Some(inner) = opened(pool, message, true) {
            message.set_field_by_name("value", Value::Bytes(inner.encode_to_vec().into()));
        }
        return;
    }
    let fields: Vec<_> = message.fields().map(|(field, _)| field).collect();
    for field in fields {
        pack(pool, message.get_field_mut(&field));
    }
}

fn pack(pool: &DescriptorPool, value: &mut Value) {
    match value {
        Value::Message(message) => request(pool, message),
        Value::List(list) => list.iter_mut().for_each(|value| pack(pool, value)),
        Value::Map(map) => map.values_mut().for_each(|value| pack(pool, value)),
        _ => {}
    }
}

/// A message as a table writes it; moments are shown as `{}`.
pub fn show(pool: &DescriptorPool, message: &DynamicMessage) -> String {
    let kind = message.descriptor();
    if kind.full_name() == TIMESTAMP {
        return "{}".into();
    }
    if let (ANY, Some(inner)) = (kind.full_name(), opened(pool, message, false)) {
        let url =
            message.get_field_by_name("type_url").map(|url| url.as_str().unwrap_or_default().to_owned());
        let inner = show(pool, &inner);
        let inner = inner.trim_start_matches('{').strip_suffix('}').unwrap_or(&inner).replace('\'', "\\'");
        return format!("{{type_url: {:?} value: '={inner}'}}", url.unwrap_or_default());
    }
    let mut fields = Vec::new();
    for (field, value) in message.fields() {
        let name = field.name();
        let mut add = |value: &Value| {
            let colon = if matches!(value, Value::Message(_)) { "" } else { ":" };
            fields.push(format!("{name}{colon} {}", show_value(pool, &field, value)));
        };
        match value {
            Value::List(list) => list.iter().for_each(add),
            Value::Map(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by_key(|(key, _)| format!("{key:?}"));
                for (key, value) in entries {
                    let key = match key {
                        MapKey::String(key) => format!("{key:?}"),
                        other => format!("{other:?}"),
                    };
                    let colon = if matches!(value, Value::Message(_)) { "" } else { ":" };
                    fields.push(format!(
                        "{name} {{key: {key} value{colon} {}}}",
                        show_value(pool, &field, value)
                    ));
                }
            }
            _ => add(value),
        }
    }
    format!("{{{}}}", fields.join(" "))
}

fn show_value(pool: &DescriptorPool, field: &prost_reflect::FieldDescriptor, value: &Value) -> String {
    match value {
        Value::Message(message) => show(pool, message),
        Value::String(text) => format!("{text:?}"),
        Value::Bytes(bytes) if bytes.len() > 200 => format!("\"… {} bytes\"", bytes.len()),
        Value::Bytes(bytes) => format!("\"{}\"", bytes.escape_ascii()),
        Value::EnumNumber(number) => field
            .kind()
            .as_enum()
            .and_then(|kind| kind.get_value(*number).map(|value| value.name().to_owned()))
            .unwrap_or_else(|| number.to_string()),
        Value::Bool(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        other => format!("{other:?}"),
    }
}
