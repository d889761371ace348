//! The description of a training run: model, cluster and layout.

use crate::machine::NodeModel;
use crate::memory::Memory;
use crate::trainer::{AttentionKind, Trainer};
use autodist_spec::{Activation, BlockSpec, InputError, Latent, ModelSpec, Positions, Precision, Recompute};
use std::sync::Arc;

/// Shapes of a decoder-only transformer, dense or with experts, whose blocks are alike.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    pub layers: u32,
    pub hidden: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub head_dim: u32,
    /// Width of the (dense or shared) MLP's inner layer.
    pub ffn: u32,
    pub vocab: u32,
    /// Gate, up and down instead of up and down.
    pub gated: bool,
    /// Rows of a learned position embedding; 0 with rotary embeddings.
    pub position_rows: u32,
    pub tied_embeddings: bool,
    /// Tokens that a query attends to; all before it if `None`.
    pub window: Option<u32>,
    pub latent: Option<Latent>,
    pub experts: Option<ExpertShape>,
}

/// A mixture-of-experts layer in place of the MLP of every block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertShape {
    pub count: u32,
    /// Active experts per token.
    pub active: u32,
    /// Width of one expert's inner layer.
    pub ffn: u32,
    /// Width of the inner layer of the shared experts, all together.
    pub shared_ffn: u32,
}

impl From<&ModelSpec> for Shape {
    /// As if all blocks were like the most frequent one, of those with experts if there are some.
    fn from(model: &ModelSpec) -> Self {
        let blocks = model.distinct_blocks().into_iter();
        let blocks = blocks.map(|(layer, count)| (model.block(layer), count));
        let most = blocks.max_by_key(|(block, count)| (block.experts.is_some(), *count));
        let block = most.map_or(model.block(1), |(block, _)| block);
        let blank = Self {
            layers: model.layers,
            hidden: model.hidden,
            heads: block.heads,
            kv_heads: block.kv_heads,
            head_dim: block.head_dim,
            ffn: block.ffn,
            vocab: model.vocab,
            gated: model.activation == Activation::SwiGlu,
            position_rows: if model.positions == Positions::Learned { model.max_seq_len } else { 0 },
            tied_embeddings: model.tied_embeddings,
            window: None,
            latent: None,
            experts: None,
        };
        blank.with(&block)
    }
}

impl Shape {
    /// The same model with other blocks.
    #[must_use]
    pub fn with(&self, block: &BlockSpec) -> Self {
        let BlockSpec { heads, kv_heads, head_dim, window, latent, ffn, experts } = *block;
        let experts = experts.map(|experts| ExpertShape {
            count: experts.count,
            active: experts.active,
            ffn,
            shared_ffn: experts.shared_ffn,
        });
        Self { heads, kv_heads, head_dim, window, latent, ffn, experts, ..self.clone() }
    }

    /// Inner elements of the MLP for one token, over its active experts and the shared ones.
    pub fn inner(&self) -> f64 {
        let routed = |e: ExpertShape| f64::from(e.active) * f64::from(e.ffn) + f64::from(e.shared_ffn);
        self.experts.map_or(f64::from(self.ffn), routed)
    }

    /// Width of a head of values.
    pub fn value_dim(&self) -> u32 {
        self.latent.map_or(self.head_dim, |latent| latent.value_dim)
    }

    /// Elements per token of the low-rank projections of queries, keys and values, which every tensor-parallel
    /// rank has.
    pub fn latent_width(&self) -> f64 {
        self.latent.map_or(0.0, |Latent { query_rank, kv_rank, rope_dim, .. }| {
            f64::from(query_rank.unwrap_or(0)) + f64::from(kv_rank) + f64::from(rope_dim)
        })
    }

    /// Matrices of one block's attention, elements.
    pub fn attention_parameters(&self) -> f64 {
        let (hidden, head) = (f64::from(self.hidden), f64::from(self.head_dim));
        let heads = f64::from(self.heads);
        match self.latent {
            None => hidden * head * (2.0 * heads + 2.0 * f64::from(self.kv_heads)),
            Some(latent) => {
                let Latent { query_rank, kv_rank, rope_dim, value_dim } = latent;
                let from_queries = f64::from(query_rank.unwrap_or(self.hidden));
                let (kv_rank, value) = (f64::from(kv_rank), f64::from(value_dim));
                let expanded = heads * (head - f64::from(rope_dim) + value);
                hidden * (self.latent_width() + heads * value)
                    + from_queries * heads * head
                    + kv_rank * expanded
            }
        }
    }

    /// The shared experts of one block, elements.
    pub fn shared_parameters(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let shared = self.experts.map_or(0.0, |experts| f64::from(experts.shared_ffn));
        matrices * f64::from(self.hidden) * shared
    }

    /// Elements of one block where experts are distributed over so many ranks.
    pub fn block_parameters(&self, expert: u32) -> f64 {
        self.attention_parameters() + self.shared_parameters() + self.mlp_parameters() / f64::from(expert)
    }

    /// The MLP of one block, all experts but the shared ones included; elements.
    pub fn mlp_parameters(&self) -> f64 {
        let matrices = if self.gated { 3.0 } else { 2.0 };
        let hidden = f64::from(self.hidden);
        match self.experts {
            None => matrices * hidden * f64::from(self.ffn),
            Some(experts) => f64::from(experts.count) * (matrices * f64::from(experts.ffn) + 1.0) * hidden,
        }
    }

    pub fn embedding_parameters(&self) -> f64 {
        f64::from(self.vocab) * f64::from(self.hidden)
    }

    pub fn parameters(&self) -> f64 {
        let tables = if self.tied_embeddings { 1.0 } else { 2.0 };
        f64::from(self.layers) * self.block_parameters(1)
            + tables * self.embedding_parameters()
            + f64::from(self.position_rows) * f64::from(self.hidden)
    }

    /// FLOPs of a step per token without recomputation: three forward passes, attention counted in full
    /// (Narayanan et al., SC'21, appendix); only active experts count.
    pub fn flops_per_token(&self, seq_len: u32) -> f64 {
        let mlp = match self.experts {
            None => self.mlp_parameters(),
            Some(e) => self.mlp_parameters() * f64::from(e.active) / f64::from(e.count),
        };
        let seen = f64::from(self.window.map_or(seq_len, |window| window.min(seq_len)));
        let scores = seen * f64::from(self.heads) * f64::from(self.head_dim + self.value_dim());
        let mlp = mlp + self.shared_parameters();
        6.0 * (f64::from(self.layers) * (self.attention_parameters() + mlp + scores)
            + self.embedding_parameters())
    }
}

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
    pub shape: Shape,
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
    /// A run of the given trainer with its defaults.
    pub fn new(shape: Shape, machine: Arc<NodeModel>, layout: ParallelDims, trainer: Trainer) -> Self {
        let attention = trainer.attention_on(machine.generation);
        Self {
            shape,
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

    /// Bytes of an activation's element, of a weight in a pass and of a gradient before it is accumulated.
    pub fn word(&self) -> f64 {
        if matches!(self.dtype, Precision::Fp32 | Precision::Tf32) { 4.0 } else { 2.0 }
    }

    /// Blocks of a pipeline rank, and by how many the first and last one fall short.
    pub fn blocks(&self) -> (f64, f64) {
        let (layers, stages) = (self.shape.layers, self.layout.pipeline);
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
        let (shape, devices) = (&self.shape, self.layout.devices());
        format!(
            "{shape:?} {devices} {} {} {} {} {}",
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
        if layout.pipeline > self.shape.layers {
            let problem = format!("must be at most {}, the number of blocks", self.shape.layers);
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
        if layout.tensor > self.shape.heads {
            let problem = format!("must be at most {}, the number of heads", self.shape.heads);
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
        if self.shape.experts.is_none() && layout.expert > 1 {
            let problem = "the model has no experts".to_owned();
            return wrong("ep", layout.expert, problem, "remove `--ep`, or use a model with experts");
        }
        if let Some(experts) = self.shape.experts
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
