//! iroh-gossip over iroh, on tokio: every node in every other's active view, no relays, addresses known; as a flood to all
//! neighbours, of whom nobody forwards, and as it is meant for swarms.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{QuicTransportConfig, presets};
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey};
use iroh_gossip::api::{Event, GossipReceiver, GossipSender, JoinOptions};
use iroh_gossip::net::{GOSSIP_ALPN, Gossip};
use iroh_gossip::proto::{HyparviewConfig, PlumtreeConfig, TopicId};
use rustls::CipherSuite;
use rustls::crypto::CryptoProvider;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::Failure;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake;
use crate::message::Message;

/// How it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// To all neighbours, which in this mesh are all nodes, once.
    Neighbours,
    /// Over its trees of eager and lazy peers, which grow anew where they break.
    Swarm,
}

/// Bytes of the largest message.
const LARGEST: usize = (64 << 20) + 4096;
/// Deliveries that wait for a node's user.
const CAPACITY: usize = 16 << 10;
/// Bytes that a peer may have in flight.
const WINDOW: u32 = 512 << 10;
const SEND_WINDOW: u64 = 8 << 20;
/// From what size on a message may well be on its way for longer than the 80 ms after which others are asked for it, and how
/// long that is then. Messages are kept for others as long as that may take.
const LARGE: usize = 64 << 10;
const GRAFT: Duration = Duration::from_secs(2);
const RETENTION: Duration = Duration::from_secs(5);
/// How long nodes may take to find one another.
const CONNECT: Duration = Duration::from_secs(30);

struct Mesh {
    runtime: Runtime,
    shape: Shape,
    large: bool,
    mtu: u16,
    keys: Vec<SecretKey>,
    board: Arc<Board>,
    nodes: Vec<Mutex<Option<Node>>>,
}

struct Node {
    address: EndpointAddr,
    router: Router,
    sender: GossipSender,
    neighbours: Arc<std::sync::atomic::AtomicUsize>,
    receive: JoinHandle<()>,
}

pub(crate) fn run(run: Run, shape: Shape) -> Result<Value, Failure> {
    let nodes = run.choice.nodes;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(run.choice.cores).enable_all().build()?;
    let mesh = Mesh {
        runtime,
        shape,
        large: run.choice.size >= LARGE,
        mtu: run.choice.mtu.min(super::QUINN_MTU),
        keys: (0..nodes).map(|_| SecretKey::generate()).collect(),
        board: run.board.clone(),
        nodes: (0..nodes).map(|_| Mutex::new(None)).collect(),
    };
    mesh.runtime.block_on(async {
        for node in 0..nodes {
            mesh.start(node).await?;
        }
        Ok::<_, Failure>(())
    })?;
    mesh.connected()?;
    drive(&Arc::new(mesh), run)
}

impl Contender for Mesh {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        let sender = self.lock(node).as_ref().map(|node| node.sender.clone());
        if let Some(sender) = sender {
            match self.shape {
                Shape::Neighbours => sender.broadcast_neighbors(message.joined()).await?,
                Shape::Swarm => sender.broadcast(message.joined()).await?,
            }
        }
        Ok(())
    }

    fn spawn(&self, _node: usize, task: Task) {
        drop(self.runtime.spawn(task));
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        let closed = self.lock(node).take().ok_or("the node is closed")?;
        closed.receive.abort();
        closed.router.shutdown().await?;
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        self.start(node).await
    }
}

impl Mesh {
    fn lock(&self, node: usize) -> std::sync::MutexGuard<'_, Option<Node>> {
        self.nodes[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a node and lets it join those that run.
    async fn start(&self, node: usize) -> Result<(), Failure> {
        let lookup = MemoryLookup::new();
        let mut bootstrap: Vec<EndpointId> = Vec::new();
        for other in 0..self.nodes.len() {
            if let Some(other) = self.lock(other).as_ref() {
                lookup.add_endpoint_info(other.address.clone());
                bootstrap.push(other.address.id);
            }
        }
        let endpoint = Endpoint::builder(presets::Minimal)
            .secret_key(self.keys[node].clone())
            .address_lookup(lookup)
            .relay_mode(RelayMode::Disabled)
            .crypto_provider(provider())
            .transport_config(self.transport())
            .clear_ip_transports()
            .bind_addr(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?
            .bind()
            .await?;
        let view = HyparviewConfig { active_view_capacity: self.nodes.len(), ..HyparviewConfig::default() };
        let gossip = Gossip::builder()
            .max_message_size(LARGEST)
            .membership_config(view)
            .broadcast_config(self.trees())
            .spawn(endpoint.clone());
        let address = endpoint.addr();
        let router = Router::builder(endpoint).accept(GOSSIP_ALPN, gossip.clone()).spawn();
        let options =
            JoinOptions { subscription_capacity: CAPACITY, ..JoinOptions::with_bootstrap(bootstrap) };
        let topic = gossip.subscribe_with_opts(TopicId::from_bytes([7; 32]), options).await?;
        let (sender, receiver) = topic.split();
        let neighbours = Arc::<std::sync::atomic::AtomicUsize>::default();
        let receive = tokio::spawn(receive(receiver, node, self.board.clone(), neighbours.clone()));
        *self.lock(node) = Some(Node { address, router, sender, neighbours, receive });
        Ok(())
    }

    fn trees(&self) -> PlumtreeConfig {
        let mut trees = PlumtreeConfig::default();
        if self.large {
            trees.graft_timeout_1 = GRAFT;
            trees.graft_timeout_2 = GRAFT / 2;
        }
        trees.message_cache_retention = RETENTION;
        trees
    }

    fn transport(&self) -> QuicTransportConfig {
        QuicTransportConfig::builder()
            .initial_mtu(self.mtu)
            .min_mtu(self.mtu)
            .mtu_discovery_config(None)
            .stream_receive_window(WINDOW.into())
            .receive_window(WINDOW.into())
            .send_window(SEND_WINDOW)
            .build()
    }

    /// Waits until every node has every other as a neighbour.
    fn connected(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        for node in 0..self.nodes.len() {
            let neighbours = || {
                let node = self.lock(node);
                node.as_ref().map_or(0, |node| node.neighbours.load(std::sync::atomic::Ordering::Relaxed))
            };
            while neighbours() + 1 < self.nodes.len() {
                if begin.elapsed() > CONNECT {
                    return Err(format!("node {node} found {} neighbours only", neighbours()).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// AES-128-GCM alone, the fastest suite here; by default it prefers AES-256.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = rustls::crypto::ring::default_provider();
    provider.cipher_suites.retain(|suite| suite.suite() == CipherSuite::TLS13_AES_128_GCM_SHA256);
    Arc::new(provider)
}

async fn receive(
    mut receiver: GossipReceiver,
    node: usize,
    board: Arc<Board>,
    neighbours: Arc<std::sync::atomic::AtomicUsize>,
) {
    loop {
        board.gate(node).await;
        let Some(Ok(event)) = receiver.next().await else { return };
        match event {
            Event::Received(message) => intake::message(&board, node, message.content),
            Event::NeighborUp(_) => drop(neighbours.fetch_add(1, std::sync::atomic::Ordering::Relaxed)),
            Event::NeighborDown(_) => drop(neighbours.fetch_sub(1, std::sync::atomic::Ordering::Relaxed)),
            // The node was too slow: it will be seen to lack some.
            Event::Lagged => (),
        }
    }
}
