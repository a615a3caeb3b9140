//! The simulator's short swarm: every promise under faults and lies, by seed. `corecast-load sim` runs more of them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use corecast::sim::{self, Failure, Report, Scenario};

/// Runs so many seeds on all cores; the first failure by seed.
fn swarm(seeds: u64, run: impl Fn(u64) -> Result<Report, Failure> + Sync) -> (u64, Option<Failure>) {
    let (next, events, failed) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::new(None::<Failure>));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    match run(seed) {
                        Ok(report) => drop(events.fetch_add(report.events, Ordering::Relaxed)),
                        Err(failure) => {
                            next.store(seeds, Ordering::Relaxed);
                            let mut first = failed.lock().expect("no thread panics");
                            if first.as_ref().is_none_or(|first| first.options.seed > seed) {
                                *first = Some(failure);
                            }
                        }
                    }
                }
            });
        }
    });
    (events.into_inner(), failed.into_inner().expect("no thread panics"))
}

#[test]
fn mixed_seeds_hold() {
    let (events, failure) = swarm(1_000, sim::run);
    assert!(failure.is_none(), "{}", failure.unwrap());
    assert!(events > 1_000_000, "the seeds hardly do anything: {events} events");
}

#[test]
fn directed_scenarios_hold() {
    for scenario in Scenario::ALL {
        let (_, failure) = swarm(25, |seed| sim::run_scenario(scenario, seed));
        if let Some(failure) = failure {
            panic!("{scenario}: {failure}");
        }
    }
}

#[test]
fn seeds_that_failed_once_hold() {
    // 7491: bodies that came slowly over a full link lost their room to others, and came again and again.
    // 577: a member that could not be asked for more, for it was silent, kept the room for what it named.
    for seed in [577, 6_375, 7_491] {
        if let Err(failure) = sim::run(seed) {
            panic!("{failure}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        assert_eq!(sim::run(seed).unwrap(), sim::run(seed).unwrap());
    }
}
