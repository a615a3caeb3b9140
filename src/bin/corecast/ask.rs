//! `corecast stats` and `corecast trace`: questions to a running node, over its admin socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::{Stats, Trace};
use crate::subnet::fault::{Exit, Fault};
use crate::subnet::terminal::say;

/// Bytes of an answer: a whole journal of one artifact, with room to spare.
const MAX_ANSWER: u64 = 4 << 20;
/// How long a node may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

pub(crate) fn stats(options: &Stats) -> Result<(), Fault> {
    ask(&options.socket, "stats", options.json)
}

pub(crate) fn trace(options: &Trace) -> Result<(), Fault> {
    ask(&options.socket, &format!("trace {}", options.id), options.json)
}

fn ask(socket: &Path, question: &str, json: bool) -> Result<(), Fault> {
    let line = exchange(socket, question).map_err(|error| {
        let at = socket.display();
        match error.kind() {
            ErrorKind::ConnectionRefused => {
                Fault::new(Exit::Unavailable, format!("{at}: no node answers; start it, or name its socket"))
            }
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                let problem = format!("{at}: no answer within {} s; try again", PATIENCE.as_secs());
                Fault::new(Exit::Unavailable, problem)
            }
            ErrorKind::NotFound => {
                let hint = "name the socket that `admin` in the node's configuration names";
                Fault::new(Exit::NoInput, format!("{at}: there is no such socket; {hint}"))
            }
            ErrorKind::InvalidInput => Fault::new(Exit::Usage, format!("{at}: {error}")),
            _ => Fault::at(socket, "cannot be asked", &error),
        }
    })?;
    let broken = || Fault::new(Exit::Io, format!("{}: what answers there is no node", socket.display()));
    let answer: Value = serde_json::from_str(&line).map_err(|_| broken())?;
    match (answer.get("error").and_then(Value::as_str), answer.get("text").and_then(Value::as_str)) {
        (Some(problem), _) => Err(Fault::new(Exit::Unavailable, format!("{}: {problem}", socket.display()))),
        (None, Some(_)) if json => say(line.trim_end()),
        (None, Some(text)) => say(text),
        (None, None) => Err(broken()),
    }
}

fn exchange(socket: &Path, question: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{question}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut line)?;
    Ok(line)
}
