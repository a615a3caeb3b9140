//! What crosses a link: every frame with its limits, and the seam between engine and transport.
//!
//! A connection carries three kinds of streams, told apart by direction and first byte:
//!
//! | stream | content |
//! |---|---|
//! | unidirectional, [`STREAM_BATCH`] | frames, one after another, until the stream ends |
//! | unidirectional, [`STREAM_PUSH`] | one [`PushHead`], then the body; resettable |
//! | bidirectional | one [`FetchRequest`]; back one [`ReplyHead`], then the body; resettable |
//!
//! Streams are not ordered among one another, so no frame relies on the order of streams: updates carry versions, a [`Resync`]
//! states a whole table, and [`Held`] is a hint that may come at any time. Numbers are little-endian. Nothing here panics on any
//! input; no length is believed before it is compared with a limit.

mod cursor;
mod frame;
mod held;
mod link;

pub use frame::{
    BatchReader, Change, FRAME_HEADER, FetchRequest, Frame, Hello, MAX_BATCH, MAX_FRAME, MAX_SLOTS, Open,
    PushHead, Refusal, Refused, ReplyHead, Resync, STREAM_BATCH, STREAM_PUSH, Update, WireError,
};
pub use held::Held;
pub use link::{BatchBuilder, CloseCode, Incoming, Outgoing, Reply};
