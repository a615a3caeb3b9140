//! What members refuse to hold of the table as it is now: a bit per member and slot, so that the replica is told of each once
//! and a member that refuses all the time costs nothing more.

use super::DirtySet;
use crate::types::{PeerIndex, Slot};
use crate::wire::Refusal;

/// Refusals of the slots' current content, and which of them are untold.
#[derive(Debug)]
pub(super) struct Refusals {
    capacity: u32,
    /// By peer; those that never refused anything cost nothing.
    members: Vec<Option<Box<Refused>>>,
    /// Untold refusals of all members.
    untold: usize,
}

/// What one member refuses.
#[derive(Debug)]
struct Refused {
    slots: DirtySet,
    /// Of these, the ones refused for their size.
    too_large: DirtySet,
    /// Of these, the ones that the replica has not been told of.
    untold: DirtySet,
}

impl Refusals {
    pub(super) fn new(capacity: u32, peers: usize) -> Refusals {
        Refusals { capacity, members: (0..peers).map(|_| None).collect(), untold: 0 }
    }

    /// `peer` refuses what `slot` holds now; whether that is new.
    pub(super) fn insert(&mut self, peer: PeerIndex, slot: Slot, reason: Refusal) -> bool {
        let Some(member) = self.members.get_mut(peer.index()) else { return false };
        let member = member.get_or_insert_with(|| {
            let empty = DirtySet::new(self.capacity);
            Box::new(Refused { slots: empty.clone(), too_large: empty.clone(), untold: empty })
        });
        let new = member.slots.insert(slot.0);
        if new {
            if reason == Refusal::ArtifactSize {
                member.too_large.insert(slot.0);
            }
            member.untold.insert(slot.0);
            self.untold += 1;
        }
        new
    }

    /// `slot` has changed: what was refused is not there any more.
    pub(super) fn forget(&mut self, slot: Slot) {
        for member in self.members.iter_mut().flatten() {
            member.slots.remove(slot.0);
            member.too_large.remove(slot.0);
            self.untold -= usize::from(member.untold.remove(slot.0));
        }
    }

    pub(super) fn has(&self, peer: PeerIndex, slot: Slot) -> bool {
        let member = self.members.get(peer.index()).and_then(Option::as_ref);
        member.is_some_and(|member| member.slots.contains(slot.0))
    }

    pub(super) fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// The next one to tell; it counts as told.
    pub(super) fn next_untold(&mut self) -> Option<(PeerIndex, Slot, Refusal)> {
        if self.untold == 0 {
            return None;
        }
        self.members.iter_mut().enumerate().find_map(|(peer, member)| {
            let member = member.as_mut()?;
            let number = member.untold.next_at_or_after(0)?;
            member.untold.remove(number);
            self.untold -= 1;
            let too_large = member.too_large.contains(number);
            let reason = if too_large { Refusal::ArtifactSize } else { Refusal::SlotLimit };
            Some((PeerIndex(peer as u16), Slot(number), reason))
        })
    }
}
