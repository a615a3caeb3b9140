//! From settings, membership and granted buffers to every bound of the node.

use std::fmt;
use std::time::Duration;

use crate::metrics::{Journal, Stages};
use crate::types::{PerClass, Weights, largest_stream_window};
use crate::wire::{MAX_BATCH, MAX_FRAME};

/// What a node's operator may set beyond identity and registry. [`Settings::default`] suits a subnet of up to 40 members.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settings {
    /// Bytes of the largest artifact. Default 8 MiB, 1 KiB to 64 MiB. Each connection may have a few of them in assembly.
    pub artifact_bytes: u32,
    /// Bytes of UDP payload that every path of the subnet carries, 1,200 to 9,000. Default 1,452. Full datagrams have this size
    /// or up to 15 bytes less, so that they end with a whole AES block, and that from the first packet: a larger value is the
    /// strongest lever on throughput, a wrong one breaks the connection.
    pub mtu: u16,
    /// Bytes asked for each socket's receive and send buffer. Default 8 MiB; the kernel may grant less.
    pub socket_buffer: usize,
    /// Commands of each class that wait for a lane; their places take 128 bytes each from the start. Default 1,024.
    pub commands: usize,
    /// How classes share a link, or a lane's commands, when they are not enough for all. Default 40, 28, 20 and 12.
    pub weights: Weights,
    /// Silence after which a connection is given up. Default 5 s, at least 200 ms.
    pub idle_timeout: Duration,
    /// How long a relayed advert waits for the maker's own push before its body is fetched. Default 50 ms.
    pub relay_grace: Duration,
    /// Ignore handshakes from addresses that no member has. Default on.
    pub prefilter: bool,
    /// Receive and send by plain system calls even where the ring could be used. Default off.
    pub syscalls: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            artifact_bytes: 8 << 20,
            mtu: 1452,
            socket_buffer: 8 << 20,
            commands: 1024,
            weights: Weights::DEFAULT,
            idle_timeout: Duration::from_secs(5),
            relay_grace: Duration::from_millis(50),
            prefilter: true,
            syscalls: false,
        }
    }
}

/// Bytes of payload that the kernel granted a socket to buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Granted {
    /// For received datagrams.
    pub receive: usize,
    /// For datagrams to be sent.
    pub send: usize,
}

/// Which setting is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{setting} is {found}; allowed is {allowed}")]
pub struct ConfigError {
    /// The setting.
    pub setting: &'static str,
    /// Its value.
    pub found: String,
    /// The range, and why.
    pub allowed: String,
}

impl Settings {
    /// Checks the ranges.
    pub fn check(&self) -> Result<(), ConfigError> {
        let wrong = |setting, found: String, allowed: &str| {
            Err(ConfigError { setting, found, allowed: allowed.to_owned() })
        };
        if !(1 << 10..=64 << 20).contains(&self.artifact_bytes) {
            return wrong(
                "artifact_bytes",
                self.artifact_bytes.to_string(),
                "1024 (1 KiB) to 67108864 (64 MiB)",
            );
        }
        if !(1200..=9000).contains(&self.mtu) {
            return wrong(
                "mtu",
                self.mtu.to_string(),
                "1200 (QUIC's floor, RFC 9000 §14) to 9000 (jumbo frames)",
            );
        }
        if !(64 << 10..=1 << 30).contains(&self.socket_buffer) {
            return wrong(
                "socket_buffer",
                self.socket_buffer.to_string(),
                "65536 (64 KiB) to 1073741824 (1 GiB)",
            );
        }
        if !(1..=1 << 20).contains(&self.commands) {
            return wrong("commands", self.commands.to_string(), "1 to 1048576");
        }
        if !(Duration::from_millis(200)..=Duration::from_secs(600)).contains(&self.idle_timeout) {
            return wrong("idle_timeout", format!("{:?}", self.idle_timeout), "200 ms to 10 min");
        }
        if self.relay_grace > Duration::from_secs(10) {
            return wrong("relay_grace", format!("{:?}", self.relay_grace), "0 to 10 s");
        }
        Ok(())
    }
}

/// One line of the worst case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitLine {
    /// What the bytes are for.
    pub what: String,
    /// At most this many, in the whole node.
    pub bytes: u64,
}

/// Every bound of one lane, and the worst-case sum of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Members other than this one.
    pub peers: usize,
    /// Lanes of the node.
    pub lanes: u16,
    /// Bytes that a peer may have in flight to us on one stream.
    pub stream_window: u64,
    /// Bytes that a peer may have in flight to us on its connection.
    pub connection_window: u64,
    /// Bytes to one peer that are written and not acknowledged, as far as `Normal` and `Bulk` may fill them.
    pub send_window: u64,
    /// The same, beyond it, for `Critical` and `High` alone: urgent bytes never wait for bulk to be acknowledged.
    pub urgent_reserve: u64,
    /// Unidirectional streams that a peer may have open to us: batches and pushes.
    pub uni_streams: u32,
    /// Bidirectional streams that a peer may have open to us: fetches.
    pub bidi_streams: u32,
    /// Large pushed bodies of one peer that are assembled at a time, beyond one of each topic; more wait unread.
    pub pushes_in_assembly: usize,
    /// Requests in flight to one peer.
    pub fetch_per_peer: PerClass<u32>,
    /// Bytes requested from one peer and not yet received.
    pub fetch_peer_bytes: PerClass<u64>,
    /// Bytes requested by the lane and not yet received, but for requests that a peer leaves unanswered for too long.
    pub fetch_lane_bytes: PerClass<u64>,
    /// Largest artifact.
    pub artifact_bytes: u32,
    lines: Vec<LimitLine>,
}

impl Limits {
    /// A connection's window never falls below this, however many peers share a socket: one large artifact in 8 round trips.
    pub const MIN_WINDOW: u64 = 512 << 10;
    /// Nor does it rise above this: beyond, loss on the way costs more than the window brings.
    pub const MAX_WINDOW: u64 = 4 << 20;
    /// What the tables hold for each artifact that a peer may name, its body apart: about 650 bytes as measured by
    /// `tests/memory.rs`, up to 800 while a table has just grown.
    const NAMED_BYTES: u64 = 1024;
    /// The same for each artifact of this node: about 1,100.
    const ACTIVE_BYTES: u64 = 1536;
    /// Refusals that wait for room at one peer's link; more are only counted. A table of the default size fits.
    pub const REFUSALS: usize = 4096;
    /// Memory that one of them takes.
    pub(crate) const REFUSED_BYTES: u64 = 32;
    /// Questions of one lane that wait for a filter which has a thread of its own; more wait in the lane, by name.
    pub const FILTER_QUESTIONS: usize = 256;
    /// Memory that one of them and its answer take, where a filter that was replaced may have left as many again.
    const QUESTION_BYTES: u64 = 384;
    /// Memory that the engine and the transport need to name one stream.
    const STREAM_BYTES: u64 = 512;

    /// Derives the bounds. What all peers may have in flight towards one socket fits its granted buffer, as long as that leaves
    /// each at least [`Limits::MIN_WINDOW`].
    pub fn derive(settings: &Settings, members: usize, lanes: u16, granted: Granted) -> Limits {
        let peers = members.saturating_sub(1);
        let share = |bytes: usize| bytes as u64 / peers.max(1) as u64;
        let window = share(granted.receive).clamp(Self::MIN_WINDOW, Self::MAX_WINDOW) & !0xfff;
        let stream_window = window.min(largest_stream_window(settings.mtu));
        // Peers with the same settings: an eighth of what a peer may send us is for urgent bytes alone, another stays spare, so
        // that bulk never uses up the flow control that an urgent byte needs.
        let urgent_reserve = window / 8;
        let send_window = share(granted.send).min(window * 6 / 8).max(Self::MIN_WINDOW / 2);
        let body = u64::from(settings.artifact_bytes);
        let in_flight = (2 * window).max(body);
        let mut limits = Limits {
            peers,
            lanes,
            stream_window,
            connection_window: window,
            send_window,
            urgent_reserve,
            uni_streams: 256,
            bidi_streams: 256,
            pushes_in_assembly: 4,
            fetch_per_peer: PerClass([64, 64, 64, 64]),
            fetch_peer_bytes: PerClass([in_flight; 4]),
            fetch_lane_bytes: PerClass([in_flight * 4; 4]),
            artifact_bytes: settings.artifact_bytes,
            lines: Vec::new(),
        };
        limits.lines = limits.sum(settings, granted);
        limits
    }

    fn sum(&self, settings: &Settings, granted: Granted) -> Vec<LimitLine> {
        let lanes = u64::from(self.lanes);
        let links = lanes * self.peers as u64;
        let body = u64::from(self.artifact_bytes);
        let mut lines = Vec::new();
        let mut line = |what: String, bytes: u64| lines.push(LimitLine { what, bytes });
        line(format!("socket buffers ({lanes} sockets)"), lanes * (granted.receive + granted.send) as u64);
        // quinn-proto keeps at most half as much again as was received in its reassembly buffers before it defragments.
        line(format!("receive windows ({links} links)"), links * self.connection_window * 3 / 2);
        line(format!("send windows ({links} links)"), links * (self.send_window + self.urgent_reserve));
        line(format!("pushes in assembly ({} a link)", self.pushes_in_assembly), {
            links * self.pushes_in_assembly as u64 * body
        });
        // What a silent peer owes does not count against the lane, so only each peer's own budget bounds the sum.
        let fetching: u64 = self.fetch_peer_bytes.0.iter().sum();
        line(format!("fetches in assembly ({links} links)"), links * fetching);
        line("frames in assembly".to_owned(), links * u64::from(self.uni_streams) * MAX_BATCH as u64);
        // Requests of the peer that wait, streams on which either pushes or answers, and what it must hear is not taken.
        let streams = 3 * u64::from(self.bidi_streams) + u64::from(self.uni_streams);
        let words = streams * Self::STREAM_BYTES + Self::REFUSALS as u64 * Self::REFUSED_BYTES;
        line(format!("streams and refusals by name ({links} links)"), links * words);
        line("journals of what happened last".to_owned(), lanes * Journal::BYTES);
        line("histograms of links".to_owned(), lanes * 4 * Stages::BYTES);
        line("commands that wait".to_owned(), lanes * 4 * settings.commands as u64 * 128);
        line("batches being sent".to_owned(), links * 4 * MAX_FRAME as u64);
        lines
    }

    /// Adds a topic's share to the sum.
    pub fn add_topic(&mut self, topic: &super::TopicConfig) {
        let lanes = u64::from(self.lanes);
        let links = lanes * self.peers as u64;
        // For each peer its slots as they are seen here, and naming them to it after a reconnect.
        let tables = u64::from(topic.slots) * (self.peers as u64 * Self::NAMED_BYTES + Self::ACTIVE_BYTES);
        let mut line = |what: String, bytes: u64| self.lines.push(LimitLine { what, bytes });
        let pushes = format!("topic {}: pushes in assembly (1 a link)", topic.name);
        line(pushes, links * u64::from(self.artifact_bytes));
        line(format!("topic {}: active bodies, own and relayed", topic.name), 2 * lanes * topic.active_bytes);
        line(format!("topic {}: received bodies", topic.name), lanes * topic.pending_bytes);
        line(format!("topic {}: slot tables", topic.name), lanes * tables);
        let questions = lanes * Self::FILTER_QUESTIONS as u64 * Self::QUESTION_BYTES;
        line(format!("topic {}: questions to its filter", topic.name), questions);
        // A lane that finds room offers one body, however large.
        let bodies = topic.pending_bytes + lanes * u64::from(self.artifact_bytes);
        line(format!("topic {}: event queue", topic.name), topic.queue as u64 * 192 + bodies);
        line(format!("topic {}: histograms", topic.name), (lanes + 1) * Stages::BYTES);
    }

    /// The worst case, line by line.
    pub fn lines(&self) -> &[LimitLine] {
        &self.lines
    }

    /// The worst case in bytes: what the node cannot exceed, whatever its peers do.
    pub fn total_bytes(&self) -> u64 {
        self.lines.iter().map(|line| line.bytes).sum()
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for line in &self.lines {
            writeln!(f, "{:>12.1} MiB  {}", mib(line.bytes), line.what)?;
        }
        write!(f, "{:>12.1} MiB  worst case in all", mib(self.total_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn granted(bytes: usize) -> Granted {
        Granted { receive: bytes, send: bytes }
    }

    #[test]
    fn windows_of_all_peers_fit_the_granted_buffer() {
        let limits = Limits::derive(&Settings::default(), 5, 1, granted(8 << 20));
        assert_eq!(limits.connection_window * 4, 8 << 20);
        assert!(limits.send_window + limits.urgent_reserve <= limits.connection_window * 7 / 8);
    }

    #[test]
    fn a_window_has_a_floor_and_a_stream_survives_heavy_loss() {
        let limits = Limits::derive(&Settings::default(), 100, 1, granted(208 << 10));
        assert_eq!(limits.connection_window, Limits::MIN_WINDOW);
        let limits = Limits::derive(&Settings::default(), 2, 1, granted(1 << 30));
        // Full datagrams of 1,452 bytes carry 1,415 of a stream, or a few less.
        assert!(limits.stream_window.div_ceil(1415 - 30) <= 2 * 1024);
        assert!(limits.stream_window > 2 * 1024 * 1300);
    }

    #[test]
    fn the_sum_is_the_sum_of_its_lines() {
        let mut limits = Limits::derive(&Settings::default(), 4, 2, granted(4 << 20));
        let before = limits.total_bytes();
        limits.add_topic(&super::super::TopicConfig::new(crate::types::TopicId(1), "t"));
        assert!(limits.total_bytes() >= before + 2 * (768 << 20));
        assert!(limits.to_string().ends_with("worst case in all"));
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let settings = Settings { mtu: 100, ..Settings::default() };
        let error = settings.check().unwrap_err().to_string();
        assert_eq!(error, "mtu is 100; allowed is 1200 (QUIC's floor, RFC 9000 §14) to 9000 (jumbo frames)");
        assert_eq!(Settings::default().check(), Ok(()));
    }
}
