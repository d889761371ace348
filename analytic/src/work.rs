//! The work of one step on devices and links, priced by the hardware model alone; no parameter here is fitted
//! to runs.

use crate::adapters::AdapterWork;
use crate::run::TrainingRun;
use crate::trainer::{AttentionKind, TensorOverlap, Trainer};
use autodist_hardware::{Attention, BACKWARD_OVER_FORWARD};
use autodist_spec::{AttentionCore, Collective, Kernels, Linear, Precision, Recompute, Segment};

/// Seconds of GEMMs, split by the effects that can slow them down in a step.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct GemmTime {
    /// Time of the kernels alone.
    pub plain: f64,
    /// Additional time if the last wave of tiles were full.
    pub waves: f64,
    /// GEMMs among `plain` with a dimension that is not a multiple of 64.
    pub unaligned: f64,
}

impl std::ops::Add for GemmTime {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            plain: self.plain + other.plain,
            waves: self.waves + other.waves,
            unaligned: self.unaligned + other.unaligned,
        }
    }
}

/// Seconds on links, and whether they leave the node.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LinkTime {
    pub seconds: f64,
    pub between_nodes: bool,
}

/// Tensor-parallel collectives of one block and pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TensorParallelTime {
    pub exposed: LinkTime,
    /// The collectives that overlap with GEMMs.
    pub overlapped: LinkTime,
    /// How often ranks wait for the slowest of them.
    pub calls: f64,
}

/// The work of one step on a device with the most work.
#[derive(Debug, Clone, Copy, Default)]
pub struct StepWork {
    /// Linear layers of one block, one micro-batch.
    pub linear_forward: GemmTime,
    pub linear_backward: GemmTime,
    /// The part of them that belongs to attention.
    pub projections_forward: GemmTime,
    pub projections_backward: GemmTime,
    /// Attention of one block: unfused GEMMs, or the fused kernel.
    pub attention_forward: f64,
    pub attention_backward: f64,
    /// Attention scores of one block, elements; zero if they are never written to memory.
    pub scores: f64,
    /// Whether softmax runs as several kernels, because the fused one does not support this shape.
    pub softmax_apart: bool,
    /// Elements that one block's GEMMs read in the forward pass; the backward pass reads as many gradients.
    pub operands: f64,
    /// Bytes moved by norms, activations and residuals of one block.
    pub element_bytes_forward: f64,
    pub element_bytes_backward: f64,
    /// Bytes moved to make one block's parameters whole for a forward pass, beside the collective, and again
    /// for a backward pass.
    pub gather_bytes: f64,
    /// Bytes moved to accumulate one block's gradients of a micro-batch, and by sharding in a backward pass.
    pub gradient_bytes: f64,
    pub logit_gemms: GemmTime,
    pub logits: f64,
    /// The same of the head.
    pub head_gradient_bytes: f64,
    pub embedding_bytes: f64,
    /// Tensor-parallel collectives of one block.
    pub tensor_forward: TensorParallelTime,
    pub tensor_backward: TensorParallelTime,
    /// Ring exchange of keys and values in context parallelism, one block, forward.
    pub context: LinkTime,
    /// All-to-alls of tokens to experts and back, one block, forward.
    pub experts: LinkTime,
    /// Send of one activation to the next pipeline rank: inside a node, and to another node.
    pub message_near: LinkTime,
    pub message_far: LinkTime,
    /// Fraction of neighbouring pipeline ranks that are on different nodes.
    pub far_neighbours: f64,
    /// Reduction of all gradients of the device over replicas.
    pub reduce: LinkTime,
    /// All-gather of updated parameters from shards.
    pub update_gather: LinkTime,
    /// All-gather of one block's parameters from shards.
    pub block_gather: LinkTime,
    /// Seconds to fetch this rank's shard of one block's parameters, if it is away from the device.
    pub block_fetch: f64,
    /// Bytes moved by the optimizer's update.
    pub optimizer_bytes: f64,
    /// Seconds of the update of state that is away from the device.
    pub update_away: f64,
    /// Elements of the parameters of the device, and of one of its blocks.
    pub parameters: f64,
    pub parameters_of_block: f64,
    /// Beside frozen layers of one block: of attention, and of the MLP.
    pub(crate) adapters: [AdapterWork; 2],
}

/// The attention of a micro-batch as one kernel.
pub(crate) fn attention_shape(run: &TrainingRun, core: &AttentionCore) -> Attention {
    let keys = u64::from(core.keys);
    Attention {
        batch: u64::from(run.micro_batch),
        sequence: keys,
        keys,
        heads: core.heads.ceil() as u64,
        kv_heads: u64::from(run.block.kv_heads.div_ceil(run.layout.tensor)),
        // Queries and values may have heads of different widths.
        head_dim: u64::from(core.head_dim.midpoint(core.value_dim)),
        causal: true,
    }
}

impl StepWork {
    pub fn of(run: &TrainingRun) -> Self {
        let kernels = run.kernels();
        let mut work = Self::default();
        work.linear(run, &kernels);
        if let [Kernels { core: Some(core), .. }, _] = &kernels {
            work.attention(run, core);
            work.transfers(run, core);
        }
        work.elements(run, &kernels);
        work.head(run);
        work.gradients(run, work.parameters_of_block);
        work
    }

    fn linear(&mut self, run: &TrainingRun, [attention, mlp]: &[Kernels; 2]) {
        self.adapters = [(Segment::Attention, attention), (Segment::Mlp, mlp)]
            .map(|(segment, kernels)| AdapterWork::of(run, segment, kernels));
        for layer in &attention.linear {
            self.layer(run, layer);
        }
        self.adapt(0);
        self.projections_forward = self.linear_forward;
        self.projections_backward = self.linear_backward;
        for layer in &mlp.linear {
            self.layer(run, layer);
        }
        self.adapt(1);
        self.parameters_of_block = attention.weights() + mlp.weights();
    }

    /// Adds linear layers of a block.
    fn layer(&mut self, run: &TrainingRun, layer: &Linear) {
        let Linear { count, rows, out, into, .. } = *layer;
        if count > 0.0 {
            let (forward, backward) = linear_layer(run, rows, out, into, run.training.weights);
            self.linear_forward = self.linear_forward + forward.times(count);
            self.linear_backward = self.linear_backward + backward.times(count);
            self.operands += rows * into * count;
        }
    }

    /// Adds the GEMMs of the adapters.
    fn adapt(&mut self, segment: usize) {
        self.linear_forward = self.linear_forward + self.adapters[segment].forward;
        self.linear_backward = self.linear_backward + self.adapters[segment].backward;
    }

    fn attention(&mut self, run: &TrainingRun, core: &AttentionCore) {
        let (layout, machine) = (&run.layout, &*run.machine);
        let heads = core.heads.ceil() as u64;
        let batch = u64::from(run.micro_batch);
        let (keys, head) = (u64::from(core.keys), u64::from(core.head_dim));
        let queries = keys / u64::from(layout.context);
        match run.attention {
            AttentionKind::Unfused => {
                let gemm = |m, n, k| machine.gemms(sixteen_bits(run), batch * heads, m, n, k);
                self.attention_forward =
                    gemm(queries, keys, head) + gemm(queries, core.value_dim.into(), keys);
                self.attention_backward = 2.0 * self.attention_forward;
                self.scores = [batch, heads, queries, keys].map(|size| size as f64).iter().product();
                self.softmax_apart = run.trainer.softmax_is_apart(batch * heads, keys);
            }
            _ => {
                let shape = attention_shape(run, core);
                // Context-parallel ranks process an early and a late part of the sequence each, so that all
                // have the same number of unmasked keys.
                let whole = machine.attention(&shape) / f64::from(layout.context);
                self.attention_forward = if core.span < core.keys {
                    let moved = run.word() * core.operands() * machine.seconds_per_byte;
                    (whole * unmasked(keys, core.span.into())).max(moved)
                } else {
                    whole
                };
                self.attention_backward = BACKWARD_OVER_FORWARD * self.attention_forward;
            }
        }
    }

    /// Norms, residuals with dropout, and the MLP's activation.
    fn elements(&mut self, run: &TrainingRun, [attention, mlp]: &[Kernels; 2]) {
        let of = |segment| run.model.kernels(&run.block, segment, &run.shard());
        let norms = [of(Segment::AttentionNorm), of(Segment::MlpNorm)];
        let all = || norms.iter().chain([attention, mlp]);
        self.element_bytes_forward = run.word() * all().map(|one| one.forward_elements).sum::<f64>();
        self.element_bytes_backward = run.word() * all().map(|one| one.backward_elements).sum::<f64>();
        let copies = Copies::of(run);
        self.gather_bytes = self.parameters_of_block * copies.gather;
        let own = if run.training.weights { self.parameters_of_block } else { 0.0 };
        let trained = own + self.adapters.iter().map(|one| one.elements).sum::<f64>();
        self.gradient_bytes =
            self.parameters_of_block * copies.gathers_again * copies.gather + trained * copies.gradient;
    }

    fn head(&mut self, run: &TrainingRun) {
        let (tensor, tokens) = (f64::from(run.layout.tensor), run.shard().tokens);
        let hidden = f64::from(run.model.hidden);
        // Embedding tables are padded so that every rank holds a multiple of 128 rows, as in Megatron.
        let rows = (f64::from(run.model.vocab) / 128.0 / tensor).ceil() * 128.0;
        let (forward, backward) = linear_layer(run, tokens, rows, hidden, run.training.weights);
        self.logit_gemms = forward + backward;
        self.logits = tokens * rows;
        // The gradient of the embedding table is zeroed as a whole and then accumulated, into the head's if
        // the two are tied.
        let table = rows * hidden;
        let copies = Copies::of(run);
        let tied = run.model.tied_embeddings && run.layout.pipeline == 1;
        if !run.training.weights {
            return;
        }
        // Embedding and head stay gathered from the forward pass on.
        let once = copies.gather + copies.gradient;
        let (embedding, head) = if tied { (sum_bytes(run), once) } else { (once, once) };
        self.embedding_bytes = 16.0 * tokens * hidden + table * (2.0 + embedding);
        self.head_gradient_bytes = table * head;
    }

    fn transfers(&mut self, run: &TrainingRun, core: &AttentionCore) {
        let (layout, machine) = (&run.layout, &*run.machine);
        let per_node = machine.devices_per_node;
        let (tensor, context, data) = (layout.tensor, layout.context, layout.data);
        let activation = run.word() * core.tokens * f64::from(run.model.hidden);
        let inside = tensor.min(per_node);

        // Two all-reduces per pass, or as many reduce-scatters and all-gathers with sequence parallelism,
        // whose inputs are gathered once more for the weight gradients. Trainers since 2022 overlap that
        // gather with the input gradient GEMMs, and the reductions of input gradients with the weight
        // gradient GEMMs (Korthikanti et al. 2022, 4.2.2).
        let sum = machine.collective(Collective::AllReduce, activation, tensor, inside, 1);
        let gather = machine.collective(Collective::AllGather, activation, tensor, inside, 1);
        let scatter = machine.collective(Collective::ReduceScatter, activation, tensor, inside, 1);
        let (forward, gathers, sums, again) = if layout.sequence_parallel {
            (2.0 * (gather + scatter), 2.0 * gather, 2.0 * scatter, 2.0 * gather)
        } else {
            (2.0 * sum, 0.0, 2.0 * sum, 0.0)
        };
        let between_nodes = tensor > per_node;
        let split = |exposed: f64, overlapped: f64| {
            let transfer = |seconds: f64| LinkTime { seconds, between_nodes };
            // Ranks wait for the slowest once per pair of reduce-scatter and all-gather: there is only a norm
            // between the two.
            let calls = if tensor > 1 && exposed > 0.0 { 2.0 } else { 0.0 };
            TensorParallelTime { exposed: transfer(exposed), overlapped: transfer(overlapped), calls }
        };
        [self.tensor_forward, self.tensor_backward] = match run.trainer.traits().tensor_overlap {
            _ if between_nodes => [split(forward, 0.0), split(gathers + sums, again)],
            TensorOverlap::All if layout.sequence_parallel => {
                [split(0.0, forward), split(0.0, gathers + sums + again)]
            }
            TensorOverlap::All | TensorOverlap::Gradients => {
                [split(forward, 0.0), split(gathers, sums + again)]
            }
            TensorOverlap::None => [split(forward, 0.0), split(gathers + sums, again)],
        };

        let spread = (per_node / inside).clamp(1, context.max(1));
        let kv = run.word() * core.tokens * core.kv_width() * f64::from(context);
        let seconds = machine.collective(Collective::AllGather, kv, context, spread, inside);
        self.context = LinkTime { seconds, between_nodes: context > spread };

        if let Some(experts) = run.block.experts {
            let split = if layout.sequence_parallel { f64::from(tensor) } else { 1.0 };
            let bytes = activation * f64::from(experts.active) / split;
            let near = (per_node / inside / context).clamp(1, layout.expert);
            let seconds = 2.0 * machine.collective(Collective::AllToAll, bytes, layout.expert, near, inside);
            self.experts = LinkTime { seconds, between_nodes: layout.expert > near };
        }

        // Every rank of a stage sends at the same time, its tensor-parallel share of the activation.
        let stage = tensor * context * data;
        let share = activation / f64::from(tensor);
        let between = |ends: u32, sharing: u32| LinkTime {
            seconds: machine.collective(Collective::SendRecv, share, 2, ends, sharing),
            between_nodes: ends == 1,
        };
        (self.message_near, self.message_far) = (between(2, 1), between(1, per_node.min(stage)));
        let nodes = f64::from(layout.devices().div_ceil(per_node));
        let neighbours = f64::from(layout.pipeline.max(2) - 1);
        self.far_neighbours = ((nodes - 1.0) / neighbours).min(1.0);
    }

    fn gradients(&mut self, run: &TrainingRun, block: f64) {
        let (layout, machine) = (&run.layout, &*run.machine);
        let blocks = f64::from(run.model.layers) / f64::from(layout.pipeline);
        let table = run.table() / f64::from(layout.tensor);
        let ends = if layout.pipeline == 1 && !run.model.tied_embeddings { 2.0 } else { 1.0 };
        let positions = f64::from(run.position_rows()) * f64::from(run.model.hidden);
        self.parameters = block * blocks + ends * table + positions;

        let inside = (layout.tensor * layout.context).min(machine.devices_per_node);
        let replicas = layout.data * layout.context;
        let near =
            (machine.devices_per_node / layout.tensor.min(machine.devices_per_node)).clamp(1, replicas);
        let crosses = replicas > near;
        let bytes = self.parameters * run.gradient_bytes();
        let sharded = layout.zero_stage >= 1;
        let far = |kind, bytes, ranks: u32| LinkTime {
            seconds: machine.collective(kind, bytes, ranks, near.min(ranks), inside),
            between_nodes: ranks > near,
        };
        // ZeRO-3 reduce-scatters block by block, and replicas of shards all-reduce at the end. Megatron-Core
        // reduce-scatters under ZeRO-1; other trainers all-reduce whole gradients, and then all-gather
        // parameters.
        let shard = layout.shards();
        self.reduce = match layout.zero_stage {
            3 => far(Collective::AllReduce, bytes / f64::from(shard), replicas / shard.min(replicas)),
            1 | 2 if run.trainer.traits().core => far(Collective::ReduceScatter, bytes, replicas),
            _ => far(Collective::AllReduce, bytes, replicas),
        };
        self.reduce.between_nodes = crosses;
        if sharded && run.broadcasts {
            // Every rank of the shard group broadcasts its part to the others, one after the other.
            let parts = f64::from(shard);
            let one = far(Collective::Broadcast, run.word() * self.parameters / parts, shard);
            self.update_gather = LinkTime { seconds: one.seconds * parts, ..one };
        } else if sharded {
            self.update_gather = far(Collective::AllGather, run.word() * self.parameters, shard);
        }
        let gathered = run.gathered_part() * run.word() * block;
        self.block_gather = far(Collective::AllGather, gathered, shard);
        if let Some(second) = run.states.second_shard.filter(|second| *second < shard) {
            // The backward pass gathers from the second copy.
            let near = far(Collective::AllGather, gathered, second);
            self.block_gather.seconds = 0.5 * (self.block_gather.seconds + near.seconds);
        }

        // Adam: reads the gradient, reads and writes master weight and two moments in fp32, writes the
        // working weight.
        let parts = if sharded { f64::from(shard) } else { 1.0 };
        let whole = if run.trainer.traits().shards_parameters { 0.0 } else { 8.0 * self.parameters };
        let own = self.parameters / parts;
        self.optimizer_bytes = run.update_bytes() * run.updated_on_device() * own + whole;
        self.update_away = run.update_away(own);
        self.block_fetch = run.fetch_seconds(block / f64::from(shard));
    }

    /// Fraction of the forward pass that the backward pass repeats.
    pub fn repeats(run: &TrainingRun) -> f64 {
        if run.recompute == Recompute::Full { 1.0 } else { 0.0 }
    }
}

impl GemmTime {
    pub(crate) fn times(self, factor: f64) -> Self {
        Self { plain: self.plain * factor, waves: self.waves * factor, unaligned: self.unaligned * factor }
    }
}

/// Bytes that are moved for each parameter and micro-batch, beside collectives between ranks.
#[derive(Debug, Clone, Copy, Default)]
struct Copies {
    /// To make a parameter whole.
    gather: f64,
    /// How often a backward pass gathers a block again.
    gathers_again: f64,
    /// To accumulate and to shard its gradient.
    gradient: f64,
}

impl Copies {
    /// FSDP2 keeps fp32 shards and 16-bit whole parameters. It casts the shard into a buffer, gathers, and
    /// copies the result into the parameters; a gradient is cast into an fp32 buffer and reduce-scattered
    /// (`foreach_all_gather`, `foreach_reduce` of `torch/distributed/fsdp/_fully_shard`). On a single rank the
    /// collectives are copies, too. A pipeline does all this once in a step.
    fn of(run: &TrainingRun) -> Self {
        let accumulates = run.micro_batches() > 1.0;
        let sharded = run.layout.zero_stage >= 2 || run.layout.devices() == 1;
        if run.trainer != Trainer::Fsdp2 || run.layout.pipeline > 1 || !sharded {
            let gradient = if accumulates { sum_bytes(run) } else { 0.0 };
            return Self { gradient, ..Self::default() };
        }
        let (word, fp32, shards) = (run.word(), 4.0, f64::from(run.layout.shards()));
        let alone = if shards > 1.0 { 0.0 } else { 1.0 };
        let sum = if accumulates { 3.0 * fp32 / shards } else { 0.0 };
        Self {
            gather: (fp32 + word) / shards + alone * 2.0 * word + 2.0 * word,
            gathers_again: if run.layout.zero_stage == 2 { 0.0 } else { 1.0 },
            gradient: word + fp32 + alone * 2.0 * fp32 + sum,
        }
    }
}

/// Bytes to add a gradient to an accumulated one: both are read, the sum is written.
fn sum_bytes(run: &TrainingRun) -> f64 {
    3.0 * run.gradient_bytes()
}

/// Queries of a tile of fused attention, all of which see the keys of any of them.
const TILE: u64 = 128;

/// Keys that the tiles of a causal sequence see within a window, relative to those without one.
fn unmasked(sequence: u64, window: u64) -> f64 {
    let seen = |window: u64| {
        let (all, window) = (sequence as f64, window.min(sequence) as f64);
        window * (all - 0.5 * (window - 1.0))
    };
    seen(window + TILE) / seen(sequence)
}

/// Attention and all operations other than linear layers stay in 16 bits if GEMMs are in FP8.
fn sixteen_bits(run: &TrainingRun) -> Precision {
    if run.dtype == Precision::Fp8 { Precision::Bf16 } else { run.dtype }
}

/// GEMMs of the forward pass; and of the gradients of the input and, if they are trained, of the weights.
pub(crate) fn linear_layer(
    run: &TrainingRun,
    rows: f64,
    out: f64,
    into: f64,
    trained: bool,
) -> (GemmTime, GemmTime) {
    let gemm = |m: f64, n: f64, k: f64| {
        let side = |x: f64| x.ceil().max(1.0) as u64;
        let plain = run.machine.gemms(run.dtype, 1, side(m), side(n), side(k));
        let unaligned = if out % 64.0 == 0.0 && into % 64.0 == 0.0 { 0.0 } else { plain };
        let waves =
            if run.trainer.traits().classic { plain * idle_part(m, n, run.machine.processors) } else { 0.0 };
        GemmTime { plain, waves, unaligned }
    };
    // Libraries split the long inner dimension of the weight gradient GEMM (split-K), which fills all waves.
    let of_weights =
        if trained { GemmTime { waves: 0.0, ..gemm(out, into, rows) } } else { GemmTime::default() };
    (gemm(rows, out, into), gemm(rows, into, out) + of_weights)
}

/// Idle time relative to the work, for whole waves of 128 by 256 tiles on `processors` streaming
/// multiprocessors.
fn idle_part(m: f64, n: f64, processors: f64) -> f64 {
    let waves = |a: f64, b: f64| (m / a).ceil() * (n / b).ceil() / processors;
    let idle = |waves: f64, price: f64| price * waves.ceil() / waves - 1.0;
    // Smaller tiles fill waves better, but reuse less data.
    idle(waves(128.0, 256.0), 1.0)
        .min(idle(waves(256.0, 128.0), 1.0))
        .min(idle(waves(128.0, 128.0), 1.07))
        .max(0.0)
}
