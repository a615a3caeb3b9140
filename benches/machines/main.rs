//! What one operation of each machine costs, by how much is active and how many peers there are.
//!
//! `cargo bench --bench machines` for all; `cargo bench --bench machines -- slots` for those whose name contains it. Counts
//! of instructions, which do not depend on the machine's mood, are `cargo bench --bench counts`.

mod body;
mod engine;
mod fetch;
mod lane;
#[path = "../../tests/mesh/mod.rs"]
mod mesh;
mod operations;
mod slots;
mod view;
mod wire;

use std::time::Duration;

use criterion::{Criterion, Throughput};

use operations::{Depends, OPERATIONS, Scale};

/// Few and many active, at the peers of a small subnet; then few and many peers.
const SCALES: [Scale; 6] = [
    Scale { active: 1_000, peers: 13 },
    Scale { active: 10_000, peers: 13 },
    Scale { active: 100_000, peers: 13 },
    Scale { active: 10_000, peers: 4 },
    Scale { active: 10_000, peers: 40 },
    Scale { active: 10_000, peers: 200 },
];

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(800))
        .sample_size(20)
        .configure_from_args();
    for operation in OPERATIONS {
        let scales = match operation.depends {
            Depends::No => &SCALES[..1],
            Depends::OnPeers | Depends::OnPairs => &SCALES,
        };
        let mut group = criterion.benchmark_group(operation.name);
        group.throughput(Throughput::Elements(operation.artifacts));
        for scale in scales {
            let name = match operation.depends {
                Depends::No => "alone".to_owned(),
                Depends::OnPeers | Depends::OnPairs => {
                    format!("{} active, {} peers", scale.active, scale.peers)
                }
            };
            // Made only when it is its turn, and once.
            let mut work = None;
            group.bench_function(name, |bencher| {
                bencher.iter(work.get_or_insert_with(|| (operation.make)(*scale)));
            });
        }
        group.finish();
    }
    criterion.final_summary();
}
