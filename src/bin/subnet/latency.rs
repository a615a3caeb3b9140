//! Latencies in a histogram of three significant digits.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::fault::{Exit, Fault};

/// The longest latency that is told apart from longer ones, in nanoseconds.
const LONGEST_NS: u64 = 3_600_000_000_000;

/// How long something took, again and again.
#[derive(Debug, Clone)]
pub(crate) struct Latency(Histogram<u64>);

impl Latency {
    /// Nothing recorded yet.
    pub(crate) fn new() -> Result<Latency, Fault> {
        let histogram = Histogram::new_with_bounds(100, LONGEST_NS, 3);
        histogram.map(Latency).map_err(|error| Fault::new(Exit::Software, error.to_string()))
    }

    /// Adds one.
    pub(crate) fn record(&mut self, took: Duration) {
        self.0.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds what another has recorded.
    pub(crate) fn merge(&mut self, other: &Latency) {
        // All have the same bounds, so there is room for every value.
        self.0.add(&other.0).ok();
    }

    /// The latency that a share of `quantile` did not exceed, in microseconds; 0 when nothing was recorded.
    pub(crate) fn quantile_us(&self, quantile: f64) -> f64 {
        if self.0.is_empty() { 0.0 } else { self.0.value_at_quantile(quantile) as f64 / 1e3 }
    }

    /// The longest, in microseconds.
    pub(crate) fn max_us(&self) -> f64 {
        self.quantile_us(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_in_microseconds_to_three_digits() {
        let mut latency = Latency::new().unwrap();
        assert_eq!(latency.quantile_us(0.5), 0.0);
        (1..=1000).for_each(|us| latency.record(Duration::from_micros(us)));
        assert!((latency.quantile_us(0.5) - 500.0).abs() < 1.0);
        assert!((latency.max_us() - 1000.0).abs() < 1.0);
    }
}
