//! corecast: a node, a subnet in one process, and the files that both need.
mod files;
#[path = "../subnet/mod.rs"]
mod subnet;

fn main() {}
