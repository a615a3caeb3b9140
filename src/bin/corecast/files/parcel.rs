//! What stands in an artifact of the file tools: a header that names the file, then bytes of it.
//!
//! ```text
//! magic "ccF1" · kind u8 · path length u16 · path · rest        (integers little-endian)
//! rest of a whole file (0): its bytes
//! rest of a chunk (1):      transfer 16 · size u64 · stride u32 · index u32 · bytes
//! rest of a manifest (2):   transfer 16 · size u64 · stride u32 · BLAKE3 of the file 32 · one id of 32 for each chunk
//! ```
//!
//! The path is part of the artifact, so equal contents at two paths are two artifacts. Every chunk but the last has
//! `stride` bytes. Nothing here trusts its input: a parcel may come from any member.

use bytes::Bytes;
use corecast::types::ArtifactId;

use super::relpath::{PathFault, RelPath};

const MAGIC: &[u8; 4] = b"ccF1";
/// Bytes before the path.
const PREFIX: usize = 7;
/// Bytes between a chunk's path and its content.
const CHUNK_HEAD: usize = 32;
/// Bytes between a manifest's path and its ids.
const MANIFEST_HEAD: usize = 60;
/// Chunks of one file: a manifest stays near 1 MiB, and a file of 8 MiB chunks may have 256 GiB.
pub(crate) const MAX_CHUNKS: u32 = 1 << 15;

/// One file in several artifacts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Transfer {
    /// Tells the states of a file apart: a changed file is another transfer.
    pub(crate) tag: [u8; 16],
    /// Bytes of the file.
    pub(crate) size: u64,
    /// Bytes of each chunk but the last.
    pub(crate) stride: u32,
}

impl Transfer {
    /// How many chunks there are.
    pub(crate) fn chunks(&self) -> u32 {
        u32::try_from(self.size.div_ceil(u64::from(self.stride.max(1)))).unwrap_or(u32::MAX)
    }

    /// Where chunk `index` begins.
    pub(crate) fn offset(&self, index: u32) -> u64 {
        u64::from(self.stride) * u64::from(index)
    }

    /// Bytes of chunk `index`.
    pub(crate) fn len_of(&self, index: u32) -> u64 {
        self.size.saturating_sub(self.offset(index)).min(u64::from(self.stride))
    }

    fn valid(&self) -> bool {
        self.size > 0 && self.stride > 0 && self.chunks() <= MAX_CHUNKS
    }
}

/// A parsed artifact body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Parcel {
    /// A file in one artifact.
    Whole { path: RelPath, content: Bytes },
    /// A part of a file.
    Chunk { path: RelPath, transfer: Transfer, index: u32, content: Bytes },
    /// What the parts make together.
    Manifest { path: RelPath, transfer: Transfer, hash: [u8; 32], chunks: Vec<ArtifactId> },
}

/// Why a body is no parcel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ParcelFault {
    #[error("the artifact was not made by this tool")]
    Foreign,
    #[error("the artifact ends early or is too long")]
    Length,
    #[error("sizes in the artifact contradict one another")]
    Sizes,
    #[error(transparent)]
    Path(#[from] PathFault),
}

/// The head of a whole file's artifact; its content follows.
pub(crate) fn whole_head(path: &RelPath, size_hint: usize) -> Vec<u8> {
    head(0, path, size_hint)
}

/// The head of a chunk's artifact; its content follows.
pub(crate) fn chunk_head(path: &RelPath, transfer: &Transfer, index: u32) -> Vec<u8> {
    let mut bytes = head(1, path, CHUNK_HEAD + transfer.stride as usize);
    put_transfer(&mut bytes, transfer);
    bytes.extend_from_slice(&index.to_le_bytes());
    bytes
}

/// A manifest's artifact.
pub(crate) fn manifest(path: &RelPath, transfer: &Transfer, hash: &[u8; 32], chunks: &[ArtifactId]) -> Bytes {
    let mut bytes = head(2, path, MANIFEST_HEAD + 32 * chunks.len());
    put_transfer(&mut bytes, transfer);
    bytes.extend_from_slice(hash);
    chunks.iter().for_each(|id| bytes.extend_from_slice(&id.0));
    bytes.into()
}

/// The most content bytes that fit beside the head of a whole file, in an artifact of `max_artifact`.
pub(crate) fn whole_room(path: &RelPath, max_artifact: usize) -> usize {
    max_artifact.saturating_sub(PREFIX + path.as_bytes().len())
}

/// The same for a chunk.
pub(crate) fn chunk_room(path: &RelPath, max_artifact: usize) -> usize {
    whole_room(path, max_artifact).saturating_sub(CHUNK_HEAD)
}

/// The most chunks that a manifest can name.
pub(crate) fn manifest_room(path: &RelPath, max_artifact: usize) -> u32 {
    let ids = whole_room(path, max_artifact).saturating_sub(MANIFEST_HEAD) / 32;
    u32::try_from(ids).unwrap_or(u32::MAX).min(MAX_CHUNKS)
}

fn head(kind: u8, path: &RelPath, more: usize) -> Vec<u8> {
    let path = path.as_bytes();
    let mut bytes = Vec::with_capacity(PREFIX + path.len() + more);
    bytes.extend_from_slice(MAGIC);
    bytes.push(kind);
    // A `RelPath` is at most MAX_PATH bytes long.
    bytes.extend_from_slice(&(path.len() as u16).to_le_bytes());
    bytes.extend_from_slice(path);
    bytes
}

fn put_transfer(bytes: &mut Vec<u8>, transfer: &Transfer) {
    bytes.extend_from_slice(&transfer.tag);
    bytes.extend_from_slice(&transfer.size.to_le_bytes());
    bytes.extend_from_slice(&transfer.stride.to_le_bytes());
}

/// Parses an artifact body. Content is a view of it, not a copy.
pub(crate) fn parse(mut body: Bytes) -> Result<Parcel, ParcelFault> {
    if take::<4>(&mut body) != Ok(*MAGIC) {
        return Err(ParcelFault::Foreign);
    }
    let [kind] = take::<1>(&mut body)?;
    let path_len = usize::from(u16::from_le_bytes(take(&mut body)?));
    if path_len > body.len() {
        return Err(ParcelFault::Length);
    }
    let path = RelPath::new(&body.split_to(path_len))?;
    match kind {
        0 => Ok(Parcel::Whole { path, content: body }),
        1 => {
            let transfer = take_transfer(&mut body)?;
            let index = u32::from_le_bytes(take(&mut body)?);
            if index >= transfer.chunks() || body.len() as u64 != transfer.len_of(index) {
                return Err(ParcelFault::Sizes);
            }
            Ok(Parcel::Chunk { path, transfer, index, content: body })
        }
        2 => {
            let transfer = take_transfer(&mut body)?;
            let hash = take(&mut body)?;
            let (ids, []) = body.as_chunks::<32>() else { return Err(ParcelFault::Length) };
            if ids.len() as u64 != u64::from(transfer.chunks()) {
                return Err(ParcelFault::Sizes);
            }
            let chunks = ids.iter().copied().map(ArtifactId).collect();
            Ok(Parcel::Manifest { path, transfer, hash, chunks })
        }
        _ => Err(ParcelFault::Foreign),
    }
}

fn take_transfer(body: &mut Bytes) -> Result<Transfer, ParcelFault> {
    let transfer = Transfer {
        tag: take(body)?,
        size: u64::from_le_bytes(take(body)?),
        stride: u32::from_le_bytes(take(body)?),
    };
    if transfer.valid() { Ok(transfer) } else { Err(ParcelFault::Sizes) }
}

fn take<const N: usize>(body: &mut Bytes) -> Result<[u8; N], ParcelFault> {
    let bytes = *body.first_chunk::<N>().ok_or(ParcelFault::Length)?;
    drop(body.split_to(N));
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn path() -> RelPath {
        RelPath::new(b"src/lib.rs").unwrap()
    }

    fn body(head: Vec<u8>, content: &[u8]) -> Bytes {
        [head, content.to_vec()].concat().into()
    }

    const TRANSFER: Transfer = Transfer { tag: [7; 16], size: 10, stride: 4 };

    #[test]
    fn each_kind_parses_from_what_was_made() {
        let whole = parse(body(whole_head(&path(), 0), b"fn main() {}")).unwrap();
        assert_eq!(whole, Parcel::Whole { path: path(), content: Bytes::from_static(b"fn main() {}") });
        let chunk = parse(body(chunk_head(&path(), &TRANSFER, 2), b"ab")).unwrap();
        let content = Bytes::from_static(b"ab");
        assert_eq!(chunk, Parcel::Chunk { path: path(), transfer: TRANSFER, index: 2, content });
        let chunks: Vec<_> = (1..=3).map(|byte| ArtifactId([byte; 32])).collect();
        let parsed = parse(manifest(&path(), &TRANSFER, &[9; 32], &chunks)).unwrap();
        assert_eq!(parsed, Parcel::Manifest { path: path(), transfer: TRANSFER, hash: [9; 32], chunks });
    }

    #[test]
    fn an_empty_file_is_a_whole_parcel() {
        let parcel = parse(body(whole_head(&path(), 0), b"")).unwrap();
        assert_eq!(parcel, Parcel::Whole { path: path(), content: Bytes::new() });
    }

    #[test]
    fn a_full_chunk_fills_the_artifact_exactly() {
        let room = chunk_room(&path(), 1000);
        let transfer = Transfer { tag: [0; 16], size: 1 << 20, stride: room as u32 };
        assert_eq!(chunk_head(&path(), &transfer, 0).len() + room, 1000);
        assert_eq!(whole_head(&path(), 0).len() + whole_room(&path(), 1000), 1000);
        let ids = vec![ArtifactId([0; 32]); manifest_room(&path(), 1000) as usize];
        assert!((969..=1000).contains(&manifest(&path(), &transfer, &[0; 32], &ids).len()));
    }

    #[test]
    fn a_chunk_must_have_the_length_that_its_place_says() {
        for (index, content) in [(0, "abc"), (2, "abc"), (3, ""), (u32::MAX, "abcd")] {
            let parsed = parse(body(chunk_head(&path(), &TRANSFER, index), content.as_bytes()));
            assert_eq!(parsed, Err(ParcelFault::Sizes), "{index}");
        }
    }

    #[test]
    fn transfers_without_size_or_of_too_many_chunks_are_refused() {
        for (size, stride) in [(0, 4), (4, 0), (u64::MAX, 1), (u64::from(MAX_CHUNKS) + 1, 1)] {
            let transfer = Transfer { tag: [0; 16], size, stride };
            let parsed = parse(manifest(&path(), &transfer, &[0; 32], &[]));
            assert_eq!(parsed, Err(ParcelFault::Sizes), "{size} {stride}");
        }
    }

    #[test]
    fn a_path_that_leaves_the_folder_is_refused() {
        let mut bytes = b"ccF1\0\x05\0../..".to_vec();
        assert_eq!(parse(bytes.clone().into()), Err(ParcelFault::Path(PathFault::Name)));
        bytes[5] = 200;
        assert_eq!(parse(bytes.into()), Err(ParcelFault::Length));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(kind in 0u8..4, tail in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut bytes = b"ccF1".to_vec();
            bytes.push(kind);
            bytes.extend_from_slice(&[3, 0, b'a', b'/', b'b']);
            bytes.extend_from_slice(&tail);
            let _ = parse(bytes.into());
            let _ = parse(tail.into());
        }
    }
}
