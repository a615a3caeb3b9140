//! libp2p's gossipsub over its QUIC transport, on tokio: as a flood without signatures, and with its signed defaults.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::gossipsub::{
    self, Behaviour, ConfigBuilder, IdentTopic, MessageAcceptance, MessageAuthenticity, MessageId,
    ValidationMode,
};
use libp2p::identity::Keypair;
use libp2p::swarm::SwarmEvent;
use libp2p::{Multiaddr, Swarm, SwarmBuilder};
use serde_json::Value;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Failure;
use crate::board::Board;
use crate::contender::{Contender, Task};
use crate::drive::{Run, drive};
use crate::intake;
use crate::message::{Message, STAMP};

/// How it is set up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// No signatures; makers publish to all, and receivers report what they got as not to be forwarded.
    Flood,
    /// Its defaults: signed messages, which receivers forward over the mesh.
    Signed,
}

/// Messages that wait for a node's swarm.
const QUEUE: usize = 64;
/// Bytes of the largest message.
const LARGEST: usize = (64 << 20) + 4096;
/// Bytes that a peer may have in flight: more than a default socket buffer holds is lost and sent again.
const WINDOW: u32 = 1 << 20;
/// How long nodes may take to find one another, and to hear of each other's subscriptions.
const CONNECT: Duration = Duration::from_secs(30);

struct Gossip {
    runtime: Runtime,
    shape: Shape,
    mtu: u16,
    keys: Vec<Keypair>,
    board: Arc<Board>,
    nodes: Vec<Mutex<Option<Node>>>,
    /// Peers that a node knows to be subscribed.
    subscribed: Arc<Vec<AtomicUsize>>,
}

struct Node {
    messages: mpsc::Sender<Message>,
    address: Multiaddr,
    task: JoinHandle<()>,
}

pub(crate) fn run(run: Run, shape: Shape) -> Result<Value, Failure> {
    let nodes = run.choice.nodes;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(run.choice.cores).enable_all().build()?;
    let gossip = Gossip {
        runtime,
        shape,
        mtu: run.choice.mtu.min(super::QUINN_MTU),
        keys: (0..nodes).map(|_| Keypair::generate_ed25519()).collect(),
        board: run.board.clone(),
        nodes: (0..nodes).map(|_| Mutex::new(None)).collect(),
        subscribed: Arc::new((0..nodes).map(|_| AtomicUsize::new(0)).collect()),
    };
    gossip.runtime.block_on(async {
        for node in 0..nodes {
            gossip.start(node, 0..node).await?;
        }
        Ok::<_, Failure>(())
    })?;
    gossip.connected()?;
    drive(&Arc::new(gossip), run)
}

impl Contender for Gossip {
    async fn broadcast(&self, node: usize, message: Message) -> Result<(), Failure> {
        let messages = self.lock(node).as_ref().map(|node| node.messages.clone());
        if let Some(messages) = messages {
            let _ = messages.send(message).await;
        }
        Ok(())
    }

    fn spawn(&self, _node: usize, task: Task) {
        drop(self.runtime.spawn(task));
    }

    async fn close(&self, node: usize) -> Result<(), Failure> {
        let closed = self.lock(node).take().ok_or("the node is closed")?;
        closed.task.abort();
        Ok(())
    }

    async fn restart(&self, node: usize) -> Result<(), Failure> {
        self.start(node, 0..self.nodes.len()).await
    }
}

impl Gossip {
    fn lock(&self, node: usize) -> std::sync::MutexGuard<'_, Option<Node>> {
        self.nodes[node].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens, subscribes, and dials these peers.
    async fn start(&self, node: usize, peers: std::ops::Range<usize>) -> Result<(), Failure> {
        let mut swarm = self.swarm(node)?;
        let topic = IdentTopic::new("artifacts");
        swarm.behaviour_mut().subscribe(&topic)?;
        swarm.listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse()?)?;
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        for peer in peers.filter(|&peer| peer != node) {
            let address = self.lock(peer).as_ref().map(|peer| peer.address.clone());
            swarm.dial(address.ok_or("a peer is closed")?)?;
        }
        let (messages, waiting) = mpsc::channel(QUEUE);
        let (board, subscribed) = (self.board.clone(), self.subscribed.clone());
        let task = self.runtime.spawn(turn(swarm, topic, node, waiting, board, subscribed));
        *self.lock(node) = Some(Node { messages, address, task });
        Ok(())
    }

    fn swarm(&self, node: usize) -> Result<Swarm<Behaviour>, Failure> {
        let (shape, mtu) = (self.shape, self.mtu);
        let behaviour = move |key: &Keypair| {
            let mut config = ConfigBuilder::default();
            config.max_transmit_size(LARGEST).message_id_fn(|message: &gossipsub::Message| {
                MessageId::from(&message.data[..message.data.len().min(STAMP)])
            });
            let authenticity = match shape {
                Shape::Flood => {
                    config.flood_publish(true).validate_messages().validation_mode(ValidationMode::Anonymous);
                    MessageAuthenticity::Anonymous
                }
                Shape::Signed => MessageAuthenticity::Signed(key.clone()),
            };
            Ok(Behaviour::new(authenticity, config.build()?)?)
        };
        let swarm = SwarmBuilder::with_existing_identity(self.keys[node].clone())
            .with_tokio()
            .with_quic_config(|mut config| {
                config.max_stream_data = WINDOW;
                config.max_connection_data = WINDOW;
                config.mtu_upper_bound(mtu)
            })
            .with_behaviour(behaviour)?
            .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(3600)))
            .build();
        Ok(swarm)
    }

    fn connected(&self) -> Result<(), Failure> {
        let begin = Instant::now();
        for node in self.subscribed.iter() {
            while node.load(Ordering::Relaxed) + 1 < self.nodes.len() {
                if begin.elapsed() > CONNECT {
                    return Err(format!("a node found {} peers only", node.load(Ordering::Relaxed)).into());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

/// A node's swarm: publishes what waits, and takes what comes.
async fn turn(
    mut swarm: Swarm<Behaviour>,
    topic: IdentTopic,
    node: usize,
    mut messages: mpsc::Receiver<Message>,
    board: Arc<Board>,
    subscribed: Arc<Vec<AtomicUsize>>,
) {
    loop {
        board.gate(node).await;
        let event = tokio::select! {
            event = swarm.select_next_some() => event,
            Some(message) = messages.recv() => {
                // What its queues have no room for is dropped.
                let _ = swarm.behaviour_mut().publish(topic.clone(), message.joined());
                continue;
            }
        };
        match event {
            SwarmEvent::Behaviour(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                intake::message(&board, node, message.data.as_slice());
                // Without the need to validate, this tells it nothing new.
                swarm.behaviour_mut().report_message_validation_result(
                    &message_id,
                    &propagation_source,
                    MessageAcceptance::Ignore,
                );
            }
            SwarmEvent::Behaviour(gossipsub::Event::Subscribed { .. }) => {
                subscribed[node].fetch_add(1, Ordering::Relaxed);
            }
            _ => (),
        }
    }
}
