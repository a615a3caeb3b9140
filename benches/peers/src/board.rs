//! What is on its way, and what has arrived.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::sync::{mpsc, watch};

use crate::Failure;
use crate::message::Stamp;
use crate::options::{Choice, Work};
use crate::workload::{Kind, Pace, Stream};

/// Checks off deliveries; shared by makers, receivers and the meter.
pub(crate) struct Board {
    work: Work,
    /// How many receivers make a quorum together with the maker.
    quorum: u32,
    begin: Instant,
    streams: Vec<Table>,
    receivers: Vec<Receiver>,
    /// Nodes whose deliveries complete an artifact, one bit each.
    awaited: AtomicU64,
    /// Artifacts that began before this are in no histogram; in nanoseconds since `begin`.
    from: AtomicU64,
    latencies: Mutex<Vec<Latencies>>,
    /// Bodies that did not have the hash they came with.
    corrupt: AtomicU64,
    twice: AtomicU64,
    /// Bytes of artifacts that not all who are waited for have.
    in_flight: AtomicU64,
    /// Receivers that do not read.
    stalled: watch::Sender<u64>,
    /// What a restarted node gets of the time it was away.
    away: Mutex<Option<Away>>,
    is_away: AtomicBool,
}

/// The slots of one stream.
struct Table {
    kind: Kind,
    maker: usize,
    slots: Vec<Slot>,
    free: mpsc::UnboundedSender<Stamp>,
    made: AtomicU64,
}

#[derive(Default)]
struct Slot {
    len: AtomicU64,
    number: AtomicU64,
    /// Nodes that complete it, and nodes that have it.
    wanted: AtomicU64,
    seen: AtomicU64,
    /// Not complete yet.
    open: AtomicBool,
    /// Nanoseconds since `Board::begin`.
    start: AtomicU64,
    quorum: AtomicU64,
}

/// One node's deliveries; alone in its cache lines, as each node counts from another thread.
#[derive(Default)]
#[repr(align(128))]
struct Receiver {
    deliveries: AtomicU64,
    bytes: AtomicU64,
    stalled: AtomicBool,
}

/// Publish to last receiver, and to the one that makes a quorum.
struct Latencies {
    last: Histogram<u64>,
    quorum: Histogram<u64>,
}

/// A node that was closed, and what it missed.
struct Away {
    node: usize,
    missed: HashSet<(u32, u64)>,
    /// Once it is back.
    back: Option<Instant>,
    recovered: Vec<Duration>,
}

/// What a restarted node got of the time it was away.
#[derive(Debug, Clone)]
pub(crate) struct Recovery {
    pub(crate) published: usize,
    pub(crate) recovered: Vec<Duration>,
}

/// Deliveries and bytes of a set of nodes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Count {
    pub(crate) at: Instant,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
}

/// Slots of a stream whose artifacts all have their receivers.
pub(crate) type Free = mpsc::UnboundedReceiver<Stamp>;

/// Artifacts of an open stream that may be on their way.
const OPEN_SLOTS: usize = 16 << 10;

impl Board {
    /// An empty board, and for each stream what comes free.
    pub(crate) fn new(choice: &Choice, streams: &[Stream]) -> Result<(Board, Vec<Free>), Failure> {
        let (mut tables, mut frees) = (Vec::new(), Vec::new());
        for (index, stream) in streams.iter().enumerate() {
            let (free, receiver) = mpsc::unbounded_channel();
            let slots = match stream.pace {
                Pace::Closed { inflight } => inflight,
                Pace::Open { .. } => OPEN_SLOTS,
            };
            for slot in 0..slots as u32 {
                free.send(Stamp { len: 0, stream: index as u32, slot, number: 0 })?;
            }
            let slots = (0..slots).map(|_| Slot::default()).collect();
            tables.push(Table {
                kind: stream.kind,
                maker: stream.maker,
                slots,
                free,
                made: AtomicU64::new(0),
            });
            frees.push(receiver);
        }
        let latencies = Kind::ALL.iter().map(|_| Latencies::new()).collect::<Result<_, _>>()?;
        let faulty = (choice.nodes - 1) / 3;
        let board = Board {
            work: choice.work,
            quorum: (choice.nodes - faulty - 1) as u32,
            begin: Instant::now(),
            streams: tables,
            receivers: (0..choice.nodes).map(|_| Receiver::default()).collect(),
            awaited: AtomicU64::new(u64::MAX >> (64 - choice.nodes)),
            from: AtomicU64::new(u64::MAX),
            latencies: Mutex::new(latencies),
            corrupt: AtomicU64::new(0),
            twice: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            stalled: watch::Sender::new(0),
            away: Mutex::new(None),
            is_away: AtomicBool::new(false),
        };
        Ok((board, frees))
    }

    pub(crate) fn work(&self) -> Work {
        self.work
    }

    fn since_begin(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.begin).as_nanos()).unwrap_or(u64::MAX)
    }

    // ---- makers ----

    /// An artifact begins: its stamp, for the slot that came free.
    pub(crate) fn begin(&self, free: Stamp, len: usize, start: Instant) -> Stamp {
        let table = &self.streams[free.stream as usize];
        let stamp = Stamp { len: len as u32, number: table.made.fetch_add(1, Ordering::Relaxed), ..free };
        let slot = &table.slots[stamp.slot as usize];
        slot.number.store(stamp.number, Ordering::Relaxed);
        slot.len.store(u64::from(stamp.len), Ordering::Relaxed);
        slot.start.store(self.since_begin(start), Ordering::Relaxed);
        slot.wanted.store(self.awaited.load(Ordering::Relaxed) & !(1 << table.maker), Ordering::Relaxed);
        slot.seen.store(0, Ordering::Relaxed);
        self.in_flight.fetch_add(u64::from(stamp.len), Ordering::Relaxed);
        slot.open.store(true, Ordering::SeqCst);
        if self.is_away.load(Ordering::Relaxed)
            && let Some(away) = lock(&self.away).as_mut()
        {
            away.missed.insert((stamp.stream, stamp.number));
        }
        stamp
    }

    /// Deliveries that artifacts made so far should have in the end.
    pub(crate) fn expected(&self) -> u64 {
        let made: u64 = self.streams.iter().map(|table| table.made.load(Ordering::Relaxed)).sum();
        made * (self.receivers.len() as u64 - 1)
    }

    // ---- receivers ----

    /// `receiver` has the artifact whole.
    pub(crate) fn arrived(&self, receiver: usize, stamp: Stamp) {
        let node = &self.receivers[receiver];
        node.deliveries.fetch_add(1, Ordering::Relaxed);
        node.bytes.fetch_add(u64::from(stamp.len), Ordering::Relaxed);
        let bit = 1_u64 << receiver;
        if self.awaited.load(Ordering::Relaxed) & bit == 0 {
            return self.arrived_unawaited(receiver, stamp);
        }
        let Some(table) = self.streams.get(stamp.stream as usize) else { return };
        let Some(slot) = table.slots.get(stamp.slot as usize) else { return };
        if slot.number.load(Ordering::Relaxed) != stamp.number {
            return;
        }
        let before = slot.seen.fetch_or(bit, Ordering::SeqCst);
        if before & bit != 0 {
            node.deliveries.fetch_sub(1, Ordering::Relaxed);
            node.bytes.fetch_sub(u64::from(stamp.len), Ordering::Relaxed);
            self.twice.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if (before | bit).count_ones() == self.quorum {
            slot.quorum.store(self.since_begin(Instant::now()), Ordering::Relaxed);
        }
        if slot.completes() {
            self.completed(table, slot, stamp);
        }
    }

    fn completed(&self, table: &Table, slot: &Slot, stamp: Stamp) {
        self.in_flight.fetch_sub(u64::from(stamp.len), Ordering::Relaxed);
        let start = slot.start.load(Ordering::Relaxed);
        if start >= self.from.load(Ordering::Relaxed) {
            let now = self.since_begin(Instant::now());
            let quorum = slot.quorum.load(Ordering::Relaxed);
            let mut latencies = lock(&self.latencies);
            let latencies = &mut latencies[table.kind as usize];
            latencies.last.saturating_record(now.saturating_sub(start));
            latencies.quorum.saturating_record(quorum.saturating_sub(start));
        }
        // Unbounded, and never longer than the number of slots.
        let _ = table.free.send(stamp);
    }

    /// A node that nobody waits for: it stands still, or is back after it was away.
    fn arrived_unawaited(&self, receiver: usize, stamp: Stamp) {
        let mut away = lock(&self.away);
        let Some(away) = away.as_mut().filter(|away| away.node == receiver) else { return };
        if let Some(back) = away.back
            && away.missed.remove(&(stamp.stream, stamp.number))
        {
            away.recovered.push(back.elapsed());
        }
    }

    /// A body had not the hash that it came with.
    pub(crate) fn corrupted(&self) {
        self.corrupt.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits while `receiver` is not to read. Receivers call it before each read.
    pub(crate) async fn gate(&self, receiver: usize) {
        if self.receivers[receiver].stalled.load(Ordering::Relaxed) {
            let _ = self.stalled.subscribe().wait_for(|stalled| stalled & (1 << receiver) == 0).await;
        }
    }

    // ---- the meter ----

    /// Stops `receiver` from reading, or lets it go on. From its first stop on nobody waits for it.
    pub(crate) fn stall(&self, receiver: usize, stalled: bool) {
        self.ignore(receiver);
        self.receivers[receiver].stalled.store(stalled, Ordering::Relaxed);
        self.stalled.send_replace(u64::from(stalled) << receiver);
    }

    /// Nobody waits for `node` from now on, not even for what is on its way to it.
    fn ignore(&self, node: usize) {
        let bit = 1_u64 << node;
        self.awaited.fetch_and(!bit, Ordering::SeqCst);
        for (stream, table) in self.streams.iter().enumerate() {
            for (index, slot) in table.slots.iter().enumerate() {
                slot.wanted.fetch_and(!bit, Ordering::SeqCst);
                if slot.completes() {
                    let number = slot.number.load(Ordering::Relaxed);
                    let len = slot.len.load(Ordering::Relaxed) as u32;
                    self.in_flight.fetch_sub(u64::from(len), Ordering::Relaxed);
                    let stamp = Stamp { len, stream: stream as u32, slot: index as u32, number };
                    let _ = table.free.send(stamp);
                }
            }
        }
    }

    /// `node` is closed: what is made from now on, it misses.
    pub(crate) fn leave(&self, node: usize) {
        *lock(&self.away) = Some(Away { node, missed: HashSet::new(), back: None, recovered: Vec::new() });
        self.is_away.store(true, Ordering::Relaxed);
        self.ignore(node);
    }

    /// It is started again.
    pub(crate) fn back(&self) {
        self.is_away.store(false, Ordering::Relaxed);
        if let Some(away) = lock(&self.away).as_mut() {
            away.back = Some(Instant::now());
        }
    }

    /// What it got of what it missed.
    pub(crate) fn recovery(&self) -> Option<Recovery> {
        let away = lock(&self.away);
        away.as_ref().map(|away| Recovery {
            published: away.missed.len() + away.recovered.len(),
            recovered: away.recovered.clone(),
        })
    }

    /// Deliveries so far at every node but `except`.
    pub(crate) fn count(&self, except: Option<usize>) -> Count {
        let mut count = Count { at: Instant::now(), deliveries: 0, bytes: 0 };
        for (index, receiver) in self.receivers.iter().enumerate() {
            if Some(index) != except {
                count.deliveries += receiver.deliveries.load(Ordering::Relaxed);
                count.bytes += receiver.bytes.load(Ordering::Relaxed);
            }
        }
        count
    }

    /// Bytes of artifacts that not all who are waited for have, each counted once.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// From now on latencies count.
    pub(crate) fn record_from(&self, at: Instant) {
        self.from.store(self.since_begin(at), Ordering::Relaxed);
    }

    pub(crate) fn corrupt(&self) -> u64 {
        self.corrupt.load(Ordering::Relaxed)
    }

    pub(crate) fn twice(&self) -> u64 {
        self.twice.load(Ordering::Relaxed)
    }

    /// Latencies of artifacts of these kinds: to the last receiver, and to the quorum.
    pub(crate) fn latencies(&self, kinds: &[Kind]) -> Result<[Histogram<u64>; 2], Failure> {
        let mut sum = Latencies::new()?;
        for &kind in kinds {
            let all = lock(&self.latencies);
            sum.last.add(&all[kind as usize].last)?;
            sum.quorum.add(&all[kind as usize].quorum)?;
        }
        Ok([sum.last, sum.quorum])
    }
}

impl Slot {
    /// Whether it has just become complete; true once for each artifact.
    fn completes(&self) -> bool {
        let wanted = self.wanted.load(Ordering::SeqCst);
        self.seen.load(Ordering::SeqCst) & wanted == wanted && self.open.swap(false, Ordering::SeqCst)
    }
}

impl Latencies {
    fn new() -> Result<Latencies, Failure> {
        let histogram = || Histogram::new_with_bounds(100, 3_600_000_000_000, 3);
        Ok(Latencies { last: histogram()?, quorum: histogram()? })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
