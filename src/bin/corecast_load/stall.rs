//! stall: bulk of one maker while one receiver stops and comes back.
//!
//! The maker is a process of its own, so are the healthy receivers together, and so is the one that stops. The maker goes on
//! as the healthy ones do: it keeps the last artifacts active, so many, and aborts older ones as a replica's rounds do. What is
//! active when the receiver comes back stays active until it has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::Node;
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use serde_json::{Value, json};

use crate::board::{Board, Delivery};
use crate::options::{Stall, StallKind};
use crate::receivers::{self, Order, Receivers, Said};
use crate::report::{Figures, Output, Report, digits, latency_us, mib, quantiles};
use crate::subnet::counters::{Counters, gbit_s, ratio};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::Outcome;
use crate::subnet::loopback::{self, Roster};
use crate::subnet::port::{Host, Port, Refusal};
use crate::subnet::real::{Nodes, Started};
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::Used;
use crate::workload::SHUTDOWN;

/// Seconds before the stall and after it, when nothing else is said.
const SECONDS: u64 = 5;
/// How long the receiver may take to get everything that is active, after the last artifact was made.
const GRACE: Duration = Duration::from_secs(20);
/// How long processes may take to start, or to answer.
const PATIENCE: Duration = Duration::from_secs(25);
/// Artifacts that stay active at least, whoever has them.
const KEEP: u32 = 64;
/// Ports that were free may be taken by the time they are bound; so often others are tried.
const ATTEMPTS: usize = 3;
/// Which process has the receiver that stops; the one before has the healthy ones.
const STALLED: usize = 1;

pub(crate) fn run(options: &Stall) -> Result<(), Fault> {
    let run = &options.run;
    let nodes = run.nodes(4);
    if nodes < 3 {
        let problem = "stall needs a maker, a receiver that stops and one that does not: 3 --nodes or more";
        return Err(Fault::new(Exit::Usage, problem));
    }
    let plan = run.plan(nodes)?;
    plan.check()?;
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    let order = Order {
        nodes: Vec::new(),
        keys: Vec::new(),
        members: Vec::new(),
        lanes: plan.lanes,
        mtu: run.mtu,
        size: options.size,
        inflight: options.inflight,
        keep: KEEP.max(2 * options.inflight),
        cores: plan.cores,
        spin: plan.spin,
        maker: String::new(),
        by_hand: options.stall == StallKind::Unread,
    };
    let mut drill = start(&order, nodes, &stop)?;
    let before = drill.reports()?;
    let phases = drill.phases(options)?;
    let after = drill.reports()?;
    drill.settle()?;
    drill.conclude(options, output, phases, [before, after])
}

fn start(order: &Order, nodes: u16, stop: &Stop) -> Result<Drill, Fault> {
    let mut drill = Drill::start(order, nodes, stop.clone());
    for _ in 1..ATTEMPTS {
        match &drill {
            Err(fault) if fault.exit == Exit::Unavailable => drill = Drill::start(order, nodes, stop.clone()),
            _ => break,
        }
    }
    drill
}

/// What the healthy receivers got in a part of the run.
#[derive(Debug, Clone, Copy, Default)]
struct Phase {
    bytes: u64,
    seconds: f64,
}

impl Phase {
    fn gbit_s(self) -> f64 {
        gbit_s(self.bytes, self.seconds)
    }
}

struct Drill {
    node: Node,
    port: Arc<dyn Port>,
    /// The healthy receivers, and the one at [`STALLED`].
    processes: Vec<Receivers>,
    said: Receiver<Said>,
    stop: Stop,
    board: Board,
    size: usize,
    inflight: usize,
    keep: usize,
    /// Number of the receiver that stops.
    stalled: usize,
    /// Numbers of what is active, oldest first.
    active: VecDeque<usize>,
    /// Artifacts on their way to a healthy receiver.
    under_way: usize,
    /// What has a lower number is not aborted until all have it.
    pinned: usize,
    /// Of these, the ones that the stalled receiver lacks, and how many it lacked at first.
    awaited: usize,
    at_return: usize,
    /// When the receiver came back, and when it had all that was active then.
    back: Option<Instant>,
    recovered: Option<Duration>,
    /// Artifacts that were aborted before the stalled receiver had them.
    passed: u64,
    phase: Phase,
    reports: [Option<receivers::Report>; 2],
}

impl Drill {
    fn start(order: &Order, nodes: u16, stop: Stop) -> Result<Drill, Fault> {
        let roster = Roster::new(nodes, order.lanes)?;
        let members = roster.record.members().iter();
        let addresses = members.map(|member| (member.id.to_string(), member.addresses[0])).collect();
        let maker = roster.identities[0].id().to_string();
        let order = Order { members: addresses, maker, ..order.clone() };
        let stalled = usize::from(nodes) - 1;
        let (sender, said) = unbounded();
        let mut processes = Vec::new();
        for (process, nodes) in [1..stalled, stalled..stalled + 1].into_iter().enumerate() {
            let by_hand = order.by_hand && process == STALLED;
            let order = Order { by_hand, ..order.for_nodes(nodes, &roster) };
            processes.push(Receivers::start(process, &order, sender.clone())?);
        }
        let started = order.for_nodes(0..1, &roster).start()?;
        loopback::await_connections(&started, stalled)?;
        for _ in &processes {
            match said.recv_timeout(PATIENCE) {
                Ok(Said::Ready) => {}
                _ => {
                    let problem = "the receivers' processes did not start; their lines above say why";
                    return Err(Fault::new(Exit::Unavailable, problem));
                }
            }
        }
        let Some(Started { node, ports, .. }) = started.into_iter().next() else {
            return Err(Fault::new(Exit::Software, "the maker did not start"));
        };
        let port = ports.into_iter().next().ok_or_else(|| Fault::new(Exit::Software, "no topic is open"))?;
        let mut board = Board::new(usize::from(nodes), order.size as usize)?;
        board.counted &= !(1 << stalled);
        Ok(Drill {
            node,
            port,
            processes,
            said,
            stop,
            board,
            size: order.size as usize,
            inflight: order.inflight as usize,
            keep: order.keep as usize,
            stalled,
            active: VecDeque::new(),
            under_way: 0,
            pinned: 0,
            awaited: 0,
            at_return: 0,
            back: None,
            recovered: None,
            passed: 0,
            phase: Phase::default(),
            reports: [None, None],
        })
    }

    /// Before, during, after.
    fn phases(&mut self, options: &Stall) -> Result<[Phase; 3], Fault> {
        let around = options.run.measure(SECONDS);
        // Windows open first.
        self.go_on((around / 5).min(Duration::from_secs(1)))?;
        let before = self.next_phase(around)?;
        self.halt(options.stall, true)?;
        let during = self.next_phase(Duration::from_secs(options.stall_seconds))?;
        self.pinned = self.board.next();
        let bit = 1 << self.stalled;
        self.awaited =
            self.active.iter().filter(|number| self.board.entry(**number).missing & bit != 0).count();
        self.at_return = self.awaited;
        self.back = Some(Instant::now());
        self.recovered = (self.awaited == 0).then_some(Duration::ZERO);
        self.halt(options.stall, false)?;
        let after = self.next_phase(around)?;
        Ok([before, during, after])
    }

    fn halt(&mut self, how: StallKind, stop: bool) -> Result<(), Fault> {
        let process = &mut self.processes[STALLED];
        match how {
            StallKind::Application | StallKind::Unread => process.tell(if stop { "hold" } else { "go" }),
            StallKind::Process => process.freeze(stop),
        }
    }

    /// The next part of the run, in which it makes as much as the healthy receivers take, for this long.
    fn next_phase(&mut self, time: Duration) -> Result<Phase, Fault> {
        self.board.begin_phase()?;
        self.go_on(time)
    }

    fn go_on(&mut self, time: Duration) -> Result<Phase, Fault> {
        let begin = Instant::now();
        self.phase = Phase::default();
        while begin.elapsed() < time && !self.stop.is_set() {
            let blocked = self.under_way < self.inflight && !self.make()?;
            let left = time.saturating_sub(begin.elapsed());
            let wait = match (blocked, self.under_way < self.inflight) {
                (true, _) => Duration::from_micros(100),
                (false, true) => Duration::ZERO,
                (false, false) => Duration::from_millis(20),
            };
            self.take(wait.min(left))?;
        }
        self.phase.seconds = begin.elapsed().as_secs_f64();
        Ok(self.phase)
    }

    /// `false` when the node has no room now.
    fn make(&mut self) -> Result<bool, Fault> {
        let (number, start) = (self.board.next(), Instant::now());
        match self.port.broadcast(self.board.body()) {
            Ok(id) => self.board.add(0, id, start),
            Err(Refusal::Wait) => return Ok(false),
            Err(Refusal::TooLarge | Refusal::Stopped) => {
                return Err(Fault::new(Exit::Software, "the maker has stopped by itself"));
            }
        }
        self.active.push_back(number);
        self.under_way += 1;
        self.abort_oldest();
        Ok(true)
    }

    /// Aborts what is beyond the number that stays active, if all healthy receivers have it.
    fn abort_oldest(&mut self) {
        let pinned = self.active.iter().take_while(|number| **number < self.pinned).count();
        while self.active.len() - pinned > self.keep {
            let number = self.active[pinned];
            if self.board.entry(number).missing & self.board.counted != 0 {
                return;
            }
            self.passed += 1;
            self.abort(number);
        }
    }

    fn abort(&mut self, number: usize) {
        let entry = self.board.entry_mut(number);
        entry.active = false;
        self.port.abort(&entry.id);
        if let Ok(place) = self.active.binary_search(&number) {
            self.active.remove(place);
        }
    }

    /// Takes what was said; waits so long for something.
    fn take(&mut self, wait: Duration) -> Result<(), Fault> {
        let mut next = match self.said.recv_timeout(wait) {
            Ok(said) => Some(said),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => Some(Said::Ended),
        };
        while let Some(said) = next {
            match said {
                Said::Delivered { node, number, at } => self.arrived(node, number, at),
                Said::Report { process, report } => self.reports[process] = Some(report),
                Said::Ready => {}
                Said::Ended => {
                    let problem = "a process of receivers has ended by itself; its line above says why";
                    return Err(Fault::new(Exit::Software, problem));
                }
            }
            next = self.said.try_recv().ok();
        }
        Ok(())
    }

    fn arrived(&mut self, node: usize, number: Option<usize>, at: Instant) {
        let (Delivery::Due, Some(number)) = (self.board.deliver(node, number, at), number) else { return };
        let missing = self.board.entry(number).missing;
        if node == self.stalled {
            self.awaited -= usize::from(number < self.pinned);
            if let (Some(back), 0, None) = (self.back, self.awaited, self.recovered) {
                self.recovered = Some(at.saturating_duration_since(back));
            }
        } else {
            self.phase.bytes += self.size as u64;
            self.under_way -= usize::from(missing & self.board.counted == 0);
        }
        if missing == 0 {
            self.abort(number);
        }
    }

    /// What every process has used so far, the maker's first.
    fn reports(&mut self) -> Result<[receivers::Report; 3], Fault> {
        self.reports = [None, None];
        self.processes.iter_mut().try_for_each(|process| process.tell("report"))?;
        let until = Instant::now() + PATIENCE;
        loop {
            if let [Some(healthy), Some(stalled)] = self.reports {
                return Ok([receivers::Report::of(std::slice::from_ref(&self.node))?, healthy, stalled]);
            }
            if Instant::now() > until {
                return Err(Fault::new(Exit::Software, "a process of receivers does not answer"));
            }
            self.take(Duration::from_millis(20))?;
        }
    }

    /// Waits until all have what is active.
    fn settle(&mut self) -> Result<(), Fault> {
        let until = Instant::now() + GRACE;
        while self.board.lost() > 0 && Instant::now() < until {
            self.take(Duration::from_millis(20))?;
        }
        self.board.flaws.lost = self.board.lost();
        // One delivery too many may be under way.
        self.take(Duration::from_millis(100))
    }

    fn conclude(
        self,
        options: &Stall,
        output: Output,
        phases: [Phase; 3],
        reports: [[receivers::Report; 3]; 2],
    ) -> Result<(), Fault> {
        let Drill { node, port, processes, board, .. } = self;
        // Read last: the maker's memory while the receiver caught up counts as well.
        let peak_rss_bytes = resident::peak_rss_bytes();
        drop((port, processes));
        Box::new(Nodes(vec![node])).shutdown(SHUTDOWN)?;
        let (used, counters) = sum(&reports);
        let outcome = Outcome {
            seconds: phases.iter().map(|phase| phase.seconds).sum(),
            kinds: vec![board.measured.clone()],
            counters,
            flaws: board.flaws,
            again: 0,
            forestalled: self.passed,
            partial: self.stop.is_set(),
            peak: None,
        };
        let mut report = Report::new(&Figures {
            workload: "stall",
            nodes: options.run.nodes(4),
            run: &options.run,
            size: options.size as usize,
            outcome: &outcome,
            measured: &outcome.kinds[0],
            used,
            peak_rss_bytes,
        });
        let [_, [maker, healthy, stalled]] = reports;
        let [before, during, after] = phases.map(Phase::gbit_s);
        let ratio = ratio(during, before);
        let recovered_ms = self.recovered.map(|time| digits(time.as_secs_f64() * 1e3));
        let figures = json!({
            "healthy_gbit_s_before": digits(before),
            "healthy_gbit_s_during": digits(during),
            "healthy_gbit_s_after": digits(after),
            "healthy_ratio": digits(ratio),
            "peak_rss_bytes": peak_rss_bytes,
            "all_peak_rss_bytes": peak_rss_bytes + healthy.peak_rss_bytes + stalled.peak_rss_bytes,
            "bound_bytes": maker.bound_bytes,
            "lost": outcome.flaws.lost,
            "active_at_return": self.at_return,
            "aborted_unseen": outcome.forestalled,
            "recovered_ms": recovered_ms,
            "stalled_peak_rss_bytes": stalled.peak_rss_bytes,
            "stalled_bound_bytes": (stalled.bound_bytes > 0).then_some(stalled.bound_bytes),
            "unread_bytes": (options.stall == StallKind::Unread).then_some(stalled.unread_bytes),
        });
        let figures = with_latency(figures, &board, &mut report);
        report.add("stall", figures);
        let told = format!("{before:.2} Gbit/s before, {during:.2} during ({ratio:.2}), {after:.2} after");
        let against = |peak, bound| format!("{} of at most {}", mib(peak), mib(bound));
        let there =
            recovered_ms.map_or("not all of them came".to_owned(), |ms| format!("there after {ms} ms"));
        report.row("healthy receivers", told);
        report.row("memory of the maker's process", against(peak_rss_bytes, maker.bound_bytes));
        match options.stall {
            StallKind::Unread => report.row("bytes that it left unread", stalled.unread_bytes.to_string()),
            _ => report.row("of the stalled one's", against(stalled.peak_rss_bytes, stalled.bound_bytes)),
        }
        report.row("active when it came back", format!("{} that it lacked, {there}", self.at_return));
        report.row("aborted before it had them", outcome.forestalled.to_string());
        output.conclude(&report, &outcome)
    }
}

/// Adds what the healthy receivers waited for each artifact, by the part of the run in which it was made.
fn with_latency(mut figures: Value, board: &Board, report: &mut Report) -> Value {
    let [before, during, after] = [1, 2, 3].map(|phase| &board.phase(phase).each);
    for (name, latency) in [("before", before), ("during", during), ("after", after)] {
        figures["latency_us"][name] = latency_us(latency);
    }
    let slower = |quantile: f64| ratio(during.quantile_us(quantile), before.quantile_us(quantile));
    figures["p50_ratio"] = json!(digits(slower(0.5)));
    figures["p99_ratio"] = json!(digits(slower(0.99)));
    report.row("deliveries to them before", quantiles(before));
    report.row("during", quantiles(during));
    report.row("after", quantiles(after));
    report.row("p99 during by that before", format!("{:.2}", slower(0.99)));
    figures
}

/// What all processes have used and counted between the two reports of each.
fn sum([before, after]: &[[receivers::Report; 3]; 2]) -> (Used, Counters) {
    let (mut used, mut counters) = (Used::default(), Counters::default());
    for (before, after) in before.iter().zip(after) {
        used.add_process(&after.used.since(&before.used));
        counters.add(&after.counters.since(&before.counters));
    }
    used.loopback_bytes = after[0].used.since(&before[0].used).loopback_bytes;
    (used, counters)
}
