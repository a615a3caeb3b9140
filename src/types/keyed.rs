//! Hash maps whose keys a peer may choose: a universal hash under a key that the peer cannot know, and that a seed reproduces.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};

use super::{ArtifactId, Rng};

/// Words of an id.
const WORDS: usize = 4;

/// Builds hashers under one secret key.
#[derive(Debug, Clone)]
pub struct KeyedState {
    key: [u64; WORDS + 1],
}

impl KeyedState {
    /// Draws the key from `rng`.
    pub fn new(rng: &mut Rng) -> KeyedState {
        KeyedState { key: std::array::from_fn(|_| rng.next_u64()) }
    }
}

impl BuildHasher for KeyedState {
    type Hasher = KeyedHasher;
    fn build_hasher(&self) -> KeyedHasher {
        KeyedHasher { key: self.key, sum: 0 }
    }
}

/// NH (Black et al., UMAC, CRYPTO 1999; RFC 4418 §5.2) over 64-bit words: two ids that were chosen without knowledge of the key
/// collide with a probability of 2⁻⁶⁴. Two multiplications for an id, where a general keyed hash takes tens of nanoseconds.
#[derive(Debug, Clone)]
pub struct KeyedHasher {
    key: [u64; WORDS + 1],
    sum: u128,
}

impl Hasher for KeyedHasher {
    /// The bytes of one id. Longer input would use the key twice, and the guarantee would end: ids have one length.
    fn write(&mut self, bytes: &[u8]) {
        debug_assert_eq!(bytes.len(), 8 * WORDS, "only ids are hashed");
        let [a, b, c, d, _] = self.key;
        let (words, _) = bytes.as_chunks::<8>();
        for (pair, keys) in words.chunks(2).zip([[a, b], [c, d]]) {
            let [first, second] = [0, 1].map(|at| pair.get(at).copied().map_or(0, u64::from_le_bytes));
            let product = u128::from(first.wrapping_add(keys[0])) * u128::from(second.wrapping_add(keys[1]));
            self.sum = self.sum.wrapping_add(product);
        }
    }

    /// A topic beside an id.
    fn write_u16(&mut self, number: u16) {
        let [.., key] = self.key;
        self.sum = self.sum.wrapping_add(u128::from(key) * u128::from(number));
    }

    fn finish(&self) -> u64 {
        let folded = (self.sum >> 64) as u64 ^ self.sum as u64;
        // Tables take their index from the low bits and their tag from the high ones: both must depend on all.
        let spread = u128::from(folded) * u128::from(0x9e37_79b9_7f4a_7c15_u64);
        (spread >> 64) as u64 ^ spread as u64
    }
}

/// A table by artifact id. For look-up only: its order differs from run to run, so the core never iterates it.
pub type IdMap<V> = HashMap<ArtifactId, V, KeyedState>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;

    #[test]
    fn ids_that_differ_in_one_bit_spread_over_a_table() {
        let state = KeyedState::new(&mut Rng::new(1));
        let hashes: Vec<u64> = (0..256)
            .map(|bit| {
                let mut id = ArtifactId([0; 32]);
                id.0[bit / 8] ^= 1 << (bit % 8);
                state.hash_one(id)
            })
            .collect();
        for half in [0, 57] {
            let mut low: Vec<u64> = hashes.iter().map(|hash| hash >> half & 0x7f).collect();
            low.sort_unstable();
            low.dedup();
            assert!(low.len() > 90, "{} of 128 values from bit {half} on", low.len());
        }
    }

    #[test]
    fn a_key_and_a_topic_change_the_hash() {
        let (one, other) = (KeyedState::new(&mut Rng::new(1)), KeyedState::new(&mut Rng::new(2)));
        let id = ArtifactId([7; 32]);
        assert_ne!(one.hash_one(id), other.hash_one(id));
        assert_ne!(one.hash_one((TopicId(1), id)), one.hash_one((TopicId(2), id)));
        let same = KeyedState::new(&mut Rng::new(1));
        assert_eq!(one.hash_one(id), same.hash_one(id));
    }
}
