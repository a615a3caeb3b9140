//! The thread on which a filter is asked that must not be asked on a lane's.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::engine::Judged;
use crate::proto::Question;
use crate::sync::WakeWord;

use super::{Gate, Installed};

/// Its lanes' end. Its thread ends when they have all let go of it, once the call that it is in returns.
pub(super) struct Worker {
    questions: Sender<Asked>,
    capacity: usize,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    closed: AtomicBool,
    /// The number of the filter that is being asked; 0 between questions.
    asking: AtomicU64,
}

/// A question, whom it is for, and who asks.
pub(super) struct Asked {
    pub(super) question: Question,
    pub(super) installed: Arc<Installed>,
    pub(super) reply: Arc<Reply>,
}

/// Where a lane takes its answers. There is room for as many as it has questions out.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) answers: Sender<Judged>,
    pub(super) wake: Arc<WakeWord>,
}

const _: () = assert!(2 * size_of::<Asked>() + size_of::<Judged>() <= 384, "as the bounds count them");

impl Worker {
    /// Starts a thread, with room for `capacity` questions, and one more for each of `lanes`, who look for room first.
    pub(super) fn start(gate: &Arc<Gate>, capacity: usize, lanes: usize) -> io::Result<Worker> {
        let (questions, asked) = bounded(capacity + lanes);
        let state = Arc::<State>::default();
        let (gate, seen) = (gate.clone(), state.clone());
        let thread = std::thread::Builder::new().name(format!("filter-{}", gate.topic));
        thread.spawn(move || {
            gate.affinity.apply_here();
            run(&gate, &asked, &seen);
        })?;
        Ok(Worker { questions, capacity, state })
    }

    pub(super) fn has_room(&self) -> bool {
        self.questions.len() < self.capacity
    }

    /// Asks; there was just seen to be room.
    pub(super) fn ask(&self, asked: Asked) {
        let sent = self.questions.try_send(asked);
        debug_assert!(sent.is_ok(), "each lane asks one question for each look at the room");
    }

    /// Whether it is in a call of another filter than that of this number, which may never return.
    pub(super) fn is_held_up(&self, number: u64) -> bool {
        fence(Ordering::SeqCst);
        let asking = self.state.asking.load(Ordering::SeqCst);
        asking != 0 && asking != number
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::SeqCst);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({} of {} questions)", self.questions.len(), self.capacity)
    }
}

fn run(gate: &Gate, asked: &Receiver<Asked>, state: &State) {
    while let Ok(Asked { question, installed, reply }) = asked.recv() {
        if state.closed.load(Ordering::SeqCst) {
            return;
        }
        // Said first, then looked: either we see that the filter was replaced, or who replaced it sees what we are in.
        state.asking.store(installed.number, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        if gate.number.load(Ordering::SeqCst) == installed.number {
            let verdict = gate.ask_elsewhere(&installed, &question.advert);
            let (id, from) = (question.advert.id, question.advert.from);
            // A lane that has gone, or asks another filter now, does not wait for it.
            let _ = reply.answers.try_send(Judged { id, from, ticket: question.ticket, verdict });
            reply.wake.wake();
        }
        state.asking.store(0, Ordering::SeqCst);
    }
}
