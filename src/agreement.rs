//! How well predictions order plans by their measured times.

use crate::verdict::TIE;
use autodist_spec::run::Agreement;
use autodist_spec::{Plan, Recompute, ValidatedRun};

/// `None` with fewer than two runs.
pub fn of(plan: &Plan, runs: &[ValidatedRun]) -> Option<Agreement> {
    if runs.len() < 2 {
        return None;
    }
    let measured: Vec<f64> = runs.iter().map(|run| run.measured.adjusted_step_time_s.0).collect();
    let fastest = measured.iter().copied().fold(f64::INFINITY, f64::min);
    let slowest = measured.iter().copied().fold(0.0, f64::max);
    let mut errors: Vec<f64> = runs.iter().map(|run| run.adjusted_error.abs()).collect();
    errors.sort_by(f64::total_cmp);
    let p95 = errors[((0.95 * errors.len() as f64).ceil() as usize).clamp(1, errors.len()) - 1];
    let mean = |values: &mut dyn Iterator<Item = f64>| {
        let (sum, count) = values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
        sum / f64::from(count.max(1))
    };
    let plain = runs.iter().filter(|run| {
        let s = &run.strategy;
        s.tensor == 1
            && s.pipeline == 1
            && s.zero_stage == 0
            && s.communication.is_default()
            && s.recompute == Recompute::None
    });
    let guesses: Vec<f64> = runs.iter().map(|run| constant_flops(plan, run)).collect();
    let best_guess = guesses.iter().copied().fold(f64::INFINITY, f64::min);
    let guessed = runs.iter().zip(&guesses).filter(|(_, guess)| **guess <= best_guess * (1.0 + 1e-9));
    Some(Agreement {
        p95_error: p95,
        spread: slowest / fastest - 1.0,
        kendall_tau: kendall(runs, &measured),
        random_regret: mean(&mut runs.iter().map(|run| run.regret)),
        data_parallel_regret: plain.map(|run| run.regret).reduce(f64::min),
        constant_flops_regret: mean(&mut guessed.map(|(run, _)| run.regret)),
    })
}

/// (Concordant - discordant) over all pairs that differ; 1 if none differ.
fn kendall(runs: &[ValidatedRun], measured: &[f64]) -> f64 {
    let (mut sum, mut pairs) = (0.0, 0.0);
    for (i, one) in measured.iter().enumerate() {
        for (j, other) in measured.iter().enumerate().skip(i + 1) {
            if (one / other).max(other / one) < 1.0 + TIE {
                continue;
            }
            let predicted = runs[i].predicted.step_time_s.0 - runs[j].predicted.step_time_s.0;
            pairs += 1.0;
            sum += if predicted == 0.0 { 0.0 } else { predicted.signum() * (one - other).signum() };
        }
    }
    if pairs > 0.0 { sum / pairs } else { 1.0 }
}

/// Relative step time if only FLOPs and the bubble mattered.
fn constant_flops(plan: &Plan, run: &ValidatedRun) -> f64 {
    let s = &run.strategy;
    let again = match s.recompute {
        Recompute::None => 1.0,
        Recompute::Selective => 1.1,
        Recompute::Full => 4.0 / 3.0,
    };
    let micro_batches = f64::from(s.micro_batches(plan.job.global_batch) * s.virtual_stages);
    again * (1.0 + f64::from(s.pipeline - 1) / micro_batches.max(1.0))
}
