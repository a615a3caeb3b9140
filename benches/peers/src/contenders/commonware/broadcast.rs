//! The engine of commonware-broadcast, over commonware-p2p on its tokio runtime.
//!
//! It replicates and caches: it pushes each artifact to every peer, hashes what comes, keeps the last few of each maker, and
//! hands out only what its user subscribes to by digest. It is no reliable broadcast: what a full queue drops, or what was sent
//! while a peer was away, it does not send again. How users learn digests is their business; here it is as with commonware's
//! consensus, whose votes name the block: the maker tells the digest as a small message of priority over a channel of its own,
//! the receivers subscribe, and the body comes by the engine. One engine has one priority, so what is urgent has another.

use std::sync::Arc;

use bytes::{Buf as _, BufMut, Bytes, BytesMut};
use commonware_broadcast::Broadcaster;
use commonware_broadcast::buffered::{Config, Engine, Mailbox};
use commonware_codec::{Buf, BufsMut, EncodeSize, Error, RangeCfg, Read, Write};
use commonware_cryptography::blake3::{Blake3, Digest};
use commonware_cryptography::{Digested, Digestible, Hasher, ed25519};
use commonware_p2p::authenticated::lookup;
use commonware_p2p::{Receiver, Recipients};
use commonware_parallel::Sequential;
use commonware_runtime::Handle;
use futures::StreamExt;
use futures::stream::FuturesUnordered;

use super::{Context, LARGEST, MAILBOX};
use crate::board::Board;
use crate::intake;

/// Artifacts of each maker that an engine keeps at least: what its own examples keep. Where more are on their way at a time, so
/// many are kept, or those that are subscribed to late would be gone.
pub(super) const LEAST_CACHED: usize = 10;
/// The same of what is urgent, which is small and comes at fixed times, however many are on their way.
const URGENT_CACHED: usize = 64;

type Key = ed25519::PublicKey;
type Oracle = lookup::Oracle<Key>;

/// Head and body of an artifact.
#[derive(Debug, Clone)]
pub(super) struct Artifact(Bytes);

/// A node's engines.
#[derive(Clone)]
pub(super) struct Engines {
    pub(super) bulk: Mailbox<Key, Artifact>,
    pub(super) urgent: Mailbox<Key, Artifact>,
}

impl Engines {
    fn of(&self, urgent: bool) -> &Mailbox<Key, Artifact> {
        if urgent { &self.urgent } else { &self.bulk }
    }

    /// An engine that has ended takes nothing, and neither does its node.
    pub(super) fn broadcast(&self, artifact: Digested<Artifact>, urgent: bool) {
        let _ = self.of(urgent).broadcast(Recipients::All, artifact);
    }
}

impl Digestible for Artifact {
    type Digest = Digest;

    fn digest(&self) -> Digest {
        Blake3::hash(&[&self.0])
    }
}

impl Write for Artifact {
    fn write(&self, buf: &mut impl BufMut) {
        self.0.write(buf);
    }

    /// Without a copy of the body.
    fn write_bufs(&self, buf: &mut impl BufsMut) {
        self.0.write_bufs(buf);
    }
}

impl EncodeSize for Artifact {
    fn encode_size(&self) -> usize {
        self.0.encode_size()
    }

    fn encode_inline_size(&self) -> usize {
        self.0.encode_inline_size()
    }
}

impl Read for Artifact {
    type Cfg = RangeCfg<usize>;

    fn read_cfg(buf: &mut impl Buf, range: &RangeCfg<usize>) -> Result<Artifact, Error> {
        Bytes::read_cfg(buf, range).map(Artifact)
    }
}

pub(super) fn config(
    public_key: Key,
    peer_provider: Oracle,
    cached: usize,
    urgent: bool,
) -> Config<Key, RangeCfg<usize>, Oracle, Sequential> {
    Config {
        public_key,
        mailbox_size: MAILBOX,
        deque_size: if urgent { cached.max(URGENT_CACHED) } else { cached },
        priority: urgent,
        codec_config: RangeCfg::from(..=LARGEST as usize),
        peer_provider,
        // All cores have nodes of their own, so that no hash would be done sooner on several.
        strategy: Sequential,
    }
}

pub(super) fn start<E: Context>(
    context: E,
    config: Config<Key, RangeCfg<usize>, Oracle, Sequential>,
    channel: (lookup::Sender<Key, E>, lookup::Receiver<Key>),
) -> (Mailbox<Key, Artifact>, Handle<()>) {
    let (engine, mailbox) = Engine::new(context, config);
    (mailbox, engine.start(channel))
}

/// An artifact with its digest.
pub(super) async fn digested(body: Bytes) -> Digested<Artifact> {
    Digested::compute(Artifact(body), &Sequential).await
}

/// What peers are told of an artifact: which engine carries it, and its digest.
pub(super) fn told(digest: Digest, urgent: bool) -> Bytes {
    let mut told = BytesMut::with_capacity(1 + digest.len());
    told.put_u8(u8::from(urgent));
    told.put_slice(&digest);
    told.freeze()
}

/// Subscribes to every digest that a peer tells, and checks off what the engines hand out.
pub(super) async fn receive(
    mut digests: lookup::Receiver<Key>,
    engines: Engines,
    node: usize,
    board: Arc<Board>,
) {
    let mut awaited = FuturesUnordered::new();
    loop {
        board.gate(node).await;
        ::tokio::select! {
            told = digests.recv() => {
                let Ok((_, mut told)) = told else { return };
                if told.remaining() != 1 + blake3::OUT_LEN {
                    board.corrupted();
                    continue;
                }
                let urgent = told.get_u8() != 0;
                let mut digest = [0; blake3::OUT_LEN];
                told.copy_to_slice(&mut digest);
                awaited.push(engines.of(urgent).subscribe(Digest::from(blake3::Hash::from_bytes(digest))));
            }
            Some(artifact) = awaited.next(), if !awaited.is_empty() => {
                // An error: the engine has ended, and so has this node.
                let Ok(artifact) = artifact else { return };
                intake::message(&board, node, artifact.inner().0.clone());
            }
        }
    }
}
