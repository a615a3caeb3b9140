//! `corecast devnet`: a subnet in one process that broadcasts a folder of files, or a sample mix.

mod exchange;
mod ledger;
mod progress;
mod report;
mod sample;
mod source;
mod verify;

use std::time::Duration;

use corecast::config::{Settings, TopicConfig};
use corecast::types::{Class, TopicId};

use crate::cli::Devnet;
use crate::subnet::fault::Fault;
use crate::subnet::inline::Inline;
use crate::subnet::loopback::Plan;
use crate::subnet::stop::Stop;
use crate::subnet::{cores, loopback, terminal};

/// How long the nodes may take to end.
const SHUTDOWN: Duration = Duration::from_secs(2);

/// Runs the subnet to its end and prints what happened.
pub(crate) fn run(options: &Devnet) -> Result<(), Fault> {
    let report = match (&options.files, &options.out) {
        (Some(files), Some(out)) => {
            let source = source::list(files)?;
            let plan = plan(options, vec![file_topic()])?;
            let folders = source::make_out(files, out, options.nodes)?;
            let stop = Stop::on_signals()?;
            exchange::run(&plan, &source, &folders, options.relay, &stop)?
        }
        _ => {
            let plan = plan(options, sample::topics())?;
            let stop = Stop::on_signals()?;
            sample::run(&plan, Duration::from_secs(options.seconds), options.relay, &stop)?
        }
    };
    terminal::say(&if options.json { report.json() } else { report.table() })?;
    report.verdict()
}

fn plan(options: &Devnet, topics: Vec<TopicConfig>) -> Result<Plan, Fault> {
    let mut settings = Settings::default();
    settings.mtu = options.mtu;
    let lanes_in_all = usize::from(options.nodes) * usize::from(options.lanes);
    let plan = Plan {
        nodes: options.nodes,
        lanes: options.lanes,
        cores: cores::choose(options.cores.as_ref(), lanes_in_all)?,
        spin: Duration::from_micros(options.spin),
        settings,
        topics,
        inline: Inline::None,
    };
    plan.check()?;
    Ok(plan)
}

fn file_topic() -> TopicConfig {
    TopicConfig::new(TopicId(1), "files").class(Class::Bulk)
}

/// Ends the nodes, whatever became of their work; the first fault is the one that is told.
fn shut_down<T>(subnet: crate::subnet::port::Subnet, outcome: Result<T, Fault>) -> Result<T, Fault> {
    drop((subnet.ports, subnet.feeds));
    let ended = subnet.host.shutdown(SHUTDOWN);
    let outcome = outcome?;
    ended.map(|()| outcome)
}

/// Starts the subnet of `plan`.
fn start(plan: &Plan) -> Result<crate::subnet::port::Subnet, Fault> {
    loopback::start(plan)
}
