//! Profiles in the format of pprof: a gzip-compressed protobuf message (profile.proto of github.com/google/pprof).

use std::collections::HashMap;
use std::io::Write;
use std::time::{Duration, SystemTime};

use corten_api::pprof as wire;
use prost::Message;

/// A function in a stack, innermost first where several were inlined into one address.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub address: u64,
    pub lines: Vec<Line>,
}

/// A place in a function.
#[derive(Clone, Debug, Default)]
pub struct Line {
    pub function: String,
    pub file: String,
    pub line: u32,
}

/// A profile in the making.
#[derive(Debug)]
pub struct Profile {
    message: wire::Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    locations: HashMap<u64, u64>,
}

impl Profile {
    /// A profile whose samples have values of these types and units.
    pub fn new(types: &[(&str, &str)]) -> Self {
        let mut profile = Self {
            message: wire::Profile::default(),
            strings: HashMap::new(),
            functions: HashMap::new(),
            locations: HashMap::new(),
        };
        profile.string("");
        for (kind, unit) in types {
            let kind = profile.kind(kind, unit);
            profile.message.sample_type.push(kind);
        }
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        profile.message.time_nanos = nanos(now);
        profile
    }

    /// How far samples lie apart, and of what.
    pub fn period(&mut self, kind: &str, unit: &str, period: i64) {
        self.message.period_type = Some(self.kind(kind, unit));
        self.message.period = period;
    }

    /// How long the samples were taken.
    pub fn lasted(&mut self, duration: Duration) {
        self.message.duration_nanos = nanos(duration);
    }

    /// A stack, innermost first, with a value of each type.
    pub fn sample(&mut self, stack: &[Frame], values: &[i64], labels: &[(&str, &str)]) {
        let location_id = stack.iter().map(|frame| self.location(frame)).collect();
        let label = labels
            .iter()
            .map(|(key, text)| wire::Label { key: self.string(key), str: self.string(text), num: 0 })
            .collect();
        self.message.sample.push(wire::Sample { location_id, value: values.to_vec(), label });
    }

    /// The file.
    ///
    /// # Errors
    /// None in practice: it is written to memory.
    pub fn finish(self) -> std::io::Result<Vec<u8>> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&self.message.encode_to_vec())?;
        gzip.finish()
    }

    fn location(&mut self, frame: &Frame) -> u64 {
        if let Some(id) = self.locations.get(&frame.address) {
            return *id;
        }
        let line = frame
            .lines
            .iter()
            .map(|line| wire::Line { function_id: self.function(line), line: line.line.into() })
            .collect();
        let id = self.message.location.len() as u64 + 1;
        self.message.location.push(wire::Location { id, mapping_id: 0, address: frame.address, line });
        self.locations.insert(frame.address, id);
        id
    }

    fn function(&mut self, line: &Line) -> u64 {
        let (name, filename) = (self.string(&line.function), self.string(&line.file));
        let next = self.message.function.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            self.message.function.push(wire::Function {
                id,
                name,
                system_name: name,
                filename,
                start_line: 0,
            });
        }
        id
    }

    fn kind(&mut self, kind: &str, unit: &str) -> wire::ValueType {
        wire::ValueType { kind: self.string(kind), unit: self.string(unit) }
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(index) = self.strings.get(text) {
            return *index;
        }
        let index = self.message.string_table.len() as i64;
        self.message.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn a_profile_says_each_string_function_and_place_once() {
        let mut profile = Profile::new(&[("samples", "count"), ("cpu", "nanoseconds")]);
        let frame = |address, function: &str| {
            let line = Line { function: function.into(), file: "a.rs".into(), line: 7 };
            Frame { address, lines: vec![line] }
        };
        profile.sample(&[frame(1, "inner"), frame(2, "outer")], &[1, 10], &[("thread", "main")]);
        profile.sample(&[frame(3, "inner"), frame(2, "outer")], &[2, 20], &[]);
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(profile.finish().unwrap().as_slice()).read_to_end(&mut bytes).unwrap();
        let read = wire::Profile::decode(bytes.as_slice()).unwrap();
        assert_eq!((read.sample.len(), read.location.len(), read.function.len()), (2, 3, 2));
        assert_eq!(read.sample[1].location_id, [3, 2]);
        assert_eq!(read.string_table[0], "");
        let text = |index: i64| read.string_table[usize::try_from(index).unwrap()].as_str();
        assert_eq!(text(read.function[0].name), "inner");
        assert_eq!(text(read.sample_type[1].unit), "nanoseconds");
        let unique: std::collections::HashSet<_> = read.string_table.iter().collect();
        assert_eq!(unique.len(), read.string_table.len());
    }
}
