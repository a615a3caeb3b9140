//! classes: every class has more to send than goes through, from one maker to all others; how they share what there is.

use corecast::types::{Class, Weights};
use serde_json::{Map, json};

use crate::options::Classes;
use crate::report::{Figures, Output, Report, digits, latency_us};
use crate::subnet::counters::{gbit_s, ratio};
use crate::subnet::fault::Fault;
use crate::subnet::flow::{Hold, Outcome, Pace, Stream};
use crate::workload::{add_topic, once};

pub(crate) fn run(options: &Classes) -> Result<(), Fault> {
    let run = &options.run;
    let mut plan = run.plan(run.nodes(4))?;
    plan.settings.weights = options.weights;
    for class in Class::ALL {
        add_topic(&mut plan, &class.to_string(), class, options.size, options.inflight, false);
    }
    let output = Output::open(run)?;
    let stream = |class: Class| Stream {
        maker: 0,
        topic: class.index(),
        kind: class.index(),
        sizes: vec![options.size as usize],
        pace: Pace::Closed { inflight: options.inflight as usize },
        hold: Hold::UntilComplete,
        relay: false,
    };
    let (outcome, used, peak_rss_bytes) = once(run, &plan, Class::ALL.map(stream).to_vec())?;
    let measured = outcome.all()?;
    let mut report = Report::new(&Figures {
        workload: "classes",
        nodes: plan.nodes,
        run,
        size: options.size as usize,
        outcome: &outcome,
        measured: &measured,
        used,
        peak_rss_bytes,
    });
    tell(options.weights, &outcome, &mut report);
    report.add("cores_busy", digits(ratio(used.cpu_seconds, outcome.seconds)));
    report.row("cores that were busy", format!("{:.2}", ratio(used.cpu_seconds, outcome.seconds)));
    output.conclude(&report, &outcome)
}

fn tell(weights: Weights, outcome: &Outcome, report: &mut Report) {
    let sum: u64 = outcome.kinds.iter().map(|kind| kind.bytes).sum();
    let mut classes = Map::new();
    for class in Class::ALL {
        let kind = &outcome.kinds[class.index()];
        let (gbit, share) = (gbit_s(kind.bytes, outcome.seconds), ratio(kind.bytes as f64, sum as f64));
        let weight = weights.share(class);
        let figures = json!({
            "goodput_gbit_s": digits(gbit),
            "share": digits(share),
            "weight": digits(weight),
            "share_by_weight": digits(ratio(share, weight)),
            "latency_us": latency_us(&kind.last),
        });
        classes.insert(class.to_string(), figures);
        let name = match class {
            Class::Critical => "critical",
            Class::High => "high",
            Class::Normal => "normal",
            Class::Bulk => "bulk",
        };
        let (share, weight) = (100.0 * share, 100.0 * weight);
        report.row(name, format!("{gbit:.2} Gbit/s: {share:.1} % of all, where its weight is {weight:.1} %"));
    }
    report.add("classes", classes);
}
