use autodist_spec::{Provenance, Seconds};

/// A predicted time and its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictedTime {
    pub time: Seconds,
    /// Relative: about two thirds of measurements lie within `time * (1 ± spread)`.
    pub spread: f64,
    pub provenance: Provenance,
}
