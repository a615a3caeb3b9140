//! Sender half of the abortable broadcast, for one topic in one lane: which artifact occupies which slot, and
//! what each peer must still be told.
//!
//! What a peer must still hear is a set of slots, not a queue of messages: an update is built from the slot's
//! content at the moment the link has room. So an abort before sending costs nothing, a slot that changed
//! five times is sent once, a stalled peer costs bits, and a new connection is "all dirty but what the peer says
//! that it still holds".

mod refusals;
#[cfg(test)]
mod tests;

use std::collections::hash_map;

use bytes::Bytes;

use super::DirtySet;
use crate::types::{ArtifactId, Attribute, Class, IdMap, Instant, KeyedState, PeerIndex, Rng, Slot, Version};
use crate::wire::{MAX_SLOTS, Refusal};
use refusals::Refusals;

/// Sizes of one topic's table.
#[derive(Debug, Clone, Copy)]
pub struct SlotLimits {
    /// The most artifacts that are active at a time; above [`MAX_SLOTS`] it counts as [`MAX_SLOTS`]. A slot
    /// costs about 150 bytes once used, four bits for each connected peer, and three for each that refuses anything.
    pub capacity: u32,
    /// Peers; indices at or above it are ignored.
    pub peers: usize,
    /// Own bodies smaller than this many bytes are pushed, others adverted.
    pub push_threshold: u32,
    /// The topic's class: own bodies of a `Critical` topic are pushed whatever their size.
    pub class: Class,
}

/// Where an active artifact comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This node made it.
    Own,
    /// Another member made it, and the replica validated it here. Relayed artifacts are adverted, never
    /// pushed.
    Relay,
}

/// An artifact that this node broadcasts now. Its body lives in the [`Pool`](super::Pool).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// Its id.
    pub id: ArtifactId,
    /// Bytes of its body.
    pub size: u32,
    /// What a filter may look at.
    pub attribute: Attribute,
    /// Where it comes from.
    pub origin: Origin,
    /// When it became active.
    pub since: Instant,
}

/// Why an artifact did not become active. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotsError {
    /// Every slot is occupied: abort something first.
    #[error("every slot of the topic is occupied")]
    Full,
    /// It is active already.
    #[error("the artifact is active already")]
    Duplicate,
}

/// What to tell a peer of a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told<'a> {
    /// The artifact, with its body.
    Push(&'a Active),
    /// The artifact, by name.
    Advert(&'a Active),
    /// That what it was told before is gone.
    Clear,
}

/// The next thing to tell a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Next<'a> {
    /// The slot.
    pub slot: Slot,
    /// The table's version at the slot's last change.
    pub version: Version,
    /// What to say.
    pub told: Told<'a>,
}

/// The table.
///
/// - The replica's side: [`handle_broadcast`](Slots::handle_broadcast),
///   [`handle_abort`](Slots::handle_abort).
/// - The link's side: [`handle_held`](Slots::handle_held) for what the peer says that it holds of an older
///   connection; [`handle_connected`](Slots::handle_connected) once the peer has opened the topic, whose
///   result goes out as a [`Resync`](crate::wire::Resync); then [`next_update`](Slots::next_update) whenever
///   the link has room; [`put_back`](Slots::put_back) for what did not get out whole;
///   [`handle_refused`](Slots::handle_refused), and [`next_refusal`](Slots::next_refusal) while the replica
///   listens; [`handle_disconnected`](Slots::handle_disconnected).
///
/// Promises: one artifact per slot and one slot per artifact; versions grow with every change; of two changes
/// to a slot only the newer is sent; a peer that may hold an entry of a slot which is free now gets exactly
/// one `Clear` for it; each refusal of a slot's content is reported once. Does not promise history: a peer that
/// was away learns the table as it is. A peer that lies about what it holds is not told of it, and nobody else
/// notices.
#[derive(Debug)]
pub struct Slots {
    limits: SlotLimits,
    version: u64,
    /// Every slot that was ever used; a free one keeps the version of its last change.
    table: Vec<Place>,
    /// Free slots below `table.len()`.
    holes: DirtySet,
    by_id: IdMap<Slot>,
    /// Connected peers that have opened the topic.
    links: Vec<Option<Link>>,
    /// Slots that peers which have not opened the topic yet hold as they are now.
    held: Vec<Option<DirtySet>>,
    refusals: Refusals,
}

#[derive(Debug)]
struct Place {
    version: Version,
    active: Option<Active>,
}

/// What one connection has been told and must still be told.
#[derive(Debug)]
struct Link {
    /// Dirty slots that take few bytes to tell: adverts and clears.
    words: DirtySet,
    /// Dirty slots whose body is pushed.
    bodies: DirtySet,
    /// Slots of which the peer may hold an entry.
    told: DirtySet,
    /// Where the next search begins, so that low slots that change often cannot starve high ones.
    cursor: u32,
    /// The slot that was taken out last, and whether the peer had been told of it before; until the table
    /// changes.
    last: Option<(u32, bool)>,
}

impl Slots {
    /// An empty table. `seed` draws the key of the look-up by id.
    pub fn new(mut limits: SlotLimits, seed: &mut Rng) -> Slots {
        limits.capacity = limits.capacity.min(MAX_SLOTS);
        Slots {
            limits,
            version: 0,
            table: Vec::new(),
            holes: DirtySet::new(limits.capacity),
            by_id: IdMap::with_hasher(KeyedState::new(seed)),
            links: (0..limits.peers).map(|_| None).collect(),
            held: vec![None; limits.peers],
            refusals: Refusals::new(limits.capacity, limits.peers),
        }
    }

    /// Makes `active` active: in the lowest free slot, with a new version, to be told to every connected
    /// peer.
    pub fn handle_broadcast(&mut self, active: Active) -> Result<Slot, SlotsError> {
        let full = self.is_full();
        let number = self.holes.next_at_or_after(0).unwrap_or(self.table.len() as u32);
        match self.by_id.entry(active.id) {
            hash_map::Entry::Occupied(_) => return Err(SlotsError::Duplicate),
            hash_map::Entry::Vacant(_) if full => return Err(SlotsError::Full),
            hash_map::Entry::Vacant(place) => place.insert(Slot(number)),
        };
        let version = self.next_version();
        let pushes = self.limits.pushes(&active);
        let place = Place { version, active: Some(active) };
        if self.holes.remove(number) {
            self.table[number as usize] = place;
        } else {
            self.table.push(place);
        }
        self.forget(number);
        for link in self.links.iter_mut().flatten() {
            link.mark(number, pushes);
        }
        self.check();
        Ok(Slot(number))
    }

    /// Ends the broadcast of `id`: a peer that was told, or may have been, has a `Clear` coming; others hear
    /// nothing.
    pub fn handle_abort(&mut self, id: &ArtifactId) -> Option<Active> {
        let Slot(number) = self.by_id.remove(id)?;
        let version = self.next_version();
        let place = self.table.get_mut(number as usize)?;
        place.version = version;
        let active = place.active.take();
        self.holes.insert(number);
        self.forget(number);
        for link in self.links.iter_mut().flatten() {
            link.unmark(number);
            if link.told.contains(number) {
                link.mark(number, false);
            }
        }
        self.check();
        active
    }

    /// A slot has changed: what peers hold of it, or refused, is something else.
    fn forget(&mut self, number: u32) {
        for held in self.held.iter_mut().flatten() {
            held.remove(number);
        }
        for link in self.links.iter_mut().flatten() {
            link.last = None;
        }
        self.refusals.forget(Slot(number));
    }

    /// `peer` says that it holds `slot` at `version`, heard from this very table on an older connection; whether
    /// the slot need not be told for that. It need not when nothing has changed and nothing was told yet.
    ///
    /// It may be said at any time of a connection and any number of times; before the peer has opened the topic
    /// it is said in time.
    pub fn handle_held(&mut self, peer: PeerIndex, slot: Slot, version: Version) -> bool {
        if self.get_slot(slot).is_none_or(|(current, _)| current != version) {
            return false;
        }
        match (self.links.get_mut(peer.index()), self.held.get_mut(peer.index())) {
            (Some(Some(link)), _) => {
                let dirty = link.unmark(slot.0);
                if dirty {
                    link.told.insert(slot.0);
                }
                dirty
            }
            (_, Some(held)) => held.get_or_insert_with(|| DirtySet::new(self.limits.capacity)).insert(slot.0),
            _ => false,
        }
    }

    /// Begins a connection. Returns the table's version and the bitmap of occupied slots, which the caller
    /// sends as a [`Resync`](crate::wire::Resync) on that connection.
    ///
    /// Every occupied slot is dirty but those that the peer holds as they are, and every one counts as told from
    /// now on: the peer keeps its entry of an older connection in such a slot, so an abort before the update
    /// went out must still say `Clear`.
    pub fn handle_connected(&mut self, peer: PeerIndex) -> (Version, Bytes) {
        let empty = DirtySet::new(self.limits.capacity);
        let (words, bodies, told) = (empty.clone(), empty.clone(), empty);
        let mut link = Link { words, bodies, told, cursor: 0, last: None };
        let held = self.held.get_mut(peer.index()).and_then(Option::take);
        let is_held = |number| held.as_ref().is_some_and(|held| held.contains(number));
        let mut occupied = vec![0u8; self.table.len().div_ceil(8)];
        for (number, place) in self.table.iter().enumerate() {
            if let Some(active) = &place.active {
                if !is_held(number as u32) {
                    link.mark(number as u32, self.limits.pushes(active));
                }
                link.told.insert(number as u32);
                occupied[number / 8] |= 1 << (number % 8);
            }
        }
        let used = occupied.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        occupied.truncate(used);
        if let Some(place) = self.links.get_mut(peer.index()) {
            *place = Some(link);
        }
        (Version(self.version), Bytes::from(occupied))
    }

    /// The connection is gone; nothing of `peer` is kept but what it refused: that is not reported again.
    pub fn handle_disconnected(&mut self, peer: PeerIndex) {
        if let Some(link) = self.links.get_mut(peer.index()) {
            *link = None;
        }
        if let Some(held) = self.held.get_mut(peer.index()) {
            *held = None;
        }
    }

    /// `peer` refuses to hold what `slot` held at `version`; whether that is to be reported. It is not when the
    /// slot has changed since, when the peer was not told of it, and when the peer has said so before.
    pub fn handle_refused(&mut self, peer: PeerIndex, slot: Slot, version: Version, reason: Refusal) -> bool {
        let told = match self.links.get(peer.index()) {
            Some(Some(link)) => link.told.contains(slot.0) && !link.is_dirty(slot.0),
            _ => false,
        };
        let current = self.get_slot(slot).is_some_and(|(current, _)| current == version);
        told && current && self.refusals.insert(peer, slot, reason)
    }

    /// The next refusal to report: of which artifact, by whom, and why. Those of artifacts that are not active
    /// any more are never reported.
    pub fn next_refusal(&mut self) -> Option<(ArtifactId, PeerIndex, Refusal)> {
        let (peer, slot, reason) = self.refusals.next_untold()?;
        let (_, active) = self.get_slot(slot)?;
        Some((active.id, peer, reason))
    }

    /// Whether there is one.
    pub fn has_refusals(&self) -> bool {
        self.refusals.has_untold()
    }

    /// Takes the next update out of the peer's dirty set; the caller sends it on the current connection, or
    /// puts it back.
    ///
    /// `knows` says whether the peer has named the artifact itself **since its last start** (an older claim may
    /// predate a restart that lost the body). Such an artifact is passed over; where the peer may hold
    /// another entry of that slot, it gets a `Clear`.
    pub fn next_update(
        &mut self,
        peer: PeerIndex,
        knows: &mut dyn FnMut(&ArtifactId) -> bool,
    ) -> Option<Next<'_>> {
        self.next(peer, knows, true)
    }

    /// The same without pushes, for a link that has room for words only: pushes stay where they are.
    pub fn next_word(
        &mut self,
        peer: PeerIndex,
        knows: &mut dyn FnMut(&ArtifactId) -> bool,
    ) -> Option<Next<'_>> {
        self.next(peer, knows, false)
    }

    fn next(
        &mut self,
        peer: PeerIndex,
        knows: &mut dyn FnMut(&ArtifactId) -> bool,
        bodies: bool,
    ) -> Option<Next<'_>> {
        let link = self.links.get_mut(peer.index())?.as_mut()?;
        loop {
            let number = link.next_dirty(bodies)?;
            link.unmark(number);
            link.cursor = number + 1;
            link.last = Some((number, link.told.contains(number)));
            let place = self.table.get(number as usize)?;
            let told = match &place.active {
                Some(active) if !knows(&active.id) => {
                    link.told.insert(number);
                    if self.limits.pushes(active) { Told::Push(active) } else { Told::Advert(active) }
                }
                _ if link.told.remove(number) => Told::Clear,
                _ => continue,
            };
            return Some(Next { slot: Slot(number), version: place.version, told });
        }
    }

    /// Undoes the [`next_update`](Slots::next_update) that gave `slot`, **at once**, before a byte of it has
    /// left (the batch had no room for it): the peer counts as told of what it was told before.
    pub fn put_back(&mut self, peer: PeerIndex, slot: Slot) {
        let Some(Some(link)) = self.links.get_mut(peer.index()) else { return };
        match link.last.take() {
            Some((last, false)) if last == slot.0 => {
                link.told.remove(slot.0);
                self.mark_again(peer, slot);
            }
            _ => self.handle_broken(peer, slot),
        }
    }

    /// A push of `slot` broke on its way by a reset that was not ours: the slot is dirty again, and the peer
    /// counts as told of it, for it may have seen the head.
    pub fn handle_broken(&mut self, peer: PeerIndex, slot: Slot) {
        if let Some(Some(link)) = self.links.get_mut(peer.index())
            && slot.index() < self.table.len()
        {
            link.last = None;
            link.told.insert(slot.0);
            self.mark_again(peer, slot);
        }
    }

    fn mark_again(&mut self, peer: PeerIndex, slot: Slot) {
        let Some(place) = self.table.get(slot.index()) else { return };
        let pushes = place.active.as_ref().is_some_and(|active| self.limits.pushes(active));
        if let Some(Some(link)) = self.links.get_mut(peer.index()) {
            link.mark(slot.0, pushes);
        }
    }

    /// Whether the peer is connected and has something to hear (or to be passed over).
    pub fn has_updates(&self, peer: PeerIndex) -> bool {
        self.backlog(peer) > 0
    }

    /// Whether some of that is not a push.
    pub fn has_words(&self, peer: PeerIndex) -> bool {
        matches!(self.links.get(peer.index()), Some(Some(link)) if !link.words.is_empty())
    }

    /// Slots of which a connected peer must still hear.
    pub fn backlog(&self, peer: PeerIndex) -> usize {
        self.backlog_of(peer).unwrap_or(0)
    }

    /// The same; `None`: the peer is not connected, or has not opened the topic.
    pub fn backlog_of(&self, peer: PeerIndex) -> Option<usize> {
        let link = self.links.get(peer.index()).and_then(Option::as_ref);
        link.map(|link| link.words.len() + link.bodies.len())
    }

    /// Whether `peer` holds what is in `slot` now, as far as is known: it was told on this connection, or has said so.
    pub fn is_told(&self, peer: PeerIndex, slot: Slot) -> bool {
        let link = self.links.get(peer.index()).and_then(Option::as_ref);
        link.is_some_and(|link| link.told.contains(slot.0) && !link.is_dirty(slot.0))
    }

    /// Whether `peer` has refused what is in `slot` now.
    pub fn is_refused(&self, peer: PeerIndex, slot: Slot) -> bool {
        self.refusals.has(peer, slot)
    }

    /// An active artifact and its slot.
    pub fn get(&self, id: &ArtifactId) -> Option<(Slot, &Active)> {
        let slot = *self.by_id.get(id)?;
        Some((slot, self.table.get(slot.index())?.active.as_ref()?))
    }

    /// The artifact in `slot`, and the version of the slot's last change.
    pub fn get_slot(&self, slot: Slot) -> Option<(Version, &Active)> {
        let place = self.table.get(slot.index())?;
        Some((place.version, place.active.as_ref()?))
    }

    /// Every active artifact, by slot.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Active)> {
        let places = self.table.iter().enumerate();
        places.filter_map(|(number, place)| Some((Slot(number as u32), place.active.as_ref()?)))
    }

    /// Active artifacts.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether nothing is active.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// The most artifacts that are active at a time.
    pub fn capacity(&self) -> usize {
        self.limits.capacity as usize
    }

    /// Whether every slot is occupied.
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity()
    }

    fn next_version(&mut self) -> Version {
        self.version += 1;
        Version(self.version)
    }

    fn check(&self) {
        debug_assert_eq!(self.by_id.len() + self.holes.len(), self.table.len());
        debug_assert!(self.table.len() <= self.capacity());
    }
}

impl Link {
    /// The peer must hear of a slot, which is dirty in one set at most.
    fn mark(&mut self, number: u32, pushes: bool) {
        self.unmark(number);
        if pushes { &mut self.bodies } else { &mut self.words }.insert(number);
    }

    /// Whether it was dirty.
    fn unmark(&mut self, number: u32) -> bool {
        let word = self.words.remove(number);
        self.bodies.remove(number) || word
    }

    fn is_dirty(&self, number: u32) -> bool {
        self.words.contains(number) || self.bodies.contains(number)
    }

    /// The next dirty slot from the cursor on, round the table.
    fn next_dirty(&self, bodies: bool) -> Option<u32> {
        let next = |from| {
            let word = self.words.next_at_or_after(from);
            let body = self.bodies.next_at_or_after(from).filter(|_| bodies);
            word.into_iter().chain(body).min()
        };
        next(self.cursor).or_else(|| next(0))
    }
}

impl SlotLimits {
    fn pushes(&self, active: &Active) -> bool {
        active.origin == Origin::Own && (active.size < self.push_threshold || self.class == Class::Critical)
    }
}
