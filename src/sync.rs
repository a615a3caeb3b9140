//! The only code that two threads run on the same memory: a bounded queue per class, the word that wakes a parked driver, and the
//! line of those who wait for room. Everything else in a lane belongs to one thread.

mod line;
mod priority;
mod wake;

pub use line::{Line, Place, Wants};
pub use priority::{Consumer, Producer, PushError, queue};
pub use wake::WakeWord;
