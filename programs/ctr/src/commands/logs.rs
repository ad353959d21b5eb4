//! `logs`: what a container wrote to the file that its output goes to.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
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
        let path = log_of(daemon, &self.id).await?;
        let shown = path.display().to_string();
        let mut file = File::open(&path).with_context(|| format!("open {shown}"))?;
        if let Some(lines) = self.tail {
            let at = begin_of_last(&mut file, lines).with_context(|| format!("read {shown}"))?;
            file.seek(SeekFrom::Start(at))?;
        }
        copy(&mut file)?;
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
            copy(&mut file)?;
            if has_ended {
                return Ok(());
            }
        }
    }
}

/// The file that a container's output goes to.
async fn log_of(daemon: &Daemon, id: &str) -> Result<PathBuf> {
    let container = containers::get(daemon, id).await?;
    let request = api::GetRequest { container_id: id.into(), exec_id: String::new() };
    let task = match daemon.tasks().get(request).await.map_err(error) {
        Ok(found) => found.into_inner().process.map(|process| process.stdout).unwrap_or_default(),
        Err(missing) if missing.is_not_found() => String::new(),
        Err(failed) => return Err(failed),
    };
    let label = LABELS.iter().find_map(|label| container.labels.get(*label)).map(String::as_str);
    let (uri, advice) = match (task.as_str(), label) {
        ("", Some(uri)) => (uri, ""),
        (uri, _) => (uri, "only what goes to a file is kept: `ctr run --log-uri file:///path …`"),
    };
    if let Some(path) = uri.strip_prefix("file://").filter(|path| path.starts_with('/')) {
        return Ok(path.split('?').next().unwrap_or_default().into());
    }
    let text = match uri {
        "" => format!("the output of container {id:?} is not kept"),
        other => format!("the output of container {id:?} goes to {other}"),
    };
    Err(Error::bare(ErrorClass::FailedPrecondition, text).with_hint(advice))
}

fn copy(file: &mut File) -> Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            count => output::bytes(buffer.get(..count).unwrap_or_default()),
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
