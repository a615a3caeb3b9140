//! Words that every layer shares: ids, classes, time, randomness, datagrams. Plain data, no behaviour of its own.

mod body;
mod class;
mod datagram;
mod hash;
mod id;
mod keyed;
mod membership;
mod rng;
mod time;
mod weights;

pub use body::{BodyReader, TooLong, Verified};
pub use class::{Class, Classes, PerClass};
pub use datagram::{Ecn, Received, Transmit, largest_stream_window};
pub use hash::HashKind;
pub use id::{
    ArtifactId, Attribute, AttributeTooLong, ConnectionNumber, NodeId, ParseIdError, PeerIndex,
    RegistryVersion, Slot, StreamKey, TopicId, Version,
};
pub use keyed::{IdMap, KeyedHasher, KeyedState};
pub use membership::{Member, Membership, MembershipError};
pub use rng::Rng;
pub use time::Instant;
pub use weights::{Weights, WeightsError};
