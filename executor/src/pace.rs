//! Makes arithmetic take as long as it would on the device that a rank stands for.

use crate::host::{self, Placement};
use std::time::{Duration, Instant};

/// The device that a rank stands for, and where the rank really runs. Several share a core: what one computes must not
/// keep the others from communicating, and what one codes must not keep them from computing.
#[derive(Debug, Clone, Copy)]
pub struct Emulated {
    pub flops_per_s: f64,
    placement: Placement,
}

impl Emulated {
    pub fn new(flops_per_s: Option<f64>, placement: Placement) -> Option<Self> {
        flops_per_s.map(|flops_per_s| Self { flops_per_s, placement })
    }

    /// Arithmetic of this thread follows.
    pub fn enter_compute(self) {
        host::enter_compute(self.placement);
    }

    /// Coding of this thread, beside the rank's arithmetic, follows.
    pub fn enter_coding(self) {
        host::enter_emulated_coding(self.placement);
    }

    /// What follows is to be done at once.
    pub fn enter_communication(self) {
        host::enter_communication(self.placement);
    }
}

/// A sleep may end this much too late without the next piece of work being late too.
const SLACK: Duration = Duration::from_micros(500);

/// The clock of an emulated device; nothing where the rank's own device is meant.
pub struct Pace {
    emulated: Option<Emulated>,
    /// When the last piece of work was due.
    due: Option<Instant>,
}

impl Pace {
    pub fn new(emulated: Option<Emulated>) -> Self {
        Self { emulated, due: None }
    }

    /// When work that follows begins; `None` where nothing is emulated.
    pub fn begin(&mut self) -> Option<Instant> {
        self.emulated?.enter_compute();
        let now = Instant::now();
        // Work that follows at once begins when the last was due, however late the sleep ended.
        Some(self.due.filter(|due| *due <= now && now - *due <= SLACK).unwrap_or(now))
    }

    /// Waits until `flops` operations that began at `start` are done.
    pub fn end(&mut self, start: Instant, flops: f64) {
        let Some(emulated) = self.emulated else { return };
        emulated.enter_communication();
        let due = start + Duration::from_secs_f64(flops / emulated.flops_per_s);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        self.due = Some(due);
    }
}
