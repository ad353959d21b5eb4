//! The daemon's life: folders, stores, tasks, sockets, and the orderly end.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::time::Instant;

use corten_config::{Config, GRPC, TTRPC};
use corten_types::{Error, Result, ResultExt};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::plugins::Plugins;
use crate::services::router;
use crate::{VERSION, assemble, notify, sockets};

/// Runs until it is told to end. Containers go on.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn run(config: Config) -> Result<()> {
    let begun = Instant::now();
    tracing::info!(revision = "", version = VERSION, "starting containerd");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _broken_pipe = signal(SignalKind::pipe())?;
    folders(&config)?;
    let (database, services) = assemble::services(&config, Plugins::new(&config)?)?;
    let (tasks, sandboxes) = (services.tasks.clone(), services.shim_sandboxes.clone());
    services.activations.load().await?;

    // The sockets come last: who finds them finds everything behind them.
    let (grpc_address, ttrpc_address) = (config.grpc_address(), config.ttrpc_address());
    let ttrpc = listen(&config, TTRPC)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let events = corten_ttrpc::Server::new(tasks.event_service()).require_peer(uid, gid);
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let mut until = stopping.clone();
    let ttrpc_server = tokio::spawn(async move {
        events.serve(ttrpc, async move { drop(until.wait_for(|stop| *stop).await) }).await;
    });
    tracing::info!(address = %ttrpc_address.display(), "serving...");
    if let Err(error) = sandboxes.load().await {
        tracing::error!(%error, "sandboxes could not all be found again");
    }
    if let Err(error) = tasks.load().await {
        tracing::error!(%error, "tasks could not all be found again");
    }
    let grpc = listen(&config, GRPC)?;
    tracing::info!(address = %grpc_address.display(), "serving...");
    let mut until = stopping;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(grpc);
    let server = router(services).serve_with_incoming_shutdown(incoming, async move {
        drop(until.wait_for(|stop| *stop).await);
    });
    let mut server = tokio::spawn(server);
    notify::tell("READY=1");
    tracing::info!("containerd successfully booted in {:.6}s", begun.elapsed().as_secs_f64());

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut server => {
            let failed = |error: &dyn std::fmt::Display| Error::internal(format!("server: {error}"));
            ended.map_err(|error| failed(&error))?.map_err(|error| failed(&error))?;
        }
    }
    notify::tell("STOPPING=1");
    for address in [&grpc_address, &ttrpc_address] {
        std::fs::remove_file(address).ok();
    }
    stop.send_replace(true);
    // Streams of events never end by themselves.
    let patience = std::time::Duration::from_millis(500);
    if tokio::time::timeout(patience, &mut server).await.is_err() {
        server.abort();
    }
    ttrpc_server.abort();
    tokio::task::spawn_blocking(move || database.close()).await.ok();
    Ok(())
}

/// Folders with the modes that containers in user namespaces need and other users must not have.
fn folders(config: &Config) -> Result<()> {
    for (path, mode) in [(&config.root, 0o700), (&config.state, 0o711)] {
        std::fs::create_dir_all(path).with_context(|| path.display().to_string())?;
        std::fs::set_permissions(path, Permissions::from_mode(mode))?;
    }
    let temporary = config.root.join("tmpmounts");
    std::fs::create_dir_all(&temporary)?;
    if let Err(error) = corten_mounts::TempMount::clear(&temporary) {
        tracing::warn!(%error, "mounts of an earlier run could not be taken away");
    }
    Ok(())
}

/// The socket of a server's plugin.
fn listen(config: &Config, uri: &str) -> Result<UnixListener> {
    let path = if uri == GRPC { config.grpc_address() } else { config.ttrpc_address() };
    sockets::listen(&path, config.number(uri, "uid"), config.number(uri, "gid"))
}
