//! Nodes as processes of their own: files from inbox to outbox, an end in good order, and a death.
#![cfg(feature = "tools")]
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(30);

/// A subnet of processes, one folder each.
struct Subnet {
    root: tempfile::TempDir,
    nodes: Vec<Option<Child>>,
}

impl Subnet {
    fn start(nodes: usize) -> Subnet {
        let root = tempfile::tempdir().unwrap();
        // All held until the last is found, so that no two are the same.
        let sockets: Vec<UdpSocket> = (0..nodes).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        corecast(root.path(), "registry init --subnet test --out registry.toml");
        for (node, socket) in sockets.iter().enumerate() {
            let folder = root.path().join(node.to_string());
            fs::create_dir_all(folder.join("inbox")).unwrap();
            fs::create_dir_all(folder.join("outbox")).unwrap();
            corecast(root.path(), &format!("keygen --out {node}/key.pem"));
            let address = socket.local_addr().unwrap();
            let member = format!("--key-file {node}/key.pem --address {address}");
            corecast(root.path(), &format!("registry add --registry registry.toml {member}"));
            let config = "registry = \"../registry.toml\"\nkey = \"key.pem\"\ninbox = \"inbox\"\n\
                          outbox = \"outbox\"\ncores = [0]\nartifact_bytes = 100000\n";
            fs::write(folder.join("node.toml"), config).unwrap();
        }
        drop(sockets);
        let mut subnet = Subnet { root, nodes: (0..nodes).map(|_| None).collect() };
        (0..nodes).for_each(|node| subnet.launch(node));
        subnet
    }

    fn launch(&mut self, node: usize) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
        let command = command.args(["node", "--config", "node.toml"]).current_dir(self.folder(node));
        let log = File::options().create(true).append(true).open(self.folder(node).join("log")).unwrap();
        self.nodes[node] = Some(command.env("RUST_LOG", "debug").stderr(log).spawn().unwrap());
    }

    fn folder(&self, node: usize) -> PathBuf {
        self.root.path().join(node.to_string())
    }

    /// Moves a file into a node's inbox.
    fn post(&self, node: usize, name: &str, content: &[u8]) {
        fs::write(self.folder(node).join("draft"), content).unwrap();
        fs::rename(self.folder(node).join("draft"), self.folder(node).join("inbox").join(name)).unwrap();
    }

    /// Waits until the file is in the node's outbox with this content.
    fn expect(&self, node: usize, name: &str, content: &[u8]) {
        let path = self.folder(node).join("outbox").join(name);
        let begin = Instant::now();
        while fs::read(&path).ok().as_deref() != Some(content) {
            let log = || fs::read_to_string(self.folder(node).join("log")).unwrap();
            assert!(begin.elapsed() < PATIENCE, "{name} did not come to node {node}:\n{}", log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends a node with a signal, and gives its exit code and how long it took.
    fn end(&mut self, node: usize, signal: &str) -> (Option<i32>, Duration) {
        let mut child = self.nodes[node].take().unwrap();
        let begin = Instant::now();
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        (child.wait().unwrap().code(), begin.elapsed())
    }
}

impl Drop for Subnet {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

fn corecast(folder: &Path, line: &str) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_corecast"));
    let output = command.args(line.split_whitespace()).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_file_moved_into_one_inbox_comes_to_every_other_outbox() {
    let mut subnet = Subnet::start(3);
    let large: Vec<u8> = (0..1_000_000_u32).map(|i| (i / 3) as u8).collect();
    subnet.post(0, "small", b"hello");
    subnet.post(1, "large", &large);
    subnet.post(2, "empty", b"");
    for node in 0..3 {
        for (maker, name, content) in [(0, "small", &b"hello"[..]), (1, "large", &large), (2, "empty", b"")] {
            if node != maker {
                subnet.expect(node, name, content);
            }
        }
    }
    for node in 0..3 {
        let (code, took) = subnet.end(node, "-TERM");
        assert_eq!(code, Some(0));
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert!(!subnet.folder(node).join("outbox/.corecast-partial").exists());
    }
}

#[test]
fn a_node_that_died_receives_after_its_restart_all_that_is_active() {
    let mut subnet = Subnet::start(3);
    subnet.post(0, "before", b"before");
    subnet.expect(1, "before", b"before");
    subnet.expect(2, "before", b"before");
    subnet.end(2, "-KILL");
    fs::remove_file(subnet.folder(2).join("outbox/before")).unwrap();
    for i in 0..20 {
        subnet.post(i % 2, &format!("meanwhile-{i}"), format!("content {i}").as_bytes());
    }
    for i in 0..20 {
        subnet.expect((i + 1) % 2, &format!("meanwhile-{i}"), format!("content {i}").as_bytes());
    }
    subnet.launch(2);
    subnet.expect(2, "before", b"before");
    for i in 0..20 {
        subnet.expect(2, &format!("meanwhile-{i}"), format!("content {i}").as_bytes());
    }
    subnet.post(2, "after", b"after");
    subnet.expect(0, "after", b"after");
    subnet.expect(1, "after", b"after");
}

#[test]
fn a_file_taken_out_of_the_inbox_does_not_come_to_who_starts_later() {
    let mut subnet = Subnet::start(2);
    subnet.post(0, "kept", b"kept");
    subnet.post(0, "taken", b"taken");
    subnet.expect(1, "taken", b"taken");
    subnet.expect(1, "kept", b"kept");
    subnet.end(1, "-TERM");
    fs::remove_file(subnet.folder(0).join("inbox/taken")).unwrap();
    // Two looks at the inbox later the change has been seen.
    std::thread::sleep(Duration::from_millis(600));
    for name in ["kept", "taken"] {
        fs::remove_file(subnet.folder(1).join("outbox").join(name)).unwrap();
    }
    subnet.launch(1);
    subnet.expect(1, "kept", b"kept");
    std::thread::sleep(Duration::from_millis(200));
    assert!(!subnet.folder(1).join("outbox/taken").exists());
}
