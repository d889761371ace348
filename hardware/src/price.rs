use autodist_spec::{Provenance, Seconds};

/// How long something takes, and how far that is to be trusted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PredictedTime {
    pub time: Seconds,
    /// Relative: about two thirds of measurements lie within `time * (1 ± spread)`.
    pub spread: f64,
    pub provenance: Provenance,
}
