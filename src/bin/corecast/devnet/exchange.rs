//! The files on their way: makers read and broadcast, receivers hand on, writers write, and the main thread watches.
//!
//! Threads, none of them on the data path: one maker and one receiver for each node, and a few writers. The queue to the
//! writers is bounded; when it is full receivers wait, then the topics' queues fill, and the nodes hold their peers back.
//! What makers may have under way is bounded by the ledger until every node has written it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use corecast::types::ArtifactId;
use crossbeam_channel::{Receiver, Sender, bounded};

use super::ledger::{Ledger, Totals};
use super::progress::Progress;
use super::report::Report;
use super::source::Source;
use super::verify;
use crate::files::assemble::{Assembler, Progress as FileProgress};
use crate::files::folder::Folder;
use crate::files::relpath::RelPath;
use crate::files::split::Pieces;
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::loopback::Plan;
use crate::subnet::port::{Arrival, Feed, Port, Refusal, Subnet};
use crate::subnet::stop::Stop;

/// Artifacts that wait for the writers.
const WRITE_QUEUE: usize = 256;
/// How long nothing may happen before the run is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often waiting threads look whether the run is over.
const GLANCE: Duration = Duration::from_millis(50);

/// An artifact for a node's folder.
struct Write {
    node: usize,
    id: ArtifactId,
    body: Bytes,
}

/// What all threads share.
struct Shared<'a> {
    source: &'a Source,
    artifact_bytes: usize,
    assemblers: Vec<Assembler>,
    ports: Vec<Arc<dyn Port>>,
    ledger: Ledger,
    relay: bool,
    over: AtomicBool,
}

/// Broadcasts all files and writes them at every node; then compares every copy with its source.
pub(crate) fn run(
    plan: &Plan,
    source: &Source,
    folders: &[PathBuf],
    relay: bool,
    stop: &Stop,
) -> Result<Report, Fault> {
    let mut subnet = super::start(plan)?;
    let moved = exchange(&mut subnet, plan, source, folders, relay, stop);
    let counters = subnet.host.counters();
    let (totals, seconds) = super::shut_down(subnet, moved)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let flaw = verify::compare(source, folders, threads, stop)?;
    Ok(Report {
        nodes: plan.nodes,
        lanes: plan.lanes,
        files: Some((source.files.len() as u64, source.bytes)),
        artifacts: totals.artifacts,
        deliveries: totals.deliveries,
        delivered_bytes: totals.delivered_bytes,
        seconds,
        latency: totals.latency,
        counters,
        flaw,
    })
}

fn exchange(
    subnet: &mut Subnet,
    plan: &Plan,
    source: &Source,
    folders: &[PathBuf],
    relay: bool,
    stop: &Stop,
) -> Result<(Totals, f64), Fault> {
    let assemblers: Result<Vec<_>, _> =
        folders.iter().map(|folder| Folder::open(folder).map(Assembler::new)).collect();
    let ports: Vec<_> = subnet.ports.iter().map(|topics| Arc::clone(&topics[0])).collect();
    let shared = Shared {
        source,
        artifact_bytes: plan.settings.artifact_bytes as usize,
        assemblers: assemblers?,
        ledger: Ledger::new(ports.clone(), relay)?,
        ports,
        relay,
        over: AtomicBool::new(false),
    };
    let begin = Instant::now();
    let (sender, receiver) = bounded(WRITE_QUEUE);
    std::thread::scope(|scope| {
        let shared = &shared;
        let writers = std::thread::available_parallelism().map_or(1, usize::from).clamp(1, 4);
        for _ in 0..writers {
            let receiver = receiver.clone();
            scope.spawn(move || write(shared, &receiver));
        }
        for (node, feeds) in subnet.feeds.iter_mut().enumerate() {
            let sender = sender.clone();
            scope
                .spawn(move || feeds.iter_mut().for_each(|feed| receive(shared, node, &mut **feed, &sender)));
        }
        let makers = spawn_makers(scope, shared, &sender);
        drop((sender, receiver));
        watch(shared, &makers, stop);
        shared.over.store(true, Ordering::Relaxed);
    });
    let seconds = begin.elapsed().as_secs_f64();
    let cleared: Result<Vec<()>, Fault> =
        shared.assemblers.iter().map(|assembler| assembler.folder().finish()).collect();
    if let Some(fault) = shared.ledger.fault() {
        return Err(fault);
    }
    cleared?;
    Ok((shared.ledger.totals().0, seconds))
}

/// Waits until all files are everywhere, or something is wrong.
fn watch(shared: &Shared<'_>, makers: &[ScopedJoinHandle<'_, ()>], stop: &Stop) {
    let nodes = shared.assemblers.len() as u64;
    let (files, bytes) = (shared.source.files.len() as u64 * nodes, shared.source.bytes * nodes);
    let progress = Progress::new("broadcasting", files, bytes);
    let mut last_change = (Instant::now(), (0, 0));
    loop {
        let now_done = shared.ledger.watch(GLANCE);
        progress.show(now_done.0, now_done.1);
        if now_done != last_change.1 {
            last_change = (Instant::now(), now_done);
        }
        if shared.ledger.fault().is_some() {
            return;
        }
        if stop.is_set() {
            let problem = format!("interrupted: {} of {files} files were in their place", now_done.0);
            return shared.ledger.fail(Fault::new(Exit::Interrupted, problem));
        }
        if makers.iter().all(ScopedJoinHandle::is_finished) && shared.ledger.totals().1 == 0 {
            return;
        }
        if last_change.0.elapsed() > PATIENCE {
            let (_, underway) = shared.ledger.totals();
            let problem = format!(
                "nothing has arrived for {} s: {} of {files} files are in their place, {underway} artifacts are under way",
                PATIENCE.as_secs(),
                now_done.0
            );
            return shared.ledger.fail(Fault::new(Exit::Unavailable, problem));
        }
    }
}

fn spawn_makers<'scope>(
    scope: &'scope Scope<'scope, '_>,
    shared: &'scope Shared<'_>,
    writers: &Sender<Write>,
) -> Vec<ScopedJoinHandle<'scope, ()>> {
    let nodes = shared.ports.len();
    let maker = |node: usize| {
        let writers = writers.clone();
        scope.spawn(move || {
            let files = shared.source.files.iter().skip(node).step_by(nodes);
            for path in files {
                match broadcast_file(shared, node, path, &writers) {
                    Ok(true) => {}
                    Ok(false) => return,
                    Err(fault) => return shared.ledger.fail(fault),
                }
            }
        })
    };
    (0..nodes).map(maker).collect()
}

/// `false` when the run is over.
fn broadcast_file(
    shared: &Shared<'_>,
    node: usize,
    path: &RelPath,
    writers: &Sender<Write>,
) -> Result<bool, Fault> {
    let mut pieces = Pieces::open(&shared.source.root, path, shared.artifact_bytes)?;
    while let Some(body) = pieces.next()? {
        if !shared.ledger.wait_for_room(node, body.len()) {
            return Ok(false);
        }
        let Some(id) = broadcast(shared, node, &body)? else { return Ok(false) };
        pieces.sent(id);
        // The maker's own folder gets the file by the same way as the others.
        if writers.send(Write { node, id, body }).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `None` when the run is over.
fn broadcast(shared: &Shared<'_>, node: usize, body: &Bytes) -> Result<Option<ArtifactId>, Fault> {
    let port = &shared.ports[node];
    loop {
        let start = Instant::now();
        match port.broadcast(body.clone()) {
            Ok(id) => {
                shared.ledger.made(id, node, start, body.len());
                return Ok(Some(id));
            }
            Err(Refusal::Wait) if shared.ledger.fault().is_none() => {
                std::thread::sleep(Duration::from_micros(200));
            }
            Err(Refusal::Wait) => return Ok(None),
            Err(Refusal::TooLarge) => {
                let problem = format!("node {node} refuses an artifact of {} bytes as too large", body.len());
                return Err(Fault::new(Exit::Software, problem));
            }
            Err(Refusal::Stopped) => {
                return Err(Fault::new(Exit::Software, format!("node {node} has stopped by itself")));
            }
        }
    }
}

fn receive(shared: &Shared<'_>, node: usize, feed: &mut dyn Feed, writers: &Sender<Write>) {
    loop {
        let over = shared.over.load(Ordering::Relaxed);
        // What came by the end is still looked at: it may have come twice.
        let next = if over { feed.try_next() } else { feed.next(GLANCE) };
        match next {
            Some(Arrival::Delivered { id, bytes }) => {
                shared.ledger.arrived(id, node, bytes.len());
                if shared.relay {
                    shared.ports[node].validate(&id);
                }
                if writers.send(Write { node, id, body: bytes }).is_err() {
                    return;
                }
            }
            // Withdrawn: the maker aborted because all have it. All nodes have the same limits, so none refuses.
            // Consumed: inline consumers do that, and this is none.
            Some(Arrival::Withdrawn { .. } | Arrival::Refused { .. } | Arrival::Consumed { .. }) => {}
            None if over => return,
            None => {}
        }
    }
}

fn write(shared: &Shared<'_>, queue: &Receiver<Write>) {
    for Write { node, id, body } in queue {
        // After a fault the queue is only emptied, so that nobody waits for room in it.
        if shared.ledger.fault().is_some() {
            continue;
        }
        let bytes = body.len();
        match shared.assemblers[node].accept(id, body) {
            Ok(progress) => {
                if !shared.relay {
                    shared.ports[node].release(&id);
                }
                let files = u64::from(matches!(progress, FileProgress::File { .. }));
                shared.ledger.stored(id, bytes, files);
            }
            Err(fault) => shared.ledger.fail(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::subnet::hub::{self, Mishaps};
    use crate::subnet::inline::Inline;
    use corecast::config::Settings;
    use std::fs;

    const ARTIFACT_BYTES: usize = 64 << 10;

    struct Setting {
        _root: tempfile::TempDir,
        source: Source,
        folders: Vec<PathBuf>,
        plan: Plan,
    }

    fn setting(files: &[(&str, usize)], nodes: u16) -> Setting {
        let root = tempfile::tempdir().unwrap();
        let (input, out) = (root.path().join("in"), root.path().join("out"));
        for (index, (name, size)) in files.iter().enumerate() {
            let path = input.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, vec![index as u8; *size]).unwrap();
        }
        let source = super::super::source::list(&input).unwrap();
        let folders = super::super::source::make_out(&input, &out, nodes).unwrap();
        let mut settings = Settings::default();
        settings.artifact_bytes = ARTIFACT_BYTES as u32;
        let topics = vec![super::super::file_topic()];
        let plan = Plan {
            nodes,
            lanes: 1,
            cores: vec![0],
            spin: Duration::ZERO,
            settings,
            topics,
            inline: Inline::None,
        };
        Setting { _root: root, source, folders, plan }
    }

    impl Setting {
        fn exchange(&self, mishaps: Mishaps, stop: &Stop) -> Result<(Totals, f64), Fault> {
            let mishaps = Mishaps { artifact_bytes: ARTIFACT_BYTES, ..mishaps };
            let mut subnet = hub::start(usize::from(self.plan.nodes), &self.plan.topics, mishaps);
            exchange(&mut subnet, &self.plan, &self.source, &self.folders, false, stop)
        }

        fn difference(&self) -> Option<String> {
            verify::compare(&self.source, &self.folders, 2, &Stop::default()).unwrap()
        }
    }

    #[test]
    fn files_of_every_size_come_to_every_node() {
        let many: Vec<(String, usize)> = (0..200).map(|i| (format!("many/{}/{i}", i % 7), i * 3)).collect();
        let mut files: Vec<(&str, usize)> = many.iter().map(|(name, size)| (name.as_str(), *size)).collect();
        files.extend([("empty", 0), ("equal-a", 500), ("large", 5_000_000), ("edge", ARTIFACT_BYTES)]);
        let setting = setting(&files, 3);
        let (totals, _) = setting.exchange(Mishaps::default(), &Stop::default()).unwrap();
        assert_eq!(setting.difference(), None);
        assert_eq!(totals.files, 3 * 204);
        assert_eq!(totals.deliveries, 2 * totals.artifacts);
    }

    #[test]
    fn equal_contents_at_two_paths_are_both_delivered() {
        let setting = setting(&[("a", 100), ("b", 100)], 2);
        fs::write(setting.source.root.join("b"), [0; 100]).unwrap();
        setting.exchange(Mishaps::default(), &Stop::default()).unwrap();
        assert_eq!(setting.difference(), None);
    }

    #[test]
    fn a_file_that_vanished_ends_the_run_with_nothing_half_written() {
        let setting = setting(&[("a", 100), ("b", 1_000_000), ("c", 100)], 2);
        fs::remove_file(setting.source.root.join("b")).unwrap();
        let fault = setting.exchange(Mishaps::default(), &Stop::default()).unwrap_err();
        assert!(fault.to_string().contains("/b: vanished after it was listed"), "{fault}");
        for folder in &setting.folders {
            let names: Vec<_> =
                fs::read_dir(folder).unwrap().flatten().map(|entry| entry.file_name()).collect();
            assert!(names.iter().all(|name| name == "a" || name == "c"), "{names:?}");
        }
    }

    #[test]
    fn a_delivery_that_comes_twice_is_told() {
        let setting = setting(&[("a", 100), ("b", 100), ("c", 100)], 2);
        let twice = Mishaps { repeat: Some(2), ..Mishaps::default() };
        let fault = setting.exchange(twice, &Stop::default()).unwrap_err();
        assert_eq!(fault.exit, Exit::Software);
        assert!(fault.to_string().contains("twice"));
    }
}
