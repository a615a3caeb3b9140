//! What is measured: operations of the machines, each in a world that stays as large as it was made.
#![allow(dead_code, reason = "shared by two benches, of which each uses another part")]

use super::{body, engine, fetch, lane, slots, view, wire};

/// How large the world is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    /// Artifacts that are active all the time.
    pub(crate) active: u32,
    /// Peers, all connected.
    pub(crate) peers: u16,
}

/// Something to do again and again.
pub(crate) type Work = Box<dyn FnMut()>;

/// What the cost depends on at most; never on how much is active.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depends {
    /// On nothing: there is no world.
    No,
    /// On how many peers there are.
    OnPeers,
    /// On how many pairs of them.
    OnPairs,
}

/// One operation.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    /// Makes a world, and what is done in it.
    pub(crate) make: fn(Scale) -> Work,
    /// Artifacts that one run deals with.
    pub(crate) artifacts: u64,
    /// What it is worth in bytes of bodies, to count large ones less often.
    pub(crate) bytes: u64,
    pub(crate) depends: Depends,
}

const fn at_scale(name: &'static str, make: fn(Scale) -> Work, artifacts: u64) -> Operation {
    Operation { name, make, artifacts, bytes: artifacts << 10, depends: Depends::OnPeers }
}

const fn alone(name: &'static str, make: fn(Scale) -> Work, artifacts: u64, bytes: u64) -> Operation {
    Operation { name, make, artifacts, bytes, depends: Depends::No }
}

/// Artifacts of one batch.
pub(crate) const BATCH: usize = 48;

/// All of them.
pub(crate) const OPERATIONS: &[Operation] = &[
    at_scale("slots/replace one, tell every peer", slots::replace, 1),
    at_scale("slots/broadcast and abort one untold", slots::untold, 1),
    at_scale("slots/next update of a stalled peer", slots::backlog, 1),
    at_scale("view/a slot names another artifact", view::replace, 1),
    at_scale("view/one of all who name an artifact leaves and comes back", view::shared, 1),
    at_scale("fetch/one named by a single peer", fetch::single, 1),
    at_scale("fetch/one named by every peer", fetch::shared, 1),
    Operation {
        depends: Depends::OnPairs,
        bytes: 32 << 10,
        ..at_scale("fetch/all leave what is wanted to the fastest", fetch::declined, 1)
    },
    at_scale("engine/replace one, push it to every peer", engine::publish_one, 1),
    at_scale("engine/replace a batch, push it to every peer", engine::publish_batch, BATCH as u64),
    at_scale("engine/replace one, advert it to every peer", engine::publish_name, 1),
    at_scale("engine/a turn without work", engine::idle, 1),
    at_scale("engine/a push arrives, is delivered and released", engine::receive, 1),
    at_scale("engine/an advert arrives that is not wanted", engine::discard, 1),
    at_scale("engine/an advert arrives, its body is fetched", engine::fetch, 1),
    at_scale("engine/a push arrives that a relay named", engine::relayed, 1),
    at_scale("engine/a batch from publisher to delivery", engine::pair, BATCH as u64),
    alone("lane/a batch from maker to delivery", lane::small, BATCH as u64, (BATCH as u64) << 10),
    alone("lane/1 MiB from maker to delivery", lane::large, 1, 1 << 20),
    alone("wire/encode a batch of pushes", wire::encode_pushes, BATCH as u64, (BATCH as u64) << 10),
    alone("wire/decode a batch of pushes", wire::decode_pushes, BATCH as u64, (BATCH as u64) << 10),
    alone("wire/encode a batch of adverts", wire::encode_adverts, BATCH as u64, (BATCH as u64) << 10),
    alone("wire/decode a batch of adverts", wire::decode_adverts, BATCH as u64, (BATCH as u64) << 10),
    alone("body/hash 1 KiB", body::small, 1, 1 << 10),
    alone("body/hash a batch of 1 KiB", body::batch, BATCH as u64, (BATCH as u64) << 10),
    alone("body/hash 1 MiB", body::large, 1, 1 << 20),
];
