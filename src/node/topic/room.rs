//! Room in a topic's table, and those who wait for it.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::TopicConfig;
use crate::sync::{Line, Wants};

/// The table of the topic in a lane has no slot or not enough bytes left, or others wait for them.
#[derive(Debug)]
pub(in crate::node) struct Full;

/// Slots and bytes of one topic that handles have taken and lanes have not freed, per lane: how `broadcast` knows at once
/// that a table is full. Whoever waits for some has the first claim on what is freed.
#[derive(Debug)]
pub(in crate::node) struct Room {
    lanes: Vec<LaneRoom>,
    slots: u32,
    bytes: u64,
}

#[derive(Debug, Default)]
struct LaneRoom {
    slots: AtomicU32,
    bytes: AtomicU64,
    line: Line,
}

impl Room {
    /// What waiters want: a slot and bytes of the table.
    pub(in crate::node) const TABLE: Wants = 1;
    /// What waiters want: a place in the lane's queue of commands.
    pub(in crate::node) const QUEUE: Wants = 2;

    pub(in crate::node) fn new(config: &TopicConfig, lanes: u16) -> Room {
        let lanes = (0..lanes).map(|_| LaneRoom::default()).collect();
        Room { lanes, slots: config.slots, bytes: config.active_bytes }
    }

    /// Takes one slot and `bytes`, unless somebody waits for them.
    pub(in crate::node) fn take(&self, lane: u16, bytes: u64) -> Result<(), Full> {
        if self.line(lane).is_some_and(|line| !line.is_empty()) {
            return Err(Full);
        }
        self.take_first(lane, bytes)
    }

    /// Takes one slot and `bytes`; for the first in line.
    pub(in crate::node) fn take_first(&self, lane: u16, bytes: u64) -> Result<(), Full> {
        let LaneRoom { slots, bytes: used, .. } = self.lanes.get(usize::from(lane)).ok_or(Full)?;
        let take = |now: u32| (now < self.slots).then_some(now + 1);
        slots.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| Full)?;
        let take = |now: u64| now.checked_add(bytes).filter(|sum| *sum <= self.bytes);
        if used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_err() {
            self.give_back(lane, 0);
            return Err(Full);
        }
        Ok(())
    }

    /// Gives one slot and `bytes` back. Who waits for them is to be called afterwards, once for many.
    pub(in crate::node) fn free(&self, lane: u16, bytes: u64) {
        if let Some(LaneRoom { slots, bytes: used, .. }) = self.lanes.get(usize::from(lane)) {
            slots.fetch_sub(1, Ordering::Relaxed);
            used.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    /// [`Room::free`] on a thread of the replica, for what it has taken in vain.
    pub(in crate::node) fn give_back(&self, lane: u16, bytes: u64) {
        self.free(lane, bytes);
        if let Some(line) = self.line(lane) {
            line.call_for_certain(Self::TABLE);
        }
    }

    /// Calls who waits for what was freed; `false`: it must be called again.
    #[must_use]
    pub(in crate::node) fn call(&self, lane: u16, freed: Wants) -> bool {
        self.line(lane).is_none_or(|line| line.call(freed))
    }

    /// Those who wait for room in a lane.
    pub(in crate::node) fn line(&self, lane: u16) -> Option<&Line> {
        self.lanes.get(usize::from(lane)).map(|lane| &lane.line)
    }

    /// The lane ends: nobody is served any more.
    pub(in crate::node) fn close(&self, lane: u16) {
        if let Some(line) = self.line(lane) {
            line.close();
        }
    }
}
