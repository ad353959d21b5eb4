//! The server's life.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use corten_ttrpc::Server;
use corten_types::Result;
use tokio::signal::unix::{SignalKind, signal};

use crate::events::Publisher;
use crate::service::TaskService;
use crate::{Flags, launch, log};

/// How long what is being done may take at the end: creations are given up and cleared up after.
const GRACE: Duration = Duration::from_secs(6);
/// How long events may take to be told at the end.
const FAREWELL: Duration = Duration::from_secs(3);

pub(crate) fn serve(flags: Flags) -> Result<()> {
    corten_sys::economize_heap(1, 64 << 10);
    log::open();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).map_err(std::io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run(flags))
}

async fn run(flags: Flags) -> Result<()> {
    let listener = listener(&flags)?;
    let socket = listener.local_addr().ok().and_then(|address| address.as_pathname().map(PathBuf::from));
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let address = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty()).map(PathBuf::from);
    let publisher = Publisher::start(&flags.namespace, address);
    let service = Arc::new(TaskService::new(flags.namespace, publisher.clone()));

    let mut children = signal(SignalKind::child())?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A reader that went away must not end us; the streams say so themselves.
    let _broken_pipe = signal(SignalKind::pipe())?;
    let reaping = Arc::clone(&service);
    tokio::spawn(async move {
        loop {
            reaping.reaper().reap();
            if children.recv().await.is_none() {
                return;
            }
        }
    });
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let ending = Arc::clone(&service);
    let shutdown = async move {
        tokio::select! {
            () = ending.ended() => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    Server::new(service).require_peer(uid, gid).grace(GRACE).serve(listener, shutdown).await;
    if let Some(socket) = socket {
        std::fs::remove_file(socket).ok();
    }
    publisher.drained(FAREWELL).await;
    Ok(())
}

/// The inherited socket, or the one that is named.
fn listener(flags: &Flags) -> Result<std::os::unix::net::UnixListener> {
    if flags.socket.is_empty() {
        let inherited: OwnedFd = corten_sys::inherited(launch::LISTENER)?;
        rustix::io::fcntl_setfd(&inherited, rustix::io::FdFlags::CLOEXEC).map_err(std::io::Error::from)?;
        return Ok(inherited.into());
    }
    Ok(std::os::unix::net::UnixListener::bind(flags.socket.trim_start_matches("unix://"))?)
}
