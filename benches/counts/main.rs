//! Instructions of the machines' operations, as valgrind counts them: the same on every machine and under any load, so that a
//! change of a few percent shows. What caches do to them does not; that is `cargo bench --bench machines`.
//!
//! `cargo bench --bench counts` fails when one has grown by more than a tenth against `baseline.toml`, when one grows with the
//! number of active artifacts, or with the number of peers faster than it may. `cargo bench --bench counts -- --update` writes
//! the baseline.

#[path = "../machines/body.rs"]
mod body;
#[path = "../machines/engine.rs"]
mod engine;
#[path = "../machines/fetch.rs"]
mod fetch;
#[path = "../machines/lane.rs"]
mod lane;
#[path = "../../tests/mesh/mod.rs"]
mod mesh;
#[path = "../machines/operations.rs"]
mod operations;
#[path = "../machines/slots.rs"]
mod slots;
mod verdict;
#[path = "../machines/view.rs"]
mod view;
#[path = "../machines/wire.rs"]
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use operations::{Depends, OPERATIONS, Operation, Scale, Work};
use verdict::Baseline;

/// Few active and many; few peers and many.
const FEW: Scale = Scale { active: 1_000, peers: 13 };
const MANY_ACTIVE: Scale = Scale { active: 100_000, peers: 13 };
const MANY_PEERS: Scale = Scale { active: 1_000, peers: 40 };

/// Says to count one operation in this process, which valgrind runs.
const ONE: &str = "--count-one";

/// One thing to count.
#[derive(Clone, Copy)]
struct Count {
    operation: &'static Operation,
    scale: Scale,
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Count { operation, scale } = self;
        match operation.depends {
            Depends::No => f.write_str(operation.name),
            Depends::OnPeers | Depends::OnPairs => {
                write!(f, "{}, {} active, {} peers", operation.name, scale.active, scale.peers)
            }
        }
    }
}

fn counts() -> Vec<Count> {
    let scales = |operation: &'static Operation| {
        let scales: &[Scale] = match operation.depends {
            Depends::No => &[FEW],
            Depends::OnPeers | Depends::OnPairs => &[FEW, MANY_ACTIVE, MANY_PEERS],
        };
        scales.iter().map(move |scale| Count { operation, scale: *scale })
    };
    OPERATIONS.iter().flat_map(scales).collect()
}

impl Count {
    /// How often it is done while instructions are counted.
    fn runs(self) -> u64 {
        ((256 << 10) / self.operation.bytes).max(2)
    }

    /// Does it, under valgrind.
    fn run_here(self) {
        let mut work = (self.operation.make)(self.scale);
        (0..self.runs()).for_each(|_| work());
        counted_by_valgrind(&mut work, self.runs());
    }

    /// Instructions of one run, counted in a process of its own.
    fn instructions(self, number: usize) -> Result<u64, String> {
        let own =
            std::env::current_exe().map_err(|error| format!("the bench cannot find itself: {error}"))?;
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg("--toggle-collect=*counted_by_valgrind*")
            .arg(own)
            .args([ONE, &number.to_string()])
            .output()
            .map_err(|error| format!("valgrind cannot be run: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let collected = said.lines().find_map(|line| line.split_once("Collected : "));
        match collected.and_then(|(_, count)| count.trim().parse::<u64>().ok()) {
            Some(count) if count > 0 && output.status.success() => Ok(count / self.runs()),
            _ => Err(format!("{self}: valgrind counted nothing and said:\n{said}")),
        }
    }
}

/// Valgrind counts from where this begins to where it ends, by its name; so no closure in it may bear the name, too.
#[inline(never)]
fn counted_by_valgrind(work: &mut Work, runs: u64) {
    for _ in 0..runs {
        work();
    }
}

/// Counts all, as many at a time as there are cores.
fn count_all(all: &[Count]) -> Result<BTreeMap<String, u64>, String> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(Ok(BTreeMap::new())));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(count) = all.get(number) else { return };
                    let instructions = count.instructions(number);
                    let mut found = found.lock().expect("no thread panics with the lock held");
                    match (&mut *found, instructions) {
                        (Ok(found), Ok(instructions)) => drop(found.insert(count.to_string(), instructions)),
                        (Ok(_), Err(error)) => *found = Err(error),
                        (Err(_), _) => return,
                    }
                }
            });
        }
    });
    found.into_inner().expect("no thread panics with the lock held")
}

fn main() -> ExitCode {
    let all = counts();
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [ONE, number] => {
            number
                .parse()
                .ok()
                .and_then(|number: usize| all.get(number))
                .expect("a number of a count")
                .run_here();
            ExitCode::SUCCESS
        }
        [] => run(&all, false),
        ["--update"] => run(&all, true),
        _ => {
            eprintln!(
                "counts: unknown arguments {arguments:?}; there is --update, which writes the baseline, and nothing else"
            );
            ExitCode::from(64)
        }
    }
}

fn run(all: &[Count], update: bool) -> ExitCode {
    if Command::new("valgrind").arg("--version").output().is_err() {
        println!("counts: SKIPPED, nothing was checked: there is no valgrind (apt-get install valgrind)");
        return ExitCode::SUCCESS;
    }
    let found = match count_all(all) {
        Ok(found) => found,
        Err(error) => {
            eprintln!("counts: {error}");
            return ExitCode::from(70);
        }
    };
    let written = if update { Baseline::of(&found).write() } else { Ok(()) };
    match written.and_then(|()| Baseline::read()) {
        Ok(baseline) => verdict::print(all, &found, &baseline),
        Err(error) => {
            eprintln!("counts: {error}");
            ExitCode::from(74)
        }
    }
}
