//! Real nodes behind the seam.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use corecast::node::io::BindError;
use corecast::types::{ArtifactId, Attribute};
use corecast::{
    BroadcastError, CommandError, Config, Deliveries, Event, ExecutorConfig, Executors, Node, StartError,
    Topic, TopicConfig,
};

use super::counters::Counters;
use super::fault::{Exit, Fault};
use super::inline::{self, Inline};
use super::port::{Arrival, Feed, Host, Port, Refusal};

/// Starts the executors that the nodes of this process share.
pub(crate) fn executors(cores: &[usize], spin: Duration) -> Result<Executors, Fault> {
    let config = ExecutorConfig { cores: cores.to_vec(), spin, ..ExecutorConfig::default() };
    Ok(Executors::start(&config)?)
}

/// Starts one node and opens its topics.
pub(crate) fn start(
    executors: &Executors,
    config: Config,
    topics: &[TopicConfig],
    inline: Inline,
) -> Result<Started, Fault> {
    let node = Node::start_on(executors, config)?;
    let (mut ports, mut feeds) = (Vec::<Arc<dyn Port>>::new(), Vec::<Box<dyn Feed>>::new());
    for (index, topic) in topics.iter().enumerate() {
        let opened = match inline.takes(index) {
            true => inline::open(&node, topic.clone()),
            false => node.topic(topic.clone()).map(|(topic, feed)| (topic, Box::new(feed) as Box<dyn Feed>)),
        };
        let (topic, feed) = opened.map_err(|error| Fault::new(Exit::Software, error.to_string()))?;
        ports.push(Arc::new(topic));
        feeds.push(feed);
    }
    Ok(Started { node, ports, feeds })
}

/// A node with the two ends of each of its topics.
pub(crate) struct Started {
    pub(crate) node: Node,
    pub(crate) ports: Vec<Arc<dyn Port>>,
    pub(crate) feeds: Vec<Box<dyn Feed>>,
}

impl Port for Topic {
    fn broadcast(&self, bytes: Bytes) -> Result<ArtifactId, Refusal> {
        Topic::broadcast(self, bytes).map_err(refusal)
    }

    fn broadcast_all(&self, bodies: Vec<Bytes>) -> Vec<Result<ArtifactId, Refusal>> {
        let artifacts = bodies.into_iter().map(|bytes| (bytes, Attribute::EMPTY));
        let taken = Topic::broadcast_all(self, artifacts);
        taken.into_iter().map(|taken| taken.map_err(refusal)).collect()
    }

    fn abort(&self, id: &ArtifactId) {
        // A node that has stopped has nothing active any more.
        insist(|| Topic::abort(self, id)).ok();
    }

    fn validate(&self, id: &ArtifactId) {
        // No room to relay it: then it is let go of, so that its memory is free.
        if insist(|| Topic::validate(self, id)) == Err(CommandError::Full) {
            Port::release(self, id);
        }
    }

    fn release(&self, id: &ArtifactId) {
        insist(|| Topic::release(self, id)).ok();
    }
}

fn refusal(error: BroadcastError) -> Refusal {
    match error {
        BroadcastError::Full | BroadcastError::Busy => Refusal::Wait,
        BroadcastError::TooLarge { .. } => Refusal::TooLarge,
        _ => Refusal::Stopped,
    }
}

/// Repeats a command while its queue is full. Lanes never wait for consumers, so it empties.
fn insist(command: impl Fn() -> Result<(), CommandError>) -> Result<(), CommandError> {
    for attempt in 0_u32.. {
        match command() {
            Err(CommandError::Busy) if attempt < 100 => std::thread::yield_now(),
            Err(CommandError::Busy) => std::thread::sleep(Duration::from_micros(50)),
            done => return done,
        }
    }
    Ok(())
}

impl Feed for Deliveries {
    fn try_next(&mut self) -> Option<Arrival> {
        self.try_recv().ok().map(arrival)
    }

    fn next(&mut self, wait: Duration) -> Option<Arrival> {
        self.recv_timeout(wait).ok().map(arrival)
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Arrival> {
        match pin!(Deliveries::recv_async(self)).poll(context) {
            Poll::Ready(Some(event)) => Poll::Ready(arrival(event)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}

fn arrival(event: Event) -> Arrival {
    match event {
        Event::Delivered { artifact, .. } => Arrival::Delivered { id: artifact.id, bytes: artifact.bytes },
        Event::Withdrawn { id } => Arrival::Withdrawn { id },
        Event::Refused { id, by, reason } => Arrival::Refused { id, by, reason },
    }
}

/// What these nodes have counted, summed.
pub(crate) fn counters<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> Counters {
    let mut sum = Counters::default();
    for stats in nodes.into_iter().map(Node::stats) {
        sum.add(&Counters {
            bodies_received: stats.engine.bodies_received,
            bodies_delivered: stats.engine.delivered,
            relays: stats.engine.relays,
            relay_adverts: stats.engine.relay_adverts_sent,
            relay_advert_bytes: stats.engine.relay_advert_bytes_sent,
            udp_bytes_sent: stats.quic.traffic.bytes_out,
            datagrams_sent: stats.quic.traffic.datagrams_out,
            sends: stats.quic.traffic.transmits,
            packets_lost: stats.quic.traffic.lost_packets,
            handshakes_refused: stats.quic.rejections(),
        });
    }
    sum
}

/// The nodes of this process.
pub(crate) struct Nodes(pub(crate) Vec<Node>);

impl Nodes {
    /// The first of them.
    pub(crate) fn node(&self) -> Option<&Node> {
        self.0.first()
    }
}

impl Host for Nodes {
    fn counters(&self) -> Counters {
        counters(&self.0)
    }

    fn shutdown(self: Box<Self>, deadline: Duration) -> Result<(), Fault> {
        let failed = self.0.iter().any(|node| !node.is_healthy());
        // One after another: each has said farewell by the time the next is asked, in microseconds as a rule.
        let late = self.0.into_iter().filter_map(|node| (!node.shutdown(deadline)).then_some(())).count();
        match (failed, late) {
            (true, _) => Err(Fault::new(Exit::Software, "a lane has failed; its log line says why")),
            (false, 0) => Ok(()),
            (false, late) => Err(Fault::new(
                Exit::Software,
                format!("{late} nodes did not end within {} s", deadline.as_secs_f64()),
            )),
        }
    }
}

impl From<StartError> for Fault {
    fn from(error: StartError) -> Fault {
        let exit = match error {
            StartError::Registry(error) => return error.into(),
            StartError::NotMember { .. } | StartError::Settings(_) => Exit::Config,
            StartError::Bind(BindError::InUse { .. } | BindError::NotLocal { .. }) => Exit::Unavailable,
            StartError::Bind(BindError::Denied { .. }) => Exit::Permission,
            StartError::Transport(_) => Exit::Software,
            // The host: no io_uring, too little locked memory, no such core.
            _ => Exit::Os,
        };
        Fault::new(exit, error.to_string())
    }
}
