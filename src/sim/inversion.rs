//! P6 and S12 on the wire: a connection transmits no new byte of a stream that was abandoned, and little of what is less urgent
//! while something critical waits that it was given.
//!
//! Whatever a member gives a link is known again by its first bytes, when its stream begins in a datagram. Up to then, each byte
//! of a less urgent stream that is transmitted for the first time counts against it, and one chunk of them is the most: what was
//! on its way into a batch when it came. What could not be sent is not counted: for want of a stream, or because the class has
//! had more than its share. Nor need anybody look into the engine: what it keeps, it keeps for want of room at the link, which is
//! for want of a stream, or of something critical that waits there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::options::{Level, Options};
use super::sniffer::{Said, sniff};
use super::world::{Actor, World};
use crate::types::{Class, PerClass, StreamKey, Weights};
use crate::wire::{Outgoing, Reply, ReplyHead};

/// See the module.
pub(super) struct Inversions {
    watches: bool,
    /// By who sends, and to whom.
    links: BTreeMap<(usize, usize), Log>,
    /// What a new connection may carry: unidirectional streams, and bidirectional ones.
    credit: [u64; 2],
    /// What is critical and has begun.
    begun: u64,
    /// Datagrams on their way that let the other side open streams.
    credits: BTreeSet<Bytes>,
    failure: Option<String>,
}

/// One direction of a connection.
struct Log {
    connection: u64,
    /// What the link was given and no datagram has shown yet, the oldest first.
    given: VecDeque<Given>,
    /// Streams that have begun.
    streams: BTreeMap<u64, Stream>,
    /// First bytes of those that may still be one thing or another.
    unclear: BTreeMap<u64, Vec<u8>>,
    /// Of those that have begun, the ones that a key names.
    keys: BTreeMap<StreamKey, u64>,
    /// Unidirectional and bidirectional streams that may be opened, and those that have begun.
    credit: [u64; 2],
    opened: [u64; 2],
    /// Things of each class that are not sent to their end.
    unsent: PerClass<u64>,
    /// By class: the critical bytes by which what is critical is ahead of it.
    ahead: PerClass<u64>,
}

struct Given {
    class: Class,
    /// Its first bytes, and all.
    start: Bytes,
    len: u64,
    key: Option<StreamKey>,
    opens: Option<Opens>,
    /// Less urgent bytes so far.
    before: u64,
}

/// The stream that something must open.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opens {
    Uni = 0,
    Bidi = 1,
}

#[derive(Clone, Copy)]
struct Stream {
    class: Class,
    sent: u64,
    len: u64,
    /// It was abandoned.
    over: bool,
}

impl Given {
    /// So many first bytes tell everything apart: versions of slots, and ids, are among them.
    const START: usize = 96;

    fn of(outgoing: &Outgoing) -> Given {
        let (opens, key) = match outgoing {
            Outgoing::Batch { .. } => (Some(Opens::Uni), None),
            Outgoing::Push { key, .. } => (Some(Opens::Uni), Some(*key)),
            Outgoing::Fetch { key, .. } => (Some(Opens::Bidi), Some(*key)),
            Outgoing::Reply { key, .. } => (None, Some(*key)),
        };
        let (head, body) = match outgoing {
            Outgoing::Batch { bytes, .. } => (bytes.clone(), Bytes::new()),
            Outgoing::Push { head, body, .. } => (head.clone(), body.clone()),
            Outgoing::Fetch { request, .. } => (request.encode(), Bytes::new()),
            Outgoing::Reply { reply: Reply::Found(body), .. } => {
                (ReplyHead::Found { size: body.len() as u32 }.encode(), body.clone())
            }
            Outgoing::Reply { reply: Reply::Busy, .. } => (ReplyHead::Busy.encode(), Bytes::new()),
            Outgoing::Reply { .. } => (ReplyHead::NotFound.encode(), Bytes::new()),
        };
        let start: Vec<u8> = head.iter().chain(body.iter()).take(Self::START).copied().collect();
        let len = (head.len() + body.len()) as u64;
        Given { class: outgoing.class(), start: start.into(), len, key, opens, before: 0 }
    }

    fn begins(&self, stream: u64, bytes: &[u8]) -> bool {
        let len = bytes.len().min(self.start.len());
        let opens = if stream & 2 == 0 { Some(Opens::Bidi) } else { Some(Opens::Uni) };
        (self.opens == opens || self.opens.is_none() && stream & 2 == 0)
            && bytes.get(..len) == self.start.get(..len)
    }
}

impl Log {
    /// Critical bytes that may be ahead of the others' share before others may go first: half as many as in truth.
    const AHEAD: u64 = 128 << 10;
    /// Bytes that wait for their first datagram, at most.
    const WRITTEN: u64 = 512 << 10;

    fn give(&mut self, given: Given) {
        let class = given.class;
        if self.unsent[class] == 0 {
            self.ahead[class] = 0;
        }
        self.unsent[class] += 1;
        self.given.push_back(given);
    }

    /// What a key names is given up, or not wanted.
    fn end(&mut self, key: StreamKey) {
        if let Some(at) = self.given.iter().position(|given| given.key == Some(key))
            && let Some(given) = self.given.remove(at)
        {
            self.unsent[given.class] -= 1;
        } else if let Some(stream) = self.keys.remove(&key).and_then(|stream| self.streams.get_mut(&stream)) {
            stream.over = true;
            if stream.sent < stream.len {
                // As much of it may have been written already, which its class has had.
                let left = (stream.len - stream.sent).min(Self::WRITTEN);
                if stream.class == Class::Critical {
                    self.ahead.0.iter_mut().for_each(|ahead| *ahead += left);
                }
                self.unsent[stream.class] = self.unsent[stream.class].saturating_sub(1);
            }
        }
    }

    /// A piece of a stream is transmitted: what begins with it, and how many bytes go of what was abandoned.
    fn see(&mut self, stream: u64, offset: u64, bytes: &[u8]) -> (Option<Given>, u64) {
        let begun = match self.streams.contains_key(&stream) {
            false => self.begin(stream, offset, bytes),
            true => None,
        };
        let Some(seen) = self.streams.get_mut(&stream) else { return (None, 0) };
        let fresh = (offset + bytes.len() as u64).saturating_sub(seen.sent);
        seen.sent += fresh;
        let Stream { class, sent, len, over } = *seen;
        if over {
            return (begun, fresh);
        }
        if fresh > 0 && sent == len {
            self.unsent[class] = self.unsent[class].saturating_sub(1);
        }
        self.count(class, fresh);
        (begun, 0)
    }

    fn begin(&mut self, stream: u64, offset: u64, bytes: &[u8]) -> Option<Given> {
        let start = self.unclear.entry(stream).or_default();
        if offset != start.len() as u64 {
            return None;
        }
        start.extend_from_slice(bytes.get(..bytes.len().min(Given::START)).unwrap_or_default());
        let mut like = self.given.iter().enumerate().filter(|(_, given)| given.begins(stream, start));
        let (at, first) = like.next()?;
        if like.next().is_some() && start.len() < first.start.len() {
            return None;
        }
        self.unclear.remove(&stream);
        let given = self.given.remove(at)?;
        self.streams.insert(stream, Stream { class: given.class, sent: 0, len: given.len, over: false });
        if let Some(key) = given.key {
            self.keys.insert(key, stream);
        }
        if let Some(opens) = given.opens {
            self.opened[opens as usize] += 1;
        }
        Some(given)
    }

    /// Bytes of a class are transmitted for the first time.
    fn count(&mut self, class: Class, bytes: u64) {
        let weight = |class| u64::from(Weights::DEFAULT.of(class));
        if class == Class::Critical {
            self.ahead.0.iter_mut().for_each(|ahead| *ahead += bytes);
            return;
        }
        let share = bytes * weight(Class::Critical) / weight(class);
        self.ahead[class] = self.ahead[class].saturating_sub(share);
        let due = |class: &Class| self.unsent[*class] > 0 && self.ahead[*class] > Self::AHEAD;
        if Class::ALL.iter().skip(1).any(due) {
            return;
        }
        let waiting = |opens| self.given.iter().filter(|given| given.opens == Some(opens)).count() as u64;
        let free = [Opens::Uni, Opens::Bidi]
            .map(|opens| self.credit[opens as usize] > self.opened[opens as usize] + waiting(opens));
        for given in self.given.iter_mut().filter(|given| given.class == Class::Critical) {
            if given.opens.is_none_or(|opens| free[opens as usize]) {
                given.before += bytes;
            }
        }
    }
}

impl Inversions {
    /// Bytes of a batch of datagrams, at most.
    const CHUNK: u64 = 65_507;

    pub(super) fn new(options: &Options) -> Inversions {
        let datagrams = &options.datagrams;
        Inversions {
            watches: options.level == Level::Quic,
            links: BTreeMap::new(),
            credit: [datagrams.uni_streams.into(), datagrams.bidi_streams.into()],
            begun: 0,
            credits: BTreeSet::new(),
            failure: None,
        }
    }

    /// A member starts without memory.
    pub(super) fn forget(&mut self, node: usize) {
        self.links.retain(|(from, _), _| *from != node);
    }

    /// A link is given something on a connection.
    pub(super) fn give(&mut self, from: usize, to: usize, connection: u64, outgoing: &Outgoing) {
        if !self.watches {
            return;
        }
        let fresh = |credit| Log {
            connection,
            given: VecDeque::new(),
            streams: BTreeMap::new(),
            unclear: BTreeMap::new(),
            keys: BTreeMap::new(),
            credit,
            opened: [0; 2],
            unsent: PerClass::default(),
            ahead: PerClass::default(),
        };
        let log = self.links.entry((from, to)).or_insert_with(|| fresh(self.credit));
        if log.connection != connection {
            *log = fresh(self.credit);
        }
        log.give(Given::of(outgoing));
    }

    /// What a key names is over.
    pub(super) fn end(&mut self, from: usize, to: usize, key: StreamKey) {
        if let Some(log) = self.links.get_mut(&(from, to)) {
            log.end(key);
        }
    }

    /// A member transmits a datagram.
    pub(super) fn transmitted(&mut self, from: usize, to: usize, datagram: &[u8]) {
        let Some(log) = self.links.get_mut(&(from, to)) else { return };
        for said in sniff(datagram) {
            let Said::Piece { stream, offset, bytes } = said else {
                self.credits.insert(Bytes::copy_from_slice(datagram));
                continue;
            };
            let (begun, abandoned) = log.see(stream, offset, bytes);
            self.begun += u64::from(begun.is_some_and(|given| given.class == Class::Critical));
            if abandoned > 0 {
                let what = || format!("P6: {abandoned} bytes go from {from} to {to} of what was abandoned");
                self.failure.get_or_insert_with(what);
            }
        }
        let late = log.given.iter().find(|given| given.before > Self::CHUNK);
        if let Some(Given { before, len, .. }) = late {
            let what =
                format!("S12: {before} less urgent bytes go from {from} to {to} before {len} critical ones");
            self.failure.get_or_insert(what);
        }
    }

    /// A member receives a datagram, damaged or not: it may open more streams.
    pub(super) fn received(&mut self, from: usize, to: usize, datagram: &[u8]) {
        if !self.credits.remove(datagram) {
            return;
        }
        let Some(log) = self.links.get_mut(&(to, from)) else { return };
        for said in sniff(datagram) {
            if let Said::MaxStreams { bidi, streams } = said {
                let credit = &mut log.credit[usize::from(bidi)];
                *credit = streams.max(*credit);
            }
        }
    }
}

impl World {
    /// Whether something critical had to wait for too much.
    pub(super) fn check_inversions(&mut self) -> Result<(), String> {
        self.inversions.failure.take().map_or(Ok(()), Err)
    }

    /// Datagrams leave a member.
    pub(super) fn sniff(&mut self, from: usize, to: usize, datagrams: &[u8], segment: usize) {
        if let Some(Actor::Honest(_)) = self.actors.get(from) {
            datagrams.chunks(segment).for_each(|datagram| self.inversions.transmitted(from, to, datagram));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_known_again_on_the_wire() {
        let mut begun = 0;
        for seed in 0..20 {
            let mut world = World::new(Options::mixed(seed, Level::Quic));
            assert_eq!(world.run(), Ok(()));
            begun += world.inversions.begun;
        }
        assert!(begun > 1_000, "{begun}");
    }

    #[test]
    fn what_goes_before_something_critical_is_counted_until_it_begins() {
        let mut inversions = Inversions::new(&Options::mixed(0, Level::Quic));
        for (class, byte) in [(Class::Bulk, 1), (Class::Critical, 2), (Class::High, 3)] {
            let bytes = Bytes::from(vec![byte; 70_000]);
            inversions.give(0, 1, 1, &Outgoing::Batch { class, bytes });
        }
        let log = inversions.links.get_mut(&(0, 1)).unwrap();
        log.see(2, 0, &[1; 1_000]);
        log.see(6, 0, &[3; 100]);
        // A retransmission.
        log.see(2, 0, &[1; 1_000]);
        let (begun, _) = log.see(10, 0, &[2; 100]);
        assert_eq!(begun.map(|given| (given.class, given.before)), Some((Class::Critical, 1_100)));
        log.see(2, 1_000, &[1; 1_000]);
        assert!(log.given.is_empty());
    }
}
