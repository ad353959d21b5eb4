//! Events to the daemon (spec 02 §7): in order, kept while it is away for a moment.

use std::path::PathBuf;
use std::time::Duration;

use corten_api::events_ttrpc::ForwardRequest;
use corten_api::types::Envelope;
use corten_ttrpc::{CallOptions, Client};
use corten_types::timestamp;
use prost::{Message, Name};
use tokio::sync::{mpsc, watch};

/// Events that wait at most.
const QUEUE: usize = 2048;
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 5;

/// Tells events.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    namespace: String,
    queue: mpsc::Sender<Envelope>,
    /// Events that are not delivered yet.
    pending: watch::Sender<usize>,
}

impl Publisher {
    /// Starts it; `address` is the daemon's ttrpc socket.
    pub(crate) fn start(namespace: &str, address: Option<PathBuf>) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let pending = watch::Sender::new(0);
        tokio::spawn(deliver(receiver, address, pending.clone()));
        Self { namespace: namespace.to_owned(), queue, pending }
    }

    /// Queues an event.
    pub(crate) fn publish<M: Message + Name>(&self, topic: &str, event: &M) {
        let envelope = Envelope {
            timestamp: Some(timestamp::now()),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: Some(corten_api::pack(event)),
        };
        self.pending.send_modify(|count| *count += 1);
        if self.queue.try_send(envelope).is_err() {
            self.pending.send_modify(|count| *count -= 1);
            crate::log::warning!("too many events wait for the daemon: {topic} is lost");
        }
    }

    /// Waits until everything is delivered, or for a while.
    pub(crate) async fn drained(&self, patience: Duration) {
        let mut pending = self.pending.subscribe();
        let _ = tokio::time::timeout(patience, pending.wait_for(|count| *count == 0)).await;
    }
}

async fn deliver(
    mut queue: mpsc::Receiver<Envelope>,
    address: Option<PathBuf>,
    pending: watch::Sender<usize>,
) {
    let mut client: Option<Client> = None;
    while let Some(envelope) = queue.recv().await {
        if let Some(address) = &address {
            let request = ForwardRequest { envelope: Some(envelope) };
            for attempt in 1..=TRIES {
                match send(&mut client, address, &request).await {
                    Ok(()) => break,
                    Err(error) if attempt == TRIES => {
                        crate::log::warning!("an event could not be told: {error}")
                    }
                    Err(_) => {
                        client = None;
                        tokio::time::sleep(Duration::from_secs(u64::from(attempt))).await;
                    }
                }
            }
        }
        pending.send_modify(|count| *count -= 1);
    }
}

async fn send(
    client: &mut Option<Client>,
    address: &std::path::Path,
    request: &ForwardRequest,
) -> corten_types::Result<()> {
    let connected = match client.take() {
        Some(connected) => connected,
        None => Client::connect(address).await?,
    };
    let options = CallOptions { timeout: Some(PATIENCE), ..CallOptions::default() };
    let service = "containerd.services.events.ttrpc.v1.Events";
    let result = connected.call::<_, ()>(service, "Forward", request, options.clone()).await;
    // The daemon may have been replaced since: once more over a new connection, at once.
    let (connected, result) = match result {
        Err(error) if Client::is_closed(&error) => {
            let connected = Client::connect(address).await?;
            let result = connected.call::<_, ()>(service, "Forward", request, options).await;
            (connected, result)
        }
        other => (connected, other),
    };
    result?;
    *client = Some(connected);
    Ok(())
}
