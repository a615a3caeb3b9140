//! What peers say of their tables.

use corecast::proto::{Claim, Heard, View, ViewEffect, ViewLimits};
use corecast::types::{ArtifactId, ConnectionNumber, PeerIndex, Rng, Slot, Version};
use corecast::wire::MAX_SLOTS;

use super::operations::{Scale, Work};
use super::slots::fresh_id;

struct Tables {
    view: View,
    fx: Vec<ViewEffect>,
    version: u64,
    rng: Rng,
}

impl Tables {
    fn new(peers: u16) -> Tables {
        let limits = ViewLimits { slots_per_peer: MAX_SLOTS, peers: peers.into() };
        Tables { view: View::new(limits, &mut Rng::new(1)), fx: Vec::new(), version: 0, rng: Rng::new(2) }
    }

    fn set(&mut self, peer: u16, slot: u32, id: ArtifactId) {
        self.version += 1;
        let (connection, version) = (ConnectionNumber(1), Version(self.version));
        let claim = Claim { id, size: 1024 };
        let heard =
            self.view.handle_set(PeerIndex(peer), connection, Slot(slot), version, claim, &mut self.fx);
        assert_eq!(heard, Heard::Newer);
        self.fx.clear();
    }

    fn clear(&mut self, peer: u16, slot: u32) {
        self.version += 1;
        let (connection, version) = (ConnectionNumber(1), Version(self.version));
        self.view.handle_clear(PeerIndex(peer), connection, Slot(slot), version, &mut self.fx);
        self.fx.clear();
    }
}

/// Every artifact is named by one peer.
pub(crate) fn replace(scale: Scale) -> Work {
    let Scale { active, peers } = scale;
    let mut tables = Tables::new(peers);
    let place = move |number: u32| ((number % u32::from(peers)) as u16, number / u32::from(peers));
    for number in 0..active {
        let (peer, slot) = place(number);
        let id = fresh_id(&mut tables.rng);
        tables.set(peer, slot, id);
    }
    Box::new(move || {
        let (peer, slot) = place(tables.rng.below(active.into()) as u32);
        let id = fresh_id(&mut tables.rng);
        tables.set(peer, slot, id);
    })
}

/// Every artifact is named by every peer, as when all relay.
pub(crate) fn shared(scale: Scale) -> Work {
    let Scale { active, peers } = scale;
    // A peer's table has no more slots than that.
    let active = active.min(MAX_SLOTS);
    let mut tables = Tables::new(peers);
    let ids: Vec<_> = (0..active).map(|_| fresh_id(&mut tables.rng)).collect();
    for (slot, id) in ids.iter().enumerate() {
        (0..peers).for_each(|peer| tables.set(peer, slot as u32, *id));
    }
    Box::new(move || {
        let (peer, slot) = (tables.rng.below(peers.into()) as u16, tables.rng.below(active.into()) as u32);
        tables.clear(peer, slot);
        tables.set(peer, slot, ids[slot as usize]);
    })
}
