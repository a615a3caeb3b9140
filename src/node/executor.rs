//! Executors: one pinned thread each, with one driver as the main future of its glommio executor.
//!
//! glommio pins, names and owns the thread, and runs whatever file or control tasks others may put beside the driver; the driver
//! itself never waits through it (it may park with runnable tasks), but inside the driver's own ring.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Sender, bounded, unbounded};
use glommio::{ExecutorJoinHandle, LocalExecutorBuilder, Placement};

use crate::sync::WakeWord;

use super::driver::{Clock, Control, Driver};
use super::handle::StartError;
use super::io::{Backend, Io, IoLimits, RingIo, SyscallIo};
use super::preflight::{self, Needs};

/// Which cores carry lanes, and how their drivers wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecutorConfig {
    /// One executor is pinned to each of these cores. Default: core 0.
    pub cores: Vec<usize>,
    /// How long a driver looks for work before it parks. Default zero: it parks at once. A wake-up from parking takes
    /// microseconds; spinning saves them and costs the core. `Duration::MAX`: it never parks.
    pub spin: Duration,
    /// Use plain system calls even where the ring could be used. Default off.
    pub syscalls: bool,
}

impl Default for ExecutorConfig {
    fn default() -> ExecutorConfig {
        ExecutorConfig { cores: vec![0], spin: Duration::ZERO, syscalls: false }
    }
}

struct Executor {
    control: Sender<Control>,
    wake: Arc<WakeWord>,
    thread: Option<ExecutorJoinHandle<()>>,
}

struct Inner {
    executors: Vec<Mutex<Executor>>,
    clock: Clock,
    backend: Backend,
    dealt: AtomicUsize,
}

/// Pinned executors, shared by any number of nodes of one process. They end when the last handle and the last node on them
/// are gone.
#[derive(Clone)]
pub struct Executors {
    inner: Arc<Inner>,
}

impl Executors {
    /// Bytes that glommio's own file buffers lock per executor: the least it takes, for the data path has its own ring.
    const IO_MEMORY: usize = 64 << 10;
    /// Entries of glommio's own rings.
    const RING_DEPTH: usize = 16;

    /// Checks the host, then starts one executor per core.
    ///
    /// # Errors
    /// The host lacks io_uring, locked memory or the cores ([`StartError::Host`]); nothing was started then. Or an
    /// executor failed to start; those that had started were ended.
    pub fn start(config: &ExecutorConfig) -> Result<Executors, StartError> {
        let needs = Needs {
            cpus: config.cores.clone(),
            io_memory: Self::IO_MEMORY as u64,
            io_limits: IoLimits::default(),
            backend: config.syscalls.then_some(Backend::Syscalls),
        };
        let findings = preflight::check(&needs).map_err(StartError::Host)?;
        let clock = Clock { epoch: std::time::Instant::now() };
        let mut inner =
            Inner { executors: Vec::new(), clock, backend: findings.backend, dealt: AtomicUsize::new(0) };
        for &core in &config.cores {
            let executor = start_one(core, config.spin, clock, findings.backend)?;
            inner.executors.push(Mutex::new(executor));
        }
        Ok(Executors { inner: Arc::new(inner) })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.inner.executors.len()
    }

    /// Always false: there is at least one core.
    pub fn is_empty(&self) -> bool {
        self.inner.executors.is_empty()
    }

    /// How datagrams move.
    pub fn backend(&self) -> Backend {
        self.inner.backend
    }

    pub(super) fn clock(&self) -> Clock {
        self.inner.clock
    }

    /// The turn of one more lane: lanes are dealt to the executors one after another.
    pub(super) fn deal(&self) -> usize {
        self.inner.dealt.fetch_add(1, Ordering::Relaxed)
    }

    /// The wake word of the executor that runs the `turn`-th lane.
    pub(super) fn wake_word(&self, turn: usize) -> Arc<WakeWord> {
        self.with(turn, |executor| executor.wake.clone())
    }

    /// Hands something to the executor that runs the `turn`-th lane.
    pub(super) fn tell(&self, turn: usize, control: Control) {
        self.with(turn, |executor| {
            // A driver that has ended drops what it is told: the lane's board says so.
            let _ = executor.control.send(control);
            executor.wake.wake();
        });
    }

    fn with<T>(&self, turn: usize, act: impl FnOnce(&Executor) -> T) -> T {
        let executors = &self.inner.executors;
        let executor = executors[turn % executors.len()].lock().unwrap_or_else(PoisonError::into_inner);
        act(&executor)
    }
}

impl std::fmt::Debug for Executors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Executors({}, {:?})", self.len(), self.backend())
    }
}

fn start_one(core: usize, spin: Duration, clock: Clock, backend: Backend) -> Result<Executor, StartError> {
    let failed = |why: String| StartError::Executor { core, why };
    let wake = Arc::new(WakeWord::new().map_err(|error| failed(error.to_string()))?);
    // Unbounded, for what it carries is bounded elsewhere: one entry per lane of a node.
    let (control, controls) = unbounded();
    let (started, starting) = bounded(1);
    let thread_wake = wake.clone();
    let thread = LocalExecutorBuilder::new(Placement::Fixed(core))
        .name(&format!("corecast-{core}"))
        .io_memory(Executors::IO_MEMORY)
        .ring_depth(Executors::RING_DEPTH)
        .spawn(move || async move {
            let limits = IoLimits::default();
            let run = match backend {
                Backend::Ring => RingIo::new(thread_wake.clone(), limits).map(|io| {
                    let _ = started.send(Ok(()));
                    run(Driver::new(io, clock, controls, thread_wake, spin), core);
                }),
                Backend::Syscalls => {
                    let io = SyscallIo::new(thread_wake.clone(), limits);
                    let _ = started.send(Ok(()));
                    run(Driver::new(io, clock, controls, thread_wake, spin), core);
                    Ok(())
                }
            };
            if let Err(error) = run {
                let _ = started.send(Err(error));
            }
        })
        .map_err(|error| failed(error.to_string()))?;
    match starting.recv() {
        Ok(Ok(())) => Ok(Executor { control, wake, thread: Some(thread) }),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed("its thread ended".to_owned())),
    }
}

fn run<I: Io>(mut driver: Driver<I>, core: usize) {
    if let Err(error) = driver.run() {
        tracing::error!(core, %error, "an executor's ring failed; its lanes have ended");
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        for executor in &mut self.executors {
            let executor = executor.get_mut().unwrap_or_else(PoisonError::into_inner);
            let _ = executor.control.send(Control::Stop);
            executor.wake.wake();
            if let Some(thread) = executor.thread.take()
                && std::thread::current().id() != thread.thread().id()
                && thread.join().is_err()
            {
                tracing::error!("an executor ended with a panic");
            }
        }
    }
}
