//! A bounded, evenly spaced sample of a series of unknown length.

/// Every value of a series up to a limit; beyond it every second, then every fourth, and so on: evenly
/// spaced, with the first value, and never more than the limit.
#[derive(Debug, Clone)]
pub struct Thinned<T> {
    limit: usize,
    /// One of this many values is kept.
    every: u64,
    seen: u64,
    kept: Vec<T>,
}

impl<T> Thinned<T> {
    pub fn new(limit: usize) -> Self {
        Self { limit: limit.max(1), every: 1, seen: 0, kept: Vec::new() }
    }

    pub fn push(&mut self, value: T) {
        let place = self.seen;
        self.seen += 1;
        if place % self.every == 0 && self.kept.len() == self.limit {
            let mut even = false;
            self.kept.retain(|_| {
                even = !even;
                even
            });
            self.every *= 2;
        }
        if place % self.every == 0 {
            self.kept.push(value);
        }
    }

    /// The kept values, oldest first.
    pub fn kept(&self) -> &[T] {
        &self.kept
    }

    /// Whether the last pushed value is kept.
    pub fn has_last(&self) -> bool {
        self.seen > 0 && (self.seen - 1) % self.every == 0
    }

    pub fn seen(&self) -> u64 {
        self.seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_series_is_kept_evenly_and_within_the_limit() {
        for limit in [1, 2, 3, 8] {
            let mut thinned = Thinned::new(limit);
            for value in 0..10_000_u32 {
                thinned.push(value);
                let kept = thinned.kept();
                assert!(kept.len() <= limit && kept[0] == 0, "{limit}: {kept:?}");
                assert!(kept.windows(3).all(|w| w[1] - w[0] == w[2] - w[1]), "{limit}: {kept:?}");
                assert_eq!(thinned.has_last(), kept.last() == Some(&value), "{limit}: {kept:?}");
            }
            assert!(thinned.kept().len() * 2 >= limit && thinned.seen() == 10_000);
        }
        let mut short = Thinned::new(8);
        (0..8).for_each(|value| short.push(value));
        assert_eq!(short.kept(), [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
