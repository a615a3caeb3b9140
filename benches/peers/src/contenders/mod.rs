//! The peers, each set up as its own experts would.

#[cfg(feature = "commonware")]
mod commonware_p2p;
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
use crate::options::{Choice, Workload};

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
    /// libp2p's gossipsub over QUIC, unsigned, published to all and not forwarded.
    #[cfg(feature = "gossipsub")]
    GossipsubFlood,
    /// libp2p's gossipsub over QUIC with its defaults: signed, and forwarded over the mesh.
    #[cfg(feature = "gossipsub")]
    GossipsubSigned,
    /// iroh-gossip, every node in every other's active view.
    #[cfg(feature = "iroh")]
    IrohGossip,
    /// A model of the Internet Computer's P2P layer, made from a description: not the original.
    #[cfg(feature = "predecessor")]
    PredecessorModel,
}

impl Peer {
    /// What a reader of the table must know.
    pub(crate) fn note(self, choice: &Choice) -> Option<String> {
        let jumbo = usize::from(choice.mtu) > usize::from(QUINN_MTU);
        let small =
            || format!("datagrams of {QUINN_MTU} bytes: quinn's GSO batches of ten break above 6,550");
        match self {
            #[cfg(feature = "quinn")]
            Peer::QuinnLong | Peer::QuinnUni | Peer::QuinnPriority => jumbo.then(small),
            #[cfg(feature = "compio")]
            Peer::CompioQuic => jumbo.then(small),
            #[cfg(feature = "gossipsub")]
            Peer::GossipsubFlood | Peer::GossipsubSigned => jumbo.then(small),
            #[cfg(feature = "iroh")]
            Peer::IrohGossip => jumbo.then(small),
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
            #[allow(unreachable_patterns, reason = "which peers there are depends on features")]
            _ => None,
        }
    }

    /// Whether it has anything of its own to show in this workload.
    pub(crate) fn takes_part(self, workload: Workload) -> bool {
        match self {
            // Without anything urgent it is the flood on long streams.
            #[cfg(feature = "quinn")]
            Peer::QuinnPriority => matches!(workload, Workload::Mixed | Workload::Consensus),
            #[allow(unreachable_patterns, reason = "which peers there are depends on features")]
            _ => true,
        }
    }
}

/// The largest datagram that quinn is given.
const QUINN_MTU: u16 = 6500;

/// Runs one peer and prints its JSON object.
pub(crate) fn contend(peer: Peer, choice: Choice) -> Result<(), Failure> {
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
        Peer::IrohGossip => iroh_gossip::run(run),
        #[cfg(feature = "predecessor")]
        Peer::PredecessorModel => predecessor::run(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2p => commonware_p2p::run_tokio(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2pUring => commonware_p2p::run_uring(run),
    }
}
