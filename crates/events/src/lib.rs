//! The event exchange: what is published reaches every live subscription whose filter passes it, in the
//! order of publishing. Nothing is replayed, publishers never wait, and a subscriber that does not read is
//! cut off rather than let memory grow (spec 01 §4).

mod fields;
mod topic;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use corten_api::types::Envelope;
use corten_types::{Any, Error, Filter, Namespace, Result, ResultExt, timestamp};
use prost::{Message, Name};
use tokio::sync::mpsc;

/// Envelopes that may wait for one subscriber before it is cut off.
const QUEUE: usize = 65_536;
/// Seconds of the time that Go takes for none.
const GO_EPOCH: i64 = -62_135_596_800;

/// Where events meet their subscribers. Clones are the same exchange.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    subscribers: Arc<Mutex<Vec<Subscriber>>>,
}

#[derive(Debug)]
struct Subscriber {
    filter: Filter,
    queue: mpsc::Sender<Arc<Envelope>>,
}

impl Exchange {
    /// Tells of something that happened in a namespace, now.
    pub fn publish<M: Message + Name>(&self, namespace: &Namespace, topic: &str, event: &M) {
        self.send(Envelope {
            timestamp: Some(timestamp::now()),
            namespace: namespace.to_string(),
            topic: topic.to_owned(),
            event: Some(corten_api::pack(event)),
        });
    }

    /// The same for an event of a type that need not be known here.
    ///
    /// # Errors
    /// InvalidArgument for a malformed topic.
    pub fn publish_any(&self, namespace: &Namespace, topic: &str, event: Option<Any>) -> Result<()> {
        topic::validate(topic)?;
        let timestamp = Some(timestamp::now());
        self.send(Envelope { timestamp, namespace: namespace.to_string(), topic: topic.to_owned(), event });
        Ok(())
    }

    /// Passes on an envelope from elsewhere: a shim.
    ///
    /// # Errors
    /// InvalidArgument for a malformed namespace or topic, or a missing timestamp.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        Namespace::new(envelope.namespace.as_str()).context("event envelope has invalid namespace")?;
        topic::validate(&envelope.topic)?;
        let unset = |time: &prost_types::Timestamp| (time.seconds, time.nanos) == (GO_EPOCH, 0);
        if envelope.timestamp.as_ref().is_none_or(unset) {
            return Err(Error::invalid_argument("timestamp must be set on forwarded event"));
        }
        self.send(envelope);
        Ok(())
    }

    /// Everything from now on that passes the filters.
    ///
    /// # Errors
    /// Unknown `subscription error: failed parsing subscription filters: …`.
    pub fn subscribe<S: AsRef<str>>(&self, filters: &[S]) -> Result<Subscription> {
        let filter = Filter::parse(filters).map_err(|error| {
            Error::unknown(format!("subscription error: failed parsing subscription filters: {error}"))
        })?;
        let (queue, receiver) = mpsc::channel(QUEUE);
        self.lock().push(Subscriber { filter, queue });
        Ok(Subscription { receiver })
    }

    fn send(&self, envelope: Envelope) {
        let mut subscribers = self.lock();
        if subscribers.is_empty() {
            return;
        }
        let fields = fields::EnvelopeFields::new(&envelope);
        let shared = Arc::new(envelope.clone());
        subscribers.retain(|subscriber| {
            if !subscriber.filter.matches(&fields) {
                return !subscriber.queue.is_closed();
            }
            match subscriber.queue.try_send(Arc::clone(&shared)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    tracing::warn!("a subscriber to events does not read and is cut off");
                    false
                }
            }
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A live subscription. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    receiver: mpsc::Receiver<Arc<Envelope>>,
}

impl Subscription {
    /// The next envelope; nothing once the subscription was cut off for not reading.
    pub async fn recv(&mut self) -> Option<Arc<Envelope>> {
        self.receiver.recv().await
    }
}

/// The time of an envelope.
#[must_use]
pub fn time_of(envelope: &Envelope) -> SystemTime {
    envelope.timestamp.as_ref().map_or(SystemTime::UNIX_EPOCH, timestamp::to_system)
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_api::events::{ContainerDelete, TaskExit};

    #[tokio::test]
    async fn subscribers_get_what_their_filters_pass_in_order() {
        let exchange = Exchange::default();
        let namespace = Namespace::new("lab").unwrap();
        let mut all = exchange.subscribe::<&str>(&[]).unwrap();
        let mut exits =
            exchange.subscribe(&["namespace==lab,topic~=|^/tasks/|,event.container_id==b"]).unwrap();
        for id in ["a", "b"] {
            exchange.publish(
                &namespace,
                "/tasks/exit",
                &TaskExit { container_id: id.into(), ..Default::default() },
            );
        }
        exchange.publish(&namespace, "/containers/delete", &ContainerDelete { id: "b".into() });
        let topics = [all.recv().await, all.recv().await, all.recv().await];
        assert_eq!(topics[2].as_ref().unwrap().topic, "/containers/delete");
        let exit = exits.recv().await.unwrap();
        assert_eq!(corten_api::unpack::<TaskExit>(exit.event.as_ref().unwrap()).unwrap().container_id, "b");
        assert!(exits.receiver.try_recv().is_err());
    }

    #[test]
    fn malformed_envelopes_are_refused() {
        let exchange = Exchange::default();
        let namespace = Namespace::new("lab").unwrap();
        for (topic, text) in [
            ("a/b", "envelope topic \"a/b\": must start with '/': invalid argument"),
            ("/", "envelope topic \"/\": must have at least one component: invalid argument"),
            ("", "envelope topic \"\": must not be empty: invalid argument"),
        ] {
            assert_eq!(exchange.publish_any(&namespace, topic, None).unwrap_err().to_string(), text);
        }
        assert!(
            exchange
                .publish_any(&namespace, "/a b", None)
                .unwrap_err()
                .to_string()
                .contains("component \"a b\"")
        );
        assert!(exchange.subscribe(&["bad=="]).is_err());
    }
}
