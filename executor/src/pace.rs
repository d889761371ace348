//! Makes arithmetic take as long as it would on the device that a rank stands for.

use std::time::{Duration, Instant};

/// A sleep may end this much too late without the next piece of work being late too.
const SLACK: Duration = Duration::from_micros(500);

/// The clock of an emulated device; nothing where the rank's own device is meant.
pub struct Pace {
    flops_per_s: Option<f64>,
    /// When the last piece of work was due.
    due: Option<Instant>,
}

impl Pace {
    pub fn new(flops_per_s: Option<f64>) -> Self {
        Self { flops_per_s, due: None }
    }

    /// When work that follows begins; `None` where nothing is emulated.
    pub fn begin(&mut self) -> Option<Instant> {
        self.flops_per_s?;
        let now = Instant::now();
        // Work that follows at once begins when the last was due, however late the sleep ended.
        Some(self.due.filter(|due| *due <= now && now - *due <= SLACK).unwrap_or(now))
    }

    /// Waits until `flops` operations that began at `start` are done.
    pub fn end(&mut self, start: Instant, flops: f64) {
        let Some(rate) = self.flops_per_s else { return };
        let due = start + Duration::from_secs_f64(flops / rate);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        self.due = Some(due);
    }
}
