//! A member that speaks QUIC by hand: it fetches whatever the maker adverts, until it is told to read nothing. Then it
//! acknowledges what comes and leaves it unread, so that flow control closes; a node of ours cannot be made to do that. What is
//! aborted meanwhile is reset, which gives its credit back (RFC 9000 §4.5): all that it had asked for may come, and nothing more.
//!
//! [`Reader`] is one lane: sockets and connections. What it makes of their streams is in [`Reading`].

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use corecast::config::{Granted, Limits, Settings};
use corecast::node::io::{Io, IoLimits, MAX_SEND_BYTES, Port, SocketBuffers, SyscallIo, bind};
use corecast::sync::WakeWord;
use corecast::types::{Ecn, Received, Transmit};
use corecast::wire::Hello;
use corecast::{Identity, Membership, NodeId};
use quinn_proto::crypto::rustls::QuicClientConfig;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, EcnCodepoint, Endpoint, EndpointConfig, Event,
    IdleTimeout, ServerConfig, TransportConfig, VarInt,
};

use crate::raw_keys;
use crate::reading::Reading;
use crate::subnet::fault::{Exit, Fault};

/// How often it looks whether it is to read, or to end.
const GLANCE: Duration = Duration::from_millis(5);
/// Batches taken from the socket in one turn.
const BATCHES: usize = 16;
/// Datagrams that one transmit joins.
const SEGMENTS: usize = 16;

/// What it is told.
#[derive(Debug, Default)]
pub(crate) struct Words {
    pub(crate) held: AtomicBool,
    pub(crate) over: AtomicBool,
    /// What it says: bytes that came from the maker while it read nothing, as UDP payload.
    pub(crate) unread_bytes: AtomicU64,
}

/// What to be.
pub(crate) struct Part {
    pub(crate) identity: Identity,
    pub(crate) membership: Membership,
    pub(crate) settings: Settings,
    pub(crate) lane: u16,
    /// Slots of the topic that it opens.
    pub(crate) slots: u32,
    /// Whose artifacts it takes.
    pub(crate) maker: NodeId,
}

struct Link {
    peer: SocketAddr,
    connection: Connection,
    connected: bool,
    /// Of the maker's connections; nobody else makes artifacts.
    reading: Option<Reading>,
}

/// See the module.
pub(crate) struct Reader {
    io: SyscallIo,
    port: Port,
    endpoint: Endpoint,
    client: ClientConfig,
    hello: Hello,
    limits: Limits,
    slots: u32,
    /// Those that it dials, and all others, at this lane's addresses.
    dials: Vec<SocketAddr>,
    others: Vec<SocketAddr>,
    maker: SocketAddr,
    links: Vec<Option<Link>>,
    received: VecDeque<Received>,
}

fn wrong(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Exit::Software, format!("the member by hand: {error}"))
}

fn out_of_memory(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Exit::Os, format!("the member by hand: {error}"))
}

impl Reader {
    /// Opens its socket; the handshakes begin with [`Reader::run`].
    pub(crate) fn new(part: &Part) -> Result<Reader, Fault> {
        let own = part.identity.id();
        let address = |id: &NodeId| {
            let index = part.membership.index_of(id)?;
            let mut address = *part.membership.members().get(index.index())?.addresses.first()?;
            address.set_port(address.port() + part.lane);
            Some(address)
        };
        let ids = part.membership.members().iter().map(|member| member.id).filter(|id| *id != own);
        let (others, dials) = (
            ids.clone().filter_map(|id| address(&id)),
            ids.filter(|id| own < *id).filter_map(|id| address(&id)),
        );
        let (others, dials) = (others.collect(), dials.collect());
        let here = address(&own).ok_or_else(|| wrong(&"it is no member"))?;
        let maker = address(&part.maker).ok_or_else(|| wrong(&"the maker is no member"))?;
        let wanted =
            SocketBuffers { receive: part.settings.socket_buffer, send: part.settings.socket_buffer };
        let (socket, granted) = bind(here, wanted)
            .map_err(|error| Fault::new(Exit::Unavailable, format!("the member by hand: {error}")))?;
        let wake = Arc::new(WakeWord::new().map_err(|error| out_of_memory(&error))?);
        let mut io = SyscallIo::new(wake, IoLimits::default());
        let port = io.open(socket).map_err(|error| out_of_memory(&error))?;
        let granted = Granted { receive: granted.receive, send: granted.send };
        let members = part.membership.members().len();
        let limits = Limits::derive(&part.settings, members, part.membership.lanes(), granted);
        let (client, server) = raw_keys::configs(&part.identity)?;
        let transport = Arc::new(transport(&limits, &part.settings)?);
        Ok(Reader {
            io,
            port,
            endpoint: endpoint(server, &transport, part.settings.mtu)?,
            client: dialling(client, &transport),
            hello: Hello {
                subnet: part.membership.subnet_hash(),
                lanes: part.membership.lanes(),
                lane: part.lane,
                registry: part.membership.version(),
                boot: u64::from(std::process::id()),
            },
            limits,
            slots: part.slots,
            dials,
            others,
            maker,
            links: Vec::new(),
            received: VecDeque::new(),
        })
    }

    /// Takes part until it is told to end: calls `ready` when it is connected with all others, and `deliver` with each body.
    pub(crate) fn run(
        mut self,
        words: &Words,
        mut ready: impl FnMut(),
        mut deliver: impl FnMut(&[u8]) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let (mut told, mut counted) = (false, 0);
        while !words.over.load(Ordering::Relaxed) {
            let now = Instant::now();
            self.dial(now)?;
            let received = self.receive(now);
            self.handle_timeouts(now);
            self.drive()?;
            let came = self.bytes_in().saturating_sub(std::mem::replace(&mut counted, self.bytes_in()));
            match words.held.load(Ordering::Relaxed) {
                true => drop(words.unread_bytes.fetch_add(came, Ordering::Relaxed)),
                false => self.read(&mut deliver)?,
            }
            self.transmit(now);
            if !told && self.others.iter().all(|other| self.is_connected(other)) {
                told = true;
                ready();
            }
            let wait = if received { Duration::ZERO } else { self.next_wait() };
            self.io.park(Some(wait)).map_err(|error| out_of_memory(&error))?;
        }
        Ok(())
    }

    fn read(&mut self, deliver: &mut impl FnMut(&[u8]) -> Result<(), Fault>) -> Result<(), Fault> {
        for link in self.links.iter_mut().flatten() {
            if let Some(reading) = &mut link.reading {
                reading.read(&mut link.connection, deliver).map_err(|error| wrong(&error))?;
            }
        }
        Ok(())
    }

    fn is_connected(&self, peer: &SocketAddr) -> bool {
        self.links.iter().flatten().any(|link| link.connected && link.peer == *peer)
    }

    /// Dials whom it is to dial, and has no connection with.
    fn dial(&mut self, now: Instant) -> Result<(), Fault> {
        for at in 0..self.dials.len() {
            let peer = self.dials[at];
            if self.links.iter().flatten().any(|link| link.peer == peer) {
                continue;
            }
            let dialled = self.endpoint.connect(now, self.client.clone(), peer, "corecast");
            let (handle, connection) = dialled.map_err(|error| wrong(&error))?;
            self.insert(handle, peer, connection);
        }
        Ok(())
    }

    fn insert(
        &mut self,
        ConnectionHandle(handle): ConnectionHandle,
        peer: SocketAddr,
        connection: Connection,
    ) {
        if self.links.len() <= handle {
            self.links.resize_with(handle + 1, || None);
        }
        self.links[handle] = Some(Link { peer, connection, connected: false, reading: None });
    }

    /// Whether anything came.
    fn receive(&mut self, now: Instant) -> bool {
        let Reader { io, received, .. } = self;
        io.receive(BATCHES, &mut |_, batch| received.push_back(batch));
        let any = !self.received.is_empty();
        while let Some(Received { from, ecn, stride, mut data }) = self.received.pop_front() {
            let ecn = ecn.and_then(|ecn| EcnCodepoint::from_bits(ecn.bits()));
            while !data.is_empty() {
                let datagram = data.split_to(stride.clamp(1, data.len()));
                let mut answer = Vec::new();
                match self.endpoint.handle(now, from, None, ecn, datagram, &mut answer) {
                    Some(DatagramEvent::ConnectionEvent(ConnectionHandle(handle), event)) => {
                        if let Some(Some(link)) = self.links.get_mut(handle) {
                            link.connection.handle_event(event);
                        }
                    }
                    Some(DatagramEvent::NewConnection(incoming)) => {
                        // Whoever it is: if that comes to nothing, its own retries will tell.
                        if let Ok((handle, connection)) =
                            self.endpoint.accept(incoming, now, &mut answer, None)
                        {
                            self.insert(handle, from, connection);
                        }
                    }
                    Some(DatagramEvent::Response(transmit)) => self.send(&transmit, &answer),
                    None => {}
                }
            }
        }
        any
    }

    fn handle_timeouts(&mut self, now: Instant) {
        for link in self.links.iter_mut().flatten() {
            if link.connection.poll_timeout().is_some_and(|at| at <= now) {
                link.connection.handle_timeout(now);
            }
        }
    }

    /// What became of the connections.
    fn drive(&mut self) -> Result<(), Fault> {
        for handle in 0..self.links.len() {
            let Some(link) = &mut self.links[handle] else { continue };
            let mut drained = false;
            while let Some(event) = link.connection.poll_endpoint_events() {
                drained |= event.is_drained();
                if let Some(event) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                    link.connection.handle_event(event);
                }
            }
            while let Some(event) = link.connection.poll() {
                match event {
                    Event::Connected => {
                        link.connected = true;
                        let artifact_bytes = self.limits.artifact_bytes;
                        let mut reading = Reading::new(self.hello, self.slots, artifact_bytes);
                        reading.greet(&mut link.connection).map_err(|error| wrong(&error))?;
                        link.reading = (link.peer == self.maker).then_some(reading);
                    }
                    Event::ConnectionLost { reason } if link.reading.take().is_some() => {
                        return Err(wrong(&format!("the maker's connection is lost: {reason}")));
                    }
                    Event::ConnectionLost { .. } => link.connected = false,
                    Event::Stream(event) => {
                        link.reading.iter_mut().for_each(|reading| reading.handle_event(&event));
                    }
                    _ => {}
                }
            }
            if drained {
                self.links[handle] = None;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, now: Instant) {
        for handle in 0..self.links.len() {
            while let (Some(link), Some(mut buffer)) = (&mut self.links[handle], self.io.take_buffer()) {
                let mtu = usize::from(link.connection.current_mtu()).max(1);
                let segments = SEGMENTS.min(MAX_SEND_BYTES / mtu).max(1);
                let Some(transmit) = link.connection.poll_transmit(now, segments, &mut buffer) else {
                    self.io.return_buffer(buffer);
                    break;
                };
                self.io.send(self.port, &of_quinn(&transmit), buffer);
            }
        }
    }

    /// Bytes that have come from the maker, as UDP payload.
    fn bytes_in(&self) -> u64 {
        let links = self.links.iter().flatten().filter(|link| link.peer == self.maker);
        links.map(|link| link.connection.stats().udp_rx.bytes).sum()
    }

    /// A packet of the endpoint itself.
    fn send(&mut self, transmit: &quinn_proto::Transmit, bytes: &[u8]) {
        if let Some(mut buffer) = self.io.take_buffer() {
            buffer.extend_from_slice(&bytes[..transmit.size.min(bytes.len())]);
            self.io.send(self.port, &of_quinn(transmit), buffer);
        }
    }

    fn next_wait(&mut self) -> Duration {
        let due = self.links.iter_mut().flatten().filter_map(|link| link.connection.poll_timeout()).min();
        due.map_or(GLANCE, |at| at.saturating_duration_since(Instant::now()).min(GLANCE))
    }
}

fn of_quinn(transmit: &quinn_proto::Transmit) -> Transmit {
    Transmit {
        to: transmit.destination,
        ecn: transmit.ecn.and_then(|ecn| Ecn::from_bits(ecn as u8)),
        segment: transmit.segment_size.unwrap_or(transmit.size),
        len: transmit.size,
    }
}

/// As a node's, as far as the other side can tell.
fn transport(limits: &Limits, settings: &Settings) -> Result<TransportConfig, Fault> {
    let window = |bytes: u64| VarInt::from_u64(bytes).map_err(|error| wrong(&error));
    let idle = IdleTimeout::try_from(settings.idle_timeout).map_err(|error| wrong(&error))?;
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_uni_streams(limits.uni_streams.into())
        .max_concurrent_bidi_streams(limits.bidi_streams.into())
        .stream_receive_window(window(limits.stream_window)?)
        .receive_window(window(limits.connection_window)?)
        .initial_rtt(Duration::from_millis(50))
        .initial_mtu(settings.mtu)
        .min_mtu(1200)
        .mtu_discovery_config(None)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(settings.idle_timeout / 5));
    Ok(transport)
}

fn endpoint(
    server: quinn_proto::crypto::rustls::QuicServerConfig,
    transport: &Arc<TransportConfig>,
    mtu: u16,
) -> Result<Endpoint, Fault> {
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(mtu.max(1472)).map_err(|error| wrong(&error))?;
    let mut server = ServerConfig::with_crypto(Arc::new(server));
    server.transport_config(Arc::clone(transport));
    Ok(Endpoint::new(Arc::new(config), Some(Arc::new(server)), true, None))
}

fn dialling(client: QuicClientConfig, transport: &Arc<TransportConfig>) -> ClientConfig {
    let mut client = ClientConfig::new(Arc::new(client));
    client.transport_config(Arc::clone(transport));
    client
}
