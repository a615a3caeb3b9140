//! `corecast node`: one node as a process of its own, with a folder in and a folder out.

mod admin;
mod answer;
mod config;
mod inbox;
mod relays;

use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;

use crate::cli;
use crate::files::assemble::{Assembler, Progress};
use crate::files::folder::{Folder, Placed};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::port::{Arrival, Feed, Host, Port};
use crate::subnet::single;
use crate::subnet::stop::Stop;
use crate::subnet::terminal::say;
use admin::Admin;
use config::Config;
use inbox::{Inbox, Look};
use relays::Relays;

/// How often the inbox is looked through when nothing happens.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long the end may take: peers are told, queues are emptied.
const SHUTDOWN: Duration = Duration::from_millis(1500);
/// How often the receiving thread looks at what it relays.
const GLANCE: Duration = Duration::from_millis(50);

/// Runs the node until a signal ends it.
pub(crate) fn run(options: &cli::Node) -> Result<(), Fault> {
    let config = config::load(&options.config)?;
    if options.check_config {
        let (id, subnet) = (config.key.id(), config.membership.subnet().to_owned());
        return say(&format!("{}: good: node {id} of subnet {subnet:?}", options.config.display()));
    }
    log_to_stderr();
    let stop = Stop::on_signals()?;
    let node = single::start(config.node())?;
    tracing::info!(id = %config.key.id(), subnet = config.membership.subnet(), "running");
    let admin = config.admin.as_deref().map(Admin::open).transpose();
    let outcome = admin.and_then(|admin| {
        // After the node: one that cannot start leaves no trace in the outbox.
        let assembler = Assembler::new(Folder::open(&config.outbox)?);
        std::thread::scope(|scope| {
            // It goes with what is done here, however that ends.
            let (_end, ending) = mpsc::channel();
            if let (Some(admin), Some(node)) = (&admin, node.host.node()) {
                scope.spawn(move || admin.serve(node, &ending));
            }
            serve(&config, &assembler, &node.port, node.feed, &stop)
        })?;
        assembler.folder().finish()
    });
    tracing::info!("ending");
    let ended = node.host.shutdown(SHUTDOWN);
    outcome.and(ended)
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Set once, at the start of the process: it cannot be set already.
    log.try_init().ok();
}

/// Inbox on this thread, outbox on another, until a signal or a fault.
fn serve(
    config: &Config,
    assembler: &Assembler,
    port: &Arc<dyn Port>,
    feed: Box<dyn Feed>,
    stop: &Stop,
) -> Result<(), Fault> {
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receive(config, assembler, port, feed, stop));
        let mut inbox = Inbox::new(&config.inbox, config.settings.artifact_bytes as usize, Arc::clone(port));
        let mut next = Instant::now();
        while !stop.is_set() && !receiving.is_finished() {
            if Instant::now() < next {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            match inbox.look() {
                Look::More => {}
                Look::Settled | Look::Full => next = Instant::now() + LOOK_EVERY,
                Look::Stopped => {
                    stop.set();
                    return Err(Fault::new(Exit::Software, "the node has stopped by itself"));
                }
            }
        }
        inbox.close();
        receiving.join().unwrap_or_else(|_| Err(Fault::new(Exit::Software, "the receiving thread failed")))
    })
}

fn receive(
    config: &Config,
    assembler: &Assembler,
    port: &Arc<dyn Port>,
    mut feed: Box<dyn Feed>,
    stop: &Stop,
) -> Result<(), Fault> {
    // At most half of the table, so that relaying never leaves the inbox without room.
    let half = (config.topic.slots / 2) as usize;
    let half_bytes = (config.topic.active_bytes / 2) as usize;
    let mut relays = Relays::new(Arc::clone(port), config.relay, half, half_bytes);
    while !stop.is_set() {
        match feed.next(GLANCE) {
            Some(Arrival::Delivered { id, bytes }) => {
                let len = bytes.len();
                match assembler.accept(id, bytes) {
                    Ok(progress) => {
                        tell(&progress);
                        relays.take(id, len, Instant::now());
                    }
                    // What is wrong with it is the sender's doing; whatever it is, it is not passed on.
                    Err(fault) if fault.exit == Exit::Data => {
                        tracing::warn!("{fault}");
                        port.release(&id);
                    }
                    Err(fault) => {
                        tracing::error!("{fault}");
                        port.release(&id);
                    }
                }
            }
            Some(Arrival::Withdrawn { id }) => relays.withdrawn(&id),
            Some(Arrival::Refused { id, by, reason }) => {
                tracing::warn!(%id, %by, ?reason, "a member does not take an artifact: its limits are smaller than ours");
            }
            // Inline consumers do that, and this is none.
            Some(Arrival::Consumed { .. }) | None => {}
        }
        relays.expire(Instant::now());
    }
    Ok(())
}

fn tell(progress: &Progress) {
    match progress {
        Progress::Part => {}
        Progress::File { path, size, placed: Placed::New } => tracing::info!(%path, size, "received"),
        Progress::File { path, size, placed: Placed::Same } => {
            tracing::debug!(%path, size, "received what is there already");
        }
    }
}
