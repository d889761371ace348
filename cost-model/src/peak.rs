//! How far measured peaks of memory are above predicted ones, and how likely a device runs out of memory.

use autodist_spec::estimate::MOST_RISK;

/// The errors of predicted peaks: some measured peaks are above their prediction, and of those the part by which
/// they are above it falls off exponentially.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PeakError {
    /// Part of the measured peaks that are above their prediction.
    pub above: f64,
    /// Mean of their `measured / predicted - 1`.
    pub excess: f64,
}

impl PeakError {
    /// The native engine counts every byte itself: from 0.4 % above to 0.7 % below (docs/validation.md).
    pub(crate) const NATIVE: Self = Self { above: 0.5, excess: 0.002 };
    /// A profile of the native engine, extended to more devices: within 1 % (docs/validation.md).
    pub(crate) const EXTENDED: Self = Self { above: 0.5, excess: 0.005 };
    /// PyTorch allocates during the update and around FSDP2's collectives what is not counted: 3 % in the median
    /// (docs/validation.md).
    pub(crate) const TORCH: Self = Self { above: 0.7, excess: 0.05 };

    /// Chance that a measured peak is above `ratio` times its prediction.
    pub fn chance_above(&self, ratio: f64) -> f64 {
        let fall = (-(ratio - 1.0).abs() / self.excess).exp();
        if ratio >= 1.0 { self.above * fall } else { 1.0 - (1.0 - self.above) * fall }
    }

    /// The part of a peak that has to be added to it for a bound that all but [`MOST_RISK`] of the measured peaks
    /// keep.
    pub fn bar(&self) -> f64 {
        self.excess * (self.above / MOST_RISK).ln().max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_is_where_the_chance_is_one_in_twenty() {
        for error in [PeakError::NATIVE, PeakError::TORCH, PeakError { above: 0.24, excess: 0.07 }] {
            assert!((error.chance_above(1.0 + error.bar()) - MOST_RISK).abs() < 1e-12);
            assert!((error.chance_above(1.0) - error.above).abs() < 1e-12);
            let chances: Vec<f64> = (0..40).map(|i| error.chance_above(0.5 + 0.05 * f64::from(i))).collect();
            assert!(chances.windows(2).all(|pair| pair[0] >= pair[1]), "{chances:?}");
            assert!(chances[0] > 0.99 && chances[39] < 1e-3, "{chances:?}");
        }
        let rare = PeakError { above: 0.01, excess: 0.1 };
        assert_eq!(rare.bar(), 0.0);
    }
}
