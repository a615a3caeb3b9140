//! One node with one topic.

use std::sync::Arc;
use std::time::Duration;

use corecast::config::{Settings, TopicConfig};
use corecast::node::keyfile::SecretKey;
use corecast::node::registry::RegistryFile;

use super::fault::Fault;
use super::port::{Feed, Host, Port};

/// What to start.
pub(crate) struct Single<'a> {
    pub(crate) key: &'a SecretKey,
    pub(crate) registry: RegistryFile,
    pub(crate) cores: Vec<usize>,
    pub(crate) spin: Duration,
    pub(crate) settings: Settings,
    pub(crate) topic: TopicConfig,
}

/// A node that runs.
pub(crate) struct Running {
    pub(crate) port: Arc<dyn Port>,
    pub(crate) feed: Box<dyn Feed>,
    pub(crate) host: Box<dyn Host>,
}

/// Starts the node.
pub(crate) fn start(single: Single<'_>) -> Result<Running, Fault> {
    let mut subnet = super::hub::start(1, &[single.topic], super::hub::Mishaps::default());
    let port = Arc::clone(&subnet.ports[0][0]);
    let feed = subnet.feeds.remove(0).remove(0);
    Ok(Running { port, feed, host: subnet.host })
}
