//! A perfect subnet in memory: every broadcast is delivered at once to every other node. For tests.

use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use corecast::config::TopicConfig;
use corecast::types::{ArtifactId, HashKind};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};

use super::counters::Counters;
use super::fault::Fault;
use super::port::{Arrival, Feed, Host, Port, Refusal, Subnet};

/// What goes wrong on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Mishaps {
    /// Larger artifacts are refused; 0 means any size.
    pub(crate) artifact_bytes: usize,
    /// Every n-th delivery is dropped.
    pub(crate) lose: Option<u64>,
    /// Every n-th delivery comes twice.
    pub(crate) repeat: Option<u64>,
}

struct Mailbox {
    sender: Sender<Arrival>,
    waker: Arc<Mutex<Option<Waker>>>,
}

struct HubPort {
    others: Vec<Mailbox>,
    slots: usize,
    active: Mutex<HashSet<ArtifactId>>,
    deliveries: Arc<AtomicU64>,
    mishaps: Mishaps,
}

impl Port for HubPort {
    fn broadcast(&self, bytes: Bytes) -> Result<ArtifactId, Refusal> {
        if self.mishaps.artifact_bytes > 0 && bytes.len() > self.mishaps.artifact_bytes {
            return Err(Refusal::TooLarge);
        }
        let id = HashKind::Blake3.id(&bytes);
        let mut active = self.active.lock().unwrap();
        if active.len() >= self.slots {
            return Err(Refusal::Wait);
        }
        if !active.insert(id) {
            return Ok(id);
        }
        for mailbox in &self.others {
            let count = self.deliveries.fetch_add(1, Ordering::Relaxed) + 1;
            let hits = |every: Option<u64>| every.is_some_and(|every| count.is_multiple_of(every));
            let copies = if hits(self.mishaps.lose) { 0 } else { 1 + u64::from(hits(self.mishaps.repeat)) };
            for _ in 0..copies {
                mailbox.sender.send(Arrival::Delivered { id, bytes: bytes.clone() }).ok();
            }
            if let Some(waker) = mailbox.waker.lock().unwrap().take() {
                waker.wake();
            }
        }
        Ok(id)
    }

    fn abort(&self, id: &ArtifactId) {
        self.active.lock().unwrap().remove(id);
    }

    fn validate(&self, _: &ArtifactId) {}
    fn release(&self, _: &ArtifactId) {}
}

struct HubFeed {
    receiver: Receiver<Arrival>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl Feed for HubFeed {
    fn try_next(&mut self) -> Option<Arrival> {
        self.receiver.try_recv().ok()
    }

    fn next(&mut self, wait: Duration) -> Option<Arrival> {
        self.receiver.recv_timeout(wait).ok()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        *self.waker.lock().unwrap() = Some(context.waker().clone());
        match self.receiver.try_recv() {
            Ok(arrival) => Poll::Ready(arrival),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => Poll::Pending,
        }
    }
}

struct HubHost(Arc<AtomicU64>);

impl Host for HubHost {
    fn counters(&self) -> Counters {
        let bodies = self.0.load(Ordering::Relaxed);
        Counters { bodies_received: bodies, bodies_delivered: bodies, ..Counters::default() }
    }

    fn shutdown(self: Box<Self>, _: Duration) -> Result<(), Fault> {
        Ok(())
    }
}

/// A subnet of `nodes` over memory.
pub(crate) fn start(nodes: usize, topics: &[TopicConfig], mishaps: Mishaps) -> Subnet {
    let deliveries = Arc::new(AtomicU64::new(0));
    let mut subnet = Subnet {
        ports: (0..nodes).map(|_| Vec::new()).collect(),
        feeds: (0..nodes).map(|_| Vec::new()).collect(),
        host: Box::new(HubHost(Arc::clone(&deliveries))),
        made: 0,
    };
    for topic in topics {
        let ends: Vec<_> = (0..nodes).map(|_| (unbounded(), Arc::new(Mutex::new(None)))).collect();
        for node in 0..nodes {
            let others = ends.iter().enumerate().filter(|&(other, _)| other != node);
            let others = others.map(|(_, ((sender, _), waker))| Mailbox {
                sender: sender.clone(),
                waker: Arc::clone(waker),
            });
            subnet.ports[node].push(Arc::new(HubPort {
                others: others.collect(),
                slots: topic.slots as usize,
                active: Mutex::default(),
                deliveries: Arc::clone(&deliveries),
                mishaps,
            }));
            let ((_, receiver), waker) = &ends[node];
            let feed = HubFeed { receiver: receiver.clone(), waker: Arc::clone(waker) };
            subnet.feeds[node].push(Box::new(feed));
        }
    }
    subnet
}
