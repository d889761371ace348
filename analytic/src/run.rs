//! The description of a training run: model, cluster and layout.

use crate::machine::NodeModel;
use crate::memory::Memory;
use crate::trainer::{AttentionKind, Trainer};
use autodist_program::framework;
use autodist_program::rules::{self, Rule};
use autodist_spec::{
    BlockSpec, InputError, Job, Kernels, LayerTraining, ModelSpec, ParallelStrategy, Positions, Precision,
    Recompute, ScheduleKind, Segment, Shard, StateStorage,
};
use std::sync::Arc;

/// Degrees of parallelism. Ranks are numbered tensor first, then context, data and pipeline, as Megatron
/// does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParallelDims {
    pub tensor: u32,
    pub context: u32,
    pub data: u32,
    pub pipeline: u32,
    /// Chunks of layers per pipeline rank.
    pub virtual_stages: u32,
    /// Expert-parallel degree: ranks of the data axis over which the experts are distributed.
    pub expert: u32,
    pub sequence_parallel: bool,
    /// 0 to 3.
    pub zero_stage: u8,
    /// Shard group size of ZeRO; equal to `data` for the whole data axis.
    pub shard: u32,
}

impl Default for ParallelDims {
    fn default() -> Self {
        Self {
            tensor: 1,
            context: 1,
            data: 1,
            pipeline: 1,
            virtual_stages: 1,
            expert: 1,
            sequence_parallel: false,
            zero_stage: 0,
            shard: 1,
        }
    }
}

impl ParallelDims {
    /// Ranks over which parameters are sharded: context-parallel ranks hold the same parameters, and shard
    /// them too.
    pub fn shards(&self) -> u32 {
        self.shard.max(1).saturating_mul(self.context)
    }

    /// Product of the degrees; `u32::MAX` if it exceeds the size of any cluster.
    pub fn devices(&self) -> u32 {
        [self.context, self.data, self.pipeline].into_iter().fold(self.tensor, u32::saturating_mul)
    }
}

/// A run that is known to have fitted may exceed the capacity by this factor in the memory model.
const COUNTED: f64 = 1.25;

/// Blocks per pipeline rank for `stages` ranks, and by how many the first and last rank fall short (0 or 1),
/// so that the inner ranks are equal: Megatron splits 126 blocks over 8 ranks like this, to make room for
/// embedding and loss.
pub fn even_blocks(layers: u32, stages: u32) -> Option<(u32, u32)> {
    if layers.is_multiple_of(stages) {
        return Some((layers / stages, 0));
    }
    (layers + 2).is_multiple_of(stages).then(|| ((layers + 2) / stages, 1))
}

/// One training step to predict.
#[derive(Debug, Clone)]
pub struct TrainingRun {
    pub model: Arc<ModelSpec>,
    /// All blocks are like this one.
    pub block: BlockSpec,
    pub machine: Arc<NodeModel>,
    pub layout: ParallelDims,
    pub seq_len: u32,
    /// Sequences per device and pass.
    pub micro_batch: u32,
    /// Sequences per step.
    pub global_batch: u32,
    pub dtype: Precision,
    pub recompute: Recompute,
    pub trainer: Trainer,
    pub attention: AttentionKind,
    /// Whether the gradient reduction overlaps with the backward pass.
    pub overlap: bool,
    /// Whether updated parameters are broadcast rank by rank after the step, instead of all-gathered.
    pub broadcasts: bool,
    /// Whether each operation is a separate kernel.
    pub eager: bool,
    /// Whether each operation keeps the tensors that its own backward pass needs.
    pub keeps_each: bool,
    /// Whether the loss is one fused kernel, which keeps logits in 16 bits.
    pub fused_loss: bool,
    /// Bits and places of the state.
    pub states: StateStorage,
    /// What of the block, and of the layer that is priced, is trained.
    pub training: LayerTraining,
    /// Assumptions about unknown details of this run.
    pub assumptions: Vec<String>,
}

impl TrainingRun {
    /// A run of the given trainer with its defaults, as if all blocks of the model were like the most frequent
    /// one, of those with experts if there are some.
    pub fn new(model: &ModelSpec, machine: Arc<NodeModel>, layout: ParallelDims, trainer: Trainer) -> Self {
        let blocks = model.distinct_blocks().into_iter();
        let blocks = blocks.map(|(layer, count)| (model.block(layer), count));
        let most = blocks.max_by_key(|(block, count)| (block.experts.is_some(), *count));
        let attention = trainer.attention_on(machine.generation);
        Self {
            model: Arc::new(model.clone()),
            block: most.map_or(model.block(1), |(block, _)| block),
            machine,
            layout,
            seq_len: 2048,
            micro_batch: 1,
            global_batch: layout.data,
            dtype: Precision::Bf16,
            recompute: Recompute::None,
            trainer,
            attention,
            overlap: trainer.traits().overlaps_gradients,
            broadcasts: false,
            eager: trainer.traits().eager,
            keeps_each: false,
            fused_loss: false,
            states: StateStorage::default(),
            training: LayerTraining::WHOLE,
            assumptions: Vec::new(),
        }
    }

    /// How one micro-batch is divided.
    pub fn shard(&self) -> Shard {
        let ParallelDims { tensor, context, expert, sequence_parallel, .. } = self.layout;
        let tokens = f64::from(self.micro_batch) * f64::from(self.seq_len) / f64::from(context);
        Shard { tokens, seq_len: self.seq_len, tensor, expert, sequence_parallel }
    }

    /// The kernels of attention and of the MLP of one block, on one rank.
    pub fn kernels(&self) -> [Kernels; 2] {
        let shard = self.shard();
        [Segment::Attention, Segment::Mlp].map(|segment| self.model.kernels(&self.block, segment, &shard))
    }

    /// Elements of the residual stream of a micro-batch on one rank.
    pub fn residual_rows(&self) -> f64 {
        let split = if self.layout.sequence_parallel { f64::from(self.layout.tensor) } else { 1.0 };
        self.shard().tokens * f64::from(self.model.hidden) / split
    }

    /// Elements of the token table.
    pub fn table(&self) -> f64 {
        f64::from(self.model.vocab) * f64::from(self.model.hidden)
    }

    /// Rows of a learned position embedding.
    pub fn position_rows(&self) -> u32 {
        if self.model.positions == Positions::Learned { self.model.max_seq_len } else { 0 }
    }

    /// Whether the MLP has a gate: newer models, which have no dropout either.
    pub fn gated(&self) -> bool {
        self.model.activation.matrices() == 3
    }

    /// Bytes of an activation's element, of a weight in a pass and of a gradient before it is accumulated.
    pub fn word(&self) -> f64 {
        if matches!(self.dtype, Precision::Fp32 | Precision::Tf32) { 4.0 } else { 2.0 }
    }

    /// Blocks of a pipeline rank, and by how many the first and last one fall short.
    pub fn blocks(&self) -> (f64, f64) {
        let (layers, stages) = (self.model.layers, self.layout.pipeline);
        match even_blocks(layers, stages) {
            Some((blocks, missing_at_ends)) => (f64::from(blocks), f64::from(missing_at_ends)),
            None => (f64::from(layers) / f64::from(stages), 0.0),
        }
    }

    /// Micro-batches per pipeline and step; an integer unless the batch of the source does not divide.
    pub fn micro_batches(&self) -> f64 {
        f64::from(self.global_batch) / (f64::from(self.layout.data) * f64::from(self.micro_batch))
    }

    /// The key that all layouts of one job have in common: model, devices, batch, precision and trainer.
    pub fn job(&self) -> String {
        let (model, devices) = (&self.model, self.layout.devices());
        format!(
            "{model:?} {devices} {} {} {} {} {}",
            self.machine.device_name, self.seq_len, self.global_batch, self.dtype, self.trainer
        )
    }

    /// The cheapest recomputation with which a run that is known to have fitted does so; full if there is
    /// none. It allows more than the capacity, because the memory model is conservative.
    pub(crate) fn recompute_that_fitted(&self) -> Recompute {
        let with = |mode: Recompute| Memory::of(&Self { recompute: mode, ..self.clone() });
        let fits = |mode: &Recompute| with(*mode).allocated() <= COUNTED * self.machine.memory.as_f64();
        let modes = self.trainer.recompute_modes().iter().copied();
        modes.filter(|mode| *mode != Recompute::Full).find(fits).unwrap_or(Recompute::Full)
    }

    /// The strategy of the layout. ZeRO has nothing to shard over one rank.
    pub fn strategy(&self) -> ParallelStrategy {
        let layout = &self.layout;
        let sharded = layout.zero_stage > 0 && layout.shards() > 1;
        ParallelStrategy {
            tensor: layout.tensor,
            pipeline: layout.pipeline,
            context: layout.context,
            expert: layout.expert,
            virtual_stages: layout.virtual_stages,
            schedule: if layout.virtual_stages > 1 {
                ScheduleKind::Interleaved
            } else {
                ScheduleKind::OneFOneB
            },
            zero_stage: if sharded { layout.zero_stage } else { 0 },
            shard: if sharded { layout.shard } else { 1 },
            sequence_parallel: layout.sequence_parallel,
            recompute: self.recompute,
            ..ParallelStrategy::data_parallel(layout.data, self.micro_batch)
        }
    }

    /// The rule that a run breaks which took place all the same, so that the facts given of it are incomplete: heads and
    /// batches that do not divide are priced by their means.
    ///
    /// # Errors
    /// The layout breaks a rule: of every strategy, or of the trainer.
    pub fn check(&self, took_place: bool) -> Result<Option<String>, InputError> {
        let strategy = self.strategy();
        let job = Job { precision: self.dtype, ..Job::new(self.global_batch, self.seq_len) };
        let broken = rules::check_strategy(&self.model, &job, self.layout.devices(), &strategy);
        let broken = broken
            .and_then(|()| Ok(framework::check(self.trainer.framework(), &self.model, &job, &strategy)?));
        let Err(broken) = broken else { return Ok(None) };
        let ParallelDims { tensor, pipeline, expert, .. } = self.layout;
        let uneven = match broken.rule {
            Rule::TensorDivides | Rule::Batch | Rule::Framework => true,
            // Experts that no tensor-parallel ranks split are distributed over these, too.
            Rule::Experts => self.block.experts.is_some_and(|experts| experts.count.is_multiple_of(expert)),
            _ => false,
        };
        let parts =
            tensor <= self.block.heads && pipeline <= self.model.layers && self.micro_batches() >= 1.0;
        if took_place && uneven && parts {
            return Ok(Some(format!("although {}", broken.reason)));
        }
        Err(InputError::new("layout", strategy.label(), broken.reason))
    }
}
