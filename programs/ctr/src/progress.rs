//! What a transfer is doing: bars on a terminal, lines elsewhere.

use std::collections::HashMap;
use std::io::Write;
use std::time::Instant;

use corten_api::transfer_types::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::output::{binary_size, is_terminal};

/// Shows progress until it is finished.
pub struct Display {
    begun: Instant,
    bars: Option<MultiProgress>,
    items: HashMap<String, Item>,
    sum: i64,
}

struct Item {
    bar: Option<ProgressBar>,
    event: String,
    progress: i64,
}

impl Display {
    pub fn new() -> Self {
        let bars = is_terminal().then(MultiProgress::new);
        Self { begun: Instant::now(), bars, items: HashMap::new(), sum: 0 }
    }

    /// Takes one message in.
    pub fn update(&mut self, message: &Progress) {
        if message.name.is_empty() {
            return;
        }
        let bars = &self.bars;
        let item = self.items.entry(message.name.clone()).or_insert_with(|| Item {
            bar: bars.as_ref().map(|bars| bars.add(ProgressBar::new(0).with_style(style()))),
            event: String::new(),
            progress: 0,
        });
        if message.progress > item.progress {
            self.sum += message.progress - item.progress;
            item.progress = message.progress;
        }
        if let Some(bar) = &item.bar {
            bar.set_length(u64::try_from(message.total).unwrap_or(0));
            bar.set_position(u64::try_from(message.progress).unwrap_or(0));
            bar.set_prefix(short(&message.name));
            bar.set_message(message.event.clone());
            if is_final(&message.event) {
                bar.finish();
            }
        } else if item.event != message.event && (is_final(&message.event) || item.event.is_empty()) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{:<40}\t{}\t", short(&message.name), message.event);
        }
        item.event.clone_from(&message.event);
    }

    /// The last line: how long, how much, how fast.
    pub fn finish(self, what: &str) {
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        #[expect(clippy::cast_possible_truncation, reason = "a rate for people")]
        let rate = (self.sum as f64 / seconds) as i64;
        println!(
            "{what}\telapsed: {seconds:.1} s\ttotal: {}\t({}/s)\t",
            binary_size(self.sum),
            binary_size(rate)
        );
    }
}

fn is_final(event: &str) -> bool {
    matches!(event, "complete" | "already exists" | "extracted" | "saved" | "pushed content")
}

/// `layer-sha256:0123…` as `layer (0123456789ab)`.
fn short(name: &str) -> String {
    match name.split_once("-sha256:") {
        Some((kind, hex)) => format!("{kind} ({})", hex.get(..12).unwrap_or(hex)),
        None => name.to_owned(),
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{prefix:32} {msg:12} |{bar:30.green}| {bytes:>10}/{total_bytes:<10} {bytes_per_sec}",
    )
    .unwrap_or_else(|_| ProgressStyle::default_bar())
    .progress_chars("++-")
}
