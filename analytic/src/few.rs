//! The error bar of predictions that a few own runs corrected.
//!
//! The logarithm of measured over predicted time is taken as `b + e`: `b` is common to a cluster, and `e` differs
//! between its runs, with the standard deviation `s`. A fit to `n` runs of the cluster removes their mean, so that the
//! next run has the variance `s² (1 + 1/n)`. Of `s` there are two sources: published runs, of which [`SCATTER`] gives
//! it as a part of the shipped error bar with [`PRIOR_DEGREES`] degrees of freedom, and the own runs' errors where each
//! is predicted by a fit to the others, with `n - 1`. Both are pooled, as in the conjugate analysis of a normal
//! variance (Gelman et al., Bayesian Data Analysis, 3rd edition, sections 2.6 and 3.3), and the next run then has
//! Student's t distribution with the sum of their degrees. `autodist backtest --few-runs` tests this on published
//! groups that are left out.

use crate::calibration::{self, Calibration, error_bar};
use crate::fit::{self, FitSample};
use crate::parameters::FreeParameters;
use crate::statistics::{quantile, student_90};
use crate::table::TableRow;
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Standard deviation within a group of published runs, relative to the error bar that was stated for them before the
/// group was known. It is 0.28 over the groups of the published table, but with 0.3 only 87 to 90 % of the runs of groups
/// that were left out were within the bar: groups differ in their scatter, and a fit to few runs adds to it.
const SCATTER: f64 = 0.4;
/// The published table has ten groups.
const PRIOR_DEGREES: f64 = 8.0;

/// The error bar, which nine of ten further runs are expected to stay within: `stated` is that of predictions without
/// own runs, and `left_out` are logarithms of predicted over measured times of the own runs, each one predicted by a
/// fit to the others.
pub fn bar_of_own_runs(stated: f64, left_out: &[f64]) -> f64 {
    let runs = left_out.len();
    if runs == 0 {
        return stated;
    }
    let prior = (SCATTER * stated).powi(2);
    // A single run has nothing to be compared with.
    let own = if runs > 1 { left_out.iter().map(|error| error * error).sum::<f64>() } else { 0.0 };
    // The sum of squares is over `n` runs, one degree of which is the common part.
    let own_degrees = runs as f64 - 1.0;
    let own = own * own_degrees / runs as f64;
    let degrees = PRIOR_DEGREES + own_degrees;
    let variance = (PRIOR_DEGREES * prior + own) / degrees;
    let bar = student_90(degrees) * (variance * (1.0 + 1.0 / runs as f64)).sqrt();
    let bar = bar.exp_m1().min(calibration::LARGEST_ERROR);
    // Without runs that scatter more than expected, a calibration is no less certain than none.
    if own <= own_degrees * prior { bar.min(stated) } else { bar }
}

/// Logarithms of predicted over measured times of the rows for fitting, each predicted by a fit to the others.
pub fn left_out(rows: &[TableRow], middle: &FreeParameters) -> Vec<f64> {
    let samples = fit::samples(rows);
    left_out_of(&samples.iter().collect::<Vec<_>>(), middle)
}

fn left_out_of(samples: &[&FitSample], middle: &FreeParameters) -> Vec<f64> {
    let without = |index: usize| {
        let mut others = samples.to_vec();
        let judged = others.remove(index);
        judged.error(&fit::fit(&others, middle))
    };
    (0..samples.len()).map(without).collect()
}

/// How well the error bars of few own runs hold.
#[derive(Debug, Clone, Serialize)]
pub struct FewRuns {
    /// Own runs in the calibration; 0 without one.
    pub runs: usize,
    /// How many calibrations were tried.
    pub calibrations: usize,
    /// Median error bar.
    pub median_bar: f64,
    /// Median size of the errors.
    pub median_error: f64,
    /// Part of the predicted runs within the error bar, every group with the same weight.
    pub covered: f64,
    /// The group with the lowest part.
    pub lowest: (String, f64),
    /// The error bar that would have covered nine of ten.
    pub needed: f64,
}

/// Calibrations per group and number of runs.
const DRAWS: usize = 4;

/// Leaves every group of the rows out, calibrates with some of its runs, and predicts the rest.
pub fn simulated(rows: &[TableRow], counts: &[usize]) -> Vec<FewRuns> {
    let all = fit::samples(rows);
    let mut groups: BTreeMap<&str, Vec<&FitSample>> = BTreeMap::new();
    all.iter().for_each(|sample| groups.entry(sample.group).or_default().push(sample));
    let stated = Calibration::shipped().error_bar;
    let of_group = |(group, samples): (&str, Vec<&FitSample>)| -> Vec<(usize, String, f64, Vec<f64>)> {
        let others: Vec<&FitSample> = all.iter().filter(|sample| sample.group != group).collect();
        let middle = fit::fit(&others, &FreeParameters::prior());
        let one = |count: usize, draw: usize| {
            let chosen = chosen(samples.len(), count, draw);
            let own: Vec<&FitSample> = chosen.iter().map(|index| samples[*index]).collect();
            let fitted = if own.is_empty() { middle } else { fit::fit(&own, &middle) };
            let bar = bar_of_own_runs(stated, &left_out_of(&own, &middle));
            let rest = samples.iter().enumerate().filter(|(index, _)| !chosen.contains(index));
            let errors = rest.map(|(_, sample)| sample.error(&fitted).exp() - 1.0).collect();
            (count, group.to_owned(), bar, errors)
        };
        let tried = counts.iter().filter(|count| samples.len() > **count + 1);
        tried
            .flat_map(|count| (0..if *count == 0 { 1 } else { DRAWS }).map(|draw| one(*count, draw)))
            .collect()
    };
    let tried: Vec<_> = groups.into_par_iter().flat_map_iter(of_group).collect();
    counts.iter().map(|count| summary(*count, &tried)).collect()
}

fn summary(runs: usize, tried: &[(usize, String, f64, Vec<f64>)]) -> FewRuns {
    let of: Vec<_> = tried.iter().filter(|(count, ..)| *count == runs).collect();
    let mut covered: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
    let mut errors: Vec<(&str, f64)> = Vec::new();
    for (_, group, bar, of_one) in &of {
        let entry = covered.entry(group).or_default();
        entry.0 += of_one.iter().filter(|error| error.abs() <= *bar).count() as f64;
        entry.1 += of_one.len() as f64;
        errors.extend(of_one.iter().map(|error| (group.as_str(), *error)));
    }
    let parts: Vec<(&str, f64)> =
        covered.into_iter().map(|(group, (within, all))| (group, within / all)).collect();
    let lowest = parts.iter().min_by(|a, b| a.1.total_cmp(&b.1)).copied().unwrap_or(("", f64::NAN));
    FewRuns {
        runs,
        calibrations: of.len(),
        median_bar: quantile(&mut of.iter().map(|one| one.2).collect::<Vec<_>>(), 0.5),
        median_error: quantile(&mut errors.iter().map(|(_, error)| error.abs()).collect::<Vec<_>>(), 0.5),
        covered: parts.iter().map(|(_, part)| part).sum::<f64>() / parts.len().max(1) as f64,
        lowest: (lowest.0.to_owned(), lowest.1),
        needed: error_bar(&errors),
    }
}

/// Indices of the own runs of one draw: the same in every run of the program.
fn chosen(of: usize, count: usize, draw: usize) -> Vec<usize> {
    let mut state = (0x9e37_79b9_7f4a_7c15_u64).wrapping_mul(draw as u64 * 64 + count as u64 + 1);
    let mut left: Vec<usize> = (0..of).collect();
    let mut next = |bound: usize| {
        // SplitMix64 (Steele et al. 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    };
    (0..count).map(|_| left.swap_remove(next(left.len()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_runs_say_little_and_many_say_what_they_scatter_by() {
        let of = |errors: &[f64]| bar_of_own_runs(0.16, errors);
        assert_eq!(of(&[]), 0.16);
        // Even runs that agree perfectly leave most of the stated bar.
        let agreeing: Vec<f64> = [1, 2, 3, 5, 10].map(|count| of(&vec![0.0; count])).to_vec();
        assert!(agreeing.windows(2).all(|pair| pair[0] > pair[1]), "{agreeing:?}");
        assert!(agreeing[0] > 0.12 && agreeing[2] > 0.07, "{agreeing:?}");
        assert!(of(&[0.3, -0.3, 0.25]) > 0.25);
        // With many runs it is their own scatter: 1.65 standard deviations.
        let many: Vec<f64> = (0..400).map(|index| if index % 2 == 0 { 0.05 } else { -0.05 }).collect();
        assert!((of(&many) - 0.0858).abs() < 0.003, "{}", of(&many));
    }

    #[test]
    fn a_draw_has_different_runs() {
        for (count, draw) in [(1, 0), (5, 1), (9, 3)] {
            let mut chosen = chosen(10, count, draw);
            chosen.sort_unstable();
            chosen.dedup();
            assert!(chosen.len() == count && chosen.iter().all(|index| *index < 10), "{chosen:?}");
        }
    }
}
