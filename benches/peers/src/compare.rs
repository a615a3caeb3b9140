//! corecast and its peers in turn, each in a process of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::Failure;
use crate::contenders::Peer;
use crate::options::{Choice, Load, Makers, Workload, name};
use crate::table::{Row, Table};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What to measure
    #[arg(value_enum, default_values_t = [Workload::Bulk, Workload::Small, Workload::Latency])]
    workloads: Vec<Workload>,
    /// Rounds; each runs every contender once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Peers to run, with commas between [default: all that have something of their own to show]
    #[arg(long, value_enum, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// A corecast-load that is built already, instead of building it
    #[arg(long, value_name = "PATH")]
    corecast: Option<PathBuf>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Add to the rounds that the --json file holds already, instead of replacing them: those of the same workload and load
    #[arg(long, requires = "json")]
    resume: bool,
    /// Lanes of each of corecast's nodes [default: as many as --cores where one node alone makes bulk, for one lane keeps to one
    /// core; otherwise 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=256))]
    lanes: Option<u16>,
    #[command(flatten)]
    pub(crate) load: Load,
}

impl Options {
    fn lanes(&self, choice: &Choice) -> u16 {
        let spread = choice.workload == Workload::Bulk && choice.makers == Makers::First;
        self.lanes.unwrap_or(if spread { choice.cores as u16 } else { 1 })
    }
}

/// How the peers are linked: as the manifest says, or the environment in its place.
const LTO: &str = match option_env!("CARGO_PROFILE_RELEASE_LTO") {
    Some(lto) => lto,
    None => "thin",
};

/// What runs take beside what is measured: connecting, stalls, catching up.
const PATIENCE: Duration = Duration::from_secs(150);

/// Who runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Corecast,
    Peer(Peer),
}

impl Contender {
    fn name(self) -> String {
        match self {
            Contender::Corecast => "corecast".to_owned(),
            Contender::Peer(peer) => name(peer),
        }
    }

    fn note(self, options: &Options, choice: &Choice) -> Option<String> {
        match self {
            Contender::Corecast => match options.lanes(choice) {
                1 => None,
                lanes => Some(format!("{lanes} lanes")),
            },
            Contender::Peer(peer) => peer.note(choice),
        }
    }
}

/// Runs everything and prints the tables.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let corecast = match &options.corecast {
        Some(path) => path.clone(),
        None => build()?,
    };
    let peers = if options.peers.is_empty() { Peer::value_variants() } else { &options.peers };
    let mut all = if options.resume { read(options.json.as_deref())? } else { Vec::new() };
    let mut failures = 0;
    for &workload in &options.workloads {
        let choice = Choice::new(workload, &options.load);
        let left_out = |peer: &Peer| peer.left_out(workload).filter(|_| options.peers.is_empty());
        let (out, taking): (Vec<Peer>, Vec<Peer>) = peers.iter().partition(|peer| left_out(peer).is_some());
        let mut contenders = vec![Contender::Corecast];
        contenders.extend(taking.into_iter().map(Contender::Peer));
        let mut table = Table::new(choice.clone(), rows(options, &choice, &contenders));
        let before = all.iter().position(|held| table.is_of(held)).map(|place| all.remove(place));
        table.resume(before.as_ref());
        measure(options, &choice, &contenders, &corecast, &mut table);
        for peer in out {
            table.leave_out(name(peer), left_out(&peer).unwrap_or_default());
        }
        println!("\n{}", table.text());
        failures += table.failures();
        all.push(table.json());
        // After each table, so that what was measured is not lost with a later one.
        if let Some(path) = &options.json {
            write(path, &json!({ "lto": LTO, "tables": all }))?;
        }
    }
    match failures {
        0 => Ok(()),
        some => Err(format!("{some} runs failed; what they said stands above").into()),
    }
}

fn rows(options: &Options, choice: &Choice, contenders: &[Contender]) -> Vec<Row> {
    let row = |contender: &Contender| Row::new(contender.name(), contender.note(options, choice));
    contenders.iter().map(row).collect()
}

fn measure(options: &Options, choice: &Choice, contenders: &[Contender], corecast: &Path, table: &mut Table) {
    for round in 1..=options.rounds {
        for (contender, row) in contenders.iter().zip(table.rows_mut()) {
            let (name, workload) = (contender.name(), name(choice.workload));
            match run_one(*contender, choice, corecast, options.lanes(choice)) {
                Ok(figures) => {
                    let figure = crate::table::headline(choice.workload, &figures);
                    eprintln!("{workload} round {round}: {name} {figure}");
                    row.runs.push(figures);
                }
                Err(failure) => {
                    eprintln!("{workload} round {round}: {name} failed: {failure}");
                    row.failures.push(failure.to_string());
                }
            }
        }
    }
}

fn run_one(contender: Contender, choice: &Choice, corecast: &Path, lanes: u16) -> Result<Value, Failure> {
    let mut command = match contender {
        Contender::Corecast => {
            let cores: Vec<String> = (0..choice.cores).map(|core| core.to_string()).collect();
            let mut command = Command::new(corecast);
            command.args(choice.arguments()).args(["--json", "--cores", &cores.join(",")]);
            command.args(["--lanes", &lanes.to_string()]);
            if choice.has_makers() {
                command.args(["--makers", &name(choice.makers)]);
            }
            command
        }
        Contender::Peer(peer) => {
            let mut command = Command::new(std::env::current_exe()?);
            command.args(["contend", &name(peer)]).args(choice.arguments());
            command.args(["--cores", &choice.cores.to_string(), "--work", &name(choice.work)]);
            command.args(["--makers", &name(choice.makers)]);
            command
        }
    };
    let output = wait(&mut command, Duration::from_secs(2 * choice.seconds) + PATIENCE)?;
    Ok(serde_json::from_slice(&output)?)
}

/// Runs a process to its end and gives its output; kills it when it takes too long.
fn wait(command: &mut Command, most: Duration) -> Result<Vec<u8>, Failure> {
    let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn()?;
    let begin = Instant::now();
    // One line of output fits the pipe, so it need not be read meanwhile.
    while child.try_wait()?.is_none() {
        if begin.elapsed() > most {
            child.kill()?;
            child.wait()?;
            return Err(format!("it did not end within {} s", most.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{command:?}: {}", output.status).into()),
    }
}

/// Builds corecast-load and says where it lies.
fn build() -> Result<PathBuf, Failure> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    eprintln!("building corecast-load");
    let output = Command::new("cargo")
        .args(["build", "--release", "--locked", "--bin", "corecast-load"])
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(format!("cargo build in {root} failed: {}", output.status).into());
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut paths = messages.filter_map(|message| message.get("executable")?.as_str().map(PathBuf::from));
    Ok(paths.next_back().ok_or("cargo did not say where corecast-load lies")?)
}

/// The tables that a file holds; none when there is no file yet.
fn read(path: Option<&Path>) -> Result<Vec<Value>, Failure> {
    let Some(path) = path.filter(|path| path.exists()) else { return Ok(Vec::new()) };
    let wrong = |problem: &dyn std::fmt::Display| {
        format!("{}: {problem}; --resume needs a file that --json wrote, or none", path.display())
    };
    let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
    let held: Value = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
    let tables = held.get("tables").and_then(Value::as_array);
    Ok(tables.ok_or_else(|| wrong(&"it has no tables"))?.clone())
}

fn write(path: &Path, value: &Value) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value)?;
    std::fs::write(path, text)
        .map_err(|error| format!("{}: {error}; choose another --json", path.display()).into())
}
