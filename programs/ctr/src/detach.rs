//! Keys that leave a process alone: pressed one after the other, they end us and not what we are attached to.

use std::time::Duration;

/// How long a key that may be the first of them is held back.
pub const PATIENCE: Duration = Duration::from_millis(500);

/// The keys that docker's users know.
pub const DEFAULT: &str = "ctrl-p,ctrl-q";

/// The keys, and how many of them have been pressed.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    keys: Vec<u8>,
    held: usize,
}

impl Keys {
    /// Reads `ctrl-p,ctrl-q` or `a,b`; nothing for none.
    pub fn read(text: &str) -> Result<Self, String> {
        let key = |name: &str| match name.as_bytes() {
            [one] => Ok(*one),
            [b'c', b't', b'r', b'l', b'-', one] if matches!(one.to_ascii_uppercase(), b'@'..=b'_') => {
                Ok(one.to_ascii_uppercase() & 0x1f)
            }
            _ => Err(format!("{name:?} is no key: say ctrl-p, or a letter")),
        };
        let names = text.split(',').filter(|_| !text.is_empty());
        Ok(Self { keys: names.map(key).collect::<Result<_, _>>()?, held: 0 })
    }

    /// Whether keys are held back.
    pub fn is_holding(&self) -> bool {
        self.held > 0
    }

    /// What is held back: it was meant for the process.
    pub fn release(&mut self) -> Vec<u8> {
        let held = std::mem::take(&mut self.held);
        self.keys.get(..held).unwrap_or_default().to_vec()
    }

    /// What of the bytes is for the process; nothing more after all keys were pressed, which the flag says.
    pub fn take(&mut self, bytes: &[u8]) -> (Vec<u8>, bool) {
        let mut out = Vec::with_capacity(bytes.len());
        for byte in bytes {
            if self.keys.get(self.held) != Some(byte) {
                out.append(&mut self.release());
            }
            if self.keys.get(self.held) == Some(byte) {
                self.held += 1;
                if self.held == self.keys.len() {
                    return (out, true);
                }
            } else {
                out.push(*byte);
            }
        }
        (out, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_held_back_and_released() {
        let mut keys = Keys::read(DEFAULT).unwrap();
        assert_eq!(keys.take(b"a\x10"), (b"a".to_vec(), false));
        assert!(keys.is_holding());
        assert_eq!(keys.take(b"\x10b"), (b"\x10\x10b".to_vec(), false));
        assert_eq!(keys.take(b"x\x10\x11y"), (b"x".to_vec(), true));
        let mut keys = Keys::read(DEFAULT).unwrap();
        keys.take(b"\x10");
        assert_eq!(keys.release(), b"\x10");
        let mut none = Keys::read("").unwrap();
        assert_eq!(none.take(b"\x10\x11"), (b"\x10\x11".to_vec(), false));
        assert!(Keys::read("ctrl-").is_err() && Keys::read("a,,b").is_err() && Keys::read("a,b").is_ok());
    }
}
