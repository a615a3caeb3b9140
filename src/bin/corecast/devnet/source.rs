//! The folder that is broadcast, and the folders that receive it.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use walkdir::WalkDir;

use crate::files::relpath::RelPath;
use crate::subnet::fault::{Exit, Fault};

/// The files of one devnet run.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) root: PathBuf,
    /// Sorted.
    pub(crate) files: Vec<RelPath>,
    pub(crate) bytes: u64,
}

/// Files of one run: their paths stay in memory, and each gets an open latency.
const MAX_FILES: usize = 4 << 20;

/// Lists every regular file below `root`. Links are not followed; they and special files are passed over.
pub(crate) fn list(root: &Path) -> Result<Source, Fault> {
    let kind = fs::metadata(root).map_err(|error| Fault::at(root, "cannot be read", &error))?;
    if !kind.is_dir() {
        let problem = format!("{}: not a folder; --files takes a folder of files", root.display());
        return Err(Fault::new(Exit::NoInput, problem));
    }
    // With its links resolved: below it, none is followed.
    let root = fs::canonicalize(root).map_err(|error| Fault::at(root, "cannot be read", &error))?;
    let (mut files, mut bytes) = (Vec::new(), 0);
    for entry in WalkDir::new(&root).sort_by_file_name() {
        let entry = entry.map_err(|error| unreadable(&root, error))?;
        if !entry.file_type().is_file() {
            continue;
        }
        let path = RelPath::below(&root, entry.path())
            .map_err(|fault| Fault::new(Exit::Data, format!("{}: {fault}", entry.path().display())))?;
        bytes += entry.metadata().map_err(|error| unreadable(&root, error))?.len();
        files.push(path);
        if files.len() > MAX_FILES {
            let problem = format!("{}: more than {MAX_FILES} files; choose a smaller folder", root.display());
            return Err(Fault::new(Exit::Data, problem));
        }
    }
    if files.is_empty() {
        let problem = format!("{}: no regular file in it; put files there", root.display());
        return Err(Fault::new(Exit::NoInput, problem));
    }
    Ok(Source { root, files, bytes })
}

fn unreadable(root: &Path, error: walkdir::Error) -> Fault {
    let path = error.path().unwrap_or(root).to_owned();
    match error.into_io_error() {
        Some(error) => Fault::at(&path, "cannot be read", &error),
        None => Fault::new(Exit::Io, format!("{}: folders form a loop", path.display())),
    }
}

/// Makes `out` and one folder for each node in it.
pub(crate) fn make_out(files: &Path, out: &Path, nodes: u16) -> Result<Vec<PathBuf>, Fault> {
    let create = |path: &Path, create: fn(&Path) -> std::io::Result<()>| {
        create(path).map_err(|error| {
            let fault = Fault::at(path, "cannot be created", &error);
            let exit = if fault.exit == Exit::Permission { Exit::Permission } else { Exit::CannotCreate };
            Fault::new(exit, fault.to_string())
        })
    };
    let refuse = |problem: &str| Err(Fault::new(Exit::CannotCreate, format!("{}: {problem}", out.display())));
    match fs::read_dir(out).map(|mut entries| entries.next()) {
        Ok(Some(_)) => return refuse("exists and is not empty; name a new folder or empty this one"),
        Ok(None) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => create(out, |path| fs::create_dir_all(path))?,
        Err(error) if error.kind() == ErrorKind::NotADirectory => {
            return refuse("exists and is no folder; name a new folder");
        }
        Err(error) => return Err(Fault::at(out, "cannot be read", &error)),
    }
    let inside = fs::canonicalize(out).ok().zip(fs::canonicalize(files).ok());
    if inside.is_some_and(|(out, files)| out.starts_with(files)) {
        fs::remove_dir(out).ok();
        return refuse("lies inside the folder that is broadcast; name one outside");
    }
    let folders: Vec<PathBuf> = (0..nodes).map(|node| out.join(format!("node-{node}"))).collect();
    folders.iter().try_for_each(|folder| create(folder, |path| fs::create_dir(path)))?;
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regular_files_are_listed_in_order_and_links_are_not() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/c")).unwrap();
        for (name, content) in [("b/c/2", "22"), ("b/1", ""), ("a", "1")] {
            fs::write(root.path().join(name), content).unwrap();
        }
        std::os::unix::fs::symlink("a", root.path().join("link")).unwrap();
        let source = list(root.path()).unwrap();
        let paths: Vec<String> = source.files.iter().map(ToString::to_string).collect();
        assert_eq!((paths, source.bytes), (vec!["a".into(), "b/1".into(), "b/c/2".into()], 3));
    }

    #[test]
    fn an_output_folder_must_be_empty_and_elsewhere() {
        let root = tempfile::tempdir().unwrap();
        let (files, out) = (root.path().join("in"), root.path().join("x/out"));
        fs::create_dir(&files).unwrap();
        assert_eq!(make_out(&files, &out, 2).unwrap(), [out.join("node-0"), out.join("node-1")]);
        assert_eq!(make_out(&files, &out, 2).unwrap_err().exit, Exit::CannotCreate);
        assert!(make_out(&files, &files.join("out"), 2).unwrap_err().to_string().contains("lies inside"));
        assert!(!files.join("out").exists());
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(make_out(&files, &root.path().join("file"), 2).unwrap_err().exit, Exit::CannotCreate);
    }
}
