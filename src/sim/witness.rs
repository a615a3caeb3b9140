//! What honest members say, watched at the mouth: whatever one gives a link must be true, newer than what it said before, more
//! urgent than what it left waiting, and encoded in the one way there is.
//!
//! The witness knows of links only who speaks to whom on which connection, so it serves under every kind of link. It keeps one
//! entry for each slot that a member ever told another of, and forgets them when the member starts anew.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::member::{Member, topic_id};
use super::options::Options;
use crate::engine::ArtifactState;
use crate::proto::{Active, Origin};
use crate::types::{ArtifactId, Class, Classes, HashKind, Instant, PeerIndex, Slot, TopicId, Version};
use crate::wire::{
    BatchBuilder, BatchReader, Change, FetchRequest, Frame, Hello, Outgoing, PushHead, Reply, ReplyHead,
    Resync, Update,
};

/// See the module.
pub(super) struct Witness {
    /// Of each topic: its class, its slots, and whether its bodies cross each link at most once.
    topics: Vec<Watched>,
    links: BTreeMap<(usize, usize), Said>,
}

struct Watched {
    class: Class,
    slots: u32,
    thrifty: bool,
}

/// What one member has said to another since its start.
struct Said {
    boot: u64,
    connection: u64,
    /// Topics whose table it has announced on this connection.
    synced: BTreeSet<TopicId>,
    places: BTreeMap<(TopicId, Slot), Place>,
}

/// The last word on a slot.
#[derive(Clone, Copy)]
struct Place {
    connection: u64,
    version: Version,
    /// The connection and the version at which a body crossed last.
    carried: Option<(u64, Version)>,
}

/// Who speaks to whom.
#[derive(Clone, Copy)]
struct Ends {
    from: usize,
    to: usize,
}

impl Witness {
    pub(super) fn new(options: &Options) -> Witness {
        let calm = options.is_calm();
        let watched = options.topics.iter().map(|topic| Watched {
            class: topic.class,
            slots: topic.slots,
            thrifty: calm && topic.has_room_for_all(options.members),
        });
        Witness { topics: watched.collect(), links: BTreeMap::new() }
    }

    /// The next things that `member` gives its link to `peer`: what it chooses itself, and, were there anything more urgent
    /// than that, the failure.
    pub(super) fn poll(
        &self,
        member: &mut Member,
        peer: usize,
        room: Classes,
        now: Instant,
    ) -> Result<[Option<Outgoing>; 2], String> {
        let (index, now) = (PeerIndex(peer as u16), member.clock(now));
        let Some(first) = member.engine.poll_outgoing(index, room, now) else { return Ok([None, None]) };
        let class = self.class(&first);
        let above = Classes::that(|above| above < class && room.has(above));
        let next = member.engine.poll_outgoing(index, above, now);
        match next.as_ref().map(|next| self.class(next)) {
            Some(waited) if waited < class => {
                Err(format!("S12: {class} goes to member {peer} while {waited} waits: {first:?}, {next:?}"))
            }
            _ => Ok([Some(first), next]),
        }
    }

    /// The class whose turn it was: words of any class may travel as more urgent ones.
    fn class(&self, outgoing: &Outgoing) -> Class {
        let Outgoing::Batch { bytes, .. } = outgoing else { return outgoing.class() };
        let update = |frame: &Frame| match frame {
            Frame::Update(update) => self.watched(update.topic).map(|topic| topic.class),
            _ => None,
        };
        // What precedes everything else is as urgent as can be.
        frames(bytes).unwrap_or_default().iter().find_map(update).unwrap_or(Class::Critical)
    }

    fn watched(&self, topic: TopicId) -> Option<&Watched> {
        (0..self.topics.len()).find(|number| topic_id(*number) == topic).and_then(|n| self.topics.get(n))
    }

    /// `member`, which is `from`, gives its link to `to` something on a connection.
    pub(super) fn hear(
        &mut self,
        from: usize,
        to: usize,
        connection: u64,
        outgoing: &Outgoing,
        member: &Member,
    ) -> Result<(), String> {
        let ends = Ends { from, to };
        let heard = match outgoing {
            Outgoing::Batch { bytes, .. } => self.batch(ends, connection, bytes, member),
            Outgoing::Push { head, body, .. } => self.push(ends, connection, head, body, member),
            Outgoing::Fetch { request, .. } => self.request(ends, request, member),
            Outgoing::Reply { reply, .. } => self.reply(ends, reply, member),
        };
        heard.map_err(|what| format!("{what}, in what member {from} says to {to}"))
    }

    fn batch(&mut self, ends: Ends, connection: u64, bytes: &Bytes, member: &Member) -> Result<(), String> {
        let frames = frames(bytes)?;
        let mut again = BatchBuilder::new(bytes.len());
        frames.iter().for_each(|frame| again.push(frame));
        if again.finish() != *bytes {
            return Err("S14: a batch has another encoding than its frames".to_owned());
        }
        let mut classes = BTreeSet::new();
        for frame in &frames {
            match frame {
                Frame::Hello(hello) => self.hello(ends, connection, hello)?,
                Frame::Resync(resync) => self.said(ends, connection)?.resync(resync, member)?,
                Frame::Update(update) => {
                    classes.extend(self.watched(update.topic).map(|topic| topic.class));
                    self.update(ends, connection, update, member)?;
                }
                Frame::Open(_) | Frame::Refused(_) | Frame::Held(_) => drop(self.said(ends, connection)?),
            }
        }
        if classes.len() > 1 { Err(format!("S12: one batch holds {classes:?}")) } else { Ok(()) }
    }

    /// What was said before on this connection; it begins with who speaks.
    fn said(&mut self, Ends { from, to }: Ends, connection: u64) -> Result<&mut Said, String> {
        let said = self.links.get_mut(&(from, to)).filter(|said| said.connection == connection);
        said.ok_or_else(|| "something comes before the hello of its connection".to_owned())
    }

    fn hello(&mut self, Ends { from, to }: Ends, connection: u64, hello: &Hello) -> Result<(), String> {
        let fresh =
            Said { boot: hello.boot, connection: 0, synced: BTreeSet::new(), places: BTreeMap::new() };
        let said = self.links.entry((from, to)).or_insert(fresh);
        if said.boot == hello.boot && said.connection >= connection {
            return Err(format!("a second hello on connection {connection}"));
        }
        if said.boot != hello.boot {
            said.places.clear();
        }
        (said.boot, said.connection) = (hello.boot, connection);
        said.synced.clear();
        Ok(())
    }

    fn update(
        &mut self,
        ends: Ends,
        connection: u64,
        update: &Update,
        member: &Member,
    ) -> Result<(), String> {
        let Update { topic, slot, version, change } = update;
        let now = member.engine.slot(*topic, *slot);
        let is_told = |id: &ArtifactId| now.is_some_and(|(at, active)| (at, active.id) == (*version, *id));
        let (id, attribute, size, relayed) = match change {
            Change::Clear => {
                let known = |active: &Active| {
                    member.engine.is_named_by(*topic, &active.id, PeerIndex(ends.to as u16))
                };
                if let Some((_, active)) = now.filter(|(_, active)| !known(active)) {
                    return Err(format!("S1: slot {} is cleared, though {} is there", slot.0, active.id));
                }
                return self.tell(ends, connection, *topic, *slot, *version, None);
            }
            Change::Advert { id, size, relayed, attribute } => (*id, attribute, *size as usize, *relayed),
            Change::Push { attribute, body } => (HashKind::Blake3.id(body), attribute, body.len(), false),
        };
        let right = |active: &Active| {
            (&active.attribute, active.size as usize, active.origin == Origin::Relay)
                == (attribute, size, relayed)
        };
        if !is_told(&id) || !now.is_some_and(|(_, active)| right(active)) {
            return Err(format!("S1: {update:?} is told, in that slot is {now:?}"));
        }
        let body = matches!(change, Change::Push { .. }).then_some(id);
        self.tell(ends, connection, *topic, *slot, *version, body)
    }

    fn push(
        &mut self,
        ends: Ends,
        connection: u64,
        bytes: &Bytes,
        body: &Bytes,
        member: &Member,
    ) -> Result<(), String> {
        let head = match PushHead::decode(bytes.get(1..).unwrap_or_default()) {
            Ok(Some((head, len))) if len + 1 == bytes.len() && head.encode() == *bytes => head,
            other => return Err(format!("S14: a push's head has another encoding: {other:?}")),
        };
        let PushHead { topic, slot, version, id, size, ref attribute } = head;
        let now = member.engine.slot(topic, slot);
        let is_there = now.is_some_and(|(at, active)| {
            (at, active.id, active.size, &active.attribute, active.origin)
                == (version, id, size, attribute, Origin::Own)
        });
        if !is_there {
            return Err(format!("S1: {head:?} is pushed, in that slot is {now:?}"));
        }
        if body.len() != size as usize || HashKind::Blake3.id(body) != id {
            return Err(format!("S1: {head:?} is pushed with other bytes"));
        }
        self.tell(ends, connection, topic, slot, version, Some(id))
    }

    /// A slot is told at a version, with the body of an artifact or without one.
    fn tell(
        &mut self,
        ends: Ends,
        connection: u64,
        topic: TopicId,
        slot: Slot,
        version: Version,
        body: Option<ArtifactId>,
    ) -> Result<(), String> {
        if self.watched(topic).is_none_or(|topic| slot.0 >= topic.slots) {
            return Err(format!("S4: {topic:?} has no slot {}", slot.0));
        }
        let said = self.said(ends, connection)?;
        if !said.synced.contains(&topic) {
            return Err(format!("{topic:?} is told before its table was announced"));
        }
        let place = said.places.entry((topic, slot)).or_insert(Place {
            connection: 0,
            version: Version(0),
            carried: None,
        });
        let newer = match place.connection == connection {
            true => version > place.version,
            false => version >= place.version,
        };
        if !newer {
            return Err(format!("S15: slot {} is told at {version:?}, after {:?}", slot.0, place.version));
        }
        (place.connection, place.version) = (connection, version);
        match body {
            Some(id) => self.carry(ends, topic, slot, version, &id),
            None => Ok(()),
        }
    }

    /// The body of what a slot has held since `version` crosses the link.
    fn carry(
        &mut self,
        Ends { from, to }: Ends,
        topic: TopicId,
        slot: Slot,
        version: Version,
        id: &ArtifactId,
    ) -> Result<(), String> {
        let thrifty = self.watched(topic).is_some_and(|topic| topic.thrifty);
        let Some(said) = self.links.get_mut(&(from, to)) else { return Ok(()) };
        let crossing = (said.connection, version);
        let place = said.places.get_mut(&(topic, slot));
        let before = place.and_then(|place| place.carried.replace(crossing));
        match thrifty && before == Some(crossing) {
            true => Err(format!("P6: {id} crosses again, of slot {} at {version:?}", slot.0)),
            false => Ok(()),
        }
    }

    fn request(&self, ends: Ends, request: &FetchRequest, member: &Member) -> Result<(), String> {
        if FetchRequest::decode(&request.encode()).as_ref() != Ok(request) {
            return Err(format!("S14: {request:?} does not come back from its encoding"));
        }
        let FetchRequest { topic, id } = request;
        let named = member.engine.is_named_by(*topic, id, PeerIndex(ends.to as u16));
        match (member.engine.state_of(*topic, id), named) {
            (Some(ArtifactState::Wanted), true) => Ok(()),
            (state, named) => Err(format!("S8: {id} is asked for, which is {state:?}, named: {named}")),
        }
    }

    fn reply(&mut self, ends: Ends, reply: &Reply<Bytes>, member: &Member) -> Result<(), String> {
        let head = match reply {
            Reply::Found(body) => ReplyHead::Found { size: body.len() as u32 },
            Reply::NotFound => ReplyHead::NotFound,
            Reply::Busy => ReplyHead::Busy,
            Reply::Broken => return Err("an answer is a broken one".to_owned()),
        };
        let bytes = head.encode();
        if ReplyHead::decode(&bytes) != Ok(Some((head, bytes.len()))) {
            return Err(format!("S14: {head:?} does not come back from its encoding"));
        }
        let Reply::Found(body) = reply else { return Ok(()) };
        let id = HashKind::Blake3.id(body);
        let places = (0..self.topics.len()).map(topic_id).filter_map(|topic| {
            let (slot, version) = member.engine.place_of(topic, &id)?;
            Some((topic, slot, version))
        });
        match places.collect::<Vec<_>>()[..] {
            [] => Err(format!("S9: an answer is a body that is not active: {id}")),
            [(topic, slot, version)] => self.carry(ends, topic, slot, version, &id),
            // Of which topic it was asked only the link knows.
            [..] => Ok(()),
        }
    }
}

impl Said {
    /// A table is announced: once in a connection, with every slot that is occupied, and never older than what was told of it.
    fn resync(&mut self, resync: &Resync, member: &Member) -> Result<(), String> {
        let Resync { topic, version, .. } = resync;
        if !self.synced.insert(*topic) {
            return Err(format!("{topic:?} is announced twice"));
        }
        let told = self.places.iter().filter(|((of, _), _)| of == topic).map(|(_, place)| place.version);
        if let Some(newer) = told.max().filter(|told| told > version) {
            return Err(format!("S15: {topic:?} is announced at {version:?}, after {newer:?}"));
        }
        for id in member.engine.active(*topic) {
            if let Some((slot, since)) = member.engine.place_of(*topic, &id)
                && since <= *version
                && !resync.is_occupied(slot)
            {
                return Err(format!("S1: {topic:?} is announced without {id} in slot {}", slot.0));
            }
        }
        Ok(())
    }
}

fn frames(batch: &Bytes) -> Result<Vec<Frame>, String> {
    let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
    let whole = reader.read(batch.get(1..).unwrap_or_default(), &mut frames).and_then(|()| reader.end());
    whole.map(|()| frames).map_err(|error| format!("S14: a batch does not decode: {error}"))
}
