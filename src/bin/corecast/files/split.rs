//! A file on disk as the artifacts that carry it: one when it fits, otherwise chunks and a manifest.
//!
//! The file is read once, in order. That it did not change meanwhile is checked at the end, before the last artifact is
//! handed out, so receivers never get all the parts of a file that never existed in that form.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use corecast::types::ArtifactId;

use super::folder::open_plain;
use super::parcel::{self, Transfer};
use super::relpath::RelPath;
use crate::subnet::fault::{Exit, Fault};

/// A file that is being read.
///
/// Call `next` until it gives `None`. It gives the same artifact until `sent` says under which id it was broadcast.
#[derive(Debug)]
pub(crate) struct Pieces {
    path: RelPath,
    source: PathBuf,
    file: File,
    before: Stamp,
    plan: Plan,
    hasher: blake3::Hasher,
    sent: Vec<ArtifactId>,
    waiting: Option<Bytes>,
}

#[derive(Debug)]
enum Plan {
    Whole,
    Chunks(Transfer),
}

/// What tells whether a file changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    pub(crate) fn of(metadata: &Metadata) -> Stamp {
        let modified = (metadata.mtime(), metadata.mtime_nsec());
        Stamp { device: metadata.dev(), inode: metadata.ino(), size: metadata.size(), modified }
    }
}

impl Pieces {
    /// Opens the file at `path` below `root`, for artifacts of at most `max_artifact` bytes.
    pub(crate) fn open(root: &Path, path: &RelPath, max_artifact: usize) -> Result<Pieces, Fault> {
        let source = path.join_to(root);
        let file = open_plain(&source).map_err(|error| match error.kind() {
            ErrorKind::NotFound => vanished(&source),
            _ => Fault::at(&source, "cannot be read", &error),
        })?;
        let before = Stamp::of(&file.metadata().map_err(|error| unreadable(&source, &error))?);
        let plan = if before.size <= parcel::whole_room(path, max_artifact) as u64 {
            Plan::Whole
        } else {
            let stride = u32::try_from(parcel::chunk_room(path, max_artifact)).unwrap_or(u32::MAX);
            let transfer = Transfer { tag: tag(path, &before), size: before.size, stride };
            let most_chunks = parcel::manifest_room(path, max_artifact);
            if stride == 0 || transfer.chunks() > most_chunks {
                let most = u64::from(most_chunks) * u64::from(stride);
                let size = before.size;
                let problem = format!(
                    "{}: has {size} bytes; with artifacts of {max_artifact} bytes at most {most} can be sent",
                    source.display()
                );
                return Err(Fault::new(Exit::Data, problem));
            }
            Plan::Chunks(transfer)
        };
        let hasher = blake3::Hasher::new();
        Ok(Pieces { path: path.clone(), source, file, before, plan, hasher, sent: Vec::new(), waiting: None })
    }

    /// The file as it was when it was opened.
    pub(crate) fn stamp(&self) -> Stamp {
        self.before
    }

    /// How many artifacts there are in all.
    pub(crate) fn count(&self) -> usize {
        match &self.plan {
            Plan::Whole => 1,
            Plan::Chunks(transfer) => transfer.chunks() as usize + 1,
        }
    }

    /// The artifact that `next` gave is active under `id`.
    pub(crate) fn sent(&mut self, id: ArtifactId) {
        self.waiting = None;
        self.sent.push(id);
    }

    /// The next artifact's bytes.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.waiting.is_none() && self.sent.len() < self.count() {
            self.waiting = Some(self.make()?);
        }
        Ok(self.waiting.clone())
    }

    fn make(&mut self) -> Result<Bytes, Fault> {
        let Plan::Chunks(transfer) = &self.plan else {
            let size = self.before.size as usize;
            let body = self.read_after(parcel::whole_head(&self.path, size), size)?;
            self.check_unchanged()?;
            return Ok(body);
        };
        let transfer = transfer.clone();
        let index = self.sent.len() as u32;
        if index < transfer.chunks() {
            let head = parcel::chunk_head(&self.path, &transfer, index);
            let head_len = head.len();
            let body = self.read_after(head, transfer.len_of(index) as usize)?;
            self.hasher.update(&body[head_len..]);
            return Ok(body);
        }
        self.check_unchanged()?;
        let hash = *self.hasher.finalize().as_bytes();
        Ok(parcel::manifest(&self.path, &transfer, &hash, &self.sent))
    }

    /// Reads exactly `count` bytes behind `head`.
    fn read_after(&mut self, mut head: Vec<u8>, count: usize) -> Result<Bytes, Fault> {
        let before = head.len();
        head.reserve_exact(count);
        let read = (&mut self.file).take(count as u64).read_to_end(&mut head);
        read.map_err(|error| unreadable(&self.source, &error))?;
        if head.len() - before == count { Ok(head.into()) } else { Err(changed(&self.source)) }
    }

    fn check_unchanged(&mut self) -> Result<(), Fault> {
        let after = self.file.metadata().map_err(|error| unreadable(&self.source, &error))?;
        if after.nlink() == 0 {
            return Err(vanished(&self.source));
        }
        if Stamp::of(&after) != self.before { Err(changed(&self.source)) } else { Ok(()) }
    }
}

/// Differs between files and between states of a file, and is the same again after a restart.
fn tag(path: &RelPath, stamp: &Stamp) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(path.as_bytes());
    for number in [stamp.device, stamp.inode, stamp.size] {
        hasher.update(&number.to_le_bytes());
    }
    hasher.update(&stamp.modified.0.to_le_bytes());
    hasher.update(&stamp.modified.1.to_le_bytes());
    let mut tag = [0; 16];
    hasher.finalize_xof().fill(&mut tag);
    tag
}

fn unreadable(source: &Path, error: &io::Error) -> Fault {
    Fault::at(source, "cannot be read", error)
}

fn vanished(source: &Path) -> Fault {
    let problem = "vanished after it was listed; leave the folder alone while it is sent";
    Fault::new(Exit::Io, format!("{}: {problem}", source.display()))
}

fn changed(source: &Path) -> Fault {
    let problem = "changed while it was read; leave the folder alone while it is sent";
    Fault::new(Exit::Io, format!("{}: {problem}", source.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::parcel::Parcel;
    use corecast::types::HashKind;
    use std::fs;

    fn file(content: &[u8]) -> (tempfile::TempDir, RelPath) {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("f"), content).unwrap();
        (root, RelPath::new(b"f").unwrap())
    }

    fn all(root: &Path, path: &RelPath, max: usize) -> Vec<Parcel> {
        let mut pieces = Pieces::open(root, path, max).unwrap();
        let mut parcels = Vec::new();
        while let Some(body) = pieces.next().unwrap() {
            assert!(body.len() <= max);
            pieces.sent(HashKind::Blake3.id(&body));
            parcels.push(parcel::parse(body).unwrap());
        }
        assert_eq!(parcels.len(), pieces.count());
        parcels
    }

    #[test]
    fn a_file_that_fits_is_one_artifact_and_one_byte_more_makes_it_several() {
        let (root, path) = file(&[7; 192]);
        assert!(matches!(all(root.path(), &path, 200).as_slice(), [Parcel::Whole { .. }]));
        fs::write(root.path().join("f"), [7; 193]).unwrap();
        let parcels = all(root.path(), &path, 200);
        assert_eq!(parcels.len(), 3);
        let Some(Parcel::Manifest { transfer, hash, chunks, .. }) = parcels.last() else { panic!() };
        assert_eq!((transfer.size, transfer.stride, chunks.len()), (193, 160, 2));
        assert_eq!(*hash, *blake3::hash(&[7; 193]).as_bytes());
    }

    #[test]
    fn an_empty_file_is_one_artifact() {
        let (root, path) = file(b"");
        assert!(
            matches!(all(root.path(), &path, 200).as_slice(), [Parcel::Whole { content, .. }] if content.is_empty())
        );
    }

    #[test]
    fn the_same_file_gives_the_same_artifacts_again() {
        let (root, path) = file(&[1; 400]);
        assert_eq!(all(root.path(), &path, 200), all(root.path(), &path, 200));
    }

    #[test]
    fn a_file_that_shrinks_grows_or_vanishes_while_it_is_read_is_an_error() {
        let source = |root: &tempfile::TempDir| root.path().join("f");
        let rest = |mut pieces: Pieces| {
            loop {
                match pieces.next() {
                    Ok(Some(body)) => pieces.sent(HashKind::Blake3.id(&body)),
                    Ok(None) => return "no error".to_owned(),
                    Err(fault) => return fault.to_string(),
                }
            }
        };
        let (root, path) = file(&[1; 400]);
        let pieces = Pieces::open(root.path(), &path, 200).unwrap();
        fs::write(source(&root), [1; 100]).unwrap();
        assert!(rest(pieces).contains("changed while it was read"));
        let pieces = Pieces::open(root.path(), &path, 200).unwrap();
        fs::write(source(&root), [1; 500]).unwrap();
        assert!(rest(pieces).contains("changed while it was read"));
        let pieces = Pieces::open(root.path(), &path, 200).unwrap();
        fs::remove_file(source(&root)).unwrap();
        assert!(rest(pieces).contains("vanished after it was listed"));
        assert!(Pieces::open(root.path(), &path, 200).unwrap_err().to_string().contains("vanished"));
    }

    #[test]
    fn a_link_in_the_files_place_is_not_followed() {
        let (root, path) = file(b"x");
        fs::rename(root.path().join("f"), root.path().join("g")).unwrap();
        std::os::unix::fs::symlink(root.path().join("g"), root.path().join("f")).unwrap();
        assert!(Pieces::open(root.path(), &path, 200).is_err());
    }

    #[test]
    fn a_file_of_too_many_chunks_is_refused_with_the_arithmetic() {
        let (root, path) = file(b"");
        File::options().write(true).open(root.path().join("f")).unwrap().set_len(1 << 30).unwrap();
        let fault = Pieces::open(root.path(), &path, 200).unwrap_err().to_string();
        assert!(fault.contains("at most 640 can be sent"), "{fault}");
    }
}
