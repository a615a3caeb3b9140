//! Subnets of real nodes on loopback, for end-to-end tests.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; a failure is the test's"
)]

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use corecast::{
    Config, Deliveries, ExecutorConfig, Executors, Identity, Member, Membership, Node, RegistryVersion,
    Topic, TopicConfig,
};

pub struct Running {
    pub node: Node,
    pub topic: Topic,
    pub deliveries: Deliveries,
}

/// Keys and record of a subnet whose nodes are started one by one.
pub struct Plan {
    keys: Vec<Vec<u8>>,
    pub membership: Arc<Membership>,
}

/// `lanes` neighbouring UDP ports of loopback that were free a moment ago.
pub fn free_ports(lanes: u16) -> SocketAddr {
    for _ in 0..1000 {
        let probe = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let base = probe.local_addr().unwrap();
        let free = |lane| {
            base.port()
                .checked_add(lane)
                .is_some_and(|port| UdpSocket::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        };
        if (1..lanes).all(free) {
            return base;
        }
    }
    panic!("no {lanes} neighbouring ports are free");
}

pub fn plan(nodes: usize, lanes: u16) -> Plan {
    let identities: Vec<Identity> = (0..nodes).map(|_| Identity::generate().unwrap()).collect();
    let mut taken = Vec::new();
    let members = identities
        .iter()
        .map(|identity| {
            let address = loop {
                let base = free_ports(lanes);
                let near = |other: &SocketAddr| base.port().abs_diff(other.port()) < lanes;
                if !taken.iter().any(near) {
                    break base;
                }
            };
            taken.push(address);
            Member { id: identity.id(), addresses: vec![address] }
        })
        .collect();
    let membership = Membership::new("test".into(), RegistryVersion(1), lanes, members).unwrap();
    let keys = identities.iter().map(|identity| identity.pkcs8().to_vec()).collect();
    Plan { keys, membership: Arc::new(membership) }
}

pub fn executors() -> Executors {
    let config = ExecutorConfig { cores: vec![0, 1], ..ExecutorConfig::default() };
    Executors::start(&config).unwrap()
}

impl Plan {
    pub fn identity(&self, index: usize) -> Identity {
        Identity::from_pkcs8(&self.keys[index]).unwrap()
    }

    pub fn start(&self, executors: &Executors, index: usize, topic: &TopicConfig) -> Running {
        let config = Config::new(self.identity(index), self.membership.clone());
        let node = Node::start_on(executors, config).unwrap();
        let (topic, deliveries) = node.topic(topic.clone()).unwrap();
        Running { node, topic, deliveries }
    }
}

/// A whole subnet, connected.
pub fn start(nodes: usize, lanes: u16, topic: &TopicConfig) -> Vec<Running> {
    let (plan, executors) = (plan(nodes, lanes), executors());
    let members: Vec<Running> = (0..nodes).map(|index| plan.start(&executors, index, topic)).collect();
    wait_until("everyone is connected", || {
        members.iter().all(|member| member.node.stats().connected_peers == nodes - 1)
    });
    members
}

pub fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
