//! Consumers that run on the lanes' own threads: a delivery is let go of there, and noted for whoever counts it.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use corecast::{Consumer, Disposition, Event, Node, Topic, TopicConfig, TopicError};
use crossbeam_channel::{Receiver, Sender, unbounded};

use super::port::{Arrival, Feed, HEAD};

/// Which topics' deliveries are consumed on the lanes' own threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inline {
    /// None: whoever makes artifacts takes them from the nodes' queues.
    None,
    All,
    /// All but that of this index.
    AllBut(usize),
}

impl Inline {
    /// All, or none.
    pub(crate) fn all(all: bool) -> Inline {
        if all { Inline::All } else { Inline::None }
    }

    pub(crate) fn takes(self, topic: usize) -> bool {
        match self {
            Inline::None => false,
            Inline::All => true,
            Inline::AllBut(queued) => topic != queued,
        }
    }
}

/// Notes what comes to one topic at one node. What waits to be counted is bounded by what is on its way.
struct Notary {
    notes: Sender<Arrival>,
    waker: Arc<AtomicWaker>,
}

/// The notes of one topic at one node.
struct Notes {
    arrivals: Receiver<Arrival>,
    waker: Arc<AtomicWaker>,
}

/// Opens a topic with such a consumer.
pub(crate) fn open(node: &Node, topic: TopicConfig) -> Result<(Topic, Box<dyn Feed>), TopicError> {
    let (notes, arrivals) = unbounded();
    let waker = Arc::<AtomicWaker>::default();
    let topic = node.topic_inline(topic, Notary { notes, waker: Arc::clone(&waker) })?;
    Ok((topic, Box::new(Notes { arrivals, waker })))
}

impl Consumer for Notary {
    fn handle_event(&self, event: Event) -> Disposition {
        let arrival = match event {
            Event::Delivered { artifact, .. } => {
                let (id, bytes) = (artifact.id, artifact.bytes.len());
                let head = artifact.bytes.first_chunk::<HEAD>().copied();
                Arrival::Consumed { id, head, bytes, at: Instant::now() }
            }
            Event::Withdrawn { id } => Arrival::Withdrawn { id },
            Event::Refused { id, by, reason } => Arrival::Refused { id, by, reason },
        };
        // Whoever counts may have gone.
        let _ = self.notes.send(arrival);
        Disposition::Release
    }

    fn handle_pause(&self) {
        self.waker.wake();
    }
}

impl Feed for Notes {
    fn try_next(&mut self) -> Option<Arrival> {
        self.arrivals.try_recv().ok()
    }

    fn next(&mut self, wait: Duration) -> Option<Arrival> {
        self.arrivals.recv_timeout(wait).ok()
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        if let Some(arrival) = self.try_next() {
            return Poll::Ready(arrival);
        }
        self.waker.register(context.waker());
        self.try_next().map_or(Poll::Pending, Poll::Ready)
    }
}
