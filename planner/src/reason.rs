//! Explains in words and numbers why one plan is better than another.

use crate::choice::TIE;
use autodist_spec::estimate::memory_risk;
use autodist_spec::{Bytes, Estimate, Seconds, Slowdown};
use serde::Serialize;
use std::fmt;

/// A part of a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    pub part: &'static str,
    pub time_s: Seconds,
    /// Fraction of the step, from 0 to 1.
    pub share: f64,
}

impl Limit {
    /// The largest part of a step.
    pub fn of(estimate: &Estimate) -> Self {
        let mut largest = ("compute", Seconds::ZERO);
        for part in estimate.cost.parts() {
            if part.1 > largest.1 {
                largest = part;
            }
        }
        Self { part: largest.0, time_s: largest.1, share: largest.1 / estimate.step_time_s }
    }
}

/// A comparison of an estimate with a better one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// `time / best - 1`.
    pub slower: f64,
    /// The part that changed most in the direction of the difference: its name, its time in this plan, and its
    /// time in the better one.
    pub part: (&'static str, Seconds, Seconds),
    pub memory_bytes: Bytes,
    pub best_memory_bytes: Bytes,
}

impl Comparison {
    pub fn of(best: &Estimate, other: &Estimate) -> Self {
        let mut part = ("compute", Seconds::ZERO, Seconds::ZERO);
        // What explains the difference changed in the same direction.
        let sign = if other.step_time_s >= best.step_time_s { 1.0 } else { -1.0 };
        for ((name, here), (_, there)) in other.cost.parts().into_iter().zip(best.cost.parts()) {
            if sign * (here.0 - there.0) > sign * (part.1.0 - part.2.0) {
                part = (name, here, there);
            }
        }
        Self {
            slower: other.step_time_s / best.step_time_s - 1.0,
            part,
            memory_bytes: other.peak_memory_bytes,
            best_memory_bytes: best.peak_memory_bytes,
        }
    }
}

impl Comparison {
    /// The comparison in words, with what stands against the plan of `other`. `merit` is what the better one has instead
    /// if both are as fast.
    pub(crate) fn with_doubts(&self, other: &Estimate, merit: Option<&str>) -> String {
        let mut text = self.to_string();
        if let Some(merit) = merit.filter(|_| self.slower <= 0.0 && self.slower > -TIE) {
            let within = if self.slower > -5e-4 { "" } else { "within the error, and " };
            text += &format!("; {within}the first {merit}");
        }
        match other.slowdown {
            Some(Slowdown { factor, .. }) if other.is_unverified() => {
                text += &format!(
                    "; x {factor:.3} the steps to a loss is a prior that nobody measured: verify it with `validate --probe`"
                );
            }
            Some(Slowdown { factor, .. }) if factor > 1.0 => {
                text += &format!("; needs x {factor:.3} the steps to a loss (measured)");
            }
            _ => {}
        }
        if let Some(risk) = other.memory_risk.filter(|_| other.is_risky()) {
            text += &format!("; {}", memory_risk(risk));
        }
        text
    }
}

fn percent(ratio: f64) -> String {
    let percent = 100.0 * ratio.abs();
    if percent >= 9.95 { format!("{percent:.0} %") } else { format!("{percent:.1} %") }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exposed = if self.part.0.ends_with("communication") { "exposed " } else { "" };
        let (name, here, there) = self.part;
        if self.slower.abs() >= 5e-4 {
            let word = if self.slower > 0.0 { "slower" } else { "faster" };
            return write!(f, "{} {word}: {exposed}{name} {here} against {there}", percent(self.slower));
        }
        if self.memory_bytes == self.best_memory_bytes {
            return write!(f, "as fast and as large");
        }
        write!(f, "as fast, with {} of memory against {}", self.memory_bytes, self.best_memory_bytes)
    }
}
