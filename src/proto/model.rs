//! Slots and views against naive models, under long random runs.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{Active, Claim, Heard, Next, Origin, SlotLimits, Slots, Told, View, ViewEffect, ViewLimits};
use crate::types::{
    ArtifactId, Attribute, Class, ConnectionNumber, Instant, PeerIndex, Rng, Slot, TopicId, Version,
};
use crate::wire::Resync;

const PEERS: usize = 3;
const SLOTS: u32 = 70;

fn id(byte: u64) -> ArtifactId {
    ArtifactId([byte as u8; 32])
}

/// A view as one would write it without care for cost: every effect is the difference of two states.
#[derive(Default)]
struct NaiveView {
    entries: BTreeMap<(PeerIndex, u32), (u64, u64, Option<ArtifactId>)>,
    floors: BTreeMap<PeerIndex, u64>,
}

impl NaiveView {
    fn put(
        &mut self,
        peer: PeerIndex,
        connection: u64,
        slot: u32,
        version: u64,
        id: Option<ArtifactId>,
    ) -> Heard {
        if slot >= SLOTS || peer.index() >= PEERS {
            return Heard::OverLimit;
        }
        let floor = self.floors.get(&peer).copied().unwrap_or(0);
        let old = self.entries.get(&(peer, slot)).map(|(connection, version, _)| (*connection, *version));
        if connection < floor || Some((connection, version)) <= old {
            return Heard::Stale;
        }
        self.entries.insert((peer, slot), (connection, version, id));
        Heard::Newer
    }

    fn resync(&mut self, peer: PeerIndex, connection: u64, resync: &Resync) {
        if self.floors.get(&peer).is_some_and(|floor| connection <= *floor) {
            return;
        }
        self.floors.insert(peer, connection);
        self.entries.retain(|(of, slot), (from, ..)| {
            *of != peer || *from >= connection || resync.is_occupied(Slot(*slot))
        });
    }

    fn remove(&mut self, peer: PeerIndex) {
        self.floors.remove(&peer);
        self.entries.retain(|(of, _), _| *of != peer);
    }

    fn advertisers(&self) -> BTreeMap<ArtifactId, BTreeSet<PeerIndex>> {
        let mut all: BTreeMap<ArtifactId, BTreeSet<PeerIndex>> = BTreeMap::new();
        for ((peer, _), (.., id)) in &self.entries {
            if let Some(id) = id {
                all.entry(*id).or_default().insert(*peer);
            }
        }
        all
    }
}

/// Applies effects to what was advertised before, and checks each of them.
fn replay(advertised: &mut BTreeMap<ArtifactId, BTreeSet<PeerIndex>>, fx: &mut Vec<ViewEffect>) {
    for effect in fx.drain(..) {
        match effect {
            ViewEffect::Advertised { id, peer, first } => {
                let peers = advertised.entry(id).or_default();
                assert_eq!(first, peers.is_empty());
                assert!(peers.insert(peer), "advertised twice");
            }
            ViewEffect::Unadvertised { id, peer } => {
                let peers = advertised.get_mut(&id).expect("advertised before");
                assert!(peers.remove(&peer) && !peers.is_empty());
            }
            ViewEffect::Withdrawn { id } => {
                assert_eq!(advertised.remove(&id).expect("advertised before").len(), 1);
            }
        }
    }
}

#[test]
fn a_view_agrees_with_the_naive_one_after_every_random_operation() {
    for seed in 0..50 {
        let mut rng = Rng::new(seed);
        let mut view = View::new(ViewLimits { slots_per_peer: SLOTS, peers: PEERS }, &mut rng);
        let (mut naive, mut fx, mut replayed) = (NaiveView::default(), Vec::new(), BTreeMap::new());
        for _ in 0..2_000 {
            let peer = PeerIndex(rng.below(PEERS as u64 + 1) as u16);
            let (connection, version) = (1 + rng.below(4), rng.below(20));
            let slot = if rng.one_in(20) { SLOTS + rng.below(9) as u32 } else { rng.below(6) as u32 * 13 };
            let (number, at) = (ConnectionNumber(connection), Slot(slot));
            match rng.below(40) {
                0 if peer.index() < PEERS => {
                    let mut occupied = vec![0; 5];
                    rng.fill(&mut occupied);
                    let occupied = Bytes::from(occupied);
                    let resync = Resync { topic: TopicId(0), version: Version(version), occupied };
                    view.handle_resync(peer, number, &resync, &mut fx);
                    naive.resync(peer, connection, &resync);
                }
                1 => {
                    view.handle_removed(peer, &mut fx);
                    naive.remove(peer);
                }
                2..12 => {
                    let heard = view.handle_clear(peer, number, at, Version(version), &mut fx);
                    assert_eq!(heard, naive.put(peer, connection, slot, version, None));
                }
                _ => {
                    let id = id(rng.below(5));
                    let heard =
                        view.handle_set(peer, number, at, Version(version), Claim { id, size: 1 }, &mut fx);
                    assert_eq!(heard, naive.put(peer, connection, slot, version, Some(id)));
                }
            }
            replay(&mut replayed, &mut fx);
            assert_eq!(replayed, naive.advertisers());
            for byte in 0..5 {
                let expected = replayed.get(&id(byte)).cloned().unwrap_or_default();
                assert_eq!(view.advertisers(&id(byte)).collect::<BTreeSet<_>>(), expected);
                assert_eq!(view.is_advertised(&id(byte)), !expected.is_empty());
            }
            let named =
                |peer| naive.entries.iter().filter(|((of, _), e)| *of == peer && e.2.is_some()).count();
            for peer in (0..PEERS as u16).map(PeerIndex) {
                assert_eq!(view.len(peer), named(peer));
            }
        }
    }
}

/// What travels from the sender to one receiver.
enum Message {
    Set(Slot, Version, ArtifactId),
    Clear(Slot, Version),
    Resync(Resync),
}

/// A receiver, and the messages of its current connection that have not arrived.
struct Receiver {
    view: View,
    connection: u64,
    connected: bool,
    flying: VecDeque<Message>,
    fx: Vec<ViewEffect>,
    /// How often the sender had started when it was heard last, and since which connection.
    boot: (u64, u64),
    /// What it held when the connection began, on its way to the sender.
    held: Vec<(Slot, Version)>,
}

impl Receiver {
    /// Connects; sometimes what it holds arrives before it opens the topic.
    fn connect(&mut self, peer: PeerIndex, slots: &mut Slots, boot: u64, rng: &mut Rng) {
        self.flying.clear();
        self.connection += 1;
        self.connected = true;
        if self.boot.0 != boot {
            self.boot = (boot, self.connection);
        }
        self.held = self.view.held(PeerIndex(0), ConnectionNumber(self.boot.1)).collect();
        if rng.one_in(2) {
            self.say_held(peer, slots, rng);
        }
        let (version, occupied) = slots.handle_connected(peer);
        self.flying.push_back(Message::Resync(Resync { topic: TopicId(0), version, occupied }));
    }

    /// Some of what it held reaches the sender, perhaps again.
    fn say_held(&self, peer: PeerIndex, slots: &mut Slots, rng: &mut Rng) {
        for (slot, version) in &self.held {
            if !rng.one_in(4) {
                slots.handle_held(peer, *slot, *version);
            }
        }
    }

    /// Takes one flying message out, wherever it flies: streams are not ordered.
    fn deliver(&mut self, rng: &mut Rng) {
        let at = rng.below(self.flying.len() as u64) as usize;
        let from = PeerIndex(0);
        let connection = ConnectionNumber(self.connection);
        match self.flying.swap_remove_back(at) {
            Some(Message::Set(slot, version, id)) => {
                self.view.handle_set(from, connection, slot, version, Claim { id, size: 1 }, &mut self.fx);
            }
            Some(Message::Clear(slot, version)) => {
                self.view.handle_clear(from, connection, slot, version, &mut self.fx);
            }
            Some(Message::Resync(resync)) => {
                self.view.handle_resync(from, connection, &resync, &mut self.fx);
            }
            None => (),
        }
    }

    /// Asks for the next update; sometimes it does not get out, sometimes it gets out and counts as broken.
    fn pull(&mut self, peer: PeerIndex, slots: &mut Slots, rng: &mut Rng) -> bool {
        let fate = rng.below(8);
        let next = match fate {
            7 if slots.has_words(peer) => slots.next_word(peer, &mut |_| false),
            _ => slots.next_update(peer, &mut |_| false),
        };
        let Some(Next { slot, version, told }) = next else { return false };
        let message = match told {
            Told::Push(active) | Told::Advert(active) => Message::Set(slot, version, active.id),
            Told::Clear => Message::Clear(slot, version),
        };
        match fate {
            0 => slots.put_back(peer, slot),
            1 => {
                self.flying.push_back(message);
                slots.handle_broken(peer, slot);
            }
            _ => self.flying.push_back(message),
        }
        true
    }
}

#[test]
fn receivers_converge_on_the_senders_active_set_whatever_is_lost_reordered_or_restarted() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let limits = SlotLimits { capacity: 12, peers: PEERS, push_threshold: 50, class: Class::High };
        let mut slots = Slots::new(limits, &mut rng);
        let view_limits = ViewLimits { slots_per_peer: 12, peers: 1 };
        let mut receivers: Vec<Receiver> = (0..PEERS)
            .map(|_| Receiver {
                view: View::new(view_limits, &mut rng),
                connection: 0,
                connected: false,
                flying: VecDeque::new(),
                fx: Vec::new(),
                boot: (0, 0),
                held: Vec::new(),
            })
            .collect();
        let mut boot = 1;
        for _ in 0..4_000 {
            let at = rng.below(PEERS as u64) as usize;
            let (peer, receiver) = (PeerIndex(at as u16), &mut receivers[at]);
            match rng.below(200) {
                0 => {
                    slots.handle_disconnected(peer);
                    receiver.connect(peer, &mut slots, boot, &mut rng);
                }
                1 => {
                    receiver.connected = false;
                    slots.handle_disconnected(peer);
                }
                2 => {
                    slots = Slots::new(limits, &mut rng);
                    boot += 1;
                    receivers.iter_mut().for_each(|receiver| receiver.connected = false);
                }
                3..6 if receiver.connected => receiver.say_held(peer, &mut slots, &mut rng),
                3..50 => {
                    let (id, size) = (id(rng.below(20)), rng.below(100) as u32);
                    let origin = if rng.one_in(2) { Origin::Own } else { Origin::Relay };
                    let (attribute, since) = (Attribute::EMPTY, Instant::ZERO);
                    let _ = slots.handle_broadcast(Active { id, size, attribute, origin, since });
                }
                50..90 => drop(slots.handle_abort(&id(rng.below(20)))),
                90..150 => drop(receiver.pull(peer, &mut slots, &mut rng)),
                _ if receiver.connected => receiver.deliver(&mut rng),
                _ => (),
            }
        }
        for (at, receiver) in receivers.iter_mut().enumerate() {
            let peer = PeerIndex(at as u16);
            if !receiver.connected {
                receiver.connect(peer, &mut slots, boot, &mut rng);
            }
            while receiver.pull(peer, &mut slots, &mut rng) || !receiver.flying.is_empty() {
                receiver.deliver(&mut rng);
            }
            let mut heard = BTreeMap::new();
            replay(&mut heard, &mut receiver.fx);
            let active: BTreeSet<ArtifactId> = slots.iter().map(|(_, active)| active.id).collect();
            assert_eq!(heard.keys().copied().collect::<BTreeSet<_>>(), active, "seed {seed}, {peer:?}");
        }
    }
}
