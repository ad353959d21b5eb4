//! A blob that is read while it still arrives: one thread writes the ingest's file, another one reads
//! behind it through a handle of its own.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// How far an ingest is.
#[derive(Debug, Default)]
struct State {
    available: u64,
    end: Option<End>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The writing side. Readers fail if it is dropped before the end.
#[derive(Debug)]
pub(crate) struct Arriving(Arc<Shared>);

/// The reading side.
#[derive(Debug)]
pub(crate) struct Arrival {
    file: Arc<File>,
    position: u64,
    shared: Arc<Shared>,
}

/// An ingest of which `available` bytes are there already, and `file` to read them from.
pub(crate) fn follow(file: File, available: u64) -> (Arriving, Arrival) {
    let state = State { available, end: None };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Arriving(Arc::clone(&shared)), Arrival { file: Arc::new(file), position: 0, shared })
}

impl Arriving {
    /// So many bytes are in the file now.
    pub fn advance(&self, available: u64) {
        self.shared(|state| state.available = available);
    }

    /// Nothing more will come.
    pub fn complete(self) {
        self.shared(|state| state.end = Some(End::Complete));
    }

    fn shared(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.0.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.0.changed.notify_all();
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.shared(|state| {
            state.end.get_or_insert(End::Broken);
        });
    }
}

impl Arrival {
    /// The same bytes, from their beginning.
    pub fn again(&self) -> Self {
        Self { file: Arc::clone(&self.file), position: 0, shared: Arc::clone(&self.shared) }
    }
}

impl Read for Arrival {
    /// Waits for bytes; fails when no more will come although the blob is not complete.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = {
            let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                match state.end {
                    // What came before the end may be wrong as a whole; do not go on with it.
                    Some(End::Broken) => return Err(io::Error::other("the download ended early")),
                    _ if state.available > self.position => break state.available,
                    Some(End::Complete) => return Ok(0),
                    None => {
                        state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                }
            }
        };
        let room = buffer.len().min(usize::try_from(available - self.position).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..room], self.position)?;
        if read == 0 && room > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file() -> (File, File) {
        let file = tempfile::NamedTempFile::new().unwrap();
        (file.reopen().unwrap(), file.reopen().unwrap())
    }

    #[test]
    fn a_reader_gets_what_arrives_in_whatever_pieces() {
        let (mut writer, reader) = file();
        writer.write_all(b"before ").unwrap();
        let (arriving, mut arrival) = follow(reader, 7);
        let thread = std::thread::spawn(move || {
            let mut text = String::new();
            arrival.read_to_string(&mut text).map(|_| text)
        });
        for piece in 0..200u64 {
            writer.write_all(b"0123456789").unwrap();
            arriving.advance(7 + 10 * (piece + 1));
        }
        arriving.complete();
        let text = thread.join().unwrap().unwrap();
        assert_eq!(text, format!("before {}", "0123456789".repeat(200)));
    }

    #[test]
    fn a_reader_fails_when_the_writer_gives_up() {
        let (mut writer, reader) = file();
        writer.write_all(b"half").unwrap();
        let (arriving, mut arrival) = follow(reader, 4);
        let mut buffer = [0; 4];
        arrival.read_exact(&mut buffer).unwrap();
        let thread = std::thread::spawn(move || arrival.read(&mut [0; 4]).map_err(|error| error.to_string()));
        drop(arriving);
        assert_eq!(thread.join().unwrap(), Err("the download ended early".to_owned()));
    }

    #[test]
    fn bytes_that_are_not_written_are_not_read() {
        let (mut writer, reader) = file();
        writer.write_all(b"shown hidden").unwrap();
        let (arriving, mut arrival) = follow(reader, 5);
        let mut buffer = [0; 12];
        assert_eq!(arrival.read(&mut buffer).unwrap(), 5);
        arriving.advance(100);
        assert_eq!(arrival.read(&mut buffer).unwrap(), 7);
        assert!(arrival.read(&mut buffer).is_err(), "a file shorter than promised");
    }
}
