//! Requests of hostile members: as many at once as a link takes, and given up before they are answered, to ask again.

use super::chaos::OPEN_REQUESTS;
use super::options::Options;
use super::world::{Actor, World};
use crate::types::Rng;
use crate::wire::Outgoing;

impl Options {
    /// Draws how often hostile members do so.
    pub(super) fn pester(&mut self) {
        let rng = &mut Rng::new(self.seed ^ 0x7065_7374_6572);
        if self.hostile > 0 && rng.one_in(2) {
            self.lies.give_up_percent = 1 + rng.below(50);
        }
    }

    /// Requests that a peer may have open to a member, as streams.
    pub(super) fn open_requests(&self) -> usize {
        match self.level {
            super::Level::Messages => OPEN_REQUESTS,
            super::Level::Quic | super::Level::Tls => self.datagrams.bidi_streams as usize,
        }
    }
}

impl World {
    /// Requests that one asks for at once.
    const MANY: u64 = 64;

    /// A hostile member gives up some of what it asked of a peer, or all, and asks for more.
    pub(super) fn pester(&mut self, node: usize, peer: usize) -> Result<(), String> {
        let Some(Actor::Hostile(hostile)) = self.actors.get_mut(node) else { return Ok(()) };
        let asked = hostile.asked.remove(&peer).unwrap_or_default();
        let keep_one_in = self.asides.below(4);
        let (kept, given_up): (Vec<_>, Vec<_>) =
            asked.into_iter().partition(|_| self.asides.one_in(keep_one_in));
        let more = 1 + self.asides.below(Self::MANY);
        hostile.asked.insert(peer, kept);
        given_up.into_iter().for_each(|key| self.reset(node, peer, key));
        self.ask_many(node, peer, more)?;
        self.turn(node)
    }

    /// A hostile member asks a peer for things, as many as its link takes.
    pub(super) fn ask_many(&mut self, node: usize, peer: usize, count: u64) -> Result<(), String> {
        for _ in 0..count {
            let open = self.flows.requests(node, peer);
            let Some(Actor::Hostile(hostile)) = self.actors.get_mut(node) else { return Ok(()) };
            match (&mut self.wire, self.net.side(node, peer)) {
                (Some(wire), _) => wire.say(node, peer, hostile.ask_of(peer)),
                (None, Some(connection)) if open < OPEN_REQUESTS => {
                    let request: Outgoing = hostile.ask_of(peer);
                    self.send(node, peer, connection, request);
                }
                (None, _) => return Ok(()),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Level;
    use super::*;

    #[test]
    fn hostile_members_of_mixed_runs_give_up_requests() {
        let all = (0..1_000).map(|seed| Options::mixed(seed, Level::Messages));
        assert!(all.filter(|options| options.lies.give_up_percent > 0).count() > 50);
    }
}
