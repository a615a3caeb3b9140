//! Received artifacts back to files: whole ones at once, chunks straight to their place in a growing file.
//!
//! Memory holds what has arrived of each file, not its bytes; both the files under way and the chunks remembered are bounded.
//! A file is moved to its place when every chunk that its manifest names has come and the whole has the manifest's hash.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use corecast::types::ArtifactId;

use super::folder::{Folder, Placed, hash_file};
use super::parcel::{self, Parcel, Transfer};
use super::relpath::RelPath;
use crate::subnet::fault::{Exit, Fault};

/// Files under way at a time: about 16 MiB of state at the longest path.
const MAX_FILES: usize = 8 << 10;
/// Chunks remembered in all, of about 64 bytes each.
const MAX_CHUNKS_KNOWN: usize = 1 << 20;

/// What an artifact led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Progress {
    /// A part of a file that is not whole yet.
    Part,
    /// A file is whole and in its place.
    File { path: RelPath, size: u64, placed: Placed },
}

/// The files of one output folder. Several threads may hand artifacts in.
#[derive(Debug)]
pub(crate) struct Assembler {
    folder: Folder,
    underway: Mutex<Underway>,
}

#[derive(Debug, Default)]
struct Underway {
    files: BTreeMap<(RelPath, Transfer), Growing>,
    chunks: usize,
}

#[derive(Debug)]
struct Growing {
    partial: Arc<PathBuf>,
    /// By index: the id of the chunk that is on disk, or `None` while it is being written.
    chunks: BTreeMap<u32, Option<ArtifactId>>,
    manifest: Option<([u8; 32], Vec<ArtifactId>)>,
}

/// Which part of a file an artifact brought.
enum Part {
    Chunk { index: u32, content: Bytes },
    Manifest { hash: [u8; 32], chunks: Vec<ArtifactId> },
}

impl Assembler {
    /// Files go to `folder`.
    pub(crate) fn new(folder: Folder) -> Assembler {
        Assembler { folder, underway: Mutex::default() }
    }

    /// The output folder.
    pub(crate) fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Takes the artifact `id` with these bytes.
    pub(crate) fn accept(&self, id: ArtifactId, body: Bytes) -> Result<Progress, Fault> {
        let parcel = parcel::parse(body)
            .map_err(|fault| Fault::new(Exit::Data, format!("artifact {id}: {fault}; it is ignored")))?;
        match parcel {
            Parcel::Whole { path, content } => {
                let placed = self.folder.put(&path, &content)?;
                Ok(Progress::File { path, size: content.len() as u64, placed })
            }
            Parcel::Chunk { path, transfer, index, content } => {
                self.grow((path, transfer), id, Part::Chunk { index, content })
            }
            Parcel::Manifest { path, transfer, hash, chunks } => {
                self.grow((path, transfer), id, Part::Manifest { hash, chunks })
            }
        }
    }

    fn grow(&self, key: (RelPath, Transfer), id: ArtifactId, part: Part) -> Result<Progress, Fault> {
        let partial = match self.reserve(&key, &part)? {
            Some(partial) => partial,
            None => return Ok(Progress::Part),
        };
        match part {
            Part::Chunk { index, content } => {
                // Outside the lock: chunks of one file do not overlap.
                let written = self.folder.write_part(&partial, key.1.offset(index), &content);
                let mut underway = self.lock();
                let growing = underway.files.get_mut(&key);
                if let Err(error) = written {
                    growing.map(|growing| growing.chunks.remove(&index));
                    underway.chunks -= 1;
                    return Err(self.folder.unwritten(&key.0, &error));
                }
                growing.map(|growing| growing.chunks.insert(index, Some(id)));
            }
            Part::Manifest { hash, chunks } => {
                let mut underway = self.lock();
                if let Some(growing) = underway.files.get_mut(&key) {
                    growing.manifest = Some((hash, chunks));
                }
            }
        }
        self.finish_if_whole(key)
    }

    /// Makes room for a part; `None` when that part is there already.
    fn reserve(&self, key: &(RelPath, Transfer), part: &Part) -> Result<Option<Arc<PathBuf>>, Fault> {
        let mut underway = self.lock();
        let full = |what: &str| {
            let path = &key.0;
            let problem = format!("{path}: {what} are under way already; this part is dropped");
            Err(Fault::new(Exit::Data, problem))
        };
        if !underway.files.contains_key(key) {
            if underway.files.len() >= MAX_FILES {
                return full(&format!("{MAX_FILES} files"));
            }
            let partial = Arc::new(self.folder.partial_name());
            let growing = Growing { partial, chunks: BTreeMap::new(), manifest: None };
            underway.files.insert(key.clone(), growing);
        }
        let Underway { files, chunks } = &mut *underway;
        let Some(growing) = files.get_mut(key) else { return Ok(None) };
        match part {
            Part::Manifest { .. } if growing.manifest.is_some() => return Ok(None),
            Part::Manifest { .. } => {}
            Part::Chunk { index, .. } if growing.chunks.contains_key(index) => return Ok(None),
            Part::Chunk { .. } if *chunks >= MAX_CHUNKS_KNOWN => {
                return full(&format!("{MAX_CHUNKS_KNOWN} chunks"));
            }
            Part::Chunk { index, .. } => {
                growing.chunks.insert(*index, None);
                *chunks += 1;
            }
        }
        Ok(Some(Arc::clone(&growing.partial)))
    }

    fn finish_if_whole(&self, key: (RelPath, Transfer)) -> Result<Progress, Fault> {
        let mut underway = self.lock();
        let whole = underway.files.get(&key).is_some_and(Growing::is_whole);
        if !whole {
            return Ok(Progress::Part);
        }
        let Some(growing) = underway.files.remove(&key) else { return Ok(Progress::Part) };
        underway.chunks -= growing.chunks.len();
        drop(underway);
        let (path, transfer) = key;
        let placed = self.finish(&path, &transfer, &growing);
        let placed = placed.inspect_err(|_| drop(std::fs::remove_file(&*growing.partial)))?;
        Ok(Progress::File { path, size: transfer.size, placed })
    }

    fn finish(&self, path: &RelPath, transfer: &Transfer, growing: &Growing) -> Result<Placed, Fault> {
        let wrong = || {
            let problem = format!("{path}: its parts do not make the file that its manifest names; dropped");
            Fault::new(Exit::Data, problem)
        };
        let (hash, named) = growing.manifest.as_ref().ok_or_else(wrong)?;
        if !named.iter().eq(growing.chunks.values().flatten()) {
            return Err(wrong());
        }
        let found = hash_file(&growing.partial).map_err(|error| self.folder.unwritten(path, &error))?;
        if found != (*hash, transfer.size) {
            return Err(wrong());
        }
        self.folder.finish_part(&growing.partial, path, hash)
    }

    fn lock(&self) -> MutexGuard<'_, Underway> {
        self.underway.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Growing {
    fn is_whole(&self) -> bool {
        let named = self.manifest.as_ref().map(|(_, chunks)| chunks.len());
        named == Some(self.chunks.len()) && self.chunks.values().all(Option::is_some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::relpath::PARTIAL;
    use crate::files::split::Pieces;
    use corecast::types::HashKind;
    use std::fs;

    struct Setting {
        source: tempfile::TempDir,
        target: tempfile::TempDir,
        assembler: Assembler,
    }

    fn setting() -> Setting {
        let target = tempfile::tempdir().unwrap();
        let assembler = Assembler::new(Folder::open(target.path()).unwrap());
        Setting { source: tempfile::tempdir().unwrap(), target, assembler }
    }

    impl Setting {
        /// The artifacts of a file of `size` bytes.
        fn artifacts(&self, name: &str, size: usize) -> Vec<(ArtifactId, Bytes)> {
            let content: Vec<u8> = (0..size).map(|i| (i * 7 % 251) as u8).collect();
            fs::write(self.source.path().join(name), content).unwrap();
            let path = RelPath::new(name.as_bytes()).unwrap();
            let mut pieces = Pieces::open(self.source.path(), &path, 1000).unwrap();
            let mut artifacts = Vec::new();
            while let Some(body) = pieces.next().unwrap() {
                let id = HashKind::Blake3.id(&body);
                pieces.sent(id);
                artifacts.push((id, body));
            }
            artifacts
        }

        fn same(&self, name: &str) -> bool {
            let read = |folder: &tempfile::TempDir| fs::read(folder.path().join(name)).ok();
            read(&self.source) == read(&self.target)
        }

        fn leftovers(&self) -> usize {
            fs::read_dir(self.target.path().join(PARTIAL)).unwrap().count()
        }
    }

    #[test]
    fn a_file_in_parts_is_whole_after_the_last_whatever_their_order() {
        let setting = setting();
        let artifacts = setting.artifacts("large", 9_999);
        assert_eq!(artifacts.len(), 12);
        for shift in 0..artifacts.len() {
            let mut order = artifacts.clone();
            order.rotate_left(shift);
            order.swap(0, 5);
            let (last, rest) = order.split_last().unwrap();
            for (id, body) in rest {
                assert_eq!(setting.assembler.accept(*id, body.clone()).unwrap(), Progress::Part);
            }
            let done = setting.assembler.accept(last.0, last.1.clone()).unwrap();
            assert!(matches!(done, Progress::File { size: 9_999, .. }));
            assert!(setting.same("large"));
            assert_eq!(setting.leftovers(), 0);
            fs::remove_file(setting.target.path().join("large")).unwrap();
        }
    }

    #[test]
    fn parts_that_come_twice_change_nothing() {
        let setting = setting();
        let artifacts = setting.artifacts("large", 5_000);
        for (id, body) in artifacts.iter().flat_map(|artifact| [artifact, artifact]) {
            setting.assembler.accept(*id, body.clone()).unwrap();
        }
        assert!(setting.same("large"));
    }

    #[test]
    fn parts_of_two_states_of_a_file_do_not_mix() {
        let setting = setting();
        let old = setting.artifacts("large", 5_000);
        let new = setting.artifacts("large", 5_001);
        for (id, body) in old[..3].iter().chain(&new).chain(&old[3..4]) {
            setting.assembler.accept(*id, body.clone()).unwrap();
        }
        assert!(setting.same("large"));
        assert_eq!(setting.leftovers(), 1);
    }

    #[test]
    fn a_forged_part_spoils_the_file_and_leaves_nothing() {
        let setting = setting();
        let artifacts = setting.artifacts("large", 5_000);
        let mut forged = artifacts[0].1.to_vec();
        *forged.last_mut().unwrap() ^= 1;
        let forged = Bytes::from(forged);
        setting.assembler.accept(HashKind::Blake3.id(&forged), forged.clone()).unwrap();
        let results: Vec<_> =
            artifacts[1..].iter().map(|(id, body)| setting.assembler.accept(*id, body.clone())).collect();
        let fault = results.last().unwrap().as_ref().unwrap_err().to_string();
        assert!(fault.contains("do not make the file"), "{fault}");
        assert!(!setting.target.path().join("large").exists());
        assert_eq!(setting.leftovers(), 0);
    }

    #[test]
    fn small_and_empty_files_come_whole() {
        let setting = setting();
        for (name, size) in [("empty", 0), ("small", 10)] {
            let artifacts = setting.artifacts(name, size);
            let done = setting.assembler.accept(artifacts[0].0, artifacts[0].1.clone()).unwrap();
            assert!(matches!(done, Progress::File { placed: Placed::New, .. }));
            assert!(setting.same(name));
        }
    }

    #[test]
    fn what_is_no_parcel_is_refused() {
        let setting = setting();
        assert!(setting.assembler.accept(ArtifactId([0; 32]), Bytes::from_static(b"hello")).is_err());
    }
}
