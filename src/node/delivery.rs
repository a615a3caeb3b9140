//! Events on their way from the lanes to one topic's consumer.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::task::{Context, Poll};
use std::time::Duration;

use atomic_waker::AtomicWaker;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError, bounded};
use futures_core::Stream;

use crate::engine::Event;
use crate::sync::WakeWord;
use crate::types::{ArtifactId, Instant};

use super::topic::TopicBoard;

/// What both ends share besides the queue.
#[derive(Debug)]
struct Shared {
    /// A lane has an event that found the queue full.
    starved: AtomicBool,
    /// The task that awaits an event.
    waker: AtomicWaker,
    board: Arc<TopicBoard>,
}

/// A lane's end.
#[derive(Clone)]
pub(super) enum Outlet {
    /// To a consumer elsewhere.
    Queue(Queue),
    /// To one that the lane calls.
    Inline(Arc<dyn Consumer>),
}

/// Who takes a topic's events on the lanes' own threads ([`Node::topic_inline`](super::Node::topic_inline)). Any
/// `Fn(Event) -> Disposition` is one.
///
/// Neither call may block, and both should take microseconds, for nothing else of the executor goes on meanwhile. They may call
/// any handle. With several lanes they are called from several threads at a time. A panic is caught; one in
/// [`handle_event`](Consumer::handle_event) releases the artifact.
pub trait Consumer: Send + Sync {
    /// Takes an event.
    fn handle_event(&self, event: Event) -> Disposition;

    /// A run of events, at most 256, is over: the moment to pass on together what they came to, and to wake another thread
    /// once for all of them.
    fn handle_pause(&self) {}
}

impl<F: Fn(Event) -> Disposition + Send + Sync> Consumer for F {
    fn handle_event(&self, event: Event) -> Disposition {
        self(event)
    }
}

/// What a consumer that runs on the lane's own thread makes of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It has not decided: [`Topic::validate`](super::Topic::validate) or [`Topic::release`](super::Topic::release) follows.
    /// For events other than `Delivered`, there is nothing to decide.
    Keep,
    /// As [`Topic::release`](super::Topic::release).
    Release,
    /// As [`Topic::validate`](super::Topic::validate); a release when there is no room to relay it.
    Validate,
}

/// An event; of a delivery, also since when the body is here.
#[derive(Debug)]
struct Waiting {
    event: Event,
    since: Option<Instant>,
}

/// Refuses when it is full, and wakes the lane when there is room again.
#[derive(Clone)]
pub(super) struct Queue {
    events: Sender<Waiting>,
    shared: Arc<Shared>,
    capacity: usize,
    most_bytes: u64,
}

/// What became of an event.
pub(super) enum Offered {
    /// It is in the queue.
    Taken,
    /// The consumer saw it, and says what becomes of this artifact.
    Seen(ArtifactId, Disposition),
    /// There is no consumer any more.
    Gone(Event),
}

/// A queue for one topic, bounded in events and in bytes of bodies, and fed by one lane per entry of `wakes`, which wakes that
/// lane's executor.
pub(super) fn queue(
    capacity: usize,
    most_bytes: u64,
    wakes: Vec<Arc<WakeWord>>,
    board: Arc<TopicBoard>,
) -> (Outlet, Deliveries) {
    // A lane looks for room, then offers one event: at most one per lane comes on top of `capacity`.
    let (sender, receiver) = bounded(capacity + wakes.len());
    let (starved, waker) = Default::default();
    let shared = Arc::new(Shared { starved, waker, board });
    let outlet = Outlet::Queue(Queue { events: sender, shared: shared.clone(), capacity, most_bytes });
    (outlet, Deliveries { events: receiver, shared, most_bytes, wakes })
}

impl Outlet {
    /// Whether an event would be taken now. When not, the lane is woken once half of the queue is free.
    pub(super) fn has_room(&self) -> bool {
        match self {
            Outlet::Queue(queue) => queue.has_room(),
            Outlet::Inline(_) => true,
        }
    }

    /// Hands an event over; there was just seen to be room. Never waits for a queue.
    pub(super) fn offer(&self, event: Event, since: Option<Instant>) -> Offered {
        match self {
            Outlet::Queue(queue) => queue.offer(Waiting { event, since }),
            Outlet::Inline(consumer) => {
                let Event::Delivered { artifact, .. } = &event else {
                    ask(&**consumer, event);
                    return Offered::Taken;
                };
                Offered::Seen(artifact.id, ask(&**consumer, event))
            }
        }
    }

    /// Tells the consumer that events were offered. To be called once after a run of them.
    pub(super) fn announce(&self) {
        match self {
            Outlet::Queue(queue) => queue.shared.waker.wake(),
            Outlet::Inline(consumer) => caught(|| consumer.handle_pause()).unwrap_or_default(),
        }
    }
}

/// A consumer that panics has not taken the event.
fn ask(consumer: &dyn Consumer, event: Event) -> Disposition {
    caught(|| consumer.handle_event(event)).unwrap_or(Disposition::Release)
}

/// Whatever a consumer does, the lane goes on.
fn caught<T>(call: impl FnOnce() -> T) -> Option<T> {
    let outcome = catch_unwind(AssertUnwindSafe(call));
    outcome.inspect_err(|_| tracing::error!("a topic's inline consumer panicked")).ok()
}

impl Queue {
    fn has_room(&self) -> bool {
        if self.is_below_bounds() {
            return true;
        }
        self.shared.starved.store(true, Ordering::SeqCst);
        // Pairs with the fence in `Deliveries::taken`: either the consumer sees the flag or we see its room.
        fence(Ordering::SeqCst);
        self.is_below_bounds()
    }

    fn is_below_bounds(&self) -> bool {
        self.events.len() < self.capacity && self.shared.board.queued_bytes() < self.most_bytes
    }

    fn offer(&self, waiting: Waiting) -> Offered {
        let bytes = body_bytes(&waiting.event);
        self.shared.board.queued(bytes);
        match self.events.try_send(waiting) {
            Ok(()) => Offered::Taken,
            Err(error) => {
                self.shared.board.unqueued(bytes);
                debug_assert!(
                    error.is_disconnected(),
                    "each lane offers one event for each look at the room"
                );
                Offered::Gone(error.into_inner().event)
            }
        }
    }
}

/// Bytes of the body that an event holds.
fn body_bytes(event: &Event) -> u64 {
    match event {
        Event::Delivered { artifact, .. } => artifact.bytes.len() as u64,
        Event::Withdrawn { .. } | Event::Refused { .. } => 0,
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outlet::Queue(_) => "Outlet::Queue",
            Outlet::Inline(_) => "Outlet::Inline",
        })
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // The last lane's end: the consumer must see that nothing comes any more.
        self.shared.waker.wake();
    }
}

/// Why no event came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecvError {
    /// None is there now.
    #[error("no event is there now")]
    Empty,
    /// The node has stopped and every event was taken.
    #[error("the node has stopped")]
    Stopped,
}

/// One topic's events: a bounded receiver for plain threads ([`recv`](Deliveries::recv)) and for tasks of any runtime (it is
/// a [`Stream`]). One consumer; when it is slow, events wait in the lanes and the node goes on.
#[derive(Debug)]
pub struct Deliveries {
    events: Receiver<Waiting>,
    shared: Arc<Shared>,
    most_bytes: u64,
    wakes: Vec<Arc<WakeWord>>,
}

impl Deliveries {
    /// Waits for the next event. `None`: the node has stopped.
    pub fn recv(&self) -> Option<Event> {
        self.events.recv().ok().map(|waiting| self.taken(waiting))
    }

    /// The next event, if there is one now.
    pub fn try_recv(&self) -> Result<Event, RecvError> {
        match self.events.try_recv() {
            Ok(waiting) => Ok(self.taken(waiting)),
            Err(TryRecvError::Empty) => Err(RecvError::Empty),
            Err(TryRecvError::Disconnected) => Err(RecvError::Stopped),
        }
    }

    /// Waits for the next event, at most `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvError> {
        match self.events.recv_timeout(timeout) {
            Ok(waiting) => Ok(self.taken(waiting)),
            Err(RecvTimeoutError::Timeout) => Err(RecvError::Empty),
            Err(RecvTimeoutError::Disconnected) => Err(RecvError::Stopped),
        }
    }

    /// Waits for the next event without blocking the thread. `None`: the node has stopped.
    pub fn recv_async(&mut self) -> impl Future<Output = Option<Event>> + '_ {
        std::future::poll_fn(|context| Pin::new(&mut *self).poll_next(context))
    }

    /// Events that wait now.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether no event waits now.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// An event was taken: wakes lanes that wait for room, once half of the queue is free.
    fn taken(&self, waiting: Waiting) -> Event {
        let Waiting { event, since } = waiting;
        let left = self.shared.board.unqueued(body_bytes(&event));
        since.into_iter().for_each(|since| self.shared.board.waited(since));
        fence(Ordering::SeqCst);
        let room =
            self.events.len() * 2 <= self.events.capacity().unwrap_or(0) && left <= self.most_bytes / 2;
        if room
            && self.shared.starved.load(Ordering::SeqCst)
            && self.shared.starved.swap(false, Ordering::SeqCst)
        {
            self.wakes.iter().for_each(|wake| wake.wake());
        }
        event
    }
}

impl Stream for Deliveries {
    type Item = Event;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        for registered in [false, true] {
            match self.try_recv() {
                Ok(event) => return Poll::Ready(Some(event)),
                Err(RecvError::Stopped) => return Poll::Ready(None),
                Err(RecvError::Empty) if registered => (),
                Err(RecvError::Empty) => self.shared.waker.register(context.waker()),
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Artifact;
    use crate::node::driver::Clock;
    use crate::types::{Attribute, NodeId, TopicId};
    use bytes::Bytes;

    const BODY: usize = 100;

    fn board() -> Arc<TopicBoard> {
        Arc::new(TopicBoard::new(1, Clock { epoch: std::time::Instant::now() }))
    }

    fn delivered(byte: u8) -> Event {
        let (id, bytes) = (ArtifactId([byte; 32]), Bytes::from(vec![byte; BODY]));
        let artifact = Artifact { topic: TopicId(1), id, attribute: Attribute::EMPTY, bytes };
        Event::Delivered { artifact, from: NodeId([0; 32]) }
    }

    /// Offers events as a lane does; how many were taken.
    fn fill(outlet: &Outlet) -> usize {
        let mut taken = 0;
        while outlet.has_room() && taken < 1000 {
            assert!(matches!(outlet.offer(delivered(taken as u8), None), Offered::Taken));
            taken += 1;
        }
        taken
    }

    #[test]
    fn a_consumer_that_stopped_holds_bodies_up_to_the_byte_limit() {
        let wake = Arc::new(WakeWord::new().unwrap());
        let (outlet, deliveries) = queue(500, 10 * BODY as u64 - 1, vec![wake], board());
        assert_eq!(fill(&outlet), 10);
        for _ in 0..5 {
            deliveries.try_recv().unwrap();
        }
        assert_eq!(fill(&outlet), 5);
        assert_eq!(deliveries.len(), 10);
    }

    #[test]
    fn a_body_above_the_byte_limit_comes_through_alone() {
        let wake = Arc::new(WakeWord::new().unwrap());
        let (outlet, deliveries) = queue(500, BODY as u64 / 2, vec![wake], board());
        for _ in 0..3 {
            assert_eq!(fill(&outlet), 1);
            deliveries.try_recv().unwrap();
        }
    }
}
