//! Bad input to `corecast`: one clear line, a code of sysexits.h, nothing half-written.
#![cfg(feature = "tools")]
#![allow(clippy::unwrap_used)]

mod desk;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::{Command, Output};

use desk::{refused, tool};

/// A folder of one test, and the tools run in it.
struct Desk(tempfile::TempDir);

impl Desk {
    fn new() -> Desk {
        Desk(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn run(&self, line: &str) -> Output {
        tool(env!("CARGO_BIN_EXE_corecast"), self.0.path(), line)
    }

    /// Runs a command that must succeed, and gives what it printed.
    fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs a command that must fail with this code and this text in its one line.
    fn fails(&self, line: &str, code: i32, with: &str) {
        refused(&self.run(line), "corecast", line, code, with);
    }

    /// A subnet of one member with its configuration in `node.toml`; gives the member's id.
    fn node(&self) -> String {
        let id = self.ok("keygen --out key.pem");
        self.ok("registry init --subnet test --lanes 1 --out registry.toml");
        self.ok("registry add --registry registry.toml --key-file key.pem --address 127.0.0.1:4100");
        fs::create_dir(self.path("inbox")).unwrap();
        fs::create_dir(self.path("outbox")).unwrap();
        self.write("node.toml", CONFIG);
        id
    }
}

const CONFIG: &str =
    "registry = \"registry.toml\"\nkey = \"key.pem\"\ninbox = \"inbox\"\noutbox = \"outbox\"\n";
const CHECK: &str = "node --check-config --config node.toml";

const LONG_SOCKET: &str = concat!(
    "admin = \"",
    "a234567890b234567890c234567890d234567890e234567890f234567890g234567890h234567890i234567890j234567890",
    "\"\n"
);

/// Permissions do not bind root, so what they refuse cannot be shown to it.
fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

#[test]
fn help_and_version_succeed() {
    let desk = Desk::new();
    assert!(desk.ok("").contains("Usage: corecast"));
    assert!(desk.ok("--help").contains("devnet"));
    assert!(desk.ok("devnet --help").contains("--nodes"));
    assert!(desk.ok("registry").contains("Usage: corecast registry"));
    assert!(desk.ok("-V").starts_with("corecast 0."));
}

#[test]
fn unknown_commands_and_flags_get_a_hint() {
    let desk = Desk::new();
    desk.fails("devnett", 64, "unrecognized subcommand 'devnett'; ");
    desk.fails("devnett", 64, "'devnet'");
    desk.fails("devnet --node 3", 64, "a similar argument exists: '--nodes'");
    desk.fails("devnet --nodes 3 --nodes 4", 64, "cannot be used multiple times");
    desk.fails("keygen", 64, "--out <FILE>");
    desk.fails("registry shew", 64, "'show'; `corecast registry --help` says what is allowed");
}

#[test]
fn counts_out_of_range_are_refused_with_the_range() {
    let desk = Desk::new();
    desk.fails("devnet --nodes 0", 64, "0 is not in 1..=128");
    desk.fails("devnet --nodes four", 64, "invalid digit");
    desk.fails("devnet --lanes 0", 64, "0 is not in 1..=256");
    desk.fails("devnet --nodes 100 --lanes 100", 64, "10000 sockets; one process may have 512");
    desk.fails("devnet --seconds 0", 64, "0 is not in 1..=86400");
    desk.fails("devnet --mtu 1199", 64, "1199 is not in 1200..=9000");
    desk.fails("devnet --cores 0,0", 64, "core 0 is named twice");
    desk.fails("devnet --cores 1023", 64, "core 1023 is not among those");
    desk.fails("devnet --cores zero", 64, "write numbers and ranges, as in 0-3,6");
}

#[test]
fn the_folder_of_files_must_be_there_and_hold_some() {
    let desk = Desk::new();
    desk.write("file", "x");
    fs::create_dir(desk.path("empty")).unwrap();
    desk.fails("devnet --files in", 64, "--out <DIR>");
    desk.fails("devnet --files missing --out out", 66, "missing: cannot be read: No such file");
    desk.fails("devnet --files file --out out", 66, "file: not a folder");
    desk.fails("devnet --files empty --out out", 66, "no regular file in it");
    assert!(!desk.path("out").exists());
}

#[test]
fn a_folder_that_may_not_be_read_is_told_apart() {
    let desk = Desk::new();
    desk.write("in/sub/file", "x");
    fs::set_permissions(desk.path("in/sub"), fs::Permissions::from_mode(0o000)).unwrap();
    if !is_root() {
        desk.fails("devnet --files in --out out", 77, "in/sub: cannot be read: Permission denied");
        assert!(!desk.path("out").exists());
    }
    fs::set_permissions(desk.path("in/sub"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_output_folder_must_be_new_or_empty() {
    let desk = Desk::new();
    desk.write("in/file", "x");
    desk.write("out/precious", "x");
    desk.fails("devnet --files in --out out", 73, "out: exists and is not empty");
    desk.fails("devnet --files in --out in/out", 73, "lies inside the folder that is broadcast");
    desk.fails("devnet --files in --out in/file", 73, "exists and is no folder");
    assert_eq!(fs::read_dir(desk.path("out")).unwrap().count(), 1);
    assert!(!desk.path("in/out").exists());
}

#[test]
fn a_key_is_made_once_and_never_overwritten() {
    let desk = Desk::new();
    let id = desk.ok("keygen --out key.pem");
    assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let before = fs::read(desk.path("key.pem")).unwrap();
    desk.fails("keygen --out key.pem", 73, "key.pem: exists, and a key file is never overwritten");
    assert_eq!(fs::read(desk.path("key.pem")).unwrap(), before);
    desk.fails("keygen --out missing/key.pem", 73, "missing/key.pem: no such file or folder");
}

#[test]
fn a_registry_is_made_filled_and_shown() {
    let desk = Desk::new();
    let id = desk.ok("keygen --out key.pem");
    desk.ok("registry init --subnet test --lanes 2 --out r.toml");
    desk.fails("registry init --subnet test --out r.toml", 73, "r.toml: exists");
    desk.ok("registry add --registry r.toml --key-file key.pem --address 127.0.0.1:4100");
    let shown = desk.ok("registry show --registry r.toml");
    assert_eq!(shown, format!("subnet \"test\", version 2, lanes 2, members 1\n{id}  127.0.0.1:4100"));
    let before = fs::read(desk.path("r.toml")).unwrap();
    let other = "11".repeat(32);
    let add = |rest: &str| format!("registry add --registry r.toml {rest}");
    desk.fails(&add(&format!("--id {id} --address 127.0.0.1:5100")), 64, "stands in the record twice");
    desk.fails(&add(&format!("--id {other} --address 127.0.0.1:4101")), 64, "is in use by another entry");
    desk.fails(&add(&format!("--id {other} --address 0.0.0.0:1")), 64, "must name one host");
    desk.fails(&add(&format!("--id {other} --address node:1")), 64, "host names are not looked up");
    desk.fails(&add("--id 1122 --address 127.0.0.1:1"), 64, "expected 64 hexadecimal digits");
    desk.fails(&add("--address 127.0.0.1:1"), 64, "--key-file <FILE>|--id <ID>");
    desk.fails("registry init --subnet test --lanes 0 --out s.toml", 64, "0 is not in 1..=256");
    assert_eq!(fs::read(desk.path("r.toml")).unwrap(), before);
    assert!(!desk.path("s.toml").exists());
}

#[test]
fn a_broken_registry_is_placed_by_line_and_column() {
    let desk = Desk::new();
    let show = "registry show --registry r.toml";
    desk.fails(show, 66, "r.toml: no such file");
    let cases = [
        ("", "r.toml:1:1: missing field `subnet`"),
        ("subnet = \"s\"\nversion = 1\nlanes = 1\ncolor = 1\n", "r.toml:4:1: unknown field `color`"),
        ("subnet = \"s\"\nversion = 1\nlanes = \"one\"\n", "r.toml:3:9: invalid type"),
        ("subnet = \"s\"\nversion = 1\nlanes = 0\n", "r.toml:3:1: a subnet has 1 to 256 lanes, not 0"),
        ("subnet = \"s\"\nversion = 1\nlanes = 300\n", "r.toml:3:1: a subnet has 1 to 256 lanes, not 300"),
        ("subnet = s\n", "r.toml:1:10: "),
    ];
    for (text, with) in cases {
        desk.write("r.toml", text);
        desk.fails(show, 78, with);
    }
    let member = format!("[[members]]\nkey = \"{}\"\naddresses = [\"127.0.0.1:4100\"]\n", "11".repeat(32));
    desk.write("r.toml", &format!("subnet = \"s\"\nversion = 1\nlanes = 1\n{member}{member}"));
    desk.fails(show, 78, "r.toml:8:8: member 1111");
    desk.write("r.toml", &"#".repeat(2 << 20));
    desk.fails(show, 78, "more than 1048576 bytes");
    fs::write(desk.path("r.toml"), [0xff, 0xfe]).unwrap();
    desk.fails(show, 78, "r.toml:1:1: not UTF-8");
    desk.fails("registry show --registry .", 78, "found a folder");
}

#[test]
fn a_good_configuration_passes_its_check() {
    let desk = Desk::new();
    let id = desk.node();
    assert_eq!(desk.ok(CHECK), format!("node.toml: good: node {id} of subnet \"test\""));
}

#[test]
fn a_bad_configuration_is_placed_by_line_and_column() {
    let desk = Desk::new();
    desk.fails(CHECK, 66, "node.toml: no such file");
    desk.node();
    let cases = [
        ("colour = 1\n", "node.toml:5:1: unknown field `colour`, expected one of `registry`"),
        ("mtu = \"big\"\n", "node.toml:5:7: invalid type: string \"big\", expected u16"),
        ("mtu = 10\n", "node.toml:5:7: mtu is 10; allowed is 1200"),
        ("artifact_bytes = 1\n", "node.toml:5:18: artifact_bytes is 1; allowed is 1024"),
        ("active_files = 0\n", "node.toml:5:16: topic 1: slots is 0; allowed is 1 to"),
        ("relay_seconds = 100000\n", "node.toml:5:17: 100000 is too much; at most 86400"),
        (
            "admin = \"gone/node.sock\"\n",
            "node.toml:5:9: gone/node.sock: no name in a folder that is there; make the folder",
        ),
        ("admin = \"..\"\n", "node.toml:5:9: ..: no name in a folder that is there"),
        (LONG_SOCKET, "node.toml:5:9: the path of the admin socket has 100 bytes; at most 88 are allowed"),
        ("cores = [0, 0]\n", "node.toml:5:9: cores names each core once"),
        ("cores = [1000]\n", "node.toml:5:9: core 1000 is not among those"),
        ("cores = []\n", "node.toml:5:9: cores names each core once, and one at least"),
        ("mtu = 1452\nmtu = 1452\n", "node.toml:6:1: duplicate key"),
    ];
    for (line, with) in cases {
        desk.write("node.toml", &format!("{CONFIG}{line}"));
        desk.fails(CHECK, 78, with);
    }
    desk.write("node.toml", &CONFIG.replace("\"outbox\"", "\"inbox/out\""));
    fs::create_dir(desk.path("inbox/out")).unwrap();
    desk.fails(CHECK, 78, "node.toml:4:10: inbox and outbox lie inside one another");
    desk.write("node.toml", &CONFIG.replace("\"inbox\"", "\"nowhere\""));
    desk.fails(CHECK, 66, "nowhere: cannot be used; make the folder");
    desk.write("node.toml", &CONFIG.replace("\"inbox\"", "\"key.pem\""));
    desk.fails(CHECK, 78, "key.pem: not a folder");
    desk.write("node.toml", &CONFIG.replace("key = \"key.pem\"\n", ""));
    desk.fails(CHECK, 78, "missing field `key`");
}

#[test]
fn a_key_must_be_private_whole_and_in_the_registry() {
    let desk = Desk::new();
    desk.node();
    let key = fs::read_to_string(desk.path("key.pem")).unwrap();
    let mode = |mode| fs::set_permissions(desk.path("key.pem"), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    desk.fails(
        CHECK,
        77,
        "key.pem: mode 0644 lets others use this secret key; only its owner may: `chmod 600",
    );
    mode(0o600);
    desk.write("key.pem", &key[..70]);
    desk.fails(CHECK, 65, "key.pem: the PEM text is damaged or cut off");
    desk.write("key.pem", &key.replace("PRIVATE", "PUBLIC"));
    desk.fails(CHECK, 65, "key.pem: found `BEGIN PUBLIC KEY`");
    desk.write("key.pem", &key.repeat(2));
    desk.fails(CHECK, 65, "key.pem: found 2 PEM sections");
    fs::remove_file(desk.path("key.pem")).unwrap();
    desk.fails(CHECK, 66, "key.pem: no such file");
    desk.ok("keygen --out key.pem");
    desk.fails(CHECK, 78, "node.toml:2:7: the key is that of ");
    desk.fails(CHECK, 78, "which is no member in registry.toml; add it");
}

#[test]
fn a_registry_without_members_runs_no_node() {
    let desk = Desk::new();
    desk.node();
    fs::remove_file(desk.path("registry.toml")).unwrap();
    desk.fails(CHECK, 66, "registry.toml: no such file");
    desk.ok("registry init --subnet test --out registry.toml");
    desk.fails(CHECK, 78, "1 to 4096 members, not 0");
}

#[test]
fn a_port_in_use_is_named_and_leaves_the_outbox_clean() {
    let desk = Desk::new();
    desk.node();
    let holder = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = holder.local_addr().unwrap().to_string();
    let registry = fs::read_to_string(desk.path("registry.toml")).unwrap();
    desk.write("registry.toml", &registry.replace("127.0.0.1:4100", &address));
    desk.fails("node --config node.toml", 69, &format!("{address} is in use by another process"));
    assert_eq!(fs::read_dir(desk.path("outbox")).unwrap().count(), 0);
}

#[test]
fn too_little_locked_memory_is_told_with_the_limit() {
    let desk = Desk::new();
    desk.write("in/file", "x");
    let line = format!("ulimit -l 64 && exec {} devnet --files in --out out", env!("CARGO_BIN_EXE_corecast"));
    let output = Command::new("sh").args(["-c", &line]).current_dir(desk.0.path()).output().unwrap();
    refused(&output, "corecast", &line, 71, "locked memory: ");
}

#[test]
fn a_reader_that_goes_away_is_no_panic() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = Command::new(env!("CARGO_BIN_EXE_corecast")).arg("--help").stdout(writer).output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_folder_comes_to_every_node() {
    let desk = Desk::new();
    desk.write("in/a/small", "small");
    desk.write("in/empty", "");
    desk.write("in/large", &"0123456789abcdef".repeat(600_000));
    let output = desk.run("devnet --nodes 3 --files in --out out --json");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&json["nodes"], &json["verified"]), (&3.into(), &true.into()));
    assert_eq!(json["artifacts"], 5, "two whole files, two chunks and their manifest");
    assert_eq!(json["delivered_artifacts"], 10);
    for node in 0..3 {
        for name in ["a/small", "empty", "large"] {
            let copy = fs::read(desk.path(&format!("out/node-{node}/{name}"))).unwrap();
            assert!(copy == fs::read(desk.path(&format!("in/{name}"))).unwrap(), "{name} at node {node}");
        }
    }
}

#[test]
fn questions_to_a_node_that_is_not_there_are_answered_in_one_line() {
    let desk = Desk::new();
    let id = "ab".repeat(32);
    desk.fails("stats", 64, "--socket <PATH>");
    desk.fails(&format!("trace {id}"), 64, "--socket <PATH>");
    desk.fails("trace abc --socket node.sock", 64, "abc");
    desk.fails("stats --socket node.sock", 66, "node.sock: there is no such socket; name the socket that");
    desk.fails(&format!("trace {id} --socket node.sock"), 66, "node.sock: there is no such socket");
    drop(std::os::unix::net::UnixListener::bind(desk.path("left.sock")).unwrap());
    desk.fails("stats --socket left.sock", 69, "left.sock: no node answers; start it, or name its socket");
    let long = "a".repeat(200);
    desk.fails(&format!("stats --socket {long}"), 64, "SUN_LEN");
}
