//! The only code that two threads run on the same memory: a bounded queue per class, and the word that wakes
//! a parked driver. Everything else in a lane belongs to one thread.

mod priority;
mod wake;

pub use priority::{Consumer, Producer, PushError, queue};
pub use wake::WakeWord;
