//! A process that may not use io_uring is told so in one line. The filter holds for one child process only.
#![allow(unsafe_code)]

use std::env;
use std::process::Command;

use corecast::node::io::IoLimits;
use corecast::node::preflight::{self, Needs, PreflightError};

/// Set in the child that runs under the filter.
const CHILD: &str = "CORECAST_TEST_WITHOUT_IO_URING";

/// Answers EPERM to io_uring_setup, io_uring_enter and io_uring_register (the same numbers on every
/// architecture), for this process and what it starts.
fn forbid_io_uring() {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const ABOVE: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
    const ANSWER: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, 0, 0, 0),
        step(AT_LEAST, 0, 2, 425),
        step(ABOVE, 1, 0, 427),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        step(ANSWER, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the program and its instructions are locals that outlive both calls.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
    }
}

#[test]
fn a_process_without_io_uring_is_told_why() {
    if env::var_os(CHILD).is_none() {
        let mut child = Command::new(env::current_exe().unwrap());
        child.args(["--exact", "a_process_without_io_uring_is_told_why", "--nocapture"]).env(CHILD, "1");
        let output = child.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let cpus = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).take(1).collect();
    forbid_io_uring();
    let needs = Needs { cpus, io_memory: 64 << 10, io_limits: IoLimits::default(), backend: None };
    let error = preflight::check(&needs).unwrap_err();
    assert!(matches!(error, PreflightError::Blocked), "{error}");
    let line = error.to_string();
    assert!(line.contains("seccomp") && line.contains("425 to 427") && !line.contains('\n'), "{line}");
}
