//! The sample mix: what a busy subnet might send, from shares to state.

use std::time::Duration;

use corecast::config::TopicConfig;
use corecast::types::{Class, TopicId};

use super::report::Report;
use crate::subnet::fault::Fault;
use crate::subnet::flow::{self, Flaws, Hold, Pace, Stream, Times};
use crate::subnet::loopback::Plan;
use crate::subnet::stop::Stop;

/// Name, class, sizes in turn, and how many each node has on their way at a time.
const MIX: [(&str, Class, &[usize], usize); 4] = [
    ("consensus", Class::Critical, &[100, 200, 100_000, 200], 2),
    ("shares", Class::High, &[100, 250, 500], 16),
    ("ingress", Class::Normal, &[700, 2_000, 10_000, 30_000], 16),
    ("state", Class::Bulk, &[262_144, 1_048_576], 4),
];

/// The topics of the mix.
pub(crate) fn topics() -> Vec<TopicConfig> {
    let topic = |(number, (name, class, ..)): (usize, (&str, Class, &[usize], usize))| {
        TopicConfig::new(TopicId(number as u16 + 1), name).class(class)
    };
    MIX.into_iter().enumerate().map(topic).collect()
}

/// Every node sends the mix for this long.
pub(crate) fn run(plan: &Plan, measure: Duration, relay: bool, stop: &Stop) -> Result<Report, Fault> {
    let mut subnet = super::start(plan)?;
    let streams = (0..usize::from(plan.nodes)).flat_map(|maker| {
        MIX.iter().enumerate().map(move |(topic, &(_, _, sizes, inflight))| {
            let pace = Pace::Closed { inflight };
            let (sizes, hold) = (sizes.to_vec(), Hold::UntilComplete);
            Stream { maker, topic, kind: 0, sizes, pace, hold, relay }
        })
    });
    let times = Times { warm_up: Duration::ZERO, measure, grace: Duration::from_secs(10) };
    let outcome = flow::run(&mut subnet, streams.collect(), times, stop, |_| Ok(()));
    let outcome = super::shut_down(subnet, outcome)?;
    let all = outcome.all()?;
    Ok(Report {
        nodes: plan.nodes,
        lanes: plan.lanes,
        files: None,
        artifacts: all.artifacts,
        deliveries: all.deliveries,
        delivered_bytes: all.bytes,
        seconds: outcome.seconds,
        latency: all.each,
        counters: outcome.counters,
        flaw: (outcome.flaws != Flaws::default()).then(|| outcome.flaws.to_string()),
    })
}
