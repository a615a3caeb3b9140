//! What the counts are held against.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::{Deserialize, Serialize};

use super::operations::Depends;
use super::{Count, FEW, MANY_ACTIVE, MANY_PEERS};

/// Growth against the baseline that is put down to compilers.
const GROWTH: f64 = 1.10;
/// Growth from few active to a hundred times as many: longer probes of hash tables, and their growth now and then.
const BY_ACTIVE: f64 = 1.25;
/// Growth with the number of peers, or of pairs of them, beyond being proportional.
const BY_PEERS: f64 = 1.10;

/// The counts of the commit that wrote them.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Baseline {
    /// Other architectures have other counts.
    architecture: String,
    /// By name.
    instructions: BTreeMap<String, u64>,
}

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/counts/baseline.toml")
}

impl Baseline {
    pub(crate) fn of(found: &BTreeMap<String, u64>) -> Baseline {
        Baseline { architecture: std::env::consts::ARCH.to_owned(), instructions: found.clone() }
    }

    pub(crate) fn write(&self) -> Result<(), String> {
        let text = toml::to_string(self).map_err(|error| error.to_string())?;
        let head = "# Instructions of one run of each operation. Written by `cargo bench --bench counts -- --update`.\n\n";
        std::fs::write(path(), format!("{head}{text}"))
            .map_err(|error| format!("{} cannot be written: {error}", path().display()))
    }

    pub(crate) fn read() -> Result<Baseline, String> {
        let wrong = |error: &dyn std::fmt::Display| {
            format!("{}: {error}; write it anew with --update", path().display())
        };
        let text = std::fs::read_to_string(path()).map_err(|error| wrong(&error))?;
        toml::from_str(&text).map_err(|error| wrong(&error))
    }
}

/// Prints every count, and what is wrong.
pub(crate) fn print(all: &[Count], found: &BTreeMap<String, u64>, baseline: &Baseline) -> ExitCode {
    let same = baseline.architecture == std::env::consts::ARCH;
    if !same {
        println!("the baseline is of {}: only ratios are checked here", baseline.architecture);
    }
    let mut wrong = Vec::new();
    println!("instructions  an artifact  baseline  operation");
    for count in all {
        let name = count.to_string();
        let now = found.get(&name).copied().unwrap_or(0);
        let was = baseline.instructions.get(&name).copied().filter(|_| same);
        let change = was.map_or("new".to_owned(), |was| format!("{:+.1} %", percent(now, was)));
        let each = now / count.operation.artifacts;
        println!("{now:>12}  {each:>11}  {change:>8}  {name}");
        if let Some(was) = was
            && now as f64 > was as f64 * GROWTH
        {
            wrong.push(format!("{name}: {now} instructions, {change} against the baseline"));
        }
        if same && was.is_none() {
            wrong.push(format!("{name}: not in the baseline; add it with --update"));
        }
        if count.scale == FEW && count.operation.depends != Depends::No {
            wrong.extend(growth(count, found));
        }
    }
    wrong.iter().for_each(|wrong| eprintln!("counts: {wrong}"));
    if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn percent(now: u64, was: u64) -> f64 {
    (now as f64 / was.max(1) as f64 - 1.0) * 100.0
}

/// Whether an operation costs more the more is active, or grows faster than the number of peers.
fn growth(few: &Count, found: &BTreeMap<String, u64>) -> Vec<String> {
    let of = |scale| found.get(&Count { scale, ..*few }.to_string()).copied().unwrap_or(u64::MAX) as f64;
    let (base, active, peers) = (of(FEW), of(MANY_ACTIVE), of(MANY_PEERS));
    let more_peers = match few.operation.depends {
        Depends::No | Depends::OnPeers => f64::from(MANY_PEERS.peers) / f64::from(FEW.peers),
        Depends::OnPairs => (f64::from(MANY_PEERS.peers) / f64::from(FEW.peers)).powi(2),
    };
    let mut wrong = Vec::new();
    let name = few.operation.name;
    println!(
        "{:>37}{name}: {:.2} of it at 100 times as many active, {:.2} at 3 times as many peers",
        "",
        active / base,
        peers / base
    );
    if active > base * BY_ACTIVE {
        wrong.push(format!(
            "{name}: {base} instructions with {} active, {active} with {}; {BY_ACTIVE} times as many are allowed",
            FEW.active, MANY_ACTIVE.active
        ));
    }
    if peers > base * more_peers * BY_PEERS {
        wrong.push(format!(
            "{name}: {base} instructions with {} peers, {peers} with {}; {:.1} times as many are allowed",
            FEW.peers,
            MANY_PEERS.peers,
            more_peers * BY_PEERS
        ));
    }
    wrong
}
