//! The receiving side: artifacts out of a stream's bytes, and whole ones out of messages.

use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};

use crate::board::Board;
use crate::message::{STAMP, Stamp, head_len};
use crate::options::Work;

/// Bytes hashed at a time, as in corecast: BLAKE3 is fast on long pieces.
const STEP: usize = 128 << 10;

/// One stream of artifacts, head after body after head.
pub(crate) struct Intake {
    board: Arc<Board>,
    receiver: usize,
    head: BytesMut,
    head_len: usize,
    body: Option<Body>,
}

/// A body that is not whole yet.
struct Body {
    stamp: Stamp,
    missing: usize,
    whole: BytesMut,
    hash: Option<Hash>,
}

struct Hash {
    hasher: Box<blake3::Hasher>,
    /// Bytes of the body that are in it.
    done: usize,
    expected: [u8; blake3::OUT_LEN],
}

impl Intake {
    pub(crate) fn new(board: Arc<Board>, receiver: usize) -> Intake {
        let head_len = head_len(board.work());
        Intake { board, receiver, head: BytesMut::with_capacity(head_len), head_len, body: None }
    }

    /// Takes the next bytes of the stream, and checks off what becomes whole.
    pub(crate) fn take(&mut self, mut bytes: Bytes) {
        while !bytes.is_empty() {
            if self.body.is_none() {
                let missing = self.head_len - self.head.len();
                self.head.extend_from_slice(&bytes.split_to(bytes.len().min(missing)));
                if self.head.len() < self.head_len {
                    return;
                }
                self.body = self.open(&mut bytes);
            }
            if let Some(body) = &mut self.body {
                let part = bytes.split_to(bytes.len().min(body.missing));
                body.take(&part, self.board.work());
                if body.missing == 0
                    && let Some(body) = self.body.take()
                {
                    body.end(&self.board, self.receiver);
                }
            }
        }
    }

    /// A body begins; one that has come whole already is taken as it lies there.
    fn open(&mut self, bytes: &mut Bytes) -> Option<Body> {
        let stamp = Stamp::get(&self.head)?;
        let len = stamp.len as usize;
        if bytes.len() >= len {
            let body = bytes.split_to(len);
            whole(&self.board, self.receiver, stamp, &self.head[STAMP..], &body);
            self.head.clear();
            return None;
        }
        let hash = self.head[STAMP..].try_into().ok().map(|expected| Hash {
            hasher: Box::new(blake3::Hasher::new()),
            done: 0,
            expected,
        });
        self.head.clear();
        let room = if self.board.work() == Work::Discard { 0 } else { len };
        Some(Body { stamp, missing: len, whole: BytesMut::with_capacity(room), hash })
    }
}

impl Body {
    fn take(&mut self, part: &[u8], work: Work) {
        self.missing -= part.len();
        if work == Work::Discard {
            return;
        }
        self.whole.extend_from_slice(part);
        if let Some(hash) = &mut self.hash {
            let new = &self.whole[hash.done..];
            if new.len() >= STEP || self.missing == 0 {
                hash.hasher.update(new);
                hash.done = self.whole.len();
            }
        }
    }

    fn end(self, board: &Board, receiver: usize) {
        let sound = self.hash.is_none_or(|hash| *hash.hasher.finalize().as_bytes() == hash.expected);
        std::hint::black_box(self.whole.freeze());
        finish(board, receiver, self.stamp, sound);
    }
}

/// A message of head and body, as peers with messages of their own deliver them.
pub(crate) fn message(board: &Board, receiver: usize, mut message: impl Buf) {
    let head_len = head_len(board.work());
    if message.remaining() < head_len {
        return board.corrupted();
    }
    let head = message.copy_to_bytes(head_len);
    let Some(stamp) = Stamp::get(&head).filter(|stamp| stamp.len as usize == message.remaining()) else {
        return board.corrupted();
    };
    if message.chunk().len() == message.remaining() {
        return whole(board, receiver, stamp, &head[STAMP..], message.chunk());
    }
    let body = message.copy_to_bytes(message.remaining());
    whole(board, receiver, stamp, &head[STAMP..], &body);
}

/// A whole body, with the hash that it should have; with none it is not checked.
fn whole(board: &Board, receiver: usize, stamp: Stamp, expected: &[u8], body: &[u8]) {
    let sound = expected.is_empty() || blake3::hash(body).as_bytes().as_slice() == expected;
    std::hint::black_box(body);
    finish(board, receiver, stamp, sound);
}

fn finish(board: &Board, receiver: usize, stamp: Stamp, sound: bool) {
    match sound {
        true => board.arrived(receiver, stamp),
        false => board.corrupted(),
    }
}
