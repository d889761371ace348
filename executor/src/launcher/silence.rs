//! Which ranks have given no sign of life for too long.

use autodist_communication::Patience;
use std::time::Duration;

use super::LOOK_AGAIN;

/// How long each rank has been silent, in time in which this process could have heard it: while this one is suspended,
/// nobody is accused.
pub(super) struct Silence {
    limit: Duration,
    /// Since the beginning.
    clock: Patience,
    /// When each rank was heard last, by that clock.
    heard: Vec<Duration>,
}

impl Silence {
    pub fn new(world: usize, limit: Duration) -> Self {
        Self { limit, clock: Patience::new(Duration::MAX), heard: vec![Duration::ZERO; world] }
    }

    pub fn limit(&self) -> Duration {
        self.limit
    }

    pub fn heard(&mut self, rank: usize) {
        self.heard[rank] = self.clock.waited();
    }

    /// Ranks that have been silent for longer than the limit, except for those that are `gone`. To be asked every
    /// [`LOOK_AGAIN`], after all that has come has been heard.
    pub fn look(&mut self, gone: impl Fn(usize) -> bool) -> Vec<usize> {
        self.clock.count(LOOK_AGAIN);
        let now = self.clock.waited();
        let silent = self.heard.iter().enumerate().filter(|(_, heard)| now - **heard > self.limit);
        silent.map(|(rank, _)| rank).filter(|rank| !gone(*rank)).collect()
    }
}
