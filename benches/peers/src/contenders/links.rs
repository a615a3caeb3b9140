//! Queues of a flood: from each node one for each peer, or two where what is urgent has its own.

use std::sync::{PoisonError, RwLock};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::message::Message;

/// Messages that wait for one peer.
pub(crate) const QUEUE: usize = 64;

/// All queues; a pair of nodes without a connection has none.
pub(crate) struct Links {
    nodes: usize,
    queues: Vec<RwLock<Option<Queues>>>,
}

struct Queues {
    bulk: Sender<Message>,
    urgent: Option<Sender<Message>>,
}

impl Links {
    pub(crate) fn new(nodes: usize) -> Links {
        Links { nodes, queues: (0..nodes * nodes).map(|_| RwLock::new(None)).collect() }
    }

    /// Opens the queue from `node` to `peer`, in place of any other.
    pub(crate) fn open(&self, node: usize, peer: usize) -> Receiver<Message> {
        let (bulk, messages) = channel(QUEUE);
        self.set(node, peer, Some(Queues { bulk, urgent: None }));
        messages
    }

    /// Opens two, the second for what is urgent.
    pub(crate) fn open_two(&self, node: usize, peer: usize) -> [Receiver<Message>; 2] {
        let ((bulk, messages), (urgent, first)) = (channel(QUEUE), channel(QUEUE));
        self.set(node, peer, Some(Queues { bulk, urgent: Some(urgent) }));
        [messages, first]
    }

    /// Closes the queues between `node` and all others, both ways.
    pub(crate) fn close(&self, node: usize) {
        for peer in 0..self.nodes {
            self.set(node, peer, None);
            self.set(peer, node, None);
        }
    }

    fn set(&self, node: usize, peer: usize, queues: Option<Queues>) {
        *self.queues[node * self.nodes + peer].write().unwrap_or_else(PoisonError::into_inner) = queues;
    }

    /// Queues a message for every peer; waits where a queue is full. Who is not connected does not get it.
    pub(crate) async fn broadcast(&self, node: usize, message: Message) {
        for queues in &self.queues[node * self.nodes..(node + 1) * self.nodes] {
            let full = {
                let queues = queues.read().unwrap_or_else(PoisonError::into_inner);
                let Some(queues) = queues.as_ref() else { continue };
                let queue = queues.urgent.as_ref().filter(|_| message.urgent).unwrap_or(&queues.bulk);
                match queue.try_send(message.clone()) {
                    Err(TrySendError::Full(message)) => Some((queue.clone(), message)),
                    Ok(()) | Err(TrySendError::Closed(_)) => None,
                }
            };
            if let Some((queue, message)) = full {
                // An error: the connection has ended meanwhile.
                let _ = queue.send(message).await;
            }
        }
    }
}
