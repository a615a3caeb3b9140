//! No wake-up is lost, in a short form of the soak in `benches/wake.rs`.

use corecast::node::io::Backend;

#[path = "../benches/wake.rs"]
mod wake;

use wake::{Idle, Plan, Report, run};

fn soak(cycles: u64, idle: Idle, backend: Backend) -> Report {
    let report = run(&Plan { cycles, threads: 2, idle, backend, seed: 7 });
    assert!(report.noticed >= cycles, "{} of {cycles} noticed", report.noticed);
    assert_eq!((report.lost, report.disordered), (0, 0));
    report
}

#[test]
fn a_parked_driver_misses_no_wake() {
    let report = soak(60_000, Idle::Park, Backend::Ring);
    assert!(report.wakes > 1000, "only {} waits were ended by the wake word", report.wakes);
    let report = soak(20_000, Idle::Park, Backend::Syscalls);
    assert!(report.wakes > 300, "only {} waits were ended by the wake word", report.wakes);
    let report = soak(20_000, Idle::Spin, Backend::Ring);
    assert_eq!((report.parks, report.wakes), (0, 0));
    assert!(report.latency_ns(500) > 0);
}
