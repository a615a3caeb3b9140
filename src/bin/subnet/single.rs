//! One node with one topic.

use std::sync::Arc;
use std::time::Duration;

use corecast::{Config, Identity, RegistryFile, Settings, TopicConfig};

use super::fault::{Exit, Fault};
use super::inline::Inline;
use super::port::{Feed, Port};
use super::real;

/// What to start.
pub(crate) struct Single<'a> {
    pub(crate) key: &'a Identity,
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
    pub(crate) host: Box<real::Nodes>,
}

/// Starts the node.
pub(crate) fn start(single: Single<'_>) -> Result<Running, Fault> {
    let executors = real::executors(&single.cores, single.spin)?;
    let mut config = Config::new(single.key.clone(), single.registry);
    config.settings = single.settings;
    let started = real::start(&executors, config, &[single.topic], Inline::None)?;
    tracing::info!("bounds of this node:\n{}", started.node.limits());
    let host = Box::new(real::Nodes(vec![started.node]));
    match (started.ports.into_iter().next(), started.feeds.into_iter().next()) {
        (Some(port), Some(feed)) => Ok(Running { port, feed, host }),
        _ => Err(Fault::new(Exit::Software, "the node opened no topic")),
    }
}
