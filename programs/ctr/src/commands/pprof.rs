//! `pprof`: profiles of the daemon, over its debug socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use corten_types::{Error, Result, ResultExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::{flame, output};

/// Bytes of a profile that is drawn, at most.
const LARGEST: u64 = 64 << 20;

/// Profiles of the daemon.
#[derive(Debug, Args)]
pub struct Pprof {
    /// The daemon's debug socket.
    #[arg(short, long, default_value = "/run/containerd/debug.sock")]
    pub debug_socket: PathBuf,
    #[command(subcommand)]
    pub command: Kind,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Kind {
    /// Where tasks wait for each other.
    Block(Detail),
    /// What all tasks do now.
    Goroutines {
        /// How much detail.
        #[arg(long, default_value = "2")]
        debug: u32,
    },
    /// What memory is used for.
    Heap {
        #[command(flatten)]
        detail: Detail,
        /// Draw the profile into this file, as an SVG, instead of writing it out.
        #[arg(long)]
        flame_graph: Option<PathBuf>,
    },
    /// What processor time is used for.
    Profile {
        /// How long to look.
        #[arg(short, long, value_parser = crate::duration, default_value = "30s")]
        seconds: Duration,
        /// How much detail.
        #[arg(long, default_value = "0")]
        debug: u32,
        /// Draw the profile into this file, as an SVG, instead of writing it out.
        #[arg(long)]
        flame_graph: Option<PathBuf>,
    },
    /// Who made threads.
    Threadcreate(Detail),
    /// What happens, as it happens.
    Trace {
        /// How long to look.
        #[arg(short, long, value_parser = crate::duration, default_value = "5s")]
        seconds: Duration,
        /// How much detail.
        #[arg(long, default_value = "0")]
        debug: u32,
    },
}

#[derive(Debug, Args)]
pub struct Detail {
    /// How much detail.
    #[arg(long, default_value = "0")]
    debug: u32,
}

impl Pprof {
    pub async fn run(self) -> Result<()> {
        let path = self.command.path();
        let text = |why: String| {
            Error::unknown(format!("Get \"http://.{path}\": {why}")).with_hint(
                "the daemon serves profiles on the socket that [debug] address in its configuration names",
            )
        };
        let socket = self.debug_socket.display();
        let mut stream = UnixStream::connect(&self.debug_socket).await.map_err(|failed| {
            text(format!("dial unix {socket}: connect: {}", Error::from(failed).message()))
        })?;
        // HTTP/1.0: the answer ends with the connection, and is in one piece.
        let request = format!("GET {path} HTTP/1.0\r\nHost: .\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let body = loop {
            let count = stream.read(&mut buffer).await?;
            head.extend_from_slice(buffer.get(..count).unwrap_or_default());
            if let Some(at) = head.windows(4).position(|window| window == b"\r\n\r\n") {
                break head.split_off(at + 4);
            }
            if count == 0 || head.len() > (64 << 10) || (head.len() >= 5 && !head.starts_with(b"HTTP/")) {
                return Err(text("the socket does not speak HTTP".into()));
            }
        };
        let status = String::from_utf8_lossy(&head);
        let status =
            status.lines().next().unwrap_or_default().split_once(' ').map_or("", |(_, status)| status);
        if !status.starts_with("200") {
            return Err(Error::unknown(format!("http get failed with status: {status}")));
        }
        let mut rest = body.as_slice().chain(stream);
        if let Some(file) = self.command.flame_graph() {
            let mut profile = Vec::new();
            rest.take(LARGEST).read_to_end(&mut profile).await?;
            return std::fs::write(file, flame::draw(&profile)?).with_context(|| file.display().to_string());
        }
        loop {
            let count = rest.read(&mut buffer).await?;
            if count == 0 {
                return Ok(());
            }
            output::bytes(buffer.get(..count).unwrap_or_default());
        }
    }
}

impl Kind {
    fn flame_graph(&self) -> Option<&Path> {
        match self {
            Self::Heap { flame_graph, .. } | Self::Profile { flame_graph, .. } => flame_graph.as_deref(),
            _ => None,
        }
    }

    fn path(&self) -> String {
        let timed = |name: &str, time: &Duration, debug: &u32| {
            format!("/debug/pprof/{name}?seconds={}&debug={debug}", time.as_secs())
        };
        let plain = |name: &str, debug: &u32| format!("/debug/pprof/{name}?debug={debug}");
        match self {
            Self::Block(detail) => plain("block", &detail.debug),
            Self::Goroutines { debug } => plain("goroutine", debug),
            Self::Heap { detail, .. } => plain("heap", &detail.debug),
            Self::Profile { seconds, debug, .. } => timed("profile", seconds, debug),
            Self::Threadcreate(detail) => plain("threadcreate", &detail.debug),
            Self::Trace { seconds, debug } => timed("trace", seconds, debug),
        }
    }
}
