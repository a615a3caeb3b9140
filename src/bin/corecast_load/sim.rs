//! The simulator for long runs: as many seeds as asked for, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use clap::Args;
use clap::builder::PossibleValuesParser;
use corecast::sim::{self, Failure, Level, Report, Scenario};
use indicatif::{ProgressBar, ProgressStyle};

use crate::subnet::fault::{Exit, Fault};
use crate::subnet::stop::Stop;
use crate::subnet::terminal;

/// Failures that are printed in full.
const SHOWN: usize = 10;

#[derive(Debug, Args)]
pub(crate) struct SimOptions {
    /// Seeds to run
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    first_seed: u64,
    /// A directed scenario instead of mixed runs
    #[arg(long, value_parser = PossibleValuesParser::new(Scenario::ALL.map(Scenario::name)))]
    scenario: Option<String>,
    /// What joins the members: ideal links, quinn-proto without cryptography (bit-exact), or with TLS
    #[arg(long, default_value = "messages", value_parser = PossibleValuesParser::new(Level::ALL.map(Level::name)))]
    level: String,
}

impl SimOptions {
    fn level(&self) -> Level {
        Level::ALL.into_iter().find(|level| level.name() == self.level).unwrap_or_default()
    }
}

/// What the threads share.
struct Swarm {
    next: AtomicU64,
    events: AtomicU64,
    done: AtomicU64,
    failures: Mutex<Vec<Failure>>,
    bar: ProgressBar,
}

/// Runs the seeds; every failure is printed with what reproduces it, and the summary is the last line.
pub(crate) fn run(options: &SimOptions) -> Result<(), Fault> {
    let stop = Stop::on_signals()?;
    let scenario = Scenario::ALL.into_iter().find(|one| Some(one.name()) == options.scenario.as_deref());
    let bar = ProgressBar::new(options.seeds);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left") {
        bar.set_style(style);
    }
    let swarm = Swarm {
        next: AtomicU64::new(0),
        events: AtomicU64::new(0),
        done: AtomicU64::new(0),
        failures: Mutex::default(),
        bar,
    };
    // A panic inside a run is a failure of that seed, which tells all that is worth telling.
    std::panic::set_hook(Box::new(|_| ()));
    let begin = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| swarm.work(options, scenario, &stop));
        }
    });
    let seconds = begin.elapsed().as_secs_f64();
    drop(std::panic::take_hook());
    swarm.bar.finish_and_clear();
    swarm.conclude(options, scenario, seconds, &stop)
}

impl Swarm {
    fn work(&self, options: &SimOptions, scenario: Option<Scenario>, stop: &Stop) {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(seed) = options.first_seed.checked_add(number) else { return };
            if number >= options.seeds || stop.is_set() {
                return;
            }
            let outcome = match scenario {
                Some(scenario) => sim::run_scenario(scenario, seed, options.level()),
                None => sim::run(seed, options.level()),
            };
            self.count(outcome);
        }
    }

    fn count(&self, outcome: Result<Report, Failure>) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.bar.inc(1);
        match outcome {
            Ok(report) => drop(self.events.fetch_add(report.events, Ordering::Relaxed)),
            Err(failure) => {
                if let Ok(mut failures) = self.failures.lock() {
                    failures.push(failure);
                }
            }
        }
    }

    fn conclude(
        self,
        options: &SimOptions,
        scenario: Option<Scenario>,
        seconds: f64,
        stop: &Stop,
    ) -> Result<(), Fault> {
        let mut failures = self.failures.into_inner().unwrap_or_default();
        failures.sort_by_key(|failure| failure.options.seed);
        for failure in failures.iter().take(SHOWN) {
            let scenario = scenario.map_or(String::new(), |scenario| format!(" --scenario {scenario}"));
            eprintln!(
                "{failure}\nagain: corecast-load sim --seeds 1 --first-seed {}{scenario}\n",
                failure.options.seed
            );
        }
        let (done, events) = (self.done.into_inner(), self.events.into_inner());
        let rate = done as f64 / seconds.max(1e-9);
        let failed = failures.len();
        terminal::say(&format!("sim: {done} seeds, {events} events, {rate:.1} seeds/s, {failed} failures"))?;
        match failures.first() {
            Some(first) => {
                let problem = format!("{failed} of {done} seeds failed, the first is {}", first.options.seed);
                Err(Fault::new(Exit::Software, problem))
            }
            None if stop.is_set() => {
                let problem = format!("interrupted: {done} of {} seeds were run", options.seeds);
                Err(Fault::new(Exit::Interrupted, problem))
            }
            None => Ok(()),
        }
    }
}
