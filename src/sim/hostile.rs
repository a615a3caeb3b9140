//! A hostile member: no engine, no tables, only lies. What it says is well-formed, for the transport closes on anything else.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use super::member::topic_id;
use super::options::Options;
use crate::types::{
    ArtifactId, Attribute, Class, RegistryVersion, Rng, Slot, StreamKey, TopicId, Verified, Version,
};
use crate::wire::{
    BatchBuilder, Change, FetchRequest, Frame, Held, Hello, Open, Outgoing, PushHead, Refusal, Refused,
    Reply, Resync, Update,
};

/// See the module.
pub(super) struct Hostile {
    rng: Rng,
    boot: u64,
    topics: usize,
    slots: u32,
    largest: u64,
    /// What it has heard of, with the body where it has it.
    heard: BTreeMap<(TopicId, ArtifactId), Option<Bytes>>,
    /// Starts of others that it has heard of.
    boots: Vec<u64>,
    /// Places in tables of others that it was told of lately.
    places: Vec<(TopicId, Slot, Version)>,
    keys: u64,
    /// What it asked of each peer, and may give up.
    pub(super) asked: BTreeMap<usize, Vec<StreamKey>>,
    /// How it answers, where a scenario says so.
    pub(super) manner: Option<Manner>,
    /// What others said that they hold of its tables.
    pub(super) held: Vec<Held>,
}

/// What it does with a request.
pub(super) enum Answer {
    Reply(Reply<Bytes>),
    /// Some bytes now and then, for long.
    Trickle(Bytes),
    Silence,
    /// "Not found", after so long.
    Late(Duration),
}

/// One way to answer every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// The body, if it has it.
    Served,
    Wrong,
    NotFound,
    Silent,
    Trickled,
    /// "Not found", when the asker's patience is almost over.
    Late,
}

impl Hostile {
    pub(super) fn new(options: &Options, boot: u64) -> Hostile {
        let slots = options.topics.iter().map(|topic| topic.slots).max().unwrap_or(1);
        let largest = options.topics.iter().map(|topic| topic.largest).max().unwrap_or(8);
        let rng = Rng::new(options.seed ^ boot.rotate_left(17));
        Hostile {
            rng,
            boot,
            topics: options.topics.len(),
            slots,
            largest,
            heard: BTreeMap::new(),
            boots: vec![0],
            places: Vec::new(),
            keys: 0,
            asked: BTreeMap::new(),
            manner: options.lies.every.is_zero().then_some(Manner::Served),
            held: Vec::new(),
        }
    }

    /// What it says first.
    pub(super) fn greet(&mut self) -> Outgoing {
        let mut batch = BatchBuilder::new(256);
        let hello = Hello {
            subnet: [7; 32],
            lanes: 1,
            lane: 0,
            registry: RegistryVersion(if self.manner.is_some() { 1 } else { self.rng.next_u64() }),
            boot: self.boot,
        };
        batch.push(&Frame::Hello(hello));
        for topic in (0..self.topics).map(topic_id) {
            batch.push(&Frame::Open(Open { topic, slots: u32::MAX, artifact_bytes: u32::MAX }));
            if self.manner.is_none() && self.rng.one_in(2) {
                batch.push(&self.resync(topic));
            }
        }
        Outgoing::Batch { class: Class::Critical, bytes: batch.finish() }
    }

    /// Learns from what it is told.
    pub(super) fn hear(&mut self, frame: Frame<Verified>) {
        if let Frame::Update(Update { topic, slot, version, .. }) = &frame {
            self.places.push((*topic, *slot, *version));
        }
        match frame {
            Frame::Update(Update { topic, change: Change::Advert { id, .. }, .. }) => {
                self.heard.entry((topic, id)).or_default();
            }
            Frame::Update(Update { topic, change: Change::Push { body, .. }, .. }) => {
                self.heard.insert((topic, body.id()), Some(body.into_bytes()));
            }
            Frame::Hello(hello) => self.boots.push(hello.boot),
            Frame::Held(held) if self.manner.is_some() => self.held.push(held),
            _ => (),
        }
        self.boots.drain(..self.boots.len().saturating_sub(8));
        self.places.drain(..self.places.len().saturating_sub(8));
    }

    /// Something to say to somebody.
    pub(super) fn lie(&mut self) -> Outgoing {
        let topic = topic_id(self.rng.below(self.topics as u64 + 1) as usize);
        match self.rng.below(12) {
            0 => self.push(topic),
            1 => self.ask(topic),
            _ => {
                let mut batch = BatchBuilder::new(256);
                for _ in 0..1 + self.rng.below(4) {
                    let frame = self.frame(topic);
                    batch.push(&frame);
                }
                Outgoing::Batch { class: Class::High, bytes: batch.finish() }
            }
        }
    }

    /// What it does with a request.
    pub(super) fn answer(&mut self, request: &FetchRequest, options: &Options) -> Answer {
        if let Some(manner) = self.manner {
            return self.scripted(manner, request);
        }
        let hang = options.lies.hang_percent;
        if hang > 0 && self.rng.below(100) < hang {
            return Answer::Trickle(self.noise());
        }
        let draw = self.rng.below(100);
        let body = self.heard.get(&(request.topic, request.id)).cloned().flatten();
        match () {
            () if draw < options.lies.silent_percent => Answer::Silence,
            () if draw < options.lies.silent_percent + options.lies.wrong_percent => {
                let body = self.noise();
                Answer::Reply(Reply::Found(body))
            }
            () => Answer::Reply(match (self.rng.below(4), body) {
                (0, _) => Reply::Busy,
                (1, _) | (_, None) => Reply::NotFound,
                (_, Some(body)) => Reply::Found(body),
            }),
        }
    }

    fn scripted(&mut self, manner: Manner, request: &FetchRequest) -> Answer {
        let body = self.heard.get(&(request.topic, request.id)).cloned().flatten();
        match (manner, body) {
            (Manner::Silent, _) => Answer::Silence,
            (Manner::Late, _) => Answer::Late(Duration::from_millis(1_900)),
            (Manner::Wrong, _) => Answer::Reply(Reply::Found(self.noise())),
            (Manner::Trickled, Some(body)) => Answer::Trickle(body),
            (Manner::Served, Some(body)) => Answer::Reply(Reply::Found(body)),
            (Manner::NotFound, _) | (_, None) => Answer::Reply(Reply::NotFound),
        }
    }

    /// It has a body, to be served if asked for.
    pub(super) fn learn(&mut self, topic: TopicId, id: ArtifactId, body: Bytes) {
        self.heard.insert((topic, id), Some(body));
    }

    /// Which start of it speaks.
    pub(super) fn boot(&self) -> u64 {
        self.boot
    }

    fn frame(&mut self, topic: TopicId) -> Frame {
        let (slot, version) = (self.slot(), self.version());
        let change = match self.rng.below(10) {
            0 => Change::Clear,
            1 => {
                let body = self.noise();
                Change::Push { attribute: Attribute::EMPTY, body: body.slice(..body.len().min(2_000)) }
            }
            2 => return self.resync(topic),
            3 => {
                let reason = if self.rng.one_in(2) { Refusal::SlotLimit } else { Refusal::ArtifactSize };
                // What was truly told, as often as not: perhaps again.
                let made_up = (topic, slot, version);
                let at = self.rng.below(2 * self.places.len() as u64 + 1) as usize;
                let (topic, slot, version) = self.places.get(at).copied().unwrap_or(made_up);
                return Frame::Refused(Refused { topic, slot, version, reason });
            }
            4 => {
                let boot = self.boots[self.rng.below(self.boots.len() as u64) as usize];
                let first = self.rng.below(u64::from(self.slots)) as u32;
                let last = first + self.rng.below(5) as u32;
                let held: Vec<_> = (first..=last).map(|slot| (Slot(slot), self.version())).collect();
                match Held::pack(topic, boot, held).pop() {
                    Some(held) => return Frame::Held(held),
                    None => Change::Clear,
                }
            }
            5 => {
                return Frame::Open(Open { topic, slots: self.rng.below(1 << 20) as u32, artifact_bytes: 1 });
            }
            _ => {
                let id = self.id(topic);
                let size = if self.rng.one_in(3) {
                    self.rng.next_u64() as u32
                } else {
                    self.rng.below(self.largest) as u32
                };
                Change::Advert { id, size, relayed: self.rng.one_in(2), attribute: Attribute::EMPTY }
            }
        };
        Frame::Update(Update { topic, slot, version, change })
    }

    fn push(&mut self, topic: TopicId) -> Outgoing {
        let (slot, version, id, body) = (self.slot(), self.version(), self.id(topic), self.noise());
        let head =
            PushHead { topic, slot, version, id, size: body.len() as u32, attribute: Attribute::EMPTY };
        self.keys += 1;
        Outgoing::Push { class: Class::High, key: StreamKey(self.keys), head: head.encode(), body }
    }

    /// The begin of a push, and what would come if it ended: of something true or made up, and of any size.
    pub(super) fn begin_push(&mut self) -> (StreamKey, PushHead, Bytes) {
        let topic = topic_id(self.rng.below(self.topics as u64) as usize);
        let id = self.id(topic);
        let known = self.heard.get(&(topic, id)).cloned().flatten().filter(|_| self.rng.one_in(2));
        let body = known.unwrap_or_else(|| self.noise());
        let (slot, version, size) = (self.slot(), self.version(), body.len() as u32);
        self.keys += 1;
        let head = PushHead { topic, slot, version, id, size, attribute: Attribute::EMPTY };
        (StreamKey(self.keys), head, body)
    }

    fn ask(&mut self, topic: TopicId) -> Outgoing {
        self.keys += 1;
        let request = FetchRequest { topic, id: self.id(topic) };
        Outgoing::Fetch { class: Class::High, key: StreamKey(self.keys), request, limit: 1 << 20 }
    }

    /// A request that it may give up again.
    pub(super) fn ask_of(&mut self, peer: usize) -> Outgoing {
        let topic = topic_id(self.rng.below(self.topics as u64) as usize);
        let request = self.ask(topic);
        self.asked.entry(peer).or_default().push(StreamKey(self.keys));
        request
    }

    fn resync(&mut self, topic: TopicId) -> Frame {
        let mut occupied = vec![0; self.rng.below(20) as usize];
        self.rng.fill(&mut occupied);
        Frame::Resync(Resync { topic, version: self.version(), occupied: occupied.into() })
    }

    /// One that it has heard of, or made up.
    fn id(&mut self, topic: TopicId) -> ArtifactId {
        let at = self.rng.below(self.heard.len() as u64 + 1) as usize;
        match self.heard.keys().nth(at) {
            Some((of, id)) if *of == topic || self.rng.one_in(4) => *id,
            _ => {
                let mut id = [0; 32];
                self.rng.fill(&mut id);
                ArtifactId(id)
            }
        }
    }

    fn slot(&mut self) -> Slot {
        let most = if self.rng.one_in(10) { 1 << 20 } else { u64::from(self.slots) + 1 };
        Slot(self.rng.below(most) as u32)
    }

    fn version(&mut self) -> Version {
        Version(match self.rng.below(4) {
            0 => self.rng.next_u64(),
            1 => u64::MAX - self.rng.below(3),
            _ => self.rng.below(1_000),
        })
    }

    fn noise(&mut self) -> Bytes {
        let mut body = vec![0; 1 + self.rng.below(self.largest.max(2)) as usize];
        self.rng.fill(&mut body);
        body.into()
    }
}
