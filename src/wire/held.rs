//! What a receiver still holds of a sender's table: from this the sender knows what it need not say again.

use bytes::{BufMut, Bytes, BytesMut};

use super::cursor::Cursor;
use super::frame::{MAX_FRAME, MAX_SLOTS, WireError};
use crate::types::{Slot, TopicId, Version};

/// Bytes before the versions: topic, boot, first slot.
const HEAD: usize = 2 + 8 + 4;
/// The longest number of 64 bits at seven bits a byte.
const LONGEST: usize = 10;
/// The longest gap between held slots that is spelled out, a byte each. Short, lest a table with two slots far apart take many
/// bytes; not shorter, lest a sparse one take many frames.
const MAX_GAP: u32 = 64;

/// "Of your table, as of your boot, I hold these slots at these versions." A hint, before the sender's first update on a
/// connection; at any other time it does no harm.
///
/// The payload is `topic: u16 · boot: u64 · first slot: u32`, then a number for each slot from the first one on: 0 for a slot
/// that is not held, else the difference between the version and the one before (0 at first), zigzag, seven bits a byte, the
/// lowest first. Differences are modulo 2⁶⁴, so any version follows any other exactly. Two slots of one table never have the
/// same version, so no held slot needs the 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The topic.
    pub topic: TopicId,
    /// The sender's boot, as it said in [`Hello`](super::Hello): versions of another boot mean nothing.
    pub boot: u64,
    first: Slot,
    /// One canonical number per slot, as checked by [`Held::decode`].
    versions: Bytes,
}

impl Held {
    /// As many frames as it takes to name the slots of `held`, which are below [`MAX_SLOTS`] and in ascending order: for a table
    /// of consecutive slots one, as a rule. A gap of more than 64 slots begins another frame.
    pub fn pack(topic: TopicId, boot: u64, held: impl IntoIterator<Item = (Slot, Version)>) -> Vec<Held> {
        let mut frames = Vec::new();
        // The frame in the making: its first slot, the slot after its last one, its last version, its versions.
        let mut open: Option<(Slot, u32, Version, BytesMut)> = None;
        let finish = |(first, _, _, versions): (Slot, u32, Version, BytesMut)| Held {
            topic,
            boot,
            first,
            versions: versions.freeze(),
        };
        for (slot, version) in held {
            let fits = |(_, next, _, versions): &(Slot, u32, Version, BytesMut)| {
                let gap = slot.0.checked_sub(*next).filter(|gap| *gap <= MAX_GAP);
                gap.is_some_and(|gap| HEAD + versions.len() + gap as usize + LONGEST <= MAX_FRAME)
            };
            let (first, next, before, mut versions) = match open.take() {
                Some(frame) if fits(&frame) => frame,
                full => {
                    frames.extend(full.map(finish));
                    (slot, slot.0, Version(0), BytesMut::new())
                }
            };
            versions.put_bytes(0, (slot.0 - next) as usize);
            put_varint(&mut versions, zigzag(version.0.wrapping_sub(before.0)));
            open = Some((first, slot.0 + 1, version, versions));
        }
        frames.extend(open.map(finish));
        frames
    }

    /// The slots that are held, ascending, and their versions.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, Version)> + '_ {
        let (mut numbers, mut version) = (Cursor::new(&self.versions), 0u64);
        let places = (self.first.0..).map_while(move |slot| Some((slot, numbers.varint().ok()?)));
        places.filter(|(_, number)| *number != 0).map(move |(slot, number)| {
            version = version.wrapping_add(unzigzag(number));
            (Slot(slot), Version(version))
        })
    }

    pub(super) fn payload_len(&self) -> usize {
        HEAD + self.versions.len()
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u16_le(self.topic.0);
        out.put_u64_le(self.boot);
        out.put_u32_le(self.first.0);
        out.put_slice(&self.versions);
    }

    /// Decodes a payload: nothing is kept but a copy of its bytes.
    pub(super) fn decode(mut cursor: Cursor<'_>) -> Result<Held, WireError> {
        let (topic, boot, first) = (TopicId(cursor.u16()?), cursor.u64()?, Slot(cursor.u32()?));
        let versions = cursor.rest();
        let mut numbers = Cursor::new(versions);
        let mut end = u64::from(first.0);
        while numbers.remaining() > 0 {
            numbers.varint()?;
            end += 1;
        }
        if end > u64::from(MAX_SLOTS) {
            return Err(WireError::TooLarge { found: end, limit: MAX_SLOTS.into() });
        }
        Ok(Held { topic, boot, first, versions: Bytes::copy_from_slice(versions) })
    }
}

fn put_varint(out: &mut BytesMut, mut number: u64) {
    while number >= 0x80 {
        out.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// Small differences in either direction become small numbers: 0, -1, 1, -2, … become 0, 1, 2, 3, …
fn zigzag(difference: u64) -> u64 {
    (difference << 1) ^ ((difference as i64 >> 63) as u64)
}

fn unzigzag(number: u64) -> u64 {
    (number >> 1) ^ (number & 1).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pack(held: &[(u32, u64)]) -> Vec<Held> {
        Held::pack(TopicId(1), 7, held.iter().map(|(slot, version)| (Slot(*slot), Version(*version))))
    }

    fn named(frames: &[Held]) -> Vec<(u32, u64)> {
        frames.iter().flat_map(Held::slots).map(|(slot, version)| (slot.0, version.0)).collect()
    }

    #[test]
    fn consecutive_slots_take_a_byte_each() {
        let held: Vec<(u32, u64)> = (0..10_000).map(|slot| (slot, 5 + u64::from(slot))).collect();
        let frames = pack(&held);
        assert_eq!((frames.len(), frames[0].payload_len()), (1, HEAD + 10_000));
        assert_eq!(named(&frames), held);
    }

    #[test]
    fn a_short_gap_is_spelled_out_and_a_long_one_begins_another_frame() {
        let held = [(3, 1), (5, 9), (70, 2), (136, 3), (MAX_SLOTS - 1, 4)];
        let frames = pack(&held);
        assert_eq!(frames.iter().map(|frame| frame.first.0).collect::<Vec<_>>(), [3, 136, MAX_SLOTS - 1]);
        assert_eq!(named(&frames), held);
    }

    #[test]
    fn any_version_follows_any_other() {
        let held = [(0, u64::MAX), (1, 1), (2, u64::MAX - 1), (3, 1 << 63), (4, u64::MAX), (5, 2)];
        assert_eq!(named(&pack(&held)), held);
    }

    #[test]
    fn a_version_said_of_two_slots_is_named_once() {
        assert_eq!(named(&pack(&[(0, 4), (1, 4), (2, 5)])), [(0, 4), (2, 5)]);
    }

    #[test]
    fn the_longest_versions_of_a_full_table_are_split_into_frames_that_fit() {
        let held: Vec<(u32, u64)> =
            (0..MAX_SLOTS).map(|slot| (slot, u64::from(slot % 2) << 62 | 1)).collect();
        let frames = pack(&held);
        assert!(frames.len() > 1 && frames.iter().all(|frame| frame.payload_len() <= MAX_FRAME));
        assert_eq!(named(&frames), held);
    }

    #[test]
    fn nothing_held_is_not_said() {
        assert_eq!(pack(&[]), []);
    }
}
