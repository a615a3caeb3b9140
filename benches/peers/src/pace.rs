//! Makers: in closed loops on the peer's runtime, and at fixed times from a thread of their own.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::Failure;
use crate::board::{Board, Free};
use crate::contender::{Contender, Task};
use crate::host;
use crate::message::{Bodies, Stamp};
use crate::workload::{Pace, Stream};

/// Ends all makers.
pub(crate) type Stop = Arc<AtomicBool>;

/// Starts every maker.
pub(crate) fn start<C: Contender>(
    contender: &Arc<C>,
    board: &Arc<Board>,
    streams: Vec<Stream>,
    frees: Vec<Free>,
    stop: &Stop,
) {
    let mut open = Vec::new();
    for (stream, free) in streams.into_iter().zip(frees) {
        match stream.pace {
            Pace::Closed { inflight } => {
                let (contender, board, stop) = (contender.clone(), board.clone(), stop.clone());
                let maker = stream.maker;
                let bodies = Bodies::new(board.work(), &stream.sizes, stream.kind.is_urgent(), inflight);
                let task = make(contender.clone(), board, stop, maker, free, bodies);
                contender.spawn(maker, Box::pin(task));
            }
            Pace::Open { first, every } => open.push(Paced::new(board, &stream, free, first, every)),
        }
    }
    if !open.is_empty() {
        let (contender, board, stop) = (contender.clone(), board.clone(), stop.clone());
        std::thread::spawn(move || pace(&contender, &board, &stop, open));
    }
}

/// One stream's artifacts, as many on their way as there are slots.
async fn make<C: Contender>(
    contender: Arc<C>,
    board: Arc<Board>,
    stop: Stop,
    maker: usize,
    mut free: Free,
    mut bodies: Bodies,
) {
    let mut number = 0;
    while let Some(slot) = free.recv().await {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        if slot.len > 0 {
            contender.abort(maker, slot);
        }
        let stamp = board.begin(slot, bodies.len(number), Instant::now());
        number += 1;
        if let Err(failure) = contender.broadcast(maker, bodies.next(stamp)).await {
            return eprintln!("node {maker} makes no more: {failure}");
        }
    }
}

/// A stream whose artifacts are due at fixed times.
struct Paced {
    maker: usize,
    bodies: Bodies,
    free: Free,
    slots: Vec<Stamp>,
    first: Duration,
    every: Duration,
    active: Option<Duration>,
    number: u64,
}

impl Paced {
    fn new(board: &Board, stream: &Stream, free: Free, first: Duration, every: Duration) -> Paced {
        Paced {
            maker: stream.maker,
            bodies: Bodies::new(board.work(), &stream.sizes, stream.kind.is_urgent(), 0),
            free,
            slots: Vec::new(),
            first,
            every,
            active: stream.active,
            number: 0,
        }
    }

    /// After `begin`, when the next artifact is due.
    fn due(&self) -> Duration {
        self.first + Duration::from_secs_f64(self.every.as_secs_f64() * self.number as f64)
    }

    /// Takes back slots whose artifacts all have; those that are active for a time are taken back by the clock.
    fn collect<C: Contender>(&mut self, contender: &C) {
        while let Ok(slot) = self.free.try_recv() {
            if slot.len > 0 && self.active.is_none() {
                contender.abort(self.maker, slot);
            }
            self.slots.push(slot);
        }
    }
}

/// What the pacing thread does next, at a time after the beginning.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Make { stream: usize },
    Abort { maker: usize, stream: u32, slot: u32, number: u64 },
}

/// How long an artifact waits when the stream has no slot.
const RETRY: Duration = Duration::from_millis(1);

fn pace<C: Contender>(contender: &Arc<C>, board: &Arc<Board>, stop: &Stop, mut streams: Vec<Paced>) {
    host::sleep_precisely();
    let begin = Instant::now();
    let mut events: BinaryHeap<Reverse<(Duration, Event)>> = BinaryHeap::new();
    for (stream, paced) in streams.iter().enumerate() {
        events.push(Reverse((paced.due(), Event::Make { stream })));
    }
    while let Some(Reverse((at, event))) = events.pop() {
        std::thread::sleep((begin + at).saturating_duration_since(Instant::now()));
        match event {
            Event::Abort { maker, stream, slot, number } => {
                contender.abort(maker, Stamp { len: 0, stream, slot, number });
            }
            Event::Make { .. } if stop.load(Ordering::Relaxed) => (),
            Event::Make { stream } => {
                let paced = &mut streams[stream];
                paced.collect(contender.as_ref());
                let due = paced.due();
                let Some(slot) = paced.slots.pop() else {
                    events.push(Reverse((at + RETRY, Event::Make { stream })));
                    continue;
                };
                let stamp = board.begin(slot, paced.bodies.len(paced.number), begin + due);
                paced.number += 1;
                let message = paced.bodies.next(stamp);
                let maker = paced.maker;
                let shared = contender.clone();
                send(contender.as_ref(), maker, async move { shared.broadcast(maker, message).await });
                if let Some(active) = paced.active {
                    let Stamp { stream, slot, number, .. } = stamp;
                    events.push(Reverse((due + active, Event::Abort { maker, stream, slot, number })));
                }
                events.push(Reverse((paced.due(), Event::Make { stream })));
            }
        }
    }
}

/// Broadcasts from here; what must wait, waits on the peer's runtime.
fn send<C: Contender>(
    contender: &C,
    maker: usize,
    broadcast: impl Future<Output = Result<(), Failure>> + Send + 'static,
) {
    let mut task: Task = Box::pin(async move {
        if let Err(failure) = broadcast.await {
            eprintln!("node {maker} could not send: {failure}");
        }
    });
    let mut context = Context::from_waker(Waker::noop());
    if task.as_mut().poll(&mut context).is_pending() {
        contender.spawn(maker, task);
    }
}
