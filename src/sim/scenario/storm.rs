//! Bodies that are aborted as soon as they are made, for ten minutes.

use std::time::Duration;

use bytes::Bytes;

use super::script::{ensure, millis};
use crate::engine::ArtifactState;
use crate::sim::member::topic_id;
use crate::sim::world::World;
use crate::types::ArtifactId;

/// How long it lasts, in as many bursts with a pause after each.
const BURSTS: u64 = 20;
const EACH: Duration = Duration::from_secs(30);
/// Bodies of a burst, one every millisecond, and the bytes of each.
const BODIES: u64 = 50;
const BODY: usize = 1 << 20;
/// How long a body is active.
const LIFE: u64 = 10;

/// What was made, where, and in which topic.
struct Made {
    node: usize,
    topic: usize,
    id: ArtifactId,
}

pub(super) fn short_lives(world: &mut World) -> Result<(), String> {
    world.pass(millis(500))?;
    for _ in 0..BURSTS {
        let end = world.now + EACH;
        let ids = burst(world)?;
        // Two that relay one body keep it for each other.
        for _ in 0..2 {
            world.pass(Duration::from_secs(1))?;
            world.drop_relays(&ids)?;
        }
        world.pass(Duration::from_secs(2))?;
        let full = || "an aborted body is still somewhere".to_owned();
        for id in &ids {
            let known = |node: usize| (0..2).any(|topic| world.state_in(node, topic, id).is_some());
            ensure((0..world.options.members).all(|node| !known(node)), full)?;
            world.bodies.remove(id);
        }
        world.check_idle()?;
        world.run_until(end)?;
    }
    let (broadcasts, aborts) = (world.counter(|c| c.broadcasts), world.counter(|c| c.aborts));
    ensure(broadcasts >= BURSTS * BODIES && aborts >= broadcasts, || {
        format!("{broadcasts} broadcasts and {aborts} aborts are no storm")
    })?;
    ensure(world.counter(|c| c.resets_sent) > 0, || "no body was on its way when it was aborted".to_owned())?;
    world.make_peace()?;
    world.finish()
}

/// One body a millisecond, of any member and topic; each is aborted when it is ten milliseconds old.
fn burst(world: &mut World) -> Result<Vec<ArtifactId>, String> {
    let (mut made, mut ids) = (Vec::new(), Vec::new());
    for number in 0..BODIES + LIFE {
        if number < BODIES {
            let (node, topic) = (world.rng.below(4) as usize, world.rng.below(2) as usize);
            let mut body = vec![0; BODY];
            world.rng.fill(&mut body[..16]);
            let id = world.broadcast(node, topic, Bytes::from(body))?.ok_or("no room for a short life")?;
            made.push(Made { node, topic, id });
            ids.push(id);
        }
        if let Some(at) = number.checked_sub(LIFE)
            && let Some(Made { node, topic, id }) = made.get(at as usize)
        {
            world.with_member(*node, |member, now, fx| member.abort(topic_id(*topic), *id, now, fx))?;
            world.check_aborted(*node, topic_id(*topic), id)?;
        }
        world.pass(millis(1))?;
    }
    Ok(ids)
}

impl World {
    fn drop_relays(&mut self, ids: &[ArtifactId]) -> Result<(), String> {
        for (node, topic) in (0..self.options.members).flat_map(|node| [(node, 0), (node, 1)]) {
            for id in ids {
                if self.state_in(node, topic, id) != Some(ArtifactState::Active) {
                    continue;
                }
                self.with_member(node, |member, now, fx| member.abort(topic_id(topic), *id, now, fx))?;
            }
        }
        Ok(())
    }

    /// Between bursts nothing is left of them.
    fn check_idle(&mut self) -> Result<(), String> {
        self.oracle.check_empty(&self.actors, &self.options)?;
        self.wire.as_ref().map_or(Ok(()), |wire| wire.check_streams(self.options.members))
    }
}
