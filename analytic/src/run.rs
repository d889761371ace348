//! The description of a training run: model, cluster and layout.

use crate::machine::NodeModel;
use crate::memory::Memory;
use crate::trainer::{AttentionKind, Trainer};
use autodist_spec::{
    BlockSpec, InputError, Kernels, ModelSpec, Positions, Precision, Recompute, Segment, Shard,
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
    /// Whether the loss is one fused kernel, which keeps logits in 16 bits.
    pub fused_loss: bool,
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
            fused_loss: false,
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

    /// # Errors
    /// Degrees do not fit the model, the batch or each other.
    pub fn check(&self) -> Result<(), InputError> {
        let layout = &self.layout;
        let wrong = |field: &str, value: u32, problem: String, hint: &str| {
            Err(InputError::new(field, value, problem).hint(hint))
        };
        if layout.pipeline > self.model.layers {
            let problem = format!("must be at most {}, the number of blocks", self.model.layers);
            return wrong(
                "pp",
                layout.pipeline,
                problem,
                "use fewer stages: every stage needs at least one block",
            );
        }
        if layout.virtual_stages > 1 && layout.pipeline == 1 {
            let problem = "needs pipeline parallelism".to_owned();
            return wrong("vpp", layout.virtual_stages, problem, "set `--pp` above 1, or remove `--vpp`");
        }
        if layout.tensor > self.block.heads {
            let problem = format!("must be at most {}, the number of heads", self.block.heads);
            return wrong("tp", layout.tensor, problem, "use a divisor of the number of heads");
        }
        if layout.shard > layout.data {
            let problem = format!("must be at most {}, the number of data-parallel ranks", layout.data);
            return wrong(
                "shard",
                layout.shard,
                problem,
                "use a divisor of that number, or remove `--shard`",
            );
        }
        if layout.context > self.seq_len {
            let problem = format!("must be at most {}, the number of tokens in a sequence", self.seq_len);
            return wrong(
                "cp",
                layout.context,
                problem,
                "use fewer ranks: every rank needs at least one token",
            );
        }
        if self.block.experts.is_none() && layout.expert > 1 {
            let problem = "the model has no experts".to_owned();
            return wrong("ep", layout.expert, problem, "remove `--ep`, or use a model with experts");
        }
        if let Some(experts) = self.block.experts
            && experts.count % layout.expert != 0
        {
            let problem = format!("must divide the {} experts", experts.count);
            return wrong("ep", layout.expert, problem, "use a divisor of the number of experts");
        }
        if self.micro_batches() < 1.0 {
            let problem = format!(
                "is smaller than one micro-batch of {} for each of {} replicas",
                self.micro_batch, layout.data
            );
            return wrong(
                "global_batch",
                self.global_batch,
                problem,
                "raise `--global-batch`, or lower `--dp` or `--micro-batch`",
            );
        }
        Ok(())
    }
}
