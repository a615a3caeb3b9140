//! slow-consumer: one topic's consumer at one node takes nothing for a time, while the topics of the other classes go on.
//!
//! One node makes everything, so that what is held back and what is not share its links to the node of the slow consumer. The
//! held topic's artifacts are aborted as a replica's rounds do: so many stay active. What is active when the consumer goes on
//! stays active until it has it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use corecast::Node;
use corecast::config::{Limits, TopicConfig};
use corecast::types::{Class, TopicId};
use serde_json::{Map, Value, json};

use crate::board::{Board, Delivery};
use crate::intake::{Intake, Taken};
use crate::options::SlowConsumer;
use crate::report::{Figures, Output, Report, digits, latency_us, mib, quantiles};
use crate::subnet::counters::{Counters, ratio};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::flow::{Flaws, Measured, Outcome};
use crate::subnet::inline::Inline;
use crate::subnet::loopback::{self, Plan};
use crate::subnet::port::{Host, Refusal};
use crate::subnet::real::{Nodes, counters};
use crate::subnet::resident;
use crate::subnet::stop::Stop;
use crate::system::{self, Used};
use crate::workload::{GRACE, SHUTDOWN};

/// Seconds before the consumer stops and after it goes on, when nothing else is said.
const SECONDS: u64 = 5;
/// Artifacts of the held topic that stay active.
const KEEP: usize = 256;
/// Who makes everything.
const MAKER: usize = 0;
/// Between two looks at the memory.
const LOOK: Duration = Duration::from_millis(100);
/// The parts of the run; before the first is warm-up.
const PARTS: [&str; 3] = ["before", "during", "after"];

pub(crate) fn run(options: &SlowConsumer) -> Result<(), Fault> {
    let run = &options.run;
    let plan = plan(options)?;
    let output = Output::open(run)?;
    let stop = Stop::on_signals()?;
    system::without_huge_pages();
    let (_group, started) = loopback::start_group(&plan)?;
    system::run_promptly();
    let (nodes, intake) = Intake::new(started);
    let mut drill = Drill::new(options, nodes, intake, stop)?;
    let around = run.measure(SECONDS);
    drill.go_on((around / 5).min(Duration::from_secs(1)))?;
    let (used, counted, begin) = (Used::now()?, counters(&drill.nodes), Instant::now());
    drill.next_phase(around)?;
    drill.hold();
    drill.next_phase(Duration::from_secs(options.hold_seconds))?;
    drill.resume();
    drill.next_phase(around)?;
    let (used, seconds) = (Used::now()?.since(&used), begin.elapsed().as_secs_f64());
    drill.settle();
    let counted = counters(&drill.nodes).since(&counted);
    drill.conclude(options, output, seconds, used, counted)
}

/// A topic for each class; of the held one, room for what is active twice, and for as much to be pending.
fn plan(options: &SlowConsumer) -> Result<Plan, Fault> {
    let run = &options.run;
    let held = options.held.index();
    let mut plan = Plan { inline: Inline::AllBut(held), ..run.plan(run.nodes(4))? };
    if run.queued {
        plan.inline = Inline::None;
    }
    let largest = options.size.max(options.probe_size).max(64 << 10);
    plan.settings.artifact_bytes = largest;
    for class in Class::ALL {
        let mut topic = TopicConfig::new(TopicId(class.index() as u16 + 1), &class.to_string()).class(class);
        let (slots, size) = match class == options.held {
            // What was active when the consumer went on stays so beside what is made since.
            true => (4 * KEEP as u64, options.size),
            false => (4096, options.probe_size),
        };
        let active = if class == options.held { slots } else { 64 };
        topic.slots = slots as u32;
        topic.active_bytes = (active * u64::from(size)).max(largest.into());
        topic.pending_bytes = (2 * KEEP as u64 * u64::from(size)).max(largest.into());
        plan.topics.push(topic);
    }
    Ok(plan)
}

/// One topic's artifacts, made at fixed times.
struct Course {
    board: Board,
    due: Instant,
    every: Duration,
    /// Numbers of what is active, oldest first, with its body.
    active: VecDeque<(usize, Bytes)>,
    spare: VecDeque<Bytes>,
}

impl Course {
    fn new(nodes: usize, size: u32, rate: u32) -> Result<Course, Fault> {
        let every = Duration::from_secs_f64(1.0 / f64::from(rate));
        let board = Board::new(nodes, size as usize)?;
        Ok(Course { board, due: Instant::now(), every, active: VecDeque::new(), spare: VecDeque::new() })
    }
}

/// The consumer's return.
#[derive(Debug, Default)]
struct Return {
    at: Option<Instant>,
    /// What has a lower number is not aborted until all have it.
    pinned: usize,
    /// Of these, what the consumer had not had when it went on, and what it still has not.
    active: usize,
    awaited: usize,
    /// When it had all of them.
    recovered: Option<Duration>,
    /// Deliveries to it since of what had been aborted.
    stale: u64,
}

struct Drill {
    nodes: Vec<Node>,
    intake: Intake,
    stop: Stop,
    /// By class.
    courses: Vec<Course>,
    held: usize,
    back: Return,
    /// Artifacts of the held topic that were aborted before the slow consumer had them.
    passed: u64,
    /// The most that was resident in each phase, and when that was looked at.
    rss_bytes: Vec<u64>,
    looked: Instant,
}

impl Drill {
    fn new(options: &SlowConsumer, nodes: Vec<Node>, intake: Intake, stop: Stop) -> Result<Drill, Fault> {
        let course = |class: Class| match class == options.held {
            true => Course::new(nodes.len(), options.size, options.rate),
            false => Course::new(nodes.len(), options.probe_size, options.probe_rate),
        };
        let mut courses = Class::ALL.into_iter().map(course).collect::<Result<Vec<_>, _>>()?;
        let held = options.held.index();
        courses[held].board.counted &= !(1 << (nodes.len() - 1));
        // Not all at the same time.
        for (course, number) in courses.iter_mut().zip(1..) {
            course.due += course.every * number / 4;
        }
        let (back, looked) = (Return::default(), Instant::now());
        Ok(Drill { nodes, intake, stop, courses, held, back, passed: 0, rss_bytes: vec![0], looked })
    }

    /// Whose consumer of the held topic is slow.
    fn slow(&self) -> usize {
        self.nodes.len() - 1
    }

    fn next_phase(&mut self, time: Duration) -> Result<(), Fault> {
        self.courses.iter_mut().try_for_each(|course| course.board.begin_phase())?;
        self.rss_bytes.push(resident::rss_bytes());
        self.go_on(time)
    }

    /// Makes and takes for this long.
    fn go_on(&mut self, time: Duration) -> Result<(), Fault> {
        let until = Instant::now() + time;
        while Instant::now() < until && !self.stop.is_set() {
            let mut longest = Duration::from_millis(20);
            for topic in 0..self.courses.len() {
                while self.courses[topic].due <= Instant::now().min(until) {
                    if !self.make(topic)? {
                        longest = Duration::from_micros(100);
                        break;
                    }
                }
            }
            let due = self.courses.iter().map(|course| course.due).min().unwrap_or(until);
            self.take(due.min(until), longest);
            self.look();
        }
        Ok(())
    }

    /// `false` when the node has no room now.
    fn make(&mut self, topic: usize) -> Result<bool, Fault> {
        let course = &mut self.courses[topic];
        let (number, body) = (course.board.next(), course.board.body_from(&mut course.spare));
        match self.intake.ports[MAKER][topic].broadcast(body.clone()) {
            Ok(id) => course.board.add(MAKER, id, course.due),
            Err(Refusal::Wait) => {
                course.spare.push_back(body);
                return Ok(false);
            }
            Err(Refusal::TooLarge | Refusal::Stopped) => {
                return Err(Fault::new(Exit::Software, "the maker has stopped by itself"));
            }
        }
        course.board.count_late(course.due.elapsed());
        course.due += course.every;
        course.active.push_back((number, body));
        if topic == self.held {
            self.abort_oldest();
        }
        Ok(true)
    }

    /// Aborts what is beyond the number that stays active, whoever has it, but for what the consumer is to get.
    fn abort_oldest(&mut self) {
        let (held, bit) = (self.held, 1 << self.slow());
        let course = &self.courses[held];
        let pinned = course.active.iter().take_while(|(number, _)| *number < self.back.pinned).count();
        while self.courses[held].active.len() - pinned > KEEP {
            let number = self.courses[held].active[pinned].0;
            self.passed += u64::from(self.courses[held].board.entry(number).missing & bit != 0);
            self.abort(held, number);
        }
    }

    fn abort(&mut self, topic: usize, number: usize) {
        let course = &mut self.courses[topic];
        let entry = course.board.entry_mut(number);
        entry.active = false;
        self.intake.ports[MAKER][topic].abort(&entry.id);
        if let Ok(place) = course.active.binary_search_by_key(&number, |(number, _)| *number)
            && let Some((_, body)) = course.active.remove(place)
        {
            course.spare.push_back(body);
        }
    }

    /// Takes what has come; waits for something.
    fn take(&mut self, until: Instant, longest: Duration) {
        let mut next = self.intake.next(until, longest);
        while let Some(taken) = next {
            self.arrived(&taken);
            next = self.intake.next(taken.at, Duration::ZERO);
        }
    }

    fn arrived(&mut self, taken: &Taken) {
        let Taken { node, topic, number, at } = *taken;
        let slow = (node, topic) == (self.slow(), self.held);
        let board = &mut self.courses[topic].board;
        let (delivery, number) = (board.deliver(node, number, at), number.unwrap_or(usize::MAX));
        self.back.stale += u64::from(slow && delivery == Delivery::Late);
        if delivery != Delivery::Due {
            return;
        }
        if slow && number < self.back.pinned {
            self.back.awaited -= 1;
            self.recover(at);
        }
        let complete = self.courses[topic].board.entry(number).missing == 0;
        if complete && (topic != self.held || number < self.back.pinned) {
            self.abort(topic, number);
        }
    }

    fn hold(&mut self) {
        self.intake.hold(self.slow(), self.held);
    }

    fn resume(&mut self) {
        let (bit, now) = (1 << self.slow(), Instant::now());
        let course = &self.courses[self.held];
        let lacks = |(number, _): &&(usize, Bytes)| course.board.entry(*number).missing & bit != 0;
        self.back.active = course.active.iter().filter(lacks).count();
        (self.back.awaited, self.back.at, self.back.pinned) =
            (self.back.active, Some(now), course.board.next());
        self.recover(now);
        self.intake.resume();
    }

    fn recover(&mut self, at: Instant) {
        if let (Some(back), 0, None) = (self.back.at, self.back.awaited, self.back.recovered) {
            self.back.recovered = Some(at.saturating_duration_since(back));
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        if now >= self.looked + LOOK {
            self.looked = now;
            let last = self.rss_bytes.len() - 1;
            self.rss_bytes[last] = self.rss_bytes[last].max(resident::rss_bytes());
        }
    }

    /// Waits until all have what is active.
    fn settle(&mut self) {
        let until = Instant::now() + GRACE;
        let lost = |courses: &[Course]| courses.iter().map(|course| course.board.lost()).sum::<u64>();
        while lost(&self.courses) > 0 && Instant::now() < until {
            self.take(until, Duration::from_millis(20));
        }
        // One delivery too many may be under way.
        self.take(until, Duration::from_millis(100));
        for course in &mut self.courses {
            course.board.flaws.lost = course.board.lost();
        }
    }

    fn conclude(
        self,
        options: &SlowConsumer,
        output: Output,
        seconds: f64,
        used: Used,
        counters: Counters,
    ) -> Result<(), Fault> {
        let peak_rss_bytes = resident::peak_rss_bytes();
        let nodes = self.nodes.len() as u16;
        let outcome = Outcome {
            seconds,
            kinds: self.courses.iter().map(|course| course.board.measured.clone()).collect(),
            counters,
            flaws: self.flaws(),
            again: 0,
            forestalled: self.passed,
            partial: self.stop.is_set(),
            peak: None,
        };
        let mut report = Report::new(&Figures {
            workload: "slow-consumer",
            nodes,
            run: &options.run,
            size: options.size as usize,
            outcome: &outcome,
            measured: &outcome.all()?,
            used,
            peak_rss_bytes,
        });
        self.tell(peak_rss_bytes, &mut report)?;
        drop(self.intake);
        Box::new(Nodes(self.nodes)).shutdown(SHUTDOWN)?;
        output.conclude(&report, &outcome)
    }

    fn flaws(&self) -> Flaws {
        let mut sum = Flaws::default();
        self.courses.iter().for_each(|course| sum.add(&course.board.flaws));
        sum
    }

    fn tell(&self, peak_rss_bytes: u64, report: &mut Report) -> Result<(), Fault> {
        let held = &self.courses[self.held].board;
        let bound_bytes: u64 = self.nodes.iter().map(|node| Limits::total_bytes(&node.limits())).sum();
        let rss_bytes: Vec<u64> = (0..3).map(|part| self.rss_bytes[part + 1]).collect();
        let recovered_ms = self.back.recovered.map(|time| digits(time.as_secs_f64() * 1e3));
        let (others, p99_ratio) = self.others(report)?;
        let mut figures = json!({
            "held_class": Class::ALL[self.held].to_string(),
            "others": others,
            "p99_ratio": p99_ratio,
            "same_topic_latency_us": {},
            "rss_bytes": {},
            "peak_rss_bytes": peak_rss_bytes,
            "bound_bytes": bound_bytes,
            "active_at_return": self.back.active,
            "recovered_ms": recovered_ms,
            "lost": held.flaws.lost,
            "twice": held.flaws.twice,
            "aborted_unseen": self.passed,
            "stale_at_return": self.back.stale,
        });
        for (part, name) in PARTS.into_iter().enumerate() {
            figures["same_topic_latency_us"][name] = latency_us(&held.phase(part + 1).last);
            figures["rss_bytes"][name] = rss_bytes[part].into();
        }
        report.add("slow_consumer", figures);
        let there =
            recovered_ms.map_or("not all of them came".to_owned(), |ms| format!("there after {ms} ms"));
        let memory: Vec<String> = rss_bytes.into_iter().map(mib).collect();
        report.row("active when it went on", format!("{} that it lacked, {there}", self.back.active));
        report.row("delivered to it twice", held.flaws.twice.to_string());
        report.row("aborted before it had them", self.passed.to_string());
        report.row("of these delivered all the same", self.back.stale.to_string());
        report.row(
            "memory before, during, after",
            format!("{}, bound {}", memory.join(", "), mib(bound_bytes)),
        );
        Ok(())
    }

    /// What the other topics' artifacts took to their last receiver, and p99 during the hold by p99 before, of all together.
    fn others(&self, report: &mut Report) -> Result<(Value, f64), Fault> {
        let mut figures = Map::new();
        let mut all = [Measured::new()?, Measured::new()?, Measured::new()?];
        let slower = |[before, during, _]: [&Measured; 3]| {
            digits(ratio(during.last.quantile_us(0.99), before.last.quantile_us(0.99)))
        };
        for class in Class::ALL.into_iter().filter(|class| class.index() != self.held) {
            let board = &self.courses[class.index()].board;
            let parts = [1, 2, 3].map(|phase| board.phase(phase));
            let mut figure = json!({ "p99_ratio": slower(parts) });
            for ((all, part), name) in all.iter_mut().zip(parts).zip(PARTS) {
                figure[name] = latency_us(&part.last);
                all.merge(part);
            }
            figures.insert(class.to_string(), figure);
        }
        let [before, during, after] = &all;
        report.row("the other topics' probes before", quantiles(&before.last));
        report.row("during", quantiles(&during.last));
        report.row("after", quantiles(&after.last));
        let slower = slower([before, during, after]);
        report.row("p99 during by that before", slower.to_string());
        report.row("made late by", quantiles(&during.late));
        Ok((figures.into(), slower))
    }
}
