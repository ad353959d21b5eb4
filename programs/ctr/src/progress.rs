//! What a transfer is doing: bars on a terminal, plain lines elsewhere, a JSON object on each line for programs.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, ValueEnum};
use corten_api::transfer_types::Progress;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::json;

use crate::output::{binary_size, is_terminal, say};

/// How often the sum of all is told in lines.
const INTERVAL: Duration = Duration::from_secs(5);
/// Lines of a terminal that does not tell.
const ROWS: usize = 24;
/// How long a rate looks back.
const WINDOW: Duration = Duration::from_secs(10);

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Shown {
    /// Bars on a terminal, lines elsewhere.
    #[default]
    Auto,
    /// A line for each turning point, and the sum of all from time to time.
    Plain,
    /// A JSON object on each line.
    Json,
    /// Nothing.
    None,
}

/// The flag for it.
#[derive(Clone, Copy, Debug, Args)]
pub struct ProgressFlag {
    /// How to show what is going on.
    #[arg(long, value_enum, default_value = "auto", value_name = "HOW")]
    progress: Shown,
}

impl ProgressFlag {
    pub fn shown(self) -> Shown {
        self.progress
    }
}

/// Shows progress until it is finished.
pub struct Display {
    what: String,
    begun: Instant,
    shown: Shown,
    bars: Option<Bars>,
    items: HashMap<String, Item>,
    sum: Sum,
    told: Instant,
    saved: Vec<String>,
}

/// What is on the terminal: the sum of all, and above it as many things as there is room for.
struct Bars {
    all: MultiProgress,
    sum: ProgressBar,
    /// Names of the things that have a bar, the oldest first.
    shown: Vec<String>,
    room: usize,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::new();
        let sum = all.add(ProgressBar::new(0).with_style(style("{prefix:32} {msg}")));
        let size = rustix::termios::tcgetwinsize(std::io::stderr());
        let rows = size.map_or(0, |size| usize::from(size.ws_row));
        // The sum and the cursor have a line each.
        let room = if rows == 0 { ROWS } else { rows }.saturating_sub(2).max(1);
        Self { all, sum, shown: Vec::new(), room }
    }

    /// A bar for one more thing; what is over gives way to it. Nothing if all that is shown still moves.
    fn add(&mut self, name: &str, items: &mut HashMap<String, Item>) -> Option<ProgressBar> {
        if self.shown.len() >= self.room {
            let is_over = |name: &String| items.get(name).is_some_and(|item| is_final(&item.state));
            let over = self.shown.remove(self.shown.iter().position(is_over)?);
            if let Some(bar) = items.get_mut(&over).and_then(|item| item.bar.take()) {
                self.all.remove(&bar);
            }
        }
        self.shown.push(name.to_owned());
        Some(
            self.all.insert_before(
                &self.sum,
                ProgressBar::new(0).with_style(style(ITEM)).with_prefix(short(name)),
            ),
        )
    }
}

#[derive(Default)]
struct Item {
    bar: Option<ProgressBar>,
    /// What was told last.
    event: String,
    /// What a person sees of it.
    state: String,
    /// Whether it is extracted, perhaps while it still comes.
    extracting: bool,
    total: i64,
    progress: i64,
}

impl Item {
    fn turn(&mut self, event: &str) {
        event.clone_into(&mut self.event);
        match event {
            "extracting" => {
                self.extracting = true;
                if self.state == "downloading" {
                    return;
                }
            }
            "extracted" => self.extracting = false,
            _ => {}
        }
        let state = if event == "complete" && self.extracting { "extracting" } else { event };
        state.clone_into(&mut self.state);
    }
}

/// Bytes of all that moves, and how fast they do lately.
#[derive(Default)]
struct Sum {
    done: i64,
    /// Of those, what moved now and was not there before.
    moved: i64,
    total: i64,
    past: Vec<(Instant, i64)>,
}

impl Sum {
    fn look(&mut self, now: Instant) {
        let is_past = |since: &Instant| now.duration_since(*since) > WINDOW;
        if self.past.last().is_none_or(|(since, _)| now.duration_since(*since) > WINDOW / 40) {
            self.past.push((now, self.moved));
        }
        while self.past.get(1).is_some_and(|(since, _)| is_past(since)) {
            self.past.remove(0);
        }
    }

    /// Bytes per second lately.
    fn rate(&self, now: Instant) -> f64 {
        let Some((since, before)) = self.past.first() else { return 0.0 };
        (self.moved - before) as f64 / now.duration_since(*since).as_secs_f64().max(0.1)
    }

    /// `35.0 MiB of 120.3 MiB (29 %), 11.2 MiB/s, 8 s left`.
    fn text(&self, now: Instant) -> String {
        let rate = self.rate(now);
        let percent = self.done * 100 / self.total.max(1);
        let mut text = format!("{} of {} ({percent} %)", binary_size(self.done), binary_size(self.total));
        if rate >= 1.0 {
            let left = ((self.total - self.done).max(0) as f64 / rate).ceil();
            text.push_str(&format!(", {}/s, {left} s left", binary_size(whole(rate))));
        }
        text
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a figure for people")]
fn whole(figure: f64) -> i64 {
    figure as i64
}

impl Display {
    pub fn new(what: &str, shown: Shown) -> Self {
        let bars = (shown == Shown::Auto && is_terminal()).then(Bars::new);
        let now = Instant::now();
        let (items, sum) = (HashMap::new(), Sum::default());
        Self { what: what.to_owned(), begun: now, shown, bars, items, sum, told: now, saved: Vec::new() }
    }

    /// Takes one message in.
    pub fn update(&mut self, message: &Progress) {
        if self.shown == Shown::Json {
            say(format_args!("{}\n", line(message)));
        }
        if message.name.is_empty() {
            return;
        }
        if message.event == "saved"
            && let Some(target) = &message.desc
        {
            self.saved.push(target.digest.clone());
        }
        let now = Instant::now();
        let turned = self.count(message);
        self.sum.look(now);
        match self.shown {
            Shown::Json | Shown::None => {}
            _ if self.bars.is_some() => self.draw(&message.name, now),
            _ => {
                if turned {
                    say(format_args!("{:<40}\t{}\t\n", short(&message.name), message.event));
                }
                if now.duration_since(self.told) >= INTERVAL && self.sum.total > 0 {
                    self.told = now;
                    say(format_args!("{:<40}\t{}\t\n", "total", self.sum.text(now)));
                }
            }
        }
    }

    /// Shows on the terminal how far a thing is.
    fn draw(&mut self, name: &str, now: Instant) {
        let Some(bars) = &mut self.bars else { return };
        let over = self.items.values().filter(|item| is_final(&item.state)).count();
        bars.sum.set_prefix(format!("{over} of {} done", self.items.len()));
        bars.sum.set_message(self.sum.text(now));
        let Some(item) = self.items.get(name).filter(|item| item.state != "waiting") else { return };
        if item.bar.is_none() {
            let bar = bars.add(name, &mut self.items);
            self.items.entry(name.to_owned()).or_default().bar = bar;
        }
        let Some(Item { bar: Some(bar), state, progress, total, .. }) = self.items.get(name) else { return };
        // What is extracted has come.
        let done = if state == "extracting" { total } else { progress };
        bar.set_message(state.clone());
        bar.set_length(u64::try_from(*total).unwrap_or(0));
        bar.set_position(u64::try_from(*done).unwrap_or(0));
    }

    /// Notes how far a thing is; answers whether this is a turning point.
    fn count(&mut self, message: &Progress) -> bool {
        let item = self.items.entry(message.name.clone()).or_default();
        if message.total > item.total {
            self.sum.total += message.total - item.total;
            item.total = message.total;
        }
        let gained = message.progress.min(item.total) - item.progress;
        if gained > 0 {
            item.progress += gained;
            self.sum.done += gained;
            if message.event != "already exists" {
                self.sum.moved += gained;
            }
        }
        let is_new = item.event != message.event;
        let turned =
            is_new && (is_final(&message.event) || item.event.is_empty() || message.event == "extracting");
        item.turn(&message.event);
        turned
    }

    /// Digests of the images that were recorded.
    pub fn saved(&self) -> &[String] {
        &self.saved
    }

    /// The last line: how long, how much, how fast.
    pub fn finish(mut self) {
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let (moved, rate) = (self.sum.moved, whole(self.sum.moved as f64 / seconds));
        self.clear();
        match self.shown {
            Shown::None => {}
            Shown::Json => {
                let last = json!({"event": "done", "name": self.what, "seconds": seconds, "progress": moved});
                say(format_args!("{last}\n"));
            }
            _ => say(format_args!(
                "{}\telapsed: {seconds:.1} s\ttotal: {}\t({}/s)\t\n",
                self.what,
                binary_size(moved),
                binary_size(rate)
            )),
        }
    }
}

impl Display {
    /// Takes the bars from the terminal.
    fn clear(&mut self) {
        let Some(bars) = self.bars.take() else { return };
        for bar in self.items.values().filter_map(|item| item.bar.as_ref()).chain([&bars.sum]) {
            bar.finish_and_clear();
        }
        // Nobody reads an error of a terminal that has gone.
        let _ = bars.all.clear();
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A message for programs.
fn line(message: &Progress) -> serde_json::Value {
    let time = corten_types::timestamp::rfc3339(SystemTime::now());
    let mut line = json!({"time": time, "event": message.event});
    if !message.name.is_empty() {
        line["name"] = json!(message.name);
        line["parents"] = json!(message.parents);
        line["progress"] = json!(message.progress);
        line["total"] = json!(message.total);
    }
    if let Some(target) = &message.desc {
        line["digest"] = json!(target.digest);
        line["mediaType"] = json!(target.media_type);
    }
    line
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

const ITEM: &str = "{prefix:32} {msg:14} |{bar:30.green}| {bytes:>10}/{total_bytes:<10} {bytes_per_sec}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("++-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: &str, progress: i64) -> Progress {
        let (name, event) = ("layer-sha256:0123456789abcdef".into(), event.into());
        Progress { name, event, progress, total: 100, ..Default::default() }
    }

    #[test]
    fn what_was_there_is_done_and_did_not_move() {
        let mut display = Display::new("Pulling", Shown::None);
        display.update(&message("waiting", 0));
        display.update(&message("already exists", 100));
        assert_eq!((display.sum.done, display.sum.moved, display.sum.total), (100, 0, 100));
        let mut display = Display::new("Pulling", Shown::None);
        for (event, progress) in
            [("waiting", 0), ("downloading", 40), ("complete", 100), ("extracting", 0), ("extracted", 100)]
        {
            display.update(&message(event, progress));
        }
        assert_eq!((display.sum.done, display.sum.moved, display.sum.total), (100, 100, 100));
    }

    #[test]
    fn what_is_extracted_while_it_comes_is_shown_as_coming() {
        let mut display = Display::new("Pulling", Shown::None);
        let mut state = |event, progress| {
            display.update(&message(event, progress));
            display.items.values().map(|item| item.state.clone()).collect::<String>()
        };
        assert_eq!(state("downloading", 10), "downloading");
        assert_eq!(state("extracting", 0), "downloading");
        assert_eq!(state("downloading", 50), "downloading");
        assert_eq!(state("complete", 100), "extracting");
        assert_eq!(state("extracted", 100), "extracted");
    }

    #[test]
    fn the_sum_tells_rate_and_time_left() {
        let begun = Instant::now();
        let mut sum = Sum { total: 10 << 20, ..Sum::default() };
        for second in 0..4 {
            let now = begun + Duration::from_secs(second);
            sum.moved = i64::try_from(second).unwrap() << 20;
            sum.done = sum.moved;
            sum.look(now);
        }
        let text = sum.text(begun + Duration::from_secs(3));
        assert_eq!(text, "3.0 MiB of 10.0 MiB (30 %), 1.0 MiB/s, 7 s left");
    }

    #[test]
    fn lines_for_programs_hold_what_is_known() {
        let value = line(&message("downloading", 7));
        assert_eq!(value["event"], "downloading");
        assert_eq!((&value["progress"], &value["total"]), (&json!(7), &json!(100)));
        assert!(line(&Progress { event: "Completed".into(), ..Default::default() }).get("name").is_none());
    }
}
