//! One lane of one node on its executor: transport and engine, joined turn by turn.

mod open;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::config::TopicConfig;
use crate::engine::{Command, Effect, Effects, Engine, Event, Trace};
use crate::quic::{self, Quic};
use crate::sync::Consumer;
use crate::types::{ArtifactId, Class, Instant, PeerIndex, Received, TopicId, Weights};
use crate::wire::CloseCode;

use super::delivery::{Disposition, Offered, Outlet};
use super::io::{Io, Port};
use super::stats::{LaneBoard, LaneFigures, LaneState};
use super::topic::{Room, TopicParts};
use open::OpenTopic;

/// What the replica's threads send a lane.
#[derive(Debug)]
pub(super) enum LaneCommand {
    Engine(Command),
    /// Where an artifact is: the lane answers with what it knows, and when.
    Trace(TopicId, ArtifactId, Sender<(Instant, Trace)>),
    /// A topic opens; the lane answers when it has.
    Topic(Box<NewTopic>),
}

// As the bounds count them, with the queue's own word.
const _: () = assert!(size_of::<LaneCommand>() + 8 <= 128);

#[derive(Debug)]
pub(super) struct NewTopic {
    pub(super) config: TopicConfig,
    pub(super) outlet: Outlet,
    pub(super) parts: TopicParts,
    pub(super) opened: Sender<()>,
}

/// What a lane is made of; see [`Lane::new`].
pub(super) struct LaneParts {
    pub(super) index: u16,
    pub(super) quic: Quic,
    pub(super) engine: Engine,
    pub(super) commands: Consumer<LaneCommand>,
    pub(super) stopping: Arc<AtomicBool>,
    pub(super) board: Arc<LaneBoard>,
    pub(super) members: usize,
    pub(super) weights: Weights,
}

/// Whether a turn found work, so that another should follow at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turned {
    Idle,
    Busy,
    /// The lane has stopped and wants to be dropped.
    Ended,
}

/// See the module.
pub(super) struct Lane {
    parts: LaneParts,
    topics: Vec<OpenTopic>,
    effects: Effects,
    received: bool,
    closing: Option<Instant>,
    figures: LaneFigures,
    unpublished: bool,
    published: Instant,
}

impl Lane {
    /// Commands taken in one turn.
    const COMMANDS: usize = 256;
    /// Things given to one peer's link in one turn.
    const OUTGOING: usize = 64;
    /// Batches of datagrams sent in one turn. Each takes tens of microseconds to seal, in which the executor's other lanes and
    /// whatever is urgent wait: with 32 a probe beside bulk waited eight times as long (p99, 13 nodes), and no more was sent.
    const TRANSMITS: usize = 8;
    /// Events handed to one topic's consumer in one turn.
    const EVENTS: usize = 256;
    /// Time between two publications of the figures, when there is no pause before.
    const PUBLISH: Duration = Duration::from_millis(5);
    /// How long a closing lane waits for its peers' farewell.
    const FAREWELL: Duration = Duration::from_millis(100);

    pub(super) fn new(parts: LaneParts) -> Lane {
        Lane {
            parts,
            topics: Vec::new(),
            effects: Vec::new(),
            received: false,
            closing: None,
            figures: LaneFigures::default(),
            unpublished: true,
            published: Instant::ZERO,
        }
    }

    /// Takes datagrams in. The turn follows.
    pub(super) fn handle_received(&mut self, now: Instant, received: Received) {
        self.parts.quic.handle_received(now, received);
        self.received = true;
    }

    /// One turn, always in the same order; each step is bounded, and a bound that was hit makes the turn `Busy`.
    pub(super) fn turn(&mut self, now: Instant, io: &mut impl Io, port: Port) -> Turned {
        let mut busy = std::mem::take(&mut self.received);
        if self.parts.stopping.load(Ordering::Relaxed) && self.closing.is_none() {
            self.parts.quic.close(now, CloseCode::Shutdown);
            self.closing = Some(now + Self::FAREWELL);
            self.topics.iter().for_each(OpenTopic::close);
        }
        busy |= self.take_commands(now);
        busy |= self.timers(now);
        busy |= self.link_events(now);
        busy |= self.ask_filters(now);
        self.carry_out(now);
        busy |= self.fill(now);
        busy |= self.transmit(now, io, port);
        busy |= self.deliver(now);
        busy |= self.topics.iter_mut().fold(false, |busy, topic| busy | topic.call_waiting());
        self.figures.turns += 1;
        self.unpublished |= busy;
        if now.saturating_since(self.published) >= Self::PUBLISH {
            self.published = now;
            self.publish();
        }
        match self.closing {
            Some(end) if now >= end || self.parts.quic.is_drained() => Turned::Ended,
            _ if busy => Turned::Busy,
            _ => Turned::Idle,
        }
    }

    /// Whether commands wait. To be asked once more after announcing to park.
    pub(super) fn has_commands(&self) -> bool {
        !self.parts.commands.is_empty()
            || self.topics.iter().any(|topic| topic.desk.has_work())
            || (self.closing.is_none() && self.parts.stopping.load(Ordering::Relaxed))
    }

    /// When the next turn is due without any input.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let engine = self.parts.engine.poll_timeout().map(|(at, _)| at);
        let filters = self.topics.iter().filter_map(|topic| topic.desk.deadline()).min();
        [engine, self.parts.quic.poll_timeout(), self.closing, filters].into_iter().flatten().min()
    }

    /// Publishes the figures when something has changed.
    pub(super) fn publish(&mut self) {
        if !std::mem::take(&mut self.unpublished) {
            return;
        }
        self.figures.engine = *self.parts.engine.counters();
        self.figures.quic = *self.parts.quic.counters();
        self.figures.connected_peers = self.parts.quic.connected();
        self.parts.board.publish(&self.figures);
        for topic in &self.topics {
            let backlog = topic.parts.lags.publish(self.parts.index, self.parts.engine.lags(topic.id));
            let (counters, gauges) = self.parts.engine.topic_figures(topic.id, backlog);
            self.unpublished |= !topic.parts.board.publish(self.parts.index, counters, gauges);
        }
    }

    /// The lane's last word.
    pub(super) fn end(mut self, state: LaneState) {
        self.unpublished = true;
        self.publish();
        let board = self.parts.board.clone();
        drop(self);
        board.set_state(state);
    }

    fn link_events(&mut self, now: Instant) -> bool {
        let (quic, engine, fx) = (&mut self.parts.quic, &mut self.parts.engine, &mut self.effects);
        let mut busy = false;
        while let Some((peer, event)) = quic.poll_event() {
            busy = true;
            match event {
                quic::Event::Connected { connection } => engine.handle_connected(peer, connection, now, fx),
                quic::Event::Disconnected { .. } => engine.handle_disconnected(peer, now, fx),
                quic::Event::Link(incoming) => engine.handle_link(peer, incoming, now, fx),
            }
        }
        busy
    }

    /// Takes commands, the most urgent first; but some of every class.
    fn take_commands(&mut self, now: Instant) -> bool {
        let mut taken = 0;
        for class in Class::ALL {
            for _ in 0..self.parts.weights.part(class, Self::COMMANDS / 2) {
                let Some(command) = self.parts.commands.pop_class(class) else { break };
                self.take_command(command, now);
                taken += 1;
            }
        }
        while taken < Self::COMMANDS
            && let Some((_, command)) = self.parts.commands.pop()
        {
            self.take_command(command, now);
            taken += 1;
        }
        if taken > 0 {
            self.unpublished = true;
            self.topics.iter_mut().for_each(|topic| topic.freed |= Room::QUEUE);
        }
        taken >= Self::COMMANDS
    }

    fn take_command(&mut self, command: LaneCommand, now: Instant) {
        match command {
            LaneCommand::Engine(command) => {
                self.parts.engine.handle_command(command, now, &mut self.effects);
            }
            LaneCommand::Trace(topic, id, asked) => {
                // Who asked may have given up waiting.
                let _ = asked.try_send((now, self.parts.engine.trace(topic, &id)));
            }
            LaneCommand::Topic(new) => self.open_topic(*new),
        }
    }

    fn open_topic(&mut self, new: NewTopic) {
        let topic = OpenTopic::new(self.parts.index, &new.config, new.outlet, new.parts);
        if self.parts.engine.handle_topic(new.config)
            && let Some(stages) = self.parts.engine.stages(topic.id)
        {
            topic.parts.board.show(self.parts.index, stages);
            self.topics.push(topic);
        }
        // Who opened the topic may have given up waiting.
        let _ = new.opened.try_send(());
    }

    fn ask_filters(&mut self, now: Instant) -> bool {
        let (engine, fx) = (&mut self.parts.engine, &mut self.effects);
        self.topics.iter_mut().fold(false, |busy, topic| busy | topic.desk.turn(engine, now, fx))
    }

    fn timers(&mut self, now: Instant) -> bool {
        let mut busy = false;
        if self.parts.quic.poll_timeout().is_some_and(|at| at <= now) {
            self.parts.quic.handle_timeout(now);
            busy = true;
        }
        if self.parts.engine.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.parts.engine.handle_timeout(now, &mut self.effects);
            busy = true;
        }
        busy
    }

    fn carry_out(&mut self, now: Instant) {
        for effect in self.effects.drain(..) {
            match effect {
                Effect::Reset { peer, key } => self.parts.quic.reset(peer, key),
                Effect::Disconnect { peer, code } => self.parts.quic.disconnect(now, peer, code),
                Effect::Freed { topic, bytes } => {
                    if let Some(topic) = self.topics.iter_mut().find(|open| open.id == topic) {
                        topic.free(bytes);
                    }
                }
            }
        }
    }

    fn fill(&mut self, now: Instant) -> bool {
        let (quic, engine) = (&mut self.parts.quic, &mut self.parts.engine);
        let mut busy = false;
        quic.set_now(now);
        for peer in (0..self.parts.members as u16).map(PeerIndex) {
            if !engine.has_outgoing(peer) {
                continue;
            }
            for _ in 0..Self::OUTGOING {
                let room = quic.room(peer);
                if room.is_empty() {
                    engine.handle_full(peer);
                }
                match engine.poll_outgoing(peer, room, now) {
                    Some(outgoing) => quic.send(peer, outgoing),
                    // Only now is it known of every class whether it has something: what is queued is written by their shares.
                    None if quic.write(peer) && engine.has_outgoing(peer) => (),
                    None => break,
                }
                busy = true;
            }
        }
        busy
    }

    fn transmit(&mut self, now: Instant, io: &mut impl Io, port: Port) -> bool {
        self.parts.quic.begin_turn();
        for sent in 0..Self::TRANSMITS {
            let Some(mut buffer) = io.take_buffer() else { return sent > 0 };
            match self.parts.quic.poll_transmit(now, &mut buffer) {
                Some(transmit) => io.send(port, &transmit, buffer),
                None => {
                    io.return_buffer(buffer);
                    return sent > 0;
                }
            }
        }
        true
    }

    fn deliver(&mut self, now: Instant) -> bool {
        let mut busy = false;
        for topic in &self.topics {
            if !self.parts.engine.has_events(topic.id) {
                continue;
            }
            let mut offered = 0;
            while offered < Self::EVENTS && topic.outlet.has_room() {
                let Some((event, since)) = self.parts.engine.poll_waiting(topic.id, now) else { break };
                offered += 1;
                if let (Outlet::Inline(_), Some(since)) = (&topic.outlet, since) {
                    topic.parts.board.given(self.parts.index, since, now);
                }
                let (id, disposition) = match topic.outlet.offer(event, since) {
                    Offered::Seen(id, disposition) => (id, disposition),
                    Offered::Gone(Event::Delivered { artifact, .. }) => (artifact.id, Disposition::Release),
                    Offered::Taken | Offered::Gone(_) => continue,
                };
                if let Some(command) = topic.command(id, disposition) {
                    self.parts.engine.handle_command(command, now, &mut self.effects);
                }
            }
            if offered > 0 {
                topic.outlet.announce();
                busy = true;
            }
        }
        busy
    }
}
