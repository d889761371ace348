//! Layouts that a search looked at, as points of step time and memory.

use crate::error::{InputError, not_negative};
use crate::units::{Bytes, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a search found out about a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum PricedOutcome {
    /// It was simulated, and fits.
    Simulated,
    /// It does not fit: `peak_memory_bytes` is the least that it needs, `step_time_s` a lower bound.
    OutOfMemory,
    /// It was not simulated, because its lower bound is too high: both numbers are lower bounds.
    Bounded,
}

/// A layout that a search looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PricedPoint {
    pub label: String,
    pub outcome: PricedOutcome,
    pub step_time_s: Seconds,
    pub peak_memory_bytes: Bytes,
}

impl PricedPoint {
    /// Points that a plan document holds at most, of all outcomes together: enough for a figure.
    pub const MOST: usize = 200;

    pub(crate) fn check(&self) -> Result<(), InputError> {
        not_negative("step_time_s", self.step_time_s.0)
    }
}
