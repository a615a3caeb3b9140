//! What this host must offer, checked before any executor exists, so that a missing right is one clear line
//! and not a panic inside somebody's replica.
//!
//! Read only: nothing on the host is changed, and everything opened is closed again.
#![allow(unsafe_code)]

use std::fmt;
use std::fs;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use thiserror::Error;

use super::io::{Backend, IoLimits, RingIo};

/// glommio refuses to start below this soft limit of locked memory, whatever the process's rights
/// (`MIN_MEMLOCK_LIMIT` of glommio-ng 0.12.0, `sys/uring.rs`).
const GLOMMIO_FLOOR_BYTES: u64 = 512 << 10;

/// glommio registers its `io_memory`, at least this much, ...
const GLOMMIO_MIN_IO_MEMORY: u64 = 64 << 10;

/// ... with each of its three rings (main, latency, poll), and the kernel charges each registration.
const GLOMMIO_RINGS: u64 = 3;

/// The queues of glommio's three rings at their default depth of 128, charged since Linux 6.13: 16 KiB each,
/// rounded up.
const GLOMMIO_QUEUES_BYTES: u64 = 64 << 10;

/// A ring that was closed stays charged for a moment, and the check itself opens small ones.
const PROBE_BYTES: u64 = 64 << 10;

/// What a node is about to ask of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Needs {
    /// The CPU of each executor, one executor per entry.
    pub cpus: Vec<usize>,
    /// `io_memory` of each executor, in bytes.
    pub io_memory: u64,
    /// Buffers of each executor.
    pub io_limits: IoLimits,
    /// The back end the configuration insists on; None takes the best there is.
    pub backend: Option<Backend>,
}

impl Needs {
    /// Memory that the executors lock, as a sum; about 0.4 MiB each with an `io_memory` of 64 KiB.
    pub fn locked_bytes(&self) -> u64 {
        let io_memory = self.io_memory.next_multiple_of(4096).max(GLOMMIO_MIN_IO_MEMORY);
        let each = io_memory
            .saturating_mul(GLOMMIO_RINGS) // glommio's storage buffers, once per ring
            .saturating_add(GLOMMIO_QUEUES_BYTES)
            .saturating_add(RingIo::locked_bytes(&self.io_limits)); // the private ring
        each.saturating_mul(self.cpus.len() as u64).saturating_add(PROBE_BYTES)
    }
}

/// What was found; everything asked for is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// `uname -r`.
    pub kernel: String,
    /// The back end to start.
    pub backend: Backend,
    /// Why it is not the ring, if the ring was not ruled out by the configuration.
    pub ring_refused: Option<String>,
    /// CPUs this process may use.
    pub allowed_cpus: Vec<usize>,
    /// The soft limit of locked memory.
    pub memlock: Memlock,
}

/// How much memory the process may lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memlock {
    /// No limit, or the right to exceed it (CAP_IPC_LOCK).
    Unlimited,
    /// Bytes, shared by all processes of the user.
    Bytes(u64),
}

impl fmt::Display for Memlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Memlock::Unlimited => f.write_str("unlimited"),
            Memlock::Bytes(bytes) => write!(f, "{} KiB", bytes >> 10),
        }
    }
}

/// Why a node cannot run here. Nothing was started; the environment is at fault, not the caller.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// ENOSYS.
    #[error(
        "io_uring: kernel {kernel} does not offer it; run Linux 6.1 or newer (5.11 at least) with \
         CONFIG_IO_URING"
    )]
    NoIoUring {
        /// `uname -r`.
        kernel: String,
    },
    /// EPERM with `kernel.io_uring_disabled` set.
    #[error(
        "io_uring: forbidden by kernel.io_uring_disabled={value}; set it to 0 \
         (sysctl -w kernel.io_uring_disabled=0){}",
        if *.value == 1 { ", or add this user to the group kernel.io_uring_group" } else { "" }
    )]
    DisabledBySysctl {
        /// 1: only for a group and administrators. 2: for nobody.
        value: u32,
    },
    /// EPERM without it.
    #[error(
        "io_uring: forbidden for this process (EPERM) though kernel.io_uring_disabled is 0: a seccomp filter \
         blocks it, as container runtimes do by default; allow io_uring_setup, io_uring_enter and \
         io_uring_register (425 to 427) in the container's profile or the unit's SystemCallFilter"
    )]
    Blocked,
    /// The ring exists and lacks operations that the executors submit.
    #[error("io_uring: kernel {kernel} lacks {missing}; run Linux 6.1 or newer (5.11 at least)")]
    MissingOperations {
        /// `uname -r`.
        kernel: String,
        /// Their names.
        missing: String,
    },
    /// Another failure to make a ring.
    #[error("io_uring: cannot make a ring: {0}")]
    Ring(#[source] io::Error),
    /// The configuration insists on the ring back end, which does not work here.
    #[error(
        "io_uring: multishot receives do not work here ({reason}); run Linux 6.0 or newer, or allow system \
         calls as back end"
    )]
    NoMultishot {
        /// What the trial answered.
        reason: String,
    },
    /// Too little memory may be locked.
    #[error(
        "locked memory: {executors} executors need {need_kib} KiB, the limit is {limit}; raise it: \
         LimitMEMLOCK= in the unit, `memlock` in /etc/security/limits.conf, or `ulimit -l {need_kib}`"
    )]
    Memlock {
        /// How many executors.
        executors: usize,
        /// What they need together.
        need_kib: u64,
        /// The soft limit.
        limit: Memlock,
    },
    /// No executor at all.
    #[error("cpus: none given; name at least one of {}", list(allowed))]
    NoCpu {
        /// What the process may use.
        allowed: Vec<usize>,
    },
    /// Two executors on one CPU.
    #[error("cpus: {cpu} is given twice; each executor needs a CPU of its own")]
    CpuTwice {
        /// Which.
        cpu: usize,
    },
    /// CPUs that do not exist or are offline.
    #[error("cpus: {} not online on this host; online are {online}", are(missing))]
    NoSuchCpu {
        /// Which.
        missing: Vec<usize>,
        /// The kernel's list.
        online: String,
    },
    /// CPUs that the process may not use.
    #[error(
        "cpus: {} not allowed for this process (taskset, cpuset or AllowedCPUs=); allowed are {}",
        are(forbidden),
        list(allowed)
    )]
    CpuNotAllowed {
        /// Which.
        forbidden: Vec<usize>,
        /// What the process may use.
        allowed: Vec<usize>,
    },
}

/// "3 is", "3,5 are".
fn are(cpus: &[usize]) -> String {
    format!("{} {}", list(cpus), if cpus.len() == 1 { "is" } else { "are" })
}

/// CPUs as the kernel writes them: `0-3,8`.
fn list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => ranges.push((*cpu, *cpu)),
        }
    }
    let texts: Vec<String> = ranges
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    texts.join(",")
}

/// Checks the host. Call it from a thread that is not pinned: the thread's affinity is taken for the
/// process's.
///
/// # Errors
/// The first thing that is missing, cheapest check first.
pub fn check(needs: &Needs) -> Result<Findings, PreflightError> {
    let kernel = read_line("/proc/sys/kernel/osrelease").unwrap_or_else(|| "(unknown)".to_owned());
    let allowed_cpus = allowed_cpus();
    check_cpus(&needs.cpus, &allowed_cpus, read_line("/sys/devices/system/cpu/online").as_deref())?;
    // Before the rings, which would fail for want of it with a less telling error.
    let memlock = memlock();
    check_memlock(needs, memlock, soft_limit())?;
    check_executor_ring(&kernel)?;
    let (backend, ring_refused) = choose_backend(needs.backend)?;
    Ok(Findings { kernel, backend, ring_refused, allowed_cpus, memlock })
}

/// The CPUs on which a thread may run.
#[derive(Clone, Copy)]
pub(super) struct Affinity(Option<libc::cpu_set_t>);

impl Affinity {
    pub(super) fn of_this_thread() -> Affinity {
        // SAFETY: a set of bits, for which all zeros is the empty set.
        let mut cpus: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: a local of the stated size, written during the call.
        let result = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut cpus) };
        Affinity((result == 0).then_some(cpus))
    }

    /// A thread that a pinned one started gets off its CPU. Where the system refuses, it stays.
    pub(super) fn apply_here(&self) {
        if let Some(cpus) = &self.0 {
            // SAFETY: a set of the stated size that outlives the call.
            unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), cpus) };
        }
    }
}

fn allowed_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

fn check_cpus(cpus: &[usize], allowed: &[usize], online: Option<&str>) -> Result<(), PreflightError> {
    if cpus.is_empty() {
        return Err(PreflightError::NoCpu { allowed: allowed.to_vec() });
    }
    if let Some((_, cpu)) = cpus.iter().enumerate().find(|(at, cpu)| cpus.iter().take(*at).any(|c| c == *cpu))
    {
        return Err(PreflightError::CpuTwice { cpu: *cpu });
    }
    let without = |there: &dyn Fn(usize) -> bool| -> Vec<usize> {
        cpus.iter().copied().filter(|cpu| !there(*cpu)).collect()
    };
    // Without the kernel's list the mask alone decides.
    if let Some(online) = online {
        let missing = without(&|cpu| contains(online, cpu));
        if !missing.is_empty() {
            return Err(PreflightError::NoSuchCpu { missing, online: online.to_owned() });
        }
    }
    let forbidden = without(&|cpu| allowed.contains(&cpu));
    if forbidden.is_empty() {
        return Ok(());
    }
    Err(PreflightError::CpuNotAllowed { forbidden, allowed: allowed.to_vec() })
}

/// Whether a list like `0-3,8` names `cpu`.
fn contains(list: &str, cpu: usize) -> bool {
    list.split(',').any(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = (first.trim().parse::<usize>(), last.trim().parse::<usize>());
        matches!(bounds, (Ok(first), Ok(last)) if (first..=last).contains(&cpu))
    })
}

/// The executors need a ring whichever back end moves the datagrams.
fn check_executor_ring(kernel: &str) -> Result<(), PreflightError> {
    let ring = IoUring::new(1).map_err(|error| explain(error, kernel))?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe).map_err(|error| explain(error, kernel))?;
    let missing: Vec<&str> = EXECUTOR_OPERATIONS
        .iter()
        .filter(|(_, code)| !probe.is_supported(*code))
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(PreflightError::MissingOperations { kernel: kernel.to_owned(), missing: missing.join(", ") })
}

/// Submitted by glommio, which refuses to start without any of them.
const EXECUTOR_OPERATIONS: [(&str, u8); 24] = [
    ("NOP", opcode::Nop::CODE),
    ("READV", opcode::Readv::CODE),
    ("WRITEV", opcode::Writev::CODE),
    ("FSYNC", opcode::Fsync::CODE),
    ("READ_FIXED", opcode::ReadFixed::CODE),
    ("WRITE_FIXED", opcode::WriteFixed::CODE),
    ("POLL_ADD", opcode::PollAdd::CODE),
    ("POLL_REMOVE", opcode::PollRemove::CODE),
    ("SENDMSG", opcode::SendMsg::CODE),
    ("RECVMSG", opcode::RecvMsg::CODE),
    ("TIMEOUT", opcode::Timeout::CODE),
    ("TIMEOUT_REMOVE", opcode::TimeoutRemove::CODE),
    ("ACCEPT", opcode::Accept::CODE),
    ("ASYNC_CANCEL", opcode::AsyncCancel::CODE),
    ("LINK_TIMEOUT", opcode::LinkTimeout::CODE),
    ("CONNECT", opcode::Connect::CODE),
    ("FALLOCATE", opcode::Fallocate::CODE),
    ("OPENAT", opcode::OpenAt::CODE),
    ("CLOSE", opcode::Close::CODE),
    ("STATX", opcode::Statx::CODE),
    ("READ", opcode::Read::CODE),
    ("WRITE", opcode::Write::CODE),
    ("SEND", opcode::Send::CODE),
    ("RECV", opcode::Recv::CODE),
];

fn explain(error: io::Error, kernel: &str) -> PreflightError {
    let disabled = || read_line("/proc/sys/kernel/io_uring_disabled").and_then(|value| value.parse().ok());
    match error.raw_os_error() {
        Some(libc::ENOSYS) => PreflightError::NoIoUring { kernel: kernel.to_owned() },
        Some(libc::EPERM | libc::EACCES) => match disabled() {
            Some(value) if value > 0 => PreflightError::DisabledBySysctl { value },
            _ => PreflightError::Blocked,
        },
        _ => PreflightError::Ring(error),
    }
}

fn check_memlock(needs: &Needs, memlock: Memlock, soft: Memlock) -> Result<(), PreflightError> {
    let executors = needs.cpus.len();
    let need = needs.locked_bytes().max(GLOMMIO_FLOOR_BYTES);
    let need_kib = need.div_ceil(1024);
    // The floor is compared with the bare limit, even for those who may exceed it.
    match (soft, memlock) {
        (Memlock::Bytes(soft), _) if soft < GLOMMIO_FLOOR_BYTES => {
            Err(PreflightError::Memlock { executors, need_kib, limit: Memlock::Bytes(soft) })
        }
        (_, Memlock::Bytes(limit)) if limit < need => {
            Err(PreflightError::Memlock { executors, need_kib, limit: memlock })
        }
        _ => Ok(()),
    }
}

/// What counts: the soft limit, unless the process may exceed it.
fn memlock() -> Memlock {
    // Bit 14 of the effective capabilities is CAP_IPC_LOCK (capabilities(7)).
    let capabilities = fs::read_to_string("/proc/self/status").ok().and_then(|status| {
        let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    if capabilities.is_some_and(|bits| bits & (1 << 14) != 0) { Memlock::Unlimited } else { soft_limit() }
}

fn soft_limit() -> Memlock {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a local, written during the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    if result == 0 && limit.rlim_cur != libc::RLIM_INFINITY {
        Memlock::Bytes(limit.rlim_cur)
    } else {
        Memlock::Unlimited
    }
}

fn choose_backend(wanted: Option<Backend>) -> Result<(Backend, Option<String>), PreflightError> {
    if wanted == Some(Backend::Syscalls) {
        return Ok((Backend::Syscalls, None));
    }
    match RingIo::probe() {
        Ok(()) => Ok((Backend::Ring, None)),
        Err(error) if wanted == Some(Backend::Ring) => {
            Err(PreflightError::NoMultishot { reason: error.to_string() })
        }
        Err(error) => Ok((Backend::Syscalls, Some(error.to_string()))),
    }
}

fn read_line(path: &str) -> Option<String> {
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs(cpus: &[usize], io_memory: u64) -> Needs {
        Needs { cpus: cpus.to_vec(), io_memory, io_limits: IoLimits::default(), backend: None }
    }

    fn message(result: Result<(), PreflightError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn this_host_passes() {
        let cpu = allowed_cpus()[0];
        let findings = check(&needs(&[cpu], 64 << 10)).unwrap();
        assert_eq!(findings.backend, Backend::Ring);
        assert!(findings.allowed_cpus.contains(&cpu) && !findings.kernel.is_empty());
    }

    #[test]
    fn cpus_that_are_offline_or_forbidden_or_given_twice_are_named() {
        let check = |cpus: &[usize]| check_cpus(cpus, &[0, 1, 2, 5], Some("0-5"));
        assert!(check(&[0, 5]).is_ok());
        assert!(message(check(&[1, 6, 7])).contains("6-7 are not online on this host; online are 0-5"));
        assert!(message(check(&[3])).contains("3 is not allowed"));
        assert!(message(check(&[3])).contains("allowed are 0-2,5"));
        assert!(message(check(&[2, 2])).contains("2 is given twice"));
        assert!(message(check(&[])).contains("at least one of 0-2,5"));
    }

    #[test]
    fn locked_memory_is_the_sum_over_executors() {
        let ring = RingIo::locked_bytes(&IoLimits::default());
        // As measured: a ring of this size starts under a limit of 56 KiB and not under 52.
        assert_eq!(ring, 56 << 10);
        assert_eq!(needs(&[0], 0).locked_bytes(), (192 << 10) + (64 << 10) + ring + (64 << 10));
        assert_eq!(
            needs(&[0, 1], 10 << 20).locked_bytes(),
            2 * ((30 << 20) + (64 << 10) + ring) + (64 << 10)
        );
    }

    #[test]
    fn too_little_locked_memory_says_how_much_is_needed() {
        let limit = Memlock::Bytes(8 << 20);
        assert!(check_memlock(&needs(&[0, 1], 64 << 10), limit, limit).is_ok());
        let text = message(check_memlock(&needs(&[0, 1], 10 << 20), limit, limit));
        assert!(text.contains("2 executors need 61744 KiB, the limit is 8192 KiB"), "{text}");
    }

    #[test]
    fn the_floor_of_the_executors_holds_even_for_root() {
        let small = Memlock::Bytes(64 << 10);
        let text = message(check_memlock(&needs(&[0], 0), Memlock::Unlimited, small));
        assert!(text.contains("need 512 KiB, the limit is 64 KiB"), "{text}");
        assert!(check_memlock(&needs(&[0], 64 << 20), Memlock::Unlimited, Memlock::Bytes(1 << 20)).is_ok());
    }

    #[test]
    fn refusals_of_the_kernel_are_told_apart() {
        let explain = |errno| explain(io::Error::from_raw_os_error(errno), "5.0");
        assert!(matches!(explain(libc::ENOSYS), PreflightError::NoIoUring { .. }));
        assert!(matches!(explain(libc::EMFILE), PreflightError::Ring(_)));
        assert!(explain(libc::EPERM).to_string().starts_with("io_uring: forbidden"));
    }
}
