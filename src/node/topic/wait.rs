//! A broadcast that waits for room.

use std::fmt;
use std::pin::{Pin, pin};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use crate::sync::{Place, Wants};
use crate::types::{ArtifactId, Attribute, Verified};

use super::room::Room;
use super::{BroadcastError, Topic};

/// A broadcast on its way ([`Topic::broadcast_async`]): answers once the artifact is active, or with the reason why it cannot
/// become so. It needs no runtime. Dropping it changes nothing but that it no longer waits.
#[must_use = "nothing is broadcast until it is awaited"]
pub struct Broadcasting {
    topic: Topic,
    lane: u16,
    /// Until it is answered.
    artifact: Option<(Result<Verified, BroadcastError>, Attribute)>,
    place: Option<Place>,
}

impl Broadcasting {
    pub(super) fn new(
        topic: Topic,
        body: Result<Verified, BroadcastError>,
        attribute: Attribute,
    ) -> Broadcasting {
        let lane = body.as_ref().map_or(0, |body| topic.inner.node.lane_of(&body.id()));
        Broadcasting { topic, lane, artifact: Some((body, attribute)), place: None }
    }

    /// Waits on this thread.
    pub(super) fn wait(self, timeout: Duration) -> Result<ArtifactId, BroadcastError> {
        let deadline = Instant::now().checked_add(timeout);
        let signal = Arc::<Signal>::default();
        let waker = Waker::from(signal.clone());
        let mut broadcasting = pin!(self);
        loop {
            if let Poll::Ready(done) = broadcasting.as_mut().poll(&mut Context::from_waker(&waker)) {
                return done;
            }
            if !signal.wait(deadline) {
                return Err(BroadcastError::Timeout);
            }
        }
    }

    /// Tries once; whether it is its turn or not is the caller's business.
    fn attempt(&self, first: bool) -> Result<ArtifactId, BroadcastError> {
        match &self.artifact {
            Some((Ok(body), attribute)) => {
                let since = self.topic.inner.board.now();
                self.topic.start(body.clone(), attribute.clone(), since, first)
            }
            Some((Err(error), _)) => Err(*error),
            None => Err(BroadcastError::Stopped),
        }
    }

    fn wants(outcome: &Result<ArtifactId, BroadcastError>) -> Option<Wants> {
        match outcome {
            Err(BroadcastError::Full) => Some(Room::TABLE),
            Err(BroadcastError::Busy) => Some(Room::QUEUE),
            _ => None,
        }
    }

    fn try_in_turn(&mut self, context: &Context<'_>) -> Poll<Result<ArtifactId, BroadcastError>> {
        let room = self.topic.inner.room.clone();
        let Some(line) = room.line(self.lane) else { return Poll::Ready(Err(BroadcastError::Stopped)) };
        if self.place.is_none() {
            let outcome = self.attempt(false);
            if Self::wants(&outcome).is_none() {
                return Poll::Ready(outcome);
            }
            self.place = Some(line.join(context.waker()));
        }
        if line.is_closed() {
            return Poll::Ready(Err(BroadcastError::Stopped));
        }
        if !self.place.as_ref().is_some_and(|place| line.is_first(place, context.waker())) {
            return Poll::Pending;
        }
        let mut wanted = 0;
        loop {
            let outcome = self.attempt(true);
            match Self::wants(&outcome) {
                None => return Poll::Ready(outcome),
                // It was looked for after it was said to be wanted.
                Some(wants) if wanted & wants != 0 => return Poll::Pending,
                Some(wants) => {
                    wanted |= wants;
                    line.want(wanted);
                }
            }
        }
    }

    fn leave(&mut self) {
        if let (Some(line), Some(place)) = (self.topic.inner.room.line(self.lane), self.place.take()) {
            line.leave(place);
        }
    }
}

impl Future for Broadcasting {
    type Output = Result<ArtifactId, BroadcastError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        let polled = this.try_in_turn(context);
        if polled.is_ready() {
            this.leave();
            this.artifact = None;
        }
        polled
    }
}

impl Drop for Broadcasting {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Broadcasting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Broadcasting({}, {})",
            self.topic.id(),
            if self.place.is_some() { "in line" } else { "new" }
        )
    }
}

/// What a waiting thread sleeps on. Not its park token, which is the replica's.
#[derive(Debug, Default)]
struct Signal {
    given: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    /// Waits for a wake, at most to `deadline`; whether it came.
    fn wait(&self, deadline: Option<Instant>) -> bool {
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        while !*given {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            given = match left {
                Some(Duration::ZERO) => return false,
                Some(left) => {
                    self.changed.wait_timeout(given, left).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.changed.wait(given).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *given = false;
        true
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }
}
