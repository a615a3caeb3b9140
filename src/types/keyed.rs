//! Hash maps whose keys a peer may choose: SipHash-1-3 under a key that the peer cannot know, and that a seed reproduces.

use std::collections::HashMap;
use std::hash::BuildHasher;

use siphasher::sip::SipHasher13;

use super::{ArtifactId, Rng};

/// Builds hashers under one secret key.
#[derive(Debug, Clone)]
pub struct KeyedState {
    key: (u64, u64),
}

impl KeyedState {
    /// Draws the key from `rng`.
    pub fn new(rng: &mut Rng) -> KeyedState {
        KeyedState { key: (rng.next_u64(), rng.next_u64()) }
    }
}

impl BuildHasher for KeyedState {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.key.0, self.key.1)
    }
}

/// A table by artifact id. For look-up only: its order differs from run to run, so the core never iterates it.
pub type IdMap<V> = HashMap<ArtifactId, V, KeyedState>;
