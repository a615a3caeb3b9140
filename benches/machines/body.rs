//! Hashing, for scale: nothing about an artifact can cost less than naming it.

use std::hint::black_box;

use corecast::types::HashKind;

use super::operations::{Scale, Work};

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
