//! Soak of park and wake: threads hand a parked driver numbered messages at random intervals of 0 to 60 µs,
//! through its queue and as datagrams, and a watchdog notices when one needs another event to be noticed.
//!
//! Rounds alternate. In an open round all threads push at their own pace. In a lone round a single thread
//! pushes and waits for each message to be noticed before the next: then no later push can rescue a lost
//! wake-up.
//!
//! `cargo bench --bench wake -- --cycles 10000000 --threads 2 --mode parked --backend ring`

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use corecast::node::io::{Backend, IoLimits, SocketBuffers, bind};
use corecast::sync::{Consumer, Producer, PushError, WakeWord, queue};
use corecast::types::{Class, PerClass, Rng};
use glommio::{LocalExecutorBuilder, Placement};

/// A message that nobody noticed for this long was lost, had no other event come to its rescue.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// Messages of each thread between two barriers.
const ROUND: u64 = 500;

/// Messages of a thread that may be unnoticed in an open round; keeps datagrams within the socket's buffer.
const AHEAD: u64 = 32;

/// The longest pause between two messages of a thread.
const MAX_PAUSE_NS: u64 = 60_000;

/// One in this many messages goes as a datagram.
const ONE_DATAGRAM_IN: u64 = 4;

/// What the driver does when there is no work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Idle {
    /// Parks without a time limit.
    Park,
    /// Never parks.
    Spin,
}

/// One run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) cycles: u64,
    pub(crate) threads: usize,
    pub(crate) idle: Idle,
    pub(crate) backend: Backend,
    pub(crate) seed: u64,
}

/// How it went.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) noticed: u64,
    pub(crate) lost: u64,
    pub(crate) disordered: u64,
    pub(crate) parks: u64,
    pub(crate) wakes: u64,
    pub(crate) elapsed: Duration,
    /// From push to pop, sorted.
    latencies_ns: Vec<u32>,
}

impl Report {
    /// Nanoseconds that `per_mille` of the messages did not exceed.
    pub(crate) fn latency_ns(&self, per_mille: usize) -> u32 {
        let at = (self.latencies_ns.len() * per_mille / 1000).min(self.latencies_ns.len().saturating_sub(1));
        self.latencies_ns.get(at).copied().unwrap_or(0)
    }
}

#[derive(Debug, Clone, Copy)]
struct Message {
    thread: u32,
    number: u64,
    pushed_ns: u64,
}

impl Message {
    fn to_bytes(self) -> [u8; 20] {
        let mut bytes = [0; 20];
        bytes[..4].copy_from_slice(&self.thread.to_ne_bytes());
        bytes[4..12].copy_from_slice(&self.number.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.pushed_ns.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Message> {
        let (thread, rest) = bytes.split_first_chunk()?;
        let (number, pushed) = rest.split_first_chunk()?;
        let (thread, number) = (u32::from_ne_bytes(*thread), u64::from_ne_bytes(*number));
        Some(Message { thread, number, pushed_ns: u64::from_ne_bytes(*pushed.first_chunk()?) })
    }
}

/// What all threads see.
struct Shared {
    start: Instant,
    stop: AtomicBool,
    /// Messages pushed, and noticed, per thread.
    pushed: Vec<AtomicU64>,
    noticed: Vec<AtomicU64>,
    lost: AtomicU64,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn unnoticed(&self, thread: usize) -> u64 {
        // The watchdog may read the two far apart.
        let pushed = self.pushed[thread].load(Ordering::Acquire);
        pushed.saturating_sub(self.noticed[thread].load(Ordering::Acquire))
    }
}

/// Runs `plan` and reports; the driver runs pinned to the first CPU this process may use, the others
/// elsewhere.
pub(crate) fn run(plan: &Plan) -> Report {
    let wake = Arc::new(WakeWord::new().expect("an eventfd"));
    let (producer, consumer) = queue(PerClass([1024; 4]), Arc::clone(&wake));
    let buffers = SocketBuffers { receive: 1 << 20, send: 1 << 20 };
    let (socket, _) = bind("127.0.0.1:0".parse().expect("an address"), buffers).expect("a socket");
    let address = socket.local_addr().expect("an address");
    let counts = || (0..plan.threads).map(|_| AtomicU64::new(0)).collect();
    let shared = Arc::new(Shared {
        start: Instant::now(),
        stop: AtomicBool::new(false),
        pushed: counts(),
        noticed: counts(),
        lost: AtomicU64::new(0),
    });
    let cpus: Vec<usize> =
        core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    let driver = Driver {
        shared: Arc::clone(&shared),
        consumer,
        idle: plan.idle,
        last: vec![[0; 4]; plan.threads],
        latencies_ns: Vec::with_capacity(plan.cycles as usize),
        disordered: 0,
    };
    let (backend, word) = (plan.backend, Arc::clone(&wake));
    let driver = LocalExecutorBuilder::new(Placement::Fixed(cpus[0]))
        .io_memory(64 << 10)
        .spawn(move || async move { driver.run(backend, &word, socket) })
        .expect("an executor");
    let watchdog = thread::spawn({
        let shared = Arc::clone(&shared);
        move || watch(&shared, address)
    });
    push_all(plan, &shared, &producer, address, cpus.get(1).copied());
    shared.stop.store(true, Ordering::SeqCst);
    wake.wake();
    // In case that very wake-up is lost.
    let rescue = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    rescue.send_to(b"", address).expect("a send");
    let mut report = driver.join().expect("the driver's thread");
    watchdog.join().expect("the watchdog");
    report.lost = shared.lost.load(Ordering::SeqCst);
    report
}

/// Runs the pushing threads to their end.
fn push_all(
    plan: &Plan,
    shared: &Arc<Shared>,
    producer: &Producer<Message>,
    to: SocketAddr,
    cpu: Option<usize>,
) {
    let barrier = Arc::new(Barrier::new(plan.threads));
    // Of each two rounds, one has all threads and one has a single thread.
    let rounds = plan.cycles.div_ceil(ROUND * (plan.threads as u64 + 1)) * 2;
    thread::scope(|scope| {
        for thread in 0..plan.threads {
            let barrier = Arc::clone(&barrier);
            let mut pusher = Pusher {
                thread,
                shared: Arc::clone(shared),
                producer: producer.clone(),
                socket: UdpSocket::bind("127.0.0.1:0").expect("a socket"),
                to,
                rng: Rng::new(plan.seed.wrapping_add(thread as u64)),
                number: 0,
            };
            scope.spawn(move || {
                // Off the driver's CPU, where another is to be had.
                cpu.map(|id| core_affinity::set_for_current(core_affinity::CoreId { id }));
                for round in 0..rounds {
                    barrier.wait();
                    let lone = (round / 2) as usize % plan.threads;
                    match round % 2 {
                        0 => pusher.push_round(AHEAD),
                        _ if lone == thread => pusher.push_round(1),
                        _ => {}
                    }
                }
            });
        }
    });
}

struct Pusher {
    thread: usize,
    shared: Arc<Shared>,
    producer: Producer<Message>,
    socket: UdpSocket,
    to: SocketAddr,
    rng: Rng,
    number: u64,
}

impl Pusher {
    /// One round, with fewer than `ahead` messages unnoticed before each push and none at the end.
    fn push_round(&mut self, ahead: u64) {
        for _ in 0..ROUND {
            let until = self.shared.now_ns() + self.rng.below(MAX_PAUSE_NS);
            while self.shared.now_ns() < until || self.shared.unnoticed(self.thread) >= ahead {
                thread::yield_now();
            }
            self.push();
        }
        while self.shared.unnoticed(self.thread) > 0 {
            thread::yield_now();
        }
    }

    fn push(&mut self) {
        self.number += 1;
        let shared = Arc::clone(&self.shared);
        shared.pushed[self.thread].fetch_add(1, Ordering::AcqRel);
        let message = Message { thread: self.thread as u32, number: self.number, pushed_ns: shared.now_ns() };
        if self.rng.one_in(ONE_DATAGRAM_IN) {
            self.socket.send_to(&message.to_bytes(), self.to).expect("a send");
            return;
        }
        let class = Class::ALL[self.rng.below(4) as usize];
        let mut pending = message;
        while let Err(PushError::Full(refused)) = self.producer.push(class, pending) {
            pending = refused;
            thread::yield_now();
        }
    }
}

/// Until the end, looks for a thread whose messages wait and are not noticed, and rescues it by a datagram.
fn watch(shared: &Shared, address: SocketAddr) {
    let rescue = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    let mut seen: Vec<(u64, Instant)> = vec![(0, Instant::now()); shared.pushed.len()];
    while !shared.stop.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(50));
        for (thread, (noticed, since)) in seen.iter_mut().enumerate() {
            let now = shared.noticed[thread].load(Ordering::Acquire);
            if now != *noticed || shared.unnoticed(thread) == 0 {
                (*noticed, *since) = (now, Instant::now());
            } else if since.elapsed() > LOST_AFTER {
                shared.lost.fetch_add(1, Ordering::SeqCst);
                rescue.send_to(b"", address).expect("a send");
                *since = Instant::now();
            }
        }
    }
}

struct Driver {
    shared: Arc<Shared>,
    consumer: Consumer<Message>,
    idle: Idle,
    /// The last number of each thread and class.
    last: Vec<[u64; 4]>,
    latencies_ns: Vec<u32>,
    disordered: u64,
}

impl Driver {
    /// The loop of a lane's executor, without the lanes.
    fn run(mut self, backend: Backend, wake: &Arc<WakeWord>, socket: UdpSocket) -> Report {
        let mut io = backend.start(Arc::clone(wake), IoLimits::default()).expect("a back end");
        io.open(socket).expect("a port");
        while !self.shared.stop.load(Ordering::SeqCst) {
            io.receive(64, &mut |_, batch| {
                batch.data.chunks(batch.stride).filter_map(Message::from_bytes).for_each(|m| self.notice(m));
            });
            while let Some((class, message)) = self.consumer.pop() {
                let last = &mut self.last[message.thread as usize][class.index()];
                self.disordered += u64::from(message.number <= *last);
                *last = message.number;
                self.notice(message);
            }
            io.flush().expect("a flush");
            if self.idle == Idle::Spin {
                continue;
            }
            wake.prepare_park();
            if self.consumer.is_empty() && !self.shared.stop.load(Ordering::SeqCst) {
                io.park(None).expect("a park");
            }
            wake.unpark();
        }
        let counters = io.counters();
        self.latencies_ns.sort_unstable();
        Report {
            noticed: self.latencies_ns.len() as u64,
            lost: 0,
            disordered: self.disordered,
            parks: counters.parks,
            wakes: counters.wakes,
            elapsed: self.shared.start.elapsed(),
            latencies_ns: self.latencies_ns,
        }
    }

    fn notice(&mut self, message: Message) {
        let latency = self.shared.now_ns().saturating_sub(message.pushed_ns);
        self.latencies_ns.push(u32::try_from(latency).unwrap_or(u32::MAX));
        self.shared.noticed[message.thread as usize].fetch_add(1, Ordering::AcqRel);
    }
}

#[allow(dead_code)] // the test target runs plans of its own
fn main() {
    let mut cycles = 200_000;
    let mut threads = 2;
    let mut idles = vec![Idle::Park, Idle::Spin];
    let mut backends = vec![Backend::Ring, Backend::Syscalls];
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        // Cargo adds it.
        if name == "--bench" {
            continue;
        }
        let value = arguments.next().unwrap_or_default();
        match (name.as_str(), value.as_str()) {
            ("--cycles", number) => cycles = number.parse().expect("--cycles takes a number"),
            ("--threads", number) => {
                threads = number.parse::<usize>().expect("--threads takes a number").max(1)
            }
            ("--mode", "parked") => idles = vec![Idle::Park],
            ("--mode", "spinning") => idles = vec![Idle::Spin],
            ("--backend", "ring") => backends = vec![Backend::Ring],
            ("--backend", "syscalls") => backends = vec![Backend::Syscalls],
            _ => {
                eprintln!(
                    "error: {name} {value}; allowed: --cycles N, --threads N, --mode parked|spinning, \
                     --backend ring|syscalls"
                );
                std::process::exit(2);
            }
        }
    }
    println!(
        "backend        idle    cycles  lost  disordered   parks   wakes  p50 µs  p99 µs p99.9 µs  \
         max µs  seconds"
    );
    let mut lost = 0;
    for backend in backends {
        for &idle in &idles {
            let report = run(&Plan { cycles, threads, idle, backend, seed: 1 });
            lost += report.lost + report.disordered;
            print_row(backend, idle, &report);
        }
    }
    std::process::exit(i32::from(lost > 0));
}

#[allow(dead_code)] // as above
fn print_row(backend: Backend, idle: Idle, report: &Report) {
    let us = |per_mille| f64::from(report.latency_ns(per_mille)) / 1000.0;
    println!(
        "{:<14} {:<5} {:>8} {:>5} {:>11} {:>6} {:>6} {:>7.1} {:>7.1} {:>9.1} {:>7.1} {:>8.1}",
        backend.to_string(),
        format!("{idle:?}"),
        report.noticed,
        report.lost,
        report.disordered,
        report.parks,
        report.wakes,
        us(500),
        us(990),
        us(999),
        us(1000),
        report.elapsed.as_secs_f64(),
    );
}
