//! One run of the flood: makers, receivers, and what is measured.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use hdrhistogram::Histogram;
use serde_json::json;
use tokio::sync::mpsc;

use crate::mesh::{self, Mesh};
use crate::shapes::{self, Message};
use crate::{Failure, Options, Shape, Work, Workload, host};

/// What is on its way, and what has arrived.
pub(crate) struct Board {
    makers: Vec<Maker>,
    receivers: usize,
    work: Work,
    deliveries: AtomicU64,
    bytes: AtomicU64,
    /// Artifacts that began before this are not in the histogram.
    from: Mutex<Option<Instant>>,
    latency: Mutex<Histogram<u64>>,
}

struct Maker {
    slots: Vec<Slot>,
    free: mpsc::UnboundedSender<u32>,
}

struct Slot {
    missing: AtomicUsize,
    start: Mutex<Instant>,
}

impl Board {
    pub(crate) fn work(&self) -> Work {
        self.work
    }

    /// One receiver has the artifact.
    pub(crate) fn arrived(&self, maker: usize, slot: usize, len: usize) {
        self.deliveries.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(len as u64, Ordering::Relaxed);
        let Some((maker, entry)) = self.makers.get(maker).and_then(|m| m.slots.get(slot).map(|s| (m, s)))
        else {
            return;
        };
        if entry.missing.fetch_sub(1, Ordering::AcqRel) == 1 {
            let start = *lock(&entry.start);
            if lock(&self.from).is_some_and(|from| start >= from) {
                let took = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                lock(&self.latency).saturating_record(took);
            }
            // Unbounded, and never longer than the number of slots.
            let _ = maker.free.send(slot as u32);
        }
    }

    fn begin(&self, maker: usize, slot: u32, start: Instant) {
        let entry = &self.makers[maker].slots[slot as usize];
        *lock(&entry.start) = start;
        entry.missing.store(self.receivers, Ordering::Release);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the flood and prints one JSON object with the keys of corecast-load that it can fill.
pub(crate) fn contend(options: &Options, shape: Shape, workload: Workload) -> Result<(), Failure> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(options.cores).enable_all().build()?;
    let (size, inflight) = (options.size_of(workload), options.inflight_of(workload));
    let nodes = usize::from(options.nodes);
    let (board, free) = board(nodes, inflight, options.work)?;
    let senders = runtime.block_on(async {
        let mesh = mesh::connect(nodes, options.mtu).await?;
        Ok::<_, Failure>(start(mesh, shape, &board))
    })?;
    let body = Bytes::from((0..size).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8).collect::<Vec<_>>());
    let seconds = Duration::from_secs(options.seconds);
    let warm_up = Duration::from_secs_f64((options.seconds as f64 / 5.0).min(1.0));
    let begin = Instant::now();
    let meter = {
        let board = board.clone();
        std::thread::spawn(move || measure(&board, begin + warm_up, seconds))
    };
    if workload == Workload::Latency {
        pace(&board, free, &senders, &body, options.rate, warm_up + seconds);
    } else {
        for (maker, (free, senders)) in free.into_iter().zip(senders).enumerate() {
            runtime.spawn(make(board.clone(), maker, free, senders, body.clone()));
        }
    }
    let measured = meter.join().map_err(|_| "the measuring thread failed")?;
    // What was begun within the measured time belongs to it.
    std::thread::sleep(Duration::from_millis(300));
    runtime.shutdown_background();
    println!("{}", report(options, workload, size, &measured, &lock(&board.latency)));
    Ok(())
}

type Free = mpsc::UnboundedReceiver<u32>;

fn board(nodes: usize, inflight: usize, work: Work) -> Result<(Arc<Board>, Vec<Free>), Failure> {
    let mut free = Vec::new();
    let mut makers = Vec::new();
    for _ in 0..nodes {
        let (sender, receiver) = mpsc::unbounded_channel();
        for slot in 0..inflight as u32 {
            sender.send(slot)?;
        }
        let slot = || Slot { missing: AtomicUsize::new(0), start: Mutex::new(Instant::now()) };
        makers.push(Maker { slots: (0..inflight).map(|_| slot()).collect(), free: sender });
        free.push(receiver);
    }
    let board = Board {
        makers,
        receivers: nodes - 1,
        work,
        deliveries: AtomicU64::new(0),
        bytes: AtomicU64::new(0),
        from: Mutex::new(None),
        latency: Mutex::new(Histogram::new_with_bounds(100, 3_600_000_000_000, 3)?),
    };
    Ok((Arc::new(board), free))
}

/// Starts both sides of every connection; gives each node's queues to its peers.
fn start(mesh: Mesh, shape: Shape, board: &Arc<Board>) -> Vec<Vec<mpsc::Sender<Message>>> {
    let mut senders = Vec::new();
    for links in &mesh.links {
        let mut queues = Vec::new();
        for link in links.iter().flatten() {
            tokio::spawn(shapes::receive(link.clone(), board.clone()));
            queues.push(shapes::sender(shape, link.clone()));
        }
        senders.push(queues);
    }
    // The endpoints must outlive the run, which ends with the process.
    std::mem::forget(mesh);
    senders
}

/// One node's artifacts, as many on their way as there are slots.
async fn make(
    board: Arc<Board>,
    maker: usize,
    mut free: Free,
    senders: Vec<mpsc::Sender<Message>>,
    body: Bytes,
) {
    let mut bodies = Bodies::new(&board, maker, body);
    while let Some(slot) = free.recv().await {
        board.begin(maker, slot, Instant::now());
        let body = bodies.next(slot);
        for sender in &senders {
            let message = Message { maker: maker as u32, slot, body: body.clone() };
            if sender.send(message).await.is_err() {
                return;
            }
        }
    }
}

/// The bodies of one maker.
struct Bodies {
    work: Work,
    template: Bytes,
    /// By slot: what was sent from there last.
    last: Vec<Bytes>,
    made: u64,
}

impl Bodies {
    fn new(board: &Board, maker: usize, template: Bytes) -> Bodies {
        Bodies {
            work: board.work,
            template,
            last: vec![Bytes::new(); board.makers[maker].slots.len()],
            made: 0,
        }
    }

    /// A new artifact, in the memory of the one before if quinn has let go of it.
    fn next(&mut self, slot: u32) -> Bytes {
        if self.work == Work::Discard {
            return self.template.clone();
        }
        let last = std::mem::take(&mut self.last[slot as usize]);
        let fresh = |last: Bytes| if last.is_empty() { Err(last) } else { last.try_into_mut() };
        let mut body = fresh(last).unwrap_or_else(|_| BytesMut::from(self.template.clone()));
        self.made += 1;
        let stamp = self.made.to_le_bytes();
        let len = stamp.len().min(body.len());
        body[..len].copy_from_slice(&stamp[..len]);
        let body = body.freeze();
        if self.work == Work::Verify {
            std::hint::black_box(blake3::hash(&body));
        }
        self.last[slot as usize] = body.clone();
        body
    }
}

/// Artifacts at fixed times, the makers in turn, from a thread that is no worker of the runtime.
fn pace(
    board: &Board,
    mut free: Vec<Free>,
    senders: &[Vec<mpsc::Sender<Message>>],
    body: &Bytes,
    rate: u32,
    run: Duration,
) {
    host::sleep_precisely();
    let begin = Instant::now();
    let every = Duration::from_secs_f64(1.0 / f64::from(rate));
    let mut bodies: Vec<Bodies> =
        (0..senders.len()).map(|maker| Bodies::new(board, maker, body.clone())).collect();
    for number in 0_u32.. {
        let due = begin + every * number;
        if due >= begin + run {
            return;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let maker = number as usize % senders.len();
        let Some(slot) = free[maker].blocking_recv() else { return };
        board.begin(maker, slot, due);
        let body = bodies[maker].next(slot);
        for sender in &senders[maker] {
            let message = Message { maker: maker as u32, slot, body: body.clone() };
            if sender.blocking_send(message).is_err() {
                return;
            }
        }
    }
}

/// What was measured.
struct Measured {
    seconds: f64,
    deliveries: u64,
    bytes: u64,
    cpu_seconds: f64,
}

fn measure(board: &Board, from: Instant, length: Duration) -> Measured {
    std::thread::sleep(from.saturating_duration_since(Instant::now()));
    let read = || {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (Instant::now(), load(&board.deliveries), load(&board.bytes), host::cpu_seconds())
    };
    let before = read();
    *lock(&board.from) = Some(before.0);
    std::thread::sleep(length);
    let after = read();
    Measured {
        seconds: (after.0 - before.0).as_secs_f64(),
        deliveries: after.1 - before.1,
        bytes: after.2 - before.2,
        cpu_seconds: after.3 - before.3,
    }
}

fn report(
    options: &Options,
    workload: Workload,
    size: usize,
    measured: &Measured,
    latency: &Histogram<u64>,
) -> serde_json::Value {
    let quantile = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e3;
    let (bytes, deliveries) = (measured.bytes as f64, measured.deliveries.max(1) as f64);
    json!({
        "workload": workload.name(),
        "nodes": options.nodes,
        "size": size,
        "mtu": options.mtu,
        "seconds": measured.seconds,
        "delivered_artifacts": measured.deliveries,
        "delivered_bytes": measured.bytes,
        "goodput_gbit_s": bytes * 8e-9 / measured.seconds,
        "deliveries_per_s": measured.deliveries as f64 / measured.seconds,
        "cpu_seconds": measured.cpu_seconds,
        "cpu_s_per_gib": measured.cpu_seconds / (bytes.max(1.0) / f64::from(1 << 30)),
        "cpu_us_per_delivery": measured.cpu_seconds * 1e6 / deliveries,
        "latency_us": { "p50": quantile(0.5), "p99": quantile(0.99), "p999": quantile(0.999), "max": quantile(1.0) },
        "peak_rss_bytes": host::peak_rss_bytes(),
    })
}
