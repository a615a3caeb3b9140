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
use crate::types::ArtifactId;

/// What both ends share besides the queue.
#[derive(Debug, Default)]
struct Shared {
    /// A lane has an event that found the queue full.
    starved: AtomicBool,
    /// The task that awaits an event.
    waker: AtomicWaker,
}

/// A lane's end.
#[derive(Clone)]
pub(super) enum Outlet {
    /// To a consumer elsewhere.
    Queue(Queue),
    /// To one that the lane calls.
    Inline(Consumer),
}

/// What a lane calls with each event; see [`Node::topic_inline`](super::Node::topic_inline).
pub(super) type Consumer = Arc<dyn Fn(Event) -> Disposition + Send + Sync>;

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

/// Refuses when it is full, and wakes the lane when there is room again.
#[derive(Clone)]
pub(super) struct Queue {
    events: Sender<Event>,
    shared: Arc<Shared>,
    capacity: usize,
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

/// A bounded queue for one topic, fed by one lane per entry of `wakes`, which wakes that lane's executor.
pub(super) fn queue(capacity: usize, wakes: Vec<Arc<WakeWord>>) -> (Outlet, Deliveries) {
    // A lane looks for room, then offers one event: at most one per lane comes on top of `capacity`.
    let (sender, receiver) = bounded(capacity + wakes.len());
    let shared = Arc::<Shared>::default();
    let outlet = Outlet::Queue(Queue { events: sender, shared: shared.clone(), capacity });
    (outlet, Deliveries { events: receiver, shared, wakes })
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
    pub(super) fn offer(&self, event: Event) -> Offered {
        match self {
            Outlet::Queue(queue) => queue.offer(event),
            Outlet::Inline(consumer) => {
                let Event::Delivered { artifact, .. } = &event else {
                    ask(consumer, event);
                    return Offered::Taken;
                };
                Offered::Seen(artifact.id, ask(consumer, event))
            }
        }
    }

    /// Wakes the task that awaits events. To be called once after a run of offers.
    pub(super) fn announce(&self) {
        if let Outlet::Queue(queue) = self {
            queue.shared.waker.wake();
        }
    }
}

/// A consumer that panics has not taken the event; the lane goes on.
fn ask(consumer: &Consumer, event: Event) -> Disposition {
    catch_unwind(AssertUnwindSafe(|| consumer(event))).unwrap_or_else(|_| {
        tracing::error!("a topic's inline consumer panicked; the artifact is released");
        Disposition::Release
    })
}

impl Queue {
    fn has_room(&self) -> bool {
        if self.events.len() < self.capacity {
            return true;
        }
        self.shared.starved.store(true, Ordering::SeqCst);
        // Pairs with the fence in `Deliveries::taken`: either the consumer sees the flag or we see its room.
        fence(Ordering::SeqCst);
        self.events.len() < self.capacity
    }

    fn offer(&self, event: Event) -> Offered {
        match self.events.try_send(event) {
            Ok(()) => Offered::Taken,
            Err(error) => {
                debug_assert!(
                    error.is_disconnected(),
                    "each lane offers one event for each look at the room"
                );
                Offered::Gone(error.into_inner())
            }
        }
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
    events: Receiver<Event>,
    shared: Arc<Shared>,
    wakes: Vec<Arc<WakeWord>>,
}

impl Deliveries {
    /// Waits for the next event. `None`: the node has stopped.
    pub fn recv(&self) -> Option<Event> {
        let event = self.events.recv().ok()?;
        self.taken();
        Some(event)
    }

    /// The next event, if there is one now.
    pub fn try_recv(&self) -> Result<Event, RecvError> {
        match self.events.try_recv() {
            Ok(event) => {
                self.taken();
                Ok(event)
            }
            Err(TryRecvError::Empty) => Err(RecvError::Empty),
            Err(TryRecvError::Disconnected) => Err(RecvError::Stopped),
        }
    }

    /// Waits for the next event, at most `timeout`.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvError> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => {
                self.taken();
                Ok(event)
            }
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
    fn taken(&self) {
        fence(Ordering::SeqCst);
        let room = self.events.len() * 2 <= self.events.capacity().unwrap_or(0);
        if room
            && self.shared.starved.load(Ordering::SeqCst)
            && self.shared.starved.swap(false, Ordering::SeqCst)
        {
            self.wakes.iter().for_each(|wake| wake.wake());
        }
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
