//! The one error type of the tools: a line that says what, where, what is allowed and how to fix it, and an exit code.

use std::fmt;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use corecast::node::KeyFileError;
use corecast::node::RegistryError;
use corecast::node::textfile::TextFileError;

/// Exit codes: those of sysexits.h, and the shell's for an interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// Flags and arguments.
    Usage = 64,
    /// A file's content.
    Data = 65,
    /// A missing file.
    NoInput = 66,
    /// The network, or nobody there.
    Unavailable = 69,
    /// What was promised did not hold.
    Software = 70,
    /// The system refuses a thread, a socket, io_uring.
    Os = 71,
    /// An output that cannot be made.
    CannotCreate = 73,
    /// Reading or writing failed half way.
    Io = 74,
    /// Permissions.
    Permission = 77,
    /// A configuration or registry.
    Config = 78,
    /// Ctrl-C.
    Interrupted = 130,
}

/// Why a tool ends early.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) exit: Exit,
    message: String,
}

impl Fault {
    /// `message` says what, where, what is allowed, and how to fix it.
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Fault {
        Fault { exit, message: message.into() }
    }

    /// The system refused something at `path`; `doing` as in "cannot be created".
    pub(crate) fn at(path: &Path, doing: &str, error: &io::Error) -> Fault {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Exit::Permission,
            io::ErrorKind::NotFound => Exit::NoInput,
            _ => Exit::Io,
        };
        Fault::new(exit, format!("{}: {doing}: {error}", path.display()))
    }

    /// Prints the line and gives the code.
    pub(crate) fn report(&self, tool: &str) -> ExitCode {
        // With stderr closed there is nobody to tell; the code says it still.
        writeln!(io::stderr(), "{tool}: {self}").ok();
        ExitCode::from(self.exit as u8)
    }
}

impl fmt::Display for Fault {
    /// One line, whatever a path or a peer put into it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.message.chars().try_for_each(|char| match char.is_control() {
            true => write!(f, "{}", char.escape_default()),
            false => write!(f, "{char}"),
        })
    }
}

impl From<KeyFileError> for Fault {
    fn from(error: KeyFileError) -> Fault {
        let exit = match &error {
            KeyFileError::Missing(_) => Exit::NoInput,
            KeyFileError::Forbidden(_) | KeyFileError::Exposed { .. } => Exit::Permission,
            KeyFileError::NotRegular(_)
            | KeyFileError::TooLarge(_)
            | KeyFileError::Sections { .. }
            | KeyFileError::Damaged(_)
            | KeyFileError::NotEd25519(_) => Exit::Data,
            KeyFileError::Exists(_) => Exit::CannotCreate,
            KeyFileError::Io { .. } => Exit::Io,
        };
        Fault::new(exit, error.to_string())
    }
}

impl From<TextFileError> for Fault {
    fn from(error: TextFileError) -> Fault {
        let exit = match &error {
            TextFileError::Missing { .. } => Exit::NoInput,
            TextFileError::Forbidden { .. } => Exit::Permission,
            TextFileError::NotRegular { .. }
            | TextFileError::TooLarge { .. }
            | TextFileError::NotUtf8 { .. } => Exit::Config,
            TextFileError::Io { .. } => Exit::Io,
        };
        Fault::new(exit, error.to_string())
    }
}

impl From<RegistryError> for Fault {
    fn from(error: RegistryError) -> Fault {
        let exit = match error {
            RegistryError::File(error) => return error.into(),
            RegistryError::Text { .. } | RegistryError::Record { .. } | RegistryError::Source(_) => {
                Exit::Config
            }
            RegistryError::Change { .. } => Exit::Usage,
            RegistryError::Exists(_) => Exit::CannotCreate,
            RegistryError::Write { ref path, ref error } => {
                return match Fault::at(path, "cannot be written", error) {
                    Fault { exit: Exit::NoInput, message } => Fault::new(Exit::CannotCreate, message),
                    fault => fault,
                };
            }
        };
        Fault::new(exit, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_one_line_whatever_stands_in_it() {
        let fault = Fault::new(Exit::Data, "a\nb\u{1b}[31mc");
        assert_eq!(fault.to_string(), "a\\nb\\u{1b}[31mc");
    }
}
