//! The simulator is itself tested: deliberate faults, each of which it must find within [`SEEDS`] mixed seeds, or within
//! [`DIRECTED_SEEDS`] of the scenario that the fault names.
//!
//! The faults are data (`tests/mutants/mutants.toml`); no production code knows of them. That they still fit the sources is an
//! ordinary test. That the simulator finds each takes minutes:
//!
//! ```text
//! cargo test --test mutants                                    # do they fit?
//! cargo test --test mutants -- --ignored --nocapture           # are they caught? MUTANTS=name,name for some of them
//! ```

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use corecast::sim::{Level, Scenario};
use serde::Deserialize;

/// Mixed seeds within which each must be caught.
const SEEDS: u64 = 500;
/// Seeds of the directed scenario that it names, within which each must be caught: as many as the ordinary tests run.
const DIRECTED_SEEDS: u64 = 25;
/// How long one of them may take to run.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long all seeds may take where nothing is to be found.
const WHOLE: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutants {
    mutant: Vec<Mutant>,
}

/// One deliberate fault.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mutant {
    name: String,
    /// Which promise it breaks.
    why: String,
    /// From the package's root.
    file: String,
    find: String,
    put: String,
    /// The directed scenario that finds it, where mixed runs seldom get into the situation.
    scenario: Option<String>,
    /// The level at which it is found, where that is not the one of messages.
    level: Option<String>,
}

/// Where a mutant is looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Grounds<'a> {
    level: &'a str,
    scenario: Option<&'a str>,
}

impl Mutant {
    fn grounds(&self) -> Grounds<'_> {
        let level = self.level.as_deref().unwrap_or(Level::Messages.name());
        Grounds { level, scenario: self.scenario.as_deref() }
    }
}

impl fmt::Display for Grounds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.level, self.scenario.unwrap_or("mixed"))
    }
}

impl Mutant {
    fn applied_to(&self, text: &str) -> String {
        assert_eq!(
            text.matches(&self.find).count(),
            1,
            "{}: once in {}: {}",
            self.name,
            self.file,
            self.find
        );
        text.replace(&self.find, &self.put)
    }
}

fn mutants() -> Vec<Mutant> {
    toml::from_str::<Mutants>(include_str!("mutants/mutants.toml")).unwrap().mutant
}

fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_mutant_fits_the_sources() {
    let (mutants, mut names) = (mutants(), BTreeSet::new());
    assert!(mutants.len() >= 12, "only {} mutants", mutants.len());
    for mutant in &mutants {
        let text = fs::read_to_string(package().join(&mutant.file)).unwrap();
        assert_ne!(mutant.applied_to(&text), text, "{} changes nothing", mutant.name);
        assert!(mutant.file.starts_with("src/") && !mutant.why.is_empty(), "{}", mutant.name);
        assert!(names.insert(&mutant.name), "{} is there twice", mutant.name);
        let known = |name: &String| Scenario::ALL.iter().any(|scenario| scenario.name() == name);
        assert!(mutant.scenario.iter().all(known), "{}: no such scenario", mutant.name);
        let level = mutant.grounds().level;
        assert!(Level::ALL.iter().any(|one| one.name() == level), "{}: no such level", mutant.name);
    }
}

#[test]
#[ignore = "builds the library once per mutant"]
fn every_mutant_is_caught() {
    let chosen = std::env::var("MUTANTS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split(',').filter(|name| !name.is_empty()).collect();
    let ground = Ground::new();
    ground.build().unwrap();
    let mutants: Vec<Mutant> = mutants()
        .into_iter()
        .filter(|one| chosen.is_empty() || chosen.contains(&one.name.as_str()))
        .collect();
    let grounds: BTreeSet<Grounds<'_>> = mutants.iter().map(Mutant::grounds).collect();
    for grounds in grounds {
        let held = matches!(ground.hunt(grounds, WHOLE), Caught::Never);
        assert!(held, "the sources as they are do not hold: {grounds}");
    }
    let mut missed = Vec::new();
    for mutant in &mutants {
        let place = ground.folder.join("corecast").join(&mutant.file);
        let text = fs::read_to_string(&place).unwrap();
        fs::write(&place, mutant.applied_to(&text)).unwrap();
        let built = ground.build();
        let caught = built.map(|()| ground.hunt(mutant.grounds(), PATIENCE));
        fs::write(&place, text).unwrap();
        match caught {
            Err(error) => {
                println!("{}: DOES NOT BUILD:\n{error}", mutant.name);
                missed.push(mutant.name.clone());
            }
            Ok(Caught::By(seed)) => {
                println!("{}: caught by {} seed {seed}", mutant.name, mutant.grounds());
            }
            Ok(Caught::Never) => {
                println!("{}: NOT CAUGHT", mutant.name);
                missed.push(mutant.name.clone());
            }
            Ok(Caught::Hung) => {
                println!("{}: NOT CAUGHT: hung", mutant.name);
                missed.push(mutant.name.clone());
            }
        }
    }
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

/// What the seeds said.
enum Caught {
    /// The lowest seed that failed, and what it found.
    By(String),
    Never,
    /// The simulator came to no end, and did not notice.
    Hung,
}

/// A copy of the package, and a package beside it that runs the simulator.
struct Ground {
    folder: PathBuf,
}

impl Ground {
    fn new() -> Ground {
        // What was built for an earlier run is used again.
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("mutants");
        for part in ["corecast", "hunt"] {
            let _ = fs::remove_dir_all(folder.join(part));
        }
        for part in ["Cargo.toml", "README.md", "benches", "examples", "src"] {
            copy(&package().join(part), &folder.join("corecast").join(part));
        }
        copy(&package().join("Cargo.lock"), &folder.join("hunt/Cargo.lock"));
        fs::write(folder.join("hunt/Cargo.toml"), MANIFEST).unwrap();
        fs::write(folder.join("hunt/main.rs"), DRIVER).unwrap();
        Ground { folder }
    }

    /// Builds the copy as it is now; what the compiler says if it cannot.
    fn build(&self) -> Result<(), String> {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--offline", "--quiet"]).current_dir(self.folder.join("hunt"));
        let output = cargo.env("CARGO_TARGET_DIR", self.folder.join("target")).output().unwrap();
        if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    }

    /// Runs the seeds, of a scenario or mixed.
    fn hunt(&self, Grounds { level, scenario }: Grounds<'_>, patience: Duration) -> Caught {
        let mut hunt = Command::new(self.folder.join("target/debug/hunt"));
        let seeds = if scenario.is_some() { DIRECTED_SEEDS } else { SEEDS };
        let mut hunt = hunt
            .arg(seeds.to_string())
            .arg(level)
            .args(scenario)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while hunt.try_wait().unwrap().is_none() {
            if start.elapsed() > patience {
                hunt.kill().unwrap();
                hunt.wait().unwrap();
                return Caught::Hung;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = hunt.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        match (output.status.success(), said.as_str()) {
            (true, "held") => Caught::Never,
            (true, _) => Caught::By(said),
            (false, _) => panic!("the driver itself failed: {said}"),
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        for entry in fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(from, to).unwrap();
    }
}

/// A workspace of its own: neither the tools nor the tests of the package are built.
const MANIFEST: &str = r#"
[package]
name = "hunt"
version = "0.0.0"
edition = "2024"

[[bin]]
name = "hunt"
path = "main.rs"

[dependencies]
corecast = { path = "../corecast", default-features = false }

[profile.dev]
opt-level = 1
debug = "line-tables-only"

[profile.dev.package."*"]
opt-level = 3
debug = false

[profile.dev.package.corecast]
opt-level = 1

[workspace]
"#;

/// Runs seeds on all cores and prints the lowest that fails.
const DRIVER: &str = r#"
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use corecast::sim::{self, Level, Scenario};

fn main() {
    let mut args = std::env::args().skip(1);
    let (seeds, level) = (args.next().unwrap().parse().unwrap(), args.next().unwrap());
    let level = Level::ALL.into_iter().find(|one| one.name() == level).unwrap();
    let scenario = args.next().map(|name| Scenario::ALL.into_iter().find(|one| one.name() == name).unwrap());
    let run = |seed| match scenario {
        Some(scenario) => sim::run_scenario(scenario, seed, level),
        None => sim::run(seed, level),
    };
    let (next, end, found) = (AtomicU64::new(0), AtomicU64::new(seeds), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, SeqCst);
                    if seed >= end.load(SeqCst) {
                        return;
                    }
                    if let Err(failure) = run(seed) {
                        let mut found = found.lock().unwrap();
                        if end.fetch_min(seed, SeqCst) > seed {
                            *found = Some((seed, failure.what));
                        }
                    }
                }
            });
        }
    });
    match found.into_inner().unwrap() {
        Some((seed, what)) => println!("{seed}: {}", what.chars().take(160).collect::<String>()),
        None => println!("held"),
    }
}
"#;
