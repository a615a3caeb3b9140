//! The folder that received files go to. Nothing is ever written outside it, and no file is seen before it is whole.
//!
//! Files grow in a hidden folder inside (so that the last step is a rename on one file system) and move to their place when
//! they are whole. Folders on the way are made as real folders; a symbolic link among them is refused, not followed.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::relpath::{PARTIAL, RelPath};
use crate::subnet::fault::{Exit, Fault};

/// Folders that are remembered as checked. Beyond, all are forgotten and checked again.
const MAX_KNOWN: usize = 16 << 10;
/// Bytes read at a time when files are compared or hashed.
const STEP: usize = 256 << 10;

/// What became of a file that was to be put in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placed {
    /// It stands there now.
    New,
    /// The same content stood there already, and still does.
    Same,
}

/// An output folder.
#[derive(Debug)]
pub(crate) struct Folder {
    root: PathBuf,
    known: Mutex<HashSet<PathBuf>>,
    next: AtomicU64,
}

impl Folder {
    /// Takes a folder that exists, and clears what an earlier process left unfinished in it.
    pub(crate) fn open(root: &Path) -> Result<Folder, Fault> {
        let partial = root.join(PARTIAL);
        remove_partial(&partial).map_err(|error| Fault::at(&partial, "cannot be cleared", &error))?;
        fs::create_dir(&partial).map_err(|error| Fault::at(&partial, "cannot be created", &error))?;
        Ok(Folder { root: root.to_owned(), known: Mutex::default(), next: AtomicU64::new(0) })
    }

    /// Removes the hidden folder, and with it what is not whole.
    pub(crate) fn finish(&self) -> Result<(), Fault> {
        let partial = self.root.join(PARTIAL);
        remove_partial(&partial).map_err(|error| Fault::at(&partial, "cannot be removed", &error))
    }

    /// A name inside the hidden folder that nothing has yet.
    pub(crate) fn partial_name(&self) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.root.join(PARTIAL).join(number.to_string())
    }

    /// Puts a file with `content` in its place.
    pub(crate) fn put(&self, path: &RelPath, content: &[u8]) -> Result<Placed, Fault> {
        if holds(&path.join_to(&self.root), content) {
            return Ok(Placed::Same);
        }
        let partial = self.partial_name();
        let written = write_new(&partial, content).map_err(|error| self.unwritten(path, &error));
        let placed = written.and_then(|()| self.place(&partial, path));
        placed.map(|()| Placed::New).inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    /// Writes a part of a file that is not whole yet. Parts may come in any order.
    pub(crate) fn write_part(&self, partial: &Path, offset: u64, content: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
        options.open(partial)?.write_all_at(content, offset)
    }

    /// Moves a whole file to its place, unless the same content is there.
    pub(crate) fn finish_part(
        &self,
        partial: &Path,
        path: &RelPath,
        hash: &[u8; 32],
    ) -> Result<Placed, Fault> {
        let target = path.join_to(&self.root);
        let same_len = |a: fs::Metadata, b: fs::Metadata| b.is_file() && a.len() == b.len();
        let alike = fs::metadata(partial).ok().zip(fs::symlink_metadata(&target).ok());
        let alike = alike.is_some_and(|(new, old)| same_len(new, old));
        if alike && hash_file(&target).is_ok_and(|(found, _)| found == *hash) {
            fs::remove_file(partial).map_err(|error| self.unwritten(path, &error))?;
            return Ok(Placed::Same);
        }
        self.place(partial, path).map(|()| Placed::New)
    }

    fn place(&self, partial: &Path, path: &RelPath) -> Result<(), Fault> {
        let target = path.join_to(&self.root);
        let moved = self.make_folders(path).and_then(|()| match fs::rename(partial, &target) {
            // A folder that was known has gone; make it again, once.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.lock_known().clear();
                self.make_folders(path)?;
                fs::rename(partial, &target)
            }
            other => other,
        });
        moved.map_err(|error| self.unwritten(path, &error))
    }

    /// Makes the folders above `path`, one by one.
    fn make_folders(&self, path: &RelPath) -> io::Result<()> {
        let Some(parent) = path.as_path().parent().filter(|parent| *parent != Path::new("")) else {
            return Ok(());
        };
        if self.lock_known().contains(parent) {
            return Ok(());
        }
        let mut folder = self.root.clone();
        for name in parent.as_os_str().as_bytes().split(|&byte| byte == b'/') {
            folder.push(OsStr::from_bytes(name));
            match fs::create_dir(&folder) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                    if !fs::symlink_metadata(&folder)?.is_dir() {
                        let problem = format!("{} is in the way and is no folder", folder.display());
                        return Err(io::Error::new(ErrorKind::NotADirectory, problem));
                    }
                }
                other => other?,
            }
        }
        let mut known = self.lock_known();
        if known.len() >= MAX_KNOWN {
            known.clear();
        }
        known.insert(parent.to_owned());
        Ok(())
    }

    fn lock_known(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    pub(crate) fn unwritten(&self, path: &RelPath, error: &io::Error) -> Fault {
        match Fault::at(&path.join_to(&self.root), "cannot be written", error) {
            fault if fault.exit == Exit::NoInput => Fault::new(Exit::Io, fault.to_string()),
            fault => fault,
        }
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    io::Write::write_all(&mut OpenOptions::new().write(true).create_new(true).open(path)?, content)
}

/// Removes the hidden folder if it is there; a link of its name is removed, not followed.
fn remove_partial(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    }
}

/// Whether a regular file with exactly this content stands at `path`.
fn holds(path: &Path, content: &[u8]) -> bool {
    let same_len = |metadata: fs::Metadata| metadata.is_file() && metadata.len() == content.len() as u64;
    if !fs::symlink_metadata(path).is_ok_and(same_len) {
        return false;
    }
    let Ok(mut file) = open_plain(path) else { return false };
    let mut buffer = vec![0; STEP.min(content.len())];
    content.chunks(STEP).all(|part| {
        let piece = &mut buffer[..part.len()];
        file.read_exact(piece).is_ok() && piece == part
    })
}

/// Opens a regular file for reading; follows no link and waits on no pipe.
pub(crate) fn open_plain(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(ErrorKind::InvalidInput, "not a regular file")),
    }
}

/// BLAKE3-256 and the size of a regular file.
pub(crate) fn hash_file(path: &Path) -> io::Result<([u8; 32], u64)> {
    let mut file = open_plain(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; STEP];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((*hasher.finalize().as_bytes(), hasher.count())),
            count => drop(hasher.update(&buffer[..count])),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn folder() -> (tempfile::TempDir, Folder) {
        let root = tempfile::tempdir().unwrap();
        let folder = Folder::open(root.path()).unwrap();
        (root, folder)
    }

    fn path(text: &str) -> RelPath {
        RelPath::new(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_file_is_put_with_its_folders_and_nothing_is_left_over() {
        let (root, folder) = folder();
        assert_eq!(folder.put(&path("a/b/c"), b"one").unwrap(), Placed::New);
        assert_eq!(folder.put(&path("a/b/c"), b"one").unwrap(), Placed::Same);
        assert_eq!(folder.put(&path("a/b/c"), b"two").unwrap(), Placed::New);
        assert_eq!(fs::read(root.path().join("a/b/c")).unwrap(), b"two");
        assert_eq!(fs::read_dir(root.path().join(PARTIAL)).unwrap().count(), 0);
        folder.finish().unwrap();
        assert!(!root.path().join(PARTIAL).exists());
    }

    #[test]
    fn a_link_among_the_folders_is_refused() {
        let (root, folder) = folder();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), root.path().join("link")).unwrap();
        assert!(folder.put(&path("link/file"), b"x").is_err());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_link_in_the_files_place_is_replaced_and_its_target_left_alone() {
        let (root, folder) = folder();
        let outside = tempfile::NamedTempFile::new().unwrap();
        symlink(outside.path(), root.path().join("file")).unwrap();
        folder.put(&path("file"), b"x").unwrap();
        assert_eq!(fs::read(outside.path()).unwrap(), b"");
        assert!(fs::symlink_metadata(root.path().join("file")).unwrap().is_file());
    }

    #[test]
    fn a_file_where_a_folder_must_be_is_one_clear_error() {
        let (_root, folder) = folder();
        folder.put(&path("a"), b"x").unwrap();
        let fault = folder.put(&path("a/b"), b"x").unwrap_err().to_string();
        assert!(fault.contains("is in the way and is no folder"), "{fault}");
    }

    #[test]
    fn a_folder_that_was_removed_is_made_again() {
        let (root, folder) = folder();
        folder.put(&path("a/b"), b"x").unwrap();
        fs::remove_dir_all(root.path().join("a")).unwrap();
        folder.put(&path("a/c"), b"x").unwrap();
        assert!(root.path().join("a/c").exists());
    }

    #[test]
    fn leftovers_of_an_earlier_process_are_cleared() {
        let (root, folder) = folder();
        folder.write_part(&folder.partial_name(), 0, b"half").unwrap();
        Folder::open(root.path()).unwrap();
        assert_eq!(fs::read_dir(root.path().join(PARTIAL)).unwrap().count(), 0);
    }
}
