//! The allocator of the tools, which counts. Bodies come and go thousands of times a second: the system allocator returns a
//! megabyte to the kernel each time, and mimalloc what lay idle for a second; both then pay to have it zeroed again (one
//! twentieth of the CPU of bulk).
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::c_long;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use libmimalloc_sys::{mi_option_set_default, mi_option_t};
use mimalloc::MiMalloc;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// mimalloc, and how often each thread asked it for memory.
struct Counting;

/// One thread's count. It alone writes to it, so an increment is a plain load and store on a cache line of its own.
#[repr(align(64))]
struct Tally(AtomicU64);

/// Threads that have a tally of their own. Later ones share the last, and may lose counts to one another there.
const TALLIES: usize = 256;
static TALLY: [Tally; TALLIES] = [const { Tally(AtomicU64::new(0)) }; TALLIES];
/// Tallies given to threads so far.
static GIVEN: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// Which tally is this thread's; beyond the last, none yet. It needs no destructor, and so no memory of the heap.
    static MINE: Cell<usize> = const { Cell::new(usize::MAX) };
}

#[inline]
fn count() {
    let mine = match MINE.get() {
        usize::MAX => {
            let mine = GIVEN.fetch_add(1, Ordering::Relaxed).min(TALLIES - 1);
            MINE.set(mine);
            mine
        }
        mine => mine,
    };
    let tally = &TALLY[mine].0;
    tally.store(tally.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
}

/// Allocations of all threads so far, those that grow or shrink one among them.
#[allow(dead_code, reason = "not every tool reports them")]
pub(crate) fn allocations() -> u64 {
    TALLY.iter().map(|tally| tally.0.load(Ordering::Relaxed)).sum()
}

// SAFETY: every call goes to mimalloc as it came; counting touches no memory but its own.
unsafe impl GlobalAlloc for Counting {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    #[inline]
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's duties are the same, and `memory` came from mimalloc.
        unsafe { MiMalloc.realloc(memory, layout, size) }
    }

    #[inline]
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's duties are the same, and `memory` came from mimalloc.
        unsafe { MiMalloc.dealloc(memory, layout) }
    }
}

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
