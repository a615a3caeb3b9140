//! What a hostile member begins and never ends, or ends when it pleases.

use std::time::Duration;

use bytes::Bytes;

use super::flow::{FlowId, What};
use super::member::limits;
use super::net::{Cargo, REQUEST_BYTES};
use super::options::Options;
use super::world::{Actor, Happening, World};
use crate::types::{Rng, StreamKey};
use crate::wire::PushHead;

impl Options {
    /// Draws how much is of this kind.
    pub(super) fn hang(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x6861_6e67_696e);
        if self.hostile > 0 && rng.one_in(2) {
            self.lies.hang_percent = 1 + rng.below(80);
        }
    }
}

impl World {
    /// The longest that one of them takes which does end.
    const LONGEST: Duration = Duration::from_secs(20);

    /// A hostile member begins to push something, unless it does so already on as many streams as its link may have.
    pub(super) fn hang(&mut self, node: usize, peer: usize) {
        let most = limits(&self.options).pushes_in_assembly;
        let (Some(connection), Actor::Hostile(hostile)) = (self.net.side(node, peer), &mut self.actors[node])
        else {
            return;
        };
        if self.flows.pushes(node, peer) >= most {
            return;
        }
        let push = hostile.begin_push();
        let flow = self.begin(node, peer, connection, push);
        if self.rng.one_in(3) {
            let wait = Duration::from_nanos(self.rng.below(Self::LONGEST.as_nanos() as u64));
            let cargo = Cargo::PushEnd(flow);
            self.after(wait, Happening::Arrive { from: node, to: peer, connection, cargo });
        }
    }

    fn begin(
        &mut self,
        node: usize,
        peer: usize,
        connection: u64,
        push: (StreamKey, PushHead, Bytes),
    ) -> FlowId {
        let (key, head, body) = push;
        let flow = self.flows.open(connection, node, peer, key, What::Push { head, body, started: false });
        self.ship(node, peer, connection, REQUEST_BYTES, Cargo::PushHead(flow));
        flow
    }

    /// A hostile member begins to push this, and does not end.
    pub(super) fn begin_push(&mut self, node: usize, peer: usize, head: PushHead) -> Result<(), String> {
        let connection = self.net.side(node, peer).ok_or("not connected")?;
        let key = StreamKey(1 << 32 | head.version.0);
        self.begin(node, peer, connection, (key, head, Bytes::new()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn mixed_runs_leave_pushes_hanging() {
        let all = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages));
        assert!(all.filter(|options| options.lies.hang_percent > 0).count() > 50);
    }
}
