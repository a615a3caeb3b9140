//! What the system says of processes and of the loopback device, and signals to processes that this one started.
#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::process::Child;

use serde::{Deserialize, Serialize};

use crate::subnet::fault::{Exit, Fault};
use crate::subnet::memory;

/// What was used so far.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Used {
    /// CPU seconds of all threads of this process, in user and system.
    pub(crate) cpu_seconds: f64,
    /// Allocations of all threads of this process.
    pub(crate) allocations: u64,
    /// Bytes sent over `lo` by the whole host, headers included; 0 where the system does not say.
    pub(crate) loopback_bytes: u64,
}

impl Used {
    /// As of now.
    pub(crate) fn now() -> Result<Used, Fault> {
        let (cpu_seconds, allocations) = (cpu_seconds()?, memory::allocations());
        Ok(Used { cpu_seconds, allocations, loopback_bytes: loopback_bytes() })
    }

    /// What was used after `earlier`.
    pub(crate) fn since(&self, earlier: &Used) -> Used {
        Used {
            cpu_seconds: (self.cpu_seconds - earlier.cpu_seconds).max(0.0),
            allocations: self.allocations.saturating_sub(earlier.allocations),
            loopback_bytes: self.loopback_bytes.saturating_sub(earlier.loopback_bytes),
        }
    }

    /// Adds what was used at another time.
    pub(crate) fn add(&mut self, other: &Used) {
        self.add_process(other);
        self.loopback_bytes += other.loopback_bytes;
    }

    /// Adds what another process used at the same time.
    pub(crate) fn add_process(&mut self, other: &Used) {
        self.cpu_seconds += other.cpu_seconds;
        self.allocations += other.allocations;
    }
}

fn cpu_seconds() -> Result<f64, Fault> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: `usage` lives on this stack frame and has the size and alignment that the call writes to.
    let result = unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    if result != 0 {
        let error = io::Error::last_os_error();
        return Err(Fault::new(Exit::Os, format!("the process's CPU time cannot be read: {error}")));
    }
    // SAFETY: every bit pattern is a valid `rusage`, and the call has filled it.
    let usage = unsafe { usage.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

fn loopback_bytes() -> u64 {
    let devices = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    sent_bytes(&devices, "lo").unwrap_or(0)
}

/// The ninth number of a device's line.
fn sent_bytes(devices: &str, device: &str) -> Option<u64> {
    let numbers =
        devices.lines().find_map(|line| line.trim_start().strip_prefix(device)?.strip_prefix(':'))?;
    numbers.split_whitespace().nth(8)?.parse().ok()
}

/// The slice that this thread asks the scheduler for, in nanoseconds; the default is 3 ms.
const SLICE_NS: u64 = 500_000;

/// Lets this thread's sleeps end when they should, not up to 50 µs later; and lets it run soon after, though the executors keep
/// the cores busy, in exchange for short turns. It needs no right, and does nothing before Linux 6.12.
///
/// What the load generator itself delays is not what is measured: this takes it from 2 ms to half a millisecond at the 99th
/// percentile, on two cores that are busy.
pub(crate) fn run_promptly() {
    let size = size_of::<libc::sched_attr>() as libc::c_uint;
    let mut attributes = std::mem::MaybeUninit::<libc::sched_attr>::zeroed();
    // SAFETY: this option takes a number and touches no memory of ours. Should it fail, sleeps stay less precise.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    // SAFETY: `attributes` lives on this stack frame, and `size` is its size.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, 0, attributes.as_mut_ptr(), size, 0) };
    // SAFETY: every bit pattern is valid, all zeroes too.
    let mut attributes = unsafe { attributes.assume_init() };
    if got == 0 && attributes.sched_policy == libc::SCHED_OTHER as u32 {
        attributes.sched_runtime = SLICE_NS;
        // SAFETY: the call reads `attributes`, which says its own size. Should it fail, nothing has changed.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) };
    }
}

/// Has the kernel give this process small pages alone. A huge one is zeroed when it is first touched, which takes milliseconds
/// where the host of a virtual machine has yet to find its memory; a node that keeps more than before would seem slow by that.
pub(crate) fn without_huge_pages() {
    let (on, unused) = (1 as libc::c_ulong, 0 as libc::c_ulong);
    // SAFETY: this option takes numbers and touches no memory of ours. Should it fail, pages stay as they are.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, on, unused, unused, unused) };
}

/// Ends this process with the thread that started it, even while it is stopped.
pub(crate) fn end_with_parent() {
    // SAFETY: as above. Should it fail, the end of its input ends this process.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong) };
}

/// Stops a process, or lets it go on.
pub(crate) fn freeze(child: &Child, stop: bool) -> Result<(), Fault> {
    let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
    let pid = libc::pid_t::try_from(child.id()).unwrap_or(0);
    // SAFETY: the call takes two numbers. The process is ours and not yet waited for, so the number is still its own.
    if pid > 0 && unsafe { libc::kill(pid, signal) } == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    Err(Fault::new(Exit::Os, format!("process {pid} cannot be sent a signal: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meters_show_something() {
        let before = Used::now().unwrap();
        let boxes = || std::hint::black_box((0..1_000).map(Box::new).collect::<Vec<Box<i32>>>()).len();
        assert_eq!(boxes() + std::thread::spawn(boxes).join().unwrap(), 2_000);
        assert!(Used::now().unwrap().since(&before).allocations >= 2_000);
    }

    #[test]
    fn sent_bytes_are_read_from_the_device_of_that_name() {
        let devices = "Inter-|   Receive          |  Transmit\n face |bytes packets |bytes\n   \
                       alo:  1 0 0 0 0 0 0 0 2 0 0 0 0 0 0 0\n    lo: 10 1 0 0 0 0 0 0 77 1 0 0 0 0 0 0\n";
        assert_eq!(sent_bytes(devices, "lo"), Some(77));
        assert_eq!(sent_bytes(devices, "eth0"), None);
        assert_eq!(sent_bytes("lo: 1 2", "lo"), None);
    }
}
