//! A whole subnet in this process, over loopback.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::{Config, Executors, Identity, Member, Membership, RegistryVersion, Settings, TopicConfig};

use super::fault::{Exit, Fault};
use super::inline::Inline;
use super::port::Subnet;
use super::real::{self, Nodes, Started};

/// Sockets of one process: below the usual limit of open files.
pub(crate) const MAX_SOCKETS: usize = 512;

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) nodes: u16,
    pub(crate) lanes: u16,
    /// One executor is pinned to each.
    pub(crate) cores: Vec<usize>,
    /// How long an executor looks for work before it parks.
    pub(crate) spin: Duration,
    pub(crate) settings: Settings,
    pub(crate) topics: Vec<TopicConfig>,
    pub(crate) inline: Inline,
}

impl Plan {
    /// Whether so many nodes of so many lanes fit into one process.
    pub(crate) fn check(&self) -> Result<(), Fault> {
        let sockets = usize::from(self.nodes) * usize::from(self.lanes);
        if sockets > MAX_SOCKETS {
            let (nodes, lanes) = (self.nodes, self.lanes);
            let problem = format!(
                "{nodes} nodes of {lanes} lanes need {sockets} sockets; one process may have {MAX_SOCKETS}: \
                 lower --nodes or --lanes"
            );
            return Err(Fault::new(Exit::Usage, problem));
        }
        self.settings.check().map_err(|error| Fault::new(Exit::Usage, error.to_string()))
    }
}

/// How long the nodes may take to find one another.
const CONNECT: Duration = Duration::from_secs(20);
/// Ports that were free may be taken by the time they are bound; so often others are tried.
const ATTEMPTS: usize = 5;

/// Starts the nodes and waits until all are connected with all.
pub(crate) fn start(plan: &Plan) -> Result<Subnet, Fault> {
    let (_, started) = start_group(plan)?;
    let (ports, feeds, host) = (Vec::new(), Vec::new(), Box::new(Nodes(Vec::new())));
    let mut subnet = Subnet { ports, feeds, host, inline: plan.inline == Inline::All, made: 0 };
    let mut nodes = Vec::new();
    for Started { node, ports, feeds } in started {
        nodes.push(node);
        subnet.ports.push(ports);
        subnet.feeds.push(feeds);
    }
    subnet.host = Box::new(Nodes(nodes));
    Ok(subnet)
}

/// The same, with the nodes one by one, and what starts one of them again.
pub(crate) fn start_group(plan: &Plan) -> Result<(Group, Vec<Started>), Fault> {
    plan.check()?;
    let executors = real::executors(&plan.cores, plan.spin)?;
    let mut outcome = start_nodes(plan, &executors);
    for _ in 1..ATTEMPTS {
        match &outcome {
            Err(fault) if fault.exit == Exit::Unavailable => outcome = start_nodes(plan, &executors),
            _ => break,
        }
    }
    let (group, started) = outcome?;
    await_connections(&started, started.len() - 1)?;
    Ok((group, started))
}

/// What the nodes of a subnet in this process are started from.
pub(crate) struct Group {
    executors: Executors,
    roster: Roster,
    settings: Settings,
    topics: Vec<TopicConfig>,
    inline: Inline,
}

impl Group {
    /// Starts the node of this number, which must not run.
    pub(crate) fn start(&self, node: usize) -> Result<Started, Fault> {
        let mut config = Config::new(self.roster.identities[node].clone(), Arc::clone(&self.roster.record));
        config.settings = self.settings.clone();
        real::start(&self.executors, config, &self.topics, self.inline)
    }
}

fn start_nodes(plan: &Plan, executors: &Executors) -> Result<(Group, Vec<Started>), Fault> {
    let roster = Roster::new(plan.nodes, plan.lanes)?;
    let (executors, settings, topics) = (executors.clone(), plan.settings.clone(), plan.topics.clone());
    let group = Group { executors, roster, settings, topics, inline: plan.inline };
    let started = (0..usize::from(plan.nodes)).map(|node| group.start(node)).collect::<Result<_, _>>()?;
    Ok((group, started))
}

/// The members of a subnet on loopback, with their keys.
pub(crate) struct Roster {
    pub(crate) identities: Vec<Identity>,
    pub(crate) record: Arc<Membership>,
}

impl Roster {
    /// New keys, and ports that nobody uses now.
    pub(crate) fn new(nodes: u16, lanes: u16) -> Result<Roster, Fault> {
        let software = |error: &dyn std::fmt::Display| Fault::new(Exit::Software, error.to_string());
        let mut members = Vec::new();
        let mut identities = Vec::new();
        for port in free_ports(nodes, lanes)? {
            let identity = Identity::generate().map_err(|error| software(&error))?;
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            members.push(Member { id: identity.id(), addresses: vec![address] });
            identities.push(identity);
        }
        let record = Membership::new("devnet".to_owned(), RegistryVersion(1), lanes, members);
        let record = Arc::new(record.map_err(|error| software(&error))?);
        Ok(Roster { identities, record })
    }
}

/// Waits until each of these nodes is connected with `others` more.
pub(crate) fn await_connections(started: &[Started], others: usize) -> Result<(), Fault> {
    let deadline = Instant::now() + CONNECT;
    let connected = || started.iter().filter(|one| one.node.stats().connected_peers >= others).count();
    while connected() < started.len() {
        if Instant::now() > deadline {
            let (connected, all) = (connected(), started.len());
            let seconds = CONNECT.as_secs();
            let problem = format!("after {seconds} s only {connected} of {all} nodes are connected with all");
            return Err(Fault::new(Exit::Unavailable, format!("{problem}; is UDP on 127.0.0.1 filtered?")));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// For each node the first of `lanes` consecutive UDP ports that nobody uses now.
fn free_ports(nodes: u16, lanes: u16) -> Result<Vec<u16>, Fault> {
    /// So many starts are tried, whose neighbours may turn out to be in use.
    const TRIES: usize = 10_000;
    let bind = |port: u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
    // All stay bound until the last is found, so that no port is found twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..TRIES {
        if ports.len() == usize::from(nodes) {
            return Ok(ports);
        }
        let Ok(first) = bind(0) else { break };
        let Ok(address) = first.local_addr() else { break };
        let port = address.port();
        let others = (1..lanes).map(|lane| port.checked_add(lane).and_then(|port| bind(port).ok()));
        if let Some(others) = others.collect::<Option<Vec<_>>>() {
            held.push(first);
            held.extend(others);
            ports.push(port);
        }
    }
    let problem = format!("no {lanes} consecutive UDP ports are free on 127.0.0.1 for each of {nodes} nodes");
    Err(Fault::new(Exit::Os, format!("{problem}; lower --nodes or --lanes, or raise `ulimit -n`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_leave_room_for_every_lane() {
        let mut ports = free_ports(5, 3).unwrap();
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[1] - pair[0] >= 3));
    }
}
