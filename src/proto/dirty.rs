//! A set of slots as a hierarchical bitmap: a bit per slot, and above each 64 words one word that says which
//! are not empty.

use crate::wire::MAX_SLOTS;

const LEVELS: usize = 3;
const _: () = assert!(MAX_SLOTS as usize <= 64usize.pow(LEVELS as u32), "three levels hold every slot");

/// A set of numbers below a fixed capacity of at most [`MAX_SLOTS`].
///
/// Every operation takes constant time (three words) but [`DirtySet::new`] and [`DirtySet::clear`]. Memory:
/// `capacity` bits and a 63rd part more, whatever the set holds. Numbers at or above the capacity are never
/// members.
#[derive(Debug, Clone)]
pub struct DirtySet {
    capacity: u32,
    len: u32,
    /// `levels[0]` has a bit per member; each higher level a bit per word of the one below that is not zero.
    levels: [Box<[u64]>; LEVELS],
}

impl DirtySet {
    /// An empty set of numbers below `capacity`; capacities above [`MAX_SLOTS`] count as [`MAX_SLOTS`].
    pub fn new(capacity: u32) -> DirtySet {
        let capacity = capacity.min(MAX_SLOTS);
        let mut bits = capacity as usize;
        let levels = std::array::from_fn(|_| {
            bits = bits.div_ceil(64);
            vec![0; bits].into_boxed_slice()
        });
        DirtySet { capacity, len: 0, levels }
    }

    /// Adds `number`; whether it was missing.
    pub fn insert(&mut self, number: u32) -> bool {
        let (at, bit) = (number as usize / 64, 1 << (number % 64));
        let Some(word) = self.levels[0].get_mut(at).filter(|_| number < self.capacity) else { return false };
        let before = *word;
        *word |= bit;
        if before & bit != 0 {
            return false;
        }
        self.len += 1;
        if before == 0 {
            self.note(at);
        }
        true
    }

    /// Takes `number` out; whether it was there.
    pub fn remove(&mut self, number: u32) -> bool {
        let (at, bit) = (number as usize / 64, 1 << (number % 64));
        let Some(word) = self.levels[0].get_mut(at) else { return false };
        if *word & bit == 0 {
            return false;
        }
        *word &= !bit;
        self.len -= 1;
        if *word == 0 {
            self.note_empty(at);
        }
        true
    }

    /// The lowest level's word `at` is not empty any more.
    fn note(&mut self, mut at: usize) {
        for level in &mut self.levels[1..] {
            level[at / 64] |= 1 << (at % 64);
            at /= 64;
        }
    }

    /// The lowest level's word `at` is empty now.
    fn note_empty(&mut self, mut at: usize) {
        for level in &mut self.levels[1..] {
            level[at / 64] &= !(1 << (at % 64));
            if level[at / 64] != 0 {
                break;
            }
            at /= 64;
        }
    }

    /// Whether `number` is a member.
    pub fn contains(&self, number: u32) -> bool {
        let at = number as usize;
        self.levels[0].get(at / 64).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// The smallest member that is not below `from`.
    pub fn next_at_or_after(&self, from: u32) -> Option<u32> {
        if self.len == 0 {
            return None;
        }
        let mut at = from as usize;
        for (height, level) in self.levels.iter().enumerate() {
            let bits = level.get(at / 64)? & (u64::MAX << (at % 64));
            if bits != 0 {
                let top = at / 64 * 64 + bits.trailing_zeros() as usize;
                let down = self.levels[..height].iter().rev();
                return Some(down.fold(top, |at, level| at * 64 + level[at].trailing_zeros() as usize) as u32);
            }
            at = at / 64 + 1;
        }
        None
    }

    /// Whether nothing is a member.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many members there are.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Takes every member out.
    pub fn clear(&mut self) {
        self.levels.iter_mut().for_each(|level| level.fill(0));
        self.len = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::Rng;

    #[test]
    fn the_set_agrees_with_an_ordered_set_under_random_operations() {
        for capacity in [1, 63, 64, 65, 4096, 5000, MAX_SLOTS] {
            let mut rng = Rng::new(capacity.into());
            let (mut set, mut model) = (DirtySet::new(capacity), BTreeSet::new());
            for _ in 0..5_000 {
                let number = rng.below(u64::from(capacity)) as u32;
                if rng.one_in(2) {
                    assert_eq!(set.insert(number), model.insert(number));
                } else {
                    assert_eq!(set.remove(number), model.remove(&number));
                }
                let from = rng.below(u64::from(capacity) + 1) as u32;
                assert_eq!(set.next_at_or_after(from), model.range(from..).next().copied());
                assert_eq!((set.len(), set.is_empty()), (model.len(), model.is_empty()));
            }
        }
    }

    #[test]
    fn numbers_beyond_the_capacity_are_never_members() {
        let mut set = DirtySet::new(65);
        assert!(!set.insert(65) && !set.insert(u32::MAX));
        assert!(!set.contains(65) && !set.remove(u32::MAX));
        assert_eq!(set.next_at_or_after(u32::MAX), None);
        assert!(DirtySet::new(0).next_at_or_after(0).is_none());
    }

    #[test]
    fn a_cleared_set_is_empty_and_usable() {
        let mut set = DirtySet::new(MAX_SLOTS);
        for number in [0, 64, 4096, MAX_SLOTS - 1] {
            assert!(set.insert(number));
        }
        set.clear();
        assert!(set.is_empty() && set.next_at_or_after(0).is_none());
        assert!(set.insert(7));
        assert_eq!(set.next_at_or_after(0), Some(7));
    }
}
