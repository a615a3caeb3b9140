//! The protocol as sans-IO machines, one noun each; one lane's share of the node.
//!
//! | machine | knows |
//! |---|---|
//! | [`Slots`] | which artifact occupies which slot here, and what each peer must still be told of it |
//! | [`View`] | which artifact occupies which slot at each peer, and so who advertises what |
//! | [`Pool`] | the bodies, validated and not, within byte budgets |
//! | [`Fetch`] | which wanted bodies to ask for, and whom |
//! | [`Admission`] | what the replica's filter says of adverts, and which to ask about again |
//! | [`Score`] | what peers did wrong |
//! | [`difference`] | what a new membership record changes |
//! | [`DirtySet`] | a set of slots: bits, and the next member in constant time |
//!
//! The engine composes them: it asks `Slots` for a peer's next update when that peer's link has room, feeds
//! what peers say into `View`, and acts on the effects that come back. No machine knows another, reads a
//! clock or draws from the system's randomness: time and seeds are arguments. Per-peer state is indexed by
//! [`PeerIndex`](crate::types::PeerIndex).

mod admit;
mod dirty;
mod fetch;
mod member;
#[cfg(test)]
mod model;
mod pool;
mod score;
mod slots;
mod view;

pub use admit::{Admission, Question};
pub use dirty::DirtySet;
pub use fetch::{Asked, FETCH_KEYS, Fetch, FetchEffect, FetchLimits, Outcome, Request};
pub use member::{MemberChange, MemberDifference, MemberError, difference};
pub use pool::{Held, Pool, PoolFull, PoolLimits, Promotion, Stage};
pub use score::{Fault, Score, Standing};
pub use slots::{Active, Next, Origin, SlotLimits, Slots, SlotsError, Told};
pub use view::{Claim, Heard, View, ViewEffect, ViewLimits};
