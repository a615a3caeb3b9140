//! A clean-room MODEL of the Internet Computer's P2P layer, written from a description of its behaviour: not the original,
//! none of its code. tokio and quinn; one task for each active artifact, one bidirectional stream for each update and peer,
//! two layers of protobuf, bodies of 1,024 bytes and more adverted and then fetched, its timers and its windows.

mod receiver;
mod sender;
mod transport;
mod wire;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::raw_keys::Keys;
use crate::Failure;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::message::{Message, STAMP, Stamp};
use sender::Command;
use transport::Transport;

/// What the receiver and the pool know an artifact by: its stamp.
pub(super) type Id = [u8; STAMP];
/// What a node broadcasts now, for those who fetch it.
pub(super) type Pool = Arc<Mutex<HashMap<Id, Bytes>>>;

/// Commands that wait for a node's sender.
const COMMANDS: usize = 100_000;
/// How long nodes may take to find one another.
const CONNECT: Duration = Duration::from_secs(30);

struct Model {
    runtime: Runtime,
    keys: Arc<Keys>,
    board: Arc<Board>,
    addresses: Vec<SocketAddr>,
    nodes: Vec<Mutex<Option<Node>>>,
}

struct Node {
    transport: Arc<Transport>,
    commands: mpsc::Sender<Command>,
    tasks: Vec<JoinHandle<()>>,
}

pub(crate) fn run(run: Run) -> Result<Value, Failure> {
    let nodes = run.choice.nodes;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(run.choice.cores).enable_all().build()?;
    let keys = Arc::new(Keys::new(nodes, rustls::crypto::ring::default_provider())?);
    let sockets: Vec<_> =
        (0..nodes).map(|_| std::net::UdpSocket::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses = sockets.iter().map(|socket| socket.local_addr()).collect::<Result<_, _>>()?;
    drop(sockets);
    let board = run.board.clone();
    let model =
        Model { runtime, keys, board, addresses, nodes: (0..nodes).map(|_| Mutex::new(None)).collect() };
    for node in 0..nodes {
        *lock(&model.nodes[node]) = Some(model.start(node)?);
    }
    model.connected()?;
    drive(&Arc::new(model), run)
}

impl Model {
    fn start(&self, node: usize) -> Result<Node, Failure> {
        let _runtime = self.runtime.enter();
        let pool = Pool::default();
        let (updates, received) = mpsc::channel(receiver::UPDATES);
        let transport = Transport::start(
            node,
            &self.keys,
            &self.addresses,
            &transport::Handlers { updates, pool: pool.clone() },
        )?;
        let (commands, waiting) = mpsc::channel(COMMANDS);
        let tasks = vec![
            tokio::spawn(sender::run(transport.clone(), pool, waiting)),
            tokio::spawn(receiver::run(transport.clone(), self.board.clone(), received)),
        ];
        Ok(Node { transport, commands, tasks })
    }

    /// Waits until every node has a connection with every other.
    fn connected(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        for node in &self.nodes {
            let found = || lock(node).as_ref().map_or(0, |node| node.transport.peers().len());
            while found() + 1 < self.nodes.len() {
                if begin.elapsed() > CONNECT {
                    return Err(format!("a node found {} peers only", found()).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    fn commands(&self, node: usize) -> Option<mpsc::Sender<Command>> {
        lock(&self.nodes[node]).as_ref().map(|node| node.commands.clone())
    }
}

impl Contender for Model {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        if let Some(commands) = self.commands(node) {
            let _ = commands.send(Command::Deliver(message)).await;
        }
        Ok(())
    }

    fn spawn(&self, _node: usize, task: Task) {
        drop(self.runtime.spawn(task));
    }

    fn abort(&self, node: usize, stamp: Stamp) {
        if let Some(commands) = self.commands(node) {
            // With 100,000 commands waiting nothing is lost but the abort.
            let _ = commands.try_send(Command::Abort(id(stamp)));
        }
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        let closed = lock(&self.nodes[node]).take().ok_or("the node is closed")?;
        closed.tasks.iter().for_each(JoinHandle::abort);
        closed.transport.close().await;
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        *lock(&self.nodes[node]) = Some(self.start(node)?);
        Ok(())
    }
}

/// The id of an artifact; its length is not part of it, as aborts do not know it.
pub(super) fn id(stamp: Stamp) -> Id {
    let mut id = [0; STAMP];
    Stamp { len: 0, ..stamp }.put(&mut id);
    id
}

/// A factor between a half and one and a half, as both backoffs have it.
pub(super) fn jitter() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the factor is a half, and the backoff shorter.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes);
    0.5 + f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
