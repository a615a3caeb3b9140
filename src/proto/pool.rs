//! The bodies of one topic in one lane, in two byte budgets: what the replica has validated (or made), and
//! what peers sent and the replica has not judged yet. A flood of the second kind never takes room from the
//! first.

use std::collections::hash_map;

use bytes::Bytes;

use crate::types::{ArtifactId, Attribute, IdMap, KeyedState, PeerIndex, Rng};

/// Byte budgets of one topic.
#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// Bytes of validated bodies. Their number is bounded by the slots of this node's own table.
    pub validated_bytes: u64,
    /// Bytes of bodies that the replica has not judged. Their number is bounded by the slots of the peers'
    /// tables.
    pub unvalidated_bytes: u64,
}

/// Whose word stands behind a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The replica made it or found it valid: it may be served to others.
    Validated,
    /// Only a peer's: its bytes match its id, no more.
    Unvalidated,
}

/// A body and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The body.
    pub bytes: Bytes,
    /// What a filter may look at.
    pub attribute: Attribute,
    /// Its stage.
    pub stage: Stage,
    /// Who sent it; `None` when it was made here.
    pub from: Option<PeerIndex>,
}

/// The body does not fit the budget of its stage. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{size} bytes do not fit: {used} of {limit} bytes are in use")]
pub struct PoolFull {
    /// Bytes of the body.
    pub size: u64,
    /// Bytes of that stage in the pool.
    pub used: u64,
    /// The stage's budget.
    pub limit: u64,
}

/// What became of a body that the replica found valid.
#[derive(Debug, PartialEq, Eq)]
pub enum Promotion<'a> {
    /// It is validated from now on.
    Promoted(&'a Held),
    /// It was validated before.
    Already(&'a Held),
    /// The pool does not hold it: it was withdrawn or dropped meanwhile.
    Unknown,
    /// The validated budget has no room; it stays unvalidated.
    Full(PoolFull),
}

/// The pool. One body per id; the caller has checked that it hashes to it.
#[derive(Debug)]
pub struct Pool {
    limits: PoolLimits,
    held: IdMap<Held>,
    validated: u64,
    unvalidated: u64,
}

impl Pool {
    /// An empty pool. `seed` draws the key of the look-up by id.
    pub fn new(limits: PoolLimits, seed: &mut Rng) -> Pool {
        let held = IdMap::with_hasher(KeyedState::new(seed));
        Pool { limits, held, validated: 0, unvalidated: 0 }
    }

    /// Takes a body that the replica made: validated from the start. One that a peer sent before is promoted;
    /// one that is validated already stays as it is.
    pub fn insert_own(&mut self, id: ArtifactId, bytes: Bytes, attribute: Attribute) -> Result<(), PoolFull> {
        let hash_map::Entry::Vacant(place) = self.held.entry(id) else {
            return match self.validate(&id) {
                Promotion::Full(full) => Err(full),
                _ => Ok(()),
            };
        };
        self.validated += fits(bytes.len(), self.validated, self.limits.validated_bytes)?;
        place.insert(Held { bytes, attribute, stage: Stage::Validated, from: None });
        Ok(())
    }

    /// Takes a body that `from` sent. One that the pool holds already stays as it is.
    pub fn insert_received(
        &mut self,
        id: ArtifactId,
        bytes: Bytes,
        attribute: Attribute,
        from: PeerIndex,
    ) -> Result<(), PoolFull> {
        let hash_map::Entry::Vacant(place) = self.held.entry(id) else { return Ok(()) };
        self.unvalidated += fits(bytes.len(), self.unvalidated, self.limits.unvalidated_bytes)?;
        place.insert(Held { bytes, attribute, stage: Stage::Unvalidated, from: Some(from) });
        Ok(())
    }

    /// The replica found `id` valid: its body moves from one budget to the other.
    pub fn validate(&mut self, id: &ArtifactId) -> Promotion<'_> {
        let Some(held) = self.held.get_mut(id) else { return Promotion::Unknown };
        if held.stage == Stage::Validated {
            return Promotion::Already(held);
        }
        let size = match fits(held.bytes.len(), self.validated, self.limits.validated_bytes) {
            Ok(size) => size,
            Err(full) => return Promotion::Full(full),
        };
        self.unvalidated -= size;
        self.validated += size;
        held.stage = Stage::Validated;
        Promotion::Promoted(held)
    }

    /// Takes `id` out.
    pub fn remove(&mut self, id: &ArtifactId) -> Option<Held> {
        let held = self.held.remove(id)?;
        *self.used(held.stage) -= held.bytes.len() as u64;
        Some(held)
    }

    /// What is held under `id`.
    pub fn get(&self, id: &ArtifactId) -> Option<&Held> {
        self.held.get(id)
    }

    /// The body of `id`, if the replica stands behind it: only such bodies are served to peers.
    pub fn get_validated(&self, id: &ArtifactId) -> Option<&Bytes> {
        self.held.get(id).filter(|held| held.stage == Stage::Validated).map(|held| &held.bytes)
    }

    /// Bytes of bodies in a stage.
    pub fn bytes(&self, stage: Stage) -> u64 {
        match stage {
            Stage::Validated => self.validated,
            Stage::Unvalidated => self.unvalidated,
        }
    }

    /// Bodies of both stages.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    fn used(&mut self, stage: Stage) -> &mut u64 {
        match stage {
            Stage::Validated => &mut self.validated,
            Stage::Unvalidated => &mut self.unvalidated,
        }
    }
}

/// The bytes of a body, which fit.
fn fits(size: usize, used: u64, limit: u64) -> Result<u64, PoolFull> {
    let size = size as u64;
    if size <= limit.saturating_sub(used) { Ok(size) } else { Err(PoolFull { size, used, limit }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PeerIndex = PeerIndex(3);

    fn id(byte: u8) -> ArtifactId {
        ArtifactId([byte; 32])
    }

    fn body(size: usize) -> Bytes {
        Bytes::from(vec![1; size])
    }

    fn pool() -> Pool {
        Pool::new(PoolLimits { validated_bytes: 100, unvalidated_bytes: 50 }, &mut Rng::new(1))
    }

    fn own(pool: &mut Pool, byte: u8, size: usize) -> Result<(), PoolFull> {
        pool.insert_own(id(byte), body(size), Attribute::EMPTY)
    }

    fn received(pool: &mut Pool, byte: u8, size: usize) -> Result<(), PoolFull> {
        pool.insert_received(id(byte), body(size), Attribute::EMPTY, PEER)
    }

    #[test]
    fn a_received_body_is_not_served_before_it_is_validated() {
        let mut pool = pool();
        received(&mut pool, 1, 10).unwrap();
        assert_eq!(pool.get_validated(&id(1)), None);
        assert!(matches!(pool.validate(&id(1)), Promotion::Promoted(held) if held.from == Some(PEER)));
        assert_eq!(pool.get_validated(&id(1)), Some(&body(10)));
        assert!(matches!(pool.validate(&id(1)), Promotion::Already(_)));
        assert_eq!((pool.bytes(Stage::Validated), pool.bytes(Stage::Unvalidated)), (10, 0));
    }

    #[test]
    fn each_stage_has_its_own_budget() {
        let mut pool = pool();
        received(&mut pool, 1, 50).unwrap();
        assert_eq!(received(&mut pool, 2, 1), Err(PoolFull { size: 1, used: 50, limit: 50 }));
        own(&mut pool, 3, 100).unwrap();
        assert!(own(&mut pool, 4, 1).is_err());
        assert_eq!(pool.len(), 2);
    }

    #[test]
    fn validating_without_room_leaves_the_body_unvalidated() {
        let mut pool = pool();
        own(&mut pool, 1, 95).unwrap();
        received(&mut pool, 2, 10).unwrap();
        assert!(matches!(pool.validate(&id(2)), Promotion::Full(_)));
        assert_eq!(pool.bytes(Stage::Unvalidated), 10);
        pool.remove(&id(1));
        assert!(matches!(pool.validate(&id(2)), Promotion::Promoted(_)));
    }

    #[test]
    fn making_what_a_peer_sent_validates_it() {
        let mut pool = pool();
        received(&mut pool, 1, 10).unwrap();
        own(&mut pool, 1, 10).unwrap();
        assert!(pool.get_validated(&id(1)).is_some());
        assert_eq!((pool.bytes(Stage::Validated), pool.bytes(Stage::Unvalidated)), (10, 0));
    }

    #[test]
    fn a_body_that_comes_twice_is_counted_once() {
        let mut pool = pool();
        received(&mut pool, 1, 40).unwrap();
        received(&mut pool, 1, 40).unwrap();
        assert_eq!(pool.bytes(Stage::Unvalidated), 40);
        assert_eq!(pool.remove(&id(1)).map(|held| held.stage), Some(Stage::Unvalidated));
        assert_eq!(pool.bytes(Stage::Unvalidated), 0);
        assert_eq!(pool.remove(&id(1)), None);
        assert!(matches!(pool.validate(&id(1)), Promotion::Unknown) && pool.is_empty());
    }
}
