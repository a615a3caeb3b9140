//! The library's door: start a node, open topics, stop.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, bounded};
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::{ConfigError, Granted, Limits, Settings, TopicConfig, TopicConfigError};
use crate::engine::{Engine, EngineConfig};
use crate::metrics::{StageTimes, Stages};
use crate::quic::{Identity, Quic, QuicConfig, QuicError};
use crate::sync::{Producer, PushError, queue};
use crate::types::{ArtifactId, Class, HashKind, Membership, NodeId, PerClass, Rng, TopicId};
use crate::wire::Hello;

use super::delivery::{self, Consumer, Deliveries, Outlet};
use super::driver::Control;
use super::executor::{ExecutorConfig, Executors};
use super::io::{BindError, SocketBuffers, bind};
use super::lane::{Lane, LaneCommand, LaneParts, NewTopic};
use super::preflight::PreflightError;
use super::registry::{RegistryError, RegistrySource};
use super::stats::{LaneBoard, LaneState, Stats};
use super::topic::{CommandError, Topic, TopicBoard, TopicParts, TopicReport, TopicStats};
use super::trace::{Trace, TraceError};

/// What a node is started with.
#[non_exhaustive]
pub struct Config {
    /// The node's key: its name and its proof.
    pub identity: Identity,
    /// Who is a member.
    pub registry: Box<dyn RegistrySource>,
    /// Listen on this address instead of the first one that the registry has for this node.
    pub bind: Option<IpAddr>,
    /// Sizes and times.
    pub settings: Settings,
    /// Cores, when the node has executors of its own ([`Node::start`]).
    pub executors: ExecutorConfig,
}

impl Config {
    /// A configuration with the defaults.
    pub fn new(identity: Identity, registry: impl RegistrySource + 'static) -> Config {
        Config {
            identity,
            registry: Box::new(registry),
            bind: None,
            settings: Settings::default(),
            executors: ExecutorConfig::default(),
        }
    }
}

/// Why a node did not start. Nothing of it is left behind.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The host cannot carry it.
    #[error(transparent)]
    Host(PreflightError),
    /// An executor failed to start.
    #[error("the executor of core {core} did not start: {why}")]
    Executor {
        /// Its core.
        core: usize,
        /// What the system said.
        why: String,
    },
    /// There is no membership record.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The node is no member.
    #[error(
        "this node's key {id} is not in the registry of subnet {subnet:?}; add it with `corecast registry add`"
    )]
    NotMember {
        /// Its id.
        id: NodeId,
        /// The subnet's name.
        subnet: String,
    },
    /// A setting is out of range.
    #[error(transparent)]
    Settings(#[from] ConfigError),
    /// A lane's port cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The transport refuses its configuration.
    #[error(transparent)]
    Transport(#[from] QuicError),
    /// The system gave no randomness.
    #[error("the system's random source failed")]
    Randomness,
}

/// Why a topic was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// A setting is out of range.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
    /// It is open already.
    #[error("topic {0} is open already")]
    Open(TopicId),
    /// The node has stopped, or a lane does not answer.
    #[error("the node has stopped")]
    Stopped,
}

struct LaneHandle {
    commands: Producer<LaneCommand>,
    board: Arc<LaneBoard>,
    /// Of its links.
    stages: Arc<PerClass<Stages>>,
    /// Which executor runs it.
    turn: usize,
}

/// A topic as the node remembers it.
struct OpenedTopic {
    id: TopicId,
    name: String,
    class: Class,
    board: Arc<TopicBoard>,
}

impl OpenedTopic {
    fn report(&self) -> TopicReport {
        let (stats, stages) = (self.board.sum(), self.board.times(self.class));
        TopicReport { id: self.id, name: self.name.clone(), class: self.class, stats, stages }
    }
}

type Hashes = Arc<RwLock<BTreeMap<TopicId, HashKind>>>;

/// What a node's handles share.
pub(super) struct Inner {
    executors: Executors,
    id: NodeId,
    membership: Arc<Membership>,
    lanes: Vec<LaneHandle>,
    stopping: Arc<AtomicBool>,
    hashes: Hashes,
    limits: Mutex<Limits>,
    topics: Mutex<Vec<OpenedTopic>>,
}

/// A running node. Dropping it stops it without waiting; see [`Node::shutdown`].
pub struct Node {
    inner: Arc<Inner>,
}

impl Node {
    /// Starts a node on executors of its own ([`Config::executors`]).
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start(config: Config) -> Result<Node, StartError> {
        let executors = Executors::start(&config.executors)?;
        Node::start_on(&executors, config)
    }

    /// Starts a node on executors that it may share with others. Its lanes are dealt to them in turn.
    ///
    /// # Errors
    /// See [`StartError`].
    pub fn start_on(executors: &Executors, mut config: Config) -> Result<Node, StartError> {
        config.settings.check()?;
        let membership = config.registry.load()?;
        let id = config.identity.id();
        let me = membership.index_of(&id).and_then(|index| membership.members().get(index.index()));
        let Some(me) = me else {
            return Err(StartError::NotMember { id, subnet: membership.subnet().to_owned() });
        };
        let buffer = config.settings.socket_buffer;
        let wanted = SocketBuffers { receive: buffer, send: buffer };
        let mut sockets = Vec::new();
        let listen = me.addresses.first().copied();
        for lane in 0..membership.lanes() {
            let Some(mut address) = listen else { break };
            address.set_ip(config.bind.unwrap_or(address.ip()));
            address.set_port(address.port() + lane);
            sockets.push(bind(address, wanted)?);
        }
        let least = |pick: fn(&SocketBuffers) -> usize| {
            sockets.iter().map(|(_, granted)| pick(granted)).min().unwrap_or(0)
        };
        let granted =
            Granted { receive: least(|granted| granted.receive), send: least(|granted| granted.send) };
        let limits =
            Limits::derive(&config.settings, membership.members().len(), membership.lanes(), granted);
        let mut seed = [0; 8];
        SystemRandom::new().fill(&mut seed).map_err(|_| StartError::Randomness)?;
        let mut plan = Plan {
            executors,
            config: &config,
            membership: &membership,
            limits: &limits,
            hashes: Hashes::default(),
            stopping: Arc::default(),
            rng: Rng::new(u64::from_le_bytes(seed)),
            boot: u64::from_le_bytes(seed),
        };
        let mut lanes = Vec::new();
        let mut ready = Vec::new();
        for index in 0..membership.lanes() {
            let (handle, lane) = plan.lane(index)?;
            lanes.push(handle);
            ready.push(lane);
        }
        let (hashes, stopping) = (plan.hashes, plan.stopping);
        for ((lane, (socket, _)), handle) in ready.into_iter().zip(sockets).zip(&lanes) {
            executors.tell(handle.turn, Control::Add(Box::new(lane), socket));
        }
        let executors = executors.clone();
        let limits = Mutex::new(limits);
        let topics = Mutex::default();
        let inner = Inner { executors, id, membership, lanes, stopping, hashes, limits, topics };
        Ok(Node { inner: Arc::new(inner) })
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.inner.id
    }

    /// What its lanes run on.
    pub fn executors(&self) -> &Executors {
        &self.inner.executors
    }

    /// The membership record in use.
    pub fn membership(&self) -> &Membership {
        &self.inner.membership
    }

    /// The node's bounds and their worst-case sum, with the topics opened so far.
    pub fn limits(&self) -> Limits {
        self.inner.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts to take part in a topic. Waits until every lane has opened it, microseconds as a rule.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub fn topic(&self, config: TopicConfig) -> Result<(Topic, Deliveries), TopicError> {
        let wakes = self.inner.lanes.iter().map(|lane| lane.commands.wake_word().clone()).collect();
        let board = self.board();
        let (outlet, deliveries) = delivery::queue(config.queue, config.pending_bytes, wakes, board.clone());
        Ok((self.open(config, outlet, board)?, deliveries))
    }

    /// The same for a consumer that every lane calls on its own thread with each event, as it comes: no queue, no wake-up of
    /// another thread, and [`TopicConfig::queue`] bounds nothing.
    ///
    /// # Errors
    /// See [`TopicError`].
    pub fn topic_inline(
        &self,
        config: TopicConfig,
        consumer: impl Consumer + 'static,
    ) -> Result<Topic, TopicError> {
        self.open(config, Outlet::Inline(Arc::new(consumer)), self.board())
    }

    fn board(&self) -> Arc<TopicBoard> {
        Arc::new(TopicBoard::new(self.inner.lanes(), self.inner.executors.clock()))
    }

    fn open(&self, config: TopicConfig, outlet: Outlet, board: Arc<TopicBoard>) -> Result<Topic, TopicError> {
        let inner = &self.inner;
        let artifact_bytes = self.limits().artifact_bytes;
        config.check(artifact_bytes)?;
        {
            let mut hashes = inner.hashes.write().unwrap_or_else(PoisonError::into_inner);
            if hashes.insert(config.id, config.hash).is_some() {
                return Err(TopicError::Open(config.id));
            }
        }
        let wakes = inner.lanes.iter().map(|lane| lane.commands.wake_word().clone()).collect();
        let parts = TopicParts::new(&config, wakes, inner.membership.members().len(), board.clone());
        let (opened, opening) = bounded(inner.lanes.len());
        for (index, lane) in inner.lanes.iter().enumerate() {
            let mut command = LaneCommand::Topic(Box::new(NewTopic {
                config: parts.gate.config_for(index, &config),
                outlet: outlet.clone(),
                parts: parts.clone(),
                opened: opened.clone(),
            }));
            loop {
                match lane.commands.push(Class::Critical, command) {
                    Ok(()) => break,
                    Err(PushError::Closed(_)) => return Err(TopicError::Stopped),
                    Err(PushError::Full(back)) => {
                        command = back;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
            }
        }
        drop((outlet, opened));
        for _ in &inner.lanes {
            opening.recv().map_err(|_| TopicError::Stopped)?;
        }
        inner.limits.lock().unwrap_or_else(PoisonError::into_inner).add_topic(&config);
        let topic = OpenedTopic { id: config.id, name: config.name.clone(), class: config.class, board };
        inner.topics.lock().unwrap_or_else(PoisonError::into_inner).push(topic);
        Ok(Topic::new(config, artifact_bytes, parts, inner.clone()))
    }

    /// What the node has counted.
    pub fn stats(&self) -> Stats {
        Stats::sum(self.inner.lanes.iter().map(|lane| lane.board.figures()))
    }

    /// The topics that are open, in the order in which they were opened, with what happened in each.
    pub fn topics(&self) -> Vec<TopicReport> {
        let topics = self.inner.topics.lock().unwrap_or_else(PoisonError::into_inner);
        topics.iter().map(OpenedTopic::report).collect()
    }

    /// The topics' figures, summed by class.
    pub fn class_stats(&self) -> PerClass<TopicStats> {
        let mut sums = PerClass::from_fn(|_| TopicStats::default());
        self.topics().iter().for_each(|topic| sums[topic.class].merge(&topic.stats));
        sums
    }

    /// Where artifacts' time has gone since the start, by class and stage: what a lane or a consumer has recorded a moment ago.
    pub fn stages(&self) -> StageTimes {
        let topics = self.inner.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let mut times = StageTimes::default();
        for class in Class::ALL {
            let of = || topics.iter().filter(move |topic| topic.class == class).map(|topic| &topic.board);
            let links = self.inner.lanes.iter().map(|lane| &lane.stages[class]);
            let lanes: Vec<_> = links.chain(of().flat_map(|board| board.shown())).collect();
            times.add(class, &lanes, &of().map(|board| board.waits()).collect::<Vec<_>>());
        }
        times
    }

    /// [`Topic::trace`] in every topic that knows or remembers something of the artifact.
    ///
    /// # Errors
    /// See [`TraceError`].
    pub fn trace(&self, id: &ArtifactId) -> Result<Vec<Trace>, TraceError> {
        let topics: Vec<TopicId> = self.topics().iter().map(|topic| topic.id).collect();
        let traces: Result<Vec<Trace>, TraceError> =
            topics.into_iter().map(|topic| self.inner.trace(topic, id)).collect();
        Ok(traces?.into_iter().filter(|trace| !trace.is_unknown()).collect())
    }

    /// Whether every lane runs. A lane that panicked has not, and nothing goes through it any more.
    pub fn is_healthy(&self) -> bool {
        self.inner.lanes.iter().all(|lane| lane.board.state() == LaneState::Running)
    }

    /// Says farewell to every peer and stops. Waits at most `deadline`; whether all lanes ended in time.
    pub fn shutdown(self, deadline: Duration) -> bool {
        self.inner.stop();
        let deadline = Instant::now() + deadline;
        self.inner.lanes.iter().all(|lane| lane.board.wait_ended(deadline))
    }
}

impl Inner {
    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        self.lanes.iter().for_each(|lane| lane.commands.wake_word().wake());
    }

    pub(super) fn id(&self) -> NodeId {
        self.id
    }

    /// By peer index.
    pub(super) fn members(&self) -> impl Iterator<Item = NodeId> {
        self.membership.members().iter().map(|member| member.id)
    }

    fn lanes(&self) -> u16 {
        self.membership.lanes()
    }

    /// Which lane has an artifact.
    pub(super) fn lane_of(&self, id: &ArtifactId) -> u16 {
        id.lane(self.lanes())
    }

    /// Puts a command into a lane's queue.
    pub(super) fn tell(&self, lane: u16, class: Class, command: LaneCommand) -> Result<(), CommandError> {
        let lane = self.lanes.get(usize::from(lane)).ok_or(CommandError::Stopped)?;
        lane.commands.push(class, command).map_err(|error| match error {
            PushError::Full(_) => CommandError::Busy,
            PushError::Closed(_) => CommandError::Stopped,
        })
    }
}

impl Inner {
    /// Asks the artifact's lane where it is.
    pub(super) fn trace(&self, topic: TopicId, id: &ArtifactId) -> Result<Trace, TraceError> {
        let lane = self.lane_of(id);
        let (asked, answer) = bounded(1);
        self.tell(lane, Class::Critical, LaneCommand::Trace(topic, *id, asked)).map_err(
            |error| match error {
                CommandError::Full | CommandError::Busy => TraceError::Busy,
                CommandError::Stopped => TraceError::Stopped,
            },
        )?;
        let (now, trace) = answer.recv_timeout(Trace::PATIENCE).map_err(|error| match error {
            RecvTimeoutError::Timeout => TraceError::Timeout,
            RecvTimeoutError::Disconnected => TraceError::Stopped,
        })?;
        Ok(Trace::new((topic, *id, lane), self.id, now, trace))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.inner.stop();
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Node({:?} of {:?}, {} lanes)",
            self.id(),
            self.membership().subnet(),
            self.inner.lanes.len()
        )
    }
}

/// What the lanes of one node are built from.
struct Plan<'a> {
    executors: &'a Executors,
    config: &'a Config,
    membership: &'a Arc<Membership>,
    limits: &'a Limits,
    hashes: Hashes,
    stopping: Arc<AtomicBool>,
    rng: Rng,
    boot: u64,
}

impl Plan<'_> {
    fn lane(&mut self, index: u16) -> Result<(LaneHandle, Lane), StartError> {
        let turn = self.executors.deal();
        let (producer, consumer) =
            queue(PerClass([self.config.settings.commands; 4]), self.executors.wake_word(turn));
        let quic = Quic::new(self.quic_config(index))?;
        let board = Arc::<LaneBoard>::default();
        let membership = self.membership;
        let hello = Hello {
            subnet: membership.subnet_hash(),
            lanes: membership.lanes(),
            lane: index,
            registry: membership.version(),
            boot: self.boot,
        };
        let engine = Engine::new(EngineConfig {
            hello,
            members: membership.members().iter().map(|member| member.id).collect(),
            limits: self.limits.clone(),
            relay_grace: self.config.settings.relay_grace,
            seed: self.rng.next_u64(),
        });
        let stages = quic.stages().clone();
        let lane = Lane::new(LaneParts {
            index,
            quic,
            engine,
            commands: consumer,
            stopping: self.stopping.clone(),
            board: board.clone(),
            members: membership.members().len(),
            weights: self.config.settings.weights,
        });
        Ok((LaneHandle { commands: producer, board, stages, turn }, lane))
    }

    fn quic_config(&mut self, lane: u16) -> QuicConfig {
        let Plan { config, limits, .. } = self;
        let Settings { mtu, idle_timeout, prefilter, weights, .. } = config.settings;
        let hashes = self.hashes.clone();
        let hash_of = move |topic| hashes.read().unwrap_or_else(PoisonError::into_inner).get(&topic).copied();
        QuicConfig {
            mtu,
            stream_window: limits.stream_window,
            connection_window: limits.connection_window,
            send_window: limits.send_window,
            urgent_reserve: limits.urgent_reserve,
            weights,
            uni_streams: limits.uni_streams,
            bidi_streams: limits.bidi_streams,
            idle_timeout,
            keep_alive: idle_timeout / 5,
            artifact_limit: limits.artifact_bytes,
            pushes_in_assembly: limits.pushes_in_assembly,
            prefilter,
            ..QuicConfig::new(
                config.identity.clone(),
                self.membership.clone(),
                lane,
                Arc::new(hash_of),
                self.rng.next_u64(),
                self.executors.clock().epoch,
            )
        }
    }
}
