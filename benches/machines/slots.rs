//! The sender's table.

use std::hint::black_box;

use corecast::proto::{Active, Origin, SlotLimits, Slots};
use corecast::types::{ArtifactId, Attribute, Class, Instant, PeerIndex, Rng};
use corecast::wire::MAX_SLOTS;

use super::operations::{Scale, Work};

struct Table {
    slots: Slots,
    active: Vec<ArtifactId>,
    peers: u16,
    rng: Rng,
}

pub(crate) fn fresh_id(rng: &mut Rng) -> ArtifactId {
    let mut id = [0; 32];
    rng.fill(&mut id);
    ArtifactId(id)
}

impl Table {
    /// As full as one table can be, and all peers have been told of it or of nothing.
    fn new(scale: Scale, told: bool) -> Table {
        let Scale { active, peers } = scale;
        // One more, for what comes before another goes.
        let active = active.min(MAX_SLOTS - 1);
        let limits = SlotLimits {
            capacity: active + 1,
            peers: peers.into(),
            push_threshold: 4096,
            class: Class::Normal,
        };
        let mut rng = Rng::new(1);
        let mut table =
            Table { slots: Slots::new(limits, &mut rng), active: Vec::new(), peers, rng: Rng::new(2) };
        for peer in 0..peers {
            table.slots.handle_connected(PeerIndex(peer));
        }
        for _ in 0..active {
            let id = table.broadcast();
            table.active.push(id);
        }
        if told {
            table.tell();
        }
        table
    }

    fn broadcast(&mut self) -> ArtifactId {
        let id = fresh_id(&mut self.rng);
        let (attribute, origin, since) = (Attribute::EMPTY, Origin::Own, Instant::ZERO);
        let active = Active { id, size: 1024, attribute, origin, since };
        assert!(self.slots.handle_broadcast(active).is_ok());
        id
    }

    fn replace(&mut self) {
        let at = self.rng.below(self.active.len() as u64) as usize;
        assert!(self.slots.handle_abort(&self.active[at]).is_some());
        self.active[at] = self.broadcast();
    }

    fn tell(&mut self) {
        for peer in (0..self.peers).map(PeerIndex) {
            while let Some(next) = self.slots.next_update(peer, &mut |_| false) {
                black_box(next.slot);
            }
        }
    }
}

pub(crate) fn replace(scale: Scale) -> Work {
    let mut table = Table::new(scale, true);
    Box::new(move || {
        table.replace();
        table.tell();
    })
}

pub(crate) fn untold(scale: Scale) -> Work {
    let mut table = Table::new(scale, true);
    Box::new(move || {
        let id = table.broadcast();
        assert!(table.slots.handle_abort(&id).is_some());
    })
}

/// All is dirty at every peer, and stays so.
pub(crate) fn backlog(scale: Scale) -> Work {
    let mut table = Table::new(scale, false);
    let mut next = 0;
    Box::new(move || {
        let peer = PeerIndex(next % table.peers);
        next += 1;
        let slot = table.slots.next_update(peer, &mut |_| false).map(|update| update.slot);
        table.slots.put_back(peer, slot.expect("all is dirty"));
    })
}
