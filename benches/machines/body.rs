//! Hashing, for scale: nothing about an artifact can cost less than naming it.

use std::hint::black_box;

use corecast::types::HashKind;

use super::operations::{BATCH, Scale, Work};

fn hash(bytes: usize) -> Work {
    let body = vec![7; bytes];
    Box::new(move || {
        black_box(HashKind::Blake3.id(black_box(&body)));
    })
}

pub(crate) fn small(_: Scale) -> Work {
    hash(1 << 10)
}

pub(crate) fn large(_: Scale) -> Work {
    hash(1 << 20)
}

/// As the receiver of a batch does.
pub(crate) fn batch(_: Scale) -> Work {
    let bodies: Vec<_> = (0..BATCH).map(|number| vec![number as u8; 1 << 10]).collect();
    Box::new(move || {
        let bodies: Vec<&[u8]> = bodies.iter().map(Vec::as_slice).collect();
        black_box(HashKind::Blake3.ids(black_box(&bodies)));
    })
}
