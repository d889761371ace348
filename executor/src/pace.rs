//! Emulates the speed of another device by delaying compute.

use crate::host::{self, Placement};
use std::time::{Duration, Instant};

/// The emulated device of a rank, and the rank's real placement. Several ranks share a core: the compute of
/// one must not delay the communication of the others.
#[derive(Debug, Clone, Copy)]
pub struct Emulated {
    flops_per_s: f64,
    placement: Placement,
}

impl Emulated {
    pub fn new(flops_per_s: Option<f64>, placement: Placement) -> Option<Self> {
        flops_per_s.map(|flops_per_s| Self { flops_per_s, placement })
    }

    fn seconds(self, flops: f64) -> Duration {
        Duration::from_secs_f64(flops / self.flops_per_s)
    }

    /// The time of coding with `flops` operations and `exchanges` exchanges.
    pub fn coding(self, flops: f64, exchanges: usize) -> CodingTime {
        let parts = exchanges as u32 + 1;
        CodingTime { part: self.seconds(flops) / parts, parts }
    }
}

/// The clock of an emulated device; inactive if the device is not emulated.
pub struct Pace {
    emulated: Option<Emulated>,
    /// When the last compute was due, if the next follows immediately.
    due: Option<Instant>,
}

impl Pace {
    pub fn new(emulated: Option<Emulated>) -> Self {
        Self { emulated, due: None }
    }

    /// The start time of the next compute; `None` if the device is not emulated.
    pub fn begin(&mut self) -> Option<Instant> {
        host::enter_compute(self.emulated?.placement);
        // Late wake-ups, and turns of other ranks on the shared core, do not count.
        Some(self.due.unwrap_or_else(Instant::now))
    }

    /// Waits until `flops` operations that began at `start` are done.
    pub fn end(&mut self, start: Instant, flops: f64) {
        let Some(emulated) = self.emulated else { return };
        host::enter_communication(emulated.placement);
        let due = start + emulated.seconds(flops);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        self.due = Some(due);
    }

    /// Notes that the rank has done something else, or has waited for others.
    pub fn interrupt(&mut self) {
        self.due = None;
    }
}

/// The coding time of an emulated device, in equal parts: one before each exchange and one after the last.
#[derive(Debug, Clone, Copy)]
pub struct CodingTime {
    part: Duration,
    parts: u32,
}

impl CodingTime {
    /// Starts the emulated time of encoding.
    pub fn begin(self) -> CodingPace {
        CodingPace { part: self.part, left: self.parts, due: Instant::now() }
    }
}

/// The clock of coding on an emulated device.
#[derive(Debug)]
pub struct CodingPace {
    part: Duration,
    /// Number of remaining parts.
    left: u32,
    /// When the next part is due if exchanges take no time.
    due: Instant,
}

impl CodingPace {
    /// Waits until the part before an exchange, or the last part, is done; `exchanging` is the total time of
    /// exchanges so far.
    pub fn end_part(&mut self, exchanging: Duration) {
        if self.left > 0 {
            self.left -= 1;
            self.due += self.part;
            std::thread::sleep((self.due + exchanging).saturating_duration_since(Instant::now()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOWHERE: Placement = Placement { core: None, realtime: false };

    #[test]
    fn work_follows_when_the_last_was_due_unless_something_came_between() {
        let mut pace = Pace::new(Emulated::new(Some(1e6), NOWHERE));
        let start = pace.begin().unwrap();
        // 2 ms of work, of which the core was away for 5.
        std::thread::sleep(Duration::from_millis(5));
        pace.end(start, 2e3);
        let due = start + Duration::from_millis(2);
        assert_eq!(pace.begin(), Some(due));
        pace.interrupt();
        assert!(pace.begin().unwrap() >= start + Duration::from_millis(5));
        assert_eq!(Pace::new(None).begin(), None);
    }

    #[test]
    fn coding_takes_a_part_of_its_time_before_each_exchange() {
        let emulated = Emulated::new(Some(1e6), NOWHERE).unwrap();
        let start = Instant::now();
        // 12 ms: 4 before each of two exchanges, and 4 after them.
        let mut pace = emulated.coding(12e3, 2).begin();
        pace.end_part(Duration::ZERO);
        assert!(start.elapsed() >= Duration::from_millis(4));
        pace.end_part(Duration::from_millis(3));
        assert!(start.elapsed() >= Duration::from_millis(11));
        pace.end_part(Duration::from_millis(6));
        assert!(start.elapsed() >= Duration::from_millis(18));
    }
}
