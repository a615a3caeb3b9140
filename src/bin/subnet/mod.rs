//! What the tools share: nodes of one process, their faults, their load.

pub(crate) mod cores;
pub(crate) mod fault;
#[cfg(test)]
pub(crate) mod hub;
pub(crate) mod port;
pub(crate) mod terminal;
