//! What a devnet run prints.

use serde_json::json;

use crate::subnet::counters::{Counters, ratio};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::latency::Latency;

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) nodes: u16,
    pub(crate) lanes: u16,
    /// Files and their bytes; `None` for the sample mix.
    pub(crate) files: Option<(u64, u64)>,
    /// Artifacts that were broadcast.
    pub(crate) artifacts: u64,
    /// Deliveries to one node each.
    pub(crate) deliveries: u64,
    pub(crate) delivered_bytes: u64,
    /// From the first broadcast until all had all.
    pub(crate) seconds: f64,
    /// From broadcast to each delivery.
    pub(crate) latency: Latency,
    pub(crate) counters: Counters,
    /// What is wrong, if anything is.
    pub(crate) flaw: Option<String>,
}

impl Report {
    fn goodput_gbit_s(&self) -> f64 {
        ratio(self.delivered_bytes as f64 * 8e-9, self.seconds)
    }

    /// One object, on one line.
    pub(crate) fn json(&self) -> String {
        let digits = |value: f64| format!("{value:.5e}").parse::<f64>().unwrap_or(value);
        let relaying = self.counters.relay_cost();
        json!({
            "nodes": self.nodes,
            "lanes": self.lanes,
            "artifacts": self.artifacts,
            "delivered_artifacts": self.deliveries,
            "delivered_bytes": self.delivered_bytes,
            "seconds": digits(self.seconds),
            "goodput_gbit_s": digits(self.goodput_gbit_s()),
            "latency_us": {
                "p50": digits(self.latency.quantile_us(0.5)),
                "p99": digits(self.latency.quantile_us(0.99)),
                "max": digits(self.latency.max_us()),
            },
            "body_copies_per_delivery": digits(self.counters.copies_per_delivery()),
            "relaying": {
                "relayed_artifacts": relaying.relayed,
                "adverts_per_relayed": digits(relaying.adverts),
                "advert_bytes": self.counters.relay_advert_bytes,
                "advert_bytes_per_relayed": digits(relaying.bytes),
            },
            "verified": self.flaw.is_none(),
        })
        .to_string()
    }

    /// One figure a line.
    pub(crate) fn table(&self) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let mut rows = vec![("subnet", format!("{} nodes, {} lanes", self.nodes, self.lanes))];
        if let Some((files, bytes)) = self.files {
            rows.push(("files", format!("{files} ({:.1} MiB) at each node", mib(bytes))));
        }
        let [p50, p99] = [0.5, 0.99].map(|quantile| self.latency.quantile_us(quantile));
        let max = self.latency.max_us();
        rows.extend([
            ("artifacts", format!("{} broadcast, {} deliveries", self.artifacts, self.deliveries)),
            ("bytes delivered", format!("{:.1} MiB", mib(self.delivered_bytes))),
            ("time", format!("{:.2} s", self.seconds)),
            ("goodput", format!("{:.2} Gbit/s", self.goodput_gbit_s())),
            ("delivery latency", format!("p50 {p50:.0} µs, p99 {p99:.0} µs, max {max:.0} µs")),
            ("copies received per body", format!("{:.4}", self.counters.copies_per_delivery())),
            ("relayed", self.counters.relay_cost().to_string()),
            ("handshakes refused", self.counters.handshakes_refused.to_string()),
            ("verified", self.flaw.clone().unwrap_or_else(|| "yes, all identical".to_owned())),
        ]);
        let lines = rows.iter().map(|(name, value)| format!("{name:<26} {value}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// A run in which something is wrong is a failure.
    pub(crate) fn verdict(&self) -> Result<(), Fault> {
        match &self.flaw {
            None => Ok(()),
            Some(flaw) => Err(Fault::new(Exit::Software, flaw)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_has_exactly_the_stated_keys() {
        let report = Report {
            nodes: 4,
            lanes: 1,
            files: None,
            artifacts: 2,
            deliveries: 6,
            delivered_bytes: 6_000_000,
            seconds: 0.5,
            latency: Latency::new().unwrap(),
            counters: Counters { bodies_received: 6, bodies_delivered: 6, ..Counters::default() },
            flaw: None,
        };
        assert_eq!(
            report.json(),
            "{\"artifacts\":2,\"body_copies_per_delivery\":1.0,\"delivered_artifacts\":6,\
             \"delivered_bytes\":6000000,\"goodput_gbit_s\":0.096,\"lanes\":1,\
             \"latency_us\":{\"max\":0.0,\"p50\":0.0,\"p99\":0.0},\"nodes\":4,\
             \"relaying\":{\"advert_bytes\":0,\"advert_bytes_per_relayed\":0.0,\"adverts_per_relayed\":0.0,\
             \"relayed_artifacts\":0},\"seconds\":0.5,\"verified\":true}"
        );
    }
}
