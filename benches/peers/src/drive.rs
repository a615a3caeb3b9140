//! One run of one peer: what happens when, and what is read off.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::board::{Board, Count, Free};
use crate::contender::Contender;
use crate::options::{Choice, Workload};
use crate::resident::Peak;
use crate::workload::{self, Stream};
use crate::{Failure, host, memory, pace, report};

/// How long a receiver does not read.
const STALL: Duration = Duration::from_secs(10);
/// How long a node is closed, and how long it then has to catch up.
const AWAY: Duration = Duration::from_secs(3);
const CATCH_UP: Duration = Duration::from_secs(12);
/// How long what is on its way may take once nothing new is made; with no delivery for this long the rest is lost.
const DRAIN: Duration = Duration::from_secs(30);
const SILENCE: Duration = Duration::from_secs(2);
/// After the last delivery, how long one too many is waited for.
const LINGER: Duration = Duration::from_millis(100);

/// A run that has yet to begin.
pub(crate) struct Run {
    pub(crate) choice: Choice,
    pub(crate) board: Arc<Board>,
    streams: Vec<Stream>,
    frees: Vec<Free>,
}

/// What was read off over a stretch of time.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    pub(crate) deliveries: u64,
    pub(crate) bytes: u64,
    pub(crate) cpu_seconds: f64,
    pub(crate) loopback_bytes: u64,
    pub(crate) allocations: u64,
}

/// All that was measured.
pub(crate) struct Outcome {
    pub(crate) measured: Measured,
    /// What only this workload has.
    pub(crate) special: Option<(&'static str, Value)>,
    pub(crate) lost: u64,
    pub(crate) peak: Peak,
}

/// Reads off what happens, and meanwhile watches the memory.
struct Meter {
    board: Arc<Board>,
    peak: Peak,
}

impl Run {
    pub(crate) fn new(choice: Choice) -> Result<Run, Failure> {
        let streams = workload::streams(&choice);
        let (board, frees) = Board::new(&choice, &streams)?;
        Ok(Run { choice, board: Arc::new(board), streams, frees })
    }
}

/// Runs the workload over a contender whose nodes are connected, and gives the JSON object.
pub(crate) fn drive<C: Contender>(contender: &Arc<C>, run: Run) -> Result<Value, Failure> {
    let Run { choice, board, streams, frees } = run;
    let mut meter = Meter { board: board.clone(), peak: Peak::new() };
    let stop = Arc::new(AtomicBool::new(false));
    pace::start(contender, &board, streams, frees, &stop);
    meter.sleep(choice.warm_up());
    let seconds = Duration::from_secs(choice.seconds);
    board.record_from(Instant::now());
    let measured = meter.measure(None, seconds);
    let special = match choice.workload {
        Workload::Stall => Some(("stall", meter.stall(choice.nodes - 1, seconds))),
        Workload::Rejoin => Some(("rejoin", meter.rejoin(contender, choice.nodes - 1)?)),
        Workload::Idle => {
            let percent = 100.0 * measured.cpu_seconds / measured.seconds;
            Some((
                "idle",
                json!({ "cpu_percent": report::digits(percent), "peak_rss_bytes": meter.peak.bytes }),
            ))
        }
        _ => None,
    };
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let lost = meter.drain();
    finish(&choice, &board, Outcome { measured, special, lost, peak: meter.peak })
}

/// The stalled receiver has until the end of the drain to get what it missed.
fn finish(choice: &Choice, board: &Board, mut outcome: Outcome) -> Result<Value, Failure> {
    if let Some(("stall", stall)) = &mut outcome.special {
        // All nodes are in this process.
        stall["all_peak_rss_bytes"] = outcome.peak.bytes.into();
        stall["lost"] = outcome.lost.into();
    }
    if board.corrupt() > 0 {
        return Err(format!("{} bodies came with a hash that is not theirs", board.corrupt()).into());
    }
    report::report(choice, board, &outcome)
}

impl Meter {
    fn sleep(&mut self, length: Duration) {
        let end = Instant::now() + length;
        loop {
            let now = Instant::now();
            let next = self.peak.look(now, self.board.in_flight_bytes());
            if now >= end {
                return;
            }
            std::thread::sleep(next.min(end).saturating_duration_since(now));
        }
    }

    /// Reads off what happens at every node but `except`.
    fn measure(&mut self, except: Option<usize>, length: Duration) -> Measured {
        let board = self.board.clone();
        let read =
            || (board.count(except), host::cpu_seconds(), host::loopback_bytes(), memory::allocations());
        let before = read();
        self.sleep(length);
        let after = read();
        let Count { at, deliveries, bytes } = after.0;
        Measured {
            seconds: (at - before.0.at).as_secs_f64(),
            deliveries: deliveries - before.0.deliveries,
            bytes: bytes - before.0.bytes,
            cpu_seconds: after.1 - before.1,
            loopback_bytes: after.2.saturating_sub(before.2),
            allocations: after.3.saturating_sub(before.3),
        }
    }

    /// Waits for what is on its way; gives the deliveries that never came.
    fn drain(&mut self) -> u64 {
        let begin = Instant::now();
        let (mut last, mut progress) = (self.board.count(None).deliveries, begin);
        loop {
            self.sleep(Duration::from_millis(20));
            let (now, expected) = (self.board.count(None).deliveries, self.board.expected());
            if now != last {
                (last, progress) = (now, Instant::now());
            }
            if now >= expected || progress.elapsed() > SILENCE || begin.elapsed() > DRAIN {
                self.sleep(LINGER);
                return self.board.expected().saturating_sub(self.board.count(None).deliveries);
            }
        }
    }

    /// `node` stops reading for ten seconds; how the others fare before, and meanwhile.
    fn stall(&mut self, node: usize, seconds: Duration) -> Value {
        let before = self.measure(Some(node), seconds);
        self.board.stall(node, true);
        let during = self.measure(Some(node), STALL);
        self.board.stall(node, false);
        self.sleep(Duration::from_secs(1));
        let rate = |measured: &Measured| measured.bytes as f64 * 8e-9 / measured.seconds;
        let [before, during] = [&before, &during].map(rate);
        json!({
            "healthy_gbit_s_before": report::digits(before),
            "healthy_gbit_s_during": report::digits(during),
            "healthy_ratio": report::digits(during / before),
        })
    }

    /// `node` is closed for three seconds; what it gets of that time.
    fn rejoin<C: Contender>(&mut self, contender: &Arc<C>, node: usize) -> Result<Value, Failure> {
        let (closed, board) = (contender.clone(), self.board.clone());
        wait(contender.as_ref(), node, async move { closed.close(node).await })?;
        board.leave(node);
        self.sleep(AWAY);
        let (restarted, back) = (contender.clone(), board.clone());
        wait(contender.as_ref(), node, async move {
            back.back();
            restarted.restart(node).await
        })?;
        let begin = Instant::now();
        let recovery = loop {
            self.sleep(Duration::from_millis(20));
            let recovery = board.recovery().ok_or("no node was away")?;
            if begin.elapsed() > CATCH_UP || recovery.recovered.len() == recovery.published {
                break recovery;
            }
        };
        let ms = |took: Option<&Duration>| took.map(|took| report::digits(took.as_secs_f64() * 1e3));
        Ok(json!({
            "published_meanwhile": recovery.published,
            // Nothing is taken back in this workload.
            "still_active": recovery.published,
            "recovered": recovery.recovered.len(),
            "first_ms": ms(recovery.recovered.iter().min()),
            "last_ms": ms(recovery.recovered.iter().max()),
        }))
    }
}

/// Runs a task on the contender's runtime and waits for its end.
fn wait<C: Contender>(
    contender: &C,
    node: usize,
    task: impl Future<Output = Result<(), Failure>> + Send + 'static,
) -> Result<(), Failure> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let task = async move {
        let _ = sender.send(task.await);
    };
    contender.spawn(node, Box::pin(task));
    receiver.recv_timeout(DRAIN).map_err(|_| "the node did not answer")?
}
