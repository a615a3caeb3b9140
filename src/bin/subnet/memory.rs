//! The allocator of the tools. Bodies come and go thousands of times a second: the system allocator returns a megabyte to the
//! kernel each time, and mimalloc what lay idle for a second; both then pay to have it zeroed again (one twentieth of the CPU
//! of bulk).
#![allow(unsafe_code)]

use std::ffi::c_long;

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3, which the bindings do not name.
const PURGE_DELAY: mi_option_t = 15;
/// Milliseconds.
const KEPT: c_long = 20_000;

/// Keeps freed memory for 20 seconds before the kernel gets it back, unless the environment says otherwise
/// (`MIMALLOC_PURGE_DELAY`).
pub(crate) fn keep_freed() {
    // SAFETY: the option exists in the version that is linked; setting one is allowed at any time.
    unsafe { mi_option_set_default(PURGE_DELAY, KEPT) };
}
