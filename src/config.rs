//! What the replica sets, and the limits that follow from it.
//!
//! Sizes are sums: [`Limits::derive`] computes every bound of a node from its settings, the number of members and the socket
//! buffers actually granted, and lists the worst case line by line (promise P4).

mod limits;
mod topic;

pub use limits::{ConfigError, Granted, LimitLine, Limits, Settings};
pub use topic::{Advert, Filter, FilterThread, TopicConfig, TopicConfigError, Verdict};
