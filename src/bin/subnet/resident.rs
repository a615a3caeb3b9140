//! The most memory that this process had resident at a time, and how much of that was artifacts on their way.

use std::fs;
use std::time::{Duration, Instant};

/// Between two looks. One takes some twenty microseconds.
const EVERY: Duration = Duration::from_millis(10);

/// See the module.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    looked: Instant,
    pub(crate) bytes: u64,
    /// Bytes of the artifacts that not all receivers had when the peak was reached, or up to 10 ms later, each counted once, at
    /// its maker. What receivers hold of them is not among it.
    pub(crate) in_flight_bytes: u64,
}

impl Peak {
    /// What has been resident so far, with nothing on its way.
    pub(crate) fn new() -> Peak {
        Peak { looked: Instant::now(), bytes: peak_rss_bytes(), in_flight_bytes: 0 }
    }

    /// Looks whether there is a new peak, if the last look was long enough ago; when the next is due.
    pub(crate) fn look(&mut self, now: Instant, in_flight_bytes: u64) -> Instant {
        if now >= self.looked + EVERY {
            self.looked = now;
            self.reached(peak_rss_bytes(), in_flight_bytes);
        }
        self.looked + EVERY
    }

    fn reached(&mut self, bytes: u64, in_flight_bytes: u64) {
        if bytes > self.bytes {
            (self.bytes, self.in_flight_bytes) = (bytes, in_flight_bytes);
        }
    }

    /// All but the artifacts on their way.
    pub(crate) fn beyond_bytes(&self) -> u64 {
        self.bytes.saturating_sub(self.in_flight_bytes)
    }
}

/// The most memory this process has had resident, in bytes; 0 where the system does not say.
pub(crate) fn peak_rss_bytes() -> u64 {
    bytes_of("VmHWM:")
}

/// What is resident now.
#[allow(dead_code, reason = "not every tool reports it")]
pub(crate) fn rss_bytes() -> u64 {
    bytes_of("VmRSS:")
}

fn bytes_of(field: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib =
        line.and_then(|line| line.trim().strip_suffix("kB")).and_then(|kib| kib.trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_keeps_what_was_on_its_way_when_it_was_reached() {
        let mut peak = Peak { looked: Instant::now(), bytes: 100, in_flight_bytes: 0 };
        peak.reached(300, 50);
        peak.reached(300, 0);
        peak.reached(200, 90);
        assert_eq!((peak.bytes, peak.in_flight_bytes, peak.beyond_bytes()), (300, 50, 250));
    }

    #[test]
    fn new_memory_is_seen() {
        let mut peak = Peak::new();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        peak.look(Instant::now() + EVERY, 64 << 20);
        assert!(peak.bytes >= rss_bytes() && rss_bytes() >= memory.len() as u64);
        assert!(peak.bytes >= memory.len() as u64 && peak.in_flight_bytes == memory.len() as u64);
    }
}
