//! Consumers that run on the lanes' own threads: a delivery is stamped and let go of there, and noted for whoever counts it.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use atomic_waker::AtomicWaker;
use corecast::{Disposition, Event, Node, Topic, TopicConfig, TopicError};
use crossbeam_channel::{Receiver, unbounded};

use super::port::{Arrival, Feed};

/// The notes of one topic at one node. Their number is bounded by what is on its way: they are of use only to workloads that
/// take them as they come.
struct Notes {
    arrivals: Receiver<Arrival>,
    waker: Arc<AtomicWaker>,
}

/// Opens a topic with such a consumer.
pub(crate) fn open(node: &Node, topic: TopicConfig) -> Result<(Topic, Box<dyn Feed>), TopicError> {
    let (sender, arrivals) = unbounded();
    let waker = Arc::<AtomicWaker>::default();
    let counts = Arc::clone(&waker);
    let topic = node.topic_inline(topic, move |event| {
        let arrival = match event {
            Event::Delivered { artifact, .. } => {
                Arrival::Consumed { id: artifact.id, bytes: artifact.bytes, at: Instant::now() }
            }
            Event::Withdrawn { id } => Arrival::Withdrawn { id },
            Event::Refused { id, by, reason } => Arrival::Refused { id, by, reason },
        };
        // Whoever counts may have gone.
        let _ = sender.send(arrival);
        counts.wake();
        Disposition::Release
    })?;
    Ok((topic, Box::new(Notes { arrivals, waker })))
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
