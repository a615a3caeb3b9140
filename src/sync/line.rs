//! Those who wait for room, served in the order in which they came.
//!
//! Only the first in line tries, and it stays first until it is served or leaves: so what is freed cannot be snatched from a
//! waiter by those behind it, nor by newcomers, who look whether the [line is empty](Line::is_empty) before they help
//! themselves. (Waiters of a plain notification, such as those of `event-listener`, lose their place with each attempt that
//! fails.) Threads and tasks wait alike, each by its [`Waker`].
//!
//! Bounded by the callers: one place for each that waits.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

/// What the first in line waits for, a bit each: the caller says what they mean.
pub type Wants = u8;

/// A line of waiters.
///
/// A waiter [joins](Line::join); while it is [first](Line::is_first) it says what it [wants](Line::want), tries to help itself,
/// and sleeps if it cannot; at the end it [leaves](Line::leave), served or not. Whoever frees something puts it in place and then
/// [calls](Line::call) the first.
///
/// No wake-up is lost: a waiter writes its place and its want, then looks for room; who frees writes the room, then looks for
/// waiters; between the two each has a sequentially consistent fence, so at least one of them sees the other. Whoever becomes
/// first because another left is woken, and looks for itself.
#[derive(Debug, Default)]
pub struct Line {
    waiting: AtomicUsize,
    wanted: AtomicU8,
    closed: AtomicBool,
    places: Mutex<Places>,
}

#[derive(Debug, Default)]
struct Places {
    next: u64,
    waiters: BTreeMap<u64, Waker>,
}

/// A waiter's place in line.
#[derive(Debug)]
pub struct Place(u64);

impl Line {
    /// Whether nobody waits: one load.
    pub fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) == 0
    }

    /// Takes the last place.
    pub fn join(&self, waker: &Waker) -> Place {
        let mut places = self.lock();
        let place = places.next;
        places.next += 1;
        places.waiters.insert(place, waker.clone());
        self.waiting.store(places.waiters.len(), Ordering::SeqCst);
        Place(place)
    }

    /// Whether a waiter is the first; if not, it is woken by `waker` when it becomes so.
    pub fn is_first(&self, place: &Place, waker: &Waker) -> bool {
        let mut places = self.lock();
        let old = places.waiters.get_mut(&place.0).map(|known| {
            if known.will_wake(waker) { None } else { Some(std::mem::replace(known, waker.clone())) }
        });
        let first = places.waiters.first_key_value().is_some_and(|(first, _)| *first == place.0);
        drop(places);
        // Whatever a waker does when it goes, it does without the lock.
        drop(old);
        first
    }

    /// The first: says what it waits for. It looks whether that is there after this, not before.
    pub fn want(&self, wants: Wants) {
        self.wanted.store(wants, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Gives a place up. Who becomes the first by this is woken.
    pub fn leave(&self, Place(place): Place) {
        let mut places = self.lock();
        let first = places.waiters.first_key_value().is_some_and(|(first, _)| *first == place);
        let gone = places.waiters.remove(&place);
        let next = places.waiters.first_key_value().filter(|_| first).map(|(_, waker)| waker.clone());
        self.waiting.store(places.waiters.len(), Ordering::SeqCst);
        drop(places);
        drop(gone);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// Something of `freed` is there now: wakes the first if it wants that. Never waits: `false` if somebody is just joining or
    /// leaving, and it must be called again.
    #[must_use]
    pub fn call(&self, freed: Wants) -> bool {
        fence(Ordering::SeqCst);
        if self.is_empty() || self.wanted.load(Ordering::SeqCst) & freed == 0 {
            return true;
        }
        let Ok(places) = self.places.try_lock() else { return false };
        let first = places.waiters.first_key_value().map(|(_, waker)| waker.clone());
        drop(places);
        if let Some(waker) = first {
            waker.wake();
        }
        true
    }

    /// The same for a thread that may wait for a moment.
    pub fn call_for_certain(&self, freed: Wants) {
        while !self.call(freed) {
            drop(self.lock());
        }
    }

    /// Nothing is freed any more: all are woken.
    pub fn close(&self) {
        if self.closed.swap(true, Ordering::SeqCst) {
            return;
        }
        let all: Vec<Waker> = self.lock().waiters.values().cloned().collect();
        all.into_iter().for_each(Waker::wake);
    }

    /// Whether it was closed. To be asked after joining.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// A panic of a waker happens outside the lock, so what it guards is whole.
    fn lock(&self) -> MutexGuard<'_, Places> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;
    use std::task::Wake;
    use std::thread;

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    struct Waiter {
        woken: Arc<Woken>,
        waker: Waker,
        place: Place,
    }

    impl Waiter {
        fn join(line: &Line) -> Waiter {
            let woken = Arc::<Woken>::default();
            let waker = Waker::from(woken.clone());
            Waiter { place: line.join(&waker), woken, waker }
        }

        fn is_first(&self, line: &Line) -> bool {
            line.is_first(&self.place, &self.waker)
        }

        fn woken(&self) -> u32 {
            self.woken.0.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn only_the_first_is_called_and_only_for_what_it_wants() {
        let line = Line::default();
        let (first, second) = (Waiter::join(&line), Waiter::join(&line));
        assert!(first.is_first(&line) && !second.is_first(&line));
        line.want(2);
        assert!(line.call(1) && first.woken() == 0);
        assert!(line.call(3));
        assert_eq!((first.woken(), second.woken()), (1, 0));
    }

    #[test]
    fn whoever_becomes_first_is_woken_and_whoever_leaves_from_behind_wakes_nobody() {
        let line = Line::default();
        let (first, second, third) = (Waiter::join(&line), Waiter::join(&line), Waiter::join(&line));
        line.leave(second.place);
        assert_eq!((first.woken(), third.woken()), (0, 0));
        line.leave(first.place);
        assert_eq!(third.woken(), 1);
        assert!(third.is_first(&line));
        line.leave(third.place);
        assert!(line.is_empty());
    }

    #[test]
    fn closing_wakes_everybody() {
        let line = Line::default();
        let waiters = [Waiter::join(&line), Waiter::join(&line)];
        line.close();
        assert!(waiters.iter().all(|waiter| waiter.woken() == 1) && line.is_closed());
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    /// Many threads wait for a few permits that one thread gives back one by one: without a lost wake-up all come through.
    #[test]
    fn many_threads_are_all_served() {
        const THREADS: u32 = 8;
        const EACH: u32 = 2_000;
        let (line, permits) = (Line::default(), AtomicU32::new(0));
        let take =
            || permits.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    let waker = Waker::from(Arc::new(Unpark(thread::current())));
                    for _ in 0..EACH {
                        let place = line.join(&waker);
                        loop {
                            if line.is_first(&place, &waker) {
                                line.want(1);
                                if take() {
                                    break;
                                }
                            }
                            thread::park();
                        }
                        line.leave(place);
                    }
                });
            }
            for _ in 0..THREADS * EACH {
                permits.fetch_add(1, Ordering::SeqCst);
                while !line.call(1) {
                    thread::yield_now();
                }
            }
        });
        assert_eq!(permits.load(Ordering::SeqCst), 0);
        assert!(line.is_empty());
    }
}
