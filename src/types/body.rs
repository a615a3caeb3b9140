//! Bodies and the proof that they match their id.

use bytes::{Bytes, BytesMut};

use super::hash::Hasher;
use super::{ArtifactId, HashKind};

/// Bytes together with the id that they were found to hash to. Made only by hashing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    id: ArtifactId,
    bytes: Bytes,
}

impl Verified {
    /// Hashes `bytes`.
    pub fn hash(kind: HashKind, bytes: Bytes) -> Verified {
        Verified { id: kind.id(&bytes), bytes }
    }

    /// Hashes many bodies at once, in their order: see [`HashKind::ids`].
    pub fn hash_all(kind: HashKind, bodies: Vec<Bytes>) -> impl Iterator<Item = Verified> {
        let slices: Vec<&[u8]> = bodies.iter().map(Bytes::as_ref).collect();
        let ids = kind.ids(&slices);
        ids.into_iter().zip(bodies).map(|(id, bytes)| Verified { id, bytes })
    }

    /// What the bytes hash to.
    pub fn id(&self) -> ArtifactId {
        self.id
    }

    /// The bytes.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The bytes, without the proof.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// More bytes arrived than were announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a body is longer than the {announced} bytes announced")]
pub struct TooLong {
    /// Bytes announced.
    pub announced: usize,
}

/// Gathers a body as it arrives and hashes it while it is still in the cache.
///
/// Memory follows what has arrived, not what was announced: an announced length alone reserves at most
/// [`BodyReader::RESERVE`] bytes, and the buffer at most doubles from there.
pub struct BodyReader {
    announced: usize,
    buffer: BytesMut,
    hasher: Hasher,
    hashed: usize,
}

impl BodyReader {
    /// The most that an announcement alone makes the reader allocate.
    pub const RESERVE: usize = 1 << 20;

    /// Bytes hashed at a time: enough for BLAKE3's SIMD lanes, and still in the second-level cache.
    const STEP: usize = 128 << 10;

    /// Expects exactly `announced` bytes, which the caller has compared with its limit.
    pub fn new(kind: HashKind, announced: usize) -> BodyReader {
        let buffer = BytesMut::with_capacity(announced.min(Self::RESERVE));
        BodyReader { announced, buffer, hasher: Hasher::new(kind), hashed: 0 }
    }

    /// Bytes that have arrived.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing has arrived.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Appends the next bytes; when they are too many, nothing is appended.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        if bytes.len() > self.announced - self.buffer.len() {
            return Err(TooLong { announced: self.announced });
        }
        let spare = self.buffer.capacity() - self.buffer.len();
        if spare < bytes.len() {
            let doubled = self.buffer.capacity().saturating_mul(2).clamp(bytes.len(), self.announced);
            self.buffer.reserve(doubled.max(self.buffer.len() + bytes.len()) - self.buffer.len());
        }
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() - self.hashed >= Self::STEP {
            self.hasher.update(&self.buffer[self.hashed..self.hashed + Self::STEP]);
            self.hashed += Self::STEP;
        }
        Ok(())
    }

    /// The whole body and its id; `None` when bytes are missing.
    pub fn finish(mut self) -> Option<Verified> {
        if self.buffer.len() < self.announced {
            return None;
        }
        self.hasher.update(&self.buffer[self.hashed..]);
        Some(Verified { id: self.hasher.finish(), bytes: self.buffer.freeze() })
    }
}

impl std::fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BodyReader({} of {} bytes)", self.buffer.len(), self.announced)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_in_pieces_hashes_as_the_whole() {
        let whole: Vec<u8> = (0..700_001u32).map(|i| i as u8).collect();
        for kind in [HashKind::Blake3, HashKind::Sha256] {
            let mut reader = BodyReader::new(kind, whole.len());
            for piece in whole.chunks(1409) {
                reader.append(piece).unwrap();
            }
            assert_eq!(reader.finish(), Some(Verified::hash(kind, Bytes::from(whole.clone()))));
        }
    }

    #[test]
    fn too_many_bytes_are_refused_and_too_few_do_not_finish() {
        let mut reader = BodyReader::new(HashKind::Blake3, 3);
        assert_eq!(reader.append(b"abcd"), Err(TooLong { announced: 3 }));
        reader.append(b"ab").unwrap();
        assert!(reader.finish().is_none());
    }

    #[test]
    fn a_large_announcement_reserves_little() {
        let mut reader = BodyReader::new(HashKind::Blake3, 1 << 30);
        reader.append(b"a").unwrap();
        assert!(reader.buffer.capacity() <= BodyReader::RESERVE);
    }
}
