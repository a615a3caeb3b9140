//! Directed runs: one situation each, varied by the seed.

use super::options::Options;
use super::world::World;

/// A situation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// As the seed will have it.
    Mixed,
}

impl Scenario {
    /// Every one.
    pub const ALL: [Scenario; 1] = [Scenario::Mixed];

    pub(super) fn options(self, seed: u64) -> Options {
        Options::mixed(seed)
    }

    pub(super) fn play(self, world: &mut World) -> Result<(), String> {
        world.run()
    }
}
