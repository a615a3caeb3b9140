//! An artifact on its way: a head that says where it stands on the board, and its body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::options::Work;

/// Where an artifact stands on the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Stamp {
    /// Bytes of the body.
    pub(crate) len: u32,
    pub(crate) stream: u32,
    pub(crate) slot: u32,
    /// Grows with every artifact of the stream.
    pub(crate) number: u64,
}

/// Bytes of a stamp.
pub(crate) const STAMP: usize = 20;
/// Bytes of a BLAKE3 hash, which follows the stamp where bodies are verified.
const HASH: usize = blake3::OUT_LEN;

/// Bytes before a body.
pub(crate) fn head_len(work: Work) -> usize {
    if work == Work::Verify { STAMP + HASH } else { STAMP }
}

impl Stamp {
    pub(crate) fn put(self, mut to: &mut [u8]) {
        [self.len, self.stream, self.slot].into_iter().for_each(|part| to.put_u32_le(part));
        to.put_u64_le(self.number);
    }

    /// The stamp at the start of a head; `None` when there are too few bytes.
    pub(crate) fn get(mut from: &[u8]) -> Option<Stamp> {
        let fits = from.len() >= STAMP;
        fits.then(|| {
            let [len, stream, slot] = [(); 3].map(|()| from.get_u32_le());
            Stamp { len, stream, slot, number: from.get_u64_le() }
        })
    }
}

/// An artifact on its way to every other node.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    #[allow(dead_code, reason = "only peers with identifiers of their own need it")]
    pub(crate) stamp: Stamp,
    /// Goes first where there are priorities.
    pub(crate) urgent: bool,
    /// Head and body; or the head alone when the body is the one that is sent again and again.
    bytes: Bytes,
    template: Option<Bytes>,
}

impl Message {
    /// Bytes of head and body.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() + self.template.as_ref().map_or(0, Bytes::len)
    }

    /// Head and body in one or two pieces; the second may be empty.
    pub(crate) fn chunks(self) -> [Bytes; 2] {
        [self.bytes, self.template.unwrap_or_default()]
    }

    /// Copies head and body to the end of a block.
    pub(crate) fn put(&self, block: &mut BytesMut) {
        block.put_slice(&self.bytes);
        if let Some(template) = &self.template {
            block.put_slice(template);
        }
    }

    /// Head and body in one piece, which is no copy unless one body is sent again and again.
    pub(crate) fn joined(&self) -> Bytes {
        if self.template.is_none() {
            return self.bytes.clone();
        }
        let mut whole = BytesMut::with_capacity(self.len());
        self.put(&mut whole);
        whole.freeze()
    }
}

/// The artifacts of one stream.
pub(crate) struct Bodies {
    work: Work,
    head: usize,
    urgent: bool,
    /// One for each size: room for a head, and a body.
    templates: Vec<Bytes>,
    /// By slot: what was sent from there last.
    last: Vec<Bytes>,
}

impl Bodies {
    pub(crate) fn new(work: Work, sizes: &[usize], urgent: bool, slots: usize) -> Bodies {
        let head = head_len(work);
        let byte = |i: usize| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8;
        let template = |size: &usize| (0..head + size).map(byte).collect::<Vec<_>>().into();
        let templates = sizes.iter().map(template).collect();
        Bodies { work, head, urgent, templates, last: vec![Bytes::new(); slots] }
    }

    /// Bytes of the body with this number.
    pub(crate) fn len(&self, number: u64) -> usize {
        self.template(number).len() - self.head
    }

    fn template(&self, number: u64) -> &Bytes {
        &self.templates[number as usize % self.templates.len()]
    }

    /// A new artifact, in the memory of the one before if the peer has let go of it.
    pub(crate) fn next(&mut self, stamp: Stamp) -> Message {
        let (slot, head, urgent) = (stamp.slot as usize, self.head, self.urgent);
        let template = self.template(stamp.number).clone();
        if self.work == Work::Discard {
            let mut bytes = BytesMut::zeroed(head);
            stamp.put(&mut bytes);
            let body = template.slice(head..);
            return Message { stamp, urgent, bytes: bytes.freeze(), template: Some(body) };
        }
        let last = self.last.get_mut(slot).map(std::mem::take).unwrap_or_default();
        let reused = if last.len() == template.len() { last.try_into_mut().ok() } else { None };
        let mut bytes = reused.unwrap_or_else(|| BytesMut::from(template.as_ref()));
        stamp.put(&mut bytes);
        let (first, body) = bytes.split_at_mut(head);
        let mark = stamp.number.to_le_bytes();
        let len = mark.len().min(body.len());
        body[..len].copy_from_slice(&mark[..len]);
        if self.work == Work::Verify {
            first[STAMP..].copy_from_slice(blake3::hash(body).as_bytes());
        }
        let bytes = bytes.freeze();
        if let Some(last) = self.last.get_mut(slot) {
            *last = bytes.clone();
        }
        Message { stamp, urgent, bytes, template: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_its_bytes() {
        let stamp = Stamp { len: 7, stream: 1, slot: 2, number: u64::MAX };
        let mut bytes = [0; STAMP];
        stamp.put(&mut bytes);
        assert_eq!(Stamp::get(&bytes), Some(stamp));
        assert_eq!(Stamp::get(&bytes[1..]), None);
    }

    #[test]
    fn memory_is_used_again_once_it_is_let_go_of() {
        let mut bodies = Bodies::new(Work::Deliver, &[100], false, 1);
        let stamp = |number| Stamp { len: 100, stream: 0, slot: 0, number };
        let first = bodies.next(stamp(1)).joined();
        let place = first.as_ptr();
        drop(first);
        let second = bodies.next(stamp(2));
        assert_eq!(second.joined().as_ptr(), place);
        let third = bodies.next(stamp(3));
        assert_ne!(third.joined().as_ptr(), place);
        assert_ne!(second.joined(), third.joined());
    }
}
