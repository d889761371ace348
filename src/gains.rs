//! What codecs brought: every run with compressed gradients beside the same plan with gradients as they are.

use autodist_spec::run::CodecGain;
use autodist_spec::{Codec, Communication, ParallelStrategy, Reduction, ValidatedRun};

/// Measured gains that are smaller than that are none, as for plans that tie.
const TIE: f64 = 0.02;

/// One entry for every run whose exact twin ran too.
pub fn of(runs: &[ValidatedRun]) -> Vec<CodecGain> {
    let gain = |run: &ValidatedRun| {
        let communication = &run.strategy.communication;
        let codec = communication.reductions().map(|r| r.codec).find(|codec| *codec != Codec::None)?;
        let twin = twin(run, runs)?;
        let spread =
            |run: &ValidatedRun| run.measured.adjusted_step_time_spread_s / run.measured.adjusted_step_time_s;
        let predicted = twin.predicted.step_time_s / run.predicted.step_time_s - 1.0;
        let measured = twin.measured.adjusted_step_time_s / run.measured.adjusted_step_time_s - 1.0;
        let noise = TIE.max(spread(run) + spread(twin));
        let agrees = (predicted > 0.0) == (measured > 0.0) || measured.abs() <= noise;
        Some(CodecGain { label: run.label.clone(), codec, predicted, measured, noise, agrees })
    };
    runs.iter().filter_map(gain).collect()
}

/// The same plan with gradients as they are: reduced by the same algorithm, or by the fastest if that did not run.
fn twin<'a>(run: &ValidatedRun, runs: &'a [ValidatedRun]) -> Option<&'a ValidatedRun> {
    let reduce = &run.strategy.communication.reduce;
    let same = runs.iter().filter(|other| {
        other.strategy.communication.reductions().all(|r| r.codec == Codec::None)
            && beside_reductions(&other.strategy) == beside_reductions(&run.strategy)
    });
    same.min_by(|a, b| {
        let other = |run: &ValidatedRun| run.strategy.communication.reduce.algorithm != reduce.algorithm;
        let time = |run: &ValidatedRun| run.measured.adjusted_step_time_s.0;
        other(a).cmp(&other(b)).then(time(a).total_cmp(&time(b)))
    })
}

fn beside_reductions(strategy: &ParallelStrategy) -> ParallelStrategy {
    let reduce = Reduction::default();
    let communication = Communication { reduce, buckets: Vec::new(), ..strategy.communication.clone() };
    ParallelStrategy { communication, ..strategy.clone() }
}
