//! What this process has used: CPU time and memory.
#![allow(unsafe_code)]

use std::fs;
use std::io;

use crate::subnet::fault::{Exit, Fault};

/// CPU seconds of all threads so far, in user and system.
pub(crate) fn cpu_seconds() -> Result<f64, Fault> {
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

/// Lets this thread's sleeps end when they should, not up to 50 µs later.
pub(crate) fn sleep_precisely() {
    // SAFETY: this option takes a number and touches no memory of ours. Should it fail, sleeps stay less precise.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
}

/// The most memory this process has had resident, in bytes; 0 where the system does not say.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib =
        line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_meters_show_something() {
        assert!(cpu_seconds().unwrap() >= 0.0);
        assert!(peak_rss_bytes() > 100_000);
    }
}
