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
        let exact = exact(&run.strategy);
        let twin = runs.iter().find(|other| other.strategy == exact)?;
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

/// The strategy with gradients as they are, by the same algorithm.
fn exact(strategy: &ParallelStrategy) -> ParallelStrategy {
    let communication = &strategy.communication;
    let reduce = Reduction { codec: Codec::None, ..communication.reduce };
    let communication = Communication { reduce, buckets: Vec::new(), ..communication.clone() };
    ParallelStrategy { communication, ..strategy.clone() }
}
