//! The tools run in a folder, and what they say to bad input.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs a tool to its end.
pub(crate) fn tool(binary: &str, folder: &Path, line: &str) -> Output {
    let mut command = Command::new(binary);
    let command = command.args(line.split_whitespace()).current_dir(folder).stdin(Stdio::null());
    command.output().unwrap()
}

/// It failed with this code and this text in its one line.
pub(crate) fn refused(output: &Output, tool: &str, line: &str, code: i32, with: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{line}: {stderr}");
    assert!(stderr.contains(with), "{line}: {stderr}\nlacks: {with}");
    assert!(stderr.starts_with(&format!("{tool}: ")), "{line}: {stderr}");
    assert_eq!(stderr.matches('\n').count(), 1, "{line}: one line, not {stderr}");
    assert!(output.stdout.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stdout));
}
