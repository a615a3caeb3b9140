//! abort-storm: artifacts that are aborted milliseconds after they were made, at fixed times; what of them is sent all the same,
//! and what is left when it is over.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use corecast::config::{Limits, TopicConfig};
use corecast::types::{Class, TopicId};
use corecast::wire::MAX_SLOTS;
use corecast::{Node, Stats};
use serde_json::{Value, json};

use crate::board::{Board, Delivery};
use crate::intake::{Intake, Taken};
use crate::options::AbortStorm;
use crate::report::{Figures, Output, Report, digits, mib};
use crate::subnet::counters::{Counters, ratio};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::Outcome;
use crate::subnet::inline::Inline;
use crate::subnet::loopback::{self, Plan};
use crate::subnet::port::{Host, Refusal};
use crate::subnet::real::{Nodes, counters};
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::{self, Used};
use crate::workload::{GRACE, SECONDS, SHUTDOWN};

/// After the last abort, when everything must have come to rest.
const SETTLE: Duration = Duration::from_secs(1);
/// Times that all artifacts are aborted together.
const GUSTS: usize = 20;
/// After each, until nothing more is sent.
const LULL: Duration = Duration::from_millis(50);
/// How long nothing may come from then on.
const QUIET: Duration = Duration::from_millis(500);
/// Artifacts that fit the table at least, and times as many as are active at a time: an aborted one leaves its place a moment
/// later.
const LEAST_SLOTS: u64 = 64;
const SPARE: u64 = 4;
/// Bytes of a whole table.
const MAX_BYTES: u64 = 1 << 30;

pub(crate) fn run(options: &AbortStorm) -> Result<(), Fault> {
    let run = &options.run;
    let plan = plan(options)?;
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    let (_group, started) = loopback::start_group(&plan)?;
    system::run_promptly();
    let (nodes, intake) = Intake::new(started);
    let mut storm = Storm::new(options, &plan, nodes, intake, stop)?;
    let rss_start_bytes = resident::rss_bytes();
    let (used, begin) = (Used::now()?, Instant::now());
    storm.rage(run.measure(SECONDS))?;
    let (used, seconds) = (Used::now()?.since(&used), begin.elapsed().as_secs_f64());
    let gusts = storm.gusts()?;
    let rest = storm.rest(gusts)?;
    storm.conclude(options, output, seconds, used, rss_start_bytes, &rest)
}

fn plan(options: &AbortStorm) -> Result<Plan, Fault> {
    let run = &options.run;
    let mut plan = Plan { inline: Inline::all(!run.queued), ..run.plan(run.nodes(4))? };
    let at_a_time = u64::from(options.rate) * (options.life_ms + 1) / 1000 + 1;
    let slots = (SPARE * at_a_time).max(LEAST_SLOTS);
    let bytes = slots * u64::from(options.size);
    if slots > u64::from(MAX_SLOTS) || bytes > MAX_BYTES {
        let problem = format!(
            "a table for {at_a_time} artifacts at a time has {slots} places and {bytes} bytes; {MAX_SLOTS} and \
             {MAX_BYTES} are allowed: lower --rate, --life-ms or --size"
        );
        return Err(Fault::new(Exit::Usage, problem));
    }
    plan.settings.artifact_bytes = options.size.max(64 << 10);
    let mut topic = TopicConfig::new(TopicId(1), "storm").class(Class::Bulk);
    topic.slots = slots as u32;
    topic.active_bytes = bytes.max(plan.settings.artifact_bytes.into());
    topic.pending_bytes = topic.active_bytes;
    plan.topics.push(topic);
    Ok(plan)
}

/// An artifact that is active.
struct Live {
    number: usize,
    ends: Instant,
    body: Bytes,
}

/// What became of the artifacts.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    /// Broadcast and aborted.
    pairs: u64,
    /// The table was full, or a queue: tried again.
    full: u64,
    /// At least one receiver had it before its abort; all had.
    reached: [u64; 2],
    /// Deliveries before the abort, and after it.
    deliveries: [u64; 2],
}

/// What was found after the storm.
struct Rest {
    /// Artifacts that were aborted together, and bytes that the maker sent after that, each time, in order of size.
    gusts: (u64, Vec<u64>),
    /// The most that was resident by then, and what was.
    peak_rss_bytes: u64,
    rss_bytes: u64,
    /// Artifacts that fill the table once more, and what of them was delivered.
    fresh: u64,
    fresh_deliveries: u64,
}

struct Storm {
    nodes: Vec<Node>,
    intake: Intake,
    board: Board,
    stop: Stop,
    /// Places of the table.
    slots: usize,
    every: Duration,
    life: Duration,
    live: VecDeque<Live>,
    spare: VecDeque<Bytes>,
    tally: Tally,
    at_begin: (Stats, Counters),
    /// When the last artifact of the storm was aborted.
    at_end: (Stats, Counters),
}

impl Storm {
    fn new(
        options: &AbortStorm,
        plan: &Plan,
        nodes: Vec<Node>,
        intake: Intake,
        stop: Stop,
    ) -> Result<Storm, Fault> {
        Ok(Storm {
            board: Board::new(nodes.len(), options.size as usize)?,
            at_begin: (nodes[0].stats(), counters(&nodes)),
            at_end: Default::default(),
            nodes,
            intake,
            stop,
            slots: plan.topics[0].slots as usize,
            every: Duration::from_secs_f64(1.0 / f64::from(options.rate)),
            life: Duration::from_millis(options.life_ms),
            live: VecDeque::new(),
            spare: VecDeque::new(),
            tally: Tally::default(),
        })
    }

    /// Pairs of broadcast and abort for this long.
    fn rage(&mut self, time: Duration) -> Result<(), Fault> {
        let mut due = Instant::now();
        let until = due + time;
        while Instant::now() < until && !self.stop.is_set() {
            let mut wait = Duration::from_millis(20);
            while due <= Instant::now() && due < until {
                if !self.make(due)? {
                    wait = Duration::from_micros(100);
                    break;
                }
                due += self.every;
                self.abort_due(Instant::now());
            }
            let next = self.live.front().map_or(due, |live| live.ends.min(due));
            self.take(next.min(until), wait);
            self.abort_due(Instant::now());
        }
        while let Some(ends) = self.live.front().map(|live| live.ends) {
            self.take(ends, Duration::from_millis(20));
            self.abort_due(Instant::now());
        }
        Ok(())
    }

    /// As many artifacts as are active at a time, made together and aborted together, again and again: how many there are, and
    /// what the maker sent each time after it was told to abort. Its counters are read when they were just published.
    fn gusts(&mut self) -> Result<(u64, Vec<u64>), Fault> {
        self.take_until(Instant::now() + LULL, |_| false);
        self.at_end = (self.nodes[0].stats(), counters(&self.nodes));
        let (together, mut sent_after) = (self.slots / SPARE as usize, Vec::new());
        let tally = self.tally;
        self.board.begin_phase()?;
        for _ in 0..GUSTS {
            for _ in 0..together {
                self.make(Instant::now())?;
            }
            self.take_until(Instant::now() + self.life, |_| false);
            let at_abort = self.just_published();
            self.abort_due(Instant::now() + self.life);
            self.take_until(Instant::now() + LULL, |_| false);
            let at_rest = self.nodes[0].stats();
            sent_after.push(at_rest.quic.traffic.bytes_out - at_abort.quic.traffic.bytes_out);
        }
        self.tally = tally;
        sent_after.sort_unstable();
        Ok((together as u64, sent_after))
    }

    /// The maker's figures, published a moment ago; a busy lane publishes them every 5 ms, an idle one has none to publish.
    fn just_published(&self) -> Stats {
        let (before, until) = (self.nodes[0].stats(), Instant::now() + LULL);
        loop {
            let stats = self.nodes[0].stats();
            if stats.turns != before.turns || Instant::now() >= until {
                return stats;
            }
            std::hint::spin_loop();
        }
    }

    /// `false` when the node has no room now.
    fn make(&mut self, due: Instant) -> Result<bool, Fault> {
        let (number, body) = (self.board.next(), self.board.body_from(&mut self.spare));
        match self.intake.ports[0][0].broadcast(body.clone()) {
            Ok(id) => self.board.add(0, id, due),
            Err(Refusal::Wait) => {
                self.tally.full += 1;
                self.spare.push_back(body);
                return Ok(false);
            }
            Err(Refusal::TooLarge | Refusal::Stopped) => {
                return Err(Fault::new(Exit::Software, "the maker has stopped by itself"));
            }
        }
        self.board.count_late(due.elapsed());
        self.live.push_back(Live { number, ends: Instant::now() + self.life, body });
        Ok(true)
    }

    /// Takes what has come; waits for something.
    fn take(&mut self, until: Instant, longest: Duration) {
        let mut next = self.intake.next(until, longest);
        while let Some(Taken { node, number, at, .. }) = next {
            match self.board.deliver(node, number, at) {
                Delivery::Due => self.tally.deliveries[0] += 1,
                Delivery::Late => self.tally.deliveries[1] += 1,
                Delivery::Flaw => {}
            }
            next = self.intake.next(at, Duration::ZERO);
        }
    }

    fn abort_due(&mut self, now: Instant) {
        let receivers = self.nodes.len() as u32 - 1;
        while self.live.front().is_some_and(|live| live.ends <= now) {
            // What came before the abort counts as such.
            self.take(now, Duration::ZERO);
            let Some(live) = self.live.pop_front() else { return };
            let entry = self.board.entry_mut(live.number);
            entry.active = false;
            self.intake.ports[0][0].abort(&entry.id);
            let missing = entry.missing.count_ones();
            self.tally.pairs += 1;
            self.tally.reached[0] += u64::from(missing < receivers);
            self.tally.reached[1] += u64::from(missing == 0);
            self.spare.push_back(live.body);
        }
    }

    /// Waits until all is at rest; then nothing may come, and a whole table of new artifacts must.
    fn rest(&mut self, gusts: (u64, Vec<u64>)) -> Result<Rest, Fault> {
        self.take_until(Instant::now() + SETTLE, |_| false);
        for number in 0..self.board.next() {
            self.board.entry_mut(number).missing = 0;
        }
        self.take_until(Instant::now() + QUIET, |_| false);
        let rss_bytes = resident::rss_bytes();
        // The kernel's own figures may disagree by a little.
        let peak_rss_bytes = resident::peak_rss_bytes().max(rss_bytes);
        let delivered = self.tally.deliveries[0];
        self.board.begin_phase()?;
        let first = self.board.next();
        for _ in 0..self.slots {
            if !self.make(Instant::now())? {
                let (made, slots) = (self.board.next() - first, self.slots);
                let problem = format!("at rest the table should take {slots} artifacts; it took {made}");
                return Err(Fault::new(Exit::Software, problem));
            }
        }
        self.live.clear();
        self.take_until(Instant::now() + GRACE, |board| board.lost() == 0);
        self.board.flaws.lost = self.board.lost();
        Ok(Rest {
            gusts,
            peak_rss_bytes,
            rss_bytes,
            fresh: (self.board.next() - first) as u64,
            fresh_deliveries: self.tally.deliveries[0] - delivered,
        })
    }

    fn take_until(&mut self, until: Instant, done: impl Fn(&Board) -> bool) {
        while Instant::now() < until && !done(&self.board) {
            self.take(until, Duration::from_millis(20));
        }
    }

    fn conclude(
        self,
        options: &AbortStorm,
        output: Output,
        seconds: f64,
        used: Used,
        rss_start_bytes: u64,
        rest: &Rest,
    ) -> Result<(), Fault> {
        let limits: Vec<Limits> = self.nodes.iter().map(Node::limits).collect();
        let peak_rss_bytes = rest.peak_rss_bytes;
        let (partial, nodes) = (self.stop.is_set(), self.nodes.len() as u16);
        let mut figures = self.figures(options, seconds, rest, &limits);
        let counters = self.at_end.1.since(&self.at_begin.1);
        let Storm { nodes: running, intake, board, tally, .. } = self;
        drop(intake);
        Box::new(Nodes(running)).shutdown(SHUTDOWN)?;
        let outcome = Outcome {
            seconds,
            kinds: vec![board.phase(0).clone()],
            counters,
            flaws: board.flaws,
            again: 0,
            forestalled: tally.pairs - tally.reached[1],
            partial,
            peak: None,
        };
        let mut report = Report::new(&Figures {
            workload: "abort-storm",
            nodes,
            run: &options.run,
            size: options.size as usize,
            outcome: &outcome,
            measured: &outcome.kinds[0],
            used,
            peak_rss_bytes,
        });
        let bound_bytes: u64 = limits.iter().map(Limits::total_bytes).sum();
        for (name, bytes) in [
            ("rss_start_bytes", rss_start_bytes),
            ("peak_rss_bytes", peak_rss_bytes),
            ("rss_end_bytes", rest.rss_bytes),
            ("bound_bytes", bound_bytes),
        ] {
            figures[name] = bytes.into();
        }
        tell(&figures, &mut report);
        let told = [rss_start_bytes, peak_rss_bytes, rest.rss_bytes, bound_bytes].map(mib);
        let [start, peak, end, bound] = &told;
        report.row("memory", format!("{start} before, {peak} at most, {end} after, bound {bound}"));
        report.add("abort_storm", figures);
        output.conclude(&report, &outcome)
    }

    fn figures(&self, options: &AbortStorm, seconds: f64, rest: &Rest, limits: &[Limits]) -> Value {
        let tally = &self.tally;
        let (before, after) = (&self.at_begin.0, &self.at_end.0);
        let (together, sent_after) = &rest.gusts;
        let most = sent_after.last().copied().unwrap_or(0);
        let sent = |stats: &Stats| stats.quic.traffic.bytes_out;
        let pairs = tally.pairs as f64;
        let deliveries = tally.deliveries[0] + tally.deliveries[1] - rest.fresh_deliveries;
        let delivered_bytes = deliveries * u64::from(options.size);
        let sent_bytes = sent(after) - sent(before);
        let may_fly = limits.first().map_or(0, |limits| {
            (limits.send_window + limits.urgent_reserve) * limits.peers as u64 * u64::from(limits.lanes)
        });
        json!({
            "life_ms": options.life_ms,
            "pairs": tally.pairs,
            "pairs_per_s": digits(ratio(pairs, seconds)),
            "waited_for_room": tally.full,
            "delivered_anywhere": tally.reached[0],
            "delivered_everywhere": tally.reached[1],
            "deliveries_before_abort": tally.deliveries[0] - rest.fresh_deliveries,
            "deliveries_after_abort": tally.deliveries[1],
            "maker_sent_bytes": sent_bytes,
            "maker_sent_bytes_per_pair": digits(ratio(sent_bytes as f64, pairs)),
            "undelivered_bytes_per_pair":
                digits(ratio(sent_bytes.saturating_sub(delivered_bytes) as f64, pairs)),
            "aborted_together": together,
            "sent_after_abort_bytes": { "p50": sent_after[sent_after.len() / 2], "max": most },
            "sent_after_abort_bytes_per_artifact": digits(ratio(most as f64, *together as f64)),
            "may_be_in_flight_bytes": may_fly,
            "streams_reset": after.engine.resets_sent - before.engine.resets_sent,
            "delivered_at_rest": self.board.flaws.revived,
            "fresh": rest.fresh,
            "fresh_deliveries": rest.fresh_deliveries,
        })
    }
}

fn tell(figures: &Value, report: &mut Report) {
    for (name, key) in [
        ("pairs of broadcast and abort", "pairs"),
        ("per second", "pairs_per_s"),
        ("of these delivered anywhere before", "delivered_anywhere"),
        ("to all before", "delivered_everywhere"),
        ("deliveries after the abort", "deliveries_after_abort"),
        ("bytes that the maker sent for each", "maker_sent_bytes_per_pair"),
        ("of these not delivered", "undelivered_bytes_per_pair"),
        ("artifacts aborted together, again", "aborted_together"),
        ("bytes sent after these were aborted", "sent_after_abort_bytes"),
        ("at most, for each", "sent_after_abort_bytes_per_artifact"),
        ("bytes that may be in flight", "may_be_in_flight_bytes"),
        ("streams reset", "streams_reset"),
        ("deliveries at rest", "delivered_at_rest"),
        ("made afterwards, a table full", "fresh"),
        ("deliveries of these", "fresh_deliveries"),
    ] {
        report.row(name, figures[key].to_string());
    }
}
