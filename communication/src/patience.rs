//! Waiting for at most so long, counted in time in which something could have been heard.

use std::time::{Duration, Instant};

/// Nothing is waited for longer than this at once, so that a suspended process loses no more of its patience.
const LONGEST: Duration = Duration::from_millis(500);
/// A sleep that is later by its own length and this was no sleep: the process was suspended.
const LATE: Duration = Duration::from_millis(250);

/// A limit to a wait that is not reached while this process is suspended (Ctrl-Z, `kill -STOP`): a sleep that ends much
/// too late counts as what it should have taken. Whoever was suspended along with this process could say nothing
/// meanwhile, and must not be accused of that.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    waited: Duration,
    /// Until when time has been counted.
    counted: Instant,
}

impl Patience {
    /// Begins now.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, counted: Instant::now() }
    }

    /// What has been counted.
    #[must_use]
    pub fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether the limit is reached.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.waited >= self.limit
    }

    /// How long to sleep before the next [`Patience::count`], at most; zero once the limit is reached.
    #[must_use]
    pub fn nap(&self) -> Duration {
        self.limit.saturating_sub(self.waited).min(LONGEST)
    }

    /// Counts the time since the last count, of which this process meant to sleep for `nap` at most.
    pub fn count(&mut self, nap: Duration) {
        let now = Instant::now();
        self.waited += counted(now.saturating_duration_since(self.counted), nap);
        self.counted = now;
    }
}

fn counted(took: Duration, nap: Duration) -> Duration {
    if took > 2 * nap + LATE { nap } else { took }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleep_that_ends_much_too_late_counts_as_its_limit() {
        let ms = Duration::from_millis;
        // In time, and late as on a busy machine.
        assert_eq!(counted(ms(300), ms(500)), ms(300));
        assert_eq!(counted(ms(900), ms(500)), ms(900));
        // Suspended for a minute, or for days.
        assert_eq!(counted(ms(60_000), ms(500)), ms(500));
        assert_eq!(counted(Duration::from_secs(1 << 30), ms(1)), ms(1));
    }

    #[test]
    fn naps_come_to_the_limit() {
        let mut patience = Patience { limit: Duration::from_millis(700), ..Patience::new(Duration::ZERO) };
        assert_eq!(patience.nap(), LONGEST);
        patience.waited = Duration::from_millis(600);
        assert_eq!(patience.nap(), Duration::from_millis(100));
        patience.waited = Duration::from_millis(701);
        assert!(patience.is_over() && patience.nap().is_zero());
    }
}
