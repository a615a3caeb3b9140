//! The transport over links in memory, in virtual time: honest pairs, lossy paths, and peers that do as they
//! please.

// Helpers of tests may fail like tests; clippy's allowance covers the tests alone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod connect;
mod hostile;
mod net;
mod rogue;
mod soak;
mod streams;
