//! A file's path below a folder, as it crosses the network: checked, so that joining it never leaves the folder.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// Bytes of a path; with the folder in front it stays below the system's 4,096.
pub(crate) const MAX_PATH: usize = 2048;
/// Bytes of one name, the system's own limit.
const MAX_NAME: usize = 255;
/// The folder in which files grow until they are whole. No path may begin with it.
pub(crate) const PARTIAL: &str = ".corecast-partial";

/// One or more plain names joined by `/`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RelPath(Vec<u8>);

/// Why bytes are no such path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PathFault {
    #[error("the path is empty or longer than {MAX_PATH} bytes")]
    Length,
    #[error("the path begins with a slash")]
    Absolute,
    #[error("a name in the path is empty, `.`, `..`, longer than {MAX_NAME} bytes, or has a NUL")]
    Name,
    #[error("the path begins with {PARTIAL}, which is kept for files that are not whole yet")]
    Reserved,
}

impl RelPath {
    /// Checks bytes that anyone may have chosen.
    pub(crate) fn new(bytes: &[u8]) -> Result<RelPath, PathFault> {
        if bytes.is_empty() || bytes.len() > MAX_PATH {
            return Err(PathFault::Length);
        }
        if bytes.starts_with(b"/") {
            return Err(PathFault::Absolute);
        }
        for name in bytes.split(|&byte| byte == b'/') {
            let special = name.is_empty() || name == b"." || name == b"..";
            if special || name.len() > MAX_NAME || name.contains(&0) {
                return Err(PathFault::Name);
            }
        }
        if bytes.split(|&byte| byte == b'/').next() == Some(PARTIAL.as_bytes()) {
            return Err(PathFault::Reserved);
        }
        let path = RelPath(bytes.to_vec());
        // What the standard library makes of it must agree with the check above.
        let plain = path.as_path().components().all(|component| matches!(component, Component::Normal(_)));
        if plain { Ok(path) } else { Err(PathFault::Name) }
    }

    /// The part of `path` below `root`.
    pub(crate) fn below(root: &Path, path: &Path) -> Result<RelPath, PathFault> {
        let rest = path.strip_prefix(root).map_err(|_| PathFault::Absolute)?;
        RelPath::new(rest.as_os_str().as_bytes())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The file below `root`.
    pub(crate) fn join_to(&self, root: &Path) -> PathBuf {
        root.join(self.as_path())
    }
}

impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_path().display().fmt(f)
    }
}

impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_path(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_names_pass_even_odd_ones() {
        for good in ["a", "a/b/c.rs", "...", "a b/ü", ".hidden", "a\\b", "-rf", "a/.corecast-partial"] {
            assert!(RelPath::new(good.as_bytes()).is_ok(), "{good}");
        }
        assert!(RelPath::new(b"not \xff utf-8").is_ok());
    }

    #[test]
    fn nothing_leads_out_of_the_folder() {
        let long_name = "n".repeat(256);
        let long_path = "d/".repeat(1024) + "x";
        let bad =
            ["", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", ".", "./a", "a/./b", "a//b", "a/"];
        for bad in bad.into_iter().chain(["a\0b", &long_name, &long_path, ".corecast-partial/x"]) {
            assert!(RelPath::new(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
