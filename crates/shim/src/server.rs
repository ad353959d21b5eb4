//! The server's life.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
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

/// How often a server without containers looks whether it is still wanted.
const GLANCE: Duration = Duration::from_secs(10);

/// The name of a server's socket. It is removed once: another server may take it then.
#[derive(Debug, Default)]
pub(crate) struct Socket(Mutex<Option<PathBuf>>);

impl Socket {
    pub(crate) fn remove(&self) {
        if let Some(path) = self.0.lock().unwrap_or_else(PoisonError::into_inner).take() {
            std::fs::remove_file(path).ok();
        }
    }
}

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
    let socket = Arc::new(Socket(Mutex::new(socket)));
    let service = Arc::new(TaskService::new(flags.namespace, publisher.clone(), Arc::clone(&socket)));

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
            () = abandoned(&ending) => {}
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        socket.remove();
    };
    Server::new(service).require_peer(uid, gid).grace(GRACE).serve(listener, shutdown).await;
    publisher.drained(FAREWELL).await;
    Ok(())
}

/// Resolves when there is no container and no bundle: the daemon that wanted this server has died before it could say
/// what for, or that it wants it no more. No other will find it.
async fn abandoned(service: &TaskService) {
    loop {
        while service.is_empty() {
            tokio::time::sleep(GLANCE).await;
            if service.is_empty() && launch::bundle_is_gone() {
                return;
            }
        }
        service.emptied().await;
    }
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
