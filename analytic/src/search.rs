//! Enumerates all layouts of a job on a cluster that a trainer supports, and finds the fastest.

use crate::estimate::StepEstimate;
use crate::parameters::FreeParameters;
use crate::run::{ParallelDims, TrainingRun, even_blocks};
use crate::trainer::Trainer;
use autodist_spec::Recompute;

/// Largest micro-batch of the search; larger ones do not make GEMMs faster.
const LARGEST_MICRO_BATCH: u32 = 16;
/// Smallest number of tokens of a sequence on a context-parallel rank.
const LEAST_TOKENS: u32 = 4096;

/// The fixed parts of a layout; the rest is searched.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fixed {
    pub tensor: Option<u32>,
    pub context: Option<u32>,
    pub pipeline: Option<u32>,
    pub data: Option<u32>,
    pub virtual_stages: Option<u32>,
    pub expert: Option<u32>,
    pub zero_stage: Option<u8>,
    pub micro_batch: Option<u32>,
    pub recompute: Option<Recompute>,
    /// Always use sequence parallelism, not only where the trainer does so by default.
    pub sequence_parallel: bool,
}

/// The result of a search.
#[derive(Debug, Clone)]
pub struct Found {
    /// Fastest first.
    pub best: Vec<(TrainingRun, StepEstimate)>,
    /// Layouts that were priced or found too large.
    pub considered: usize,
    /// Layouts that do not fit on the devices even with full recomputation.
    pub too_large: usize,
    /// Bytes that the smallest of these layouts needs.
    pub least_memory: Option<f64>,
}

/// The `keep` fastest layouts of `base`'s job on `devices` devices, each with the cheapest recomputation that
/// fits. The layout of `base` itself is ignored.
pub fn search(
    base: &TrainingRun,
    devices: u32,
    fixed: &Fixed,
    parameters: &FreeParameters,
    error_bar: impl Fn(&TrainingRun) -> (f64, String),
    keep: usize,
) -> Found {
    let mut found = Found { best: Vec::new(), considered: 0, too_large: 0, least_memory: None };
    for layout in layouts(base, devices, fixed) {
        for micro_batch in micro_batches(base, &layout, fixed) {
            for virtual_stages in virtual_stages(base, &layout, micro_batch, fixed) {
                let layout = ParallelDims { virtual_stages, ..layout };
                let run = TrainingRun { layout, micro_batch, ..base.clone() };
                if run.check().is_ok() {
                    found.consider(run, fixed, parameters);
                }
            }
        }
    }
    found.best.sort_by(|a, b| a.1.step.0.total_cmp(&b.1.step.0));
    found.best.truncate(keep);
    for (run, estimate) in &mut found.best {
        (estimate.error_bar, estimate.error_bar_of) = error_bar(run);
    }
    found
}

impl Found {
    fn consider(&mut self, mut run: TrainingRun, fixed: &Fixed, parameters: &FreeParameters) {
        self.considered += 1;
        let capacity = run.machine.memory.as_f64();
        let mut least = f64::INFINITY;
        let modes = fixed.recompute.as_ref().map_or(run.trainer.recompute_modes(), std::slice::from_ref);
        for &mode in modes {
            run.recompute = mode;
            let estimate = run.estimate(parameters, 0.0);
            let memory = estimate.memory.total();
            least = least.min(memory);
            if memory <= capacity {
                self.best.push((run, estimate));
                return;
            }
        }
        self.too_large += 1;
        self.least_memory = Some(self.least_memory.map_or(least, |known| known.min(least)));
    }
}

fn divisors(of: u32) -> impl Iterator<Item = u32> {
    (1..=of).filter(move |degree| of.is_multiple_of(*degree))
}

/// The fixed degree, or the other degrees if the trainer supports them.
fn degrees(fixed: Option<u32>, has: bool, others: impl Iterator<Item = u32>) -> Vec<u32> {
    match fixed {
        Some(degree) => vec![degree],
        None if has => others.collect(),
        None => vec![1],
    }
}

/// Layouts that use all devices, with one chunk of blocks per pipeline rank.
fn layouts(base: &TrainingRun, devices: u32, fixed: &Fixed) -> Vec<ParallelDims> {
    let (shape, trainer) = (&base.shape, base.trainer);
    let in_node = base.machine.devices_per_node.min(shape.heads);
    let fits_heads = |tensor: &u32| *tensor <= in_node && shape.heads.is_multiple_of(*tensor);
    let long = |context: &u32| context.is_power_of_two() && base.seq_len / context >= LEAST_TOKENS;
    let even = |stages: &u32| *stages <= shape.layers && even_blocks(shape.layers, *stages).is_some();
    let mut found = Vec::new();
    for tensor in degrees(fixed.tensor, trainer.splits_layers(), divisors(devices).filter(fits_heads)) {
        let splits_sequences = trainer.splits_sequences();
        let rest = devices / tensor.max(1);
        for context in degrees(fixed.context, splits_sequences, divisors(rest).filter(|c| *c == 1 || long(c)))
        {
            let rest = rest / context.max(1);
            for pipeline in degrees(fixed.pipeline, trainer.has_pipelines(), divisors(rest).filter(even)) {
                // The product of the given degrees may overflow.
                let model = [context, pipeline].into_iter().try_fold(tensor, u32::checked_mul);
                let Some(model) = model.filter(|model| *model > 0 && devices.is_multiple_of(*model)) else {
                    continue;
                };
                let data = devices / model;
                if fixed.data.is_some_and(|wanted| wanted != data) || !base.global_batch.is_multiple_of(data)
                {
                    continue;
                }
                let experts = shape.experts.map_or(1, |experts| experts.count);
                let shared = |expert: &u32| data.is_multiple_of(*expert);
                for expert in degrees(fixed.expert, experts > 1, divisors(experts).filter(shared)) {
                    for zero_stage in zero_stages(trainer, data.saturating_mul(context), fixed) {
                        found.push(ParallelDims {
                            tensor,
                            context,
                            data,
                            pipeline,
                            virtual_stages: 1,
                            expert,
                            sequence_parallel: tensor > 1 && (fixed.sequence_parallel || splits_sequences),
                            zero_stage,
                            shard: if zero_stage > 0 { data } else { 1 },
                        });
                    }
                }
            }
        }
    }
    found
}

/// ZeRO stages that the trainer supports, where `replicas` ranks hold the same parameters.
fn zero_stages(trainer: Trainer, replicas: u32, fixed: &Fixed) -> Vec<u8> {
    match fixed.zero_stage {
        Some(stage) => vec![stage],
        None if replicas == 1 => vec![0],
        None if trainer.shards_parameters() || trainer.is_core() => vec![trainer.usual_zero_stage()],
        None if trainer == Trainer::Deepspeed => vec![0, 1, 2, 3],
        None => vec![0, 1],
    }
}

fn micro_batches(base: &TrainingRun, layout: &ParallelDims, fixed: &Fixed) -> Vec<u32> {
    let each = base.global_batch / layout.data;
    let sizes = (0..).map(|power| 1 << power).take_while(|size| *size <= LARGEST_MICRO_BATCH);
    degrees(fixed.micro_batch, true, sizes.filter(|size| each.is_multiple_of(*size)))
}

/// Interleaving distributes micro-batches over all ranks in turn, and needs chunks of equal numbers of
/// blocks.
fn virtual_stages(base: &TrainingRun, layout: &ParallelDims, micro_batch: u32, fixed: &Fixed) -> Vec<u32> {
    let rounds = base.global_batch / layout.data / micro_batch.max(1);
    let interleaves =
        base.trainer.interleaves() && layout.pipeline > 1 && rounds.is_multiple_of(layout.pipeline);
    let blocks = even_blocks(base.shape.layers, layout.pipeline).map_or(1, |(blocks, _)| blocks);
    degrees(fixed.virtual_stages, interleaves, divisors(blocks))
}
