//! A stream of artifacts as its maker sees it: what is on its way, what is still held active, what comes next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use corecast::types::{ArtifactId, Rng};

use crate::subnet::port::HEAD;

/// Bytes at the start of each artifact that say where it stands in the tables here.
pub(crate) const STAMP: usize = HEAD;
/// Bytes made of one stream before the next has its turn: they are hashed on this thread, a tenth of a millisecond and more.
pub(super) const BATCH_BYTES: usize = 1 << 20;
/// Artifacts of one stream that may be on their way when the pace does not depend on deliveries.
const OPEN_INFLIGHT: usize = 4096;

/// Artifacts that one node makes, one after another.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    /// Which node.
    pub(crate) maker: usize,
    /// In which topic.
    pub(crate) topic: usize,
    /// What it is measured as; kinds are numbered from zero.
    pub(crate) kind: usize,
    /// Bytes of each artifact, in turn. At least [`STAMP`].
    pub(crate) sizes: Vec<usize>,
    /// When the next is made.
    pub(crate) pace: Pace,
    /// How long each stays active.
    pub(crate) hold: Hold,
    /// Receivers relay what they have, until it is aborted everywhere.
    pub(crate) relay: bool,
}

impl Stream {
    /// Whether its deliveries may be consumed where they come: nothing is decided of them.
    pub(crate) fn is_noted(&self) -> bool {
        !self.relay
    }
}

/// When artifacts are made.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// So many are on their way at a time: whenever one is complete, the next is made.
    Closed { inflight: usize },
    /// At fixed times, whether or not the subnet keeps up. Latency counts from the intended time.
    Open { first: Duration, every: Duration },
}

/// How long an artifact stays active.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hold {
    /// Until its last receiver has it.
    UntilComplete,
    /// For a time that is drawn evenly between these, from when it was made, whoever has it by then.
    For { least: Duration, most: Duration },
}

/// Where an artifact stands, as written into its first bytes.
pub(super) struct Stamp {
    pub(super) stream: u32,
    pub(super) slot: u32,
    pub(super) number: u64,
}

impl Stamp {
    fn write(&self, body: &mut [u8]) {
        let [stream, slot] = [self.stream, self.slot].map(u32::to_le_bytes);
        let parts = stream.iter().chain(&slot).copied().chain(self.number.to_le_bytes());
        body.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    }

    pub(super) fn read(head: &[u8; STAMP]) -> Stamp {
        let [stream, slot, low, high] =
            [0, 4, 8, 12].map(|at| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
        Stamp { stream, slot, number: u64::from(low) | u64::from(high) << 32 }
    }
}

/// An artifact about to be made.
pub(super) struct Draft {
    pub(super) slot: u32,
    pub(super) start: Instant,
    pub(super) number: u64,
    pub(super) body: Bytes,
}

pub(super) struct Slot {
    pub(super) number: u64,
    pub(super) id: ArtifactId,
    pub(super) body: Bytes,
    pub(super) start: Instant,
    /// One bit for each node that does not have it yet.
    pub(super) missing: u128,
    /// It was aborted before every node had it.
    pub(super) given_up: bool,
}

impl Slot {
    /// Nothing was made in it.
    fn unused(now: Instant) -> Slot {
        let (id, body) = (ArtifactId([0; 32]), Bytes::new());
        Slot { number: u64::MAX, id, body, start: now, missing: 0, given_up: false }
    }
}

pub(super) struct StreamState {
    pub(super) stream: Stream,
    pub(super) slots: Vec<Slot>,
    free: Vec<u32>,
    /// When held artifacts are to be aborted, the next one on top.
    held: BinaryHeap<Reverse<(Instant, u32)>>,
    holds: Rng,
    /// The number of the next artifact.
    pub(super) number: u64,
    /// When the next is due, at an open pace.
    due: Instant,
    /// Bodies that are complete and can be stamped anew once the node has let go of them.
    spare: VecDeque<Bytes>,
    /// The node had no room when it was last asked.
    pub(super) blocked: bool,
}

impl StreamState {
    /// Its first artifact has the number `first`.
    pub(super) fn new(stream: Stream, index: usize, first: u64, begin: Instant) -> StreamState {
        let due = match stream.pace {
            Pace::Closed { .. } => begin,
            Pace::Open { first, .. } => begin + first,
        };
        StreamState {
            stream,
            slots: Vec::new(),
            free: Vec::new(),
            held: BinaryHeap::new(),
            holds: Rng::new(first ^ ((index as u64) << 32)),
            number: first,
            due,
            spare: VecDeque::new(),
            blocked: false,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.stream.pace, Pace::Open { .. })
    }

    /// When this stream has something to do by itself.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let made = self.is_open().then_some(self.due);
        made.into_iter().chain(self.next_abort_at()).min()
    }

    /// When the next held artifact is to be aborted.
    pub(super) fn next_abort_at(&self) -> Option<Instant> {
        self.held.peek().map(|Reverse((at, _))| *at)
    }

    /// What is to be made now: at most `most`, and no more bytes than [`BATCH_BYTES`] but for the last. `index` is this stream's.
    pub(super) fn drafts(&mut self, template: &[u8], index: usize, most: usize, now: Instant) -> Vec<Draft> {
        let (mut drafts, mut bytes) = (Vec::new(), 0);
        while drafts.len() < most && bytes < BATCH_BYTES {
            let Some((slot, start)) = self.next_slot(now) else { break };
            let number = self.number;
            let body = self.body(template, &Stamp { stream: index as u32, slot, number });
            self.number += 1;
            bytes += body.len();
            drafts.push(Draft { slot, start, number, body });
        }
        drafts
    }

    /// A slot for the next artifact and its start, if one is to be made now.
    fn next_slot(&mut self, now: Instant) -> Option<(u32, Instant)> {
        let (most, start) = match self.stream.pace {
            Pace::Closed { inflight } => (inflight, now),
            Pace::Open { .. } if now < self.due => return None,
            Pace::Open { .. } => (OPEN_INFLIGHT, self.due),
        };
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < most => {
                self.slots.push(Slot::unused(now));
                self.slots.len() as u32 - 1
            }
            None => return None,
        };
        if let Pace::Open { every, .. } = self.stream.pace {
            self.due += every;
        }
        Some((slot, start))
    }

    /// The node did not take it: its time has yet to come, at an open pace, where only the last one is put back.
    pub(super) fn put_back(&mut self, draft: Draft) {
        if self.is_open() {
            self.due = draft.start;
        }
        self.spare.push_back(draft.body);
        self.free.push(draft.slot);
    }

    /// The slot's artifact is active.
    pub(super) fn take_slot(&mut self, index: u32, slot: Slot) {
        if let Hold::For { least, most } = self.stream.hold {
            let spread = most.saturating_sub(least).as_micros() as u64;
            let hold = least + Duration::from_micros(self.holds.below(spread + 1));
            self.held.push(Reverse((Instant::now() + hold, index)));
        }
        self.slots[index as usize] = slot;
    }

    /// The slot of an artifact whose time to be aborted has come.
    pub(super) fn next_abort(&mut self, now: Instant) -> Option<u32> {
        let Reverse((at, slot)) = *self.held.peek()?;
        (at <= now).then(|| self.held.pop())?;
        Some(slot)
    }

    /// The slot's artifact is no longer active, and its body may serve again.
    pub(super) fn free(&mut self, index: u32) {
        let body = std::mem::take(&mut self.slots[index as usize].body);
        if self.stream.sizes.len() == 1 && self.spare.len() < 2 * self.slots.len() {
            self.spare.push_back(body);
        }
        self.free.push(index);
    }

    /// A body with this stamp: an old one if the node has let go of it, otherwise a new one.
    fn body(&mut self, template: &[u8], stamp: &Stamp) -> Bytes {
        let size = self.next_size();
        let old = self.spare.pop_front().map(Bytes::try_into_mut);
        let mut body = match old {
            Some(Ok(body)) if body.len() == size => body,
            Some(Ok(_)) | None => BytesMut::from(&template[..size]),
            Some(Err(held)) => {
                self.spare.push_back(held);
                BytesMut::from(&template[..size])
            }
        };
        stamp.write(&mut body);
        body.freeze()
    }

    /// Bytes of the next artifact.
    fn next_size(&self) -> usize {
        self.stream.sizes[(self.number % self.stream.sizes.len() as u64) as usize]
    }
}
