//! Frames.

use std::hint::black_box;

use bytes::Bytes;
use corecast::types::{ArtifactId, Attribute, Slot, TopicId, Version};
use corecast::wire::{BatchBuilder, BatchReader, Change, Frame, Update};

use super::operations::{BATCH, Scale, Work};

fn frames(change: impl Fn(u8) -> Change) -> Vec<Frame> {
    let frame = |number: usize| {
        let (slot, version) = (Slot(number as u32), Version(number as u64 + 1));
        Frame::Update(Update { topic: TopicId(1), slot, version, change: change(number as u8) })
    };
    (0..BATCH).map(frame).collect()
}

fn pushes() -> Vec<Frame> {
    frames(|number| Change::Push { attribute: Attribute::EMPTY, body: Bytes::from(vec![number; 1024]) })
}

fn adverts() -> Vec<Frame> {
    let id = |number| ArtifactId([number; 32]);
    frames(|number| Change::Advert {
        id: id(number),
        size: 1 << 20,
        relayed: true,
        attribute: Attribute::EMPTY,
    })
}

/// Packs frames into one batch, as the engine does.
pub(crate) fn pack(frames: &[Frame]) -> Bytes {
    let mut batch = BatchBuilder::new(4096);
    for frame in frames {
        assert!(batch.fits(frame.encoded_len()));
        batch.push(frame);
    }
    batch.finish()
}

fn encode(frames: Vec<Frame>) -> Work {
    Box::new(move || drop(black_box(pack(&frames))))
}

fn decode(frames: &[Frame]) -> Work {
    let (bytes, expected) = (pack(frames), frames.len());
    let mut decoded = Vec::new();
    Box::new(move || {
        let mut reader = BatchReader::default();
        reader.read(&bytes[1..], &mut decoded).expect("it was encoded here");
        assert_eq!(decoded.len(), expected);
        black_box(&mut decoded).clear();
    })
}

pub(crate) fn encode_pushes(_: Scale) -> Work {
    encode(pushes())
}

pub(crate) fn decode_pushes(_: Scale) -> Work {
    decode(&pushes())
}

pub(crate) fn encode_adverts(_: Scale) -> Work {
    encode(adverts())
}

pub(crate) fn decode_adverts(_: Scale) -> Work {
    decode(&adverts())
}
