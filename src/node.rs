//! (to come)

pub mod io;
pub mod preflight;
