//! What an operation is doing, for whoever watches (spec 03 §10).
//!
//! The pipeline never waits for a watcher: what a slow one has not taken yet is overwritten by the newer
//! figure of the same thing, and what is waiting for it is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use corten_types::Descriptor;
use tokio::sync::Notify;

/// How often figures of one thing are told.
const INTERVAL: Duration = Duration::from_millis(300);
/// Messages that may wait for a slow watcher.
const MAX_WAITING: usize = 4096;

/// One message, as the Transfer service sends it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// What happens: `waiting`, `downloading`, `complete`, `already exists`, `extracting`, `extracted`,
    /// `saved`, or a sentence about the whole.
    pub event: String,
    /// What it happens to: a key such as `layer-sha256:…`, or an image's name.
    pub name: String,
    /// Keys of the things that this one is part of.
    pub parents: Vec<String>,
    /// Bytes done.
    pub progress: i64,
    /// Bytes in all.
    pub total: i64,
    /// The content meant.
    pub descriptor: Option<Descriptor>,
}

#[derive(Debug, Default)]
struct Channel {
    waiting: Mutex<VecDeque<Progress>>,
    arrived: Notify,
}

/// Tells; cheap to clone. Ends with its last clone.
#[derive(Clone, Debug, Default)]
pub struct ProgressSender(Option<Arc<Sender>>);

#[derive(Debug)]
struct Sender(Arc<Channel>);

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.arrived.notify_one();
    }
}

/// Listens.
#[derive(Debug)]
pub struct ProgressReceiver {
    channel: Arc<Channel>,
    sender: std::sync::Weak<Sender>,
}

/// A sender and its receiver.
#[must_use]
pub fn channel() -> (ProgressSender, ProgressReceiver) {
    let channel = Arc::new(Channel::default());
    let sender = Arc::new(Sender(Arc::clone(&channel)));
    let receiver = ProgressReceiver { channel, sender: Arc::downgrade(&sender) };
    (ProgressSender(Some(sender)), receiver)
}

impl ProgressSender {
    /// A sender that nobody listens to.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// Tells; never waits.
    pub fn send(&self, message: Progress) {
        let Some(sender) = &self.0 else { return };
        let channel = &sender.0;
        {
            let mut waiting = channel.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let same = |known: &&mut Progress| known.name == message.name && known.event == message.event;
            if let Some(known) = waiting.iter_mut().rev().find(same) {
                *known = message;
            } else if waiting.len() < MAX_WAITING {
                waiting.push_back(message);
            }
        }
        channel.arrived.notify_one();
    }

    /// Tells a sentence about the whole.
    pub fn event(&self, event: impl Into<String>) {
        self.send(Progress { event: event.into(), ..Progress::default() });
    }

    /// Tells something about an image.
    pub fn image(&self, event: &str, name: &str, descriptor: &Descriptor) {
        let (event, name, descriptor) = (event.to_owned(), name.to_owned(), Some(descriptor.clone()));
        self.send(Progress { event, name, descriptor, ..Progress::default() });
    }

    /// What tells about one descriptor. The first message is sent with the first figure.
    #[must_use]
    pub fn meter(&self, name: String, parent: Option<&str>, descriptor: &Descriptor) -> Meter {
        Meter {
            sender: self.clone(),
            message: Progress {
                name,
                parents: parent.map(str::to_owned).into_iter().collect(),
                total: descriptor.size,
                descriptor: Some(descriptor.clone()),
                ..Progress::default()
            },
            told: None,
        }
    }
}

impl ProgressReceiver {
    /// The next message; nothing when nobody is left to tell.
    pub async fn recv(&mut self) -> Option<Progress> {
        loop {
            // Asked first: what is told before the last sender goes is still found below.
            let ended = self.sender.strong_count() == 0;
            if let Some(message) =
                self.channel.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
            {
                return Some(message);
            }
            if ended {
                return None;
            }
            self.channel.arrived.notified().await;
        }
    }
}

/// Tells about one descriptor.
#[derive(Clone, Debug)]
pub struct Meter {
    sender: ProgressSender,
    message: Progress,
    told: Option<Instant>,
}

impl Meter {
    /// The key that is told about.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.message.name
    }

    /// A turning point.
    pub fn event(&mut self, event: &str, progress: u64) {
        event.clone_into(&mut self.message.event);
        self.message.progress = i64::try_from(progress).unwrap_or(i64::MAX);
        self.told = Some(Instant::now());
        self.sender.send(self.message.clone());
    }

    /// A figure; told from time to time only.
    pub fn advance(&mut self, event: &str, progress: u64) {
        if self.told.is_none_or(|told| told.elapsed() >= INTERVAL) || self.message.event != event {
            self.event(event, progress);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, event: &str, progress: i64) -> Progress {
        Progress { name: name.to_owned(), event: event.to_owned(), progress, ..Progress::default() }
    }

    #[tokio::test]
    async fn newer_figures_replace_those_that_wait() {
        let (sender, mut receiver) = channel();
        sender.send(message("a", "waiting", 0));
        for progress in 0..100_000 {
            sender.send(message("a", "downloading", progress));
            sender.send(message("b", "downloading", progress));
        }
        sender.send(message("a", "complete", 1));
        drop(sender);
        let mut seen = Vec::new();
        while let Some(message) = receiver.recv().await {
            seen.push((message.name, message.event, message.progress));
        }
        let want = [
            ("a", "waiting", 0),
            ("a", "downloading", 99_999),
            ("b", "downloading", 99_999),
            ("a", "complete", 1),
        ];
        assert_eq!(seen, want.map(|(name, event, progress)| (name.to_owned(), event.to_owned(), progress)));
    }

    #[tokio::test]
    async fn what_waits_is_bounded() {
        let (sender, receiver) = channel();
        for n in 0..2 * MAX_WAITING {
            sender.send(message(&n.to_string(), "waiting", 0));
        }
        assert_eq!(receiver.channel.waiting.lock().unwrap().len(), MAX_WAITING);
    }

    #[tokio::test]
    async fn a_receiver_wakes_for_messages_and_for_the_end() {
        let (sender, mut receiver) = channel();
        let task = tokio::spawn(async move {
            let first = receiver.recv().await;
            (first, receiver.recv().await)
        });
        tokio::task::yield_now().await;
        sender.clone().event("hello");
        tokio::task::yield_now().await;
        drop(sender);
        let (first, end) = task.await.unwrap();
        assert_eq!(first.unwrap().event, "hello");
        assert_eq!(end, None);
    }
}
