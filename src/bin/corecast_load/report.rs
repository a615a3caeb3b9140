//! What was measured, for machines and for people.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::options::Run;
use crate::subnet::counters::{gbit_s, ratio};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::{Flaws, Measured, Outcome};
use crate::subnet::latency::Latency;
use crate::subnet::resident::Peak;
use crate::subnet::terminal;
use crate::system::Used;

/// What every workload reports.
pub(crate) struct Figures<'a> {
    pub(crate) workload: &'static str,
    pub(crate) nodes: u16,
    pub(crate) run: &'a Run,
    /// Bytes of an artifact; 0 where sizes differ.
    pub(crate) size: usize,
    pub(crate) outcome: &'a Outcome,
    /// What deliveries, goodput and latency are of.
    pub(crate) measured: &'a Measured,
    pub(crate) used: Used,
    pub(crate) peak_rss_bytes: u64,
}

/// The figures of one run.
#[derive(Debug)]
pub(crate) struct Report {
    json: Value,
    head: String,
    rows: Vec<(&'static str, String)>,
}

impl Report {
    pub(crate) fn new(figures: &Figures<'_>) -> Report {
        let Figures { workload, nodes, run, size, outcome, .. } = *figures;
        let mut json = json!({
            "workload": workload,
            "nodes": nodes,
            "lanes": run.lanes,
            "size": size,
            "mtu": run.mtu,
            "seconds": digits(outcome.seconds),
            "partial": outcome.partial,
        });
        let head = format!(
            "{workload} · {nodes} nodes · {} lanes · {size} bytes · MTU {} · {:.1} s{}",
            run.lanes,
            run.mtu,
            outcome.seconds,
            if outcome.partial { " · interrupted: what follows is of a part" } else { "" }
        );
        let mut report = Report { json: Value::Null, head, rows: Vec::new() };
        report.deliveries(figures, &mut json);
        report.costs(figures, &mut json);
        report.relaying(outcome, &mut json);
        report.json = json;
        report
    }

    fn deliveries(&mut self, figures: &Figures<'_>, json: &mut Value) {
        let Figures { outcome, measured, .. } = figures;
        let (gbit, rate) =
            (gbit_s(measured.bytes, outcome.seconds), ratio(measured.deliveries as f64, outcome.seconds));
        json["delivered_artifacts"] = json!(measured.deliveries);
        json["delivered_bytes"] = json!(measured.bytes);
        json["goodput_gbit_s"] = json!(digits(gbit));
        json["deliveries_per_s"] = json!(digits(rate));
        json["lost"] = json!(outcome.flaws.lost);
        json["latency_us"] = latency_us(&measured.last);
        json["quorum_latency_us"] = latency_us(&measured.quorum);
        self.rows.extend([
            ("goodput", format!("{gbit:.2} Gbit/s")),
            ("deliveries", format!("{rate:.0} per second")),
            ("latency to the last receiver", quantiles(&measured.last)),
            ("latency to the quorum", quantiles(&measured.quorum)),
        ]);
    }

    fn costs(&mut self, figures: &Figures<'_>, json: &mut Value) {
        let Figures { outcome, measured, used, peak_rss_bytes, .. } = figures;
        let counters = &outcome.counters;
        let (bytes, deliveries) = (measured.bytes as f64, measured.deliveries as f64);
        let cpu = used.cpu_seconds;
        let (gib, each) = (ratio(cpu, bytes / f64::from(1 << 30)), ratio(cpu * 1e6, deliveries));
        let copies = counters.copies_per_delivery();
        let wire = ratio(counters.udp_bytes_sent as f64, bytes);
        let loopback = ratio(used.loopback_bytes as f64, bytes);
        let allocations = ratio(used.allocations as f64, deliveries);
        let segments = ratio(counters.datagrams_sent as f64, counters.sends as f64);
        for (name, value) in [
            ("cpu_seconds", cpu),
            ("cpu_s_per_gib", gib),
            ("cpu_us_per_delivery", each),
            ("body_copies_per_delivery", copies),
            ("wire_bytes_per_payload_byte", wire),
            ("loopback_bytes_per_payload_byte", loopback),
            ("allocations_per_artifact", allocations),
            ("gso_segments_mean", segments),
        ] {
            json[name] = json!(digits(value));
        }
        json["packets_lost"] = json!(counters.packets_lost);
        json["peak_rss_bytes"] = json!(peak_rss_bytes);
        if let Some(peak) = outcome.peak {
            json["in_flight_at_peak_bytes"] = json!(peak.in_flight_bytes);
            json["peak_beyond_in_flight_bytes"] = json!(peak.beyond_bytes());
        }
        self.rows.extend([
            ("CPU", format!("{cpu:.2} s: {gib:.2} s per GiB, {each:.2} µs per delivery")),
            ("memory at its peak", memory(*peak_rss_bytes, outcome.peak)),
            ("copies of a body per delivery", format!("{copies:.4}")),
            ("bytes on the wire per byte of payload", format!("{wire:.4}; over lo {loopback:.4}")),
            ("allocations per delivered artifact", format!("{allocations:.2}")),
            ("datagrams per send", format!("{segments:.1}")),
            ("packets lost", format!("{} of {}", counters.packets_lost, counters.datagrams_sent)),
        ]);
    }

    fn relaying(&mut self, outcome: &Outcome, json: &mut Value) {
        let (counters, relaying) = (&outcome.counters, outcome.counters.relay_cost());
        let share = ratio(counters.relay_advert_bytes as f64, counters.udp_bytes_sent as f64);
        json["relaying"] = json!({
            "relayed_artifacts": relaying.relayed,
            "adverts_per_relayed": digits(relaying.adverts),
            "advert_bytes": counters.relay_advert_bytes,
            "advert_bytes_per_relayed": digits(relaying.bytes),
            "delivered_again": outcome.again,
            "share_of_wire_bytes": digits(share),
        });
        self.row("relaying", format!("{relaying}; {:.3} % of the wire", 100.0 * share));
    }

    /// Adds what this workload alone measures.
    pub(crate) fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.json[name] = value.into();
    }

    /// Adds a line for people.
    pub(crate) fn row(&mut self, name: &'static str, value: String) {
        self.rows.push((name, value));
    }

    fn table(&self) -> String {
        let lines = self.rows.iter().map(|(name, value)| format!("{name:<38} {value}"));
        std::iter::once(self.head.clone()).chain(lines).collect::<Vec<_>>().join("\n")
    }
}

/// Where the report goes.
#[derive(Debug)]
pub(crate) struct Output {
    json: bool,
    file: Option<OutFile>,
}

#[derive(Debug)]
struct OutFile {
    path: PathBuf,
    file: File,
    /// It was not there before.
    new: bool,
    written: bool,
}

impl Output {
    /// Opens the file that was asked for, so that one that cannot be written is known before the run.
    pub(crate) fn open(run: &Run) -> Result<Output, Fault> {
        let file = run.out.as_ref().map(|path| OutFile::open(path.clone())).transpose()?;
        Ok(Output { json: run.json, file })
    }

    /// Writes the report, and says whether what was measured is whole and without flaws.
    pub(crate) fn conclude(mut self, report: &Report, outcome: &Outcome) -> Result<(), Fault> {
        let printed = terminal::say(&if self.json { report.json.to_string() } else { report.table() });
        if let Some(file) = &mut self.file {
            file.write(&report.json)?;
        }
        printed.and_then(|()| verdict(outcome))
    }
}

impl OutFile {
    fn open(path: PathBuf) -> Result<OutFile, Fault> {
        let new = !path.exists();
        // Not truncated yet: a run that fails leaves what was there.
        match OpenOptions::new().write(true).create(true).truncate(false).open(&path) {
            Ok(file) => Ok(OutFile { path, file, new, written: false }),
            Err(error) => {
                let problem = format!("{}: cannot be written: {error}; choose another --out", path.display());
                Err(Fault::new(Exit::CannotCreate, problem))
            }
        }
    }

    fn write(&mut self, json: &Value) -> Result<(), Fault> {
        // A pipe or a device cannot be cut to a length, and need not.
        self.file.set_len(0).ok();
        self.written = true;
        let written = writeln!(self.file, "{json}").and_then(|()| self.file.flush());
        written.map_err(|error| Fault::at(&self.path, "cannot be written", &error))
    }
}

impl Drop for OutFile {
    fn drop(&mut self) {
        if self.new && !self.written {
            fs::remove_file(&self.path).ok();
        }
    }
}

/// Every artifact must have reached every other node exactly once, unless the user ended the run.
fn verdict(outcome: &Outcome) -> Result<(), Fault> {
    if outcome.flaws != Flaws::default() {
        let problem = format!("{}; each artifact must reach each other node once", outcome.flaws);
        return Err(Fault::new(Exit::Software, problem));
    }
    match outcome.partial {
        false => Ok(()),
        true => {
            let problem = format!("interrupted: {:.1} s were measured", outcome.seconds);
            Err(Fault::new(Exit::Interrupted, problem))
        }
    }
}

/// A latency's quantiles in microseconds.
pub(crate) fn latency_us(latency: &Latency) -> Value {
    json!({
        "p50": digits(latency.quantile_us(0.5)),
        "p99": digits(latency.quantile_us(0.99)),
        "p999": digits(latency.quantile_us(0.999)),
        "max": digits(latency.max_us()),
    })
}

/// The same for people.
pub(crate) fn quantiles(latency: &Latency) -> String {
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|quantile| latency.quantile_us(quantile));
    format!("p50 {p50:.0} µs, p99 {p99:.0} µs, p99.9 {p999:.0} µs, max {:.0} µs", latency.max_us())
}

/// The most memory that was resident, and what of it was no artifact on its way.
fn memory(peak_rss_bytes: u64, peak: Option<Peak>) -> String {
    match peak {
        None => mib(peak_rss_bytes),
        Some(peak) => {
            let (beyond, in_flight) = (mib(peak.beyond_bytes()), mib(peak.in_flight_bytes));
            format!("{}: {beyond} beyond the {in_flight} that makers had in flight", mib(peak_rss_bytes))
        }
    }
}

/// Bytes for people.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Six significant digits: what a reader can use, and no noise of floating point.
pub(crate) fn digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_for_the_report_is_left_alone_until_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let (new, old) = (folder.path().join("new"), folder.path().join("old"));
        fs::write(&old, "what was there, and longer than what comes").unwrap();
        drop([OutFile::open(new.clone()).unwrap(), OutFile::open(old.clone()).unwrap()]);
        assert!(!new.exists() && fs::read_to_string(&old).unwrap().starts_with("what was there"));
        OutFile::open(old.clone()).unwrap().write(&json!({"a": 1})).unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "{\"a\":1}\n");
    }
}
