//! Memory of the fullest device, as trainers keep it.
//!
//! Activations follow Korthikanti et al. 2022 (2205.05198, section 4), tensor by tensor, so that gated MLPs,
//! grouped queries and fused attention are counted correctly. If a figure is uncertain the larger one is
//! used: a plan that is predicted to fit must fit.

use crate::run::TrainingRun;
use crate::states::parameter_bytes;
use crate::trainer::{AttentionKind, Trainer};
use autodist_cost_model::ParameterBytes;
use autodist_spec::{Kernels, Precision, Recompute};
use serde::Serialize;

/// Bytes of the fullest device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Memory {
    pub weights: f64,
    pub gradients: f64,
    pub optimizer: f64,
    pub activations: f64,
    /// Logits, their fp32 copy and their gradient.
    pub logits: f64,
    /// Buckets, gathered blocks, and the largest gradient before it is added to the others.
    pub buffers: f64,
    /// Memory that the allocator holds but cannot use.
    pub fragmentation: f64,
    /// CUDA's context and NCCL's channels.
    pub context: f64,
}

/// Gathered parameters that DeepSpeed's ZeRO-3 keeps, by default (`stage3_max_live_parameters`).
pub(crate) const LIVE: f64 = 1e9;
/// Parameters that DeepSpeed's ZeRO-3 updates at a time, by default (`sub_group_size`).
const GROUP: f64 = 1e9;
/// Elements per bucket in DeepSpeed, by default.
pub(crate) const BUCKET: f64 = 5e8;
/// Memory that Megatron-Core's allocator (expandable segments) holds in addition to its peak, as a fraction
/// of the peak.
const CORE_FRAGMENTATION: f64 = 0.03;

/// Memory of a device in addition to tensors: two parameters fitted to measured peaks; everything else is
/// counted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Reserve {
    /// CUDA's context, libraries and NCCL's channels, bytes.
    pub context: f64,
    /// Memory that the allocator holds in addition to the allocated memory, observed from outside the
    /// process, as a fraction of the peak.
    pub fragmentation: f64,
}

impl Reserve {
    /// Memory that a trainer's allocator holds in addition to its peak, as a fraction of the peak.
    pub fn fragmentation_of(&self, trainer: Trainer) -> f64 {
        if trainer.traits().core { CORE_FRAGMENTATION } else { self.fragmentation }
    }
}

impl Memory {
    /// Memory that is allocated at the peak, as in `max_memory_allocated`.
    pub fn allocated(&self) -> f64 {
        self.weights + self.gradients + self.optimizer + self.activations + self.logits + self.buffers
    }

    /// Memory that the device must have.
    pub fn total(&self) -> f64 {
        self.allocated() + self.fragmentation + self.context
    }

    /// Memory as reported to the trainer's users: Megatron-Core logs the memory that its allocator holds;
    /// other trainers are observed from outside the process.
    pub fn as_reported(&self, trainer: Trainer) -> f64 {
        if trainer.traits().core { self.allocated() + self.fragmentation } else { self.total() }
    }

    /// Memory of the fullest pipeline rank: the first, the last, or the second if the first one holds fewer
    /// blocks.
    pub fn of(run: &TrainingRun) -> Self {
        Self::with(run, &Reserve::SHIPPED)
    }

    /// Memory of the fullest pipeline rank, with the given reserve for memory outside tensors.
    pub fn with(run: &TrainingRun, reserve: &Reserve) -> Self {
        let [first, second, last] =
            [Rank::First, Rank::Second, Rank::Last].map(|rank| Self::of_rank(run, rank));
        let fuller = |one: Self, other: Self| if other.allocated() > one.allocated() { other } else { one };
        let fuller = fuller(fuller(first, second), last);
        let fragmentation = reserve.fragmentation_of(run.trainer);
        Self { fragmentation: fragmentation * fuller.allocated(), context: reserve.context, ..fuller }
    }

    fn of_rank(run: &TrainingRun, rank: Rank) -> Self {
        let layout = &run.layout;
        let tensor = f64::from(layout.tensor);
        let only = layout.pipeline == 1;
        let (first, last) = (only || rank == Rank::First, only || rank == Rank::Last);
        let (blocks, missing_at_ends) = run.blocks();
        let blocks = blocks.ceil() - if first || last { missing_at_ends } else { 0.0 };
        let experts = f64::from(layout.expert);
        let kernels = run.kernels();
        let [attention, mlp] = &kernels;
        let routed = blocks * mlp.routed_weights();
        let dense = blocks * (attention.weights() + mlp.weights()) - routed;
        let tables = match rank {
            _ if only && !run.model.tied_embeddings => 2.0,
            Rank::Second if !only => 0.0,
            _ => 1.0,
        };
        let dense = dense + tables * run.table() / tensor;
        let elements = dense + routed;

        let replicas = f64::from(layout.shards());
        // Experts are replicated over the rest of the data axis.
        let part = |stage: u8| {
            if layout.zero_stage >= stage {
                dense / replicas + routed / (replicas / experts).max(1.0)
            } else {
                elements
            }
        };
        let bytes = Bytes::of(run);
        let [held, _] = parameter_bytes(run, bytes.each);
        let mut memory = Self {
            weights: held.weight * part(3),
            gradients: held.gradient * part(2),
            optimizer: held.state * part(1),
            ..Self::default()
        };
        let tokens = run.shard().tokens;
        let flight = in_flight(run, rank);
        let block = kept(run.word(), run.gated(), &kernels, run.attention, run.residual_rows());
        let kept = block.of_pass(run);
        let repeated = if run.recompute == Recompute::None { 0.0 } else { block.all() };
        // For the classic trainers this is part of the fragmentation, which was fitted to their peaks.
        let passing = if run.trainer.traits().classic { 0.0 } else { passing(run) };
        // Of those that are copied to the host, the device has a block's own and the next one's.
        let here = if run.states.activations.is_away() { 2.0 } else { f64::INFINITY };
        memory.activations = (flight * blocks).min(here) * kept + repeated + passing;
        if run.trainer == Trainer::MegatronDeepspeed && !only {
            // DeepSpeed's pipeline keeps an input and an output buffer for each micro-batch.
            memory.activations += 2.0 * flight * run.word() * tokens * f64::from(run.model.hidden);
        }
        if last {
            memory.logits = tokens * f64::from(run.model.vocab) / tensor * bytes.logit(run.fused_loss);
        }
        memory.buffers = buffers(run, elements, first || last);
        let update = update_buffers(run, layout.zero_stage, part(3));
        if update > memory.activations + memory.logits + memory.buffers {
            (memory.activations, memory.logits, memory.buffers) = (0.0, 0.0, update);
        }
        if run.trainer.traits().shards_parameters && only && run.micro_batches() <= 1.0 {
            // PyTorch frees gradients after the update: with one micro-batch they grow while activations are
            // freed, up to the reduction of embedding and head, which are one group.
            let full = Self {
                activations: 0.0,
                logits: 0.0,
                buffers: 8.0 * tables * run.table() / tensor,
                ..memory
            };
            memory.gradients = 0.0;
            if full.allocated() > memory.allocated() {
                return full;
            }
        }
        memory
    }
}

/// Pipeline ranks that may be the fullest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rank {
    First,
    Second,
    Last,
}

/// Bytes per parameter.
pub(crate) struct Bytes {
    pub each: ParameterBytes,
    trainer: Trainer,
}

impl Bytes {
    /// Megatron: 16-bit weights, fp32 gradients, fp32 master weights and two moments: 18. DeepSpeed: 16-bit
    /// gradients, and in addition to its shard of master weights and moments an fp32 and a 16-bit copy of the
    /// shard's gradient; with bf16 and without ZeRO, or on Megatron's pipeline, gradients are also accumulated in fp32
    /// (`get_data_types` of its engine). PyTorch FSDP: everything in fp32,
    /// and one block at a time gathered in 16 bits. In fp32 no trainer keeps master weights.
    pub fn of(run: &TrainingRun) -> Self {
        let trainer = run.trainer;
        let (weight, gradient, state) = match trainer {
            _ if run.word() > 2.0 => (4.0, 4.0, 8.0),
            Trainer::Megatron | Trainer::MegatronCore | Trainer::Oneflow => (2.0, 4.0, 12.0),
            Trainer::Nemo => (2.0, 2.0, 12.0),
            // Its shard's gradients are copied to fp32 for one group of parameters at a time.
            Trainer::Deepspeed if run.layout.zero_stage == 3 => (2.0, 2.0, 12.0),
            Trainer::Deepspeed if run.layout.zero_stage > 0 => (2.0, 2.0, 18.0),
            Trainer::MegatronDeepspeed | Trainer::Deepspeed if run.dtype == Precision::Bf16 => {
                (2.0, 6.0, 14.0)
            }
            Trainer::MegatronDeepspeed | Trainer::Deepspeed | Trainer::Internevo => (2.0, 2.0, 18.0),
            Trainer::Fsdp | Trainer::Fsdp2 => (4.0, 4.0, 8.0),
        };
        // Frozen weights are loaded in the precision in which layers read them.
        let frozen = run.word();
        Self { each: ParameterBytes { weight, frozen, gradient, state }, trainer }
    }

    /// Bytes per logit: 16 bits and an fp32 copy; with a fused loss 16 bits and their gradient; eager losses
    /// keep one more copy and its gradient.
    pub fn logit(&self, fused: bool) -> f64 {
        match (fused, self.trainer) {
            (true, _) => 4.0,
            (false, Trainer::Fsdp | Trainer::Fsdp2) => 14.0,
            (false, Trainer::Deepspeed) => 12.0,
            (false, _) => 6.0,
        }
    }
}

/// Micro-batches whose activations a rank holds, in units of all its layers: 1F1B, interleaved or not
/// (Narayanan et al., SC'21, 2.2).
fn in_flight(run: &TrainingRun, rank: Rank) -> f64 {
    let (stages, chunks) = (f64::from(run.layout.pipeline), f64::from(run.layout.virtual_stages));
    let all = run.micro_batches();
    if rank == Rank::Last && stages > 1.0 {
        return if chunks > 1.0 { (1.0 + (stages - 1.0) / stages).min(all) } else { 1.0 };
    }
    let interleaved = if chunks > 1.0 { 1.0 + (stages - 1.0) / (stages * chunks) } else { 1.0 };
    // The second rank starts one micro-batch later and holds one less; with interleaving, two chunks' worth.
    let later = match rank {
        Rank::Second if chunks > 1.0 => 2.0 / chunks,
        Rank::Second => 1.0,
        _ => 0.0,
    };
    (stages * interleaved - later).max(1.0).min(all)
}

/// Activation bytes that one block keeps for one micro-batch.
pub(crate) struct Kept {
    /// Replicated on each tensor-parallel rank, or split with sequence parallelism.
    along: f64,
    split: f64,
    scores: f64,
    /// Elements of the residual stream on a rank.
    rows: f64,
}

impl Kept {
    pub(crate) fn all(&self) -> f64 {
        self.along + self.split + self.scores
    }

    /// Bytes that stay until the backward pass.
    pub(crate) fn of_pass(&self, run: &TrainingRun) -> f64 {
        match run.recompute {
            Recompute::None => self.all(),
            // PyTorch recomputes every second block or GEMM: half of them.
            Recompute::Selective if run.trainer.traits().shards_parameters => 0.5 * self.all(),
            Recompute::Selective => self.all() - self.scores,
            Recompute::Full => run.word() * self.rows,
        }
    }
}

/// Bytes of the gradients that one block's backward pass holds at once: attention's scores before and after
/// softmax, or the MLP's inner layer, and the residual stream before and after.
fn passing(run: &TrainingRun) -> f64 {
    let ([attention, _], word) = (run.kernels(), run.word());
    let tokens = run.shard().tokens;
    let scores = match (run.attention, attention.core) {
        (AttentionKind::Unfused, Some(core)) => 2.0 * core.scores(),
        _ => 0.0,
    };
    let matrices = f64::from(run.model.activation.matrices());
    let inner = matrices * tokens * run.block.inner_width() / f64::from(run.layout.tensor);
    word * (scores.max(inner) + 2.0 * tokens * f64::from(run.model.hidden))
}

/// Activations that one block keeps; `rows` are the elements of the residual stream on a rank.
pub(crate) fn kept(
    word: f64,
    gated: bool,
    [attention, mlp]: &[Kernels; 2],
    kind: AttentionKind,
    rows: f64,
) -> Kept {
    // Inputs of two norms and of the layers that follow them; masks of two dropouts, which newer models do
    // not have.
    let along = rows * if gated { 4.0 * word } else { 4.0 * word + 2.0 };
    let scores = attention.core.map_or(0.0, |core| match kind {
        // Softmax, dropout mask, dropout result.
        AttentionKind::Unfused => (2.0 * word + 1.0) * core.scores(),
        _ => 4.0 * core.heads * core.tokens,
    });
    Kept { along, split: word * (attention.kept + mlp.kept), scores, rows }
}

/// Bytes of the gradients in fp32 of the parameters that DeepSpeed's ZeRO-3 updates at a time, of a shard of
/// `elements`; 0 for others.
pub(crate) fn update_buffers(run: &TrainingRun, zero_stage: u8, elements: f64) -> f64 {
    let copies = run.trainer == Trainer::Deepspeed && zero_stage == 3 && run.states.part_away() < 1.0;
    if copies && run.word() <= 2.0 { 4.0 * GROUP.min(elements) } else { 0.0 }
}

/// Bytes of the flat buffers in which DeepSpeed and trainers like it reduce the gradients of `elements`
/// parameters, of which `live` stay gathered, by buckets of `bucket` elements; 0 for others.
pub(crate) fn flat_buffers(
    trainer: Trainer,
    elements: f64,
    pipeline: u32,
    zero_stage: u8,
    shards: u32,
    (live, bucket): (f64, f64),
) -> f64 {
    if !trainer.traits().flat_buffers {
        return 0.0;
    }
    let more = match zero_stage {
        _ if pipeline > 1 || shards == 1 => 0.0,
        // Parameters that stay gathered.
        3 => live.min(elements),
        // Without a pipeline, gradients are copied into one flat buffer before they are reduced.
        _ => elements,
    };
    4.0 * bucket.min(elements) + 2.0 * more
}

fn buffers(run: &TrainingRun, elements: f64, has_table: bool) -> f64 {
    let tensor = f64::from(run.layout.tensor);
    let block: f64 = run.kernels().iter().map(Kernels::weights).sum();
    match run.trainer {
        // The largest gradient in 16 bits, before it is accumulated in fp32.
        Trainer::Megatron | Trainer::MegatronCore | Trainer::Nemo | Trainer::Oneflow => {
            let table = if has_table { run.table() / tensor } else { 0.0 };
            let gates = f64::from(run.model.activation.matrices() - 1);
            let up = gates * f64::from(run.model.hidden) * f64::from(run.block.ffn) / tensor;
            run.word() * table.max(up)
        }
        Trainer::MegatronDeepspeed | Trainer::Deepspeed | Trainer::Internevo => {
            let shards = if run.layout.zero_stage >= 1 { run.layout.shards() } else { 1 };
            let (stage, sizes) = (run.layout.zero_stage, (run.live_parameters(), BUCKET));
            let second = if stage == 3 { run.second_copy(elements) } else { 0.0 };
            flat_buffers(run.trainer, elements, run.layout.pipeline, stage, shards, sizes) + second
        }
        // A pipeline keeps everything that it has gathered, and accumulates whole gradients in fp32.
        Trainer::Fsdp | Trainer::Fsdp2 if run.layout.pipeline > 1 => (run.word() + 4.0) * elements,
        // Two gathered blocks, and the gradients of one before the reduce-scatter; embedding and head stay
        // gathered.
        Trainer::Fsdp | Trainer::Fsdp2 => {
            let tables = if run.model.tied_embeddings { 1.0 } else { 2.0 };
            6.0 * block + 2.0 * tables * run.table() / tensor
        }
    }
}
