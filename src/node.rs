//! (to come)

pub mod io;
