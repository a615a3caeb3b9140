//! A bounded lock-free mailbox with one queue per class: many producers, one consumer, the most urgent class
//! first.
//!
//! Overflow: a full class refuses and the caller keeps its value; the classes do not share capacity, so bulk
//! cannot crowd out what is critical. Order is kept per producer and class.
//!
//! A producer that the kernel preempts in the middle of a push holds up what comes behind it in its class
//! until it runs again.

use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use thiserror::Error;

use super::WakeWord;
use crate::types::{Class, PerClass};

/// A mailbox with `capacity` places per class, whose producers wake `wake`.
pub fn queue<T>(capacity: PerClass<usize>, wake: Arc<WakeWord>) -> (Producer<T>, Consumer<T>) {
    // A channel of zero places would be a meeting point: nobody could ever push without waiting.
    let channels = Class::ALL.map(|class| bounded(capacity[class].max(1)));
    let senders = PerClass(channels.each_ref().map(|(sender, _)| sender.clone()));
    let receivers = PerClass(channels.map(|(_, receiver)| receiver));
    (Producer { senders: Arc::new(senders), wake }, Consumer { receivers })
}

/// Why a push did not happen; the value comes back.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PushError<T> {
    /// The class has no free place. Try again after the consumer ran, or shed.
    #[error("the queue of this class is full")]
    Full(T),
    /// The consumer is gone for good.
    #[error("the consumer is gone")]
    Closed(T),
}

impl<T> PushError<T> {
    /// The value that was not pushed.
    pub fn into_inner(self) -> T {
        match self {
            PushError::Full(value) | PushError::Closed(value) => value,
        }
    }
}

/// The writing end. Clones share the queues.
#[derive(Debug)]
pub struct Producer<T> {
    senders: Arc<PerClass<Sender<T>>>,
    wake: Arc<WakeWord>,
}

impl<T> Clone for Producer<T> {
    fn clone(&self) -> Producer<T> {
        Producer { senders: Arc::clone(&self.senders), wake: Arc::clone(&self.wake) }
    }
}

impl<T> Producer<T> {
    /// Puts `value` behind the others of its class and wakes the driver if it is parked. Never waits.
    ///
    /// # Errors
    /// [`PushError`] with the value; nothing changed.
    pub fn push(&self, class: Class, value: T) -> Result<(), PushError<T>> {
        match self.senders[class].try_send(value) {
            Ok(()) => {
                self.wake.wake();
                Ok(())
            }
            Err(TrySendError::Full(value)) => Err(PushError::Full(value)),
            Err(TrySendError::Disconnected(value)) => Err(PushError::Closed(value)),
        }
    }

    /// Values of `class` that wait now; only a hint, others push and pop meanwhile.
    pub fn len(&self, class: Class) -> usize {
        self.senders[class].len()
    }

    /// Places of `class`.
    pub fn capacity(&self, class: Class) -> usize {
        self.senders[class].capacity().unwrap_or(usize::MAX)
    }

    /// The word of the driver behind this queue, for whoever hands it work by another way.
    pub fn wake_word(&self) -> &Arc<WakeWord> {
        &self.wake
    }
}

/// The reading end; one driver owns it.
#[derive(Debug)]
pub struct Consumer<T> {
    receivers: PerClass<Receiver<T>>,
}

impl<T> Consumer<T> {
    /// Takes the oldest value of the most urgent class that has one. Never waits.
    pub fn pop(&mut self) -> Option<(Class, T)> {
        Class::ALL.into_iter().find_map(|class| self.pop_class(class).map(|value| (class, value)))
    }

    /// Takes the oldest value of `class`. Never waits.
    pub fn pop_class(&mut self, class: Class) -> Option<T> {
        let receiver = &self.receivers[class];
        // Two plain loads; `try_recv` of an empty channel costs a full fence.
        if receiver.is_empty() {
            return None;
        }
        receiver.try_recv().ok()
    }

    /// True when no class holds anything. After [`WakeWord::prepare_park`], a driver that reads true here may
    /// wait.
    pub fn is_empty(&self) -> bool {
        self.receivers.0.iter().all(Receiver::is_empty)
    }

    /// Values of `class` that wait now.
    pub fn len(&self, class: Class) -> usize {
        self.receivers[class].len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    fn mailbox<T>(capacity: usize) -> (Producer<T>, Consumer<T>) {
        queue(PerClass([capacity; 4]), Arc::new(WakeWord::new().unwrap()))
    }

    #[test]
    fn critical_overtakes_what_was_pushed_before() {
        let (producer, mut consumer) = mailbox(4);
        producer.push(Class::Bulk, 1).unwrap();
        producer.push(Class::Normal, 2).unwrap();
        producer.push(Class::Critical, 3).unwrap();
        producer.push(Class::High, 4).unwrap();
        let order: Vec<_> = std::iter::from_fn(|| consumer.pop()).collect();
        let expected = [(Class::Critical, 3), (Class::High, 4), (Class::Normal, 2), (Class::Bulk, 1)];
        assert_eq!(order, expected);
        assert!(consumer.is_empty());
    }

    #[test]
    fn a_full_class_refuses_and_the_others_take() {
        let (producer, consumer) = mailbox(2);
        producer.push(Class::Bulk, 1).unwrap();
        producer.push(Class::Bulk, 2).unwrap();
        assert_eq!(producer.push(Class::Bulk, 3), Err(PushError::Full(3)));
        assert_eq!(producer.push(Class::Critical, 4), Ok(()));
        assert_eq!((consumer.len(Class::Bulk), consumer.len(Class::Critical)), (2, 1));
    }

    #[test]
    fn a_queue_without_consumer_gives_the_value_back() {
        let (producer, consumer) = mailbox(2);
        drop(consumer);
        assert_eq!(producer.push(Class::High, 7), Err(PushError::Closed(7)));
    }

    #[test]
    fn a_capacity_of_zero_becomes_one() {
        let (producer, mut consumer) = mailbox(0);
        producer.push(Class::High, 7).unwrap();
        assert_eq!(consumer.pop(), Some((Class::High, 7)));
    }

    #[test]
    fn many_threads_lose_nothing_and_keep_their_own_order() {
        const THREADS: usize = 4;
        const EACH: usize = 20_000;
        let (producer, mut consumer) = mailbox(64);
        let pushers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let producer = producer.clone();
                thread::spawn(move || {
                    for number in 0..EACH {
                        let class = Class::ALL[number % 4];
                        let mut value = (thread, number);
                        while let Err(refused) = producer.push(class, value) {
                            value = refused.into_inner();
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        let mut next = [[0; 4]; THREADS];
        let mut popped = 0;
        while popped < THREADS * EACH {
            let Some((class, (thread, number))) = consumer.pop() else {
                thread::yield_now();
                continue;
            };
            let expected = &mut next[thread][class.index()];
            assert_eq!(number, *expected * 4 + class.index());
            *expected += 1;
            popped += 1;
        }
        pushers.into_iter().for_each(|pusher| pusher.join().unwrap());
        assert!(consumer.is_empty());
    }
}
