//! Receivers of `stall` in a process of their own, and the maker's end of their pipes.
//!
//! In come one [`Order`] as a line of JSON, then the words `hold`, `go` and `report`; the end of the input ends the process.
//! Out come `ready`, a line `d NODE NUMBER` for each delivery, and a line `r` with a [`Report`] for each `report`.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use corecast::config::{Settings, TopicConfig};
use corecast::types::{Class, TopicId};
use corecast::{Config, Identity, Member, Membership, NodeId, RegistryVersion};
use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use crate::board::Board;
use crate::reader::{Part, Reader, Words};
use crate::subnet::counters::Counters;
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::inline::Inline;
use crate::subnet::loopback::{self, Roster};
use crate::subnet::port::{Arrival, Feed, Host, Port};
use crate::subnet::real::{self, Nodes, Started, counters};
use crate::subnet::resident;
use crate::system::{self, Used};
use crate::workload::SHUTDOWN;

/// How often a consumer looks whether it is to go on.
const GLANCE: Duration = Duration::from_millis(5);
/// How long a process may take to end by itself.
const PATIENCE: Duration = Duration::from_secs(4);

/// What a process is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Numbers of its nodes.
    pub(crate) nodes: Vec<usize>,
    /// Their keys, in hexadecimal digits.
    pub(crate) keys: Vec<String>,
    /// Ids and addresses of all members.
    pub(crate) members: Vec<(String, SocketAddr)>,
    pub(crate) lanes: u16,
    pub(crate) mtu: u16,
    pub(crate) size: u32,
    pub(crate) inflight: u32,
    /// Artifacts that the maker keeps active at most.
    pub(crate) keep: u32,
    /// Cores of its executors.
    pub(crate) cores: Vec<usize>,
    pub(crate) spin: Duration,
    /// The id of who makes artifacts.
    pub(crate) maker: String,
    /// In place of its node, a member that can stop reading.
    pub(crate) by_hand: bool,
}

/// What a process has used, and what its nodes have counted.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) used: Used,
    pub(crate) counters: Counters,
    pub(crate) peak_rss_bytes: u64,
    /// The worst case of its nodes, as they print it; 0 without any.
    pub(crate) bound_bytes: u64,
    /// What came to a member by hand while it read nothing.
    pub(crate) unread_bytes: u64,
}

impl Report {
    /// Of this process, which runs these nodes.
    pub(crate) fn of(nodes: &[corecast::Node]) -> Result<Report, Fault> {
        Ok(Report {
            used: Used::now()?,
            counters: counters(nodes),
            peak_rss_bytes: resident::peak_rss_bytes(),
            bound_bytes: nodes.iter().map(|node| node.limits().total_bytes()).sum(),
            unread_bytes: 0,
        })
    }
}

impl Order {
    /// For the nodes of these numbers in `roster`.
    pub(crate) fn for_nodes(&self, nodes: std::ops::Range<usize>, roster: &Roster) -> Order {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let key = |node: usize| hex(roster.identities[node].pkcs8());
        // As if all nodes were dealt to the cores in one process.
        let mut cores = self.cores.clone();
        let first = nodes.start * usize::from(self.lanes) % cores.len().max(1);
        cores.rotate_left(first);
        cores.truncate(nodes.len() * usize::from(self.lanes));
        Order { keys: nodes.clone().map(key).collect(), nodes: nodes.collect(), cores, ..self.clone() }
    }

    fn settings(&self) -> Settings {
        let mut settings = Settings::default();
        settings.mtu = self.mtu;
        settings.artifact_bytes = settings.artifact_bytes.max(self.size);
        settings
    }

    /// Starts its nodes.
    pub(crate) fn start(&self) -> Result<Vec<Started>, Fault> {
        let executors = real::executors(&self.cores, self.spin)?;
        let record = Arc::new(self.membership()?);
        let settings = self.settings();
        let topics = [self.topic(settings.artifact_bytes)];
        let start = |key: &String| {
            let mut config = Config::new(identity(key)?, Arc::clone(&record));
            config.settings = settings.clone();
            real::start(&executors, config, &topics, Inline::None)
        };
        self.keys.iter().map(start).collect()
    }

    fn membership(&self) -> Result<Membership, Fault> {
        let member = |(id, address): &(String, SocketAddr)| {
            let id = id.parse::<NodeId>().map_err(|error| wrong(&error))?;
            Ok(Member { id, addresses: vec![*address] })
        };
        let members = self.members.iter().map(member).collect::<Result<_, Fault>>()?;
        let record = Membership::new("stall".to_owned(), RegistryVersion(1), self.lanes, members);
        record.map_err(|error| wrong(&error))
    }

    fn topic(&self, artifact_bytes: u32) -> TopicConfig {
        let (size, least) = (u64::from(self.size), u64::from(artifact_bytes));
        let mut topic = TopicConfig::new(TopicId(1), "stall").class(Class::Bulk);
        // What was active when the receiver came back stays so beside what is made since, and an aborted artifact leaves its
        // place a moment later.
        let active = 2 * self.keep + 2 * self.inflight;
        topic.slots = topic.slots.max(active);
        topic.active_bytes = least.max(u64::from(active) * size);
        topic.pending_bytes = least.max(4 * u64::from(self.inflight) * size);
        topic
    }
}

fn wrong(error: &dyn std::fmt::Display) -> Fault {
    Fault::new(Exit::Software, format!("receivers: {error}"))
}

fn identity(hex: &str) -> Result<Identity, Fault> {
    let byte = |at: usize| hex.get(at..at + 2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
    let key: Option<Vec<u8>> = (0..hex.len()).step_by(2).map(byte).collect();
    let key = key.ok_or_else(|| wrong(&"a key is not hexadecimal"))?;
    Identity::from_pkcs8(&key).map_err(|error| wrong(&error))
}

/// Runs this process's nodes until the input ends.
pub(crate) fn serve() -> Result<(), Fault> {
    system::end_with_parent();
    let mut lines = io::stdin().lock().lines();
    let order = lines.next().and_then(Result::ok).unwrap_or_default();
    let order: Order = serde_json::from_str(&order).map_err(|error| wrong(&error))?;
    if order.by_hand {
        return serve_by_hand(&order, lines);
    }
    let started = order.start()?;
    loopback::await_connections(&started, order.members.len() - 1)?;
    let (mut nodes, mut ends) = (Vec::new(), Vec::new());
    for (number, Started { node, ports, feeds }) in order.nodes.iter().copied().zip(started) {
        nodes.push(node);
        ends.extend(ports.into_iter().zip(feeds).map(|(port, feed)| (number, port, feed)));
    }
    print("ready")?;
    let (held, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for (number, port, feed) in ends {
            let (held, over) = (&held, &over);
            scope.spawn(move || consume(number, &*port, feed, held, over));
        }
        let told = lines.map_while(Result::ok).try_for_each(|line| match line.as_str() {
            "report" => {
                print(&format!("r {}", serde_json::to_string(&Report::of(&nodes)?).unwrap_or_default()))
            }
            word => {
                held.store(word == "hold", Ordering::Relaxed);
                Ok(())
            }
        });
        over.store(true, Ordering::Relaxed);
        told
    })?;
    Box::new(Nodes(nodes)).shutdown(SHUTDOWN)
}

/// The same for one member that can stop reading, each lane on a thread of its own.
fn serve_by_hand(order: &Order, lines: impl Iterator<Item = io::Result<String>>) -> Result<(), Fault> {
    let membership = order.membership()?;
    let (Some(&node), Some(key)) = (order.nodes.first(), order.keys.first()) else {
        return Err(wrong(&"an order for nobody"));
    };
    let maker = order.maker.parse::<NodeId>().map_err(|error| wrong(&error))?;
    let settings = order.settings();
    let slots = order.topic(settings.artifact_bytes).slots;
    let part = |lane: u16| {
        let (membership, settings) = (membership.clone(), settings.clone());
        Ok(Part { identity: identity(key)?, membership, settings, lane, slots, maker })
    };
    let parts = (0..order.lanes).map(part).collect::<Result<Vec<_>, Fault>>()?;
    let (words, unready) = (Words::default(), AtomicUsize::new(parts.len()));
    let ready = || {
        if unready.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Should nobody listen, the end of the input ends the process.
            print("ready").ok();
        }
    };
    let deliver = |body: &[u8]| print(&format!("d {node} {}", Board::number(body).unwrap_or(usize::MAX)));
    std::thread::scope(|scope| {
        for part in parts {
            let (words, ready) = (&words, &ready);
            scope.spawn(move || {
                let done = Reader::new(&part).and_then(|reader| reader.run(words, ready, deliver));
                if let Err(fault) = done {
                    fault.report("corecast-load");
                    // The maker's end of the pipe is to close at once.
                    std::process::exit(fault.exit as i32);
                }
            });
        }
        let told = lines.map_while(Result::ok).try_for_each(|line| match line.as_str() {
            "report" => {
                let unread_bytes = words.unread_bytes.load(Ordering::Relaxed);
                let report = Report { unread_bytes, ..Report::of(&[])? };
                print(&format!("r {}", serde_json::to_string(&report).unwrap_or_default()))
            }
            word => {
                words.held.store(word == "hold", Ordering::Relaxed);
                Ok(())
            }
        });
        words.over.store(true, Ordering::Relaxed);
        told
    })
}

fn consume(node: usize, port: &dyn Port, mut feed: Box<dyn Feed>, held: &AtomicBool, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if held.load(Ordering::Relaxed) {
            std::thread::sleep(GLANCE);
            continue;
        }
        let Some(Arrival::Delivered { id, bytes }) = feed.next(GLANCE) else { continue };
        port.release(&id);
        let number = Board::number(&bytes).unwrap_or(usize::MAX);
        if print(&format!("d {node} {number}")).is_err() {
            return;
        }
    }
}

fn print(line: &str) -> Result<(), Fault> {
    let mut stdout = io::stdout().lock();
    let printed = writeln!(stdout, "{line}").and_then(|()| stdout.flush());
    printed.map_err(|error| wrong(&error))
}

/// What a process said.
#[derive(Debug)]
pub(crate) enum Said {
    Ready,
    Delivered {
        node: usize,
        number: Option<usize>,
        at: Instant,
    },
    Report {
        process: usize,
        report: Report,
    },
    /// Its output has ended.
    Ended,
}

/// A process of receivers. It ends with this.
pub(crate) struct Receivers {
    child: Child,
    stdin: Option<ChildStdin>,
}

impl Receivers {
    /// Starts a process; what it says goes to `said`.
    pub(crate) fn start(process: usize, order: &Order, said: Sender<Said>) -> Result<Receivers, Fault> {
        let failed = |error: io::Error| Fault::new(Exit::Os, format!("receivers: {error}"));
        let own = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(own);
        command.arg("receivers").stdin(Stdio::piped()).stdout(Stdio::piped());
        // Apart from the terminal's group: a Ctrl-C is for the maker alone, which ends the receivers.
        let mut child = command.process_group(0).spawn().map_err(failed)?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let mut receivers = Receivers { child, stdin };
        let order = serde_json::to_string(order).map_err(|error| wrong(&error))?;
        receivers.tell(&order)?;
        let stdout = stdout.ok_or_else(|| wrong(&"no output"))?;
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if said.send(parse(process, &line)).is_err() {
                    return;
                }
            }
            said.send(Said::Ended).ok();
        });
        Ok(receivers)
    }

    /// Tells it one line.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), Fault> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        let told = writeln!(stdin, "{line}").and_then(|()| stdin.flush());
        told.map_err(|error| wrong(&format!("their process has ended: {error}")))
    }

    /// Stops the whole process, or lets it go on.
    pub(crate) fn freeze(&self, stop: bool) -> Result<(), Fault> {
        system::freeze(&self.child, stop)
    }
}

fn parse(process: usize, line: &str) -> Said {
    let at = Instant::now();
    let mut words = line.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some("ready"), None, None) => Said::Ready,
        (Some("d"), Some(node), Some(number)) => {
            Said::Delivered { node: node.parse().unwrap_or(usize::MAX), number: number.parse().ok(), at }
        }
        _ => {
            let report = line.strip_prefix("r ").and_then(|json| serde_json::from_str(json).ok());
            report.map_or(Said::Ended, |report| Said::Report { process, report })
        }
    }
}

impl Drop for Receivers {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let until = Instant::now() + PATIENCE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        // It may be stopped, or hang; one that has ended is left alone.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_says_is_read_back() {
        assert!(matches!(parse(0, "ready"), Said::Ready));
        assert!(matches!(parse(0, "d 3 17"), Said::Delivered { node: 3, number: Some(17), .. }));
        let report = Report { peak_rss_bytes: 5, ..Report::default() };
        let line = format!("r {}", serde_json::to_string(&report).unwrap());
        assert!(matches!(parse(1, &line), Said::Report { process: 1, report } if report.peak_rss_bytes == 5));
        assert!(matches!(parse(0, "nonsense"), Said::Ended));
    }

    #[test]
    fn an_order_brings_the_same_membership() {
        let roster = Roster::new(3, 1).unwrap();
        let members = roster.record.members();
        let order = Order {
            nodes: Vec::new(),
            keys: Vec::new(),
            members: members.iter().map(|member| (member.id.to_string(), member.addresses[0])).collect(),
            lanes: 1,
            mtu: 1452,
            size: 1 << 20,
            inflight: 16,
            keep: 64,
            cores: vec![4, 5],
            spin: Duration::MAX,
            maker: roster.identities[0].id().to_string(),
            by_hand: false,
        };
        let order = order.for_nodes(1..3, &roster);
        let order: Order = serde_json::from_str(&serde_json::to_string(&order).unwrap()).unwrap();
        assert_eq!(order.membership().unwrap().members(), members);
        assert_eq!(identity(&order.keys[0]).unwrap().id(), roster.identities[1].id());
        assert_eq!((order.cores, order.spin), (vec![5, 4], Duration::MAX));
    }
}
