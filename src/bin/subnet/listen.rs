//! One thread that waits on many feeds at once.

use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use super::port::{Arrival, Feed};

/// Feeds by node and topic.
pub(crate) type Feeds = [Vec<Box<dyn Feed>>];

/// An arrival with its node and its topic.
pub(crate) type Placed = (usize, usize, Arrival);

/// Parks the thread that made it.
#[derive(Debug)]
pub(crate) struct Listener(Waker);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Listener {
    /// For this thread.
    pub(crate) fn new() -> Listener {
        Listener(Waker::from(Arc::new(Unpark(std::thread::current()))))
    }

    /// The next arrival at any feed. None: for now there is none, and either something was about to come, or `until` has
    /// come, or `longest` has passed.
    pub(crate) fn next(&self, feeds: &mut Feeds, until: Instant, longest: Duration) -> Option<Placed> {
        let mut context = Context::from_waker(&self.0);
        for (node, feeds) in feeds.iter_mut().enumerate() {
            for (topic, feed) in feeds.iter_mut().enumerate() {
                if let Poll::Ready(arrival) = feed.poll(&mut context) {
                    return Some((node, topic, arrival));
                }
            }
        }
        std::thread::park_timeout(until.saturating_duration_since(Instant::now()).min(longest));
        None
    }
}
