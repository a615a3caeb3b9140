//! The wire: every frame round-trips however it is cut, no bytes make a decoder panic, limits hold, and the
//! bytes themselves are golden files.
//!
//! `CORECAST_WRITE_GOLDEN=1 cargo test --test wire` rewrites `tests/golden` and adds to `fuzz/corpus`: for a
//! change of the protocol, on purpose.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use corecast::types::{ArtifactId, Attribute, RegistryVersion, Slot, TopicId, Version};
use corecast::wire::{
    BatchReader, Change, FRAME_HEADER, FetchRequest, Frame, Held, Hello, MAX_BATCH, MAX_FRAME, MAX_SLOTS,
    Open, PushHead, Refusal, Refused, ReplyHead, Resync, STREAM_BATCH, STREAM_PUSH, Update, WireError,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

#[path = "../fuzz/checks.rs"]
mod checks;

fn attribute(len: usize) -> Attribute {
    Attribute::new(&(0..len as u8).collect::<Vec<_>>()).unwrap()
}

fn id(byte: u8) -> ArtifactId {
    ArtifactId(std::array::from_fn(|i| byte.wrapping_add(i as u8)))
}

fn update(change: Change) -> Frame {
    Frame::Update(Update {
        topic: TopicId(0x0102),
        slot: Slot(0x0304),
        version: Version(0x0506_0708),
        change,
    })
}

fn refused(reason: Refusal) -> Frame {
    Frame::Refused(Refused { topic: TopicId(1), slot: Slot(70_000), version: Version(2), reason })
}

/// One of each frame, by the name of its golden file.
fn frames() -> Vec<(&'static str, Frame)> {
    let hello = Hello {
        subnet: id(0xa0).0,
        lanes: 8,
        lane: 3,
        registry: RegistryVersion(77),
        boot: 0x1122_3344_5566_7788,
    };
    let open = Open { topic: TopicId(5), slots: 4096, artifact_bytes: 4 << 20 };
    let resync = Resync {
        topic: TopicId(5),
        version: Version(1 << 40),
        occupied: Bytes::from_static(&[0b1010_0101, 0x80]),
    };
    let slots = [(3, 1 << 40), (4, (1 << 40) + 1), (7, 1), (8, u64::MAX)];
    let slots = slots.map(|(slot, version)| (Slot(slot), Version(version)));
    let held = Held::pack(TopicId(5), 0x1122_3344_5566_7788, slots).swap_remove(0);
    let push = Change::Push { attribute: attribute(8), body: Bytes::from_static(b"a body") };
    let advert =
        |relayed, len| Change::Advert { id: id(0x10), size: 1 << 20, relayed, attribute: attribute(len) };
    vec![
        ("hello", Frame::Hello(hello)),
        ("open", Frame::Open(open)),
        ("resync", Frame::Resync(resync)),
        ("push", update(push)),
        ("push_empty", update(Change::Push { attribute: Attribute::EMPTY, body: Bytes::new() })),
        ("advert", update(advert(false, 0))),
        ("advert_relayed", update(advert(true, 64))),
        ("clear", update(Change::Clear)),
        ("refused_slot_limit", refused(Refusal::SlotLimit)),
        ("refused_artifact_size", refused(Refusal::ArtifactSize)),
        ("held", Frame::Held(held)),
    ]
}

fn push_head() -> PushHead {
    PushHead {
        topic: TopicId(9),
        slot: Slot(10),
        version: Version(11),
        id: id(0x20),
        size: 4 << 20,
        attribute: attribute(3),
    }
}

/// One of each head, by the name of its golden file; the bytes are those that its decoder sees.
fn heads() -> Vec<(&'static str, Bytes)> {
    vec![
        ("push_head", push_head().encode().slice(1..)),
        ("fetch_request", FetchRequest { topic: TopicId(9), id: id(0x20) }.encode()),
        ("reply_found", ReplyHead::Found { size: 4 << 20 }.encode()),
        ("reply_not_found", ReplyHead::NotFound.encode()),
        ("reply_busy", ReplyHead::Busy.encode()),
    ]
}

fn encode(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, WireError> {
    let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
    reader.read(bytes, &mut frames)?;
    reader.end().map(|()| frames)
}

/// A frame with any payload: header, then `payload`.
fn raw(kind: u8, payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_le_bytes();
    [&[kind, len[0], len[1], len[2]], payload].concat()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn writes_golden() -> bool {
    std::env::var_os("CORECAST_WRITE_GOLDEN").is_some()
}

// --- golden bytes ---

fn check_golden(name: &str, bytes: &[u8]) {
    let path = root().join("tests/golden").join(format!("{name}.hex"));
    let lines = bytes
        .chunks(16)
        .map(|line| line.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" "));
    let text = lines.map(|line| line + "\n").collect::<String>();
    if writes_golden() {
        std::fs::write(&path, &text).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(golden, text, "the bytes of {name} differ from {}", path.display());
}

#[test]
fn every_frame_has_its_golden_bytes() {
    for (name, frame) in frames() {
        check_golden(name, &encode(&frame));
    }
}

#[test]
fn every_head_has_its_golden_bytes() {
    for (name, bytes) in heads() {
        check_golden(name, &bytes);
    }
}

#[test]
fn streams_are_told_apart_by_their_first_byte() {
    assert_eq!((STREAM_BATCH, STREAM_PUSH), (1, 2));
    assert_eq!(push_head().encode()[0], STREAM_PUSH);
    assert_eq!(heads()[1].1[0], 3);
}

// --- corpora ---

/// Inputs of a fuzz target: from the frames and heads above, each whole and spoilt.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let mut seeds = Vec::new();
    if target == "batch" {
        let all: Vec<u8> = frames().iter().flat_map(|(_, frame)| encode(frame).to_vec()).collect();
        seeds.push(("all_frames".into(), [&[7], &all[..]].concat()));
        for (name, frame) in frames() {
            let bytes = encode(&frame);
            seeds.push((name.into(), [&[255], &bytes[..]].concat()));
            seeds.push((format!("{name}_truncated"), [&[1], &bytes[..bytes.len() - 1]].concat()));
            seeds.push((
                format!("{name}_shorter"),
                [&[3], &raw(bytes[0], &bytes[4..bytes.len() - 1])[..]].concat(),
            ));
            seeds.push((
                format!("{name}_longer"),
                [&[3], &raw(bytes[0], &[&bytes[4..], &[0]].concat())[..]].concat(),
            ));
        }
        seeds.push(("unknown_kind".into(), [&[1], &raw(99, b"?")[..]].concat()));
        seeds.push(("longest_length".into(), vec![1, 4, 0xff, 0xff, 0xff]));
    } else {
        for (name, bytes) in heads() {
            seeds.push((name.into(), bytes.to_vec()));
            seeds.push((format!("{name}_truncated"), bytes[..bytes.len() - 1].to_vec()));
            seeds.push((format!("{name}_longer"), [&bytes[..], b"body"].concat()));
        }
        seeds.push(("unknown".into(), vec![9; 40]));
    }
    seeds
}

fn replay(target: &str, check: fn(&[u8])) {
    let folder = root().join("fuzz/corpus").join(target);
    if writes_golden() {
        for (name, bytes) in seeds(target) {
            std::fs::write(folder.join(name), bytes).unwrap();
        }
    }
    let mut inputs: Vec<PathBuf> =
        std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    inputs.sort();
    assert!(inputs.len() >= seeds(target).len(), "the corpus in {} is incomplete", folder.display());
    for input in inputs {
        println!("{}", input.display());
        check(&std::fs::read(&input).unwrap());
    }
}

#[test]
fn the_corpus_of_batches_replays() {
    replay("batch", checks::batch);
}

#[test]
fn the_corpus_of_heads_replays() {
    replay("heads", checks::heads);
}

// --- truncation ---

#[test]
fn a_batch_that_ends_inside_a_frame_is_an_error_at_its_end() {
    for (name, frame) in frames() {
        let bytes = encode(&frame);
        for cut in 1..bytes.len() {
            let (mut reader, mut heard) = (BatchReader::default(), Vec::new());
            assert_eq!(reader.read(&bytes[..cut], &mut heard), Ok(()), "{name} cut at {cut}");
            assert_eq!((heard, reader.end()), (vec![], Err(WireError::Truncated)), "{name} cut at {cut}");
        }
    }
}

#[test]
fn a_payload_shorter_or_longer_than_its_fields_is_an_error() {
    for (name, frame) in frames() {
        let bytes = encode(&frame);
        let open_ended = matches!(
            &frame,
            Frame::Resync(_) | Frame::Held(_) | Frame::Update(Update { change: Change::Push { .. }, .. })
        );
        let fixed = match &frame {
            Frame::Resync(resync) => bytes.len() - resync.occupied.len(),
            Frame::Held(_) => FRAME_HEADER + 2 + 8 + 4,
            Frame::Update(Update { change: Change::Push { body, .. }, .. }) => bytes.len() - body.len(),
            _ => bytes.len(),
        };
        for cut in FRAME_HEADER..fixed {
            let found = decode(&raw(bytes[0], &bytes[FRAME_HEADER..cut]));
            assert_eq!(found, Err(WireError::Truncated), "{name} cut at {cut}");
        }
        if !open_ended {
            let found = decode(&raw(bytes[0], &[&bytes[FRAME_HEADER..], &[0]].concat()));
            assert_eq!(found, Err(WireError::Trailing { extra: 1 }), "{name}");
        }
    }
}

#[test]
fn a_head_that_is_cut_asks_for_more() {
    let bytes = push_head().encode().slice(1..);
    for cut in 0..bytes.len() {
        assert_eq!(PushHead::decode(&bytes[..cut]), Ok(None));
    }
    assert_eq!(PushHead::decode(&bytes), Ok(Some((push_head(), bytes.len()))));
    let found = ReplyHead::Found { size: 7 };
    for cut in 0..5 {
        assert_eq!(ReplyHead::decode(&found.encode()[..cut]), Ok(None));
    }
    assert_eq!(ReplyHead::decode(&[&found.encode()[..], b"body"].concat()), Ok(Some((found, 5))));
}

#[test]
fn a_request_is_whole_or_an_error() {
    let request = FetchRequest { topic: TopicId(1), id: id(1) };
    let bytes = request.encode();
    assert_eq!((bytes.len(), FetchRequest::decode(&bytes)), (FetchRequest::LEN, Ok(request)));
    for cut in 0..bytes.len() {
        assert_eq!(FetchRequest::decode(&bytes[..cut]), Err(WireError::Truncated));
    }
    assert_eq!(FetchRequest::decode(&[&bytes[..], &[0]].concat()), Err(WireError::Trailing { extra: 1 }));
}

// --- limits ---

#[test]
fn an_announced_length_above_the_limit_is_refused_before_its_bytes_come() {
    let len = (MAX_FRAME as u32 + 1).to_le_bytes();
    let error = WireError::TooLarge { found: MAX_FRAME as u64 + 1, limit: MAX_FRAME as u64 };
    assert_eq!(decode(&[4, len[0], len[1], len[2]]), Err(error));
}

#[test]
fn the_largest_frame_fits_a_batch_and_nothing_more_does() {
    let body = Bytes::from(vec![1; MAX_FRAME + FRAME_HEADER - Update::push_len(&attribute(64), 0)]);
    let frame = update(Change::Push { attribute: attribute(64), body });
    let mut bytes = encode(&frame);
    assert_eq!(bytes.len(), MAX_BATCH - 1);
    assert_eq!(decode(&bytes), Ok(vec![frame]));
    bytes.extend_from_slice(&[0; 2]);
    assert!(matches!(decode(&bytes), Err(WireError::TooLarge { .. })));
}

#[test]
fn a_bitmap_of_every_slot_fits_and_a_larger_one_is_refused() {
    let resync = |bytes: usize| raw(3, &vec![0xff; 2 + 8 + bytes]);
    let all = MAX_SLOTS as usize / 8;
    let found = decode(&resync(all)).unwrap().swap_remove(0);
    let Frame::Resync(found) = found else { panic!("not a resync: {found:?}") };
    assert!(found.is_occupied(Slot(0)) && found.is_occupied(Slot(MAX_SLOTS - 1)));
    assert!(!found.is_occupied(Slot(MAX_SLOTS)) && !found.is_occupied(Slot(u32::MAX)));
    assert!(matches!(decode(&resync(all + 1)), Err(WireError::TooLarge { .. })));
}

#[test]
fn values_without_meaning_are_refused() {
    let place = [0; 14];
    let advert = |relayed: u8, len: u8| {
        [&place[..], &[0; 32], &[0; 4], &[relayed, len], &vec![0; len.into()]].concat()
    };
    assert!(decode(&raw(5, &advert(1, 64))).is_ok());
    assert_eq!(decode(&raw(5, &advert(2, 0))), Err(WireError::Value { field: "relayed", found: 2 }));
    assert_eq!(decode(&raw(5, &advert(0, 65))), Err(WireError::Attribute { found: 65 }));
    assert_eq!(
        decode(&raw(7, &[&place[..], &[3]].concat())),
        Err(WireError::Value { field: "refusal", found: 3 })
    );
    assert_eq!(decode(&raw(0, &[])), Err(WireError::UnknownFrame(0)));
    assert_eq!(decode(&raw(9, &[])), Err(WireError::UnknownFrame(9)));
    assert_eq!(ReplyHead::decode(&[3]), Err(WireError::Value { field: "reply", found: 3 }));
    assert_eq!(FetchRequest::decode(&[4; FetchRequest::LEN]), Err(WireError::UnknownStream(4)));
}

#[test]
fn held_versions_have_one_spelling_and_slots_below_the_limit() {
    let held = |first: u32, versions: &[u8]| raw(8, &[&[0; 10], &first.to_le_bytes()[..], versions].concat());
    let slots = |bytes: &[u8]| match decode(bytes).map(|mut frames| frames.swap_remove(0)) {
        Ok(Frame::Held(held)) => Ok(held.slots().collect::<Vec<_>>()),
        Ok(other) => panic!("not what is held: {other:?}"),
        Err(error) => Err(error),
    };
    assert_eq!(slots(&held(9, &[])), Ok(vec![]));
    assert_eq!(slots(&held(9, &[0, 4, 0, 1])), Ok(vec![(Slot(10), Version(2)), (Slot(12), Version(1))]));
    let longest = [&[0xff; 9][..], &[1]].concat();
    assert_eq!(slots(&held(0, &longest)), Ok(vec![(Slot(0), Version(1 << 63))]));
    assert_eq!(slots(&held(0, &[0x80])), Err(WireError::Truncated));
    let spelled = |found| Err(WireError::Value { field: "varint", found });
    assert_eq!(slots(&held(0, &[0x82, 0])), spelled(0), "a shorter spelling exists");
    assert_eq!(slots(&held(0, &[&[0xff; 9][..], &[2]].concat())), spelled(2), "more than 64 bits");
    assert_eq!(slots(&held(0, &[0xff; 11])), spelled(0xff));
    let limit = u64::from(MAX_SLOTS);
    assert!(slots(&held(MAX_SLOTS - 1, &[2])).is_ok());
    assert_eq!(slots(&held(MAX_SLOTS - 1, &[2, 0])), Err(WireError::TooLarge { found: limit + 1, limit }));
    assert!(matches!(slots(&held(u32::MAX, &[2])), Err(WireError::TooLarge { .. })));
}

#[test]
fn frames_before_a_bad_one_are_heard() {
    let (_, good) = frames().swap_remove(0);
    let bytes = [&encode(&good)[..], &raw(99, b"")].concat();
    let (mut reader, mut heard) = (BatchReader::default(), Vec::new());
    assert_eq!(reader.read(&bytes, &mut heard), Err(WireError::UnknownFrame(99)));
    assert_eq!(heard, [good]);
}

// --- any frames, any bytes ---

fn any_attribute() -> impl Strategy<Value = Attribute> {
    vec(any::<u8>(), 0..=Attribute::MAX).prop_map(|bytes| Attribute::new(&bytes).unwrap())
}

fn any_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..=most).prop_map(Bytes::from)
}

fn any_change() -> impl Strategy<Value = Change> {
    let push =
        (any_attribute(), any_bytes(2000)).prop_map(|(attribute, body)| Change::Push { attribute, body });
    let advert = (any::<[u8; 32]>(), any::<u32>(), any::<bool>(), any_attribute()).prop_map(
        |(id, size, relayed, attribute)| Change::Advert { id: ArtifactId(id), size, relayed, attribute },
    );
    prop_oneof![push, advert, Just(Change::Clear)]
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let place = || (any::<u16>(), any::<u32>(), any::<u64>());
    let hello = (any::<[u8; 32]>(), any::<[u16; 2]>(), any::<[u64; 2]>()).prop_map(
        |(subnet, [lanes, lane], [registry, boot])| {
            Frame::Hello(Hello { subnet, lanes, lane, registry: RegistryVersion(registry), boot })
        },
    );
    let open = (any::<u16>(), any::<[u32; 2]>()).prop_map(|(topic, [slots, artifact_bytes])| {
        Frame::Open(Open { topic: TopicId(topic), slots, artifact_bytes })
    });
    let resync = (any::<u16>(), any::<u64>(), any_bytes(300)).prop_map(|(topic, version, occupied)| {
        Frame::Resync(Resync { topic: TopicId(topic), version: Version(version), occupied })
    });
    let update = (place(), any_change()).prop_map(|((topic, slot, version), change)| {
        Frame::Update(Update { topic: TopicId(topic), slot: Slot(slot), version: Version(version), change })
    });
    let refused = (place(), any::<bool>()).prop_map(|((topic, slot, version), size)| {
        let reason = if size { Refusal::ArtifactSize } else { Refusal::SlotLimit };
        Frame::Refused(Refused { topic: TopicId(topic), slot: Slot(slot), version: Version(version), reason })
    });
    let slots = btree_map(0..MAX_SLOTS, prop_oneof![0..100u64, any::<u64>()], 1..50);
    let held = (any::<u16>(), any::<u64>(), slots).prop_map(|(topic, boot, slots)| {
        let slots = slots.into_iter().map(|(slot, version)| (Slot(slot % 100), Version(version)));
        let slots: BTreeMap<Slot, Version> = slots.collect();
        Frame::Held(Held::pack(TopicId(topic), boot, slots).swap_remove(0))
    });
    prop_oneof![1 => hello, 1 => open, 1 => resync, 6 => update, 1 => refused, 1 => held]
}

proptest! {
    #[test]
    fn frames_round_trip_however_the_stream_is_cut(
        frames in vec(any_frame(), 0..25),
        cuts in vec(1..700usize, 1..20),
    ) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            let before = bytes.len();
            frame.encode(&mut bytes);
            prop_assert_eq!(bytes.len() - before, frame.encoded_len());
        }
        let (mut reader, mut heard) = (BatchReader::default(), Vec::new());
        let (mut rest, mut cuts) = (&bytes[..], cuts.iter().cycle());
        while !rest.is_empty() {
            let (piece, left) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
            prop_assert_eq!(reader.read(piece, &mut heard), Ok(()));
            rest = left;
        }
        prop_assert_eq!(reader.end(), Ok(()));
        prop_assert_eq!(heard, frames);
    }

    #[test]
    fn what_is_held_comes_back_slot_by_slot(
        far in btree_map(0..MAX_SLOTS, 1..=u64::MAX, 0..40),
        near in btree_map(0..200u32, 1..1000u64, 0..200),
    ) {
        let mut held = BTreeMap::new();
        let mut versions = BTreeSet::new();
        for (slot, version) in far.into_iter().chain(near) {
            if versions.insert(version) {
                held.insert(Slot(slot), Version(version));
            }
        }
        let mut bytes = BytesMut::new();
        for frame in Held::pack(TopicId(1), 7, held.clone()) {
            Frame::Held(frame).encode(&mut bytes);
        }
        let mut named = BTreeMap::new();
        for frame in decode(&bytes).unwrap() {
            let Frame::Held(frame) = frame else { panic!("{frame:?}") };
            prop_assert_eq!((frame.topic, frame.boot), (TopicId(1), 7));
            named.extend(frame.slots());
        }
        prop_assert_eq!(named, held);
    }

    #[test]
    fn spoilt_frames_never_panic(
        frames in vec(any_frame(), 1..5),
        spoils in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        step in any::<u8>(),
    ) {
        let mut bytes = BytesMut::from(&[step][..]);
        frames.iter().for_each(|frame| frame.encode(&mut bytes));
        for (at, byte) in spoils {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        checks::batch(&bytes);
        checks::heads(&bytes);
    }

    #[test]
    fn random_bytes_never_panic(kind in 0..10u8, bytes in vec(any::<u8>(), 0..200), step in any::<u8>()) {
        checks::heads(&bytes);
        checks::heads(&[&[kind], &bytes[..]].concat());
        checks::batch(&bytes);
        checks::batch(&[&[step], &raw(kind, &bytes)[..]].concat());
    }

    #[test]
    fn push_heads_round_trip(
        (topic, slot, version) in (any::<u16>(), any::<u32>(), any::<u64>()),
        (id, size, attribute) in (any::<[u8; 32]>(), any::<u32>(), any_attribute()),
        body in any_bytes(20),
    ) {
        let (topic, slot, version, id) = (TopicId(topic), Slot(slot), Version(version), ArtifactId(id));
        let head = PushHead { topic, slot, version, id, size, attribute };
        let bytes = head.encode();
        let stream = [&bytes[1..], &body[..]].concat();
        prop_assert_eq!(PushHead::decode(&stream), Ok(Some((head, bytes.len() - 1))));
    }
}
