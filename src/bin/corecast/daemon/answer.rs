//! What the admin endpoint answers.

use std::fmt::Write;
use std::time::Duration;

use corecast::types::ArtifactId;
use corecast::{Class, Node, StageTime, StageTimes, Trace};
use serde_json::{Map, Value, json};

/// The answer to a question.
pub(crate) fn to(node: &Node, question: &str) -> Value {
    let mut words = question.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("stats"), None, _) => stats(node),
        (Some("stages"), None, _) => stages(&node.stages()),
        (Some("trace"), Some(id), None) => match id.parse::<ArtifactId>() {
            Ok(id) => match node.trace(&id) {
                Ok(traces) => self::traces(&id, &traces),
                Err(problem) => error(&problem.to_string()),
            },
            Err(problem) => error(&format!("{id:?} is no artifact's id: {problem}")),
        },
        _ => error("ask `stats`, `stages` or `trace ID`"),
    }
}

/// An answer that says what is wrong.
pub(crate) fn error(problem: &str) -> Value {
    json!({ "error": problem })
}

fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

fn object(entries: impl Iterator<Item = (&'static str, u64)>) -> Map<String, Value> {
    entries.map(|(name, count)| (name.to_owned(), count.into())).collect()
}

fn stats(node: &Node) -> Value {
    let stats = node.stats();
    let (mut text, mut topics) = (String::new(), Vec::new());
    let connected = stats.connected_peers;
    let peers = node.membership().members().len().saturating_sub(1);
    let health = if node.is_healthy() { "healthy" } else { "a lane has failed" };
    // Writing to a string does not fail.
    write!(text, "node {}: {health}, {connected} of {peers} peers connected", node.id()).ok();
    for topic in node.topics() {
        write!(text, "\ntopic {} ({}, {})", topic.name, topic.id, topic.class).ok();
        for (name, count) in topic.stats.entries() {
            write!(text, "\n  {name:<20}{count:>16}").ok();
        }
        let mut figures = object(topic.stats.entries());
        figures.insert("topic".to_owned(), topic.id.0.into());
        figures.insert("name".to_owned(), topic.name.into());
        figures.insert("class".to_owned(), topic.class.to_string().into());
        figures.insert("stages".to_owned(), rows(&topic.stages));
        topics.push(Value::Object(figures));
    }
    write!(text, "\n{}", node.stages()).ok();
    let sums = node.class_stats();
    let class = |class: Class| (class.to_string(), Value::Object(object(sums[class].entries())));
    let classes: Map<String, Value> = Class::ALL.into_iter().map(class).collect();
    json!({
        "node": node.id().to_string(),
        "healthy": node.is_healthy(),
        "connected_peers": connected,
        "peers": peers,
        "topics": topics,
        "classes": classes,
        "engine": object(stats.engine.entries()),
        "traffic": object(stats.quic.traffic.entries()),
        "text": text,
    })
}

fn stages(times: &StageTimes) -> Value {
    json!({ "stages": rows(times), "text": times.to_string() })
}

fn rows(times: &StageTimes) -> Value {
    let measured = times.rows().iter().filter(|time| time.count > 0);
    let row = |time: &StageTime| {
        json!({
            "class": time.class.to_string(),
            "stage": time.stage.name(),
            "count": time.count,
            "p50_us": micros(time.p50),
            "p99_us": micros(time.p99),
            "max_us": micros(time.max),
        })
    };
    measured.map(row).collect()
}

fn traces(id: &ArtifactId, traces: &[Trace]) -> Value {
    let text = match traces {
        [] => format!("{id}: nothing is known or remembered of it here"),
        known => known.iter().map(Trace::to_string).collect::<Vec<_>>().join("\n"),
    };
    json!({ "traces": traces.iter().map(trace).collect::<Vec<_>>(), "text": text })
}

fn trace(trace: &Trace) -> Value {
    let peers = trace.peers.iter().map(|peer| {
        json!({
            "peer": peer.peer.to_string(),
            "connected": peer.connected,
            "told": peer.told,
            "sending": peer.sending,
            "acknowledged": peer.acknowledged,
            "refused": peer.refused,
            "advertises": peer.advertises,
        })
    });
    let events = trace.events.iter().map(|event| {
        let peer = event.peer.map(|peer| peer.to_string());
        json!({ "ago_us": micros(event.ago), "what": event.what.name(), "peer": peer })
    });
    json!({
        "id": trace.id.to_string(),
        "topic": trace.topic.0,
        "lane": trace.lane,
        "state": trace.state.map(|state| state.to_string()),
        "since_us": trace.since.map(micros),
        "size": trace.size,
        "slot": trace.slot,
        "peers": peers.collect::<Vec<_>>(),
        "events": events.collect::<Vec<_>>(),
        "forgotten_before_us": trace.forgotten.map(micros),
    })
}
