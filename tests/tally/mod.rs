//! An allocator that counts the calling thread's allocations, by node and step of its turn, while it is told to; and, when
//! `CORECAST_ALLOC_SITES` is set, notes where each came from.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "not every test uses all of it")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use super::mesh::Step;

const NODES: usize = 8;
const STEPS: usize = Step::ALL.len();

/// Allocations, growth of one included, and their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    pub calls: u64,
    pub bytes: u64,
}

impl Tally {
    fn with(self, bytes: usize) -> Tally {
        Tally { calls: self.calls + 1, bytes: self.bytes + bytes as u64 }
    }
}

thread_local! {
    static COUNTS: Cell<bool> = const { Cell::new(false) };
    static NOTES: Cell<bool> = const { Cell::new(false) };
    static WHERE: Cell<Option<(usize, Step)>> = const { Cell::new(None) };
    static TALLIES: [[Cell<Tally>; STEPS]; NODES] =
        const { [const { [const { Cell::new(Tally { calls: 0, bytes: 0 }) }; STEPS] }; NODES] };
    static SITES: RefCell<BTreeMap<(usize, Step, String), Tally>> = const { RefCell::new(BTreeMap::new()) };
}

/// What the calling thread does from now on is this node's and step's, or nobody's.
pub fn enter(place: Option<(usize, Step)>) {
    WHERE.set(place);
}

/// Counts from now on, or not. `sites` says whether to note where allocations come from, too, which is slow.
pub fn count(on: bool, sites: bool) {
    COUNTS.set(on);
    NOTES.set(on && sites);
}

/// Begins anew.
pub fn clear() {
    TALLIES.with(|tallies| tallies.iter().flatten().for_each(|tally| tally.set(Tally::default())));
    SITES.with_borrow_mut(BTreeMap::clear);
}

/// What was counted of a node since, by step.
pub fn of_node(node: usize) -> [Tally; STEPS] {
    TALLIES.with(|tallies| std::array::from_fn(|step| tallies[node][step].get()))
}

/// Where allocations of these nodes came from, the most frequent first.
pub fn sites(nodes: impl Fn(usize) -> bool) -> Vec<(Step, String, Tally)> {
    let mut sites: BTreeMap<(Step, String), Tally> = BTreeMap::new();
    SITES.with_borrow(|noted| {
        for ((_, step, site), tally) in noted.iter().filter(|((node, ..), _)| nodes(*node)) {
            let sum = sites.entry((*step, site.clone())).or_default();
            sum.calls += tally.calls;
            sum.bytes += tally.bytes;
        }
    });
    let mut sites: Vec<_> = sites.into_iter().map(|((step, site), tally)| (step, site, tally)).collect();
    sites.sort_by_key(|(.., tally)| std::cmp::Reverse(tally.calls));
    sites
}

fn note(bytes: usize) {
    let Some((node, step)) = WHERE.get().filter(|_| COUNTS.get()) else { return };
    TALLIES.with(|tallies| tallies[node][step as usize].update(|tally| tally.with(bytes)));
    if NOTES.get() {
        // What noting allocates is not counted.
        COUNTS.set(false);
        let site = shorten(&Backtrace::force_capture().to_string());
        SITES.with_borrow_mut(|sites| {
            let tally = sites.entry((node, step, site)).or_default();
            *tally = tally.with(bytes);
        });
        COUNTS.set(true);
    }
}

/// The innermost functions that are neither the standard library's nor this test's.
fn shorten(backtrace: &str) -> String {
    const FRAMES: usize = 6;
    const SKIPPED: [&str; 4] = ["/library/", "/hashbrown-", "tests/tally/", "<alloc::"];
    const UNNAMED: [&str; 5] = ["alloc::", "core::", "std::", "__rust", "hashbrown::"];
    let mut frames: Vec<String> = Vec::new();
    let mut lines = backtrace.lines().map(str::trim).peekable();
    while let Some(line) = lines.next() {
        let Some((_, name)) = line.split_once(": ") else { continue };
        let file = lines.next_if(|line| line.starts_with("at ")).unwrap_or_default();
        if file.contains("tests/mesh/") || frames.len() == FRAMES {
            break;
        }
        // A crate without line numbers has names in full.
        let skipped: &[&str] = if file.is_empty() { &UNNAMED } else { &SKIPPED };
        let of = if file.is_empty() { name } else { file };
        if skipped.iter().any(|skipped| of.contains(skipped)) {
            continue;
        }
        let file = file.trim_start_matches("at ").trim_start_matches("./");
        // The crate and the path in it, without the column.
        let file = file
            .split_once("/registry/src/")
            .and_then(|(_, file)| file.split_once('/'))
            .map_or(file, |(_, file)| file);
        let file = file.rsplit_once(':').map_or(file, |(file, _)| file);
        let name = name.split_once('<').map_or(name, |(name, _)| name);
        frames.push(if file.is_empty() { name.to_owned() } else { format!("{name} ({file})") });
    }
    frames.join(" < ")
}

struct Counting;

// SAFETY: every call goes to the system's allocator as it came; it is only counted beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's duties are the same.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size);
        // SAFETY: the caller's duties are the same, and `memory` came from the system's allocator.
        unsafe { System.realloc(memory, layout, size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from the system's allocator with this layout.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;
