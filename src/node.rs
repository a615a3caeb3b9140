//! The shell: lanes on pinned executors, sockets, and the replica's handle.
//!
//! ```text
//! Node ─ Topic ─ commands (lock-free, per class) ─▶ Lane ─┐
//!        Deliveries ◀─ events (bounded, per topic) ─ Lane ─┴─ Driver (one per executor) ─ Io ─ sockets
//! ```

mod delivery;
mod driver;
mod executor;
mod filter;
mod handle;
mod keyfile;
mod lane;
mod registry;
mod stats;
mod topic;
mod trace;

pub mod io;
pub mod preflight;
pub mod textfile;

pub use delivery::{Consumer, Deliveries, Disposition, RecvError};
pub use executor::{ExecutorConfig, Executors};
pub use filter::FilterStats;
pub use handle::{Config, Node, StartError, TopicError};
pub use keyfile::{KeyFile, KeyFileError};
pub use registry::{Record, RegistryError, RegistryFile, RegistrySource, parse_address};
pub use stats::Stats;
pub use topic::{BroadcastError, Broadcasting, CommandError, PeerLag, Topic, TopicReport, TopicStats};
pub use trace::{Trace, TraceError, TraceEvent};
