//! A lane's side of a topic's filter: tells the engine of changes, and carries questions and verdicts to and fro.

use std::sync::Arc;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

use crate::config::Limits;
use crate::engine::{Command, Effects, Engine, Judged};
use crate::types::Instant;

use super::worker::{Asked, Reply, Worker};
use super::{Gate, Installed};

/// See the module. Belongs to one lane.
pub(in crate::node) struct Desk {
    gate: Arc<Gate>,
    lane: usize,
    /// Of the gate, as far as the engine knows.
    changes: u64,
    installed: Arc<Installed>,
    elsewhere: bool,
    post: Option<Post>,
    /// Questions could not be asked; when to try again.
    retry_at: Option<Instant>,
}

/// What a lane needs while a filter is asked elsewhere.
struct Post {
    worker: Arc<Worker>,
    reply: Arc<Reply>,
    answers: Receiver<Judged>,
    /// Questions that were asked and not answered.
    out: usize,
}

impl Desk {
    /// Questions that wait for one filter; more wait in the engine.
    const OUT: usize = Limits::FILTER_QUESTIONS;
    /// When to look again whether the filter's thread has room, or can be started.
    const RETRY: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

    /// `elsewhere`: as the engine was told when it opened the topic.
    pub(in crate::node) fn new(gate: Arc<Gate>, lane: usize, elsewhere: bool) -> Desk {
        let installed = gate.current.load_full();
        // The first turn looks, for much may have happened in other lanes since the engine was told.
        Desk { gate, lane, changes: u64::MAX, installed, elsewhere, post: None, retry_at: None }
    }

    /// Whether a turn is needed. To be asked once more after announcing to park.
    pub(in crate::node) fn has_work(&self) -> bool {
        self.has_changed() || self.post.as_ref().is_some_and(|post| !post.answers.is_empty())
    }

    /// When a turn is needed without that.
    pub(in crate::node) fn deadline(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Changes, answers, questions. Whether there was any.
    pub(in crate::node) fn turn(&mut self, engine: &mut Engine, now: Instant, fx: &mut Effects) -> bool {
        let mut busy = self.has_changed();
        if busy {
            self.follow(engine, now, fx);
        }
        if !self.elsewhere {
            return busy;
        }
        busy |= self.take_answers(engine, now, fx);
        busy | self.ask(engine, now)
    }

    fn has_changed(&self) -> bool {
        self.gate.changes.load(Ordering::SeqCst) != self.changes
    }

    /// Tells the engine what has changed.
    fn follow(&mut self, engine: &mut Engine, now: Instant, fx: &mut Effects) {
        self.changes = self.gate.changes.load(Ordering::SeqCst);
        let installed = self.gate.current.load_full();
        let (topic, elsewhere) = (self.gate.topic, installed.elsewhere.load(Ordering::SeqCst));
        let same = Arc::ptr_eq(&installed, &self.installed) && elsewhere == self.elsewhere;
        let command = if same {
            Command::FilterChanged { topic }
        } else {
            (self.installed, self.elsewhere, self.post, self.retry_at) = (installed, elsewhere, None, None);
            Command::FilterReplaced { topic, elsewhere }
        };
        engine.handle_command(command, now, fx);
    }

    fn take_answers(&mut self, engine: &mut Engine, now: Instant, fx: &mut Effects) -> bool {
        let topic = self.gate.topic;
        for taken in 0..Self::OUT {
            // Not one of a filter that has been replaced meanwhile.
            if self.has_changed() {
                return true;
            }
            let Some(post) = &mut self.post else { return false };
            let Ok(judged) = post.answers.try_recv() else { return taken > 0 };
            post.out -= 1;
            engine.handle_command(Command::Judged { topic, judged }, now, fx);
        }
        true
    }

    fn ask(&mut self, engine: &mut Engine, now: Instant) -> bool {
        if self.retry_at.is_some_and(|at| now < at) || !engine.has_questions(self.gate.topic) {
            return false;
        }
        self.retry_at = None;
        if self.post.is_none() {
            match self.open_post() {
                Ok(post) => self.post = Some(post),
                Err(error) => {
                    tracing::error!(topic = %self.gate.topic, %error, "no thread for the filter: its topic waits");
                    self.retry_at = Some(now + Self::RETRY.1);
                    return false;
                }
            }
        }
        let Some(post) = &mut self.post else { return false };
        let before = post.out;
        while post.out < Self::OUT {
            if !post.worker.has_room() {
                self.retry_at = Some(now + Self::RETRY.0);
                break;
            }
            let Some(question) = engine.poll_question(self.gate.topic) else { break };
            post.out += 1;
            post.worker.ask(Asked { question, installed: self.installed.clone(), reply: post.reply.clone() });
        }
        post.out > before
    }

    fn open_post(&self) -> std::io::Result<Post> {
        let (answers, receiver) = bounded(Self::OUT);
        let worker = self.worker()?;
        let wake = self.gate.wakes.get(self.lane).cloned().ok_or(std::io::ErrorKind::NotFound)?;
        Ok(Post { worker, reply: Arc::new(Reply { answers, wake }), answers: receiver, out: 0 })
    }

    /// The topic's thread: the one there is, unless a filter that was replaced holds it up.
    fn worker(&self) -> std::io::Result<Arc<Worker>> {
        let mut known = self.gate.worker.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(worker) = known.upgrade()
            && !worker.is_held_up(self.gate.number.load(Ordering::SeqCst))
        {
            return Ok(worker);
        }
        let lanes = self.gate.wakes.len();
        let worker = Arc::new(Worker::start(&self.gate, 2 * lanes * Self::OUT, lanes)?);
        *known = Arc::downgrade(&worker);
        Ok(worker)
    }
}
