//! A profile drawn as a flame graph: an SVG that any browser shows, without scripts. Each box is a function on
//! some stack, as wide as its share of the profile; its callers are below it.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::io::Read;

use corten_api::pprof as wire;
use corten_types::{Error, Result};
use prost::Message;

/// Pixels.
const WIDTH: f64 = 1200.0;
const ROW: usize = 17;
const TOP: usize = 30;
/// A box narrower than this is not drawn, nor what is above it.
const NARROWEST: f64 = 0.3;
/// Pixels of a letter, about.
const LETTER: f64 = 6.6;
/// Bytes of a profile at most, unpacked.
const LARGEST: u64 = 256 << 20;

/// A function as it was called on one way.
#[derive(Default)]
struct Frame {
    value: i64,
    callees: BTreeMap<String, Frame>,
}

/// Draws a profile in pprof's format, compressed or not: the last of its values, which for processor time is the
/// time and for the heap what is in use.
///
/// # Errors
/// InvalidArgument for bytes that are no profile. One without samples is an empty picture.
pub fn draw(profile: &[u8]) -> Result<String> {
    let profile = read(profile)?;
    let column = profile.sample_type.len().saturating_sub(1);
    let text = |index: i64| usize::try_from(index).ok().and_then(|index| profile.string_table.get(index));
    let kind = profile.sample_type.last().copied().unwrap_or_default();
    let [what, unit] = [kind.kind, kind.unit].map(|index| text(index).map_or("", String::as_str));
    let functions: HashMap<u64, &str> = profile
        .function
        .iter()
        .map(|function| (function.id, text(function.name).map_or("", String::as_str)))
        .collect();
    let names: HashMap<u64, Vec<String>> =
        profile.location.iter().map(|location| (location.id, named(location, &functions))).collect();
    let mut root = Frame::default();
    for sample in &profile.sample {
        let value = sample.value.get(column).copied().unwrap_or(0).max(0);
        let mut frame = &mut root;
        frame.value = frame.value.saturating_add(value);
        // Innermost first, both of locations and of the functions in one.
        for name in
            sample.location_id.iter().rev().filter_map(|id| names.get(id)).flat_map(|it| it.iter().rev())
        {
            frame = frame.callees.entry(name.clone()).or_default();
            frame.value = frame.value.saturating_add(value);
        }
    }
    Ok(picture(&root, what, unit))
}

fn read(bytes: &[u8]) -> Result<wire::Profile> {
    let wrong = |why: &dyn std::fmt::Display| Error::invalid_argument(format!("this is no profile: {why}"));
    let mut plain = Vec::new();
    let message = if bytes.starts_with(&[0x1f, 0x8b]) {
        let mut unpacked = flate2::read::MultiGzDecoder::new(bytes).take(LARGEST);
        unpacked.read_to_end(&mut plain).map_err(|error| wrong(&error))?;
        plain.as_slice()
    } else {
        bytes
    };
    wire::Profile::decode(message).map_err(|error| wrong(&error))
}

/// The functions at a place, innermost first; its address where none is known.
fn named(location: &wire::Location, functions: &HashMap<u64, &str>) -> Vec<String> {
    let known = location.line.iter().filter_map(|line| functions.get(&line.function_id));
    let names: Vec<String> = known.filter(|name| !name.is_empty()).map(|name| (*name).to_owned()).collect();
    if names.is_empty() { vec![format!("{:#x}", location.address)] } else { names }
}

fn picture(root: &Frame, what: &str, unit: &str) -> String {
    let mut boxes = String::new();
    let total = root.value.max(1);
    let scale = Scale { total, unit, depth: depth(root, WIDTH / total as f64) };
    scale.frame(&mut boxes, "all", root, 0.0, 0);
    let height = TOP + (scale.depth + 1) * ROW + 10;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"monospace\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fffdf7\"/>\n\
         <text x=\"{}\" y=\"20\" text-anchor=\"middle\" font-size=\"14\">{}</text>\n{boxes}</svg>\n",
        WIDTH / 2.0,
        escape(&format!("{what}: {}", amount(root.value, unit))),
    )
}

/// Rows above a frame, of what is wide enough.
fn depth(frame: &Frame, pixels: f64) -> usize {
    let wide = frame.callees.values().filter(|callee| callee.value as f64 * pixels >= NARROWEST);
    wide.map(|callee| 1 + depth(callee, pixels)).max().unwrap_or(0)
}

struct Scale<'a> {
    total: i64,
    unit: &'a str,
    depth: usize,
}

impl Scale<'_> {
    fn frame(&self, out: &mut String, name: &str, frame: &Frame, x: f64, row: usize) {
        let width = WIDTH * frame.value as f64 / self.total as f64;
        if width < NARROWEST {
            return;
        }
        let y = TOP + (self.depth - row) * ROW;
        let share = 100.0 * frame.value as f64 / self.total as f64;
        let title = escape(&format!("{name}: {} ({share:.1}%)", amount(frame.value, self.unit)));
        let _ = write!(
            out,
            "<g><title>{title}</title><rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" \
             fill=\"{}\" rx=\"1\"/>",
            ROW - 1,
            colour(name)
        );
        let fits = (width / LETTER) as usize;
        if fits > 2 {
            let short: String = name.chars().take(fits).collect();
            let _ = write!(out, "<text x=\"{:.1}\" y=\"{}\">{}</text>", x + 2.0, y + 12, escape(&short));
        }
        out.push_str("</g>\n");
        let mut from = x;
        for (name, callee) in &frame.callees {
            self.frame(out, name, callee, from, row + 1);
            from += WIDTH * callee.value as f64 / self.total as f64;
        }
    }
}

/// A warm colour, the same for the same function.
fn colour(name: &str) -> String {
    let hash = name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
    format!("rgb({},{},{})", 215 + hash % 40, 100 + (hash >> 8) % 110, 40 + (hash >> 16) % 40)
}

fn amount(value: i64, unit: &str) -> String {
    match unit {
        "nanoseconds" => format!("{:.2}s", value as f64 / 1e9),
        "bytes" => format!("{:.1} MiB", value as f64 / f64::from(1 << 20)),
        unit => format!("{value} {unit}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(samples: &[(&[u64], i64)]) -> Vec<u8> {
        let strings = ["", "cpu", "nanoseconds", "main", "work<T>", "wait"];
        let function = |id: u64, name: i64| wire::Function { id, name, ..Default::default() };
        let location = |id: u64, function_id: u64| wire::Location {
            id,
            mapping_id: 0,
            address: 0x1000 + id,
            line: (function_id > 0).then_some(wire::Line { function_id, line: 0 }).into_iter().collect(),
        };
        wire::Profile {
            sample_type: vec![wire::ValueType::default(), wire::ValueType { kind: 1, unit: 2 }],
            sample: samples
                .iter()
                .map(|(stack, value)| wire::Sample {
                    location_id: stack.to_vec(),
                    value: vec![1, *value],
                    label: Vec::new(),
                })
                .collect(),
            location: vec![location(1, 1), location(2, 2), location(3, 3), location(4, 0)],
            function: vec![function(1, 3), function(2, 4), function(3, 5)],
            string_table: strings.map(str::to_owned).to_vec(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn boxes_are_as_wide_as_their_share_and_callers_lie_below() {
        let drawn =
            draw(&profile(&[(&[2, 1], 3_000_000_000), (&[3, 1], 500_000_000), (&[4], 500_000_000)])).unwrap();
        for expected in [
            "cpu: 4.00s",
            "<title>all: 4.00s (100.0%)</title><rect x=\"0.0\" y=\"64\" width=\"1200.0\"",
            "<title>main: 3.50s (87.5%)</title><rect x=\"150.0\" y=\"47\" width=\"1050.0\"",
            "<title>work&lt;T&gt;: 3.00s (75.0%)</title>",
            "<title>0x1004: 0.50s (12.5%)</title>",
        ] {
            assert!(drawn.contains(expected), "{expected}\n{drawn}");
        }
    }

    #[test]
    fn a_profile_without_samples_is_an_empty_picture() {
        for samples in [&[][..], &[(&[9][..], -4)]] {
            let drawn = draw(&profile(samples)).unwrap();
            assert!(drawn.contains("cpu: 0.00s") && !drawn.contains("<title>"), "{drawn}");
        }
    }

    #[test]
    fn what_is_no_profile_is_refused() {
        for (bytes, why) in
            [(&b"no profile at all"[..], "this is no profile"), (&[0x1f, 0x8b, 8, 0], "this is no profile")]
        {
            let error = draw(bytes).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
