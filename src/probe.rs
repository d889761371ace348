//! Measures the slowdown in steps of codecs: trains with and without, on the same data from the same
//! parameters.

use crate::failure::Failure;
use crate::progress::Progress;
use crate::{output, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_executor::{DataSource, Task};
use autodist_program::{rules, stages};
use autodist_spec::error::in_range;
use autodist_spec::{Codec, CodecProbe, Coded, InputError, ParallelStrategy, Plan, Reduction};

/// Losses are averaged over this many steps: single ones are as noisy as their batches.
const WINDOW: usize = 10;
/// Training with a codec stops after this multiple of the steps without it.
const PATIENCE: f64 = 1.5;

/// The record of a longer training would not contain every loss.
const MOST_STEPS: u64 = 100_000;

/// Trains for `steps` steps without a codec, and with every codec that the plan's job allows until the loss
/// is as low. Returns the error if some could not be trained; `probes` has the others.
pub fn probe(
    plan: &Plan,
    data: &DataSource,
    steps: u32,
    options: &LaunchOptions,
    probes: &mut Vec<CodecProbe>,
) -> Result<Option<Failure>, Failure> {
    in_range("--probe", u64::from(steps), 2 * WINDOW as u64, MOST_STEPS)?;
    let devices = plan.cluster.device_count();
    let exact = plain(plan)?;
    let allow = &plan.job.allow;
    let lossy = [
        (Coded::Gradients, &allow.codecs),
        (Coded::Parameters, &allow.parameter_codecs),
        (Coded::Activations, &allow.activation_codecs),
    ];
    let pairs = lossy.iter().flat_map(|(coded, codecs)| codecs.iter().map(|codec| (*coded, *codec)));
    let pairs: Vec<(Coded, Codec)> = pairs.filter(|(_, codec)| *codec != Codec::None).collect();
    // Losses do not depend on links or clocks.
    let options = LaunchOptions { network: None, ..options.clone() };
    let mut progress = Progress::new("probe");
    let train = |strategy: &ParallelStrategy, steps: u32, more_seed: u64| -> Result<Vec<f64>, Failure> {
        let stages = stages::even(&plan.model, strategy);
        let mut seeded = plan.clone();
        seeded.job.seed = plan.job.seed.wrapping_add(more_seed);
        let task = Task {
            strategy: strategy.clone(),
            stages,
            emulated_flops_per_s: None,
            ..Task::of_plan(&seeded, data.clone(), steps, 0)
        };
        let trained = train::run(&task, &options, |_| ());
        trained.failure.map_or(Ok(()), Err)?;
        let steps = trained.record.map(|record| record.steps).unwrap_or_default();
        Ok(smooth(&steps.iter().map(|step| step.loss).collect::<Vec<_>>()))
    };
    let longest = (PATIENCE * f64::from(steps)).ceil() as u32;
    progress.at(0, pairs.len() + 2, "training without codecs");
    let exact_loss = match train(&exact, steps, 0) {
        Ok(losses) => losses.last().copied().unwrap_or_default(),
        Err(failure) => return Ok(Some(failure)),
    };
    // Another seed has other batches and another start: what differs in steps is noise.
    progress.at(1, pairs.len() + 2, "training without codecs again, with another seed");
    let noise = match train(&exact, longest, 1) {
        Ok(losses) => noise(steps, exact_loss, &losses),
        Err(failure) => return Ok(Some(failure)),
    };
    for (index, (coded, codec)) in pairs.iter().enumerate() {
        let name = format!("{} as {}", coded.name(), codec.name());
        progress.at(index + 2, pairs.len() + 2, &format!("training with {name}"));
        let strategy = with(&exact, *coded, *codec);
        let legal = rules::check_strategy(&plan.model, &plan.job, devices, &strategy);
        if let Err(illegal) = legal {
            output::note(&format!("not probed: {name}: {illegal}"));
            continue;
        }
        match train(&strategy, longest, 0) {
            Ok(losses) => {
                let noise = Some(noise);
                probes.push(CodecProbe { noise, ..compare((*coded, *codec), steps, exact_loss, &losses) });
            }
            // If training diverges with one codec, the others are still measured.
            Err(failure @ Failure::Run(_)) => {
                progress.warn(&format!("not probed: {name}: {failure}; the other codecs are still probed"));
            }
            Err(failure) => return Ok(Some(failure)),
        }
    }
    progress.end(true);
    Ok(None)
}

/// Plain data parallelism over the plan's devices.
fn plain(plan: &Plan) -> Result<ParallelStrategy, Failure> {
    let devices = plan.cluster.device_count();
    let each = plan.job.global_batch / devices.max(1);
    let strategy = ParallelStrategy::data_parallel(devices, each.max(1));
    let legal = rules::check_strategy(&plan.model, &plan.job, devices, &strategy);
    legal
        .map_err(|illegal| {
            InputError::new(
                "--probe",
                "",
                format!("trains with plain data parallelism, which is not possible: {illegal}"),
            )
            .hint("plan with a global batch that the number of devices divides, or remove `--probe`")
            .into()
        })
        .map(|()| strategy)
}

/// The same training, with a strategy in which this codec has data to encode.
fn with(exact: &ParallelStrategy, coded: Coded, codec: Codec) -> ParallelStrategy {
    let mut strategy = exact.clone();
    let communication = &mut strategy.communication;
    match coded {
        Coded::Gradients | Coded::GradientShards => {
            communication.reduce = Reduction { codec, ..Reduction::default() };
        }
        Coded::Parameters => {
            communication.parameters = codec;
            (strategy.zero_stage, strategy.shard) = (3, strategy.data);
        }
        Coded::Activations => {
            communication.activations = codec;
            (strategy.pipeline, strategy.data, strategy.micro_batch) = (strategy.data, 1, 1);
        }
    }
    strategy
}

/// Means over the last steps; the first few use fewer steps.
fn smooth(losses: &[f64]) -> Vec<f64> {
    let mean = |end: usize| {
        let part = &losses[(end + 1).saturating_sub(WINDOW)..=end];
        part.iter().sum::<f64>() / part.len() as f64
    };
    (0..losses.len()).map(mean).collect()
}

/// By how much two exact trainings differ in steps to a loss, relative to them; at least half of the window that
/// losses are averaged over.
fn noise(steps: u32, exact_loss: f64, losses: &[f64]) -> f64 {
    let again = reached(exact_loss, losses).unwrap_or(losses.len()) as f64 / f64::from(steps);
    (again - 1.0).abs().max(0.5 * WINDOW as f64 / f64::from(steps))
}

/// Steps until the loss is as low as that of the exact training. Before the first full window, the mean is of the
/// beginning.
fn reached(exact_loss: f64, losses: &[f64]) -> Option<usize> {
    let after = losses.iter().enumerate().skip(WINDOW - 1).find(|(_, loss)| **loss <= exact_loss);
    after.map(|(index, _)| index + 1)
}

fn compare((coded, codec): (Coded, Codec), steps: u32, exact_loss: f64, losses: &[f64]) -> CodecProbe {
    let after = reached(exact_loss, losses);
    let made = after.unwrap_or(losses.len());
    CodecProbe {
        noise: None,
        codec,
        coded,
        steps,
        exact_loss,
        loss: losses.get(steps as usize - 1).or(losses.last()).copied().unwrap_or_default(),
        slowdown: made as f64 / f64::from(steps),
        reached: after.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codec_costs_the_steps_that_it_needs_to_the_exact_loss() {
        let falling: Vec<f64> = (0..60).map(|step| 60.0 - f64::from(step)).collect();
        let smoothed = smooth(&falling);
        assert_eq!((smoothed[0], smoothed[9], smoothed[59]), (60.0, 55.5, 5.5));
        let probe = compare((Coded::Gradients, Codec::OneBit), 40, 15.5, &smoothed);
        assert_eq!((probe.slowdown, probe.reached, probe.loss), (50.0 / 40.0, true, smoothed[39]));
        let never = compare((Coded::Gradients, Codec::OneBit), 40, 1.0, &smoothed);
        assert_eq!((never.slowdown, never.reached), (60.0 / 40.0, false));
        // The loss of step 40 is 24.5 here: a training that is there at step 50 differs by a quarter.
        assert_eq!(noise(40, 15.5, &smoothed), 0.25);
        // One that is there at once differs by no less than the window can tell.
        assert_eq!(noise(40, smoothed[39], &smoothed), 0.125);
    }
}
