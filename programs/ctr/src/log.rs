//! Lines beside the errors that end a command, in the form of the original: logrus' where nobody looks.

use std::io::IsTerminal;

fn quote(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte);
    if !text.is_empty() && text.bytes().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

fn line(level: &str, message: &str, error: Option<&str>) {
    if std::io::stderr().is_terminal() {
        let detail = error.map(|error| format!(": {error}")).unwrap_or_default();
        eprintln!("ctr: {level}: {message}{detail}");
        return;
    }
    let now = corten_types::timestamp::rfc3339(std::time::SystemTime::now());
    let now = now.split('.').next().unwrap_or_default().trim_end_matches('Z');
    let detail = error.map(|error| format!(" error={}", quote(error))).unwrap_or_default();
    eprintln!("time=\"{now}Z\" level={level} msg={}{detail}", quote(message));
}

/// Something failed, and the rest goes on.
pub fn error(message: &str, error: &corten_types::Error) {
    line("error", message, Some(error.message()));
}

/// Something that one should know.
pub fn warning(message: &str) {
    line("warning", message, None);
}

/// As [`warning`], with what has caused it.
pub fn warning_of(message: &str, cause: &str) {
    line("warning", message, Some(cause));
}

/// What only those who look closely want to know: the original tells it in some places.
pub fn debug(message: &str, fields: &[(&str, &str)]) {
    let now = corten_types::timestamp::rfc3339(std::time::SystemTime::now());
    let now = now.split('.').next().unwrap_or_default().trim_end_matches('Z');
    let fields: String = fields.iter().map(|(name, value)| format!(" {name}={}", quote(value))).collect();
    eprintln!("time=\"{now}Z\" level=debug msg={}{fields}", quote(message));
}

/// Something that was done.
pub fn info(message: &str) {
    line("info", message, None);
}
