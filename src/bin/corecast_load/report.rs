//! What was measured, for machines and for people.

use serde_json::{Value, json};

use crate::Options;
use crate::subnet::flow::Outcome;
use crate::subnet::port::ratio;

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report(Value);

impl Report {
    pub(crate) fn new(options: &Options, outcome: &Outcome, cpu_seconds: f64, peak_rss_bytes: u64) -> Report {
        let (counters, latency) = (&outcome.counters, &outcome.last);
        let relaying = counters.relay_cost();
        let (bytes, deliveries) = (outcome.bytes as f64, outcome.deliveries as f64);
        Report(json!({
            "workload": options.workload.name(),
            "nodes": options.nodes,
            "lanes": options.lanes,
            "size": options.artifact_size(),
            "mtu": options.mtu,
            "seconds": digits(outcome.seconds),
            "delivered_artifacts": outcome.deliveries,
            "delivered_bytes": outcome.bytes,
            "goodput_gbit_s": digits(outcome.goodput_gbit_s()),
            "deliveries_per_s": digits(ratio(deliveries, outcome.seconds)),
            "cpu_seconds": digits(cpu_seconds),
            "cpu_s_per_gib": digits(ratio(cpu_seconds, bytes / f64::from(1 << 30))),
            "cpu_us_per_delivery": digits(ratio(cpu_seconds * 1e6, deliveries)),
            "latency_us": {
                "p50": digits(latency.quantile_us(0.5)),
                "p99": digits(latency.quantile_us(0.99)),
                "p999": digits(latency.quantile_us(0.999)),
                "max": digits(latency.max_us()),
            },
            "peak_rss_bytes": peak_rss_bytes,
            "body_copies_per_delivery": digits(counters.copies_per_delivery()),
            "wire_bytes_per_payload_byte": digits(ratio(counters.udp_bytes_sent as f64, bytes)),
            "relaying": {
                "relayed_artifacts": relaying.relayed,
                "adverts_per_relayed": digits(relaying.adverts),
                "advert_bytes": counters.relay_advert_bytes,
                "advert_bytes_per_relayed": digits(relaying.bytes),
                "delivered_again": outcome.again,
                "share_of_wire_bytes": digits(ratio(counters.relay_advert_bytes as f64, counters.udp_bytes_sent as f64)),
            },
            "gso_segments_mean": digits(ratio(counters.datagrams_sent as f64, counters.sends as f64)),
        }))
    }

    pub(crate) fn json(&self) -> String {
        self.0.to_string()
    }

    /// One figure a line.
    pub(crate) fn table(&self) -> String {
        let get = |name: &str| self.0[name].as_f64().unwrap_or(0.0);
        let latency = |name: &str| self.0["latency_us"][name].as_f64().unwrap_or(0.0);
        let rows = [
            ("goodput", format!("{:.2} Gbit/s", get("goodput_gbit_s"))),
            ("deliveries", format!("{:.0} per second", get("deliveries_per_s"))),
            ("CPU", {
                let (gib, delivery) = (get("cpu_s_per_gib"), get("cpu_us_per_delivery"));
                format!("{:.2} s: {gib:.2} s per GiB, {delivery:.2} µs per delivery", get("cpu_seconds"))
            }),
            ("latency to the last receiver", {
                let [p50, p99, p999, max] = ["p50", "p99", "p999", "max"].map(latency);
                format!("p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs, max {max:.0} µs")
            }),
            ("memory at its peak", format!("{:.0} MiB", get("peak_rss_bytes") / f64::from(1 << 20))),
            ("copies of a body per delivery", format!("{:.4}", get("body_copies_per_delivery"))),
            ("bytes on the wire per byte of payload", format!("{:.4}", get("wire_bytes_per_payload_byte"))),
            ("relaying", {
                let get = |name: &str| self.0["relaying"][name].as_f64().unwrap_or(0.0);
                let [relayed, adverts, bytes, share] = [
                    "relayed_artifacts",
                    "adverts_per_relayed",
                    "advert_bytes_per_relayed",
                    "share_of_wire_bytes",
                ]
                .map(get);
                let share = 100.0 * share;
                format!(
                    "{relayed:.0} artifacts: {adverts:.2} adverts, {bytes:.1} bytes each; {share:.3} % of the wire"
                )
            }),
            ("datagrams per send", format!("{:.1}", get("gso_segments_mean"))),
        ];
        let head = format!(
            "{} · {} nodes · {} lanes · {} bytes · MTU {} · {:.1} s",
            self.0["workload"].as_str().unwrap_or_default(),
            self.0["nodes"],
            self.0["lanes"],
            self.0["size"],
            self.0["mtu"],
            get("seconds")
        );
        let lines = rows.map(|(name, value)| format!("{name:<38} {value}"));
        format!("{head}\n{}", lines.join("\n"))
    }
}

/// Six significant digits: what a reader can use, and no noise of floating point.
fn digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}
