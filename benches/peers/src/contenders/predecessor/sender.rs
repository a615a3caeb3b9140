//! Sender half: slots, a task for each active artifact, a task for each artifact and peer on its way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc::Receiver;
use tokio::task::{AbortHandle, JoinSet};

use super::transport::Transport;
use super::wire::{SlotUpdate, UPDATE, Update};
use super::{Id, Pool, id, jitter, lock};
use crate::message::Message;

/// Smaller artifacts are pushed, others adverted; the urgent ones are pushed whatever their size.
const PUSH_THRESHOLD: usize = 1024;
/// How often an active artifact looks for peers that have not got it.
const TICK: Duration = Duration::from_secs(5);
/// Between attempts to send to one peer: from, to, and by how much it grows.
const BACKOFF: (Duration, Duration, f64) = (Duration::from_millis(250), Duration::from_secs(60), 2.0);

/// What a node's user wants.
pub(super) enum Command {
    Deliver(Message),
    Abort(Id),
}

/// An active artifact.
struct Active {
    slot: u64,
    task: AbortHandle,
}

pub(super) async fn run(transport: Arc<Transport>, pool: Pool, mut commands: Receiver<Command>) {
    let mut active: HashMap<Id, Active> = HashMap::new();
    let (mut free, mut next_slot, mut commit_id) = (Vec::new(), 0, 0);
    let mut tasks = JoinSet::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Deliver(message) => {
                let id = id(message.stamp);
                let slot = free.pop().unwrap_or_else(|| {
                    next_slot += 1;
                    next_slot - 1
                });
                let urgent = message.urgent;
                let artifact = message.joined();
                lock(&pool).insert(id, artifact.clone());
                let update = match urgent || artifact.len() < PUSH_THRESHOLD {
                    true => Update::Artifact(artifact.to_vec()),
                    false => Update::Id(id.to_vec()),
                };
                let update = SlotUpdate { commit_id, slot_id: slot, update: Some(update) };
                let body = Bytes::from(update.encode_to_vec());
                let task = tasks.spawn(keep_sending(transport.clone(), body));
                active.insert(id, Active { slot, task });
            }
            Command::Abort(id) => {
                if let Some(Active { slot, task }) = active.remove(&id) {
                    task.abort();
                    lock(&pool).remove(&id);
                    free.push(slot);
                }
            }
        }
        commit_id += 1;
        while tasks.try_join_next().is_some() {}
    }
}

/// Every five seconds: whoever has a connection that has not seen the update gets it.
async fn keep_sending(transport: Arc<Transport>, body: Bytes) {
    let mut sent: HashMap<usize, (u64, AbortHandle)> = HashMap::new();
    let mut sending = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tick.tick().await;
        for (peer, connection) in transport.peers() {
            if sent.get(&peer).is_some_and(|(seen, _)| *seen == connection) {
                continue;
            }
            let task = sending.spawn(send(transport.clone(), peer, body.clone()));
            if let Some((_, old)) = sent.insert(peer, (connection, task)) {
                old.abort();
            }
        }
        while sending.try_join_next().is_some() {}
    }
}

/// Sends to one peer until it answers, whatever it answers.
async fn send(transport: Arc<Transport>, peer: usize, body: Bytes) {
    let (mut wait, most, factor) = BACKOFF;
    while transport.rpc(peer, UPDATE, &body).await.is_err() {
        tokio::time::sleep(wait.mul_f64(jitter())).await;
        wait = wait.mul_f64(factor).min(most);
    }
}
