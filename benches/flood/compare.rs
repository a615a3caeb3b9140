//! Both contenders in turn, each in its own process, and the medians.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{Failure, Options, Shape, Workload};

/// A column of figures: its name, its path in the JSON, and whether more is better.
type Figure = (&'static str, &'static str, bool);

const FIGURES: [Figure; 6] = [
    ("Gbit/s", "/goodput_gbit_s", true),
    ("deliveries/s", "/deliveries_per_s", true),
    ("CPU s/GiB", "/cpu_s_per_gib", false),
    ("CPU µs each", "/cpu_us_per_delivery", false),
    ("p50 µs", "/latency_us/p50", false),
    ("p99 µs", "/latency_us/p99", false),
];

/// Who runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Contender {
    Corecast,
    Quinn(Shape),
}

impl Contender {
    fn name(self) -> String {
        match self {
            Contender::Corecast => "corecast".to_owned(),
            Contender::Quinn(shape) => format!("quinn {}", shape.name()),
        }
    }
}

/// Runs everything and prints the tables.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    for &workload in &options.workloads {
        let mut contenders = vec![Contender::Corecast];
        contenders.extend(options.shapes.iter().map(|&shape| Contender::Quinn(shape)));
        let mut runs: Vec<Vec<Value>> = vec![Vec::new(); contenders.len()];
        for round in 1..=options.rounds {
            for (contender, runs) in contenders.iter().zip(&mut runs) {
                let figures = run_one(options, *contender, workload)?;
                let gbit = figures.pointer("/goodput_gbit_s").and_then(Value::as_f64).unwrap_or(0.0);
                eprintln!("{} round {round}: {} {gbit:.2} Gbit/s", workload.name(), contender.name());
                runs.push(figures);
            }
        }
        print_table(options, workload, &contenders, &runs);
    }
    Ok(())
}

fn run_one(options: &Options, contender: Contender, workload: Workload) -> Result<Value, Failure> {
    let mut command = match contender {
        Contender::Corecast => Command::new(env!("CARGO_BIN_EXE_corecast-load")),
        Contender::Quinn(_) => Command::new(std::env::current_exe()?),
    };
    let number = |number: usize| number.to_string();
    command.arg(workload.name()).args(["--nodes", &options.nodes.to_string()]);
    command.args(["--size", &number(options.size_of(workload)), "--mtu", &options.mtu.to_string()]);
    command.args(["--seconds", &options.seconds.to_string()]);
    match workload {
        Workload::Latency => command.args(["--rate", &options.rate.to_string()]),
        _ => command.args(["--inflight", &number(options.inflight_of(workload))]),
    };
    match contender {
        Contender::Corecast => {
            let cores: Vec<String> = (0..options.cores).map(number).collect();
            command.args(["--json", "--cores", &cores.join(",")]);
        }
        Contender::Quinn(shape) => {
            command.args(["--contender", shape.name(), "--cores", &number(options.cores)]);
            command.args(["--work", options.work.name()]);
        }
    }
    let output = wait(&mut command, Duration::from_secs(options.seconds + 60))?;
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
            return Err(format!("{command:?} did not end within {} s", most.as_secs()).into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    match output.status.success() {
        true => Ok(output.stdout),
        false => Err(format!("{command:?} failed: {}", output.status).into()),
    }
}

fn print_table(options: &Options, workload: Workload, contenders: &[Contender], runs: &[Vec<Value>]) {
    println!(
        "\n{} · {} nodes · {} bytes · MTU {} · medians of {} rounds of {} s · the flood's work: {}",
        workload.name(),
        options.nodes,
        options.size_of(workload),
        options.mtu,
        options.rounds,
        options.seconds,
        options.work.name()
    );
    let head: String = FIGURES.iter().map(|(name, ..)| format!("{name:>14}")).collect();
    println!("{:<12}{head}{:>10}", "", "peak MiB");
    let medians = |runs: &[Value]| FIGURES.map(|(_, path, _)| median(runs, path));
    for (contender, runs) in contenders.iter().zip(runs) {
        let cells: String = medians(runs).iter().map(|value| format!("{value:>14.2}")).collect();
        let peak = median(runs, "/peak_rss_bytes") / f64::from(1 << 20);
        println!("{:<12}{cells}{peak:>10.0}", contender.name());
    }
    let Some((corecast, others)) = runs.split_first() else { return };
    let ours = medians(corecast);
    for (contender, runs) in contenders.iter().skip(1).zip(others) {
        let pairs = ours.iter().zip(medians(runs)).zip(FIGURES);
        let cells: String = pairs
            .map(|((ours, theirs), (.., more_is_better))| {
                let ratio = if more_is_better { ours / theirs } else { theirs / ours };
                format!("{:>14}", format!("{ratio:.2} x"))
            })
            .collect();
        println!("{:<12}{cells}   times as good as {}", "corecast is", contender.name());
    }
}

fn median(runs: &[Value], path: &str) -> f64 {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run.pointer(path)?.as_f64()).collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => values[odd / 2],
        even => (values[even / 2 - 1] + values[even / 2]) / 2.0,
    }
}
