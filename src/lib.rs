//! corecast: abortable broadcast for Byzantine-fault-tolerant subnets.
//!
//! Every node of a subnet makes *artifacts* (blocks, shares, messages), and each must reach every other member unless its maker
//! takes it back. corecast carries them over mutually authenticated QUIC, one pinned io_uring executor per core, with every
//! table, queue and buffer bounded.
//!
//! ```no_run
//! use corecast::{Class, Config, Event, KeyFile, Node, RegistryFile, TopicConfig, TopicId};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let key = KeyFile::new("node.key").load()?;
//!     let node = Node::start(Config::new(key, RegistryFile::new("registry.toml")))?;
//!     let (topic, deliveries) = node.topic(TopicConfig::new(TopicId(1), "shares").class(Class::High))?;
//!
//!     let mine = topic.broadcast("a signature share")?; // never waits
//!     while let Some(event) = deliveries.recv() {
//!         match event {
//!             Event::Delivered { artifact, from } => {
//!                 println!("{} from {from}: {} bytes", artifact.id, artifact.bytes.len());
//!                 topic.validate(&artifact.id)?; // relay it
//!             }
//!             Event::Withdrawn { id } => println!("{id} is no longer wanted"),
//!             Event::Refused { id, by, reason } => println!("{by} does not take {id}: {reason:?}"),
//!         }
//!         topic.abort(&mine)?; // once it is not needed any more
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # The house
//!
//! A pure core and a thin shell. Nothing below [`node`] reads a clock, opens a socket or draws randomness: the core is handed all
//! three. Arrows point one way and `tests/tidy.rs` holds them: [`types`] ← [`wire`], [`sync`], [`metrics`], [`config`] ←
//! [`proto`] ← [`engine`]; [`quic`] uses wire and types; `node`, the shell, uses everything; [`sim`] is the other shell, in
//! virtual time, under faults and hostile members.
//!
//! ```text
//! out    replica → handle → lane queue → engine → pool, slots → per-peer dirty set → egress by class → quic stream → datagrams
//! in     datagrams → quic → frame → engine → view → admit → (push) pool → deliver   or   (advert) fetch → … → deliver → replica
//! abort  replica → slots (clear) → unsent: nothing left to send · started: stream reset → far view clears → fetch cancels
//! ```
//!
//! A topic's filter is asked where adverts are heard, or on a thread of its own ([`FilterThread`]): then the engine hands out
//! questions and takes verdicts, and meanwhile the artifact waits by name. Whoever has no room to broadcast is told so, or waits
//! in line ([`Topic::broadcast_wait`], [`Topic::broadcast_async`]).
//!
//! Where time goes is measured by stage, in histograms of each topic and class that a lane writes and anyone reads in place
//! ([`Node::stages`]); what happens to artifacts is counted by topic ([`Topic::stats`]) and noted in a ring of each lane
//! ([`Topic::trace`]).
//!
//! A node is S lanes; artifact `id` belongs to lane `id mod S` on every member, so on the data path nothing crosses cores. An
//! executor is one pinned thread that turns its lanes one after another over one io_uring and parks inside that ring.
//!
//! # Promises
//!
//! | | promise | held by |
//! |---|---|---|
//! | P1 | what a correct node keeps active reaches every correct member | [`proto::Slots`], [`proto::Fetch`] |
//! | P2 | bytes handed over under an id hash to it, and a member advertised it | [`types::Verified`], [`proto::View`] |
//! | P3 | an older update never overrides a newer one | [`proto::View`]: newest (connection, version) wins |
//! | P4 | every table, queue and buffer is bounded | [`config::Limits`], which the node prints |
//! | P5 | a slow peer, consumer or filter does not delay the others | [`engine`]: all is built when it is pulled |
//! | P6 | each body crosses each link at most once, none twice | [`engine`]: one stage per artifact; [`proto::Fetch`] |
//! | P7 | critical overtakes bulk at every hop | [`sync`], [`engine`], [`quic`]: bulk is held back |
//!
//! | | watched by [`sim`] in every run | and in directed scenarios |
//! |---|---|---|
//! | P1 | after the faults, within a stated bound, every active artifact is wherever it is wanted | most of them |
//! | P2 | the bytes of every delivery | liars |
//! | P3 | at rest nobody believes that another has what it has not; no version goes back | stale updates in every order |
//! | P4 | a census while it runs, with hardly any room now and then; at the end nothing is left | storms of aborts, full tables |
//! | P5 | nothing that was aborted is sent; work and wakes against input | a stalled peer delays no other |
//! | P6 | no artifact is handed over twice | thrift, and what the wire costs |
//! | P7 | the more urgent is written first, and sent first, to one chunk | overtaking: an urgent artifact past seconds of bulk |
#![deny(unsafe_code)]

pub mod types;
pub mod wire;

pub mod config;
pub mod metrics;
pub mod sync;

pub mod proto;

pub mod engine;
pub mod quic;

pub mod node;

pub mod sim;

pub use config::{Advert, FilterThread, Limits, Settings, TopicConfig, Verdict};
pub use engine::{Artifact, ArtifactState, Event, TracedPeer};
pub use metrics::{Happening, Stage, StageTime, StageTimes};
pub use node::{
    BroadcastError, Broadcasting, CommandError, Config, Consumer, Deliveries, Disposition, ExecutorConfig,
    Executors, FilterStats, KeyFile, Node, PeerLag, RecvError, RegistryFile, RegistrySource, StartError,
    Stats, Topic, TopicError, TopicReport, TopicStats, Trace, TraceError, TraceEvent,
};
pub use quic::Identity;
pub use types::{
    ArtifactId, Attribute, Class, HashKind, Member, Membership, NodeId, RegistryVersion, TopicId,
};
pub use wire::Refusal;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
