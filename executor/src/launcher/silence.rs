//! Detects ranks without a heartbeat for too long.

use autodist_communication::Patience;
use std::time::Duration;

use super::LOOK_AGAIN;

/// How long each rank has been silent. Time in which this process was suspended does not count.
pub(super) struct Silence {
    limit: Duration,
    /// The clock since the start.
    clock: Patience,
    /// The time of each rank's last heartbeat, by that clock.
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

    /// Ranks that have been silent for longer than the limit, except for those that are `gone`. Must be
    /// called every [`LOOK_AGAIN`], after all received messages have been handled.
    pub fn look(&mut self, gone: impl Fn(usize) -> bool) -> Vec<usize> {
        self.clock.count(LOOK_AGAIN);
        let now = self.clock.waited();
        let silent = self.heard.iter().enumerate().filter(|(_, heard)| now - **heard > self.limit);
        silent.map(|(rank, _)| rank).filter(|rank| !gone(*rank)).collect()
    }
}
