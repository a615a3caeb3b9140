//! rejoin: a node ends, is away while the others make artifacts that stay active, and starts again with its key.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use corecast::Node;
use corecast::config::TopicConfig;
use corecast::types::{Class, TopicId};
use corecast::wire::MAX_SLOTS;
use serde_json::{Value, json};

use crate::board::{Board, Delivery};
use crate::options::Rejoin;
use crate::report::{Figures, Output, Report, digits};
use crate::subnet::counters::Counters;
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::Outcome;
use crate::subnet::listen::Listener;
use crate::subnet::loopback::{self, Group, Plan};
use crate::subnet::port::{Arrival, Feed, Host, Port, Refusal};
use crate::subnet::real::{Nodes, Started, counters};
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::{self, Used};
use crate::workload::SHUTDOWN;

/// Seconds before the node ends and after it starts again, when nothing else is said.
const SECONDS: u64 = 5;
/// How long it may take to get everything, after the last artifact was made.
const GRACE: Duration = Duration::from_secs(10);
/// While the node is away, every so many artifacts one is aborted, which it must not get.
const ABORT_EVERY: usize = 10;
/// Bytes of all artifacts that stay active.
const MAX_BYTES: u64 = 4 << 30;

pub(crate) fn run(options: &Rejoin) -> Result<(), Fault> {
    let run = &options.run;
    let plan = plan(options)?;
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    let (group, started) = loopback::start_group(&plan)?;
    system::run_promptly();
    let (used, begin) = (Used::now()?, Instant::now());
    let mut drill = Drill::new(options, group, started, stop.clone())?;
    let (before, away) = (run.measure(SECONDS), Duration::from_secs(options.away_seconds));
    drill.go_on(begin + before)?;
    drill.end_node();
    drill.go_on(begin + before + away)?;
    if !stop.is_set() {
        drill.start_node()?;
        drill.go_on(begin + before + away + before)?;
    }
    let (used, seconds) = (Used::now()?.since(&used), begin.elapsed().as_secs_f64());
    drill.settle();
    let peak_rss_bytes = resident::peak_rss_bytes();
    let (figures, outcome) = drill.conclude(seconds)?;
    let mut report = Report::new(&Figures {
        workload: "rejoin",
        nodes: plan.nodes,
        run,
        size: options.size as usize,
        outcome: &outcome,
        measured: &outcome.kinds[0],
        used,
        peak_rss_bytes,
    });
    for (name, key) in [
        ("made while it was away", "published_meanwhile"),
        ("of these still active", "still_active"),
        ("of these it got", "recovered"),
        ("ms to its first connection", "handshake_ms"),
        ("ms to all of its connections", "connected_ms"),
        ("ms to the first of these artifacts", "first_ms"),
        ("ms to the last", "last_ms"),
        ("ms to the last after first connection", "last_after_handshake_ms"),
    ] {
        report.row(name, figures[key].to_string());
    }
    report.add("rejoin", figures);
    output.conclude(&report, &outcome)
}

fn plan(options: &Rejoin) -> Result<Plan, Fault> {
    let run = &options.run;
    let mut plan = run.plan(run.nodes(4))?;
    let seconds = 2 * run.measure(SECONDS).as_secs() + options.away_seconds;
    let artifacts = seconds.saturating_mul(u64::from(options.rate));
    let each = artifacts / u64::from(plan.nodes - 1) + 2;
    let bytes = artifacts.saturating_mul(u64::from(options.size));
    if each > u64::from(MAX_SLOTS) || bytes > MAX_BYTES {
        let problem = format!(
            "{artifacts} artifacts stay active, {each} of each node and {bytes} bytes in all; a node holds \
             {MAX_SLOTS}, and {MAX_BYTES} bytes are allowed: lower --rate, --size or --seconds"
        );
        return Err(Fault::new(Exit::Usage, problem));
    }
    plan.settings.artifact_bytes = plan.settings.artifact_bytes.max(options.size);
    let mut topic = TopicConfig::new(TopicId(1), "rejoin").class(Class::Normal);
    topic.slots = topic.slots.max(each as u32);
    topic.active_bytes = topic.active_bytes.max(each * u64::from(options.size));
    plan.topics.push(topic);
    Ok(plan)
}

/// What the node's return brought, in time from its start.
#[derive(Debug, Default)]
struct Return {
    start: Option<Instant>,
    /// As the node's counters tell it, up to 5 ms late.
    handshake: Option<Duration>,
    connected: Option<Duration>,
    first: Option<Duration>,
    last: Option<Duration>,
    recovered: u64,
}

struct Drill {
    group: Group,
    nodes: Vec<Option<Node>>,
    ports: Vec<Vec<Arc<dyn Port>>>,
    feeds: Vec<Vec<Box<dyn Feed>>>,
    ending: Option<JoinHandle<bool>>,
    /// Counted by the node that ended.
    gone: Counters,
    at_begin: Counters,
    board: Board,
    listener: Listener,
    stop: Stop,
    due: Instant,
    every: Duration,
    /// Numbers of the artifacts that were made while the node was away.
    meanwhile: std::ops::Range<usize>,
    away: bool,
    back: Return,
}

impl Drill {
    fn new(options: &Rejoin, group: Group, started: Vec<Started>, stop: Stop) -> Result<Drill, Fault> {
        let mut drill = Drill {
            group,
            nodes: Vec::new(),
            ports: Vec::new(),
            feeds: Vec::new(),
            ending: None,
            gone: Counters::default(),
            at_begin: Counters::default(),
            board: Board::new(started.len(), options.size as usize)?,
            listener: Listener::new(),
            stop,
            due: Instant::now(),
            every: Duration::from_secs_f64(1.0 / f64::from(options.rate)),
            meanwhile: 0..0,
            away: false,
            back: Return::default(),
        };
        for Started { node, ports, feeds } in started {
            drill.nodes.push(Some(node));
            drill.ports.push(ports);
            drill.feeds.push(feeds);
        }
        drill.at_begin = drill.counters();
        Ok(drill)
    }

    /// The one that comes and goes; all others make artifacts, in turn.
    fn leaver(&self) -> usize {
        self.nodes.len() - 1
    }

    fn counters(&self) -> Counters {
        let mut sum = counters(self.nodes.iter().flatten());
        sum.add(&self.gone);
        sum
    }

    /// Makes and takes until then.
    fn go_on(&mut self, until: Instant) -> Result<(), Fault> {
        while Instant::now() < until && !self.stop.is_set() {
            while self.due <= Instant::now() && self.due < until {
                self.make()?;
            }
            self.take(until.min(self.due));
        }
        Ok(())
    }

    fn make(&mut self) -> Result<(), Fault> {
        let number = self.board.next();
        let maker = number % self.leaver();
        match self.ports[maker][0].broadcast(self.board.body()) {
            Ok(id) => self.board.add(maker, id, self.due),
            // A queue of commands; its table has room for all.
            Err(Refusal::Wait) => {
                std::thread::sleep(Duration::from_micros(50));
                return Ok(());
            }
            Err(Refusal::TooLarge | Refusal::Stopped) => {
                return Err(Fault::new(Exit::Software, "a node has stopped by itself"));
            }
        }
        self.board.count_late(self.due.elapsed());
        self.due += self.every;
        if self.away {
            self.meanwhile.end = number + 1;
            if number.is_multiple_of(ABORT_EVERY) && number >= self.meanwhile.start + ABORT_EVERY {
                let entry = self.board.entry_mut(number - ABORT_EVERY);
                entry.active = false;
                self.ports[entry.maker][0].abort(&entry.id);
            }
        }
        Ok(())
    }

    /// Takes what has arrived; waits a little when nothing has.
    fn take(&mut self, until: Instant) {
        self.watch_connections();
        // The counters say without a wake-up that a connection stands.
        let waits = self.back.start.is_some() && self.back.connected.is_none();
        let longest = Duration::from_micros(if waits { 200 } else { 20_000 });
        let Some((node, topic, arrival)) = self.listener.next(&mut self.feeds, until, longest) else {
            return;
        };
        self.arrived(node, topic, arrival);
        for node in 0..self.feeds.len() {
            for topic in 0..self.feeds[node].len() {
                while let Some(arrival) = self.feeds[node][topic].try_next() {
                    self.arrived(node, topic, arrival);
                }
            }
        }
    }

    fn arrived(&mut self, node: usize, topic: usize, arrival: Arrival) {
        let Arrival::Delivered { id, bytes } = arrival else { return };
        let at = Instant::now();
        self.ports[node][topic].release(&id);
        let number = Board::number(&bytes);
        let due = self.board.deliver(node, number, at) == Delivery::Due;
        if due && node == self.leaver() && number.is_some_and(|number| self.meanwhile.contains(&number)) {
            let took = self.back.start.map(|start| at - start);
            self.back.recovered += 1;
            self.back.first = self.back.first.or(took);
            self.back.last = took;
        }
    }

    fn watch_connections(&mut self) {
        let (Some(start), None) = (self.back.start, self.back.connected) else { return };
        let others = self.leaver();
        let connected = self.nodes[others].as_ref().map_or(0, |node| node.stats().connected_peers);
        let took = start.elapsed();
        if connected > 0 {
            self.back.handshake.get_or_insert(took);
        }
        if connected == others {
            self.back.connected = Some(took);
        }
    }

    fn end_node(&mut self) {
        let leaver = self.leaver();
        self.ports[leaver].clear();
        self.feeds[leaver].clear();
        let Some(node) = self.nodes[leaver].take() else { return };
        self.gone = counters([&node]);
        self.ending = Some(std::thread::spawn(move || node.shutdown(SHUTDOWN)));
        self.board.counted &= !(1 << leaver);
        self.meanwhile = self.board.next()..self.board.next();
        self.away = true;
    }

    fn start_node(&mut self) -> Result<(), Fault> {
        let leaver = self.leaver();
        let ended = self.ending.take().map(JoinHandle::join);
        if !matches!(ended, Some(Ok(true))) {
            return Err(Fault::new(Exit::Software, "the node did not end in time"));
        }
        self.board.forget(leaver);
        self.away = false;
        self.back.start = Some(Instant::now());
        let Started { node, ports, feeds } = self.group.start(leaver)?;
        (self.nodes[leaver], self.ports[leaver], self.feeds[leaver]) = (Some(node), ports, feeds);
        self.board.counted |= 1 << leaver;
        Ok(())
    }

    /// Waits for what is active and has not come everywhere.
    fn settle(&mut self) {
        let leaver = self.leaver();
        if self.nodes[leaver].is_none() {
            // Interrupted while it was away: nothing is waited for there.
            for number in 0..self.board.next() {
                self.board.entry_mut(number).missing &= !(1 << leaver);
            }
        }
        let until = Instant::now() + GRACE;
        while self.board.lost() > 0 && Instant::now() < until {
            self.take(until);
        }
    }

    fn conclude(mut self, seconds: f64) -> Result<(Value, Outcome), Fault> {
        let counters = self.counters().since(&self.at_begin);
        self.board.flaws.lost = self.board.lost();
        let still_active = self.meanwhile.clone().filter(|number| self.board.entry(*number).active).count();
        let ms = |time: Option<Duration>| time.map(|time| digits(time.as_secs_f64() * 1e3));
        let back = &self.back;
        let after_handshake = back.last.zip(back.handshake).map(|(last, first)| last.saturating_sub(first));
        let figures = json!({
            "published_meanwhile": self.meanwhile.len(),
            "still_active": still_active,
            "recovered": back.recovered,
            "handshake_ms": ms(back.handshake),
            "connected_ms": ms(back.connected),
            "first_ms": ms(back.first),
            "last_ms": ms(back.last),
            "last_after_handshake_ms": ms(after_handshake),
            "aborted_delivered": self.board.flaws.revived,
        });
        let outcome = Outcome {
            seconds,
            kinds: vec![self.board.measured],
            counters,
            flaws: self.board.flaws,
            again: 0,
            forestalled: 0,
            partial: self.stop.is_set(),
            peak: None,
        };
        drop((self.ports, self.feeds));
        let nodes: Vec<Node> = self.nodes.into_iter().flatten().collect();
        Box::new(Nodes(nodes)).shutdown(SHUTDOWN)?;
        Ok((figures, outcome))
    }
}
