//! What a node publishes about itself.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::metrics::EngineCounters;
use crate::quic::QuicCounters;

/// One lane's figures, as of its last housekeeping.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LaneFigures {
    pub(super) engine: EngineCounters,
    pub(super) quic: QuicCounters,
    pub(super) connected_peers: usize,
    pub(super) turns: u64,
}

/// How far a lane's life has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum LaneState {
    #[default]
    Running,
    /// It left its executor in order.
    Stopped,
    /// It panicked; nothing more comes from it.
    Failed,
}

/// What a lane's thread and the replica's threads share, apart from queues.
#[derive(Debug, Default)]
pub(super) struct LaneBoard {
    figures: Mutex<LaneFigures>,
    state: Mutex<LaneState>,
    changed: Condvar,
}

/// A poisoned board still holds whole figures: they are plain copies.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl LaneBoard {
    /// Publishes figures unless a reader holds them just now; they come again.
    pub(super) fn publish(&self, figures: &LaneFigures) {
        if let Ok(mut board) = self.figures.try_lock() {
            *board = *figures;
        }
    }

    pub(super) fn figures(&self) -> LaneFigures {
        *lock(&self.figures)
    }

    pub(super) fn state(&self) -> LaneState {
        *lock(&self.state)
    }

    pub(super) fn set_state(&self, state: LaneState) {
        *lock(&self.state) = state;
        self.changed.notify_all();
    }

    /// Waits until the lane runs no more, at most to `deadline`; whether it does not.
    pub(super) fn wait_ended(&self, deadline: Instant) -> bool {
        let mut state = lock(&self.state);
        while *state == LaneState::Running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }
}

/// A node's figures, summed over its lanes. Monotonic but for `connected_peers`; up to one housekeeping old.
#[derive(Debug, Clone, Copy, Default)]
#[non_exhaustive]
pub struct Stats {
    /// What the engines counted.
    pub engine: EngineCounters,
    /// What the transport counted.
    pub quic: QuicCounters,
    /// Peers connected on every lane.
    pub connected_peers: usize,
    /// Turns of all lanes.
    pub turns: u64,
}

impl Stats {
    pub(super) fn sum(lanes: impl Iterator<Item = LaneFigures>) -> Stats {
        let mut sum: Option<Stats> = None;
        for lane in lanes {
            let sum = sum.get_or_insert(Stats { connected_peers: usize::MAX, ..Stats::default() });
            sum.engine.merge(&lane.engine);
            sum.quic.merge(&lane.quic);
            sum.connected_peers = sum.connected_peers.min(lane.connected_peers);
            sum.turns += lane.turns;
        }
        sum.unwrap_or_default()
    }
}
