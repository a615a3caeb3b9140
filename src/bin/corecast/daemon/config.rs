//! A node's configuration file.
//!
//! ```toml
//! registry = "registry.toml"     # paths are relative to this file
//! key = "node.pem"
//! inbox = "inbox"
//! outbox = "outbox"
//! # optional, with their defaults:
//! # cores = [0, 1]               # one executor each; by default as many as there are lanes
//! # mtu = 1452
//! # spin_us = 0
//! # artifact_bytes = 8388608     # larger files are split
//! # active_files = 4096          # artifacts of the inbox that may be active at a time
//! # relay_seconds = 60           # how long a received artifact is relayed; 0 relays none
//! # admin = "node.sock"          # where `corecast stats` and `corecast trace` ask; by default nowhere
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use corecast::config::{Settings, TopicConfig};
use corecast::node::textfile::{self, Place};
use corecast::node::{RegistryFile, RegistrySource};
use corecast::types::{Class, Membership, TopicId};
use corecast::{Identity, KeyFile};
use serde::Deserialize;
use toml::Spanned;

use crate::subnet::cores::{self, CoreList};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::single::Single;

/// Bytes of a configuration file.
const MAX_CONFIG: u64 = 1 << 20;
/// Bytes of the path of a socket, as systems take it (108 with its end), less what the name has while the socket is made.
const MAX_SOCKET: usize = 88;
/// The most seconds that anything is relayed: a day.
const MAX_RELAY: u64 = 86_400;

/// A configuration that has been checked, with what it names.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) registry: RegistryFile,
    pub(crate) membership: Arc<Membership>,
    pub(crate) key: Identity,
    pub(crate) inbox: PathBuf,
    pub(crate) outbox: PathBuf,
    pub(crate) cores: Vec<usize>,
    pub(crate) spin: Duration,
    pub(crate) settings: Settings,
    pub(crate) topic: TopicConfig,
    /// Zero: nothing is relayed.
    pub(crate) relay: Duration,
    /// Where the admin socket goes, if anywhere.
    pub(crate) admin: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Form {
    registry: Spanned<PathBuf>,
    key: Spanned<PathBuf>,
    inbox: Spanned<PathBuf>,
    outbox: Spanned<PathBuf>,
    cores: Option<Spanned<Vec<usize>>>,
    mtu: Option<Spanned<u16>>,
    spin_us: Option<Spanned<u64>>,
    artifact_bytes: Option<Spanned<u32>>,
    active_files: Option<Spanned<u32>>,
    relay_seconds: Option<Spanned<u64>>,
    admin: Option<Spanned<PathBuf>>,
}

impl Config {
    /// What starts the node.
    pub(crate) fn node(&self) -> Single<'_> {
        Single {
            key: &self.key,
            registry: self.registry.clone(),
            cores: self.cores.clone(),
            spin: self.spin,
            settings: self.settings.clone(),
            topic: self.topic.clone(),
        }
    }
}

/// A file's text, for places in messages.
struct Text<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Text<'_> {
    fn wrong<T>(&self, setting: &Spanned<T>, problem: &str) -> Fault {
        let place = Place::of(self.text, setting.span().start);
        Fault::new(Exit::Config, format!("{}:{place}: {problem}", self.path.display()))
    }
}

/// Reads and checks a configuration and everything that it names; binds nothing.
pub(crate) fn load(path: &Path) -> Result<Config, Fault> {
    let text = textfile::read(path, MAX_CONFIG)?;
    let form: Form = toml::from_str(&text).map_err(|error| {
        let place = Place::of_span(&text, error.span());
        let problem = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        Fault::new(Exit::Config, format!("{}:{place}: {problem}", path.display()))
    })?;
    let text = Text { path, text: &text };
    let base = path.parent().unwrap_or(Path::new(""));
    let settings = settings(&form, &text)?;
    let topic = topic(&form, &text, &settings)?;
    let (inbox, outbox) = folders(&form, &text, base)?;
    let admin = admin(&form, &text, base)?;
    let key = KeyFile::new(base.join(form.key.get_ref())).load()?;
    let mut registry = RegistryFile::new(base.join(form.registry.get_ref()));
    let membership = registry.load()?;
    if membership.index_of(&key.id()).is_none() {
        let (id, registry) = (key.id(), base.join(form.registry.get_ref()));
        let problem = format!(
            "the key is that of {id}, which is no member in {}; add it: `corecast registry add`",
            registry.display()
        );
        return Err(text.wrong(&form.key, &problem));
    }
    let cores = choose_cores(&form, &text, membership.lanes())?;
    let seconds =
        |setting: &Option<Spanned<u64>>, default| setting.as_ref().map_or(default, |s| *s.get_ref());
    let spin = Duration::from_micros(seconds(&form.spin_us, 0));
    let relay = Duration::from_secs(seconds(&form.relay_seconds, 60));
    Ok(Config { registry, membership, key, inbox, outbox, cores, spin, settings, topic, relay, admin })
}

fn choose_cores(form: &Form, text: &Text<'_>, lanes: u16) -> Result<Vec<usize>, Fault> {
    let Some(setting) = &form.cores else { return cores::choose(None, usize::from(lanes)) };
    let list = setting.get_ref();
    let distinct: BTreeSet<_> = list.iter().collect();
    if list.is_empty() || distinct.len() < list.len() {
        return Err(text.wrong(setting, "cores names each core once, and one at least"));
    }
    let chosen = cores::choose(Some(&CoreList(list.clone())), usize::from(lanes));
    chosen.map_err(|fault| text.wrong(setting, &fault.to_string()))
}

fn settings(form: &Form, text: &Text<'_>) -> Result<Settings, Fault> {
    let mut settings = Settings::default();
    if let Some(mtu) = &form.mtu {
        settings.mtu = *mtu.get_ref();
        settings.check().map_err(|error| text.wrong(mtu, &error.to_string()))?;
    }
    if let Some(bytes) = &form.artifact_bytes {
        settings.artifact_bytes = *bytes.get_ref();
        settings.check().map_err(|error| text.wrong(bytes, &error.to_string()))?;
    }
    for (setting, most) in [(&form.spin_us, 1_000_000), (&form.relay_seconds, MAX_RELAY)] {
        if let Some(setting) = setting.as_ref().filter(|setting| *setting.get_ref() > most) {
            let problem = format!("{} is too much; at most {most} is allowed", setting.get_ref());
            return Err(text.wrong(setting, &problem));
        }
    }
    Ok(settings)
}

/// The one topic of the file tools.
fn topic(form: &Form, text: &Text<'_>, settings: &Settings) -> Result<TopicConfig, Fault> {
    let mut topic = TopicConfig::new(TopicId(1), "files").class(Class::Bulk);
    if let Some(files) = &form.active_files {
        topic.slots = *files.get_ref();
        topic.check(settings.artifact_bytes).map_err(|error| text.wrong(files, &error.to_string()))?;
    }
    Ok(topic)
}

fn admin(form: &Form, text: &Text<'_>, base: &Path) -> Result<Option<PathBuf>, Fault> {
    let Some(setting) = &form.admin else { return Ok(None) };
    let path = base.join(setting.get_ref());
    let bytes = path.as_os_str().len();
    if bytes > MAX_SOCKET {
        let problem =
            format!("the path of the admin socket has {bytes} bytes; at most {MAX_SOCKET} are allowed");
        return Err(text.wrong(setting, &problem));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if path.file_name().is_none() || !folder.is_dir() {
        let problem = format!("{}: no name in a folder that is there; make the folder", path.display());
        return Err(text.wrong(setting, &problem));
    }
    Ok(Some(path))
}

fn folders(form: &Form, text: &Text<'_>, base: &Path) -> Result<(PathBuf, PathBuf), Fault> {
    let folder = |setting: &Spanned<PathBuf>| {
        let path = base.join(setting.get_ref());
        match fs::metadata(&path) {
            Err(error) => Err(Fault::at(&path, "cannot be used; make the folder", &error)),
            Ok(metadata) if !metadata.is_dir() => {
                Err(text.wrong(setting, &format!("{}: not a folder; name a folder", path.display())))
            }
            Ok(_) => fs::canonicalize(&path).map_err(|error| Fault::at(&path, "cannot be used", &error)),
        }
    };
    let (inbox, outbox) = (folder(&form.inbox)?, folder(&form.outbox)?);
    if inbox.starts_with(&outbox) || outbox.starts_with(&inbox) {
        let problem =
            "inbox and outbox lie inside one another: what comes in would go out again; separate them";
        return Err(text.wrong(&form.outbox, problem));
    }
    Ok((inbox, outbox))
}
