//! The transport over links in memory, in virtual time: honest pairs, lossy paths, and peers that do as they please.

mod connect;
mod hostile;
mod net;
mod rogue;
mod streams;
