//! What comes to the nodes of this process, let go of and told with its number.

use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::Node;

use crate::board::Board;
use crate::subnet::listen::Listener;
use crate::subnet::port::{Arrival, Feed, Port};
use crate::subnet::real::Started;

/// A delivery.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) node: usize,
    pub(crate) topic: usize,
    /// As its maker numbered it, if it is one of ours.
    pub(crate) number: Option<usize>,
    pub(crate) at: Instant,
}

/// Both ends of every topic at every node.
pub(crate) struct Intake {
    pub(crate) ports: Vec<Vec<Arc<dyn Port>>>,
    feeds: Vec<Vec<Box<dyn Feed>>>,
    listener: Listener,
    /// A consumer that takes nothing now, with its node and topic.
    held: Option<(usize, usize, Box<dyn Feed>)>,
}

impl Intake {
    /// Of these nodes, for the calling thread.
    pub(crate) fn new(started: Vec<Started>) -> (Vec<Node>, Intake) {
        let (mut ports, mut feeds, mut nodes) = (Vec::new(), Vec::new(), Vec::new());
        for one in started {
            nodes.push(one.node);
            ports.push(one.ports);
            feeds.push(one.feeds);
        }
        (nodes, Intake { ports, feeds, listener: Listener::new(), held: None })
    }

    /// The next delivery. None: for now there is none, and either something was about to come, or `until` has come, or `longest`
    /// has passed.
    pub(crate) fn next(&mut self, until: Instant, longest: Duration) -> Option<Taken> {
        loop {
            let (node, topic, arrival) = self.listener.next(&mut self.feeds, until, longest)?;
            let (number, at) = match arrival {
                Arrival::Delivered { id, bytes } => {
                    self.ports[node][topic].release(&id);
                    (Board::number(&bytes), Instant::now())
                }
                Arrival::Consumed { head, at, .. } => (head.and_then(|head| Board::number(&head)), at),
                Arrival::Withdrawn { .. } | Arrival::Refused { .. } => continue,
            };
            return Some(Taken { node, topic, number, at });
        }
    }

    /// Takes nothing from one consumer's queue until [`Intake::resume`].
    pub(crate) fn hold(&mut self, node: usize, topic: usize) {
        let feed = std::mem::replace(&mut self.feeds[node][topic], Box::new(Nothing));
        self.held = Some((node, topic, feed));
    }

    pub(crate) fn resume(&mut self) {
        if let Some((node, topic, feed)) = self.held.take() {
            self.feeds[node][topic] = feed;
        }
    }
}

/// In the place of a feed from which nothing is taken.
struct Nothing;

impl Feed for Nothing {
    fn try_next(&mut self) -> Option<Arrival> {
        None
    }

    fn next(&mut self, wait: Duration) -> Option<Arrival> {
        std::thread::sleep(wait);
        None
    }

    fn poll(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Arrival> {
        std::task::Poll::Pending
    }
}
