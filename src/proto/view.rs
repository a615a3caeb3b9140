//! Receiver half of the abortable broadcast, for one topic in one lane: a table per peer of what it says that
//! its slots hold, and from all of them who advertises what.
//!
//! Streams are not ordered, so updates carry versions and the newest wins: of two statements about a slot the
//! one of the later connection, or of the same connection and the higher version. A version never outlives
//! its connection: `u64::MAX` blocks its slot only until the next one.

use std::collections::hash_map;

use smallvec::SmallVec;

use crate::types::{ArtifactId, ConnectionNumber, IdMap, KeyedState, PeerIndex, Rng, Slot, Version};
use crate::wire::{MAX_SLOTS, Resync};

/// Sizes of one topic's tables.
#[derive(Debug, Clone, Copy)]
pub struct ViewLimits {
    /// Slots that are kept of each peer; above [`MAX_SLOTS`] it counts as [`MAX_SLOTS`]. A used slot costs
    /// about 60 bytes (in pages of 64 slots), an artifact that anybody names 100 to 200, and 24 to 48 more for each peer that
    /// does beyond two.
    pub slots_per_peer: u32,
    /// Peers; updates of indices at or above it are over the limit.
    pub peers: usize,
}

/// What became of an update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is the newest statement about its slot, and stands in the table.
    Newer,
    /// Something as new or newer is known. Nothing has changed.
    Stale,
    /// The slot (or the peer) is beyond the limits. Nothing has changed; the sender should be told.
    OverLimit,
}

/// What a peer says that one of its slots holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The artifact.
    pub id: ArtifactId,
    /// Bytes of its body. Each peer is asked for what it says itself, so nobody's lie keeps a body from being fetched elsewhere.
    pub size: u32,
}

/// What an update changed in who advertises what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ViewEffect {
    /// A peer names an artifact that it did not name before.
    Advertised {
        /// The artifact.
        id: ArtifactId,
        /// Who names it.
        peer: PeerIndex,
        /// Nobody named it before.
        first: bool,
    },
    /// A peer no longer names an artifact; others do.
    Unadvertised {
        /// The artifact.
        id: ArtifactId,
        /// Who named it.
        peer: PeerIndex,
    },
    /// Its last advertiser is gone.
    Withdrawn {
        /// The artifact.
        id: ArtifactId,
    },
}

/// Slots in a page: a peer's table grows page by page, so it holds only the neighbourhood of what was used.
const PAGE: usize = 64;

/// The tables of all peers.
///
/// Every `handle_*` appends exact effects in order: an id is `Advertised` once per peer that begins to name
/// it, however many of its slots do, and `Withdrawn` once, when the last of them is gone. An update that
/// names the same id again has none.
#[derive(Debug)]
pub struct View {
    limits: ViewLimits,
    tables: Vec<Table>,
    by_id: IdMap<Holders>,
}

/// Who names an id, by peer; never nobody.
type Holders = SmallVec<[Holder; 2]>;

/// A peer that names an id.
#[derive(Debug)]
struct Holder {
    peer: PeerIndex,
    /// In how many slots; never 0.
    slots: u32,
    /// The latest connection on which it did.
    connection: ConnectionNumber,
    /// Bytes of the body, as it says.
    size: u32,
}

/// What one peer has said.
#[derive(Debug, Default)]
struct Table {
    pages: Vec<Option<Box<[Option<Entry>; PAGE]>>>,
    /// Entries that name an id.
    named: usize,
    /// The latest connection that stated its whole table; older ones have nothing to add.
    floor: Option<ConnectionNumber>,
}

/// The newest statement about one slot.
#[derive(Debug, Clone, Copy)]
struct Entry {
    connection: ConnectionNumber,
    version: Version,
    /// `None` is a tombstone: it keeps an older set that arrives later from coming back.
    id: Option<ArtifactId>,
}

impl View {
    /// Empty tables. `seed` draws the key of the look-up by id.
    pub fn new(mut limits: ViewLimits, seed: &mut Rng) -> View {
        limits.slots_per_peer = limits.slots_per_peer.min(MAX_SLOTS);
        View {
            limits,
            tables: (0..limits.peers).map(|_| Table::default()).collect(),
            by_id: IdMap::with_hasher(KeyedState::new(seed)),
        }
    }

    /// `peer` says what `slot` holds.
    pub fn handle_set(
        &mut self,
        peer: PeerIndex,
        connection: ConnectionNumber,
        slot: Slot,
        version: Version,
        claim: Claim,
        fx: &mut Vec<ViewEffect>,
    ) -> Heard {
        self.put(peer, slot, Entry { connection, version, id: Some(claim.id) }, claim.size, fx)
    }

    /// `peer` says that `slot` is free.
    pub fn handle_clear(
        &mut self,
        peer: PeerIndex,
        connection: ConnectionNumber,
        slot: Slot,
        version: Version,
        fx: &mut Vec<ViewEffect>,
    ) -> Heard {
        self.put(peer, slot, Entry { connection, version, id: None }, 0, fx)
    }

    /// `peer` states its whole table: what older connections left in slots that are not occupied is dropped,
    /// and they have nothing to add from now on. Entries of this connection stay, for they may be newer than
    /// the statement; so only the first statement of a connection says anything.
    pub fn handle_resync(
        &mut self,
        peer: PeerIndex,
        connection: ConnectionNumber,
        resync: &Resync,
        fx: &mut Vec<ViewEffect>,
    ) {
        let Some(table) = self.tables.get_mut(peer.index()) else { return };
        if table.floor.is_some_and(|floor| connection <= floor) {
            return;
        }
        table.floor = Some(connection);
        let dropped =
            table.drop_where(|slot, entry| entry.connection < connection && !resync.is_occupied(slot));
        for id in dropped {
            self.leave(peer, id, fx);
        }
    }

    /// `peer` has left the membership: nothing of it is kept.
    pub fn handle_removed(&mut self, peer: PeerIndex, fx: &mut Vec<ViewEffect>) {
        let Some(table) = self.tables.get_mut(peer.index()) else { return };
        let dropped = table.drop_where(|_, _| true);
        *table = Table::default();
        for id in dropped {
            self.leave(peer, id, fx);
        }
    }

    /// Whether `peer` names `id`, on whatever connection it said so.
    pub fn advertises(&self, peer: PeerIndex, id: &ArtifactId) -> bool {
        self.holder(peer, id).is_some()
    }

    /// Whether `peer` names `id` and has done so on `connection` or later: with the first connection since the
    /// peer's last start, that the claim does not predate a restart which lost the body. This is what
    /// [`Slots::next_update`](super::Slots::next_update) asks.
    pub fn advertises_since(&self, peer: PeerIndex, connection: ConnectionNumber, id: &ArtifactId) -> bool {
        self.holder(peer, id).is_some_and(|holder| holder.connection >= connection)
    }

    /// The slots in which `peer` has named an artifact on `since` or a later connection, ascending, each with the
    /// version at which it did.
    pub fn held(
        &self,
        peer: PeerIndex,
        since: ConnectionNumber,
    ) -> impl Iterator<Item = (Slot, Version)> + '_ {
        let pages =
            self.tables.get(peer.index()).into_iter().flat_map(|table| table.pages.iter().enumerate());
        let entries = pages.flat_map(|(number, page)| {
            let entries = page.iter().flat_map(|entries| entries.iter().enumerate());
            entries.map(move |(offset, entry)| (Slot((number * PAGE + offset) as u32), entry))
        });
        entries.filter_map(move |(slot, entry)| {
            let entry = entry.as_ref().filter(|entry| entry.id.is_some() && entry.connection >= since)?;
            Some((slot, entry.version))
        })
    }

    /// Who names `id`, by index, with the size that each says.
    pub fn claims(&self, id: &ArtifactId) -> impl Iterator<Item = (PeerIndex, u32)> {
        self.by_id.get(id).into_iter().flatten().map(|holder| (holder.peer, holder.size))
    }

    /// Who names `id`, by index.
    pub fn advertisers(&self, id: &ArtifactId) -> impl Iterator<Item = PeerIndex> {
        self.by_id.get(id).into_iter().flatten().map(|holder| holder.peer)
    }

    /// What `peer` names, slot by slot.
    pub fn named_by(&self, peer: PeerIndex) -> impl Iterator<Item = ArtifactId> {
        let pages = self.tables.get(peer.index()).into_iter().flat_map(|table| &table.pages);
        pages.flatten().flat_map(|page| page.iter().flatten()).filter_map(|entry| entry.id)
    }

    /// Whether anybody names `id`.
    pub fn is_advertised(&self, id: &ArtifactId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Slots of `peer` that name an artifact.
    pub fn len(&self, peer: PeerIndex) -> usize {
        self.tables.get(peer.index()).map_or(0, |table| table.named)
    }

    /// Whether nobody names anything.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Artifacts that somebody names.
    pub fn artifacts(&self) -> usize {
        self.by_id.len()
    }

    fn holder(&self, peer: PeerIndex, id: &ArtifactId) -> Option<&Holder> {
        let holders = self.by_id.get(id)?;
        holders.get(place_of(holders, peer).ok()?)
    }

    fn put(
        &mut self,
        peer: PeerIndex,
        slot: Slot,
        entry: Entry,
        size: u32,
        fx: &mut Vec<ViewEffect>,
    ) -> Heard {
        let Some(table) = self.tables.get_mut(peer.index()) else { return Heard::OverLimit };
        if slot.0 >= self.limits.slots_per_peer {
            return Heard::OverLimit;
        }
        if table.floor.is_some_and(|floor| entry.connection < floor) {
            return Heard::Stale;
        }
        let place = table.place(slot);
        if place.is_some_and(|old| (entry.connection, entry.version) <= (old.connection, old.version)) {
            return Heard::Stale;
        }
        let old = place.replace(entry).and_then(|old| old.id);
        table.named = table.named - usize::from(old.is_some()) + usize::from(entry.id.is_some());
        if let Some(id) = old.filter(|old| entry.id != Some(*old)) {
            self.leave(peer, id, fx);
        }
        if let Some(id) = entry.id {
            let slots = u32::from(old != Some(id));
            self.join(id, Holder { peer, slots, connection: entry.connection, size }, fx);
        }
        Heard::Newer
    }

    /// So many more slots of a peer name `id`.
    fn join(&mut self, id: ArtifactId, new: Holder, fx: &mut Vec<ViewEffect>) {
        let holders = self.by_id.entry(id).or_default();
        match place_of(holders, new.peer) {
            Ok(at) => {
                let known = &mut holders[at];
                known.slots += new.slots;
                known.connection = known.connection.max(new.connection);
                known.size = new.size;
            }
            Err(at) => {
                fx.push(ViewEffect::Advertised { id, peer: new.peer, first: holders.is_empty() });
                holders.insert(at, new);
            }
        }
    }

    /// One slot less of `peer` names `id`.
    fn leave(&mut self, peer: PeerIndex, id: ArtifactId, fx: &mut Vec<ViewEffect>) {
        let hash_map::Entry::Occupied(mut named) = self.by_id.entry(id) else { return };
        let holders = named.get_mut();
        let Ok(at) = place_of(holders, peer) else { return };
        holders[at].slots -= 1;
        if holders[at].slots > 0 {
            return;
        }
        holders.remove(at);
        if holders.is_empty() {
            named.remove();
            fx.push(ViewEffect::Withdrawn { id });
        } else {
            fx.push(ViewEffect::Unadvertised { id, peer });
        }
    }
}

/// Where `peer` stands among holders, which are sorted by peer; or where it would.
fn place_of(holders: &[Holder], peer: PeerIndex) -> Result<usize, usize> {
    holders.binary_search_by_key(&peer, |holder| holder.peer)
}

impl Table {
    /// The place of `slot`, which the caller has compared with the limit.
    fn place(&mut self, slot: Slot) -> &mut Option<Entry> {
        let page = slot.index() / PAGE;
        if page >= self.pages.len() {
            self.pages.resize_with(page + 1, || None);
        }
        let page = self.pages[page].get_or_insert_with(|| Box::new([None; PAGE]));
        &mut page[slot.index() % PAGE]
    }

    /// Forgets the entries that `goes` picks, and pages without any; returns the ids they named, by slot.
    fn drop_where(&mut self, goes: impl Fn(Slot, &Entry) -> bool) -> Vec<ArtifactId> {
        let mut dropped = Vec::new();
        for (number, page) in self.pages.iter_mut().enumerate() {
            let Some(entries) = page else { continue };
            for (offset, place) in entries.iter_mut().enumerate() {
                let slot = Slot((number * PAGE + offset) as u32);
                if let Some(entry) = place.take_if(|entry| goes(slot, entry)) {
                    dropped.extend(entry.id);
                }
            }
            if entries.iter().all(Option::is_none) {
                *page = None;
            }
        }
        self.named -= dropped.len();
        dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::TopicId;
    use bytes::Bytes;

    const A: PeerIndex = PeerIndex(0);
    const B: PeerIndex = PeerIndex(1);

    fn id(byte: u8) -> ArtifactId {
        ArtifactId([byte; 32])
    }

    /// A view of two peers with 200 slots each, and the effects so far.
    struct World {
        view: View,
        fx: Vec<ViewEffect>,
    }

    fn world() -> World {
        let limits = ViewLimits { slots_per_peer: 200, peers: 2 };
        World { view: View::new(limits, &mut Rng::new(1)), fx: Vec::new() }
    }

    impl World {
        fn set(&mut self, peer: PeerIndex, connection: u64, slot: u32, version: u64, byte: u8) -> Heard {
            let (connection, version) = (ConnectionNumber(connection), Version(version));
            self.view.handle_set(
                peer,
                connection,
                Slot(slot),
                version,
                Claim { id: id(byte), size: 1 },
                &mut self.fx,
            )
        }

        fn clear(&mut self, peer: PeerIndex, connection: u64, slot: u32, version: u64) -> Heard {
            let (connection, version) = (ConnectionNumber(connection), Version(version));
            self.view.handle_clear(peer, connection, Slot(slot), version, &mut self.fx)
        }

        fn resync(&mut self, peer: PeerIndex, connection: u64, occupied: &'static [u8]) {
            let occupied = Bytes::from_static(occupied);
            let resync = Resync { topic: TopicId(1), version: Version(1), occupied };
            self.view.handle_resync(peer, ConnectionNumber(connection), &resync, &mut self.fx);
        }

        fn effects(&mut self) -> Vec<ViewEffect> {
            std::mem::take(&mut self.fx)
        }
    }

    fn advertised(byte: u8, peer: PeerIndex, first: bool) -> ViewEffect {
        ViewEffect::Advertised { id: id(byte), peer, first }
    }

    fn unadvertised(byte: u8, peer: PeerIndex) -> ViewEffect {
        ViewEffect::Unadvertised { id: id(byte), peer }
    }

    fn withdrawn(byte: u8) -> ViewEffect {
        ViewEffect::Withdrawn { id: id(byte) }
    }

    #[test]
    fn an_id_is_advertised_once_per_peer_and_withdrawn_with_the_last() {
        let mut world = world();
        assert_eq!(world.set(A, 1, 0, 1, 7), Heard::Newer);
        assert_eq!(world.set(B, 2, 5, 1, 7), Heard::Newer);
        assert_eq!(world.effects(), [advertised(7, A, true), advertised(7, B, false)]);
        assert_eq!(world.view.advertisers(&id(7)).collect::<Vec<_>>(), [A, B]);
        world.clear(A, 1, 0, 2);
        assert_eq!(world.effects(), [unadvertised(7, A)]);
        world.clear(B, 2, 5, 2);
        assert_eq!(world.effects(), [withdrawn(7)]);
        assert!(world.view.is_empty() && !world.view.is_advertised(&id(7)));
    }

    #[test]
    fn several_slots_of_one_peer_count_exactly() {
        let mut world = world();
        world.set(A, 1, 0, 1, 7);
        world.set(A, 1, 1, 2, 7);
        assert_eq!(world.effects(), [advertised(7, A, true)]);
        world.clear(A, 1, 0, 3);
        assert_eq!(world.effects(), []);
        assert_eq!(world.view.len(A), 1);
        world.set(A, 1, 1, 4, 8);
        assert_eq!(world.effects(), [withdrawn(7), advertised(8, A, true)]);
    }

    #[test]
    fn the_same_id_again_in_its_slot_has_no_effects_but_is_newer() {
        let mut world = world();
        world.set(A, 1, 0, 1, 7);
        world.effects();
        assert_eq!(world.set(A, 1, 0, 2, 7), Heard::Newer);
        assert_eq!(world.set(A, 2, 0, 1, 7), Heard::Newer);
        assert_eq!(world.effects(), []);
        assert_eq!(world.view.len(A), 1);
    }

    #[test]
    fn an_update_as_old_or_older_is_stale() {
        let mut world = world();
        world.set(A, 2, 0, 5, 7);
        world.effects();
        for (connection, version) in [(2, 5), (2, 4), (1, 9)] {
            assert_eq!(world.set(A, connection, 0, version, 8), Heard::Stale);
            assert_eq!(world.clear(A, connection, 0, version), Heard::Stale);
        }
        assert_eq!(world.effects(), []);
        assert_eq!(world.set(A, 3, 0, 1, 8), Heard::Newer, "a later connection wins with a lower version");
    }

    #[test]
    fn a_set_that_arrives_after_its_own_clear_stays_cleared() {
        let mut world = world();
        assert_eq!(world.clear(A, 1, 0, 2), Heard::Newer);
        assert_eq!(world.set(A, 1, 0, 1, 7), Heard::Stale);
        assert_eq!(world.effects(), []);
        assert_eq!(world.set(A, 1, 0, 3, 7), Heard::Newer);
    }

    #[test]
    fn the_highest_version_wedges_its_slot_only_for_its_connection() {
        let mut world = world();
        world.set(A, 1, 0, u64::MAX, 7);
        assert_eq!(world.set(A, 1, 0, u64::MAX, 8), Heard::Stale);
        assert_eq!(world.set(A, 2, 0, 1, 8), Heard::Newer);
    }

    #[test]
    fn slots_beyond_the_limit_and_unknown_peers_are_refused() {
        let mut world = world();
        assert_eq!(world.set(A, 1, 199, 1, 7), Heard::Newer);
        world.effects();
        assert_eq!(world.set(A, 1, 200, 1, 7), Heard::OverLimit);
        assert_eq!(world.clear(A, 1, u32::MAX, 1), Heard::OverLimit);
        assert_eq!(world.set(PeerIndex(2), 1, 0, 1, 7), Heard::OverLimit);
        assert_eq!(world.effects(), []);
        assert_eq!(world.view.tables[0].pages.iter().flatten().count(), 1, "memory follows the used slots");
    }

    #[test]
    fn a_resync_drops_what_an_older_connection_left_in_free_slots() {
        let mut world = world();
        world.set(A, 1, 0, 1, 7);
        world.set(A, 1, 1, 2, 8);
        world.set(A, 1, 9, 3, 9);
        world.set(B, 2, 9, 3, 9);
        world.effects();
        world.resync(A, 3, &[0b01]);
        assert_eq!(world.effects(), [withdrawn(8), unadvertised(9, A)]);
        assert!(world.view.advertises(A, &id(7)), "slot 0 is occupied; its update is on its way");
        assert_eq!(world.view.len(A), 1);
    }

    #[test]
    fn a_resync_leaves_entries_of_its_own_connection_alone() {
        let mut world = world();
        world.set(A, 1, 0, 4, 7);
        world.effects();
        world.resync(A, 1, &[]);
        assert_eq!(world.effects(), []);
        assert!(world.view.advertises(A, &id(7)));
    }

    #[test]
    fn after_a_resync_older_connections_have_nothing_to_add() {
        let mut world = world();
        world.resync(A, 2, &[]);
        assert_eq!(world.set(A, 1, 0, 9, 7), Heard::Stale);
        world.set(A, 2, 0, 1, 8);
        world.effects();
        world.resync(A, 1, &[]);
        assert_eq!(world.effects(), []);
    }

    #[test]
    fn a_removed_peer_leaves_nothing_and_may_begin_anew() {
        let mut world = world();
        world.set(A, 5, 0, 1, 7);
        world.set(A, 5, 1, 2, 7);
        world.set(B, 6, 0, 1, 8);
        world.resync(A, 5, &[0b11]);
        world.effects();
        world.view.handle_removed(A, &mut world.fx);
        assert_eq!(world.effects(), [withdrawn(7)]);
        assert_eq!((world.view.len(A), world.view.artifacts()), (0, 1));
        assert_eq!(world.set(A, 1, 0, 1, 7), Heard::Newer);
    }

    #[test]
    fn what_is_held_of_a_peer_are_the_slots_it_names_and_their_versions() {
        let mut world = world();
        world.set(A, 1, 150, 3, 7);
        world.set(A, 2, 0, u64::MAX, 8);
        world.set(A, 2, 1, 1, 9);
        world.clear(A, 2, 1, 2);
        world.set(B, 3, 5, 1, 7);
        world.set(A, 2, 200, 4, 7);
        let held = |since| {
            let held = world.view.held(A, ConnectionNumber(since));
            held.map(|(slot, version)| (slot.0, version.0)).collect::<Vec<_>>()
        };
        assert_eq!(held(1), [(0, u64::MAX), (150, 3)]);
        assert_eq!(held(2), [(0, u64::MAX)]);
        assert_eq!(world.view.held(PeerIndex(9), ConnectionNumber(0)).count(), 0);
    }

    #[test]
    fn a_claim_of_an_older_connection_does_not_count_as_made_on_this_one() {
        let mut world = world();
        world.set(A, 1, 0, 1, 7);
        assert!(!world.view.advertises_since(A, ConnectionNumber(2), &id(7)));
        world.set(A, 2, 0, 1, 7);
        assert!(world.view.advertises_since(A, ConnectionNumber(2), &id(7)));
    }
}
