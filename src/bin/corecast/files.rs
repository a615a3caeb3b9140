//! Files as artifacts and back.

pub(crate) mod assemble;
pub(crate) mod folder;
pub(crate) mod parcel;
pub(crate) mod relpath;
pub(crate) mod split;
