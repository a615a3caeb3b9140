//! One JSON object with the keys of corecast-load that a peer can fill.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Failure;
use crate::board::Board;
use crate::drive::Outcome;
use crate::options::{Choice, Workload, name};
use crate::workload::Kind;

pub(crate) fn report(choice: &Choice, board: &Board, outcome: &Outcome) -> Result<Value, Failure> {
    let measured = &outcome.measured;
    let (bytes, deliveries) = (measured.bytes as f64, measured.deliveries as f64);
    let kinds: &[Kind] = match choice.workload {
        Workload::Mixed => &[Kind::Body],
        _ => &Kind::ALL,
    };
    let [last, quorum] = board.latencies(kinds)?;
    let mut report = json!({
        "workload": name(choice.workload),
        "nodes": choice.nodes,
        "size": choice.size,
        "mtu": choice.mtu,
        "seconds": digits(measured.seconds),
        "delivered_artifacts": measured.deliveries,
        "delivered_bytes": measured.bytes,
        "goodput_gbit_s": digits(bytes * 8e-9 / measured.seconds),
        "deliveries_per_s": digits(deliveries / measured.seconds),
        "cpu_seconds": digits(measured.cpu_seconds),
        "cpu_s_per_gib": ratio(measured.cpu_seconds, bytes / f64::from(1 << 30)),
        "cpu_us_per_delivery": ratio(measured.cpu_seconds * 1e6, deliveries),
        "latency_us": quantiles(&last),
        "quorum_latency_us": quantiles(&quorum),
        "peak_rss_bytes": outcome.peak.bytes,
        "in_flight_at_peak_bytes": outcome.peak.in_flight_bytes,
        "peak_beyond_in_flight_bytes": outcome.peak.beyond_bytes(),
        "loopback_bytes_per_payload_byte": ratio(measured.loopback_bytes as f64, bytes),
        "body_copies_per_delivery": null,
        "allocations_per_artifact": ratio(measured.allocations as f64, deliveries),
        "lost": outcome.lost,
        "twice": board.twice(),
    });
    if choice.workload == Workload::Mixed {
        let [last, quorum] = board.latencies(&[Kind::Probe])?;
        report["probe_loaded_us"] = quantiles(&last);
        report["probe_quorum_latency_us"] = quantiles(&quorum);
    }
    if choice.workload == Workload::Consensus {
        for (key, kind) in [("block", Kind::Block), ("share", Kind::Share), ("ingress", Kind::Ingress)] {
            let [last, quorum] = board.latencies(&[kind])?;
            report["consensus"][key] =
                json!({ "latency_us": quantiles(&last), "quorum_latency_us": quantiles(&quorum) });
        }
    }
    if let Some((key, special)) = &outcome.special {
        report[*key] = special.clone();
    }
    Ok(report)
}

fn quantiles(latency: &Histogram<u64>) -> Value {
    if latency.is_empty() {
        return Value::Null;
    }
    let quantile = |quantile: f64| digits(latency.value_at_quantile(quantile) as f64 / 1e3);
    json!({ "p50": quantile(0.5), "p99": quantile(0.99), "p999": quantile(0.999), "max": quantile(1.0) })
}

/// Nothing, when there is nothing to divide by.
fn ratio(value: f64, by: f64) -> Option<f64> {
    (by > 0.0).then(|| digits(value / by))
}

/// Six significant digits.
pub(crate) fn digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
