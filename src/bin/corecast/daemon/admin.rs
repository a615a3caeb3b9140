//! The admin endpoint: a Unix socket that answers what a node knows of itself, one JSON object a line.
//!
//! Questions are lines: `stats`, `stages`, `trace ID`. Every answer has its text for people in `text`, or says what is wrong in
//! `error`. One thread serves one connection at a time; one that dawdles is closed, and others wait in the kernel's queue.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use corecast::Node;

use super::answer;
use crate::subnet::fault::{Exit, Fault};

/// Bytes of a question. The longest is `trace` and an id of 64 digits.
const MAX_QUESTION: u64 = 128;
/// How long one connection may take for all that it asks.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the end of the process is looked for.
const GLANCE: Duration = Duration::from_millis(50);

/// The socket; gone when this goes.
pub(crate) struct Admin {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode, by which it is known.
    file: (u64, u64),
}

impl Admin {
    /// Opens the socket, for this user alone. One that a dead process has left is replaced.
    pub(crate) fn open(path: &Path) -> Result<Admin, Fault> {
        let cannot = |problem: &str| Fault::new(Exit::CannotCreate, format!("{}: {problem}", path.display()));
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(cannot("is there and is no socket; move it away"));
            }
            match UnixStream::connect(path) {
                Ok(_) => return Err(cannot("another process answers there; end it, or name another socket")),
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                Err(error) => return Err(cannot(&format!("it cannot be told who answers there: {error}"))),
            }
        }
        Self::make(path).map_err(|error| match Fault::at(path, "the admin socket cannot be made", &error) {
            fault if fault.exit == Exit::Permission => fault,
            fault => Fault::new(Exit::CannotCreate, fault.to_string()),
        })
    }

    /// Makes it in a folder that nobody else enters: at its own place it would be open to all for a moment.
    fn make(path: &Path) -> io::Result<Admin> {
        let folder = path.with_extension(format!("{}.new", std::process::id()));
        let socket = folder.join("s");
        let clear = || {
            fs::remove_file(&socket).ok();
            fs::remove_dir(&folder).ok();
        };
        // A process of the same number may have died in here.
        clear();
        DirBuilder::new().mode(0o700).create(&folder)?;
        let made = UnixListener::bind(&socket).and_then(|listener| {
            fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
            listener.set_nonblocking(true)?;
            let metadata = fs::symlink_metadata(&socket)?;
            fs::rename(&socket, path)?;
            Ok(Admin { listener, path: path.to_owned(), file: (metadata.dev(), metadata.ino()) })
        });
        clear();
        made
    }

    /// Answers until the other end of `ending` is gone.
    pub(crate) fn serve(&self, node: &Node, ending: &Receiver<()>) {
        while !is_over(ending) {
            match self.listener.accept() {
                // What becomes of one who asks is that one's business.
                Ok((stream, _)) => converse(&stream, node, ending).unwrap_or_else(|error| {
                    tracing::debug!(%error, "a connection to the admin socket broke");
                }),
                // It comes back at once when that end goes.
                Err(_) => {
                    let _ = ending.recv_timeout(GLANCE);
                }
            }
        }
    }
}

fn is_over(ending: &Receiver<()>) -> bool {
    ending.try_recv() == Err(TryRecvError::Disconnected)
}

impl Drop for Admin {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|at| (at.dev(), at.ino()) == self.file);
        if ours {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Answers what is asked on one connection.
fn converse(stream: &UnixStream, node: &Node, ending: &Receiver<()>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(GLANCE))?;
    stream.set_write_timeout(Some(GLANCE))?;
    let line = || Line { stream, ending, deadline: Instant::now() + PATIENCE };
    let (mut reader, mut out) = (BufReader::with_capacity(MAX_QUESTION as usize, line()), line());
    loop {
        let mut question = Vec::new();
        reader.by_ref().take(MAX_QUESTION).read_until(b'\n', &mut question)?;
        let Some(question) = question.strip_suffix(b"\n") else {
            if question.is_empty() {
                return Ok(());
            }
            let problem = answer::error(&format!("a question is a line of at most {MAX_QUESTION} bytes"));
            return out.write_all(format!("{problem}\n").as_bytes());
        };
        let answer = answer::to(node, &String::from_utf8_lossy(question));
        out.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// A connection that breaks at a deadline, however slowly bytes come and go, and when the process ends.
struct Line<'a> {
    stream: &'a UnixStream,
    ending: &'a Receiver<()>,
    deadline: Instant,
}

impl Line<'_> {
    /// Tries again for as long as the stream has nothing, or no room.
    fn patiently(&self, mut attempt: impl FnMut(&UnixStream) -> io::Result<usize>) -> io::Result<usize> {
        while Instant::now() < self.deadline && !is_over(self.ending) {
            match attempt(self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                done => return done,
            }
        }
        Err(ErrorKind::TimedOut.into())
    }
}

impl Read for Line<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.read(buffer))
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.patiently(|mut stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
