//! The server's log: lines on standard error, which is the bundle's `log` FIFO.

use std::io::Write;

/// Opens the FIFO and makes it standard error; without one there is no log.
pub(crate) fn open() {
    use rustix::fs::{Mode, OFlags};
    // Writing must not wait for the daemon: what does not fit is lost, a log is not worth a hang.
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if let Ok(fifo) = rustix::fs::open("log", flags, Mode::empty()) {
        rustix::stdio::dup2_stderr(&fifo).ok();
    }
}

/// Writes a line in the daemon's own form.
pub(crate) fn line(level: &str, text: &str) {
    let time = corten_types::timestamp::rfc3339(std::time::SystemTime::now());
    let text = text.replace('"', "'");
    let _ = writeln!(
        std::io::stderr(),
        "time=\"{time}\" level={level} msg=\"{text}\" runtime=io.containerd.runc.v2"
    );
}

macro_rules! warning {
    ($($arg:tt)*) => { $crate::log::line("warning", &format!($($arg)*)) };
}
pub(crate) use warning;
