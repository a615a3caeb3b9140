//! Streams on their way: what one end gives its link, as events at the other.

use std::time::Duration;

use bytes::Bytes;

use super::flow::{Flow, FlowId, What};
use super::hostile::Answer;
use super::member::limits;
use super::net::{Cargo, REQUEST_BYTES, listens};
use super::world::{Actor, Happening, World};
use crate::engine::{ArtifactState, Effects};
use crate::types::{ArtifactId, HashKind, PeerIndex, StreamKey, TopicId, Verified};
use crate::wire::{BatchReader, Change, Frame, Incoming, Outgoing, PushHead, Reply, Update};

/// Pieces in which an answer comes before its last.
const DRIPS: u64 = 3;

impl World {
    /// An honest member is about to send something: a body only while it is active there.
    pub(super) fn check_sent(
        &mut self,
        from: usize,
        to: usize,
        connection: u64,
        outgoing: &Outgoing,
    ) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get(from) else { return Ok(()) };
        self.witness.hear(from, to, connection, outgoing, member)?;
        self.inversions.give(from, to, connection, outgoing);
        let named = match outgoing {
            Outgoing::Push { head, .. } => match PushHead::decode(head.get(1..).unwrap_or_default()) {
                Ok(Some((head, _))) => Some((head.topic, head.id)),
                _ => return Err(format!("S14: member {from} pushes with a head that does not decode")),
            },
            Outgoing::Reply { key, reply: Reply::Found(_), .. } => self.requested(from, to, *key),
            _ => None,
        };
        match named {
            Some((topic, id)) if member.engine.state_of(topic, &id) != Some(ArtifactState::Active) => {
                Err(format!("P6: member {from} sends {to} the body of {id}, which is not active there"))
            }
            _ => Ok(()),
        }
    }

    /// After an abort: no stream of the member carries the body on.
    pub(super) fn check_aborted(&self, node: usize, topic: TopicId, id: &ArtifactId) -> Result<(), String> {
        let Some(Actor::Honest(member)) = self.actors.get(node) else { return Ok(()) };
        let active = member.engine.state_of(topic, id) == Some(ArtifactState::Active);
        match !active && self.flows.carries(node, topic, id) {
            true => Err(format!("P6: member {node} still sends the body of {id}, which it has aborted")),
            false => Ok(()),
        }
    }

    /// What a peer's request asks `node` for.
    fn requested(&self, node: usize, peer: usize, key: StreamKey) -> Option<(TopicId, ArtifactId)> {
        match &self.wire {
            Some(wire) => wire.requested(node, peer, key),
            None => self.flows.find(node, peer, key).and_then(|id| self.flows.requested(id)),
        }
    }

    /// `from` gives its ideal link something.
    pub(super) fn send(&mut self, from: usize, to: usize, connection: u64, outgoing: Outgoing) {
        match outgoing {
            Outgoing::Batch { bytes, .. } => {
                self.ship(from, to, connection, bytes.len() as u64, Cargo::Batch(bytes))
            }
            Outgoing::Push { key, head, body, .. } => {
                let Ok(Some((head, _))) = PushHead::decode(head.get(1..).unwrap_or_default()) else { return };
                let bytes = body.len() as u64;
                let what = What::Push { head, body, started: false };
                let flow = self.flows.open(connection, from, to, key, what);
                self.ship(from, to, connection, REQUEST_BYTES, Cargo::PushHead(flow));
                self.ship(from, to, connection, bytes, Cargo::PushEnd(flow));
            }
            Outgoing::Fetch { key, request, limit, .. } => {
                let what = What::Fetch { request, limit, arrived: false, answer: None };
                let flow = self.flows.open(connection, from, to, key, what);
                self.ship(from, to, connection, REQUEST_BYTES, Cargo::Request(flow));
            }
            Outgoing::Reply { key, reply, .. } => self.send_reply(from, to, connection, key, reply),
        }
    }

    pub(super) fn ship(&mut self, from: usize, to: usize, connection: u64, bytes: u64, cargo: Cargo) {
        let at = self.net.arrival(from, to, bytes, self.now);
        let acknowledged = self.net.word(at);
        self.at(at, Happening::Arrive { from, to, connection, cargo });
        self.at(acknowledged, Happening::Acknowledged { from, to, connection, bytes });
    }

    fn word(&mut self, from: usize, to: usize, connection: u64, cargo: Cargo) {
        let at = self.net.word(self.now);
        self.at(at, Happening::Arrive { from, to, connection, cargo });
    }

    fn send_reply(&mut self, from: usize, to: usize, connection: u64, key: StreamKey, reply: Reply<Bytes>) {
        let found = self.flows.find(from, to, key);
        let Some((id, flow)) = found.and_then(|id| Some((id, self.flows.get(id)?))) else {
            // The asker gave up.
            return self.bring(from, to, Incoming::Sent { key, whole: false });
        };
        let What::Fetch { answer, .. } = &mut flow.what else { return };
        let bytes = if let Reply::Found(body) = &reply { body.len() as u64 } else { 0 };
        *answer = Some(reply);
        for _ in 0..if bytes > 0 { DRIPS } else { 0 } {
            self.ship(from, to, connection, bytes / (DRIPS + 1), Cargo::Drip(id));
        }
        self.ship(from, to, connection, REQUEST_BYTES + bytes / (DRIPS + 1), Cargo::Answer(id));
    }

    /// The body comes, a few bytes at a time, and its end a minute later.
    fn trickle(&mut self, from: usize, to: usize, connection: u64, key: StreamKey, body: Bytes) {
        let Some(id) = self.flows.find(from, to, key) else { return };
        for number in 1..=600 {
            let at = self.now + self.options.links.latency + Duration::from_millis(100 * number);
            self.at(at, Happening::Arrive { from, to, connection, cargo: Cargo::Drip(id) });
        }
        if let Some(Flow { what: What::Fetch { answer, .. }, .. }) = self.flows.get(id) {
            *answer = Some(Reply::Found(body));
        }
        let at = self.now + Duration::from_secs(61);
        self.at(at, Happening::Arrive { from, to, connection, cargo: Cargo::Answer(id) });
    }

    /// "Not found", after so long.
    fn answer_late(&mut self, from: usize, to: usize, connection: u64, key: StreamKey, wait: Duration) {
        let Some(id) = self.flows.find(from, to, key) else { return };
        if let Some(Flow { what: What::Fetch { answer, .. }, .. }) = self.flows.get(id) {
            *answer = Some(Reply::NotFound);
        }
        self.after(wait, Happening::Arrive { from, to, connection, cargo: Cargo::Answer(id) });
    }

    /// Something arrives, unless its connection is gone or a cut holds it.
    pub(super) fn arrive(
        &mut self,
        from: usize,
        to: usize,
        connection: u64,
        cargo: Cargo,
    ) -> Result<(), String> {
        if let Some(Actor::Honest(member)) = self.actors.get(to)
            && member.paused_until > self.now
        {
            let wake = member.paused_until;
            self.at(wake, Happening::Arrive { from, to, connection, cargo });
            return Ok(());
        }
        let Some(cargo) = self.net.pass(from, to, connection, cargo) else { return Ok(()) };
        match cargo {
            Cargo::Batch(bytes) => self.batch(from, to, &bytes)?,
            Cargo::Close => self.lose(to, from)?,
            Cargo::PushHead(id)
            | Cargo::PushEnd(id)
            | Cargo::Request(id)
            | Cargo::Drip(id)
            | Cargo::Answer(id)
            | Cargo::Reset(id)
            | Cargo::Sent(id, _) => self.stream(from, to, connection, id, &cargo)?,
        }
        self.turn(to)
    }

    fn batch(&mut self, from: usize, to: usize, bytes: &Bytes) -> Result<(), String> {
        let (mut reader, mut frames) = (BatchReader::default(), Vec::new());
        let whole = reader.read(bytes.get(1..).unwrap_or_default(), &mut frames).and_then(|()| reader.end());
        whole.map_err(|error| format!("S14: member {from} sent what does not decode: {error}"))?;
        for frame in frames {
            let frame = frame.verified(HashKind::Blake3);
            match &mut self.actors[to] {
                Actor::Hostile(hostile) => hostile.hear(frame),
                Actor::Honest(_) => self.bring(to, from, Incoming::Frame(frame)),
                Actor::Off => (),
            }
        }
        Ok(())
    }

    /// What a stream's cargo means at `to`.
    fn stream(
        &mut self,
        from: usize,
        to: usize,
        connection: u64,
        id: FlowId,
        cargo: &Cargo,
    ) -> Result<(), String> {
        let place = self.flows.has_place(id, limits(&self.options).pushes_in_assembly);
        let Some(flow) = self.flows.get(id) else {
            self.effort.arrived(to);
            return Ok(());
        };
        if !listens(flow, to) {
            return Ok(());
        }
        let key = if flow.opener.node == to { flow.opener.key } else { flow.other.key };
        match (cargo, &mut flow.what) {
            // It waits unread, as the transport keeps it.
            (Cargo::PushHead(_), _) if !place => self.word(from, to, connection, cargo.clone()),
            (Cargo::PushHead(_), What::Push { head, started, .. }) => {
                *started = true;
                let started = Incoming::PushStarted { key, head: head.clone() };
                self.bring(to, from, started);
            }
            // Streams are whole: what overtook its head waits for it.
            (Cargo::PushEnd(_), What::Push { started: false, .. }) => {
                self.word(from, to, connection, cargo.clone())
            }
            (Cargo::PushEnd(_), What::Push { head, body, .. }) => {
                if let Actor::Hostile(hostile) = &mut self.actors[to] {
                    hostile.learn(head.topic, head.id, body.clone());
                }
                let (head, body) = (head.clone(), Verified::hash(HashKind::Blake3, body.clone()));
                flow.other.done = true;
                self.word(to, from, connection, Cargo::Sent(id, true));
                self.bring(to, from, Incoming::Pushed { key, head, body });
            }
            (Cargo::Request(_), What::Fetch { request, arrived, .. }) => {
                *arrived = true;
                let request = *request;
                self.request(from, to, connection, key, request);
            }
            (Cargo::Drip(_), What::Fetch { .. }) => self.bring(to, from, Incoming::Progress { key }),
            (Cargo::Answer(_), What::Fetch { .. }) => self.answered(from, to, connection, id),
            (Cargo::Reset(_), what) => {
                let broken = match what {
                    What::Push { head, started, .. } => {
                        started.then(|| Incoming::PushBroken { key, head: head.clone() })
                    }
                    What::Fetch { arrived, .. } if flow.other.node == to => {
                        // The asker gave up, whether there is an answer yet or not.
                        arrived.then_some(Incoming::Sent { key, whole: false })
                    }
                    What::Fetch { .. } => Some(Incoming::Reply { key, reply: Reply::Broken }),
                };
                self.flows.end(id);
                broken.into_iter().for_each(|incoming| self.bring(to, from, incoming));
            }
            (Cargo::Sent(_, whole), _) => {
                let whole = *whole;
                self.flows.end(id);
                self.bring(to, from, Incoming::Sent { key, whole });
            }
            (_, What::Push { .. } | What::Fetch { .. }) => {
                return Err("a stream carries what it cannot".to_owned());
            }
        }
        Ok(())
    }

    fn request(
        &mut self,
        from: usize,
        to: usize,
        connection: u64,
        key: StreamKey,
        request: crate::wire::FetchRequest,
    ) {
        let Some(Actor::Hostile(hostile)) = self.actors.get_mut(to) else {
            return self.bring(to, from, Incoming::Request { key, request });
        };
        match hostile.answer(&request, &self.options) {
            Answer::Reply(reply) => self.send_reply(to, from, connection, key, reply),
            Answer::Trickle(body) => self.trickle(to, from, connection, key, body),
            Answer::Late(wait) => self.answer_late(to, from, connection, key, wait),
            Answer::Silence => (),
        }
    }

    /// An answer is whole at the asker.
    fn answered(&mut self, from: usize, to: usize, connection: u64, id: FlowId) {
        let Some(Flow { opener, what: What::Fetch { answer, limit, .. }, .. }) = self.flows.get(id) else {
            return;
        };
        opener.done = true;
        let (key, limit) = (opener.key, *limit as usize);
        let Some(answer) = answer.clone() else { return };
        let reply = match answer {
            Reply::Found(body) if body.len() > limit => Reply::Broken,
            Reply::Found(body) => Reply::Found(Verified::hash(HashKind::Blake3, body)),
            Reply::NotFound => Reply::NotFound,
            Reply::Busy => Reply::Busy,
            Reply::Broken => Reply::Broken,
        };
        self.word(to, from, connection, Cargo::Sent(id, true));
        self.bring(to, from, Incoming::Reply { key, reply });
    }

    /// Hands `node` what its link to `peer` brought.
    pub(super) fn bring(&mut self, node: usize, peer: usize, incoming: Incoming) {
        if !matches!(self.actors[node], Actor::Honest(_)) {
            return;
        }
        tracing::trace!(node, peer, ?incoming);
        match &incoming {
            Incoming::PushStarted { head, .. } => self.named(peer, node, head.topic, head.id),
            Incoming::Frame(Frame::Update(Update { topic, change: Change::Advert { id, .. }, .. })) => {
                self.named(peer, node, *topic, *id);
            }
            Incoming::Pushed { body, .. }
            | Incoming::Frame(Frame::Update(Update { change: Change::Push { body, .. }, .. }))
            | Incoming::Reply { reply: Reply::Found(body), .. } => {
                self.bodies.entry(body.id()).or_insert_with(|| body.bytes().clone());
            }
            _ => (),
        }
        self.effort.arrived(node);
        let now = self.clock(node);
        let Some(Actor::Honest(member)) = self.actors.get_mut(node) else { return };
        let mut fx = Effects::new();
        member.engine.handle_link(PeerIndex(peer as u16), incoming, now, &mut fx);
        member.forget_unnamed();
        self.pending.push_back((node, fx));
    }

    /// `node` abandons a stream.
    pub(super) fn reset(&mut self, node: usize, peer: usize, key: StreamKey) {
        if let Some(wire) = &mut self.wire {
            self.inversions.end(node, peer, key);
            return wire.reset(node, peer, key);
        }
        let Some(id) = self.flows.find(node, peer, key) else { return };
        let Some(flow) = self.flows.get(id) else { return };
        let connection = flow.connection;
        let (near, far) = match flow.opener.node == node {
            true => (&mut flow.opener, flow.other),
            false => (&mut flow.other, flow.opener),
        };
        near.done = true;
        let pushed_here = near.node != flow.opener.node && matches!(flow.what, What::Push { .. });
        match (far.done, pushed_here) {
            (true, _) => drop(self.flows.end(id)),
            // Who receives a push stops it: its sender learns that the rest is not wanted.
            (false, true) => self.word(node, peer, connection, Cargo::Sent(id, false)),
            (false, false) => self.word(node, peer, connection, Cargo::Reset(id)),
        }
    }
}
