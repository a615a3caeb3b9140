//! commonware-p2p, authenticated, with known addresses, over TCP: by itself, on its tokio and on its io_uring runtime; and
//! below the engine of commonware-broadcast.

mod broadcast;

use std::future::pending;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use broadcast::Engines;
use commonware_cryptography::{ChaCha20Poly1305, Digestible, Signer, ed25519};
use commonware_p2p::authenticated::lookup;
use commonware_p2p::{
    Address, AddressableManager, CheckedSender, LimitedSender, Receiver, Recipients, Sender,
};
use commonware_runtime::{
    Clock, Handle, Metrics, Network, Quota, Resolver, Runner, Spawner, Supervisor, iouring, tokio,
};
use commonware_stream::cups::{self, Cups};
use commonware_stream::sake::{self, Sake};
use commonware_utils::ordered::Map;
use rand_core::CryptoRng;
use serde_json::Value;

use crate::Failure;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake;
use crate::message::Message;

/// What its networks ask of a runtime.
pub(crate) trait Context:
    Spawner + Clock + CryptoRng + Network + Resolver + Metrics + Supervisor + Sized
{
}

impl<E: Spawner + Clock + CryptoRng + Network + Resolver + Metrics + Supervisor> Context for E {}

/// Messages of a channel that wait, and that may come in a burst from one peer.
const BURST: u32 = 1024;
/// Messages that wait in an internal mailbox: 1,024.
const MAILBOX: NonZeroUsize = NonZeroUsize::MIN.saturating_add(1023);
/// Bytes of the largest artifact and its head.
const LARGEST: u32 = (64 << 20) + 1024;
/// How long nodes may take to find one another.
const CONNECT: Duration = Duration::from_secs(60);

/// What carries artifacts.
#[derive(Debug, Clone, Copy)]
enum Way {
    /// A channel of the network, as messages.
    Channel,
    /// The engine of commonware-broadcast, which keeps so many artifacts of each maker.
    Engine { cached: usize },
}

struct Flood<E: Context> {
    context: Mutex<E>,
    way: Way,
    keys: Vec<ed25519::PrivateKey>,
    addresses: Vec<SocketAddr>,
    board: Arc<Board>,
    nodes: Vec<Mutex<Option<Node<E>>>>,
}

struct Node<E: Context> {
    /// Takes artifacts, or their digests where engines take the artifacts.
    sender: lookup::Sender<ed25519::PublicKey, E>,
    engines: Option<Engines>,
    tasks: Vec<Handle<()>>,
}

pub(crate) fn run_tokio(run: Run) -> Result<Value, Failure> {
    let config = tokio::Config::new().with_worker_threads(run.choice.cores);
    start(run, Way::Channel, tokio::Runner::new(config))
}

pub(crate) fn run_uring(run: Run) -> Result<Value, Failure> {
    let config = iouring::Config::new().with_worker_threads(run.choice.cores);
    start(run, Way::Channel, iouring::Runner::new(config))
}

pub(crate) fn run_broadcast(run: Run) -> Result<Value, Failure> {
    let config = tokio::Config::new().with_worker_threads(run.choice.cores);
    let cached = run.choice.inflight.max(broadcast::LEAST_CACHED);
    start(run, Way::Engine { cached }, tokio::Runner::new(config))
}

/// The runtime lives on a thread of its own, which the end of the process ends.
fn start<R>(run: Run, way: Way, runner: R) -> Result<Value, Failure>
where
    R: Runner + Send + 'static,
    R::Context: Context,
{
    let (sender, flood) = std::sync::mpsc::sync_channel(1);
    let (nodes, board) = (run.choice.nodes, run.board.clone());
    std::thread::spawn(move || runner.start(|context| live(context, way, nodes, board, sender)));
    let flood = Arc::new(flood.recv()??);
    drive(&flood, run)
}

async fn live<E: Context>(
    context: E,
    way: Way,
    nodes: usize,
    board: Arc<Board>,
    sender: SyncSender<Result<Flood<E>, Failure>>,
) {
    let started = Flood::start(context, way, nodes, board).await;
    if sender.send(started).is_ok() {
        pending::<()>().await;
    }
}

impl<E: Context> Flood<E> {
    async fn start(context: E, way: Way, nodes: usize, board: Arc<Board>) -> Result<Flood<E>, Failure> {
        let flood = Flood {
            context: Mutex::new(context),
            way,
            keys: (0..nodes as u64).map(ed25519::PrivateKey::from_seed).collect(),
            addresses: free_addresses(nodes)?,
            board,
            nodes: (0..nodes).map(|_| Mutex::new(None)).collect(),
        };
        for node in 0..nodes {
            *lock(&flood.nodes[node]) = Some(flood.node(node)?);
        }
        flood.connected().await?;
        Ok(flood)
    }

    fn child(&self, label: &'static str) -> E {
        lock(&self.context).child(label)
    }

    fn node(&self, node: usize) -> Result<Node<E>, Failure> {
        let key = self.keys[node].clone();
        let handshake = Sake {
            signer: key,
            synchrony_bound: Duration::from_secs(5),
            max_handshake_age: Duration::from_secs(10),
            version: sake::Version::V1,
        };
        let cups = Cups::<_, ChaCha20Poly1305>::new(handshake, cups::Version::V1);
        let peers = NonZeroUsize::new(self.keys.len()).ok_or("no nodes")?;
        let mut config = lookup::Config::local(cups, b"peers", self.addresses[node], peers, LARGEST, MAILBOX);
        let many = NonZeroU32::new(4096).ok_or("no quota")?;
        config.peer_connection_cooldown = Duration::from_millis(250);
        config.dial_frequency = Duration::from_millis(50);
        config.allowed_handshake_rate_per_ip = Quota::per_second(many);
        config.allowed_handshake_rate_per_subnet = Quota::per_second(many);
        config.tracked_peer_sets = NonZeroUsize::MIN;
        let (mut network, mut oracle) = lookup::Network::new(self.child("network"), config);
        let addresses = self.addresses.iter().map(|&address| Address::from(address));
        let members = self.keys.iter().map(Signer::public_key).zip(addresses).collect::<Vec<_>>();
        let members: Map<_, Address> = members.try_into().map_err(|_| "two nodes have one key")?;
        oracle.track(0, members);
        let burst = NonZeroU32::new(BURST).ok_or("no quota")?;
        let quota = Quota::with_period(Duration::from_micros(1)).ok_or("no quota")?.allow_burst(burst);
        let (sender, receiver) = network.register(0, quota);
        let board = self.board.clone();
        let (engines, mut tasks) = match self.way {
            Way::Channel => {
                let receive = self.child("receive").spawn(move |_| receive(receiver, node, board));
                (None, vec![receive])
            }
            Way::Engine { cached } => {
                let key = self.keys[node].public_key();
                let mut start = |channel, label, urgent| {
                    let config = broadcast::config(key.clone(), oracle.clone(), cached, urgent);
                    broadcast::start(self.child(label), config, network.register(channel, quota))
                };
                let [(bulk, first), (urgent, second)] = [start(1, "bulk", false), start(2, "urgent", true)];
                let engines = Engines { bulk, urgent };
                let subscribed = engines.clone();
                let receive = self
                    .child("receive")
                    .spawn(move |_| broadcast::receive(receiver, subscribed, node, board));
                (Some(engines), vec![first, second, receive])
            }
        };
        tasks.push(network.start());
        Ok(Node { sender, engines, tasks })
    }

    /// Waits until every node has a connection with every other.
    async fn connected(&self) -> Result<(), Failure> {
        let context = self.child("connected");
        let begin = std::time::Instant::now();
        for node in 0..self.nodes.len() {
            while self.peers(node) + 1 < self.nodes.len() {
                if begin.elapsed() > CONNECT {
                    return Err(format!("node {node} found {} peers only", self.peers(node)).into());
                }
                context.sleep(Duration::from_millis(20)).await;
            }
        }
        Ok(())
    }

    fn peers(&self, node: usize) -> usize {
        let mut node = lock(&self.nodes[node]);
        let Some(node) = node.as_mut() else { return 0 };
        node.sender.check(Recipients::All).map_or(0, |checked| checked.recipients().len())
    }
}

impl<E: Context> Contender for Flood<E> {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        let (body, urgent) = (message.joined(), message.urgent);
        let artifact = match self.way {
            Way::Channel => None,
            Way::Engine { .. } => Some(broadcast::digested(body.clone()).await),
        };
        let mut node = lock(&self.nodes[node]);
        let Some(node) = node.as_mut() else { return Ok(()) };
        // What a peer's queue has no room for is dropped; nobody is made to wait.
        match (artifact, &node.engines) {
            (Some(artifact), Some(engines)) => {
                node.sender.send(Recipients::All, broadcast::told(artifact.digest(), urgent), true);
                engines.broadcast(artifact, urgent);
            }
            _ => drop(node.sender.send(Recipients::All, body, urgent)),
        }
        Ok(())
    }

    fn spawn(&self, _node: usize, task: Task) {
        drop(self.child("task").spawn(|_| task));
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        let closed = lock(&self.nodes[node]).take().ok_or("the node is closed")?;
        for task in closed.tasks {
            task.abort();
        }
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        *lock(&self.nodes[node]) = Some(self.node(node)?);
        Ok(())
    }
}

async fn receive(mut receiver: lookup::Receiver<ed25519::PublicKey>, node: usize, board: Arc<Board>) {
    loop {
        board.gate(node).await;
        let Ok((_, message)) = receiver.recv().await else { return };
        intake::message(&board, node, message);
    }
}

/// Ports that nothing listens on.
fn free_addresses(nodes: usize) -> Result<Vec<SocketAddr>, Failure> {
    let listeners: Result<Vec<_>, _> =
        (0..nodes).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).collect();
    Ok(listeners?.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
