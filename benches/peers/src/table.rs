//! Medians of all contenders, and how corecast compares.

use std::fmt::Write;

use serde_json::{Map, Value, json};

use crate::options::{Choice, Workload, name};

/// A column.
#[derive(Debug, Clone, Copy)]
struct Figure {
    name: &'static str,
    path: &'static str,
    /// What one unit of the table is in units of the JSON.
    unit: f64,
    better: Better,
}

impl Figure {
    /// What its name does not say.
    fn meaning(&self) -> Option<&'static str> {
        match self.path {
            "/peak_beyond_in_flight_bytes" => Some(
                "peak less the artifacts that not all receivers had when it was reached, each counted once, at its maker; what \
                 receivers assemble or hold is not taken off, for no peer tells",
            ),
            "/stall/all_peak_rss_bytes" => Some("of all nodes together"),
            "/lost" if self.name == GONE.name => Some(
                "deliveries that did not come within 30 s of the end; from peers that can take artifacts back also those of \
                 what was taken back first",
            ),
            _ => None,
        }
    }
}

/// Which way is better, where ratios make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Better {
    More,
    Less,
    /// Shown without a ratio.
    Shown,
}

use Better::{Less, More, Shown};

const fn figure(name: &'static str, path: &'static str, better: Better) -> Figure {
    Figure { name, path, unit: 1.0, better }
}

const MIB: f64 = 1_048_576.0;
const PEAK: Figure = Figure { unit: MIB, ..figure("peak MiB", "/peak_rss_bytes", Less) };
const BEYOND: Figure = Figure { unit: MIB, ..figure("beyond MiB", "/peak_beyond_in_flight_bytes", Less) };
const WIRE: Figure = figure("lo B/B", "/loopback_bytes_per_payload_byte", Less);
const GBIT: Figure = figure("Gbit/s", "/goodput_gbit_s", More);
const CPU_GIB: Figure = figure("CPU s/GiB", "/cpu_s_per_gib", Less);
const CPU_EACH: Figure = figure("CPU µs each", "/cpu_us_per_delivery", Less);
const P50: Figure = figure("p50 µs", "/latency_us/p50", Less);
const P99: Figure = figure("p99 µs", "/latency_us/p99", Less);
const QUORUM_50: Figure = figure("quorum p50", "/quorum_latency_us/p50", Less);
const QUORUM_99: Figure = figure("quorum p99", "/quorum_latency_us/p99", Less);
const ALLOCATIONS: Figure = figure("allocs each", "/allocations_per_artifact", Less);
const LOST: Figure = figure("lost", "/lost", Shown);
/// The same where artifacts are taken back by the clock.
const GONE: Figure = figure("lost or late", "/lost", Shown);

/// What a workload is about; the first is the headline.
fn figures(workload: Workload) -> Vec<Figure> {
    match workload {
        Workload::Bulk => vec![GBIT, CPU_GIB, P50, P99, QUORUM_50, WIRE, ALLOCATIONS, PEAK, BEYOND, LOST],
        Workload::Small => {
            let rate = figure("deliveries/s", "/deliveries_per_s", More);
            vec![rate, GBIT, CPU_EACH, P50, P99, QUORUM_50, WIRE, ALLOCATIONS, PEAK, BEYOND, LOST]
        }
        Workload::Latency => {
            let p999 = figure("p99.9 µs", "/latency_us/p999", Less);
            vec![P50, P99, p999, QUORUM_50, QUORUM_99, CPU_EACH, PEAK, LOST]
        }
        Workload::Mixed => {
            let probe = |name, path| figure(name, path, Less);
            vec![
                probe("probe p50", "/probe_loaded_us/p50"),
                probe("probe p99", "/probe_loaded_us/p99"),
                probe("probe max", "/probe_loaded_us/max"),
                GBIT,
                CPU_GIB,
                PEAK,
                LOST,
            ]
        }
        Workload::Consensus => {
            let kind = |name, path| figure(name, path, Less);
            vec![
                kind("share q p50", "/consensus/share/quorum_latency_us/p50"),
                kind("share q p99", "/consensus/share/quorum_latency_us/p99"),
                kind("block q p50", "/consensus/block/quorum_latency_us/p50"),
                kind("block p99", "/consensus/block/latency_us/p99"),
                kind("ingress p50", "/consensus/ingress/latency_us/p50"),
                kind("ingress p99", "/consensus/ingress/latency_us/p99"),
                CPU_EACH,
                PEAK,
                GONE,
            ]
        }
        Workload::Stall => vec![
            figure("kept ratio", "/stall/healthy_ratio", More),
            figure("before", "/stall/healthy_gbit_s_before", More),
            figure("during", "/stall/healthy_gbit_s_during", More),
            Figure { unit: MIB, ..figure("peak MiB", "/stall/all_peak_rss_bytes", Less) },
            figure("lost", "/stall/lost", Shown),
        ],
        Workload::Rejoin => vec![
            figure("recovered", "/rejoin/recovered", Shown),
            figure("active", "/rejoin/still_active", Shown),
            figure("published", "/rejoin/published_meanwhile", Shown),
            figure("first ms", "/rejoin/first_ms", Less),
            figure("last ms", "/rejoin/last_ms", Less),
            PEAK,
        ],
        Workload::Idle => vec![
            figure("CPU %", "/idle/cpu_percent", Less),
            Figure { unit: MIB, ..figure("peak MiB", "/idle/peak_rss_bytes", Less) },
        ],
    }
}

/// The one figure to show while rounds go on.
pub(crate) fn headline(workload: Workload, run: &Value) -> String {
    let Some(figure) = figures(workload).first().copied() else { return String::new() };
    format!("{} {}", value(run.pointer(figure.path).and_then(Value::as_f64)), figure.name)
}

/// One contender's runs.
#[derive(Debug)]
pub(crate) struct Row {
    name: String,
    note: Option<String>,
    pub(crate) runs: Vec<Value>,
    pub(crate) failures: Vec<String>,
}

impl Row {
    pub(crate) fn new(name: String, note: Option<String>) -> Row {
        Row { name, note, runs: Vec::new(), failures: Vec::new() }
    }

    fn rounds(&self) -> usize {
        self.runs.len() + self.failures.len()
    }

    fn median(&self, figure: &Figure) -> Option<f64> {
        median(self.runs.iter().filter_map(|run| run.pointer(figure.path)?.as_f64()).collect())
    }
}

/// One workload; corecast's row is the first.
#[derive(Debug)]
pub(crate) struct Table {
    choice: Choice,
    rows: Vec<Row>,
    /// Who did not run, and why.
    left_out: Vec<(String, &'static str)>,
}

impl Table {
    pub(crate) fn new(choice: Choice, rows: Vec<Row>) -> Table {
        Table { choice, rows, left_out: Vec::new() }
    }

    pub(crate) fn rows_mut(&mut self) -> &mut [Row] {
        &mut self.rows
    }

    /// What tells tables apart.
    fn load(&self) -> [(&'static str, Value); 6] {
        let Choice { workload, nodes, size, mtu, seconds, work, .. } = &self.choice;
        [
            ("workload", json!(name(*workload))),
            ("nodes", json!(nodes)),
            ("size", json!(size)),
            ("mtu", json!(mtu)),
            ("seconds", json!(seconds)),
            ("work", json!(name(*work))),
        ]
    }

    /// Whether a table that was written earlier is of the same workload and load.
    pub(crate) fn is_of(&self, held: &Value) -> bool {
        self.load().iter().all(|(key, value)| held.get(*key) == Some(value))
    }

    /// Takes over the runs of a table that was written earlier.
    pub(crate) fn resume(&mut self, held: Option<&Value>) {
        let contenders = held.and_then(|held| held.get("contenders")?.as_array());
        for held in contenders.into_iter().flatten() {
            let Some(row) = self.rows.iter_mut().find(|row| held.get("name") == Some(&json!(row.name)))
            else {
                continue;
            };
            let list = |key: &str| held.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
            row.runs = list("runs");
            row.failures =
                list("failures").iter().filter_map(|line| Some(line.as_str()?.to_owned())).collect();
        }
    }

    /// Rounds of the contender that ran most often.
    fn rounds(&self) -> usize {
        self.rows.iter().map(Row::rounds).max().unwrap_or(0)
    }

    pub(crate) fn leave_out(&mut self, name: String, why: &'static str) {
        self.left_out.push((name, why));
    }

    pub(crate) fn failures(&self) -> usize {
        self.rows.iter().map(|row| row.failures.len()).sum()
    }

    pub(crate) fn text(&self) -> String {
        let figures = figures(self.choice.workload);
        let mut text = self.head();
        let names: String = figures.iter().map(|figure| format!("{:>13}", figure.name)).collect();
        writeln!(text, "{:<28}{names}", "").ok();
        for row in &self.rows {
            let cell =
                |figure: &Figure| format!("{:>13}", value(row.median(figure).map(|v| v / figure.unit)));
            let cells: String = figures.iter().map(cell).collect();
            let failed = match row.failures.len() {
                0 => String::new(),
                some => format!("   {some} of {} runs failed", row.rounds()),
            };
            writeln!(text, "{:<28}{cells}{failed}", row.name).ok();
        }
        writeln!(text, "corecast is so many times as good as").ok();
        for (name, ratios) in self.ratios(&figures) {
            let cells: String = ratios.iter().map(|ratio| format!("{:>13}", value(*ratio))).collect();
            writeln!(text, "{name:<28}{cells}").ok();
        }
        for row in &self.rows {
            if let Some(note) = &row.note {
                writeln!(text, "{}: {note}", row.name).ok();
            }
        }
        for (name, why) in &self.left_out {
            writeln!(text, "{name}: left out: {why}").ok();
        }
        for figure in &figures {
            if let Some(meaning) = figure.meaning() {
                writeln!(text, "{}: {meaning}", figure.name).ok();
            }
        }
        text
    }

    fn head(&self) -> String {
        let Choice { workload, nodes, size, mtu, seconds, work, .. } = &self.choice;
        let sizes = match workload {
            Workload::Consensus | Workload::Idle => String::new(),
            _ => format!(" · {size} bytes"),
        };
        format!(
            "{} · {nodes} nodes{sizes} · MTU {mtu} · medians of {} rounds of {seconds} s · the peers' work: {}\n",
            name(*workload),
            self.rounds(),
            name(*work)
        )
    }

    /// The best peer, figure by figure, and each peer: how many times as good as it corecast is.
    fn ratios(&self, figures: &[Figure]) -> Vec<(String, Vec<Option<f64>>)> {
        let Some((corecast, peers)) = self.rows.split_first() else { return Vec::new() };
        let ratio = |figure: &Figure, peer: &Row| {
            let (ours, theirs) = (corecast.median(figure)?, peer.median(figure)?);
            let (good, bad) = match figure.better {
                More => (ours, theirs),
                Less => (theirs, ours),
                Shown => return None,
            };
            (bad > 0.0).then(|| good / bad)
        };
        let each = peers.iter().map(|peer| {
            (peer.name.clone(), figures.iter().map(|figure| ratio(figure, peer)).collect::<Vec<_>>())
        });
        let each: Vec<_> = each.collect();
        // The smallest ratio is that to the best.
        let best = (0..figures.len())
            .map(|index| each.iter().filter_map(|(_, ratios)| ratios[index]).min_by(f64::total_cmp))
            .collect();
        std::iter::once(("the best of them".to_owned(), best)).chain(each).collect()
    }

    pub(crate) fn json(&self) -> Value {
        let figures = figures(self.choice.workload);
        let object = |row: &Row| {
            let medians: Map<String, Value> =
                figures.iter().map(|figure| (key(figure), json!(row.median(figure)))).collect();
            json!({
                "name": row.name,
                "note": row.note,
                "medians": medians,
                "runs": row.runs,
                "failures": row.failures,
            })
        };
        let ratios = |(name, ratios): (String, Vec<Option<f64>>)| {
            let ratios = figures.iter().zip(ratios).map(|(figure, ratio)| (key(figure), json!(ratio)));
            (name, Value::Object(ratios.collect()))
        };
        let mut table = json!({
            "rounds": self.rounds(),
            "left_out": self.left_out.iter().map(|(name, why)| (name.clone(), json!(why))).collect::<Map<_, _>>(),
            "contenders": self.rows.iter().map(object).collect::<Vec<_>>(),
            "corecast_times_as_good_as":
                self.ratios(&figures).into_iter().map(ratios).collect::<Map<String, Value>>(),
        });
        self.load().into_iter().for_each(|(key, value)| table[key] = value);
        table
    }
}

/// A figure's place in a run's JSON, with dots.
fn key(figure: &Figure) -> String {
    figure.path.trim_start_matches('/').replace('/', ".")
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}

/// Four digits, or a dash.
fn value(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(value) if value.abs() >= 1000.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn rounds_that_were_written_are_taken_up_again() {
        let choice = |size: &str| {
            let cli = crate::Cli::try_parse_from(["peers", "bulk", "--size", size]).unwrap();
            Choice::new(Workload::Bulk, &cli.compare.load)
        };
        let table = |size| Table::new(choice(size), vec![Row::new("one".to_owned(), None)]);
        let mut written = table("1000");
        written.rows[0].runs.push(json!({ "goodput_gbit_s": 2.0 }));
        written.rows[0].failures.push("no".to_owned());
        let written = written.json();
        let mut again = table("1000");
        assert!(again.is_of(&written) && !table("2000").is_of(&written));
        again.resume(Some(&written));
        again.rows[0].runs.push(json!({ "goodput_gbit_s": 4.0 }));
        assert_eq!((again.rounds(), again.rows[0].median(&GBIT)), (3, Some(3.0)));
    }

    #[test]
    fn values_have_about_four_digits() {
        assert_eq!(
            [None, Some(1.234), Some(123.45), Some(671_234.0)].map(value),
            ["–", "1.23", "123.5", "671234"]
        );
    }
}
