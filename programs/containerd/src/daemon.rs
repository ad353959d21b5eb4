//! The daemon's life: stores, tasks, sockets, and the orderly end.

use std::time::Instant;

use corten_config::{Config, GRPC, TTRPC};
use corten_types::{Error, Result};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::assemble::{self, Assembled};
use crate::observe::Observation;
use crate::plugins::Plugins;
use crate::plugins::parts::SERVER;
use crate::services::{MessageLimits, router};
use crate::{notify, sockets, stacks};

/// Runs until it is told to end. Containers go on.
///
/// # Errors
/// Whatever keeps it from serving.
pub async fn run(config: Config, plugins: Plugins) -> Result<()> {
    let begun = Instant::now();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let _broken_pipe = signal(SignalKind::pipe())?;
    tokio::spawn(dump_stacks(signal(SignalKind::user_defined1())?));
    let Assembled { base, services, database, mut wanted } = assemble::services(&config, plugins)?;
    let sandboxes = services.as_ref().map(|services| services.shim_sandboxes.clone());
    if let Some(services) = &services {
        services.activations.load().await?;
    }

    let mut observation = Observation::start(&mut wanted, services.as_ref()).await?;
    // The sockets come last: who finds them finds everything behind them.
    let (grpc_address, ttrpc_address) = (config.grpc_address(), config.ttrpc_address());
    let (stop, stopping) = tokio::sync::watch::channel(false);
    let mut ttrpc_server = None;
    if let Some(tasks) = base.tasks.clone()
        && base.plugins.works(SERVER, "ttrpc")
    {
        let ttrpc = listen(&config, TTRPC)?;
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let events = corten_ttrpc::Server::new(tasks.event_service()).require_peer(uid, gid);
        let mut until = stopping.clone();
        ttrpc_server = Some(tokio::spawn(async move {
            events.serve(ttrpc, async move { drop(until.wait_for(|stop| *stop).await) }).await;
        }));
        tracing::info!(address = %ttrpc_address.display(), "serving...");
        if let Some(sandboxes) = sandboxes
            && let Err(error) = sandboxes.load().await
        {
            tracing::error!(%error, "sandboxes could not all be found again");
        }
        if let Err(error) = tasks.load().await {
            tracing::error!(%error, "tasks could not all be found again");
        }
    }
    observation.watch_containers(&wanted, services.as_ref());
    let grpc = listen(&config, GRPC)?;
    tracing::info!(address = %grpc_address.display(), "serving...");
    let mut until = stopping;
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(grpc);
    let limits = MessageLimits::new(
        config.number(GRPC, "max_recv_message_size"),
        config.number(GRPC, "max_send_message_size"),
    );
    let server = router(base, services, limits, &observation.watch).serve_with_incoming_shutdown(
        incoming,
        async move {
            drop(until.wait_for(|stop| *stop).await);
        },
    );
    let mut server = tokio::spawn(server);
    notify::tell("READY=1");
    tracing::info!("containerd successfully booted in {:.6}s", begun.elapsed().as_secs_f64());
    tokio::spawn(settle());

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
    if let Some(server) = ttrpc_server {
        server.abort();
    }
    observation.finish(&wanted).await;
    if let Some(database) = database {
        tokio::task::spawn_blocking(move || database.close()).await.ok();
    }
    Ok(())
}

/// Once the start and the first collection are over, what only they needed need not stay in memory.
async fn settle() {
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    let release = || {
        corten_sys::trim_heap();
        corten_sys::release_text();
    };
    tokio::task::spawn_blocking(release).await.ok();
}

/// Tells what the daemon does whenever it is asked to.
async fn dump_stacks(mut asked: Signal) {
    while asked.recv().await.is_some() {
        let dumped = tokio::task::spawn_blocking(stacks::dump).await;
        if let Ok(Err(error)) = dumped {
            tracing::warn!(%error, "the stack dump could not be written");
        }
    }
}

/// The socket of a server's plugin.
fn listen(config: &Config, uri: &str) -> Result<UnixListener> {
    let path = if uri == GRPC { config.grpc_address() } else { config.ttrpc_address() };
    sockets::listen(&path, config.number(uri, "uid"), config.number(uri, "gid"))
}
