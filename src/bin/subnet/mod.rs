//! What the tools share: nodes of one process, their faults, their load.

pub(crate) mod cores;
pub(crate) mod counters;
pub(crate) mod fault;
pub(crate) mod flow;
#[cfg(test)]
pub(crate) mod hub;
pub(crate) mod inline;
pub(crate) mod latency;
pub(crate) mod listen;
pub(crate) mod loopback;
pub(crate) mod memory;
pub(crate) mod port;
pub(crate) mod real;
pub(crate) mod resident;
pub(crate) mod single;
pub(crate) mod stop;
pub(crate) mod terminal;
