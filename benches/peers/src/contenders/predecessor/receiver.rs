//! Receiver half: a slot table for each peer, a task for each artifact that someone has active, and the fetch.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::transport::Transport;
use super::wire::{FETCH, OK, SlotUpdate, Update};
use super::{Id, id, jitter};
use crate::board::Board;
use crate::intake;
use crate::message::Stamp;

/// Updates that wait for the receiver; with more, their streams stay open.
pub(super) const UPDATES: usize = 100;
/// Between attempts to fetch: from, to, and by how much it grows.
const BACKOFF: (Duration, Duration, f64) = (Duration::from_secs(5), Duration::from_secs(120), 1.5);

/// An update as it came.
pub(super) struct Received {
    pub(super) peer: usize,
    pub(super) connection: u64,
    pub(super) update: SlotUpdate,
}

/// What a peer's slot holds.
struct Slot {
    connection: u64,
    commit_id: u64,
    id: Id,
}

/// In how many slots each peer names an artifact.
type Advertisers = HashMap<usize, u32>;

struct Receiver {
    transport: Arc<Transport>,
    board: Arc<Board>,
    slots: HashMap<(usize, u64), Slot>,
    assembling: HashMap<Id, watch::Sender<Advertisers>>,
    tasks: JoinSet<Id>,
}

pub(super) async fn run(transport: Arc<Transport>, board: Arc<Board>, mut updates: mpsc::Receiver<Received>) {
    let (slots, assembling) = (HashMap::new(), HashMap::new());
    let mut receiver = Receiver { transport, board, slots, assembling, tasks: JoinSet::new() };
    loop {
        receiver.board.gate(receiver.transport.node()).await;
        tokio::select! {
            update = updates.recv() => match update {
                Some(update) => receiver.handle(update),
                None => return,
            },
            Some(Ok(id)) = receiver.tasks.join_next() => receiver.ended(id),
        }
    }
}

impl Receiver {
    fn handle(&mut self, received: Received) {
        let Received { peer, connection, update: SlotUpdate { commit_id, slot_id, update } } = received;
        let (id, body) = match update {
            Some(Update::Artifact(artifact)) => match Stamp::get(&artifact) {
                Some(stamp) => (id(stamp), Some(Bytes::from(artifact))),
                None => return,
            },
            Some(Update::Id(id)) => match id.try_into() {
                Ok(id) => (id, None),
                Err(_) => return,
            },
            None => return,
        };
        // Newer is a later connection, or the same and a later commit.
        let old = self.slots.get(&(peer, slot_id));
        if old.is_some_and(|old| (connection, commit_id) <= (old.connection, old.commit_id)) {
            return;
        }
        let old = self.slots.insert((peer, slot_id), Slot { connection, commit_id, id });
        if old.as_ref().is_some_and(|old| old.id == id) {
            return;
        }
        match self.assembling.get(&id) {
            // A body that was pushed for an artifact under way is thrown away.
            Some(advertisers) => advertisers.send_modify(|count| *count.entry(peer).or_default() += 1),
            None => {
                let (sender, advertisers) = watch::channel(Advertisers::from([(peer, 1)]));
                self.assembling.insert(id, sender);
                self.tasks.spawn(assemble(self.transport.clone(), self.board.clone(), id, body, advertisers));
            }
        }
        if let Some(advertisers) = old.and_then(|old| self.assembling.get(&old.id)) {
            advertisers.send_modify(|count| {
                if let Some(slots) = count.get_mut(&peer) {
                    *slots -= 1;
                    if *slots == 0 {
                        count.remove(&peer);
                    }
                }
            });
        }
    }

    /// A task has ended; if someone names the artifact again meanwhile, another begins.
    fn ended(&mut self, id: Id) {
        let Some(advertisers) = self.assembling.remove(&id) else { return };
        if !advertisers.borrow().is_empty() {
            let watched = advertisers.subscribe();
            self.assembling.insert(id, advertisers);
            self.tasks.spawn(assemble(self.transport.clone(), self.board.clone(), id, None, watched));
        }
    }
}

/// Gets the artifact, hands it over, and stays until nobody has it active any more.
async fn assemble(
    transport: Arc<Transport>,
    board: Arc<Board>,
    id: Id,
    body: Option<Bytes>,
    mut advertisers: watch::Receiver<Advertisers>,
) -> Id {
    let mut gone = advertisers.clone();
    let gone = gone.wait_for(HashMap::is_empty);
    let artifact = async {
        match body {
            Some(body) => body,
            None => fetch(&transport, id, &advertisers).await,
        }
    };
    tokio::select! {
        artifact = artifact => intake::message(&board, transport.node(), artifact),
        _ = gone => return id,
    }
    let _ = advertisers.wait_for(HashMap::is_empty).await;
    id
}

/// Asks one advertiser after another, at random; a quick answer that is no body is waited out like silence.
async fn fetch(transport: &Transport, wanted: Id, advertisers: &watch::Receiver<Advertisers>) -> Bytes {
    let (mut wait, most, factor) = BACKOFF;
    loop {
        let deadline = Instant::now() + wait.mul_f64(jitter());
        let peers: Vec<usize> = advertisers.borrow().keys().copied().collect();
        let chosen = ((jitter() - 0.5) * peers.len() as f64) as usize;
        if let Some(&peer) = peers.get(chosen.min(peers.len().saturating_sub(1))) {
            let answer = tokio::time::timeout_at(deadline, transport.rpc(peer, FETCH, &wanted)).await;
            if let Ok(Ok((OK, artifact))) = answer
                && Stamp::get(&artifact).is_some_and(|stamp| id(stamp) == wanted)
            {
                return artifact.into();
            }
        }
        tokio::time::sleep_until(deadline).await;
        wait = wait.mul_f64(factor).min(most);
    }
}
