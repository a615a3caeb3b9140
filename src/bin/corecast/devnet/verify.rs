//! Every file at every node, read again and compared with its source.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use walkdir::WalkDir;

use super::progress::Progress;
use super::source::Source;
use crate::files::folder::hash_file;
use crate::files::relpath::RelPath;
use crate::subnet::fault::Fault;
use crate::subnet::stop::Stop;

/// The first difference between the source and the folders, in words; `None` when all are identical.
pub(crate) fn compare(
    source: &Source,
    folders: &[PathBuf],
    threads: usize,
    stop: &Stop,
) -> Result<Option<String>, Fault> {
    let progress = Progress::new("verifying", source.files.len() as u64, source.bytes);
    let state = Mutex::new((None::<Result<String, Fault>>, 0, 0));
    let next = AtomicUsize::new(0);
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(path) = source.files.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = compare_one(source, folders, path);
                    let mut state = lock();
                    match found {
                        Ok(bytes) => (state.1, state.2) = (state.1 + 1, state.2 + bytes),
                        Err(difference) => drop(state.0.get_or_insert(difference)),
                    }
                    if state.0.is_some() || stop.is_set() {
                        return;
                    }
                    progress.show(state.1, state.2);
                }
            });
        }
    });
    drop(progress);
    let difference = lock().0.take();
    match difference {
        Some(difference) => difference.map(Some),
        None if stop.is_set() => Ok(Some("interrupted before every file was compared".to_owned())),
        None => Ok(folders.iter().find_map(|folder| surplus(folder, source.files.len()))),
    }
}

/// The bytes of a file that is the same everywhere, or how it differs.
fn compare_one(source: &Source, folders: &[PathBuf], path: &RelPath) -> Result<u64, Result<String, Fault>> {
    let original = path.join_to(&source.root);
    let expected =
        hash_file(&original).map_err(|error| Err(Fault::at(&original, "cannot be read", &error)))?;
    for folder in folders {
        let copy = path.join_to(folder);
        match hash_file(&copy) {
            Ok(found) if found == expected => {}
            Ok(_) => return Err(Ok(format!("{} differs from {}", copy.display(), original.display()))),
            Err(error) => return Err(Ok(format!("{}: cannot be read again: {error}", copy.display()))),
        }
    }
    Ok(expected.1)
}

/// What a folder has beyond the files that belong there.
fn surplus(folder: &Path, files: usize) -> Option<String> {
    let entries = WalkDir::new(folder).into_iter().flatten();
    let found = entries.filter(|entry| !entry.file_type().is_dir()).count();
    (found != files).then(|| format!("{}: holds {found} files, not {files}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_difference_a_gap_and_a_surplus_are_found() {
        let root = tempfile::tempdir().unwrap();
        let (files, copy) = (root.path().join("in"), root.path().join("copy"));
        for folder in [&files, &copy] {
            fs::create_dir(folder).unwrap();
            fs::write(folder.join("a"), "content").unwrap();
        }
        let source = super::super::source::list(&files).unwrap();
        let folders = [copy.clone()];
        let compare = || compare(&source, &folders, 2, &Stop::default()).unwrap();
        assert_eq!(compare(), None);
        fs::write(copy.join("b"), "").unwrap();
        assert!(compare().unwrap().contains("holds 2 files, not 1"));
        fs::write(copy.join("a"), "Content").unwrap();
        assert!(compare().unwrap().contains("differs from"));
        fs::remove_file(copy.join("a")).unwrap();
        assert!(compare().unwrap().contains("cannot be read again"));
    }
}
