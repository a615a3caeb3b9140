//! corecast: abortable broadcast for BFT subnets.
#![deny(unsafe_code)]

pub mod types;
pub mod wire;

pub mod config;
pub mod metrics;
pub mod sync;

pub mod proto;

pub mod engine;
pub mod quic;

pub mod node;
