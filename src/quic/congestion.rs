//! Congestion control: CUBIC (RFC 9438), which counts no loss before the peer first answered.
//!
//! A member that is still starting drops our first packet. RFC 9002 §7 takes that for congestion, and the connection
//! leaves slow start with a window of a few packets, which takes seconds to recover: it is the slowest link of every
//! broadcast meanwhile. TCP does not count a lost SYN so either (RFC 5681 §3.1): it starts with less, but in slow start.

use std::any::Any;
use std::sync::Arc;
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};

/// Makes a controller for each path.
#[derive(Debug)]
pub(super) struct Congestion(Arc<CubicConfig>);

impl Congestion {
    /// `initial_window` in bytes.
    pub(super) fn new(initial_window: u64) -> Congestion {
        let mut config = CubicConfig::default();
        config.initial_window(initial_window);
        Congestion(Arc::new(config))
    }
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        Box::new(AnsweredCubic { cubic: Cubic::new(self.0.clone(), now, mtu), answered: None })
    }
}

#[derive(Debug, Clone)]
struct AnsweredCubic {
    cubic: Cubic,
    /// When the first acknowledgement came.
    answered: Option<Instant>,
}

impl Controller for AnsweredCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.answered.get_or_insert(now);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        if self.answered.is_some_and(|answered| sent >= answered) {
            self.cubic.on_congestion_event(now, sent, is_persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, mtu: u16) {
        self.cubic.on_mtu_update(mtu);
    }

    fn window(&self) -> u64 {
        self.cubic.window()
    }

    fn metrics(&self) -> ControllerMetrics {
        self.cubic.metrics()
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.cubic.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const WINDOW: u64 = 14_520;

    fn controller(now: Instant, answered: Option<Instant>) -> AnsweredCubic {
        let mut config = CubicConfig::default();
        config.initial_window(WINDOW);
        AnsweredCubic { cubic: Cubic::new(Arc::new(config), now, 1452), answered }
    }

    #[test]
    fn what_was_sent_before_the_first_answer_is_not_counted_as_lost() {
        let sent = Instant::now();
        let answered = sent + Duration::from_millis(300);
        for first_answer in [None, Some(answered)] {
            let mut controller = controller(sent, first_answer);
            controller.on_congestion_event(answered, sent, false, 1200);
            assert_eq!(controller.window(), WINDOW);
        }
    }

    #[test]
    fn a_later_loss_narrows_the_window() {
        let answered = Instant::now();
        let mut controller = controller(answered, Some(answered));
        let sent = answered + Duration::from_millis(1);
        controller.on_congestion_event(sent + Duration::from_millis(1), sent, false, 1452);
        assert!(controller.window() < WINDOW);
    }
}
