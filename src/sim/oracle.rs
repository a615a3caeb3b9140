//! The promises, checked: what may be said to a replica, what an engine may hold, and what must be so in the end.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::bounds;
use super::lane::Wire;
use super::member::{Known, Member, SETTLED, judge, topic_id};
use super::opinion::Word;
use super::options::Options;
use super::world::Actor;
use crate::config::Verdict;
use crate::engine::{ArtifactState, Census, Event};
use crate::types::{ArtifactId, NodeId, PeerIndex, TopicId};

/// See the module.
pub(super) struct Oracle {
    delivered: u64,
    /// Members before this one are honest.
    honest: usize,
    /// Who is who.
    ids: Vec<NodeId>,
    /// Turns of each member since its start: what it holds is counted every sixteenth, or every one where all is scarce.
    steps: Vec<u64>,
}

impl Oracle {
    pub(super) fn new(options: &Options, ids: Vec<NodeId>) -> Oracle {
        let honest = options.members - options.hostile;
        Oracle { delivered: 0, honest, ids, steps: vec![0; options.members] }
    }

    pub(super) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// A member starts without memory.
    pub(super) fn forget(&mut self, node: usize) {
        self.steps[node] = 0;
    }

    /// A consumer is told something. Gives the artifact that the replica must now decide about.
    pub(super) fn hear(
        &mut self,
        member: &mut Member,
        node: usize,
        topic: TopicId,
        event: &Event,
        bodies: &BTreeMap<ArtifactId, Bytes>,
    ) -> Result<Option<ArtifactId>, String> {
        match event {
            Event::Delivered { artifact, .. } => {
                let id = artifact.id;
                if bodies.get(&id) != Some(&artifact.bytes) {
                    return Err(format!("P2: member {node} is handed other bytes than {id} has"));
                }
                if member.own.contains(&(topic, id)) {
                    return Err(format!("P6: member {node} is handed {id}, which it broadcasts itself"));
                }
                if let Some(known) = member.known.insert((topic, id), Known::Held) {
                    return Err(format!("P6: member {node} is handed {id} again, which is {known:?}"));
                }
                self.delivered += 1;
                member.had.insert((topic, id));
                member.current.insert((topic, id));
                Ok(Some(id))
            }
            Event::Withdrawn { id } => {
                match member.known.get(&(topic, *id)) {
                    Some(Known::Held | Known::Leaving) => drop(member.known.remove(&(topic, *id))),
                    Some(Known::Relayed) => return Ok(Some(*id)),
                    Some(Known::Released) | None => {
                        return Err(format!(
                            "member {node} is told that {id} is withdrawn, which it does not have"
                        ));
                    }
                }
                Ok(None)
            }
            Event::Refused { id, by, .. } => {
                let honest = self.ids.iter().take(self.honest).any(|id| id == by);
                let new = member.refused.insert((topic, *id, *by));
                match (member.engine.active(topic).contains(id) && !honest, new) {
                    (true, true) => Ok(None),
                    (true, false) => Err(format!("P6: member {node} is told again that {by} refuses {id}")),
                    (false, _) => Err(format!("member {node} is told that {by} refuses {id}")),
                }
            }
        }
    }

    /// After turns of a member: what it holds is within its bounds.
    pub(super) fn check_member(
        &mut self,
        node: usize,
        actors: &[Actor],
        wire: Option<&Wire>,
        options: &Options,
    ) -> Result<(), String> {
        self.steps[node] += 1;
        let Some(Actor::Honest(member)) = actors.get(node) else { return Ok(()) };
        if options.scarcity.is_none() && !self.steps[node].is_multiple_of(16) {
            return Ok(());
        }
        bounds::check(node, member, options)?;
        wire.map_or(Ok(()), |wire| wire.check_bounds(node, options))?;
        let census = member.engine.census();
        check_asked(node, member, &census, options)?;
        check_panics(node, member)
    }

    /// Whether every active artifact of an honest member is wherever it is wanted.
    pub(super) fn has_converged(&self, actors: &[Actor], options: &Options) -> bool {
        self.first_missing(actors, options).is_none()
    }

    /// The first that is not.
    pub(super) fn missing(&self, actors: &[Actor], options: &Options) -> String {
        self.first_missing(actors, options).unwrap_or_default()
    }

    fn first_missing(&self, actors: &[Actor], options: &Options) -> Option<String> {
        for (maker, member) in self.members(actors) {
            for (number, topic) in options.topics.iter().enumerate() {
                for id in member.engine.active(topic_id(number)) {
                    if judge(topic, &Word::honest(id, self.ids[maker]), SETTLED) != Verdict::Want {
                        continue;
                    }
                    let lacks =
                        |(_, other): &(usize, &Member)| !other.current.contains(&(topic_id(number), id));
                    if let Some((at, other)) = self.members(actors).find(lacks) {
                        let standing = other.engine.state_of(topic_id(number), &id);
                        return Some(format!(
                            "{id} of member {maker} at member {at}, where it is {standing:?}"
                        ));
                    }
                }
            }
        }
        None
    }

    /// Nothing is left to do: everybody knows exactly what the others have active.
    pub(super) fn check_settled(&self, actors: &[Actor], options: &Options) -> Result<(), String> {
        for (a, member) in self.members(actors) {
            let census = member.engine.census();
            let Census { requests, fetch_bytes, replies, carried, arriving, streamed, .. } = census;
            let Census { control, backlog, .. } = census;
            // What hostile members named may be wanted for ever.
            let wanted = census.fetches as u64 + census.reserved_bytes;
            let wanted = if options.hostile == 0 { wanted } else { 0 };
            let moves = [requests, replies, carried, arriving, streamed, control, backlog];
            if moves != [0; 7] || (fetch_bytes, wanted) != (0, 0) {
                return Err(format!("L2: member {a} is not at rest: {:?}", member.engine.census()));
            }
            check_known(a, member)?;
            for (b, other) in self.members(actors).filter(|(b, _)| *b != a) {
                for topic in (0..options.topics.len()).map(topic_id) {
                    let (active, seen) =
                        (member.engine.active(topic), other.engine.named_by(topic, PeerIndex(a as u16)));
                    if let Some(ghost) = seen.difference(&active).next() {
                        return Err(format!("P3: member {b} believes that {a} still has {ghost}"));
                    }
                    let untold = |id: &&ArtifactId| !other.had.contains(&(topic, **id));
                    if let Some(id) = active.difference(&seen).find(untold) {
                        return Err(format!("P1: member {b} was not told of {id}, which {a} has"));
                    }
                }
            }
        }
        Ok(())
    }

    /// After everything was let go: only what hostile members named is left, and no body.
    pub(super) fn check_empty(&self, actors: &[Actor], options: &Options) -> Result<(), String> {
        for (node, member) in self.members(actors) {
            let census = member.engine.census();
            let (slots, bytes) = member.reserved();
            let held = [census.body_bytes, census.fetch_bytes, bytes, u64::from(slots)];
            let named = census.artifacts + census.named + census.later + census.reserved_bytes as usize;
            let named = if options.hostile == 0 { named } else { 0 };
            let at_rest = census.requests
                + census.carried
                + census.arriving
                + census.replies
                + census.backlog
                + census.streamed;
            if held != [0; 4] || named != 0 || at_rest != 0 {
                return Err(format!(
                    "M5: member {node} is left with {census:?}, {slots} slots and {bytes} bytes"
                ));
            }
        }
        Ok(())
    }

    fn members<'a>(&self, actors: &'a [Actor]) -> impl Iterator<Item = (usize, &'a Member)> {
        actors.iter().enumerate().take(self.honest).filter_map(|(node, actor)| match actor {
            Actor::Honest(member) => Some((node, member.as_ref())),
            Actor::Hostile(_) | Actor::Off => None,
        })
    }
}

/// What is asked of each peer is within that peer's own budget, whatever others owe.
fn check_asked(node: usize, member: &Member, census: &Census, options: &Options) -> Result<(), String> {
    let (mut requests, mut bytes) = (0, 0);
    for peer in 0..options.members {
        let asked = member.engine.asked_of(PeerIndex(peer as u16));
        for asked in asked.0 {
            let fits = asked.requests <= 1 || asked.bytes <= options.budget.bytes;
            if asked.requests > options.budget.requests || !fits {
                let budget = options.budget;
                return Err(format!("S11: member {node} asks {peer} for {asked:?}, allowed is {budget:?}"));
            }
            requests += asked.requests as usize;
            bytes += asked.bytes;
        }
    }
    match (requests, bytes) == (census.requests, census.fetch_bytes) {
        true => Ok(()),
        false => Err(format!("S7: member {node} asks for {requests} bodies of {bytes} bytes: {census:?}")),
    }
}

/// Every panic of a filter is counted.
fn check_panics(node: usize, member: &Member) -> Result<(), String> {
    let (counted, panics) = (member.engine.counters().filter_panics, member.panics());
    if counted == panics { Ok(()) } else { Err(format!("member {node} counts {counted} of {panics} panics")) }
}

/// What a replica was told, at rest, is what the engine holds: whatever it still has, somebody still names.
fn check_known(node: usize, member: &Member) -> Result<(), String> {
    for ((topic, id), known) in &member.known {
        let state = member.engine.state_of(*topic, id);
        let named = member.engine.is_named(*topic, id);
        let right = match known {
            Known::Held => state == Some(ArtifactState::Delivered) && named,
            Known::Relayed => state == Some(ArtifactState::Active) && named,
            Known::Released => true,
            Known::Leaving => false,
        };
        if !right {
            return Err(format!(
                "S6: {id} is {known:?} to the replica of {node}, and {state:?}, named: {named}"
            ));
        }
    }
    Ok(())
}
