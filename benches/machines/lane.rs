//! Whole lanes, sockets apart: engine, QUIC and TLS of a maker and of a receiver, in virtual time.

use std::time::Duration;

use bytes::Bytes;
use corecast::config::TopicConfig;

use super::mesh::{Mesh, TOPIC};
use super::operations::{BATCH, Scale, Work};

/// Broadcast, delivered, released and aborted.
fn exchange(artifacts: usize, len: usize) -> Work {
    let mut mesh = Mesh::new(2, &TopicConfig::new(TOPIC, "bench"), |_| ());
    let mut serial = 0u64;
    Box::new(move || {
        let body = |_| {
            serial += 1;
            let mut body = vec![7; len];
            body[..8].copy_from_slice(&serial.to_le_bytes());
            Bytes::from(body)
        };
        let bodies: Vec<_> = (0..artifacts).map(body).collect();
        let ids: Vec<_> = bodies.into_iter().map(|body| mesh.broadcast(0, body)).collect();
        mesh.run(Duration::from_secs(1), |mesh| mesh.delivered(1) == artifacts);
        drop(mesh.take_delivered(1));
        ids.into_iter().for_each(|id| mesh.abort(0, id));
        mesh.run_for(Duration::from_millis(1));
    })
}

pub(crate) fn small(_: Scale) -> Work {
    exchange(BATCH, 1 << 10)
}

pub(crate) fn large(_: Scale) -> Work {
    exchange(1, 1 << 20)
}
