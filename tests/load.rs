//! `corecast-load`: every workload runs and tells what it must; bad input gets one clear line and a code of sysexits.h.
#![cfg(feature = "tools")]
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use desk::{refused, tool};
use serde_json::Value;

const LOAD: &str = env!("CARGO_BIN_EXE_corecast-load");

/// Runs a workload that must succeed, and gives its figures, which the file must hold as well.
fn run(line: &str) -> Value {
    let desk = tempfile::tempdir().unwrap();
    let output = tool(LOAD, desk.path(), &format!("{line} --json --out figures.json"));
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && stderr.is_empty(), "{line}: {} {stderr}\n{stdout}", output.status);
    assert_eq!(fs::read_to_string(desk.path().join("figures.json")).unwrap(), stdout, "{line}");
    let figures: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(figures["workload"].as_str(), line.split(' ').next());
    assert_eq!(figures["partial"], false, "{line}");
    for name in ["cpu_seconds", "peak_rss_bytes", "seconds"] {
        assert!(figures[name].as_f64().unwrap() > 0.0, "{line}: {name}");
    }
    figures
}

/// The number at this place.
fn number(figures: &Value, place: &str) -> f64 {
    figures.pointer(place).and_then(Value::as_f64).unwrap_or_else(|| panic!("{place} in {figures}"))
}

/// A latency is there with all its quantiles, in their order.
fn check_latency(figures: &Value, place: &str) {
    let quantiles = ["p50", "p99", "p999", "max"].map(|name| number(figures, &format!("{place}/{name}")));
    assert!(quantiles[0] > 0.0 && quantiles.is_sorted(), "{place}: {quantiles:?}");
}

/// What is delivered costs something, and comes once.
fn check_deliveries(figures: &Value) {
    assert!(number(figures, "/delivered_artifacts") > 0.0, "{figures}");
    check_latency(figures, "/latency_us");
    check_latency(figures, "/quorum_latency_us");
    for place in ["/goodput_gbit_s", "/allocations_per_artifact", "/cpu_us_per_delivery"] {
        assert!(number(figures, place) > 0.0, "{place}");
    }
    // Headers of UDP and IP come on top of what the nodes count. Both meters are read at the same time, not in the same instant.
    let (wire, loopback) = (
        number(figures, "/wire_bytes_per_payload_byte"),
        number(figures, "/loopback_bytes_per_payload_byte"),
    );
    assert!(wire > 0.9 && loopback > 0.9, "{wire} {loopback}");
}

#[test]
fn as_much_as_goes_through_is_delivered() {
    for line in
        ["bulk --nodes 3 --makers first --seconds 1", "small --nodes 3 --size 200 --seconds 1 --wait spin"]
    {
        check_deliveries(&run(line));
    }
    let figures = run("latency --nodes 4 --seconds 1 --mtu 8900 --wait spin-then-park --spin 20");
    check_deliveries(&figures);
    let delivered = number(&figures, "/delivered_artifacts");
    assert!((200.0..=400.0).contains(&delivered), "a hundred to three receivers, not {delivered}");
}

#[test]
fn probes_come_beside_bulk() {
    let figures = run("mixed --nodes 3 --size 262144 --probe-size 500 --seconds 2 --mtu 8900");
    check_deliveries(&figures);
    for place in ["/probe_unloaded_us", "/probe_loaded_us", "/probe_quorum_latency_us"] {
        check_latency(&figures, place);
    }
    // A hundred a second, for a third of the time.
    assert!(number(&figures, "/probes") >= 40.0, "{figures}");
    assert_eq!((number(&figures, "/probe_size"), number(&figures, "/probes_lost")), (500.0, 0.0));
    let gbit_s = |part: &str| number(&figures, &format!("/bulk_{part}_gbit_s"));
    assert!(gbit_s("alone") > 0.0 && gbit_s("loaded") == number(&figures, "/goodput_gbit_s"), "{figures}");
    let kept = number(&figures, "/bulk_kept_ratio");
    assert!((kept - gbit_s("loaded") / gbit_s("alone")).abs() < 1e-3 * kept, "{figures}");
    let slower = number(&figures, "/probe_loaded_us/p99") / number(&figures, "/probe_unloaded_us/p99");
    assert!((number(&figures, "/probe_p99_ratio") - slower).abs() < 1e-3 * slower, "{figures}");
}

#[test]
fn every_class_says_what_it_had_of_the_whole() {
    let figures = run("classes --nodes 3 --size 20000 --inflight 32 --seconds 1 --weights 4,3,2,1");
    check_deliveries(&figures);
    let (mut shares, mut gbit_s) = (0.0, 0.0);
    for (class, weight) in [("critical", 0.4), ("high", 0.3), ("normal", 0.2), ("bulk", 0.1)] {
        let figure = |name: &str| number(&figures, &format!("/classes/{class}/{name}"));
        assert_eq!(figure("weight"), weight, "{class}");
        let by_weight = figure("share") / weight;
        assert!((figure("share_by_weight") - by_weight).abs() < 1e-3 * by_weight.max(1.0), "{class}");
        shares += figure("share");
        gbit_s += figure("goodput_gbit_s");
    }
    let all = number(&figures, "/goodput_gbit_s");
    assert!((shares - 1.0).abs() < 1e-3 && (gbit_s - all).abs() < 1e-3 * all, "{figures}");
    check_latency(&figures, "/classes/critical/latency_us");
    assert!(number(&figures, "/cores_busy") > 0.0);
}

#[test]
fn rounds_of_consensus_bring_blocks_shares_and_ingress() {
    let figures = run("consensus --nodes 4 --seconds 2");
    check_deliveries(&figures);
    // Two rounds; what was made right before the end may come after it, and what was right before the begin within. A busy
    // machine measures for longer, and says so.
    for (kind, least, each) in [("block", 1.0, 1.0), ("share", 30.0, 20.0), ("ingress", 1000.0, 1000.0)] {
        let made = number(&figures, &format!("/consensus/{kind}/artifacts"));
        let slowest = number(&figures, &format!("/consensus/{kind}/latency_us/max")) * 1e-6;
        let span = number(&figures, "/seconds") + slowest;
        // Blocks and shares are made at the begin of a round, ingress evenly over it by four nodes.
        let most = if kind == "ingress" { each * span + 4.0 } else { each * (span.floor() + 1.0) };
        assert!((least..=most).contains(&made), "{made} of {kind} in {span} s");
        check_latency(&figures, &format!("/consensus/{kind}/latency_us"));
        check_latency(&figures, &format!("/consensus/{kind}/quorum_latency_us"));
    }
}

#[test]
fn a_receiver_that_stops_loses_nothing_that_is_active() {
    for (how, more) in [("application", ""), ("process", "--mtu 8900"), ("unread", "--lanes 2")] {
        let line = format!("stall --size 100000 --seconds 1 --stall-seconds 1 --stall {how} {more}");
        let figures = run(&line);
        check_deliveries(&figures);
        assert_eq!(figures["stall"]["lost"], 0, "{figures}");
        for place in ["before", "during", "after"] {
            assert!(number(&figures, &format!("/stall/healthy_gbit_s_{place}")) > 0.0, "{figures}");
        }
        assert!(number(&figures, "/stall/aborted_unseen") > 0.0, "it did not stop: {figures}");
        assert_eq!(number(&figures, "/stall/active_at_return"), 64.0, "{figures}");
        check_bound(&figures, "/stall");
        // What was asked for, at most as much as is active on each lane, and no more.
        let unread = figures["stall"]["unread_bytes"].as_u64();
        assert_eq!(unread.is_some(), how == "unread", "{figures}");
        assert!(unread.is_none_or(|unread| (1..20 << 20).contains(&unread)), "{figures}");
        check_parts(&figures, "/stall/latency_us");
        check_p99_ratio(&figures, "/stall/p99_ratio", "/stall/latency_us");
    }
}

/// The most memory is something, and within the bound.
fn check_bound(figures: &Value, place: &str) {
    let [peak, bound] =
        ["peak_rss_bytes", "bound_bytes"].map(|name| number(figures, &format!("{place}/{name}")));
    assert!(peak > 0.0 && peak < bound, "{peak} of {bound}");
}

/// There is a latency of each part of the run.
fn check_parts(figures: &Value, place: &str) {
    for part in ["before", "during", "after"] {
        check_latency(figures, &format!("{place}/{part}"));
    }
}

fn check_p99_ratio(figures: &Value, place: &str, parts: &str) {
    let [before, during] = ["before", "during"].map(|part| number(figures, &format!("{parts}/{part}/p99")));
    let ratio = during / before;
    assert!((number(figures, place) - ratio).abs() < 1e-3 * ratio, "{place}: {figures}");
}

#[test]
fn a_consumer_that_takes_nothing_gets_what_is_active_when_it_goes_on() {
    for held in ["critical", "bulk"] {
        let line = "--nodes 3 --rate 400 --size 20000 --seconds 1 --hold-seconds 2";
        let figures = run(&format!("slow-consumer --held {held} {line}"));
        check_deliveries(&figures);
        let figure = |name: &str| number(&figures, &format!("/slow_consumer/{name}"));
        assert_eq!(figures["slow_consumer"]["held_class"], held);
        assert_eq!((figure("lost"), figure("twice"), figure("active_at_return")), (0.0, 0.0, 256.0));
        assert!(figure("recovered_ms") > 0.0 && figure("aborted_unseen") > 0.0, "{figures}");
        assert!(figure("stale_at_return") <= figure("aborted_unseen"), "{figures}");
        check_bound(&figures, "/slow_consumer");
        check_parts(&figures, "/slow_consumer/same_topic_latency_us");
        for class in ["critical", "high", "normal", "bulk"].into_iter().filter(|class| *class != held) {
            let place = format!("/slow_consumer/others/{class}");
            check_parts(&figures, &place);
            check_p99_ratio(&figures, &format!("{place}/p99_ratio"), &place);
        }
        assert!(figures["slow_consumer"]["others"][held].is_null(), "{figures}");
        assert!(figure("p99_ratio") > 0.0);
    }
}

#[test]
fn a_storm_of_aborts_leaves_nothing_behind() {
    let figures = run("abort-storm --nodes 3 --size 100000 --rate 300 --life-ms 5 --seconds 1");
    let figure = |name: &str| number(&figures, &format!("/abort_storm/{name}"));
    assert!((100.0..=300.0).contains(&figure("pairs")), "{figures}");
    assert!(figure("delivered_everywhere") <= figure("delivered_anywhere"), "{figures}");
    assert!(figure("delivered_anywhere") <= figure("pairs"), "{figures}");
    let delivered = figure("deliveries_before_abort") + figure("deliveries_after_abort");
    assert!(delivered <= 2.0 * figure("pairs") && figure("delivered_anywhere") <= delivered, "{figures}");
    assert!(delivered * 100_000.0 <= figure("maker_sent_bytes"), "{figures}");
    assert!(figure("sent_after_abort_bytes/p50") <= figure("sent_after_abort_bytes/max"), "{figures}");
    assert_eq!(figure("aborted_together"), 16.0);
    assert!(figure("undelivered_bytes_per_pair") <= figure("maker_sent_bytes_per_pair"), "{figures}");
    assert!(figure("may_be_in_flight_bytes") > 0.0);
    // The least table, and two receivers.
    assert_eq!(
        (figure("delivered_at_rest"), figure("fresh"), figure("fresh_deliveries")),
        (0.0, 64.0, 128.0)
    );
    check_bound(&figures, "/abort_storm");
    for name in ["rss_start_bytes", "rss_end_bytes"] {
        assert!(figure(name) > 0.0 && figure(name) <= figure("peak_rss_bytes"), "{figures}");
    }
}

#[test]
fn a_node_that_starts_again_gets_what_is_active_and_nothing_else() {
    let figures = run("rejoin --seconds 1 --away-seconds 1");
    check_deliveries(&figures);
    let [published, active, recovered] = ["published_meanwhile", "still_active", "recovered"]
        .map(|name| number(&figures, &format!("/rejoin/{name}")));
    assert!((90.0..=110.0).contains(&published) && active < published, "{figures}");
    assert_eq!(recovered, active);
    assert_eq!(figures["rejoin"]["aborted_delivered"], 0);
    assert!(number(&figures, "/rejoin/first_ms") <= number(&figures, "/rejoin/last_ms"));
    assert!(number(&figures, "/rejoin/last_after_handshake_ms") <= number(&figures, "/rejoin/last_ms"));
}

#[test]
fn an_idle_subnet_still_says_that_it_is_there() {
    let figures = run("idle --nodes 4 --seconds 2");
    assert_eq!(figures["delivered_artifacts"], 0);
    assert!(number(&figures, "/idle/datagrams_per_s") > 0.0, "{figures}");
    assert!(number(&figures, "/idle/peak_rss_bytes") > 0.0 && number(&figures, "/idle/cpu_percent") >= 0.0);
}

#[test]
fn an_interrupted_run_tells_what_it_measured() {
    let desk = tempfile::tempdir().unwrap();
    for (workload, signal) in [("latency --nodes 3", "-INT"), ("stall --seconds 60", "-TERM")] {
        let mut command = Command::new(LOAD);
        let words = format!("{workload} --json --out out{signal}.json");
        command.args(words.split(' ')).current_dir(desk.path());
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(4));
        let pid = child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(130), "{workload}: {stderr}");
        assert!(stderr.starts_with("corecast-load: interrupted: "), "{stderr}");
        let figures: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(figures["partial"], true);
        check_deliveries(&figures);
        let file = fs::read(desk.path().join(format!("out{signal}.json"))).unwrap();
        assert!(file == output.stdout);
    }
}

fn refuses(folder: &Path, line: &str, code: i32, with: &str) {
    refused(&tool(LOAD, folder, line), "corecast-load", line, code, with);
}

#[test]
fn bad_input_gets_one_line() {
    let desk = tempfile::tempdir().unwrap();
    for (line, with) in [
        ("bulky", "unrecognized subcommand 'bulky'; a similar subcommand exists: 'bulk'"),
        ("sim --scenario nonsense", "possible values: late-joiner, "),
        ("bulk --nodes 0", "0 is not in 2..=128"),
        ("idle --nodes 129", "129 is not in 2..=128"),
        ("stall --nodes 2", "3 --nodes or more"),
        ("bulk --size 3", "3 is not in 16..=67108864"),
        ("small --size 67108865", "67108865 is not in 16..=67108864"),
        ("mixed --size 1e9", "invalid digit"),
        ("latency --rate 0", "0 is not in 1..=1000000"),
        ("mixed --rate 0", "0 is not in 1..="),
        ("classes --weights 4,3,2", "write one for each class, the most urgent first, as in 40,28,20,12"),
        ("slow-consumer --held urgent", "possible values: critical, high, normal, bulk"),
        ("slow-consumer --hold-seconds 0", "0 is not in 1..=3600"),
        ("abort-storm --rate 0", "0 is not in 1..=100000"),
        ("abort-storm --life-ms 10001", "10001 is not in 0..=10000"),
        ("abort-storm --life-ms 10000", "lower --rate, --life-ms or --size"),
        ("classes --size 15", "15 is not in 16..=67108864"),
        ("mixed --probe-size 15", "15 is not in 16..=67108864"),
        ("rejoin --rate 0", "0 is not in 1..="),
        ("bulk --seconds 0", "0 is not in 1..=86400"),
        ("idle --seconds 0", "0 is not in 1..=86400"),
        ("stall --stall-seconds 0", "0 is not in 1..=3600"),
        ("rejoin --away-seconds 0", "0 is not in 1..=3600"),
        ("stall --stall kernel", "possible values: application, process, unread"),
        ("consensus --mtu 9001", "9001 is not in 1200..=9000"),
        ("bulk --wait sleep", "possible values: park, spin-then-park, spin"),
        ("bulk --wait park --spin 5", "--spin is for --wait spin-then-park"),
        ("small --nodes 128 --lanes 256", "one process may have 512"),
        ("rejoin --rate 100000 --seconds 3600", "lower --rate, --size or --seconds"),
    ] {
        refuses(desk.path(), line, 64, with);
    }
}

#[test]
fn options_of_another_workload_are_refused() {
    let desk = tempfile::tempdir().unwrap();
    for (workload, option) in [
        ("bulk", "--rate 5"),
        ("small", "--stall process"),
        ("latency", "--inflight 5"),
        ("mixed", "--makers first"),
        ("classes", "--rate 5"),
        ("consensus", "--size 100"),
        ("consensus", "--inflight 2"),
        ("stall", "--away-seconds 3"),
        ("slow-consumer", "--stall process"),
        ("abort-storm", "--inflight 3"),
        ("rejoin", "--stall-seconds 3"),
        ("idle", "--size 100"),
        ("idle", "--rate 1"),
    ] {
        let name = option.split(' ').next().unwrap();
        let with = format!("unexpected argument '{name}' found");
        refuses(desk.path(), &format!("{workload} {option}"), 64, &with);
        let with = format!("`corecast-load {workload} --help` says what is allowed");
        refuses(desk.path(), &format!("{workload} {option}"), 64, &with);
    }
}

#[test]
fn an_output_that_cannot_be_written_is_known_before_the_run() {
    let desk = tempfile::tempdir().unwrap();
    // Runs of an hour, were they to begin.
    for workload in [
        "bulk",
        "mixed",
        "classes",
        "consensus",
        "stall",
        "slow-consumer",
        "abort-storm",
        "rejoin --rate 1",
        "idle",
    ] {
        let line = format!("{workload} --seconds 3600 --out missing/figures.json");
        refuses(desk.path(), &line, 73, "missing/figures.json: cannot be written: No such file");
    }
    refuses(desk.path(), "bulk --seconds 3600 --out .", 73, ".: cannot be written: Is a directory");
    fs::write(desk.path().join("old"), "what was there").unwrap();
    for name in ["old", "new"] {
        refuses(desk.path(), &format!("bulk --nodes 100 --lanes 100 --out {name}"), 64, "512");
    }
    assert_eq!(fs::read_to_string(desk.path().join("old")).unwrap(), "what was there");
    assert!(!desk.path().join("new").exists());
}

#[test]
fn help_names_every_workload() {
    let desk = tempfile::tempdir().unwrap();
    let help = String::from_utf8(tool(LOAD, desk.path(), "--help").stdout).unwrap();
    for workload in [
        "bulk",
        "small",
        "latency",
        "mixed",
        "classes",
        "consensus",
        "stall",
        "slow-consumer",
        "abort-storm",
        "rejoin",
        "idle",
        "sim",
    ] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(workload)), "{workload} in {help}");
    }
    assert!(!help.contains("receivers"));
}

#[test]
fn simulated_seeds_end_with_one_line() {
    let desk = tempfile::tempdir().unwrap();
    for line in ["sim --seeds 3 --first-seed 7", "sim --seeds 3 --scenario maker-dies"] {
        let output = tool(LOAD, desk.path(), line);
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(0), "{line}: {text}");
        let summary = text.lines().last().unwrap();
        assert!(summary.starts_with("sim: 3 seeds, ") && summary.ends_with(", 0 failures"), "{summary}");
    }
}
