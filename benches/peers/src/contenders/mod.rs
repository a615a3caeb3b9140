//! The peers, each set up as its own experts would.

#[cfg(feature = "commonware")]
mod commonware_p2p;
mod links;
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
    /// commonware-p2p (authenticated, lookup) on its tokio runtime, over TCP.
    #[cfg(feature = "commonware")]
    CommonwareP2p,
    /// The same on its io_uring runtime.
    #[cfg(feature = "commonware")]
    CommonwareP2pUring,
}

impl Peer {
    /// What a reader of the table must know.
    pub(crate) fn note(self, choice: &Choice) -> Option<String> {
        let jumbo = usize::from(choice.mtu) > usize::from(QUINN_MTU);
        match self {
            #[cfg(feature = "quinn")]
            Peer::QuinnLong | Peer::QuinnUni | Peer::QuinnPriority => jumbo.then(|| {
                format!("datagrams of {QUINN_MTU} bytes: quinn's GSO batches of ten break above 6,550")
            }),
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
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2p => commonware_p2p::run_tokio(run),
        #[cfg(feature = "commonware")]
        Peer::CommonwareP2pUring => commonware_p2p::run_uring(run),
    }
}
