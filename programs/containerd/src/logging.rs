//! Log lines in the form that people and scripts know from the original.

use std::fmt::{self, Write};

use corten_types::{Error, Result, timestamp};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use corten_config::Config;

/// Begins to log to standard error.
///
/// # Errors
/// InvalidArgument for an unknown level.
pub fn start(config: &Config) -> Result<()> {
    let level = match config.debug.level.as_str() {
        "trace" => LevelFilter::TRACE,
        "debug" => LevelFilter::DEBUG,
        "" | "info" => LevelFilter::INFO,
        "warn" | "warning" => LevelFilter::WARN,
        "error" | "fatal" | "panic" => LevelFilter::ERROR,
        other => return Err(Error::unknown(format!("not a valid log level: {other:?}"))),
    };
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr);
    let result = if config.debug.format == "json" {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.event_format(Lines).try_init()
    };
    result.map_err(|error| Error::internal(format!("logging: {error}")))
}

/// Tells what reading the configuration had to say.
pub fn warn(warning: &corten_config::Warning) {
    let field = |name: &str| {
        warning.fields.iter().find(|(key, _)| *key == name).map(|(_, value)| tracing::field::display(value))
    };
    tracing::warn!(
        column = field("column"),
        error = field("error"),
        file = field("file"),
        key = field("key"),
        plugin = field("plugin"),
        row = field("row"),
        "{}",
        warning.message
    );
}

/// `time="…" level=info msg="…" key=value`.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        // What libraries say below a warning is not about containers.
        let ours = event.metadata().target().starts_with("corten")
            || event.metadata().target().starts_with("containerd");
        if !ours && *event.metadata().level() > Level::WARN {
            return Ok(());
        }
        let level = match *event.metadata().level() {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let mut fields = Fields::default();
        event.record(&mut fields);
        let time = timestamp::rfc3339(std::time::SystemTime::now());
        writeln!(writer, "time=\"{time}\" level={level} msg={}{}", quoted(&fields.message), fields.rest)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        if field.name() == "message" {
            self.message = text;
            return;
        }
        // A text that was recorded with its quotes keeps them.
        let known = text.len() > 1 && text.starts_with('"') && text.ends_with('"');
        let text = if known { text } else { quoted(&text) };
        let _ = write!(self.rest, " {}={text}", field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }
}

/// A text in quotes, unless it can do without.
fn quoted(text: &str) -> String {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._/@^+".contains(&b));
    if plain { text.to_owned() } else { format!("{text:?}") }
}
