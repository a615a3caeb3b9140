//! The inbox: a file that is moved in is broadcast, and stays active for as long as it lies there.
//!
//! The folder is looked through a few times a second; nothing is missed by that, because what counts is what lies there.
//! Names that begin with a dot are passed over, so a program that cannot move may write to such a name first. A file that
//! changes while it is read is left for the next look.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use corecast::types::ArtifactId;
use walkdir::WalkDir;

use crate::files::relpath::RelPath;
use crate::files::split::{Pieces, Stamp};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::port::{Port, Refusal};

/// Files of the inbox that are looked at. More are passed over, with a warning.
const MAX_FILES: usize = 64 << 10;
/// The most artifacts made in one look, so that the end of the process is noticed in time.
const MAX_MADE: usize = 64;

/// What of the inbox is active.
pub(crate) struct Inbox {
    root: PathBuf,
    artifact_bytes: usize,
    port: Arc<dyn Port>,
    files: BTreeMap<RelPath, Outgoing>,
    /// What was warned of last, so that it is said once.
    warned: Option<String>,
}

/// A file on its way out.
struct Outgoing {
    stamp: Stamp,
    ids: Vec<ArtifactId>,
    stage: Stage,
}

enum Stage {
    /// Not opened yet: a full inbox would take a descriptor for each file.
    Listed,
    /// On its way. Boxed, since most files are not at this stage.
    Reading(Box<Pieces>),
    /// All of it is active.
    Sent,
    /// It could not be read in this state; it is left alone until it changes.
    GivenUp,
}

/// What a look led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    /// All that lies there is active.
    Settled,
    /// There is more to be broadcast, now.
    More,
    /// The table is full.
    Full,
    /// The node has stopped.
    Stopped,
}

impl Inbox {
    pub(crate) fn new(root: &Path, artifact_bytes: usize, port: Arc<dyn Port>) -> Inbox {
        Inbox { root: root.to_owned(), artifact_bytes, port, files: BTreeMap::new(), warned: None }
    }

    /// Compares the folder with what is active, and makes up the difference.
    pub(crate) fn look(&mut self) -> Look {
        let found = self.list();
        let gone: Vec<RelPath> = self
            .files
            .iter()
            .filter(|(path, outgoing)| found.get(*path) != Some(&outgoing.stamp))
            .map(|(path, _)| path.clone())
            .collect();
        for path in gone {
            if let Some(outgoing) = self.files.remove(&path) {
                outgoing.ids.iter().for_each(|id| self.port.abort(id));
                tracing::info!(%path, artifacts = outgoing.ids.len(), "no longer broadcast");
            }
        }
        for (path, stamp) in found {
            let listed = || Outgoing { stamp, ids: Vec::new(), stage: Stage::Listed };
            self.files.entry(path).or_insert_with(listed);
        }
        self.make()
    }

    /// Aborts everything, for an end in good order.
    pub(crate) fn close(self) {
        self.files.values().flat_map(|outgoing| &outgoing.ids).for_each(|id| self.port.abort(id));
    }

    fn list(&mut self) -> BTreeMap<RelPath, Stamp> {
        let hidden = |entry: &walkdir::DirEntry| {
            entry.depth() > 0 && entry.file_name().as_encoded_bytes().starts_with(b".")
        };
        let entries = WalkDir::new(&self.root).into_iter().filter_entry(|entry| !hidden(entry));
        let mut found = BTreeMap::new();
        // What cannot be read now may be gone; the next look will tell.
        for entry in entries.flatten().filter(|entry| entry.file_type().is_file()) {
            if found.len() >= MAX_FILES {
                self.warn(format!("the inbox holds more than {MAX_FILES} files; the rest waits"));
                break;
            }
            let Ok(metadata) = entry.metadata() else { continue };
            match RelPath::below(&self.root, entry.path()) {
                Ok(path) => drop(found.insert(path, Stamp::of(&metadata))),
                Err(fault) => self.warn(format!("{}: {fault}", entry.path().display())),
            }
        }
        found
    }

    /// Broadcasts what is still to be, up to a bound.
    fn make(&mut self) -> Look {
        let mut budget = MAX_MADE;
        let mut failed = Vec::new();
        let mut look = Look::Settled;
        for (path, outgoing) in &mut self.files {
            match outgoing.advance(path, &self.root, self.artifact_bytes, &self.port, &mut budget) {
                Ok(Look::Settled) => {}
                Ok(other) => {
                    look = other;
                    break;
                }
                Err(fault) => {
                    outgoing.stage = Stage::GivenUp;
                    outgoing.ids.drain(..).for_each(|id| self.port.abort(&id));
                    failed.push(fault);
                }
            }
        }
        failed.into_iter().for_each(|fault| self.warn(fault.to_string()));
        look
    }

    fn warn(&mut self, problem: String) {
        if self.warned.as_ref() != Some(&problem) {
            tracing::warn!("{problem}");
            self.warned = Some(problem);
        }
    }
}

impl Outgoing {
    /// Broadcasts the rest of the file, as far as `budget` artifacts and the node's table allow.
    fn advance(
        &mut self,
        path: &RelPath,
        root: &Path,
        artifact_bytes: usize,
        port: &Arc<dyn Port>,
        budget: &mut usize,
    ) -> Result<Look, Fault> {
        if matches!(self.stage, Stage::Listed) {
            let pieces = Pieces::open(root, path, artifact_bytes)?;
            if pieces.stamp() != self.stamp {
                // It changed after it was listed; the next look sees it as it is.
                return Ok(Look::Settled);
            }
            self.stage = Stage::Reading(Box::new(pieces));
        }
        let Stage::Reading(pieces) = &mut self.stage else { return Ok(Look::Settled) };
        while let Some(body) = pieces.next()? {
            if *budget == 0 {
                return Ok(Look::More);
            }
            let len = body.len();
            match port.broadcast(body) {
                Ok(id) => {
                    *budget -= 1;
                    pieces.sent(id);
                    self.ids.push(id);
                }
                Err(Refusal::Wait) => return Ok(Look::Full),
                Err(Refusal::Stopped) => return Ok(Look::Stopped),
                Err(Refusal::TooLarge) => {
                    let problem = format!("{path}: the node refuses an artifact of {len} bytes as too large");
                    return Err(Fault::new(Exit::Software, problem));
                }
            }
        }
        self.stage = Stage::Sent;
        tracing::info!(%path, artifacts = self.ids.len(), "broadcast");
        Ok(Look::Settled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::hub::{self, Mishaps};
    use crate::subnet::port::{Arrival, Subnet};
    use corecast::config::TopicConfig;
    use corecast::types::TopicId;
    use std::fs;

    fn setting(slots: u32) -> (tempfile::TempDir, Subnet, Inbox) {
        let root = tempfile::tempdir().unwrap();
        let mut topic = TopicConfig::new(TopicId(1), "files");
        topic.slots = slots;
        let subnet = hub::start(2, &[topic], Mishaps::default());
        let inbox = Inbox::new(root.path(), 1000, Arc::clone(&subnet.ports[0][0]));
        (root, subnet, inbox)
    }

    fn arrived(subnet: &mut Subnet) -> usize {
        std::iter::from_fn(|| subnet.feeds[1][0].try_next())
            .filter(|arrival| matches!(arrival, Arrival::Delivered { .. }))
            .count()
    }

    #[test]
    fn a_file_is_active_while_it_lies_there_and_sent_once() {
        let (root, mut subnet, mut inbox) = setting(1);
        fs::write(root.path().join("a"), "one").unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Settled, 1));
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Settled, 0));
        fs::write(root.path().join("b"), "two").unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Full, 0));
        fs::remove_file(root.path().join("a")).unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Settled, 1));
    }

    #[test]
    fn a_changed_file_replaces_itself_and_hidden_names_are_passed_over() {
        let (root, mut subnet, mut inbox) = setting(9);
        fs::write(root.path().join("a"), "one").unwrap();
        fs::write(root.path().join(".b"), "hidden").unwrap();
        inbox.look();
        fs::write(root.path().join("a"), "other").unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Settled, 2));
    }

    #[test]
    fn a_large_file_goes_on_where_the_table_was_full() {
        let (root, mut subnet, mut inbox) = setting(4);
        fs::write(root.path().join("large"), vec![1; 5000]).unwrap();
        fs::write(root.path().join("a"), "one").unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Full, 4));
        fs::remove_file(root.path().join("a")).unwrap();
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Full, 1));
        inbox.close();
    }

    #[test]
    fn a_look_is_bounded() {
        let (root, mut subnet, mut inbox) = setting(1000);
        (0..100).for_each(|i| fs::write(root.path().join(i.to_string()), "x").unwrap());
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::More, MAX_MADE));
        assert_eq!((inbox.look(), arrived(&mut subnet)), (Look::Settled, 100 - MAX_MADE));
    }
}
