//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, value_parser};
use corecast::node::parse_address;
use corecast::types::{ArtifactId, Membership, NodeId};

use crate::subnet::cores::CoreList;
use crate::subnet::flow::MAX_NODES;

/// Abortable broadcast for BFT subnets
#[derive(Debug, Parser)]
#[command(name = "corecast", version, max_term_width = 100, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole subnet in this process: broadcast a folder of files, or a sample mix
    Devnet(Devnet),
    /// Run one node: files moved into its inbox go to the outboxes of all others
    Node(Node),
    /// Ask a running node what it counts, holds and measures
    Stats(Stats),
    /// Ask a running node where an artifact is and what happened to it
    Trace(Trace),
    /// Make a node's secret key and print its id
    Keygen(Keygen),
    /// Make, fill and show a subnet's registry
    #[command(subcommand)]
    Registry(Registry),
}

#[derive(Debug, Args)]
pub(crate) struct Devnet {
    /// Nodes in this process
    #[arg(long, default_value_t = 4, value_parser = value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
    pub(crate) nodes: u16,
    /// Lanes of each node
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=i64::from(Membership::MAX_LANES)))]
    pub(crate) lanes: u16,
    /// Folder whose regular files are broadcast, by the nodes in turn
    #[arg(long, value_name = "DIR", requires = "out")]
    pub(crate) files: Option<PathBuf>,
    /// Folder for what each node receives, as OUT/node-K/...; it must be empty or not exist
    #[arg(long, value_name = "DIR", requires = "files")]
    pub(crate) out: Option<PathBuf>,
    /// Seconds that the sample mix runs
    #[arg(long, default_value_t = 10, conflicts_with = "files", value_parser = value_parser!(u64).range(1..=86_400))]
    pub(crate) seconds: u64,
    /// Cores to pin executors to, as in 0-3,6 [default: the first of those allowed, one for each lane]
    #[arg(long, value_name = "LIST")]
    pub(crate) cores: Option<CoreList>,
    /// Bytes of UDP payload of each datagram, 1200 to 9000
    #[arg(long, default_value_t = 1452, value_parser = value_parser!(u16).range(1200..=9000))]
    pub(crate) mtu: u16,
    /// Microseconds that an executor looks for work before it parks
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = value_parser!(u64).range(0..=1_000_000))]
    pub(crate) spin: u64,
    /// Receivers relay what they have, as replicas do, until it is aborted
    #[arg(long)]
    pub(crate) relay: bool,
    /// Print one JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Node {
    /// The node's configuration
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Check configuration, key, registry and folders, and end
    #[arg(long)]
    pub(crate) check_config: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    /// The node's admin socket, as `admin` in its configuration names it
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Print the node's answer as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Trace {
    /// The artifact: 64 hexadecimal digits
    #[arg(value_name = "ID")]
    pub(crate) id: ArtifactId,
    /// The node's admin socket, as `admin` in its configuration names it
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// Print the node's answer as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Keygen {
    /// Where the key goes; a file that is there is never overwritten
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Registry {
    /// Make a registry without members
    Init {
        /// The subnet's name
        #[arg(long, value_name = "NAME")]
        subnet: String,
        /// Lanes of every node: one core and one UDP port each
        #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=i64::from(Membership::MAX_LANES)))]
        lanes: u16,
        /// Where the registry goes; a file that is there is never overwritten
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Add a member and raise the version
    Add(Add),
    /// Check a registry and print it
    Show {
        /// The registry
        #[arg(long, value_name = "FILE")]
        registry: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Add {
    /// The registry
    #[arg(long, value_name = "FILE")]
    pub(crate) registry: PathBuf,
    #[command(flatten)]
    pub(crate) member: MemberKey,
    /// IP address and UDP port of lane 0; lane k has that port + k. Up to four
    #[arg(long, value_name = "IP:PORT", required = true, value_parser = parse_address)]
    pub(crate) address: Vec<SocketAddr>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct MemberKey {
    /// The member's secret key file, of which the public half is taken
    #[arg(long, value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// The member's id, as `corecast keygen` printed it
    #[arg(long)]
    pub(crate) id: Option<NodeId>,
}
