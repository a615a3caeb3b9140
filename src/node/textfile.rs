//! Small text files that an operator writes: read with a cap, and with places for error messages.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why a file's text cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TextFileError {
    /// There is no such file.
    #[error("{}: no such file; check the path", path.display())]
    Missing {
        /// Which file.
        path: PathBuf,
    },
    /// This user may not read it.
    #[error("{}: this user may not read it; give the user that runs this read permission", path.display())]
    Forbidden {
        /// Which file.
        path: PathBuf,
    },
    /// A folder, a pipe, a device.
    #[error("{}: found {found}, a regular file is needed", path.display())]
    NotRegular {
        /// Which file.
        path: PathBuf,
        /// What it is instead.
        found: &'static str,
    },
    /// More bytes than the cap.
    #[error("{}: more than {max} bytes, the most that is read; this is not the file that was meant", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// The cap.
        max: u64,
    },
    /// Bytes that are not UTF-8.
    #[error("{}:{place}: not UTF-8 text; save the file as UTF-8", path.display())]
    NotUtf8 {
        /// Which file.
        path: PathBuf,
        /// The first wrong byte.
        place: Place,
    },
    /// The system failed.
    #[error("{}: cannot be read: {error}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
}

/// A line and a column in a text, both from 1; columns count characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl Place {
    /// The place of byte `offset` of `text`; the end, when the text is shorter.
    pub fn of(text: &str, offset: usize) -> Place {
        let before = &text.as_bytes()[..offset.min(text.len())];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let column = before[start..].iter().filter(|&&byte| byte & 0xc0 != 0x80).count() + 1;
        Place { line, column }
    }

    /// The place where `span` begins; the text's start, when there is none.
    pub fn of_span(text: &str, span: Option<Range<usize>>) -> Place {
        Place::of(text, span.map_or(0, |span| span.start))
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Reads at most `max` bytes of text. Never waits on a pipe; a byte-order mark is dropped.
pub fn read(path: &Path, max: u64) -> Result<String, TextFileError> {
    let path_buf = || path.to_owned();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => TextFileError::Missing { path: path_buf() },
        io::ErrorKind::PermissionDenied => TextFileError::Forbidden { path: path_buf() },
        _ => TextFileError::Io { path: path_buf(), error },
    };
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() {
        let found = if kind.is_dir() { "a folder" } else { "a pipe, socket or device" };
        return Err(TextFileError::NotRegular { path: path_buf(), found });
    }
    let mut bytes = Vec::new();
    file.take(max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > max {
        return Err(TextFileError::TooLarge { path: path_buf(), max });
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        let place = Place::of(&String::from_utf8_lossy(&error.as_bytes()[..good]), good);
        TextFileError::NotUtf8 { path: path_buf(), place }
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_characters_from_one() {
        let text = "ab\ncüd\n";
        assert_eq!(Place::of(text, 0), Place { line: 1, column: 1 });
        assert_eq!(Place::of(text, 6), Place { line: 2, column: 3 });
        assert_eq!(Place::of(text, 99), Place { line: 3, column: 1 });
    }

    #[test]
    fn a_folder_a_pipe_and_nothing_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(read(folder.path(), 9), Err(TextFileError::NotRegular { found: "a folder", .. })));
        assert!(matches!(read(&folder.path().join("x"), 9), Err(TextFileError::Missing { .. })));
        assert!(matches!(read(Path::new("/dev/null"), 9), Err(TextFileError::NotRegular { .. })));
    }

    #[test]
    fn a_file_over_the_cap_is_not_read_further() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "0123456789").unwrap();
        assert!(matches!(read(&path, 9), Err(TextFileError::TooLarge { max: 9, .. })));
        assert_eq!(read(&path, 10).unwrap(), "0123456789");
    }

    #[test]
    fn wrong_bytes_are_placed_and_a_byte_order_mark_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, b"ab\nc\xff").unwrap();
        let error = read(&path, 99).unwrap_err();
        assert!(
            matches!(error, TextFileError::NotUtf8 { place: Place { line: 2, column: 2 }, .. }),
            "{error}"
        );
        std::fs::write(&path, "\u{feff}x = 1").unwrap();
        assert_eq!(read(&path, 99).unwrap(), "x = 1");
    }
}
