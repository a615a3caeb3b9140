//! (to come)

pub mod keyfile;
pub mod registry;
pub mod textfile;
