//! What a prediction stands on beyond the usual runs of a fit, and the error bar that each such basis deserves.

use crate::calibration::error_bar;
use crate::estimate::time;
use crate::parameters::FreeParameters;
use crate::run::TrainingRun;
use crate::trainer::Trainer;
use crate::work::StepWork;
use autodist_spec::Precision;
use autodist_spec::estimate::LAUNCH_BOUND;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use strum::VariantArray;

/// With fewer runs, an error bar is not meaningful.
pub(crate) const FEW: usize = 10;

/// A reason for which a prediction may be less accurate than most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, VariantArray)]
#[serde(rename_all = "snake_case")]
pub enum Basis {
    /// Its device's generation has no measured kernels: they are extrapolated from another one.
    ExtrapolatedDevice,
    /// No other run of the fit is by its trainer.
    OtherTrainer,
    /// GEMMs in 8 bits.
    EightBits,
    /// A model of experts.
    Experts,
    /// Devices wait for the host to launch kernels.
    HostBound,
    /// Facts about the run were assumed.
    AssumedFacts,
}

impl Basis {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// What such runs have in common, after "runs".
    pub fn words(self) -> &'static str {
        match self {
            Self::ExtrapolatedDevice => "on devices of a generation without measured kernels",
            Self::OtherTrainer => "of a trainer without other runs in the fit",
            Self::EightBits => "in 8 bits",
            Self::Experts => "of mixture-of-experts models",
            Self::HostBound => "in which devices wait for the host",
            Self::AssumedFacts => "with assumed facts",
        }
    }
}

impl TrainingRun {
    /// What a prediction of this run stands on; `known` are the trainers with runs in the fit.
    pub fn bases(&self, parameters: &FreeParameters, known: impl Fn(Trainer) -> bool) -> Vec<Basis> {
        let breakdown = time(self, &StepWork::of(self), parameters);
        let applies = |basis: &Basis| match basis {
            Basis::ExtrapolatedDevice => !self.machine.device.has_kernels_of_its_generation(),
            Basis::OtherTrainer => !known(self.trainer),
            Basis::EightBits => self.dtype == Precision::Fp8,
            Basis::Experts => self.block.experts.is_some(),
            Basis::HostBound => breakdown.host_s > LAUNCH_BOUND * breakdown.total(),
            Basis::AssumedFacts => !self.assumptions.is_empty(),
        };
        Basis::ALL.iter().copied().filter(applies).collect()
    }
}

/// An error bar, and what the prediction stands on.
#[derive(Debug, Clone, PartialEq)]
pub struct StatedBar {
    /// Relative to the prediction.
    pub relative: f64,
    pub bases: Vec<Basis>,
}

/// A run that was predicted by a fit to other groups.
pub struct Judged<'a> {
    pub group: &'a str,
    /// Predicted over measured, - 1.
    pub error: f64,
    pub bases: Vec<Basis>,
}

/// The error bars of each basis.
#[derive(Debug, Clone, PartialEq)]
pub struct ErrorBars {
    /// Of runs that stand on none of the others.
    pub usual: f64,
    pub of: BTreeMap<Basis, f64>,
}

impl ErrorBars {
    /// The bars that nine of ten of these runs stay within, by basis; a basis with few runs has none.
    pub fn of<'a>(judged: impl IntoIterator<Item = &'a Judged<'a>>) -> Self {
        let judged: Vec<&Judged> = judged.into_iter().collect();
        let errors = |keep: &dyn Fn(&[Basis]) -> bool| -> Vec<(&str, f64)> {
            judged.iter().filter(|one| keep(&one.bases)).map(|one| (one.group, one.error)).collect()
        };
        let bar = |keep: &dyn Fn(&[Basis]) -> bool| {
            let errors = errors(keep);
            (errors.len() >= FEW).then(|| widened(&errors))
        };
        let usual = bar(&<[Basis]>::is_empty).unwrap_or_else(|| widened(&errors(&|_| true)));
        let of = Basis::ALL
            .iter()
            .copied()
            .filter_map(|basis| Some((basis, bar(&|bases| bases.contains(&basis))?.max(usual))));
        Self { usual, of: of.collect() }
    }

    /// As they would have been stated before that group was known; of all groups if there is no other.
    pub fn without(judged: &[Judged], group: &str) -> Self {
        let others = || judged.iter().filter(|one| one.group != group);
        if others().next().is_none() { Self::of(judged) } else { Self::of(others()) }
    }

    /// The bar of a prediction, and the basis to which it belongs: the widest that applies. A basis without a
    /// bar of its own has the widest of all.
    pub fn widest(&self, bases: &[Basis]) -> (f64, Option<Basis>) {
        let widest = self.of.values().copied().fold(self.usual, f64::max);
        let bar = |basis: &Basis| (self.of.get(basis).copied().unwrap_or(widest), Some(*basis));
        bases
            .iter()
            .map(bar)
            .fold((self.usual, None), |best, other| if other.0 > best.0 { other } else { best })
    }
}

/// The bar of the groups that were seen, wider the fewer they are: the next one may be unlike them.
fn widened(errors: &[(&str, f64)]) -> f64 {
    let groups: BTreeSet<&str> = errors.iter().map(|(group, _)| *group).collect();
    error_bar(errors) * (1.0 + 1.0 / groups.len().max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_basis_has_the_bar_of_its_own_runs() {
        let judged = |group, error: f64, bases: &[Basis]| Judged { group, error, bases: bases.to_vec() };
        let mut runs = Vec::new();
        for at in 0..20 {
            let group = ["a", "b"][at % 2];
            runs.push(judged(group, 0.1, &[]));
            runs.push(judged(group, 0.3, &[Basis::EightBits]));
        }
        runs.push(judged("a", 0.9, &[Basis::Experts]));
        let bars = ErrorBars::of(&runs);
        assert!((bars.usual - 0.15).abs() < 1e-9, "{bars:?}");
        assert_eq!(bars.widest(&[]), (bars.usual, None));
        let (bar, basis) = bars.widest(&[Basis::EightBits]);
        assert!((bar - 0.45).abs() < 1e-9 && basis == Some(Basis::EightBits), "{bars:?}");
        // One run is too few for a bar of its own.
        assert_eq!(bars.widest(&[Basis::Experts]), (bar, Some(Basis::Experts)));
        // A single group says less about the next one.
        assert!((ErrorBars::without(&runs, "b").usual - 0.2).abs() < 1e-9);
    }
}
