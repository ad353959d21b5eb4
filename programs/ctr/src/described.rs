//! Reads messages by their descriptions (the `.proto` files themselves), to show them as JSON under the names of
//! the wire. Fields without a value are left out, as the original leaves them out.

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use serde_json::Value;

use crate::json::Document;

/// Figures of cgroup v1.
pub const CGROUPS_V1: &str = include_str!("../../../api/proto/io/containerd/cgroups/v1.proto");
/// Figures of cgroup v2.
pub const CGROUPS_V2: &str = include_str!("../../../api/proto/io/containerd/cgroups/v2.proto");

struct Field<'a> {
    repeated: bool,
    kind: &'a str,
    name: &'a str,
    number: u32,
}

/// The fields of a message in a description.
fn fields<'a>(description: &'a str, message: &str) -> Vec<Field<'a>> {
    let begin = format!("message {message} {{");
    let lines = description.lines().skip_while(|line| line.trim() != begin).skip(1);
    let field = |line: &'a str| {
        let (declared, number) = line.trim().trim_end_matches(';').split_once(" = ")?;
        let (repeated, declared) = match declared.strip_prefix("repeated ") {
            Some(rest) => (true, rest),
            None => (false, declared),
        };
        let (kind, name) = declared.split_once(' ')?;
        Some(Field { repeated, kind, name, number: number.parse().ok()? })
    };
    lines.take_while(|line| line.trim() != "}").filter_map(field).collect()
}

/// A message as a document; what its description does not know is left out.
pub fn read(description: &str, message: &str, mut data: &[u8]) -> Document {
    let known = fields(description, message);
    let mut found: Vec<(u32, Document)> = Vec::new();
    while let Ok((number, wire)) = decode_key(&mut data) {
        let Some(field) = known.iter().find(|field| field.number == number) else {
            if skip_field(wire, number, &mut data, DecodeContext::default()).is_err() {
                break;
            }
            continue;
        };
        let Some(values) = values(description, field, wire, &mut data) else { break };
        for value in values {
            if !field.repeated {
                found.retain(|(known, _)| *known != number);
            }
            found.push((number, value));
        }
    }
    let mut out = Vec::new();
    for field in &known {
        let of_field =
            found.iter().filter(|(number, _)| *number == field.number).map(|(_, value)| value.clone());
        let mut list: Vec<Document> = of_field.collect();
        match (field.repeated, list.pop()) {
            (_, None) => {}
            (true, Some(last)) => {
                list.push(last);
                out.push((field.name.to_owned(), Document::Array(list)));
            }
            (false, Some(value)) => out.push((field.name.to_owned(), value)),
        }
    }
    Document::Object(out)
}

/// The values behind a key: several where numbers are packed.
fn values(description: &str, field: &Field, wire: WireType, data: &mut &[u8]) -> Option<Vec<Document>> {
    let number = |data: &mut &[u8]| -> Option<Document> {
        let value = decode_varint(data).ok()?;
        Some(Document::Value(match field.kind {
            "bool" => Value::Bool(value != 0),
            "int64" | "int32" => Value::from(value.cast_signed()),
            _ => Value::from(value),
        }))
    };
    match wire {
        WireType::Varint => Some(vec![number(data)?]),
        WireType::SixtyFourBit => {
            let (bytes, rest) = data.split_first_chunk::<8>()?;
            *data = rest;
            Some(vec![Document::Value(Value::from(f64::from_le_bytes(*bytes)))])
        }
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(data).ok()?).ok()?;
            let mut inner = data.get(..length)?;
            *data = data.get(length..)?;
            match field.kind {
                "string" => Some(vec![String::from_utf8_lossy(inner).into_owned().into()]),
                "uint64" | "uint32" | "int64" | "int32" | "bool" => {
                    let mut list = Vec::new();
                    while !inner.is_empty() {
                        list.push(number(&mut inner)?);
                    }
                    Some(list)
                }
                message => Some(vec![read(description, message, inner)]),
            }
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_api::cgroups_v1::{CpuStat, CpuUsage, Metrics, PidsStat};
    use prost::Message;

    #[test]
    fn figures_have_the_names_of_the_wire() {
        let usage = CpuUsage { total: 7, per_cpu: vec![3, 4], ..Default::default() };
        let metrics = Metrics {
            pids: Some(PidsStat { current: 2, limit: 0 }),
            cpu: Some(CpuStat { usage: Some(usage), throttling: Some(Default::default()) }),
            ..Default::default()
        };
        let text = read(CGROUPS_V1, "Metrics", &metrics.encode_to_vec()).text(0);
        assert_eq!(
            text,
            r#"{"pids":{"current":2},"cpu":{"usage":{"total":7,"per_cpu":[3,4]},"throttling":{}}}"#
        );
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_read(data in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            read(CGROUPS_V1, "Metrics", &data);
        }
    }
}
