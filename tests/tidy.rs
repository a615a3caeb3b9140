//! The house's rules, executed: which way arrows point, where unsafe code, clocks and randomness may be, how long files and
//! functions may get. The allowances below only ever shrink.

#![allow(clippy::unwrap_used, reason = "a failure is the test's")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a source file, tests included.
const FILE_LINES: usize = 700;
/// Lines of a function.
const FUNCTION_LINES: usize = 70;
/// Characters of a line.
const LINE_CHARS: usize = 130;

/// Files that exist to hold unsafe code.
const UNSAFE_FILES: &[&str] = &[
    "src/bin/corecast_load/system.rs",
    "src/bin/subnet/memory.rs",
    "src/node/io/",
    "src/node/preflight.rs",
    "src/sync/wake.rs",
];

/// Which layers a layer may name. A layer may always name itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("types", &[]),
    ("wire", &["types"]),
    ("sync", &["types"]),
    ("metrics", &["types"]),
    ("config", &["types", "wire", "metrics"]),
    ("proto", &["types", "wire", "sync", "metrics", "config"]),
    ("engine", &["types", "wire", "sync", "metrics", "config", "proto"]),
    ("quic", &["types", "wire", "metrics"]),
    ("sim", &["types", "wire", "sync", "metrics", "config", "proto", "engine", "quic"]),
];

/// Below the shell nothing reads a clock, draws randomness, opens a socket or a file, or sleeps.
const SHELL_ONLY: &[&str] = &[
    "Instant::now",
    "SystemTime::now",
    "thread::",
    "std::fs",
    "UdpSocket",
    "SystemRandom",
    "RandomState",
    "thread_rng",
    "rand::",
];

/// What may be named below the shell all the same, and where: a key must not follow from a seed; and quinn-proto counts in the
/// standard library's instants, of which the simulator needs one to begin with, whatever it is.
const ALLOWED: &[(&str, &str)] = &[
    ("src/quic/identity.rs", "rand::"),
    ("src/quic/identity.rs", "SystemRandom"),
    ("src/sim/lane.rs", "Instant::now"),
];

fn sources(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // What cargo builds of the packages in subfolders is not ours.
                if !path.ends_with("target") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every source file with its path from the package's root and its text.
fn tree(folders: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = folders.iter().flat_map(|folder| sources(&root.join(folder)));
    files
        .map(|path| {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// The layer of a file: `src/proto/view.rs` and `src/proto.rs` belong to `proto`.
fn layer(name: &str) -> &str {
    let name = name.strip_prefix("src/").unwrap_or(name);
    name.split(['/', '.']).next().unwrap_or(name)
}

/// The part of a file before its unit tests.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

/// The code of a line, without a comment at its end.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

fn assert_none(rule: &str, found: &[String]) {
    assert!(found.is_empty(), "{rule}:\n{}", found.join("\n"));
}

#[test]
fn arrows_point_one_way() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src"]) {
        let Some((own, allowed)) = ARROWS.iter().find(|(own, _)| *own == layer(&name)) else { continue };
        for (number, line) in without_tests(&text).lines().enumerate() {
            for named in code(line).split("crate::").skip(1) {
                let named =
                    named.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default();
                let known =
                    ARROWS.iter().any(|(layer, _)| *layer == named) || named == "node" || named == "sim";
                if known && named != *own && !allowed.contains(&named) {
                    wrong.push(format!("{name}:{}: {own} names {named}", number + 1));
                }
            }
        }
    }
    assert_none("an arrow points the wrong way", &wrong);
}

#[test]
fn the_transport_and_the_shell_stay_out_of_the_core() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src"]) {
        let banned: &[&str] = match layer(&name) {
            "types" | "wire" | "sync" | "metrics" | "config" | "proto" | "engine" => {
                &["quinn_proto", "rustls", "glommio", "io_uring"]
            }
            "quic" => &["glommio", "io_uring"],
            _ => &[],
        };
        for word in banned {
            if without_tests(&text).lines().any(|line| code(line).contains(word)) {
                wrong.push(format!("{name}: {word}"));
            }
        }
    }
    assert_none("a crate in the wrong layer", &wrong);
}

#[test]
fn unsafe_code_lives_in_the_files_that_exist_for_it() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src"]) {
        let allowed = UNSAFE_FILES.iter().any(|file| name.starts_with(file));
        let used =
            text.lines().any(|line| code(line).contains("unsafe ") && !code(line).contains("unsafe_code"));
        if used && !allowed {
            wrong.push(name);
        }
    }
    assert_none("unsafe code outside its files", &wrong);
}

#[test]
fn the_core_reads_no_clock_and_draws_no_randomness() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src"]) {
        if !ARROWS.iter().any(|(own, _)| *own == layer(&name)) {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            for word in SHELL_ONLY {
                if code(line).contains(word) && !ALLOWED.contains(&(name.as_str(), *word)) {
                    wrong.push(format!("{name}:{}: {word}", number + 1));
                }
            }
        }
    }
    assert_none("the shell's business in the core", &wrong);
}

#[test]
fn files_fit_a_mind() {
    let long = |(name, text): (String, String)| {
        let lines = text.lines().count();
        (lines > FILE_LINES).then(|| format!("{name}: {lines} lines"))
    };
    let wrong: Vec<String> = tree(&["src", "tests", "benches"]).into_iter().filter_map(long).collect();
    assert_none(&format!("files over {FILE_LINES} lines"), &wrong);
}

#[test]
fn lines_fit_a_screen() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src", "tests", "benches"]) {
        for (number, line) in text.lines().enumerate() {
            if line.chars().count() > LINE_CHARS {
                wrong.push(format!("{name}:{}", number + 1));
            }
        }
    }
    assert_none(&format!("lines over {LINE_CHARS} characters"), &wrong);
}

#[test]
fn functions_fit_a_screen() {
    let mut wrong = Vec::new();
    for (name, text) in tree(&["src", "benches"]) {
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let head = line.trim_start();
            let starts = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn "];
            if !starts.iter().any(|start| head.starts_with(start)) {
                continue;
            }
            // rustfmt closes a function at the column where it began.
            let close = format!("{}}}", &line[..line.len() - head.len()]);
            let body = lines[start..].iter().position(|line| **line == close).unwrap_or(0);
            if body + 1 > FUNCTION_LINES {
                wrong.push(format!("{name}:{}: {} lines", start + 1, body + 1));
            }
        }
    }
    assert_none(&format!("functions over {FUNCTION_LINES} lines"), &wrong);
}

#[test]
fn names_say_what_they_hold() {
    let vague = ["utils", "util", "common", "helpers", "helper", "manager", "misc"];
    let wrong: Vec<String> = tree(&["src", "tests", "benches"])
        .into_iter()
        .map(|(name, _)| name)
        .filter(|name| name.split(['/', '.']).any(|part| vague.contains(&part)))
        .collect();
    assert_none("a name that says nothing", &wrong);
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = include_str!("../Cargo.toml");
    let (mut wrong, mut commented, mut inside) = (Vec::new(), false, false);
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.contains("dependencies");
        }
        let reason = line.starts_with("# ");
        if inside && !line.is_empty() && !line.starts_with(['[', '#']) && !commented {
            wrong.push(line.to_owned());
        }
        // One reason may cover the lines that follow it without a gap.
        commented = if line.is_empty() || line.starts_with('[') { false } else { commented || reason };
        if reason && line.starts_with("# ---") {
            commented = false;
        }
    }
    assert_none("a dependency without a reason beside it", &wrong);
}
