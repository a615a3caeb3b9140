//! Where the membership record comes from, and its first form: a TOML file.
//!
//! ```toml
//! subnet = "example"
//! version = 3        # grows with every change
//! lanes = 2          # lane k listens on each address's port + k
//!
//! [[members]]
//! key = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1"
//! addresses = ["192.0.2.1:4100", "[2001:db8::1]:4100"]
//! ```
//!
//! The file is replaced by rename, so a reader sees the old record or the new one, never a part.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use toml::Spanned;

use super::textfile::{self, Place, TextFileError};
use crate::types::{Member, Membership, MembershipError, NodeId, RegistryVersion};

/// The most bytes that a registry file may have: enough for [`Membership::MAX_MEMBERS`] with an address each.
const MAX_REGISTRY_FILE: u64 = 1 << 20;

/// Where a node learns who is a member.
///
/// `load` is asked once, at start, from the thread that starts the node, and may block for as long as its medium
/// needs. A source that follows changes (a watched file, etcd, another member) will add a method that the node's
/// control thread asks for a newer record; until then a change takes a restart. Whatever the source, the record is
/// checked by [`Membership::new`], and a source never hands out a lower version than before.
pub trait RegistrySource: Send {
    /// The current record.
    fn load(&mut self) -> Result<Arc<Membership>, RegistryError>;
}

/// A record in memory, for tests and for subnets within one process.
impl RegistrySource for Arc<Membership> {
    fn load(&mut self) -> Result<Arc<Membership>, RegistryError> {
        Ok(Arc::clone(self))
    }
}

/// Why there is no record. A file that was to be changed is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] TextFileError),
    /// The file's text is not a registry.
    #[error("{}:{place}: {problem}", path.display())]
    Text {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// What was found, what is allowed.
        problem: String,
    },
    /// The record in the file breaks a rule.
    #[error("{}:{place}: {error}", path.display())]
    Record {
        /// Which file.
        path: PathBuf,
        /// Where in it.
        place: Place,
        /// Which rule.
        error: MembershipError,
    },
    /// The change that was asked for breaks a rule.
    #[error("{}: {error}", path.display())]
    Change {
        /// Which file.
        path: PathBuf,
        /// Which rule.
        error: MembershipError,
    },
    /// A new registry would replace one that is there.
    #[error("{}: exists, and a registry is never overwritten; choose another name", .0.display())]
    Exists(PathBuf),
    /// The file cannot be written.
    #[error("{}: cannot be written: {error}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// A source that is not a file failed.
    #[error("{0}")]
    Source(String),
}

/// A registry file.
#[derive(Debug, Clone)]
pub struct RegistryFile {
    path: PathBuf,
}

impl RegistrySource for RegistryFile {
    fn load(&mut self) -> Result<Arc<Membership>, RegistryError> {
        let (text, record) = self.parse()?;
        record.into_membership().map(Arc::new).map_err(|error| self.broken(&text, error))
    }
}

impl RegistryFile {
    /// The registry at `path`, which is read when it is asked for.
    pub fn new(path: impl Into<PathBuf>) -> RegistryFile {
        RegistryFile { path: path.into() }
    }

    /// Creates a registry without members, to be filled by [`RegistryFile::add`].
    pub fn create(&self, subnet: &str, lanes: u16) -> Result<Record, RegistryError> {
        let version = RegistryVersion(1);
        let record = Record { subnet: subnet.to_owned(), version, lanes, members: Vec::new() };
        self.check_change(&record)?;
        let written =
            OpenOptions::new().write(true).create_new(true).open(&self.path).and_then(|mut file| {
                let written = file.write_all(record.render().as_bytes()).and_then(|()| file.sync_all());
                // It was created here a moment ago and holds half a record.
                written.inspect_err(|_| drop(fs::remove_file(&self.path)))
            });
        match written {
            Ok(()) => Ok(record),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(RegistryError::Exists(self.path.clone()))
            }
            Err(error) => Err(self.unwritten(error)),
        }
    }

    /// Adds a member, raises the version, and replaces the file. Comments of the old file are not kept.
    pub fn add(&self, member: Member) -> Result<Record, RegistryError> {
        self.record()?;
        let folder = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        // Two that add at the same time take turns; the lock goes with the handle.
        let lock = File::open(folder).map_err(|error| self.unwritten(error))?;
        lock.lock().map_err(|error| self.unwritten(error))?;
        let mut record = self.record()?;
        record.members.push(member);
        record.version.0 = record.version.0.saturating_add(1);
        self.check_change(&record)?;
        self.replace(folder, &record).map_err(|error| self.unwritten(error))?;
        Ok(record)
    }

    /// The file's record, which may still lack members.
    pub fn record(&self) -> Result<Record, RegistryError> {
        let (text, record) = self.parse()?;
        record.check().map_err(|error| self.broken(&text, error))?;
        Ok(record)
    }

    fn parse(&self) -> Result<(String, Record), RegistryError> {
        let text = textfile::read(&self.path, MAX_REGISTRY_FILE)?;
        let at = |span, problem| RegistryError::Text {
            path: self.path.clone(),
            place: Place::of_span(&text, span),
            problem,
        };
        let file: FileForm = toml::from_str(&text).map_err(|error| at(error.span(), one_line(&error)))?;
        let mut members = Vec::with_capacity(file.members.len());
        for member in file.members {
            let id: NodeId = member.key.get_ref().parse().map_err(|error| {
                at(Some(member.key.span()), format!("key: {error}; `corecast keygen` prints a node's key"))
            })?;
            let mut addresses = Vec::with_capacity(member.addresses.len());
            for address in member.addresses {
                let parsed = parse_address(address.get_ref());
                addresses.push(parsed.map_err(|problem| at(Some(address.span()), problem))?);
            }
            members.push(Member { id, addresses });
        }
        let version = RegistryVersion(file.version);
        let record = Record { subnet: file.subnet, version, lanes: file.lanes, members };
        Ok((text, record))
    }

    /// Finds the place in the text that an error of the whole record is about.
    fn broken(&self, text: &str, error: MembershipError) -> RegistryError {
        let about = match &error {
            MembershipError::Name(_) => line_of(text, "subnet"),
            MembershipError::Lanes(_) => line_of(text, "lanes"),
            MembershipError::Members(_) => 0,
            MembershipError::DuplicateMember(id) => entry_of(text, id, ""),
            MembershipError::Addresses { member, .. } => entry_of(text, member, ""),
            MembershipError::DuplicateAddress { member, address, .. }
            | MembershipError::Address { member, address, .. } => {
                entry_of(text, member, &address.to_string())
            }
        };
        RegistryError::Record { path: self.path.clone(), place: Place::of(text, about), error }
    }

    fn check_change(&self, record: &Record) -> Result<(), RegistryError> {
        record.check().map_err(|error| RegistryError::Change { path: self.path.clone(), error })
    }

    fn unwritten(&self, error: io::Error) -> RegistryError {
        RegistryError::Write { path: self.path.clone(), error }
    }

    fn replace(&self, folder: &Path, record: &Record) -> io::Result<()> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let new = folder.join(format!(".{name}.{}.new", std::process::id()));
        let written = (|| {
            // One of this name can only be left over from a process that died.
            fs::remove_file(&new).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })?;
            let mut file = OpenOptions::new().write(true).create_new(true).open(&new)?;
            file.write_all(record.render().as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &self.path)
        })();
        written.inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

/// What a registry file says. Unlike a [`Membership`], it may have no members yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// The subnet's name.
    pub subnet: String,
    /// Grows with every change.
    pub version: RegistryVersion,
    /// Lanes of every member.
    pub lanes: u16,
    /// The members, in the file's order.
    pub members: Vec<Member>,
}

impl Record {
    /// The valid membership that this record states.
    pub fn into_membership(self) -> Result<Membership, MembershipError> {
        Membership::new(self.subnet, self.version, self.lanes, self.members)
    }

    /// Every rule of a membership, but for the one that somebody must be in it.
    fn check(&self) -> Result<(), MembershipError> {
        match self.clone().into_membership() {
            Err(MembershipError::Members(0)) | Ok(_) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::from("# A subnet's registry: `corecast registry` reads and writes it.\n");
        let name = toml::Value::from(self.subnet.as_str());
        let _ = writeln!(text, "subnet = {name}\nversion = {}\nlanes = {}", self.version.0, self.lanes);
        for Member { id, addresses } in &self.members {
            let addresses: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
            let addresses = addresses.join(", ");
            let _ = write!(text, "\n[[members]]\nkey = \"{id}\"\naddresses = [{addresses}]\n");
        }
        text
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForm {
    subnet: String,
    version: u64,
    lanes: u16,
    #[serde(default)]
    members: Vec<MemberForm>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberForm {
    key: Spanned<String>,
    addresses: Vec<Spanned<String>>,
}

/// Parses `ip:port`. Names are refused: a record must mean the same on every host and at every time.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        format!(
            "{shown:?} is not an address, and host names are not looked up: \
             write IP and port, as \"192.0.2.1:4100\" or \"[2001:db8::1]:4100\""
        )
    })
}

/// What the TOML parser found, in one line.
fn one_line(error: &toml::de::Error) -> String {
    error.message().split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The byte where the line of the setting `name` begins.
fn line_of(text: &str, name: &str) -> usize {
    let lines = text.split_inclusive('\n');
    let before = lines.take_while(|line| !line.trim_start().starts_with(name)).map(str::len).sum();
    if before == text.len() { 0 } else { before }
}

/// The byte where `address` stands in the last entry of `member`; with no address, where its key stands.
fn entry_of(text: &str, member: &NodeId, address: &str) -> usize {
    // Keys may be written in upper case; ASCII case does not move bytes.
    let lower = text.to_ascii_lowercase();
    let Some(key) = lower.rfind(&member.to_string()) else { return 0 };
    if address.is_empty() {
        return key;
    }
    let entry = lower[..key].rfind("[[members]]").unwrap_or(0);
    lower[entry..].find(address).map_or(key, |found| entry + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> String {
        NodeId([byte; 32]).to_string()
    }

    fn member(byte: u8, address: &str) -> Member {
        Member { id: NodeId([byte; 32]), addresses: vec![address.parse().unwrap()] }
    }

    fn file(text: &str) -> (tempfile::TempDir, RegistryFile) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("r.toml");
        fs::write(&path, text).unwrap();
        (folder, RegistryFile::new(path))
    }

    /// The message for a file with this text, without the folder.
    fn refusal_of(text: &str) -> String {
        let (folder, mut file) = file(text);
        file.load().unwrap_err().to_string().replace(folder.path().to_str().unwrap(), "")
    }

    /// The message for a good head of three lines and these members.
    fn refusal(members: &str) -> String {
        refusal_of(&format!("subnet = \"s\"\nversion = 1\nlanes = 2\n{members}"))
    }

    #[test]
    fn a_created_registry_is_filled_member_by_member() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = RegistryFile::new(folder.path().join("r.toml"));
        file.create("tëst \"one\"", 2).unwrap();
        assert!(file.load().unwrap_err().to_string().contains("1 to 4096 members, not 0"));
        file.add(member(7, "10.0.0.7:4100")).unwrap();
        let record = file.add(member(3, "[2001:db8::3]:4100")).unwrap();
        let membership = file.load().unwrap();
        assert_eq!(membership.subnet(), "tëst \"one\"");
        assert_eq!((membership.version(), membership.lanes()), (RegistryVersion(3), 2));
        assert_eq!(*membership, record.into_membership().unwrap());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    }

    #[test]
    fn creating_never_overwrites() {
        let (_folder, file) = file("precious");
        assert!(matches!(file.create("s", 1), Err(RegistryError::Exists(_))));
        assert_eq!(fs::read_to_string(&file.path).unwrap(), "precious");
    }

    #[test]
    fn an_addition_that_breaks_a_rule_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = RegistryFile::new(folder.path().join("r.toml"));
        file.create("s", 2).unwrap();
        file.add(member(1, "10.0.0.1:4100")).unwrap();
        let before = fs::read(&file.path).unwrap();
        assert!(file.add(member(1, "10.0.0.2:4100")).is_err());
        assert!(file.add(member(2, "10.0.0.1:4101")).is_err());
        assert!(file.add(member(2, "0.0.0.0:4100")).is_err());
        assert_eq!(fs::read(&file.path).unwrap(), before);
    }

    #[test]
    fn errors_name_line_and_column() {
        assert!(refusal("color = 1").starts_with("/r.toml:4:1: unknown field `color`, expected one of"));
        assert!(refusal("lanes = 3").starts_with("/r.toml:4:1: duplicate key"));
        assert!(refusal("[[members]]\nkey = 7\n").starts_with("/r.toml:5:7: invalid type: integer `7`"));
        let short = refusal("[[members]]\nkey = \"ab\"\naddresses = []");
        assert!(short.starts_with("/r.toml:5:7: key: expected 64 hexadecimal digits"), "{short}");
        assert!(refusal("[[members]\n").starts_with("/r.toml:4:"));
    }

    #[test]
    fn host_names_are_refused_with_the_form_that_is_allowed() {
        let (key, addresses) = (key(1), "[\"10.0.0.1:1\", \"node1.example:4100\"]");
        let message = refusal(&format!("[[members]]\nkey = \"{key}\"\naddresses = {addresses}"));
        assert!(message.starts_with("/r.toml:6:28: \"node1.example:4100\" is not an address"), "{message}");
        assert!(message.contains("host names are not looked up"));
    }

    #[test]
    fn broken_rules_are_placed_at_the_entry() {
        let entry = |byte, address: &str| {
            format!("[[members]]\nkey = \"{}\"\naddresses = [\"{address}\"]\n", key(byte))
        };
        let twice = refusal(&(entry(1, "10.0.0.1:1") + &entry(1, "10.0.0.2:1")));
        assert!(twice.starts_with("/r.toml:8:8: member 0101"), "{twice}");
        let shared = refusal(&(entry(1, "10.0.0.1:1") + &entry(2, "10.0.0.1:2")));
        assert!(shared.starts_with("/r.toml:9:15: member 0202"), "{shared}");
        assert!(refusal(&entry(1, "10.0.0.1:65535")).starts_with("/r.toml:6:15: "));
    }

    #[test]
    fn a_registry_of_another_shape_is_refused() {
        assert!(refusal_of("").contains("missing field `subnet`"));
        let no_lanes = refusal_of("subnet = \"s\"\nversion = 1\nlanes = 0\n");
        assert!(no_lanes.starts_with("/r.toml:3:1: a subnet has 1 to 256 lanes, not 0"), "{no_lanes}");
        assert!(refusal_of("subnet = \"s\"\nversion = 1\nlanes = 70000\n").starts_with("/r.toml:3:9: "));
        assert!(refusal_of("subnet = \"s\"\nversion = -1\nlanes = 1\n").starts_with("/r.toml:2:11: "));
    }
}
