//! Time limits that count only the time in which this process was running.

use std::time::{Duration, Instant};

/// The maximum length of one sleep, so that a suspension counts as no more than this.
const LONGEST: Duration = Duration::from_millis(500);
/// A sleep that takes longer than twice its length plus this means that the process was suspended.
const LATE: Duration = Duration::from_millis(250);

/// A limit to a wait that is not reached while this process is suspended (Ctrl-Z, `kill -STOP`): a sleep that
/// ends much too late counts with its intended length. Peers that were suspended together with this process
/// could not send anything meanwhile, and must not be reported as silent.
#[derive(Debug, Clone)]
pub struct Patience {
    limit: Duration,
    waited: Duration,
    /// The time of the last count.
    counted: Instant,
}

impl Patience {
    /// Starts to count now.
    #[must_use]
    pub fn new(limit: Duration) -> Self {
        Self { limit, waited: Duration::ZERO, counted: Instant::now() }
    }

    /// The time counted so far.
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

    /// Counts the time since the last count, in which this process meant to sleep for at most `nap`.
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
        // On time, and late, as on a busy machine.
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
