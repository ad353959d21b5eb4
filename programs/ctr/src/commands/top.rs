//! `top`: a live view of containers, with keys to stop, kill, enter and inspect them.

use std::io::IsTerminal;
use std::time::Duration;

use clap::Args;
use corten_api::services::tasks as api;
use corten_api::task_types::Status;
use corten_types::{Error, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::client::{Client, Daemon, error};
use crate::commands::usage::{Meter, Usage};
use crate::commands::{inspect, stop, tasks};
use crate::output::{bytes_of, painted};
use crate::screen::{Key, Screen};

const COLUMNS: &str = "CONTAINER";
/// Rows that are no containers: the title, the header, and the keys at the bottom.
const FRAME: usize = 4;

/// A live view of containers, with keys to stop, kill, enter and inspect them.
#[derive(Debug, Args)]
pub struct Top {
    /// How often it looks.
    #[arg(long, value_parser = crate::duration, default_value = "1s")]
    interval: Duration,
    #[arg(value_name = "[CONTAINER...]")]
    ids: Vec<String>,
}

/// What rows are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Processor,
    Memory,
    Name,
}

/// Something that can be done with a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Stop,
    Kill,
    Pause,
    Resume,
}

impl Deed {
    fn word(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// What is shown.
#[derive(Debug)]
enum View {
    Containers,
    /// Asks whether to do something with a container.
    Asking(Deed, String),
    /// A text, from a line on.
    Text {
        title: String,
        lines: Vec<String>,
        at: usize,
    },
}

/// What a key asks for that the list itself cannot do.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    Quit,
    Do(Deed, String),
    Enter(String),
    Inspect(String),
}

#[derive(Debug)]
struct State {
    rows: Vec<Usage>,
    selected: String,
    order: Order,
    view: View,
    message: String,
}

impl Top {
    pub async fn run(self, client: &Client) -> Result<()> {
        if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
            return Err(Error::failed_precondition("top needs a terminal; `ctr stats --once` needs none"));
        }
        let daemon = client.connect().await?;
        let (mut meter, mut state) = (Meter::default(), State::new());
        state.take(meter.look(&daemon, &self.ids).await?);
        let mut screen = Screen::enter()?;
        let mut resized = signal(SignalKind::window_change())?;
        let mut ticks = tokio::time::interval(self.interval.max(Duration::from_millis(50)));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (told, mut tidings) = mpsc::channel(8);
        loop {
            screen.draw(&state.lines(screen.size()));
            let key = tokio::select! {
                _ = ticks.tick() => {
                    state.take(meter.look(&daemon, &self.ids).await?);
                    continue;
                }
                _ = resized.recv() => continue,
                Some(message) = tidings.recv() => {
                    state.message = message;
                    continue;
                }
                key = screen.key() => key?,
            };
            match state.press(key, screen.size().1) {
                None => {}
                Some(Wish::Quit) => return Ok(()),
                Some(Wish::Enter(id)) => {
                    state.message = screen.leave_for(|| enter(client, &id)).await?;
                }
                Some(Wish::Inspect(id)) => {
                    let about = inspect::about(&daemon, &id).await.map(|about| about.text(2));
                    state.view = match about {
                        Ok(text) => {
                            View::Text { title: id, lines: text.lines().map(str::to_owned).collect(), at: 0 }
                        }
                        Err(failed) => {
                            state.message = failed.message().to_owned();
                            View::Containers
                        }
                    };
                }
                Some(Wish::Do(deed, id)) => {
                    state.message = format!("{} {id} …", deed.word());
                    let (daemon, told) = (daemon.clone(), told.clone());
                    tokio::spawn(async move {
                        let message = match done(&daemon, deed, &id).await {
                            Ok(()) => format!("{} {id}: done", deed.word()),
                            Err(failed) => format!("{} {id}: {}", deed.word(), failed.message()),
                        };
                        told.send(message).await.ok();
                    });
                }
            }
        }
    }
}

async fn done(daemon: &Daemon, deed: Deed, id: &str) -> Result<()> {
    let container_id = id.to_owned();
    match deed {
        Deed::Stop => stop::stop(daemon, id, "", stop::GRACE).await,
        Deed::Kill => tasks::end(daemon, id, 9, true).await,
        Deed::Pause => {
            daemon.tasks().pause(api::PauseTaskRequest { container_id }).await.map_err(error).map(drop)
        }
        Deed::Resume => {
            daemon.tasks().resume(api::ResumeTaskRequest { container_id }).await.map_err(error).map(drop)
        }
    }
}

/// A shell in a container, on our terminal; answers what to say afterwards.
async fn enter(client: &Client, id: &str) -> Result<String> {
    let exec = format!("top-{}-{}", std::process::id(), corten_types::timestamp::nanos());
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("--address").arg(&client.address).args(["--namespace", &client.namespace]);
    command.args(["tasks", "exec", "--tty", "--exec-id", &exec, id, "sh"]);
    let ended = command.status().await?;
    Ok(match ended.success() {
        true => format!("sh in {id} has ended"),
        false => format!("sh in {id} has ended: {ended}"),
    })
}

impl State {
    fn new() -> Self {
        Self {
            rows: Vec::new(),
            selected: String::new(),
            order: Order::Processor,
            view: View::Containers,
            message: String::new(),
        }
    }

    /// Takes new figures in; what was selected stays selected while it is there.
    fn take(&mut self, rows: Vec<Usage>) {
        let place = self.place();
        self.rows = rows;
        self.sort();
        if !self.rows.iter().any(|row| row.id == self.selected) {
            let next = place.min(self.rows.len().saturating_sub(1));
            self.selected = self.rows.get(next).map(|row| row.id.clone()).unwrap_or_default();
        }
    }

    fn sort(&mut self) {
        let by_name = |a: &Usage, b: &Usage| a.id.cmp(&b.id);
        match self.order {
            Order::Name => self.rows.sort_by(by_name),
            Order::Memory => {
                self.rows.sort_by(|a, b| b.sum.memory.cmp(&a.sum.memory).then_with(|| by_name(a, b)));
            }
            Order::Processor => self
                .rows
                .sort_by(|a, b| b.rates.processor.total_cmp(&a.rates.processor).then_with(|| by_name(a, b))),
        }
    }

    fn place(&self) -> usize {
        self.rows.iter().position(|row| row.id == self.selected).unwrap_or(0)
    }

    fn go(&mut self, by: isize) {
        let last = self.rows.len().saturating_sub(1);
        let to = self.place().saturating_add_signed(by).min(last);
        if let Some(row) = self.rows.get(to) {
            self.selected.clone_from(&row.id);
        }
    }

    /// What a key does; what it asks for.
    fn press(&mut self, key: Key, height: usize) -> Option<Wish> {
        let page = height.saturating_sub(FRAME).max(1);
        let pages = isize::try_from(page).unwrap_or(1);
        if key == Key::Char('\u{3}') {
            return Some(Wish::Quit);
        }
        match &mut self.view {
            View::Asking(deed, id) => {
                let wish = Wish::Do(*deed, std::mem::take(id));
                self.view = View::Containers;
                return Some(wish).filter(|_| key == Key::Char('y'));
            }
            View::Text { lines, at, .. } => {
                let last = lines.len().saturating_sub(page);
                match key {
                    Key::Up => *at = at.saturating_sub(1),
                    Key::Down => *at = (*at + 1).min(last),
                    Key::PageUp => *at = at.saturating_sub(page),
                    Key::PageDown | Key::Char(' ') => *at = (*at + page).min(last),
                    Key::Char('q' | 'i') | Key::Escape | Key::Enter => self.view = View::Containers,
                    _ => {}
                }
                return None;
            }
            View::Containers => {}
        }
        self.message.clear();
        let selected = Some(self.selected.clone()).filter(|id| !id.is_empty());
        match key {
            Key::Char('q') | Key::Escape => return Some(Wish::Quit),
            Key::Up => self.go(-1),
            Key::Down => self.go(1),
            Key::PageUp => self.go(-pages),
            Key::PageDown => self.go(pages),
            Key::Char('c') => self.order = Order::Processor,
            Key::Char('m') => self.order = Order::Memory,
            Key::Char('n') => self.order = Order::Name,
            Key::Char('s') => self.view = View::Asking(Deed::Stop, selected?),
            Key::Char('k') => self.view = View::Asking(Deed::Kill, selected?),
            Key::Char('p') => {
                let row = self.rows.get(self.place())?;
                let deed = if row.status == Status::Paused { Deed::Resume } else { Deed::Pause };
                return Some(Wish::Do(deed, row.id.clone()));
            }
            Key::Char('e') => return Some(Wish::Enter(selected?)),
            Key::Char('i') | Key::Enter => return Some(Wish::Inspect(selected?)),
            _ => {}
        }
        self.sort();
        None
    }

    /// What the screen shows, at most as many lines as there is room for.
    fn lines(&self, (width, height): (usize, usize)) -> Vec<String> {
        let room = height.saturating_sub(FRAME).max(1);
        if let View::Text { title, lines, at } = &self.view {
            let mut out = vec![painted(&cut(title, width), 1), String::new()];
            out.extend(lines.iter().skip(*at).take(room).map(|line| cut(line, width)));
            out.resize(height.saturating_sub(1).max(1), String::new());
            out.push(painted(&cut("q back   arrows and space to go on", width), 2));
            return out;
        }
        // The sum of nothing would be -0.0.
        let sum = self.rows.iter().map(|row| row.rates.processor).fold(0.0, |sum, one| sum + one);
        let memory: u64 = self.rows.iter().map(|row| row.sum.memory).sum();
        let title =
            format!("{} containers   {sum:.1}% processor   {} memory", self.rows.len(), bytes_of(memory));
        // As wide as the widest id, as far as there is room.
        let ids =
            self.rows.iter().map(|row| row.id.chars().count()).chain([COLUMNS.len()]).max().unwrap_or(0);
        let ids = ids.min(width.saturating_sub(FIGURES)).max(COLUMNS.len());
        let header = format!(
            "{COLUMNS:ids$}{}",
            figures(["CPU", "MEMORY", "NET IN/s", "NET OUT/s", "READ/s", "WRITE/s", "PIDS", "STATE"])
        );
        let mut out = vec![cut(&title, width), painted(&cut(&header, width), 1)];
        // The selected one is always in sight.
        let first = (self.place() + 1).saturating_sub(room);
        for row in self.rows.iter().skip(first).take(room) {
            let line = cut(&row_of(row, ids), width);
            out.push(if row.id == self.selected { painted(&format!("{line:width$}"), 7) } else { line });
        }
        out.resize(height.saturating_sub(2).max(2), String::new());
        out.push(cut(&self.message, width));
        let keys = match &self.view {
            View::Asking(deed, id) => format!("{} {id}? y yes, any other key no", deed.word()),
            _ => "q quit  s stop  k kill  p pause  e shell  i inspect  sort by: c cpu  m memory  n name"
                .to_owned(),
        };
        out.push(painted(&cut(&keys, width), 2));
        out
    }
}

/// Room for the figures behind an id.
const FIGURES: usize = 8 + 12 * 5 + 6 + 9;

fn figures(cells: [&str; 8]) -> String {
    let [cpu, memory, received, sent, read, written, pids, state] = cells;
    format!("{cpu:>8}{memory:>12}{received:>12}{sent:>12}{read:>12}{written:>12}{pids:>6}  {state}")
}

fn row_of(row: &Usage, ids: usize) -> String {
    let rates = row.rates;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a figure for people")]
    let rate = |figure: f64| bytes_of(figure as u64);
    let state = row.status.as_str_name().to_lowercase();
    let cells = [
        format!("{:.1}%", rates.processor),
        bytes_of(row.sum.memory),
        rate(rates.received),
        rate(rates.sent),
        rate(rates.read),
        rate(rates.written),
        row.sum.pids.to_string(),
        state,
    ];
    let id = cut(&row.id, ids);
    format!("{id:ids$}{}", figures(cells.each_ref().map(String::as_str)))
}

/// As much of a line as there is room for; nothing in it speaks to the terminal.
fn cut(text: &str, width: usize) -> String {
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(width).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::usage::Rates;

    fn usage(id: &str, processor: f64, memory: u64) -> Usage {
        let sum = crate::commands::metrics::Summary { memory, ..Default::default() };
        let rates = Rates { processor, ..Rates::default() };
        Usage { id: id.into(), pid: 1, status: Status::Running, sum, network: (0, 0), rates }
    }

    fn ids(state: &State) -> Vec<&str> {
        state.rows.iter().map(|row| row.id.as_str()).collect()
    }

    #[test]
    fn keys_choose_sort_ask_and_quit() {
        let mut state = State::new();
        assert_eq!(state.press(Key::Char('s'), 24), None, "there is none to stop");
        state.take(vec![usage("a", 1.0, 30), usage("b", 3.0, 10), usage("c", 2.0, 20)]);
        assert_eq!((ids(&state), state.selected.as_str()), (vec!["b", "c", "a"], "b"));
        state.press(Key::Char('m'), 24);
        assert_eq!((ids(&state), state.selected.as_str()), (vec!["a", "c", "b"], "b"));
        state.press(Key::Up, 24);
        assert_eq!(state.selected, "c");
        assert_eq!(state.press(Key::Char('k'), 24), None);
        assert!(state.lines((80, 24)).last().unwrap().contains("kill c? y yes"));
        assert_eq!(state.press(Key::Char('n'), 24), None, "no is an answer");
        assert_eq!(state.press(Key::Char('s'), 24), None);
        assert_eq!(state.press(Key::Char('y'), 24), Some(Wish::Do(Deed::Stop, "c".into())));
        // What was selected has gone: the next one is.
        state.take(vec![usage("a", 1.0, 30), usage("b", 3.0, 10)]);
        assert_eq!(state.selected, "b");
        assert_eq!(state.press(Key::Char('q'), 24), Some(Wish::Quit));
    }

    #[test]
    fn lines_fit_the_screen_and_show_what_is_selected() {
        let mut state = State::new();
        state.take((0..100).map(|n| usage(&format!("box{n:02}\u{1b}"), 0.0, 1)).collect());
        for _ in 0..99 {
            state.press(Key::Down, 10);
        }
        let lines = state.lines((100, 10));
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().any(|line| line.contains("box99")), "{lines:?}");
        assert!(!lines.iter().any(|line| line.contains("box90")), "{lines:?}");
        assert!(state.lines((3, 2)).iter().all(|line| line.len() < 16), "little room is no trouble");
    }
}
