//! Membership as events: what a new record changes, and where each member's per-peer state moves.

use std::cmp::Ordering;
use std::net::SocketAddr;

use crate::types::{Member, Membership, NodeId, PeerIndex, RegistryVersion};

/// One change from a record to the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberChange {
    /// It takes part from now on.
    Added {
        /// Its index in the new record.
        index: PeerIndex,
        /// Its key.
        id: NodeId,
    },
    /// It takes part no longer: its connections, tables and budgets go.
    Removed {
        /// Its index in the old record.
        index: PeerIndex,
        /// Its key.
        id: NodeId,
    },
    /// It listens elsewhere.
    Readdressed {
        /// Its index in the new record.
        index: PeerIndex,
        /// Its key.
        id: NodeId,
        /// Its addresses now.
        addresses: Vec<SocketAddr>,
    },
}

/// What a new record changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberDifference {
    /// The changes, by key.
    pub changes: Vec<MemberChange>,
    /// For each index in the old record, the same member's index in the new one. Those that stay keep their
    /// order.
    pub moved: Vec<Option<PeerIndex>>,
}

/// Why one record cannot follow another. The one in use stays.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// It belongs to another subnet.
    #[error("the record is of subnet {found:?}, this node is in {expected:?}")]
    Subnet {
        /// The subnet of the record in use.
        expected: String,
        /// The subnet of the new one.
        found: String,
    },
    /// It is older than the one in use, or as old and different.
    #[error("record version {} does not follow version {}", found.0, current.0)]
    NotNewer {
        /// The version in use.
        current: RegistryVersion,
        /// The version of the new one.
        found: RegistryVersion,
    },
    /// It has another number of lanes, which takes a restart of every node.
    #[error("the record has {found} lanes, this node runs {current}; the number takes effect at a restart")]
    Lanes {
        /// Lanes in use.
        current: u16,
        /// Lanes of the new record.
        found: u16,
    },
}

/// What changes when `new` follows `old`. The same record again changes nothing.
pub fn difference(old: &Membership, new: &Membership) -> Result<MemberDifference, MemberError> {
    check_order(old, new)?;
    let mut changes = Vec::new();
    let mut moved = Vec::with_capacity(old.members().len());
    let mut news = new.members().iter().enumerate().peekable();
    let index = |number: usize| PeerIndex(number as u16);
    let added =
        |(number, member): (usize, &Member)| MemberChange::Added { index: index(number), id: member.id };
    for (number, member) in old.members().iter().enumerate() {
        while let Some(next) = news.next_if(|(_, next)| next.id < member.id) {
            changes.push(added(next));
        }
        let stays = news.next_if(|(_, next)| next.id.cmp(&member.id) == Ordering::Equal);
        moved.push(stays.map(|(number, _)| index(number)));
        match stays {
            None => changes.push(MemberChange::Removed { index: index(number), id: member.id }),
            Some((number, next)) if next.addresses != member.addresses => {
                let addresses = next.addresses.clone();
                changes.push(MemberChange::Readdressed { index: index(number), id: member.id, addresses });
            }
            Some(_) => (),
        }
    }
    changes.extend(news.map(added));
    Ok(MemberDifference { changes, moved })
}

fn check_order(old: &Membership, new: &Membership) -> Result<(), MemberError> {
    if old.subnet() != new.subnet() {
        let (expected, found) = (old.subnet().into(), new.subnet().into());
        return Err(MemberError::Subnet { expected, found });
    }
    if new.version() < old.version() || (new.version() == old.version() && new != old) {
        return Err(MemberError::NotNewer { current: old.version(), found: new.version() });
    }
    if old.lanes() != new.lanes() {
        return Err(MemberError::Lanes { current: old.lanes(), found: new.lanes() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of members that are named by a byte and listen at `10.0.<host>.<byte>`.
    fn record(version: u64, members: &[(u8, u8)]) -> Membership {
        let members = members.iter().map(|(byte, host)| Member {
            id: NodeId([*byte; 32]),
            addresses: vec![format!("10.0.{host}.{byte}:4100").parse().unwrap()],
        });
        Membership::new("test".into(), RegistryVersion(version), 2, members.collect()).unwrap()
    }

    fn node(byte: u8) -> NodeId {
        NodeId([byte; 32])
    }

    #[test]
    fn joins_leaves_and_moves_are_told_with_their_indices() {
        let old = record(1, &[(2, 0), (4, 0), (6, 0), (8, 0)]);
        let new = record(2, &[(1, 0), (2, 0), (6, 9), (7, 0), (8, 0), (9, 0)]);
        let difference = difference(&old, &new).unwrap();
        assert_eq!(
            difference.changes,
            [
                MemberChange::Added { index: PeerIndex(0), id: node(1) },
                MemberChange::Removed { index: PeerIndex(1), id: node(4) },
                MemberChange::Readdressed {
                    index: PeerIndex(2),
                    id: node(6),
                    addresses: vec!["10.0.9.6:4100".parse().unwrap()],
                },
                MemberChange::Added { index: PeerIndex(3), id: node(7) },
                MemberChange::Added { index: PeerIndex(5), id: node(9) },
            ]
        );
        let moved = [Some(1), None, Some(2), Some(4)].map(|index| index.map(PeerIndex));
        assert_eq!(difference.moved, moved);
    }

    #[test]
    fn the_same_record_again_changes_nothing() {
        let record = record(3, &[(1, 0), (2, 0)]);
        let difference = difference(&record, &record).unwrap();
        assert_eq!(difference.changes, []);
        assert_eq!(difference.moved, [Some(PeerIndex(0)), Some(PeerIndex(1))]);
    }

    #[test]
    fn versions_only_grow() {
        let (old, new) = (record(2, &[(1, 0)]), record(2, &[(2, 0)]));
        let error = MemberError::NotNewer { current: RegistryVersion(2), found: RegistryVersion(2) };
        assert_eq!(difference(&old, &new), Err(error));
        assert!(difference(&old, &record(1, &[(1, 0)])).is_err());
    }

    #[test]
    fn another_subnet_or_number_of_lanes_does_not_follow() {
        let old = record(1, &[(1, 0)]);
        let lanes = Membership::new("test".into(), RegistryVersion(2), 3, old.members().to_vec()).unwrap();
        assert_eq!(difference(&old, &lanes), Err(MemberError::Lanes { current: 2, found: 3 }));
        let subnet = Membership::new("other".into(), RegistryVersion(2), 2, old.members().to_vec()).unwrap();
        assert!(matches!(difference(&old, &subnet), Err(MemberError::Subnet { .. })));
    }
}
