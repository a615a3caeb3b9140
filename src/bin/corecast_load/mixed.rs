//! mixed: what urgent probes wait for beside bulk of the same node, and what that bulk keeps.
//!
//! Probes alone, bulk alone, and both take turns, several times, so that all three see the same minutes of the machine.

use std::time::Duration;

use corecast::types::Class;

use crate::options::Mixed;
use crate::report::{Figures, Output, Report, digits, latency_us, quantiles};
use crate::subnet::counters::{gbit_s, ratio};
use crate::subnet::fault::Fault;
use crate::subnet::flow::{Hold, Outcome, Pace, Stream, Times};
use crate::subnet::inline::Inline;
use crate::subnet::loopback::{self, Plan};
use crate::subnet::port::Subnet;
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::{self, Used};
use crate::workload::{GRACE, SECONDS, add_topic, measure_once, shut_down};

/// Kinds of artifacts.
const BULK: usize = 0;
const PROBE: usize = 1;
/// Probes that may be on their way at a time.
const PROBES: u32 = 4096;

pub(crate) fn run(options: &Mixed) -> Result<(), Fault> {
    let (run, size) = (&options.run, options.size as usize);
    let mut plan = Plan { inline: Inline::all(!run.queued), ..run.plan(run.nodes(4))? };
    add_topic(&mut plan, "probe", Class::Critical, options.probe_size, PROBES, false);
    add_topic(&mut plan, "bulk", Class::Bulk, options.size, options.inflight, false);
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    let mut subnet = loopback::start(&plan)?;
    system::run_promptly();
    let measured = take_turns(options, &mut subnet, &stop);
    let peak_rss_bytes = resident::peak_rss_bytes();
    let mut parts = shut_down(subnet, measured)?;
    let mut report = Report::new(&Figures {
        workload: "mixed",
        nodes: plan.nodes,
        run,
        size,
        outcome: &parts.both.0,
        measured: &parts.both.0.kinds[BULK],
        used: parts.both.1,
        peak_rss_bytes,
    });
    parts.tell(options, &mut report);
    parts.both.0.merge(&parts.probes.0);
    parts.both.0.merge(&parts.bulk.0);
    output.conclude(&report, &parts.both.0)
}

/// What was measured of each.
struct Parts {
    probes: (Outcome, Used),
    bulk: (Outcome, Used),
    both: (Outcome, Used),
}

/// Phase by phase, each kind of them for a third of the time.
fn take_turns(options: &Mixed, subnet: &mut Subnet, stop: &Stop) -> Result<Parts, Fault> {
    let bulk = Stream {
        maker: 0,
        topic: 1,
        kind: BULK,
        sizes: vec![options.size as usize],
        pace: Pace::Closed { inflight: options.inflight as usize },
        hold: Hold::UntilComplete,
        relay: false,
    };
    let every = Duration::from_secs_f64(1.0 / f64::from(options.rate));
    let pace = Pace::Open { first: Duration::ZERO, every };
    let probe = Stream { topic: 0, kind: PROBE, sizes: vec![options.probe_size as usize], pace, ..bulk };
    let measure = options.run.measure(SECONDS);
    // Phases of half a second and more.
    let rounds = (measure.as_secs() * 2 / 3).clamp(2, 200) as u32;
    let measure = measure / 3 / rounds;
    let times = Times { warm_up: (measure / 5).min(Duration::from_millis(200)), measure, grace: GRACE };
    let mut phase = |streams: Vec<Stream>| measure_once(subnet, streams, times, stop);
    // Not measured: windows open, memory is there.
    phase(vec![bulk.clone()])?;
    // The probe first: it is made before the bulk that is due at the same time.
    let mut round = || -> Result<Parts, Fault> {
        Ok(Parts {
            probes: phase(vec![probe.clone()])?,
            bulk: phase(vec![bulk.clone()])?,
            both: phase(vec![probe.clone(), bulk.clone()])?,
        })
    };
    let mut parts = round()?;
    for _ in 1..rounds {
        if stop.is_set() {
            break;
        }
        parts.merge(&round()?);
    }
    Ok(parts)
}

impl Parts {
    fn merge(&mut self, other: &Parts) {
        let own = [&mut self.probes, &mut self.bulk, &mut self.both];
        for (own, other) in own.into_iter().zip([&other.probes, &other.bulk, &other.both]) {
            own.0.merge(&other.0);
            own.1.add(&other.1);
        }
    }

    fn tell(&self, options: &Mixed, report: &mut Report) {
        let [unloaded, loaded] = [&self.probes, &self.both].map(|(outcome, _)| &outcome.kinds[PROBE]);
        let [alone, beside] =
            [&self.bulk, &self.both].map(|(outcome, _)| gbit_s(outcome.kinds[BULK].bytes, outcome.seconds));
        let kept = ratio(beside, alone);
        let slower = ratio(loaded.last.quantile_us(0.99), unloaded.last.quantile_us(0.99));
        report.add("probe_size", options.probe_size);
        report.add("probes", loaded.artifacts);
        report.add("probes_lost", unloaded.lost + loaded.lost);
        report.add("probe_unloaded_us", latency_us(&unloaded.last));
        report.add("probe_loaded_us", latency_us(&loaded.last));
        report.add("probe_p99_ratio", digits(slower));
        report.add("probe_quorum_latency_us", latency_us(&loaded.quorum));
        report.add("probe_late_us", latency_us(&loaded.late));
        report.add("bulk_alone_gbit_s", digits(alone));
        report.add("bulk_loaded_gbit_s", digits(beside));
        report.add("bulk_kept_ratio", digits(kept));
        report.row("bulk alone", format!("{alone:.2} Gbit/s, of which {:.1} % are kept", 100.0 * kept));
        report.row("probes alone, to the last receiver", quantiles(&unloaded.last));
        report.row("beside bulk, to the last receiver", quantiles(&loaded.last));
        report.row("beside bulk, to the quorum", quantiles(&loaded.quorum));
        report.row("p99 beside bulk by that alone", format!("{slower:.2}"));
        report.row("probes beside bulk, made late by", quantiles(&loaded.late));
        report.row("deliveries of probes that were lost", (unloaded.lost + loaded.lost).to_string());
    }
}
