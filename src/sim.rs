//! The other shell: the same engine under virtual time, faults and hostile members, all by seed.
//!
//! ```text
//! seed ──▶ Options ──▶ World: members, links, faults ──▶ Oracle after every step ──▶ Report or Failure
//! ```
//!
//! A run has three parts. **Chaos**: load, loss, cuts, crashes, pauses and lies. **Peace**: faults stop, everybody is back, and
//! within the stated [`Options::bound`] every active artifact must be everywhere, hostile members or not; then hostile members
//! fall silent and nothing may be left to do. **End**: everything is aborted and released, and nothing may be left at all.
//!
//! There are two levels. **Messages**: ideal links carry what the engine gives them as QUIC streams would, each whole, none
//! ordered with another, until the connection is lost; faults are those of connections. **Quic**: each member has the real
//! transport, real quinn-proto included, and what travels are datagrams, which get lost, repeated, damaged, overtaken, cut off
//! when they are long, and wait where links are busy. Its handshake has no randomness, so both levels are exact: a seed gives
//! the same digest of every event, or every datagram, every time. With real **TLS** the same runs differ in bytes, nothing else.

mod bounds;
mod carry;
mod chaos;
mod crowd;
mod deliberation;
mod effort;
mod flow;
mod hanging;
mod hardship;
mod hostile;
mod inversion;
mod lane;
mod member;
mod net;
mod opinion;
mod options;
mod oracle;
mod path;
mod patience;
mod plain;
mod requests;
mod scarcity;
mod scenario;
mod sniffer;
mod witness;
mod world;

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

pub use hardship::Budget;
pub use options::{Datagrams, Faults, Habits, Level, Lies, Links, Options, TopicOptions};
pub use scarcity::Scarcity;
pub use scenario::Scenario;
use world::World;

/// A run that held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Report {
    /// Things that happened.
    pub events: u64,
    /// Artifacts delivered, over all members.
    pub delivered: u64,
    /// Of everything that happened, in order.
    pub digest: [u8; 32],
    /// Virtual time from the end of the faults until every active artifact was everywhere.
    pub converged: std::time::Duration,
}

/// A run that broke a promise. The seed and the commit reproduce it.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What the run followed from.
    pub options: Box<Options>,
    /// Which promise, where and when.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {}\n{:?}", self.options.seed, self.what, self.options)
    }
}

/// A mixed run: everything that the seed chooses.
pub fn run(seed: u64, level: Level) -> Result<Report, Failure> {
    guard(Options::mixed(seed, level), |world| world.run())
}

/// A directed run of `scenario`, varied by the seed.
pub fn run_scenario(scenario: Scenario, seed: u64, level: Level) -> Result<Report, Failure> {
    let options = Options { level, ..scenario.options(seed) };
    guard(options, |world| scenario.play(world))
}

fn guard(options: Options, play: impl FnOnce(&mut World) -> Result<(), String>) -> Result<Report, Failure> {
    let mut world = World::new(options.clone());
    let outcome = catch_unwind(AssertUnwindSafe(|| play(&mut world)));
    let what = match outcome {
        Ok(Ok(())) => return Ok(world.report()),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            format!(
                "a panic: {}",
                text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("of unknown kind")
            )
        }
    };
    Err(Failure { options: Box::new(options), what: format!("at {:?}: {what}", world.now()) })
}
