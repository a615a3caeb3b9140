//! The peers, each set up as its own experts would.

#[cfg(feature = "commonware")]
mod commonware;
#[cfg(feature = "compio")]
mod compio;
#[cfg(feature = "gossipsub")]
mod gossipsub;
#[cfg(feature = "iroh")]
mod iroh_gossip;
#[cfg(feature = "raw-keys")]
mod links;
#[cfg(feature = "predecessor")]
mod predecessor;
#[cfg(feature = "quinn")]
mod quinn;
#[cfg(feature = "raw-keys")]
mod raw_keys;
#[cfg(feature = "s2n")]
mod s2n;

use clap::ValueEnum;
use serde_json::Value;

use crate::Failure;
use crate::drive::Run;
use crate::options::{Choice, Work, Workload};

/// Who is compared with corecast.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    /// quinn on tokio, one long stream and a queue of 64 for each peer.
    #[cfg(feature = "quinn")]
    QuinnLong,
    /// quinn on tokio, a stream for each artifact and peer.
    #[cfg(feature = "quinn")]
    QuinnUni,
    /// Long streams, with one of higher priority for what is urgent.
    #[cfg(feature = "quinn")]
    QuinnPriority,
    /// s2n-quic on tokio, one long stream and a queue of 64 for each peer.
    #[cfg(feature = "s2n")]
    S2nQuic,
    /// compio-quic, one long stream and a queue of 64 for each peer.
    #[cfg(feature = "compio")]
    CompioQuic,
    /// commonware-p2p (authenticated, lookup) on its tokio runtime, over TCP.
    #[cfg(feature = "commonware")]
    CommonwareP2p,
    /// The same on its io_uring runtime.
    #[cfg(feature = "commonware")]
    CommonwareP2pUring,
    /// commonware-broadcast's engine over commonware-p2p on its tokio runtime; digests go ahead, and are subscribed to.
    #[cfg(feature = "commonware")]
    CommonwareBroadcast,
    /// libp2p's gossipsub over QUIC, unsigned, published to all and not forwarded.
    #[cfg(feature = "gossipsub")]
    GossipsubFlood,
    /// libp2p's gossipsub over QUIC with its defaults: signed, and forwarded over the mesh.
    #[cfg(feature = "gossipsub")]
    GossipsubSigned,
    /// iroh-gossip, every node in every other's active view, broadcast to all neighbours.
    #[cfg(feature = "iroh")]
    IrohGossip,
    /// The same broadcast to the swarm: over its trees, forwarded, and asked for where it does not come.
    #[cfg(feature = "iroh")]
    IrohGossipSwarm,
    /// A model of the Internet Computer's P2P layer, made from a description: not the original.
    #[cfg(feature = "predecessor")]
    PredecessorModel,
}

impl Peer {
    /// What a reader of the table must know.
    pub(crate) fn note(self, choice: &Choice) -> Option<String> {
        let batch = |limit: u16, segments: &str| {
            let told =
                format!("datagrams of {limit} bytes: its GSO batches of {segments} exceed 64 KiB beyond");
            (choice.mtu > limit).then_some(told)
        };
        match self {
            #[cfg(feature = "quinn")]
            Peer::QuinnLong | Peer::QuinnUni | Peer::QuinnPriority => batch(QUINN_MTU, "ten"),
            #[cfg(feature = "compio")]
            Peer::CompioQuic => batch(COMPIO_MTU, "32"),
            #[cfg(feature = "gossipsub")]
            Peer::GossipsubFlood | Peer::GossipsubSigned => batch(QUINN_MTU, "ten"),
            #[cfg(feature = "iroh")]
            Peer::IrohGossip | Peer::IrohGossipSwarm => batch(QUINN_MTU, "ten"),
            #[cfg(feature = "predecessor")]
            Peer::PredecessorModel => Some(
                "a model made from a description, not the original; it fetches what has 1,024 bytes or more, and keeps to \
                 datagrams of 1,452 bytes"
                    .to_owned(),
            ),
            #[cfg(feature = "commonware")]
            Peer::CommonwareP2p | Peer::CommonwareP2pUring => Some(
                "TCP and ChaCha20-Poly1305, which it does not let one choose; loopback flatters TCP's large segments"
                    .to_owned(),
            ),
            #[cfg(feature = "commonware")]
            Peer::CommonwareBroadcast => Some(
                "over commonware-p2p; hashes every artifact at its maker and at each receiver whatever --work says, and keeps \
                 the last few of each maker"
                    .to_owned(),
            ),
            #[allow(unreachable_patterns, reason = "which peers there are depends on features")]
            _ => None,
        }
    }

    /// Why it is left out of a workload, unless it is asked for by name.
    pub(crate) fn left_out(self, workload: Workload) -> Option<&'static str> {
        match self {
            #[cfg(feature = "quinn")]
            Peer::QuinnPriority if !matches!(workload, Workload::Mixed | Workload::Consensus) => {
                Some("nothing is urgent here, so it is quinn-long with a second, silent stream")
            }
            #[allow(unreachable_patterns, reason = "which peers there are depends on features")]
            _ => None,
        }
    }

    /// What it is asked to do: one whose engine names artifacts by their hash has no use for a second one.
    fn work(self, work: Work) -> Work {
        match self {
            #[cfg(feature = "commonware")]
            Peer::CommonwareBroadcast => work.min(Work::Deliver),
            #[allow(unreachable_patterns, reason = "which peers there are depends on features")]
            _ => work,
        }
    }
}

/// The largest datagrams whose batches for one system call still fit 65,507 bytes: quinn sends up to ten at a time.
const QUINN_MTU: u16 = 6_500;
/// compio-quic 32.
const COMPIO_MTU: u16 = 2_040;

/// Runs one peer and prints its JSON object.
pub(crate) fn contend(peer: Peer, mut choice: Choice) -> Result<(), Failure> {
    choice.work = peer.work(choice.work);
    let run = Run::new(choice)?;
    println!("{}", start(peer, run)?);
    Ok(())
}

fn start(peer: Peer, run: Run) -> Result<Value, Failure> {
    match peer {
        #[cfg(feature = "quinn")]
        Peer::QuinnLong => quinn::run(run, quinn::Shape::Long),
        #[cfg(feature = "quinn")]
        Peer::QuinnUni => quinn::run(run, quinn::Shape::Uni),
        #[cfg(feature = "quinn")]
        Peer::QuinnPriority => quinn::run(run, quinn::Shape::Priority),
        #[cfg(feature = "s2n")]
        Peer::S2nQuic => s2n::run(run),
        #[cfg(feature = "compio")]
        Peer::CompioQuic => compio::run(run),
        #[cfg(feature = "gossipsub")]
        Peer::GossipsubFlood => gossipsub::run(run, gossipsub::Shape::Flood),
        #[cfg(feature = "gossipsub")]
        Peer::GossipsubSigned => gossipsub::run(run, gossipsub::Shape::Signed),
        #[cfg(feature = "iroh")]
        Peer::IrohGossip => iroh_gossip::run(run, iroh_gossip::Shape::Neighbours),
        #[cfg(feature = "iroh")]
        Peer::IrohGossipSwarm => iroh_gossip::run(run, iroh_gossip::Shape::Swarm),
        #[cfg(feature = "predecessor")]
        Peer::PredecessorModel => predecessor::run(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2p => commonware::run_tokio(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2pUring => commonware::run_uring(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareBroadcast => commonware::run_broadcast(run),
    }
}
