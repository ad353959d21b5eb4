//! `logs`: what a container wrote to the file that its output goes to, or that nerdctl's logger keeps of it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use corten_api::services::tasks as api;
use corten_types::{Error, ErrorClass, Result, ResultExt};

use crate::client::{Daemon, error};
use crate::commands::containers;
use crate::output;

/// How often a log is looked at that is followed.
const INTERVAL: Duration = Duration::from_millis(100);
const BLOCK: u64 = 64 << 10;
/// Longest line of JSON.
const LINE: usize = 1 << 20;
/// What nerdctl tells its logger: the folder that everything is in.
const NERDCTL: &str = "_NERDCTL_INTERNAL_LOGGING=";
/// Labels that tell where the output of a container goes that has no task: of the daemon's restarts, of nerdctl.
const LABELS: [&str; 2] = ["containerd.io/restart.loguri", "nerdctl/log-uri"];

/// What a container wrote to its log.
#[derive(Debug, Args)]
pub struct Logs {
    /// Go on until the container has ended.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines, this many.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<u64>,
    #[arg(required = true, value_name = "CONTAINER")]
    id: String,
}

impl Logs {
    pub async fn run(self, daemon: &Daemon) -> Result<()> {
        let (path, mut form) = log_of(daemon, &self.id).await?;
        let shown = path.display().to_string();
        let mut file = File::open(&path).with_context(|| format!("open {shown}"))?;
        if let Some(lines) = self.tail {
            let at = begin_of_last(&mut file, lines).with_context(|| format!("read {shown}"))?;
            file.seek(SeekFrom::Start(at))?;
        }
        copy(&mut file, &mut form)?;
        if !self.follow {
            return Ok(());
        }
        let wait = api::WaitRequest { container_id: self.id.clone(), exec_id: String::new() };
        let mut service = daemon.tasks();
        let ended = service.wait(wait);
        tokio::pin!(ended);
        loop {
            let has_ended = tokio::select! {
                ended = &mut ended => match ended.map_err(error) {
                    Err(failed) if !failed.is_not_found() => return Err(failed),
                    _ => true,
                },
                () = tokio::time::sleep(INTERVAL) => false,
            };
            // A log that was begun anew is read from its beginning.
            if file.metadata()?.len() < file.stream_position()? {
                file.seek(SeekFrom::Start(0))?;
            }
            copy(&mut file, &mut form)?;
            if has_ended {
                return Ok(());
            }
        }
    }
}

/// The file that a container's output goes to.
async fn log_of(daemon: &Daemon, id: &str) -> Result<(PathBuf, Form)> {
    let container = containers::get(daemon, id).await?;
    let request = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let task = match daemon.tasks().get(request).await.map_err(error) {
        Ok(found) => found.into_inner().process.map(|process| process.stdout).unwrap_or_default(),
        Err(missing) if missing.is_not_found() => String::new(),
        Err(failed) => return Err(failed),
    };
    let label = LABELS.iter().find_map(|label| container.labels.get(*label)).map(String::as_str);
    let uri = if task.is_empty() { label.unwrap_or_default() } else { &task };
    match file_of(uri, &daemon.namespace, id) {
        Some(found) => Ok(found),
        None => Err(not_kept(uri, id)),
    }
}

/// The file behind the place that a container's output goes to, if there is one.
fn file_of(uri: &str, namespace: &str, id: &str) -> Option<(PathBuf, Form)> {
    let (place, query) = uri.split_once('?').unwrap_or((uri, ""));
    if let Some(path) = place.strip_prefix("file://").filter(|path| path.starts_with('/')) {
        return Some((path.into(), Form::Plain));
    }
    if place.starts_with("binary://") {
        let folder = query.split('&').find_map(|one| one.strip_prefix(NERDCTL))?;
        let path = PathBuf::from(unescaped(folder)).join("containers").join(namespace).join(id);
        return Some((path.join(format!("{id}-json.log")), Form::Json(Vec::new())))
            .filter(|(path, _)| path.exists());
    }
    // Output that goes to a path goes through a pipe, unless something else is there.
    let is_file = place.starts_with('/') && Path::new(place).is_file();
    is_file.then(|| (place.into(), Form::Plain))
}

/// Tells where the output of a container went, and what to do about it.
fn not_kept(uri: &str, id: &str) -> Error {
    let advice = "only what goes to a file is kept: `ctr run --log-uri file:///path …`";
    let (text, hint) = if uri.is_empty() {
        (format!("the output of container {id:?} is not kept"), advice.to_owned())
    } else if let Some(program) = uri.strip_prefix("binary://") {
        let program = program.split('?').next().unwrap_or_default();
        let hint = format!("what becomes of it is up to that program. {advice}");
        (format!("the output of container {id:?} goes to the program {program}"), hint)
    } else {
        let hint = format!("`ctr tasks attach {id}` shows what is written from now on. {advice}");
        (format!("the output of container {id:?} goes to {uri}"), hint)
    };
    Error::bare(ErrorClass::FailedPrecondition, text).with_hint(hint)
}

/// What a query of a URI means: bytes may be written as `%2F`.
fn unescaped(text: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).filter(|_| *first == b'%').and_then(|code| std::str::from_utf8(code).ok());
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = tail.get(if byte.is_some() { 2 } else { 0 }..).unwrap_or_default();
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What is in a log.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// The output itself.
    Plain,
    /// Lines of JSON, as docker's `json-file` has them; with the begin of one whose end is not there yet.
    Json(Vec<u8>),
}

/// A line of JSON.
#[derive(serde::Deserialize)]
struct Line {
    log: String,
}

impl Form {
    /// The output that is told by what comes next in the log.
    fn output(&mut self, data: &[u8]) -> Vec<u8> {
        let Self::Json(rest) = self else { return data.to_vec() };
        rest.extend_from_slice(data);
        let mut output = Vec::new();
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            match serde_json::from_slice::<Line>(&line) {
                Ok(line) => output.extend_from_slice(line.log.as_bytes()),
                // Better than nothing.
                Err(_) => output.extend_from_slice(&line),
            }
        }
        if rest.len() > LINE {
            output.append(rest);
        }
        output
    }
}

fn copy(file: &mut File, form: &mut Form) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => output::bytes(&form.output(buffer.get(..count).unwrap_or_default())),
        }
    }
}

/// Where the last lines begin; a line that is not ended counts.
fn begin_of_last(file: &mut File, lines: u64) -> std::io::Result<u64> {
    let length = file.metadata()?.len();
    let (mut end, mut left) = (length, lines);
    if lines == 0 {
        return Ok(length);
    }
    while end > 0 {
        let begin = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(begin))?;
        let mut block = Vec::new();
        file.by_ref().take(end - begin).read_to_end(&mut block)?;
        for (at, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            let after = begin + at as u64 + 1;
            if after == length {
                continue;
            }
            left -= 1;
            if left == 0 {
                return Ok(after);
            }
        }
        end = begin;
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_output_are_told_apart() {
        let file = |uri: &str| file_of(uri, "ns", "box").map(|(path, _)| path.display().to_string());
        assert_eq!(file("file:///var/log/a?maxSize=1").as_deref(), Some("/var/log/a"));
        assert_eq!(file("/etc/passwd").as_deref(), Some("/etc/passwd"), "no pipe");
        for uri in [
            "",
            "file://a",
            "/dev/null",
            "/no/such",
            "binary:///bin/logger?a=b",
            "binary:///n?_NERDCTL_INTERNAL_LOGGING=%2Fno",
        ] {
            assert_eq!(file(uri), None, "{uri}");
        }
        assert!(not_kept("binary:///bin/x?a=b", "box").message().ends_with("goes to the program /bin/x"));
        assert_eq!(unescaped("%2Fa%20b%zz%2"), "/a b%zz%2");
    }

    #[test]
    fn lines_of_json_are_shown_when_they_are_whole() {
        let mut form = Form::Json(Vec::new());
        let log = b"{\"log\":\"a\\n\",\"stream\":\"stdout\"}\nbad\n{\"log\":\"b\"";
        assert_eq!(form.output(log), b"a\nbad\n");
        assert_eq!(form.output(b"}\n"), b"b");
        assert_eq!(form.output(&vec![b'x'; LINE + 1]).len(), LINE + 1, "no line is that long");
        assert_eq!(form, Form::Json(Vec::new()));
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let path = std::env::temp_dir().join(format!("corten-lines-{}", std::process::id()));
        let tail = |text: &str, lines: u64| {
            std::fs::write(&path, text).unwrap();
            let mut file = File::open(&path).unwrap();
            let at = begin_of_last(&mut file, lines).unwrap();
            text.get(usize::try_from(at).unwrap()..).unwrap().to_owned()
        };
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc\n");
        assert_eq!(tail("a\nb\nc", 2), "b\nc");
        assert_eq!(tail("a\n\n\n", 2), "\n\n");
        assert_eq!([tail("a\n", 5), tail("", 1), tail("a\n", 0)], ["a\n", "", ""]);
        let long = format!("x\n{}\n", "y".repeat(200_000));
        assert_eq!(tail(&long, 1).len(), 200_001);
        assert_eq!(tail(&long, 2), long);
        std::fs::remove_file(path).unwrap();
    }
}
