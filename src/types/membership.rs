//! The membership record: who takes part in the subnet, and where.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::{NodeId, PeerIndex, RegistryVersion};

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its Ed25519 public key.
    pub id: NodeId,
    /// Where it listens: lane `k` on each address's port + `k`. Tried in turn.
    pub addresses: Vec<SocketAddr>,
}

/// One version of a subnet's record. Valid by construction: see [`Membership::new`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    subnet: String,
    version: RegistryVersion,
    lanes: u16,
    members: Vec<Member>,
}

/// Why a record is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// The name is empty or too long.
    #[error("a subnet's name has 1 to {max} bytes, this one has {0}", max = Membership::MAX_NAME)]
    Name(usize),
    /// No lanes, or too many.
    #[error("a subnet has 1 to {max} lanes, not {0}", max = Membership::MAX_LANES)]
    Lanes(u16),
    /// No members, or too many.
    #[error("a subnet has 1 to {max} members, not {0}", max = Membership::MAX_MEMBERS)]
    Members(usize),
    /// Two members with one key.
    #[error("member {0} stands in the record twice")]
    DuplicateMember(NodeId),
    /// Two members, or one member twice, at one UDP port.
    #[error(
        "member {member}: {address} (lanes take that port and the {others} above) is in use by another entry",
        others = lanes - 1
    )]
    DuplicateAddress {
        /// The second one.
        member: NodeId,
        /// Its address.
        address: SocketAddr,
        /// Lanes of the subnet.
        lanes: u16,
    },
    /// A member without addresses, or with too many.
    #[error("member {member} has {found} addresses; 1 to {max} are allowed", max = Membership::MAX_ADDRESSES)]
    Addresses {
        /// Which member.
        member: NodeId,
        /// How many.
        found: usize,
    },
    /// An address that cannot be dialled.
    #[error("member {member}: {address} cannot be dialled: {why}")]
    Address {
        /// Which member.
        member: NodeId,
        /// The address.
        address: SocketAddr,
        /// What is wrong with it.
        why: &'static str,
    },
}

impl Membership {
    /// Bytes of a subnet's name.
    pub const MAX_NAME: usize = 64;
    /// Lanes: one core each; more than any host of today has.
    pub const MAX_LANES: u16 = 256;
    /// Members that a full mesh carries.
    pub const MAX_MEMBERS: usize = 4096;
    /// Addresses of one member.
    pub const MAX_ADDRESSES: usize = 4;

    /// Sorts the members by id and checks the record.
    pub fn new(
        subnet: String,
        version: RegistryVersion,
        lanes: u16,
        mut members: Vec<Member>,
    ) -> Result<Membership, MembershipError> {
        if subnet.is_empty() || subnet.len() > Self::MAX_NAME {
            return Err(MembershipError::Name(subnet.len()));
        }
        if lanes == 0 || lanes > Self::MAX_LANES {
            return Err(MembershipError::Lanes(lanes));
        }
        if members.is_empty() || members.len() > Self::MAX_MEMBERS {
            return Err(MembershipError::Members(members.len()));
        }
        members.sort_by_key(|member| member.id);
        let mut previous = None;
        let mut ports = BTreeSet::new();
        for member in &members {
            if previous == Some(member.id) {
                return Err(MembershipError::DuplicateMember(member.id));
            }
            previous = Some(member.id);
            check_addresses(member, lanes, &mut ports)?;
        }
        Ok(Membership { subnet, version, lanes, members })
    }

    /// The subnet's name.
    pub fn subnet(&self) -> &str {
        &self.subnet
    }

    /// BLAKE3-256 of the subnet's name, as it stands in [`Hello`](crate::wire::Hello).
    pub fn subnet_hash(&self) -> [u8; 32] {
        *blake3::hash(self.subnet.as_bytes()).as_bytes()
    }

    /// The record's version.
    pub fn version(&self) -> RegistryVersion {
        self.version
    }

    /// How many lanes every member runs.
    pub fn lanes(&self) -> u16 {
        self.lanes
    }

    /// The members, by id.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member's place.
    pub fn index_of(&self, id: &NodeId) -> Option<PeerIndex> {
        self.members.binary_search_by_key(id, |member| member.id).ok().map(|index| PeerIndex(index as u16))
    }
}

fn check_addresses(
    member: &Member,
    lanes: u16,
    ports: &mut BTreeSet<(IpAddr, u16)>,
) -> Result<(), MembershipError> {
    let id = member.id;
    if member.addresses.is_empty() || member.addresses.len() > Membership::MAX_ADDRESSES {
        return Err(MembershipError::Addresses { member: id, found: member.addresses.len() });
    }
    for &address in &member.addresses {
        let wrong = |why| Err(MembershipError::Address { member: id, address, why });
        let ip = address.ip();
        if ip.is_unspecified() || ip.is_multicast() {
            return wrong("the address must name one host");
        }
        if matches!(ip, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return wrong("write an IPv4-mapped address as IPv4");
        }
        if address.port() == 0 || address.port().checked_add(lanes - 1).is_none() {
            return wrong("each lane needs a port between 1 and 65535");
        }
        for lane in 0..lanes {
            if !ports.insert((ip, address.port() + lane)) {
                return Err(MembershipError::DuplicateAddress { member: id, address, lanes });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: u8, address: &str) -> Member {
        Member { id: NodeId([id; 32]), addresses: vec![address.parse().unwrap()] }
    }

    fn record(lanes: u16, members: Vec<Member>) -> Result<Membership, MembershipError> {
        Membership::new("test".into(), RegistryVersion(1), lanes, members)
    }

    #[test]
    fn members_are_found_by_key() {
        let record = record(2, vec![member(9, "10.0.0.9:4100"), member(3, "10.0.0.3:4100")]).unwrap();
        assert_eq!(record.index_of(&NodeId([3; 32])), Some(PeerIndex(0)));
        assert_eq!(record.index_of(&NodeId([9; 32])), Some(PeerIndex(1)));
        assert_eq!(record.index_of(&NodeId([4; 32])), None);
    }

    #[test]
    fn a_key_stands_in_the_record_once() {
        let twice = record(1, vec![member(1, "10.0.0.1:1"), member(1, "10.0.0.2:1")]);
        assert_eq!(twice, Err(MembershipError::DuplicateMember(NodeId([1; 32]))));
    }

    #[test]
    fn lanes_of_two_members_do_not_share_a_port() {
        let near = |lanes| record(lanes, vec![member(1, "10.0.0.1:4100"), member(2, "10.0.0.1:4101")]);
        assert!(near(1).is_ok());
        assert!(matches!(near(2), Err(MembershipError::DuplicateAddress { .. })));
    }

    #[test]
    fn an_address_names_one_host_and_a_port_for_every_lane() {
        for bad in
            ["0.0.0.0:4100", "10.0.0.1:0", "10.0.0.1:65535", "[::ffff:10.0.0.1]:4100", "224.0.0.1:4100"]
        {
            assert!(matches!(record(2, vec![member(1, bad)]), Err(MembershipError::Address { .. })), "{bad}");
        }
    }
}
