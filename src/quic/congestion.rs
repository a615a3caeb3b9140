//! Congestion control: CUBIC (RFC 9438), which counts no loss before the peer first answered.
//!
//! A member that is still starting drops our first packet. RFC 9002 §7 takes that for congestion, and the connection
//! leaves slow start with a window of a few packets, which takes seconds to recover: it is the slowest link of every
//! broadcast meanwhile. TCP does not count a lost SYN so either (RFC 5681 §3.1): it starts with less, but in slow start.
//!
//! A controller is told of everything that is sent, acknowledged and lost. It keeps a gauge of that, which quinn itself does not
//! show.

use std::any::Any;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics, Cubic, CubicConfig};

/// What is on its way on a connection. Written and read by its lane alone; the atomics are there because quinn may send a
/// controller elsewhere.
#[derive(Debug, Default)]
pub(super) struct Flight {
    bytes: AtomicU64,
    losses: AtomicU64,
    idle: AtomicBool,
}

impl Flight {
    /// Bytes of packets that are sent and neither acknowledged nor lost.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How often losses were found.
    pub(super) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Relaxed)
    }

    /// Whether, when the last acknowledgement came, there had been nothing to send though the path would have taken it. Said once
    /// for each acknowledgement.
    pub(super) fn take_idle(&self) -> bool {
        self.idle.swap(false, Ordering::Relaxed)
    }

    fn sent(&self, bytes: u64) {
        self.bytes.store(self.bytes() + bytes, Ordering::Relaxed);
    }

    fn left(&self, bytes: u64, idle: bool) {
        self.bytes.store(bytes, Ordering::Relaxed);
        self.idle.store(idle, Ordering::Relaxed);
    }

    fn lost(&self, bytes: u64) {
        self.bytes.store(self.bytes().saturating_sub(bytes), Ordering::Relaxed);
        self.losses.store(self.losses() + 1, Ordering::Relaxed);
    }
}

/// Makes a controller for each connection.
#[derive(Debug)]
pub(super) struct Congestion {
    config: Arc<CubicConfig>,
    /// The gauge of the last one.
    last: Mutex<Arc<Flight>>,
}

impl Congestion {
    /// `initial_window` in bytes.
    pub(super) fn new(initial_window: u64) -> Congestion {
        let mut config = CubicConfig::default();
        config.initial_window(initial_window);
        Congestion { config: Arc::new(config), last: Mutex::default() }
    }

    /// The gauge of the connection that was made last.
    pub(super) fn last_flight(&self) -> Arc<Flight> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ControllerFactory for Congestion {
    fn build(self: Arc<Self>, now: Instant, mtu: u16) -> Box<dyn Controller> {
        let flight = Arc::<Flight>::default();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = flight.clone();
        Box::new(AnsweredCubic { cubic: Cubic::new(self.config.clone(), now, mtu), answered: None, flight })
    }
}

#[derive(Debug, Clone)]
struct AnsweredCubic {
    cubic: Cubic,
    /// When the first acknowledgement came.
    answered: Option<Instant>,
    flight: Arc<Flight>,
}

impl Controller for AnsweredCubic {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        self.flight.sent(bytes);
        self.cubic.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        self.answered.get_or_insert(now);
        self.cubic.on_ack(now, sent, bytes, app_limited, rtt);
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.flight.left(in_flight, app_limited);
        self.cubic.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.flight.lost(lost_bytes);
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
        let flight = Arc::default();
        AnsweredCubic { cubic: Cubic::new(Arc::new(config), now, 1452), answered, flight }
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
    fn what_is_on_its_way_is_gauged() {
        let now = Instant::now();
        let factory = Arc::new(Congestion::new(WINDOW));
        let mut controller = factory.clone().build(now, 1452);
        let flight = factory.last_flight();
        controller.on_sent(now, 10_000, 3);
        controller.on_sent(now, 2_000, 4);
        assert_eq!((flight.bytes(), flight.losses()), (12_000, 0));
        controller.on_end_acks(now, 9_000, true, Some(1));
        assert!(flight.take_idle() && !flight.take_idle());
        controller.on_congestion_event(now, now, false, 4_000);
        assert_eq!((flight.bytes(), flight.losses()), (5_000, 1));
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
