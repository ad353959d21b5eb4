//! As much of D-Bus as it takes to call systemd's manager: method calls with the few types that its methods have, and
//! their answers. Everything is little-endian and on one connection, one call after the other.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use corten_types::{Error, ErrorClass, Result, ResultExt};

/// systemd's own socket, which is there without a message bus; and the bus.
const PRIVATE: &str = "/run/systemd/private";
const SYSTEM: &str = "/run/dbus/system_bus_socket";
const PATIENCE: Duration = Duration::from_secs(30);
/// Longest message that is read, and longest line while connecting.
const LONGEST: usize = 1 << 20;
const LINE: usize = 512;

const CALL: u8 = 1;
const ANSWER: u8 = 2;
const FAILURE: u8 = 3;

/// A connection.
#[derive(Debug)]
pub(super) struct Bus {
    stream: UnixStream,
    serial: u32,
}

/// A value of a unit's property.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Switch(bool),
    Number(u64),
    Pids(Vec<u32>),
    Bytes(Vec<u8>),
    Pairs(Vec<(String, String)>),
    /// Of another size than [`Value::Number`], by D-Bus' letter for it.
    Integer(char, i64),
    Real(f64),
    /// Of values that all have this signature.
    List(String, Vec<Value>),
    Tuple(Vec<Value>),
}

impl Value {
    /// Its type, as D-Bus writes it.
    pub(super) fn signature(&self) -> String {
        match self {
            Self::Text(_) => "s".to_owned(),
            Self::Switch(_) => "b".to_owned(),
            Self::Number(_) => "t".to_owned(),
            Self::Real(_) => "d".to_owned(),
            Self::Integer(kind, _) => kind.to_string(),
            Self::Pids(_) => "au".to_owned(),
            Self::Bytes(_) => "ay".to_owned(),
            Self::Pairs(_) => "a(ss)".to_owned(),
            Self::List(kind, _) => format!("a{kind}"),
            Self::Tuple(values) => format!("({})", values.iter().map(Self::signature).collect::<String>()),
        }
    }
}

/// An argument of a method.
#[derive(Clone, Debug)]
pub(super) enum Argument<'a> {
    Text(&'a str),
    Switch(bool),
    Properties(&'a [(String, Value)]),
    /// Units that are made with the one that is asked for: none.
    NoUnits,
}

/// What an object is called.
#[derive(Clone, Copy, Debug)]
struct Object {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
}

const MANAGER: Object = Object {
    destination: "org.freedesktop.systemd1",
    path: "/org/freedesktop/systemd1",
    interface: "org.freedesktop.systemd1.Manager",
};
const BUS: Object = Object {
    destination: "org.freedesktop.DBus",
    path: "/org/freedesktop/DBus",
    interface: "org.freedesktop.DBus",
};

impl Bus {
    /// Connects with the system's manager.
    ///
    /// # Errors
    /// When it is not there or refuses us.
    pub(super) fn connect() -> Result<Self> {
        if let Ok(bus) = Self::open(Path::new(PRIVATE)) {
            return Ok(bus);
        }
        let mut bus = Self::open(Path::new(SYSTEM)).context("connect with systemd")?;
        bus.call_object(BUS, "Hello", &[])?;
        Ok(bus)
    }

    /// Connects with what listens on a socket.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut stream = UnixStream::connect(path).with_context(|| path.display().to_string())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let uid: String = rustix::process::geteuid()
            .as_raw()
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        // All at once: what systemd reads together with the last of these lines waits there for more to come.
        stream.write_all(format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").as_bytes())?;
        let line = read_line(&mut stream)?;
        if !line.starts_with("OK ") {
            return Err(Error::new(ErrorClass::PermissionDenied, format!("systemd answers {line:?}")));
        }
        Ok(Self { stream, serial: 0 })
    }

    /// Calls a method of the manager.
    ///
    /// # Errors
    /// NotFound for a unit that there is not; else what it answers.
    pub(super) fn call(&mut self, method: &str, arguments: &[Argument<'_>]) -> Result<()> {
        self.call_object(MANAGER, method, arguments)
    }

    fn call_object(&mut self, object: Object, method: &str, arguments: &[Argument<'_>]) -> Result<()> {
        self.serial += 1;
        self.stream.write_all(&message(object, method, arguments, self.serial))?;
        loop {
            let answer = Answer::read(&mut self.stream)?;
            // Signals come in between.
            if answer.to != Some(self.serial) {
                continue;
            }
            return match answer.kind {
                ANSWER => Ok(()),
                FAILURE => Err(answer.failure(method)),
                _ => continue,
            };
        }
    }
}

fn read_line(stream: &mut UnixStream) -> io::Result<String> {
    let mut line = Vec::new();
    while !line.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        line.extend(byte);
        if line.len() > LINE {
            return Err(io::Error::other("an endless line"));
        }
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}

// === writing ===

/// Bytes with the alignment that D-Bus has.
#[derive(Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).unwrap_or(0));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    fn signature(&mut self, text: &str) {
        self.0.push(u8::try_from(text.len()).unwrap_or(0));
        self.0.extend(text.bytes());
        self.0.push(0);
    }

    /// An array whose elements begin at multiples of `align`; its length does not count what is before the first.
    fn array(&mut self, align: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.0.len();
        self.align(align);
        let begun = self.0.len();
        fill(self);
        let length = u32::try_from(self.0.len() - begun).unwrap_or(0);
        if let Some(place) = self.0.get_mut(at - 4..at) {
            place.copy_from_slice(&length.to_le_bytes());
        }
    }

    fn value(&mut self, value: &Value) {
        match value {
            Value::Text(text) => self.text(text),
            Value::Switch(on) => self.u32(u32::from(*on)),
            Value::Number(number) => self.aligned(&number.to_le_bytes()),
            Value::Real(number) => self.aligned(&number.to_le_bytes()),
            // The parser lets only numbers through that fit.
            Value::Integer(kind, number) => {
                let size = match kind {
                    'y' => 1,
                    'n' | 'q' => 2,
                    'x' => 8,
                    _ => 4,
                };
                self.aligned(number.to_le_bytes().get(..size).unwrap_or_default());
            }
            Value::Pids(pids) => self.array(4, |this| pids.iter().for_each(|pid| this.u32(*pid))),
            Value::Bytes(bytes) => self.array(1, |this| this.0.extend(bytes)),
            Value::Pairs(pairs) => self.array(8, |this| {
                for (one, other) in pairs {
                    this.align(8);
                    this.text(one);
                    this.text(other);
                }
            }),
            Value::List(kind, values) => {
                let align = match kind.as_bytes().first() {
                    Some(b'y') => 1,
                    Some(b'n' | b'q') => 2,
                    Some(b'x' | b't' | b'd' | b'(') => 8,
                    _ => 4,
                };
                self.array(align, |this| values.iter().for_each(|value| this.value(value)));
            }
            Value::Tuple(values) => {
                self.align(8);
                values.iter().for_each(|value| self.value(value));
            }
        }
    }

    /// A number, which begins at a multiple of its size.
    fn aligned(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.0.extend(bytes);
    }

    fn argument(&mut self, argument: &Argument<'_>) {
        match argument {
            Argument::Text(text) => self.text(text),
            Argument::Switch(on) => self.u32(u32::from(*on)),
            Argument::NoUnits => self.array(8, |_| ()),
            Argument::Properties(properties) => self.array(8, |this| {
                for (name, value) in *properties {
                    this.align(8);
                    this.text(name);
                    this.signature(&value.signature());
                    this.value(value);
                }
            }),
        }
    }
}

fn message(object: Object, method: &str, arguments: &[Argument<'_>], serial: u32) -> Vec<u8> {
    let mut body = Writer::default();
    let mut signature = String::new();
    for argument in arguments {
        signature.push_str(match argument {
            Argument::Text(_) => "s",
            Argument::Switch(_) => "b",
            Argument::Properties(_) => "a(sv)",
            Argument::NoUnits => "a(sa(sv))",
        });
        body.argument(argument);
    }
    let mut header = Writer::default();
    // Little-endian, a call, no flags, version 1.
    header.0.extend([b'l', CALL, 0, 1]);
    header.u32(u32::try_from(body.0.len()).unwrap_or(0));
    header.u32(serial);
    header.array(8, |this| {
        let fields = [
            (1, "o", object.path),
            (6, "s", object.destination),
            (2, "s", object.interface),
            (3, "s", method),
        ];
        for (number, kind, text) in fields {
            this.align(8);
            this.0.push(number);
            this.signature(kind);
            this.text(text);
        }
        if !signature.is_empty() {
            this.align(8);
            this.0.push(8);
            this.signature("g");
            this.signature(&signature);
        }
    });
    header.align(8);
    header.0.extend(body.0);
    header.0
}

// === reading ===

/// What came: its kind, the call that it answers, and for failures their name and text.
#[derive(Debug, Default, PartialEq, Eq)]
struct Answer {
    kind: u8,
    to: Option<u32>,
    name: String,
    text: String,
}

impl Answer {
    fn read(stream: &mut impl Read) -> Result<Self> {
        let bad = || Error::internal("systemd sent what is no D-Bus message");
        let mut head = [0; 16];
        stream.read_exact(&mut head).context("systemd's answer")?;
        let [endian, kind, _, _, sizes @ ..] = head;
        let mut numbers = sizes.chunks_exact(4).map(|chunk| u32_of(chunk).unwrap_or(0) as usize);
        let (body, _, fields) = (numbers.next(), numbers.next(), numbers.next());
        let (body, fields) = (body.unwrap_or(0), fields.unwrap_or(0));
        if endian != b'l' || body > LONGEST || fields > LONGEST {
            return Err(bad());
        }
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        stream.read_exact(&mut rest).context("systemd's answer")?;
        let (fields, body) = (rest.get(..fields), rest.get(fields.next_multiple_of(8)..));
        let mut answer = Self { kind, ..Self::default() };
        answer.take_fields(fields.unwrap_or_default()).ok_or_else(bad)?;
        if kind == FAILURE {
            // The first thing in it is a text, if there is anything.
            answer.text = Reader { bytes: body.unwrap_or_default(), at: 0 }.text().unwrap_or_default();
        }
        Ok(answer)
    }

    fn take_fields(&mut self, bytes: &[u8]) -> Option<()> {
        let mut reader = Reader { bytes, at: 0 };
        while reader.at < bytes.len() {
            reader.align(8);
            let number = reader.byte()?;
            let kind = reader.signature()?;
            match (number, kind.as_str()) {
                (5, "u") => self.to = Some(reader.u32()?),
                (4, "s") => self.name = reader.text()?,
                (_, "u") => drop(reader.u32()?),
                (_, "s" | "o") => drop(reader.text()?),
                (_, "g") => drop(reader.signature()?),
                _ => return None,
            }
        }
        Some(())
    }

    fn failure(&self, method: &str) -> Error {
        let class = match self.name.as_str() {
            "org.freedesktop.systemd1.NoSuchUnit" => ErrorClass::NotFound,
            "org.freedesktop.systemd1.UnitExists" => ErrorClass::AlreadyExists,
            _ => ErrorClass::Unknown,
        };
        Error::bare(class, format!("systemd: {method}: {}", self.text))
    }
}

fn u32_of(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Option<&[u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u32(&mut self) -> Option<u32> {
        self.align(4);
        u32_of(self.take(4)?)
    }

    fn text(&mut self) -> Option<String> {
        let length = self.u32()? as usize;
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Some(text)
    }

    fn signature(&mut self) -> Option<String> {
        let length = usize::from(self.byte()?);
        let text = String::from_utf8_lossy(self.take(length)?).into_owned();
        self.byte()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A message of the bus' specification, taken apart: header fields in any order, then the body.
    #[test]
    fn calls_are_written_as_the_bus_reads_them() {
        let properties =
            [("PIDs".to_owned(), Value::Pids(vec![7, 8])), ("Delegate".to_owned(), Value::Switch(true))];
        let arguments = [Argument::Text("a.scope"), Argument::Properties(&properties), Argument::NoUnits];
        let bytes = message(MANAGER, "Call", &arguments, 9);
        let number = |at: usize| u32_of(&bytes[at..at + 4]).unwrap() as usize;
        assert_eq!((&bytes[..4], number(8)), (&[b'l', CALL, 0, 1][..], 9));
        let body = bytes.len() - number(4);
        assert_eq!(body, (16 + number(12)).next_multiple_of(8));
        let body = &bytes[body..];
        // 7 letters and NUL, the array at 12, its first element at 16.
        assert_eq!(&body[..12], b"\x07\0\0\0a.scope\0");
        let array = u32_of(&body[12..16]).unwrap() as usize;
        let expected = b"\x04\0\0\0PIDs\0\x02au\0\0\0\0\x08\0\0\0\x07\0\0\0\x08\0\0\0\0\0\0\0\x08\0\0\0Delegate\0\x01b\0\x01\0\0\0";
        assert_eq!(&body[16..16 + array], expected);
        assert_eq!(&body[16 + array..], [0; 4], "no units");
    }

    #[test]
    fn values_of_all_kinds_are_aligned() {
        let written = |value: &Value| {
            let mut writer = Writer::default();
            writer.signature(&value.signature());
            writer.value(value);
            writer.0
        };
        let tuple = Value::Tuple(vec![Value::Integer('y', 7), Value::Integer('q', 8), Value::Real(0.0)]);
        assert_eq!(written(&Value::Integer('n', -2)), b"\x01n\0\0\xfe\xff");
        let list = Value::List(tuple.signature(), vec![tuple]);
        let expected = b"\x06a(yqd)\0\x10\0\0\0\0\0\0\0\x07\0\x08\0\0\0\0\0\0\0\0\0\0\0\0\0";
        // The signature takes 8 bytes, then the length and 4 up to the first element.
        assert_eq!(written(&list).get(..8), expected.get(..8));
        assert_eq!(written(&list).get(8..), expected.get(8..));
        assert_eq!(written(&Value::Number(1)), b"\x01t\0\0\0\0\0\0\x01\0\0\0\0\0\0\0");
    }

    #[test]
    fn answers_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut zero = [1];
            stream.read_exact(&mut zero).unwrap();
            assert_eq!(zero, [0]);
            let uid = rustix::process::geteuid().as_raw().to_string();
            let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
            assert_eq!(read_line(&mut stream).unwrap(), format!("AUTH EXTERNAL {hex}"));
            stream.write_all(b"OK 0123\r\n").unwrap();
            assert_eq!(read_line(&mut stream).unwrap(), "BEGIN");
            for (kind, name) in [(ANSWER, ""), (FAILURE, "org.freedesktop.systemd1.NoSuchUnit")] {
                let call = Answer::read(&mut stream).unwrap();
                assert_eq!(call.kind, CALL);
                // A signal first, which nobody waits for.
                stream.write_all(&answer(4, None, "", "")).unwrap();
                stream
                    .write_all(&answer(kind, Some(u32::from(kind) - 1), name, "Unit x not loaded."))
                    .unwrap();
            }
            Answer::read(&mut stream).unwrap();
            stream.write_all(&[b'B'; 16]).unwrap();
        });
        let mut bus = Bus::open(&path).unwrap();
        bus.call("StopUnit", &[Argument::Text("x"), Argument::Text("replace")]).unwrap();
        let error = bus.call("ResetFailedUnit", &[Argument::Text("x")]).unwrap_err();
        assert!(
            error.is_not_found() && error.message() == "systemd: ResetFailedUnit: Unit x not loaded.",
            "{error}"
        );
        assert!(bus.call("Reload", &[]).unwrap_err().message().contains("no D-Bus message"));
        server.join().unwrap();
    }

    fn answer(kind: u8, to: Option<u32>, name: &str, text: &str) -> Vec<u8> {
        let mut body = Writer::default();
        body.text(text);
        let mut message = Writer::default();
        message.0.extend([b'l', kind, 0, 1]);
        message.u32(u32::try_from(body.0.len()).unwrap());
        message.u32(1);
        message.array(8, |this| {
            if let Some(to) = to {
                this.0.extend([5]);
                this.signature("u");
                this.u32(to);
            }
            if !name.is_empty() {
                this.align(8);
                this.0.extend([4]);
                this.signature("s");
                this.text(name);
            }
        });
        message.align(8);
        message.0.extend(body.0);
        message.0
    }
}
