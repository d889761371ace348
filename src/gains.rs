//! Measured effect of codecs: every run with a codec for gradients, parameters or activations, compared with
//! the same plan without.

use crate::verdict;
use autodist_spec::run::CodecGain;
use autodist_spec::{Codec, Communication, ParallelStrategy, ValidatedRun};

/// One entry for every run whose plan without codecs also ran.
pub fn of(runs: &[ValidatedRun]) -> Vec<CodecGain> {
    let gain = |run: &ValidatedRun| {
        let codec = codecs(&run.strategy.communication).find(|codec| *codec != Codec::None)?;
        let twin = twin(run, runs)?;
        let predicted = twin.predicted.step_time_s / run.predicted.step_time_s - 1.0;
        let measured = twin.measured.adjusted_step_time_s / run.measured.adjusted_step_time_s - 1.0;
        let noise = verdict::noise_between(&run.measured, &twin.measured);
        let agrees = (predicted > 0.0) == (measured > 0.0) || measured.abs() <= noise;
        Some(CodecGain { label: run.label.clone(), codec, predicted, measured, noise, agrees })
    };
    runs.iter().filter_map(gain).collect()
}

/// The same plan without codecs: with the same algorithm, or with the fastest one if that did not run.
fn twin<'a>(run: &ValidatedRun, runs: &'a [ValidatedRun]) -> Option<&'a ValidatedRun> {
    let Communication { reduce, gather, .. } = &run.strategy.communication;
    let same = runs.iter().filter(|other| {
        codecs(&other.strategy.communication).all(|codec| codec == Codec::None)
            && beside_codecs(&other.strategy) == beside_codecs(&run.strategy)
    });
    same.min_by(|a, b| {
        let other = |run: &ValidatedRun| {
            let communication = &run.strategy.communication;
            (communication.reduce.algorithm, communication.gather) != (reduce.algorithm, *gather)
        };
        let time = |run: &ValidatedRun| run.measured.adjusted_step_time_s.0;
        other(a).cmp(&other(b)).then(time(a).total_cmp(&time(b)))
    })
}

/// The codecs of gradients, parameters and activations.
fn codecs(communication: &Communication) -> impl Iterator<Item = Codec> + '_ {
    let others = [communication.parameters, communication.activations];
    communication.reductions().map(|reduction| reduction.codec).chain(others)
}

fn beside_codecs(strategy: &ParallelStrategy) -> ParallelStrategy {
    let (placement, tensor) = (strategy.communication.placement.clone(), strategy.communication.tensor);
    let communication = Communication { placement, tensor, ..Communication::default() };
    ParallelStrategy { communication, ..strategy.clone() }
}
