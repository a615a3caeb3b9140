//! idle: what a connected subnet costs that has nothing to send.

use std::time::{Duration, Instant};

use corecast::config::TopicConfig;
use corecast::types::TopicId;
use serde_json::json;

use crate::options::Idle;
use crate::report::{Figures, Output, Report, digits, mib};
use crate::subnet::counters::ratio;
use crate::subnet::fault::Fault;
use crate::subnet::flow::{Flaws, Measured, Outcome};
use crate::subnet::loopback;
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::Used;
use crate::workload::SHUTDOWN;

/// How soon a signal is noticed.
const GLANCE: Duration = Duration::from_millis(100);

pub(crate) fn run(options: &Idle) -> Result<(), Fault> {
    let run = &options.run;
    let mut plan = run.plan(run.nodes(40))?;
    plan.topics.push(TopicConfig::new(TopicId(1), "idle"));
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    let subnet = loopback::start(&plan)?;
    let measure = run.measure(10);
    // Handshakes leave timers and acknowledgements behind.
    sleep((measure / 5).min(Duration::from_secs(1)), &stop);
    let (used, counters, begin) = (Used::now()?, subnet.host.counters(), Instant::now());
    sleep(measure, &stop);
    let seconds = begin.elapsed().as_secs_f64();
    let (used, counters) = (Used::now()?.since(&used), subnet.host.counters().since(&counters));
    let peak_rss_bytes = resident::peak_rss_bytes();
    drop((subnet.ports, subnet.feeds));
    subnet.host.shutdown(SHUTDOWN)?;
    let (cpu_percent, datagrams_per_s) =
        (100.0 * ratio(used.cpu_seconds, seconds), ratio(counters.datagrams_sent as f64, seconds));
    let outcome = Outcome {
        seconds,
        kinds: Vec::new(),
        counters,
        flaws: Flaws::default(),
        again: 0,
        forestalled: 0,
        partial: stop.is_set(),
        peak: None,
    };
    let mut report = Report::new(&Figures {
        workload: "idle",
        nodes: plan.nodes,
        run,
        size: 0,
        outcome: &outcome,
        measured: &Measured::new()?,
        used,
        peak_rss_bytes,
    });
    report.add(
        "idle",
        json!({
            "cpu_percent": digits(cpu_percent),
            "peak_rss_bytes": peak_rss_bytes,
            "datagrams_per_s": digits(datagrams_per_s),
        }),
    );
    report.row("CPU of one core", format!("{cpu_percent:.2} %"));
    report.row("memory of each node", mib(peak_rss_bytes / u64::from(plan.nodes)));
    report.row("datagrams sent", format!("{datagrams_per_s:.0} per second"));
    output.conclude(&report, &outcome)
}

fn sleep(time: Duration, stop: &Stop) {
    let end = Instant::now() + time;
    while !stop.is_set() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(GLANCE));
    }
}
