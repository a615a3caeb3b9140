//! What a node process tells over its admin socket, to programs and to people.
#![cfg(feature = "tools")]
#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

mod desk;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use corecast::{Config, Event, KeyFile, Node, RegistryFile, TopicConfig, TopicId};
use desk::{refused, tool};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// A node process with an admin socket, and the keys and the registry of it and one more member.
struct Daemon {
    root: tempfile::TempDir,
    child: Option<Child>,
}

impl Daemon {
    fn prepare() -> Daemon {
        let daemon = Daemon { root: tempfile::tempdir().unwrap(), child: None };
        let sockets = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        daemon.ok("registry init --subnet test --out registry.toml");
        for (node, socket) in sockets.iter().enumerate() {
            daemon.ok(&format!("keygen --out key-{node}.pem"));
            let member = format!("--key-file key-{node}.pem --address {}", socket.local_addr().unwrap());
            daemon.ok(&format!("registry add --registry registry.toml {member}"));
        }
        ["inbox", "outbox"].iter().for_each(|name| fs::create_dir(daemon.path(name)).unwrap());
        let config = "registry = \"registry.toml\"\nkey = \"key-0.pem\"\ninbox = \"inbox\"\n\
                      outbox = \"outbox\"\ncores = [0]\nadmin = \"node.sock\"\n";
        fs::write(daemon.path("node.toml"), config).unwrap();
        daemon
    }

    fn start() -> Daemon {
        let mut daemon = Daemon::prepare();
        let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
        let command = command.args(["node", "--config", "node.toml"]).current_dir(daemon.root.path());
        let log = fs::File::create(daemon.path("log")).unwrap();
        daemon.child = Some(command.stderr(log).spawn().unwrap());
        until("the socket is there", || UnixStream::connect(daemon.path("node.sock")).is_ok());
        daemon
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn run(&self, line: &str) -> Output {
        tool(env!("CARGO_BIN_EXE_corecast"), self.root.path(), line)
    }

    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.ok(line)).unwrap()
    }

    fn end(&mut self) {
        let mut child = self.child.take().unwrap();
        assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
        assert!(child.wait().unwrap().success());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        for child in self.child.iter_mut() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_node_tells_what_it_counts_and_where_an_artifact_is() {
    let mut daemon = Daemon::start();
    let mode = fs::metadata(daemon.path("node.sock")).unwrap();
    assert!(mode.file_type().is_socket() && mode.permissions().mode() & 0o777 == 0o600);
    let key = KeyFile::new(daemon.path("key-1.pem")).load().unwrap();
    let peer = Node::start(Config::new(key, RegistryFile::new(daemon.path("registry.toml")))).unwrap();
    let (topic, deliveries) = peer.topic(TopicConfig::new(TopicId(1), "files")).unwrap();
    fs::write(daemon.path("draft"), "hello").unwrap();
    fs::rename(daemon.path("draft"), daemon.path("inbox/file")).unwrap();
    let Ok(Event::Delivered { artifact, from }) = deliveries.recv_timeout(PATIENCE) else {
        panic!("no delivery: {}", fs::read_to_string(daemon.path("log")).unwrap())
    };

    let stats = daemon.json("stats --socket node.sock --json");
    assert_eq!((&stats["node"], &stats["healthy"]), (&from.to_string().into(), &true.into()));
    until("it is counted", || {
        let stats = daemon.json("stats --socket node.sock --json");
        let figures = [&stats["topics"][0], &stats["classes"]["bulk"]];
        figures.iter().all(|of| (&of["broadcasts"], &of["active"]) == (&1.into(), &1.into()))
    });
    let stages = daemon.json("stats --socket node.sock --json")["topics"][0]["stages"].clone();
    assert_eq!((&stages[0]["stage"], &stages[0]["count"]), (&"ingress".into(), &1.into()));
    let text = daemon.ok("stats --socket node.sock");
    assert!(text.contains("1 of 1 peers connected") && text.contains("ingress"), "{text}");

    let trace = format!("trace {} --socket node.sock", artifact.id);
    let told = daemon.json(&format!("{trace} --json"));
    let told = &told["traces"][0];
    assert_eq!((&told["state"], &told["size"]), (&"active".into(), &artifact.bytes.len().into()));
    assert_eq!(told["peers"][0]["told"], true);
    assert_eq!(told["events"][0]["what"], "broadcast");
    assert_eq!(told["events"][1]["peer"], peer.id().to_string());
    let text = daemon.ok(&trace);
    assert!(text.contains("active for") && text.contains(&peer.id().to_string()), "{text}");
    let unknown = daemon.ok(&format!("trace {} --socket node.sock", "ab".repeat(32)));
    assert!(unknown.contains("nothing is known or remembered of it here"), "{unknown}");

    topic.release(&artifact.id).unwrap();
    // Who asks nothing does not keep it from ending.
    let _idle = UnixStream::connect(daemon.path("node.sock")).unwrap();
    daemon.end();
    assert!(!daemon.path("node.sock").exists());
    refused(&daemon.run("stats --socket node.sock"), "corecast", "stats", 66, "there is no such socket");
}

#[test]
fn bad_questions_are_answered_and_harm_nobody() {
    let daemon = Daemon::start();
    let asking = |question: &[u8]| {
        let mut stream = UnixStream::connect(daemon.path("node.sock")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(question).unwrap();
        stream
    };
    let answered = |stream: UnixStream| {
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).unwrap();
        let answer: Value = serde_json::from_str(&answer).unwrap();
        answer["error"].as_str().map(str::to_owned)
    };
    let ask = |question: &[u8]| answered(asking(question));
    assert_eq!(ask(b"what?\n").unwrap(), "ask `stats`, `stages` or `trace ID`");
    assert!(ask(b"trace 12\n").unwrap().starts_with("\"12\" is no artifact's id: "));
    assert_eq!(ask(&[b'x'; 500]).unwrap(), "a question is a line of at most 128 bytes");
    assert!(ask(b"\xff\xfe\n").is_some());
    assert_eq!(ask(b"stages\n"), None);
    // One that asks nothing holds others up for a moment only.
    let _idle = UnixStream::connect(daemon.path("node.sock")).unwrap();
    assert_eq!(ask(b"stats\n"), None);
    // So does one that asks without end and takes no answer.
    let mut greedy = UnixStream::connect(daemon.path("node.sock")).unwrap();
    greedy.set_nonblocking(true).unwrap();
    while greedy.write(b"stats\n").is_ok() {}
    assert_eq!(ask(b"stats\n"), None);
    let many: Vec<_> = (0..40).map(|_| asking(b"stages\n")).collect();
    many.into_iter().for_each(|stream| assert_eq!(answered(stream), None));
}

#[test]
fn a_socket_that_was_left_is_replaced_and_others_are_left_alone() {
    let daemon = Daemon::prepare();
    fs::write(daemon.path("node.sock"), "a file").unwrap();
    let line = "node --config node.toml";
    let fails = |with| {
        let output = daemon.run(line);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(73) && stderr.contains(with), "{stderr}");
    };
    fails("node.sock: is there and is no socket; move it away");
    assert_eq!(fs::read_to_string(daemon.path("node.sock")).unwrap(), "a file");
    fs::remove_file(daemon.path("node.sock")).unwrap();
    let other = UnixListener::bind(daemon.path("node.sock")).unwrap();
    fails("node.sock: another process answers there; end it, or name another socket");
    drop(other);
    drop(daemon);

    let mut daemon = Daemon::start();
    let mut child = daemon.child.take().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(daemon.path("node.sock").exists());
    let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
    let command = command.args(line.split(' ')).current_dir(daemon.root.path());
    daemon.child = Some(command.stderr(fs::File::create(daemon.path("log")).unwrap()).spawn().unwrap());
    until("it answers again", || daemon.run("stats --socket node.sock").status.success());
}
