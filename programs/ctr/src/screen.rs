//! The whole terminal: drawn line by line on its other page, keys as they are pressed.

use std::collections::VecDeque;
use std::io::Write;
use std::time::Duration;

use corten_types::{Error, Result};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::task::JoinHandle;

/// How long one look for keys takes at most: the terminal is given away after it.
const LOOK: Duration = Duration::from_millis(250);

/// A key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    Char(char),
    Enter,
    Escape,
    Up,
    Down,
    PageUp,
    PageDown,
}

/// The terminal while it is ours; as it was before when this is dropped.
pub struct Screen {
    before: Termios,
    /// A look for keys on a thread of its own.
    looking: Option<JoinHandle<std::io::Result<Vec<Key>>>>,
    pressed: VecDeque<Key>,
}

impl Screen {
    pub fn enter() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).map_err(std::io::Error::from)?;
        let screen = Self { before, looking: None, pressed: VecDeque::new() };
        screen.open();
        Ok(screen)
    }

    fn open(&self) {
        let mut raw = self.before.clone();
        raw.make_raw();
        tcsetattr(std::io::stdin(), OptionalActions::Now, &raw).ok();
        write("\u{1b}[?1049h\u{1b}[?25l");
    }

    fn close(&self) {
        write("\u{1b}[?25h\u{1b}[?1049l");
        tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before).ok();
    }

    /// Columns and lines.
    pub fn size(&self) -> (usize, usize) {
        let size = tcgetwinsize(std::io::stdout());
        size.map_or((80, 24), |size| (usize::from(size.ws_col).max(1), usize::from(size.ws_row).max(1)))
    }

    /// Shows these lines and nothing else.
    pub fn draw(&self, lines: &[String]) {
        let mut text = String::from("\u{1b}[H");
        for (at, line) in lines.iter().enumerate() {
            text.push_str(if at > 0 { "\r\n" } else { "" });
            text.push_str(line);
            text.push_str("\u{1b}[K");
        }
        text.push_str("\u{1b}[J");
        write(&text);
    }

    /// The next key.
    ///
    /// # Errors
    /// When the terminal has gone.
    pub async fn key(&mut self) -> Result<Key> {
        loop {
            if let Some(key) = self.pressed.pop_front() {
                return Ok(key);
            }
            let looking = self.looking.get_or_insert_with(|| tokio::task::spawn_blocking(look));
            let found = looking.await;
            self.looking = None;
            self.pressed.extend(found.map_err(|failed| Error::internal(failed.to_string()))??);
        }
    }

    /// Gives the terminal away for as long as something takes.
    pub async fn leave_for<T, F: Future<Output = T>>(&mut self, work: impl FnOnce() -> F) -> T {
        if let Some(looking) = self.looking.take()
            && let Ok(Ok(keys)) = looking.await
        {
            self.pressed.extend(keys);
        }
        self.close();
        let done = work().await;
        self.open();
        done
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.close();
    }
}

fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    // A terminal that has gone ends the wait for keys.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Waits a moment for keys.
fn look() -> std::io::Result<Vec<Key>> {
    let input = std::io::stdin();
    let timeout = LOOK.try_into().ok();
    let ready = retry_on_intr(|| poll(&mut [PollFd::new(&input, PollFlags::IN)], timeout.as_ref()))?;
    if ready == 0 {
        return Ok(Vec::new());
    }
    let mut buffer = [0; 64];
    match rustix::io::read(&input, &mut buffer)? {
        0 => Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the terminal has gone")),
        count => Ok(keys(buffer.get(..count).unwrap_or_default())),
    }
}

/// The keys in what a terminal sends.
fn keys(mut bytes: &[u8]) -> Vec<Key> {
    const SEQUENCES: [(&[u8], Key); 6] = [
        (b"\x1b[A", Key::Up),
        (b"\x1bOA", Key::Up),
        (b"\x1b[B", Key::Down),
        (b"\x1bOB", Key::Down),
        (b"\x1b[5~", Key::PageUp),
        (b"\x1b[6~", Key::PageDown),
    ];
    let mut found = Vec::new();
    while let Some((first, rest)) = bytes.split_first() {
        if let Some((sequence, key)) = SEQUENCES.iter().find(|(sequence, _)| bytes.starts_with(sequence)) {
            found.push(*key);
            bytes = bytes.get(sequence.len()..).unwrap_or_default();
            continue;
        }
        if *first == 0x1b && rest.first() == Some(&b'[') {
            // A key that means nothing here: up to its letter.
            let end = bytes.iter().skip(2).position(|byte| byte.is_ascii_alphabetic() || *byte == b'~');
            bytes = end.and_then(|end| bytes.get(end + 3..)).unwrap_or_default();
            continue;
        }
        found.push(match first {
            b'\r' | b'\n' => Key::Enter,
            0x1b => Key::Escape,
            other => Key::Char(char::from(*other)),
        });
        bytes = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart() {
        let all = keys(b"\x1b[A\x1bOBq\x1b[6~\x1b[15~\r\x1b");
        assert_eq!(all, [Key::Up, Key::Down, Key::Char('q'), Key::PageDown, Key::Enter, Key::Escape]);
        assert_eq!(keys(b"\x1b["), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_keys(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            keys(&bytes);
        }
    }
}
