//! A replica that takes artifacts by height: behind its window it wants nothing, in it everything, ahead of it later.
//!
//! Four nodes run on loopback. One is far ahead and broadcasts an artifact for each of twelve heights, which it states in the
//! attribute. The others work on heights 5 to 8: they fetch these, never spend a byte on the bodies of 1 to 4, and remember the
//! names of 9 to 12. Then they move on, and what was ahead is fetched, without anything being sent to tell of it again.
//!
//! ```text
//! cargo run --example height_window
//! ```

use std::collections::BTreeSet;
use std::error::Error;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corecast::{
    Advert, Attribute, Class, Config, Deliveries, Event, ExecutorConfig, Executors, Identity, Member,
    Membership, Node, RegistryVersion, Topic, TopicConfig, TopicId, Verdict,
};

/// How many heights a replica works on at a time.
const WINDOW: u64 = 4;
/// Bytes of a body: large enough to be advertised and fetched, not pushed.
const BODY: usize = 100_000;
const PATIENCE: Duration = Duration::from_secs(30);

/// The lowest height that a replica still works on.
#[derive(Debug, Clone)]
struct Window(Arc<AtomicU64>);

impl Window {
    fn at(lowest: u64) -> Window {
        Window(Arc::new(AtomicU64::new(lowest)))
    }

    /// What the lane asks of each advert: one load and two comparisons.
    fn judge(&self, advert: &Advert) -> Verdict {
        // The attribute is the sender's word, and bytes of a peer: what is no height is not wanted.
        let Some(height) = height_of(&advert.attribute) else { return Verdict::Discard };
        match height.checked_sub(self.0.load(Ordering::Acquire)) {
            None => Verdict::Discard,
            Some(ahead) if ahead < WINDOW => Verdict::Want,
            Some(_) => Verdict::Later,
        }
    }

    /// First the window, then the word that it has moved: so each lane sees the new one when it asks again.
    fn move_to(&self, lowest: u64, topic: &Topic) {
        self.0.store(lowest, Ordering::Release);
        topic.filter_changed();
    }
}

fn height_of(attribute: &Attribute) -> Option<u64> {
    Some(u64::from_be_bytes(attribute.as_bytes().try_into().ok()?))
}

/// One node, with its topic and its window.
struct Replica {
    node: Node,
    topic: Topic,
    deliveries: Deliveries,
    window: Window,
}

/// Starts a subnet of so many nodes, all in this process.
fn start(nodes: usize, lowest: u64) -> Result<Vec<Replica>, Box<dyn Error>> {
    let identities = (0..nodes).map(|_| Identity::generate()).collect::<Result<Vec<_>, _>>()?;
    let sockets =
        (0..nodes).map(|_| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))).collect::<Result<Vec<_>, _>>()?;
    let mut members = Vec::new();
    for (identity, socket) in identities.iter().zip(&sockets) {
        members.push(Member { id: identity.id(), addresses: vec![socket.local_addr()?] });
    }
    drop(sockets);
    let membership = Arc::new(Membership::new("heights".to_owned(), RegistryVersion(1), 1, members)?);
    let executors = Executors::start(&ExecutorConfig::default())?;
    let replica = |identity| -> Result<Replica, Box<dyn Error>> {
        let node = Node::start_on(&executors, Config::new(identity, membership.clone()))?;
        let window = Window::at(lowest);
        let judge = window.clone();
        let config = TopicConfig::new(TopicId(1), "consensus").class(Class::High);
        let (topic, deliveries) = node.topic(config.filter(move |advert| judge.judge(advert)))?;
        Ok(Replica { node, topic, deliveries, window })
    };
    identities.into_iter().map(replica).collect()
}

impl Replica {
    /// Waits until an artifact of each of these heights is here, and none of another.
    fn receive(&self, mut heights: BTreeSet<u64>) -> Result<(), Box<dyn Error>> {
        while !heights.is_empty() {
            match self.deliveries.recv_timeout(PATIENCE)? {
                Event::Delivered { artifact, .. } => {
                    let height = height_of(&artifact.attribute).ok_or("an artifact without a height")?;
                    if !heights.remove(&height) {
                        return Err(format!("height {height} came, and was not to").into());
                    }
                    self.topic.release(&artifact.id)?;
                }
                event => return Err(format!("unexpected: {event:?}").into()),
            }
        }
        Ok(())
    }

    /// As the node counts it, once it counts so many: what it publishes is some milliseconds old.
    fn bodies_received(&self, at_least: u64) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let bodies = self.node.stats().engine.bodies_received;
            if bodies >= at_least || Instant::now() > deadline {
                return bodies;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let replicas = start(4, 5)?;
    let (maker, others) = replicas.split_first().ok_or("no replicas")?;
    for height in 1..=12u64 {
        let attribute = Attribute::new(&height.to_be_bytes())?;
        maker.topic.broadcast_wait(vec![height as u8; BODY], attribute, PATIENCE)?;
    }
    println!("heights 1 to 12 are broadcast; the others work on 5 to 8");
    for replica in others {
        replica.receive((5..=8).collect())?;
        println!("{} has heights 5 to 8", replica.node.id());
    }
    others.iter().for_each(|replica| replica.window.move_to(9, &replica.topic));
    println!("the windows move to 9 to 12");
    for replica in others {
        replica.receive((9..=12).collect())?;
        let filter = replica.topic.filter_stats();
        println!(
            "{} has heights 9 to 12, and was asked {} times, {:?} each",
            replica.node.id(),
            filter.calls,
            filter.total / filter.calls as u32
        );
    }
    // What was behind was never asked for: eight bodies for each, and no more.
    for replica in others {
        let bodies = replica.bodies_received(8);
        if bodies != 8 || replica.deliveries.try_recv().is_ok() {
            return Err(format!("{bodies} bodies came instead of 8").into());
        }
    }
    println!("heights 1 to 4 cost each of them four adverts");
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    run()
}

#[cfg(test)]
mod tests {
    #[test]
    fn replicas_take_what_is_in_their_window_and_what_was_ahead_once_it_moves() {
        super::run().unwrap();
    }
}
