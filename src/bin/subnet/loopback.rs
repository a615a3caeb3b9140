//! A whole subnet in this process, over loopback.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use corecast::config::{Settings, TopicConfig};

use super::fault::{Exit, Fault};
use super::port::Subnet;

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

/// Starts the nodes and waits until all are connected with all.
pub(crate) fn start(plan: &Plan) -> Result<Subnet, Fault> {
    plan.check()?;
    let _ = free_ports(plan.nodes, plan.lanes)?;
    Ok(super::hub::start(usize::from(plan.nodes), &plan.topics, super::hub::Mishaps::default()))
}

/// For each node the first of `lanes` consecutive UDP ports that nobody uses now.
fn free_ports(nodes: u16, lanes: u16) -> Result<Vec<u16>, Fault> {
    /// Random starts are tried until this many found a neighbour in use.
    const ATTEMPTS: usize = 10_000;
    let bind = |port: u16| UdpSocket::bind((Ipv4Addr::LOCALHOST, port));
    // All stay bound until the last is found, so that no port is found twice.
    let mut held = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..ATTEMPTS {
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
