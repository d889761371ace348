//! From a strategy to the ordered operations of every rank.

use crate::bucket::{Bucket, buckets};
use crate::mesh::{Axis, DATA, Mesh, View};
use crate::residence::{LayerStrategy, Residence};
use crate::rules::{self, Illegal};
use crate::schedule::{Extent, Slot, SlotKind, order};
use autodist_spec::{
    Bytes, Coded, Collective, Job, LayerKind, ModelSpec, ParallelStrategy, Pass, Precision, Recompute,
    Reduction, Segment, Stage,
};
use std::ops::Range;

/// The operations of every rank in one training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub model: ModelSpec,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub mesh: Mesh,
    pub seq_len: usize,
    pub micro_batches: usize,
    pub precision: Precision,
    /// One per pipeline rank: all ranks of its data and tensor axes run the same operations.
    pub ranks: Vec<RankProgram>,
}

/// Ranks of a pipeline rank that hold as much and compute as much as each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankClass {
    /// Their tensor ranks, on every coordinate of the data axes.
    pub tensor: Range<usize>,
    pub buckets: Vec<Bucket>,
}

/// The step of one pipeline rank.
#[derive(Debug, Clone, PartialEq)]
pub struct RankProgram {
    pub pipeline_rank: usize,
    /// Chunks that this rank holds, in the order of the chain.
    pub chunks: Vec<usize>,
    /// By tensor rank. The first class holds the most: tensor ranks differ where the vocabulary does not
    /// divide, and the first ones have the larger part.
    pub classes: Vec<RankClass>,
    /// Each body runs many times: once for every micro-batch.
    pub bodies: Vec<Body>,
    /// The step on the compute stream, in order.
    pub ops: Vec<Op>,
}

impl RankProgram {
    /// The buckets of the ranks that hold the most.
    pub fn buckets(&self) -> &[Bucket] {
        &self.classes[0].buckets
    }

    /// The class of the ranks with this tensor rank.
    pub fn class(&self, tensor_rank: usize) -> &RankClass {
        let holds = |class: &&RankClass| class.tensor.contains(&tensor_rank);
        self.classes.iter().find(holds).unwrap_or(&self.classes[0])
    }
}

/// One entry of the compute stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Blocks until the transfer has arrived.
    Receive(Message),
    Run {
        body: usize,
        micro_batch: usize,
    },
    /// Starts to send the chunk's result, without blocking.
    Send(Message),
}

/// A send/recv from one pipeline rank to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    pub kind: MessageKind,
    /// The other pipeline rank.
    pub peer: usize,
    /// The chunk that receives it.
    pub chunk: usize,
    pub micro_batch: usize,
    pub elements: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageKind {
    Activation,
    Gradient,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    pub kind: BodyKind,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    Forward {
        chunk: usize,
    },
    /// A chunk has two: the second is that of its last micro-batch, after which its gradients are complete.
    Backward {
        chunk: usize,
    },
    Optimizer,
}

/// The instructions of a body, in order, on the compute stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Runs a segment of a layer.
    Segment { layer: usize, segment: Segment, pass: Pass, recompute: Recompute },
    /// A collective over the tensor group without overlap, for the input or output of `segment`. `elements`
    /// counts the whole tensor.
    Tensor { layer: usize, segment: Segment, collective: TensorCollective, operand: Operand, elements: usize },
    /// Exchanges keys and values over the context group, for the attention of `layer`; in the backward pass
    /// also their gradients (Liu et al., 2310.01889, section 3). `elements` counts all that a group exchanges.
    Context { layer: usize, pass: Pass, elements: usize },
    /// All-to-all of the tokens of `layer` to the ranks that hold their experts, or back (Lepikhin et al.,
    /// 2006.16668). `elements` counts what one rank sends.
    Experts { layer: usize, pass: Pass, elements: usize },
    /// All-reduces, over the tensor group, the partial gradients that sequence parallelism leaves for
    /// replicated parameters.
    SumReplicated { bucket: usize, elements: usize },
    /// Queues a transfer on the communication stream.
    Start { transfer: Transfer, bucket: usize },
    /// Blocks until that transfer is done.
    Wait { transfer: Transfer, bucket: usize },
    /// Frees gathered parameters.
    Release { bucket: usize },
    /// All-reduces a tied table's gradients over both ends of the pipeline.
    SumTied { bucket: usize, elements: usize },
    /// L2 norm of the whole gradient, over the ranks that together hold the model. `elements` counts this
    /// rank's part.
    GradientNorm { elements: usize },
    /// Optimizer update of this rank's part of a bucket, and zeroing of its gradients.
    Update { bucket: usize, elements: usize },
}

impl Instruction {
    /// The layer to which it belongs.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::Segment { layer, .. }
            | Self::Tensor { layer, .. }
            | Self::Context { layer, .. }
            | Self::Experts { layer, .. } => Some(*layer),
            Self::SumReplicated { .. }
            | Self::Start { .. }
            | Self::Wait { .. }
            | Self::Release { .. }
            | Self::SumTied { .. }
            | Self::GradientNorm { .. }
            | Self::Update { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorCollective {
    SumAll,
    MaxAll,
    /// Reduces, and leaves each rank its rows.
    ReduceScatter,
    /// Gathers the rows of all ranks.
    AllGather,
}

impl TensorCollective {
    pub fn kind(self) -> Collective {
        match self {
            Self::SumAll | Self::MaxAll => Collective::AllReduce,
            Self::ReduceScatter => Collective::ReduceScatter,
            Self::AllGather => Collective::AllGather,
        }
    }
}

/// Which tensor a collective works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The output of the last segment: an activation or its gradient.
    Flow,
    /// The saved input of the segment whose backward is next.
    SavedInput,
}

/// Work of the communication stream on one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// Gradients: all-reduce over the replicas, or reduce-scatter over the shard group.
    Reduce,
    /// All-reduce of the reduced shard over the replicas (HSDP).
    ReduceReplicas,
    /// All-gather of parameters over the shard group.
    Gather,
}

impl Transfer {
    /// The axes over which it runs, for a bucket with this residence.
    fn axes(self, residence: Residence) -> &'static [Axis] {
        match self {
            Self::Reduce if !residence.shards_state() => residence.replica_axes(),
            Self::Reduce | Self::Gather => residence.shard_axes(),
            Self::ReduceReplicas => residence.replica_axes(),
        }
    }
}

impl Program {
    /// # Errors
    /// The first rule that the strategy breaks; a plan is legal if and only if it compiles.
    pub fn compile(
        model: &ModelSpec,
        job: &Job,
        devices: u32,
        strategy: &ParallelStrategy,
        stages: &[Stage],
    ) -> Result<Self, Illegal> {
        Self::compile_extent(Extent::Step, model, job, devices, strategy, stages)
    }

    /// As `compile`. With [`Extent::Period`] it has the memory and the lower bound of a step in a fraction of
    /// the operations, where there are many micro-batches; it is no step, and nothing may run or simulate it.
    ///
    /// # Errors
    /// As `compile`.
    pub fn compile_extent(
        extent: Extent,
        model: &ModelSpec,
        job: &Job,
        devices: u32,
        strategy: &ParallelStrategy,
        stages: &[Stage],
    ) -> Result<Self, Illegal> {
        rules::check(model, job, devices, strategy, stages)?;
        let micro_batches = strategy.micro_batches(job.global_batch) as usize;
        let seq_len = job.seq_len as usize;
        let ranks = (0..strategy.pipeline as usize)
            .map(|rank| Compiler::new(model, strategy, stages, seq_len, micro_batches, rank).compile(extent))
            .collect();
        Ok(Self {
            model: model.clone(),
            strategy: strategy.clone(),
            stages: stages.to_vec(),
            mesh: Mesh::of(strategy),
            seq_len,
            micro_batches,
            precision: job.precision,
            ranks,
        })
    }

    /// Rows (tokens) of an activation on one rank, outside the tensor-parallel parts.
    pub fn local_tokens(&self) -> usize {
        let tokens = self.seq_len * self.strategy.micro_batch as usize / self.strategy.context as usize;
        if self.strategy.sequence_parallel { tokens / self.strategy.tensor as usize } else { tokens }
    }

    /// The groups over which `transfer` of a bucket runs.
    pub fn transfer_view(&self, transfer: Transfer, bucket: &Bucket) -> View {
        let Bucket { residence, expert, .. } = *bucket;
        let view = self.mesh.view(transfer.axes(residence));
        match transfer {
            Transfer::Reduce | Transfer::Gather if expert > 1 => view.beyond(expert),
            _ => view,
        }
    }

    /// Algorithm and codec of `transfer` on a bucket of a pipeline rank. Replicas of a shard always use a
    /// ring.
    pub fn reduction(&self, pipeline_rank: usize, transfer: Transfer, bucket: usize) -> Reduction {
        let communication = &self.strategy.communication;
        match transfer {
            Transfer::Reduce => communication.reduction(pipeline_rank, bucket),
            Transfer::ReduceReplicas => Reduction::default(),
            Transfer::Gather => {
                Reduction { algorithm: communication.gather, codec: communication.parameters }
            }
        }
    }

    /// The payload of `transfer`, for codecs.
    pub fn coded(&self, transfer: Transfer) -> Coded {
        match transfer {
            Transfer::Gather => Coded::Parameters,
            _ if self.residence().shards_state() => Coded::GradientShards,
            _ => Coded::Gradients,
        }
    }

    /// The devices of all groups that run `transfer` on pipeline rank `pipeline_rank`, each in the order of
    /// its ring.
    pub fn transfer_groups(&self, pipeline_rank: usize, transfer: Transfer) -> Vec<Vec<usize>> {
        self.groups(pipeline_rank, self.mesh.view(transfer.axes(self.residence())))
    }

    /// The residence of all layers.
    pub fn residence(&self) -> Residence {
        Residence::of(&self.strategy)
    }

    /// The ranks that together hold one whole model: the gradient norm is all-reduced over them.
    pub fn model_view(&self) -> View {
        let axes = [&[Axis::Pipeline, Axis::Tensor], self.residence().shard_axes()].concat();
        self.mesh.view(&axes)
    }

    /// The ranks that split one sequence.
    pub fn context_view(&self) -> View {
        self.mesh.view(&[Axis::Context])
    }

    /// The ranks over which experts are distributed: neighbours on the data axes.
    pub fn expert_view(&self) -> View {
        self.mesh.view(&DATA).within(self.strategy.expert as usize)
    }

    /// Like `transfer_groups`, for the tensor groups.
    pub fn tensor_groups(&self, pipeline_rank: usize) -> Vec<Vec<usize>> {
        self.groups(pipeline_rank, self.mesh.view(&[Axis::Tensor]))
    }

    fn groups(&self, pipeline_rank: usize, view: View) -> Vec<Vec<usize>> {
        let stage = self.mesh.stage();
        let ranks = pipeline_rank * stage..(pipeline_rank + 1) * stage;
        let mut groups: Vec<_> = view.groups(ranks).iter().map(|group| self.devices(group)).collect();
        groups.sort_unstable();
        groups
    }

    /// The devices of these ranks.
    pub fn devices(&self, ranks: &[usize]) -> Vec<usize> {
        ranks.iter().map(|rank| self.strategy.communication.device(*rank)).collect()
    }

    /// Bytes of a tensor collective: activations, except for the statistics of the head's rows.
    pub fn tensor_bytes(&self, segment: Segment, collective: TensorCollective, elements: usize) -> Bytes {
        let statistics = collective == TensorCollective::MaxAll || segment == Segment::Normalizer;
        let elements = elements as u64;
        if statistics { Bytes::of_f32(elements) } else { self.precision.working(elements) }
    }

    /// Bytes of `transfer` on a bucket: gradients are reduced in full precision, parameters gathered in the
    /// compute precision.
    pub fn transfer_bytes(&self, transfer: Transfer, bucket: &Bucket) -> Bytes {
        let (_, elements) = self.transfer_work(transfer, bucket);
        match transfer {
            Transfer::Gather => self.precision.working(elements as u64),
            Transfer::Reduce | Transfer::ReduceReplicas => Bytes::of_f32(elements as u64),
        }
    }

    /// Collective and element count of `transfer` on `bucket`.
    pub fn transfer_work(&self, transfer: Transfer, bucket: &Bucket) -> (Collective, usize) {
        match transfer {
            Transfer::Reduce if bucket.residence.shards_state() => (Collective::ReduceScatter, bucket.padded),
            Transfer::Reduce => (Collective::AllReduce, bucket.padded),
            Transfer::ReduceReplicas => (Collective::AllReduce, bucket.shard_elements()),
            Transfer::Gather => (Collective::AllGather, bucket.padded),
        }
    }
}

/// More elements than any device sends: their bytes can still be counted.
const MOST: usize = 1 << 60;

struct Compiler<'a> {
    model: &'a ModelSpec,
    strategy: &'a ParallelStrategy,
    stages: &'a [Stage],
    micro_batches: usize,
    rank: usize,
    buckets: Vec<Bucket>,
    /// Tokens of a micro-batch on one rank.
    tokens: usize,
    /// Elements of a micro-batch's activation on the ranks of a tensor group.
    activation: usize,
}

impl<'a> Compiler<'a> {
    fn new(
        model: &'a ModelSpec,
        strategy: &'a ParallelStrategy,
        stages: &'a [Stage],
        seq_len: usize,
        micro_batches: usize,
        rank: usize,
    ) -> Self {
        let tokens = seq_len * strategy.micro_batch as usize / strategy.context as usize;
        Self {
            model,
            strategy,
            stages,
            micro_batches,
            rank,
            buckets: buckets(model, strategy, stages, rank, 0),
            tokens,
            activation: tokens * model.hidden as usize,
        }
    }

    fn compile(self, extent: Extent) -> RankProgram {
        let slots = order(extent, self.strategy, self.rank, self.micro_batches);
        let chunks: Vec<usize> = self.strategy.chunks_of(self.rank).collect();
        let mut bodies = Vec::new();
        for chunk in &chunks {
            bodies.push(self.forward(*chunk));
            bodies.push(self.backward(*chunk, false));
            bodies.push(self.backward(*chunk, true));
        }
        bodies.push(self.optimizer());
        let mut ops = Vec::with_capacity(3 * slots.len() + 1);
        for (index, slot) in slots.iter().enumerate() {
            let again = |later: &Slot| later.kind == slot.kind && later.chunk == slot.chunk;
            let last = !slots[index + 1..].iter().any(again);
            ops.extend(self.incoming(slot).map(Op::Receive));
            ops.push(Op::Run { body: body_of(&bodies, slot, last), micro_batch: slot.micro_batch });
            ops.extend(self.outgoing(slot).map(Op::Send));
        }
        ops.push(Op::Run { body: bodies.len() - 1, micro_batch: 0 });
        RankProgram { pipeline_rank: self.rank, classes: self.classes(), chunks, bodies, ops }
    }

    /// Ranks whose buckets are equal: tensor rank 0's, and with a vocabulary that does not divide, those of
    /// the ranks with the smaller part.
    fn classes(self) -> Vec<RankClass> {
        let degree = self.strategy.tensor;
        let larger = self.model.vocab % degree;
        let mut classes = vec![RankClass { tensor: 0..degree as usize, buckets: self.buckets }];
        if larger > 0 {
            let others = buckets(self.model, self.strategy, self.stages, self.rank, larger as usize);
            if others != classes[0].buckets {
                classes[0].tensor.end = larger as usize;
                classes.push(RankClass { tensor: larger as usize..degree as usize, buckets: others });
            }
        }
        classes
    }

    fn message(&self, kind: MessageKind, peer_chunk: usize, chunk: usize, micro_batch: usize) -> Message {
        let parts = if self.strategy.sequence_parallel { self.strategy.tensor as usize } else { 1 };
        let peer = self.strategy.rank_of(peer_chunk);
        Message { kind, peer, chunk, micro_batch, elements: self.activation / parts }
    }

    fn incoming(&self, slot: &Slot) -> Option<Message> {
        let Slot { kind, chunk, micro_batch } = *slot;
        match kind {
            SlotKind::Forward => {
                (chunk > 0).then(|| self.message(MessageKind::Activation, chunk - 1, chunk, micro_batch))
            }
            SlotKind::Backward | SlotKind::BackwardInput => (chunk + 1 < self.stages.len())
                .then(|| self.message(MessageKind::Gradient, chunk + 1, chunk, micro_batch)),
            SlotKind::BackwardWeight => None,
        }
    }

    fn outgoing(&self, slot: &Slot) -> Option<Message> {
        let Slot { kind, chunk, micro_batch } = *slot;
        match kind {
            SlotKind::Forward => (chunk + 1 < self.stages.len())
                .then(|| self.message(MessageKind::Activation, chunk + 1, chunk + 1, micro_batch)),
            SlotKind::Backward | SlotKind::BackwardInput => {
                (chunk > 0).then(|| self.message(MessageKind::Gradient, chunk - 1, chunk - 1, micro_batch))
            }
            SlotKind::BackwardWeight => None,
        }
    }

    /// Buckets with parameters of `layer` of `chunk` that are gathered for it.
    fn gathered(&self, chunk: usize, layer: usize) -> Vec<usize> {
        let head = self.model.kind(layer) == LayerKind::Head && self.model.tied_embeddings;
        let holds = |bucket: &Bucket| {
            bucket.layers.iter().any(|l| {
                (bucket.chunk == chunk && l.layer == layer && !bucket.copy) || (head && l.layer == 0)
            })
        };
        let sharded = |bucket: &Bucket| bucket.residence.shards_parameters() && holds(bucket);
        (0..self.buckets.len()).filter(|b| sharded(&self.buckets[*b])).collect()
    }

    fn tensor_parallel(&self) -> bool {
        self.strategy.tensor > 1
    }

    fn segment(
        &self,
        out: &mut Vec<Instruction>,
        layer: usize,
        segment: Segment,
        pass: Pass,
        recompute: Recompute,
    ) {
        out.push(Instruction::Segment { layer, segment, pass, recompute });
    }

    /// All-reduces a partial result: after a row-parallel GEMM in the forward pass, after a column-parallel
    /// one in the backward pass.
    fn complete(&self, out: &mut Vec<Instruction>, layer: usize, segment: Segment) {
        if self.tensor_parallel() {
            let collective = if self.strategy.sequence_parallel {
                TensorCollective::ReduceScatter
            } else {
                TensorCollective::SumAll
            };
            let (operand, elements) = (Operand::Flow, self.activation);
            out.push(Instruction::Tensor { layer, segment, collective, operand, elements });
        }
    }

    /// All-gathers the rows of the tensor ranks (Korthikanti et al., 2205.05198, section 4.2.2).
    fn gather_rows(&self, out: &mut Vec<Instruction>, layer: usize, segment: Segment, operand: Operand) {
        if self.tensor_parallel() && self.strategy.sequence_parallel {
            let collective = TensorCollective::AllGather;
            out.push(Instruction::Tensor { layer, segment, collective, operand, elements: self.activation });
        }
    }

    /// Keys and values of the whole sequence, and in the backward pass their gradients, too.
    fn exchange(&self, out: &mut Vec<Instruction>, layer: usize, pass: Pass) {
        let Self { model, strategy, tokens, .. } = self;
        if strategy.context > 1 {
            let width = 2 * (model.kv_heads * model.head_dim / strategy.tensor) as usize;
            let times = if pass == Pass::Backward { 2 } else { 1 };
            let elements = (times * width).saturating_mul(tokens * strategy.context as usize).min(MOST);
            out.push(Instruction::Context { layer, pass, elements });
        }
    }

    /// Tokens to their experts, or back; with sequence parallelism only this rank's rows.
    fn route(&self, out: &mut Vec<Instruction>, layer: usize, pass: Pass) {
        if let (Some(experts), true) = (self.model.experts, self.strategy.expert > 1) {
            let parts = if self.strategy.sequence_parallel { self.strategy.tensor as usize } else { 1 };
            let elements = (self.activation / parts).saturating_mul(experts.active as usize).min(MOST);
            out.push(Instruction::Experts { layer, pass, elements });
        }
    }

    fn block_forward(&self, out: &mut Vec<Instruction>, layer: usize, pass: Pass, recompute: Recompute) {
        self.segment(out, layer, Segment::AttentionNorm, pass, recompute);
        self.gather_rows(out, layer, Segment::Attention, Operand::Flow);
        self.exchange(out, layer, pass);
        self.segment(out, layer, Segment::Attention, pass, recompute);
        self.complete(out, layer, Segment::Attention);
        self.segment(out, layer, Segment::MlpNorm, pass, recompute);
        self.gather_rows(out, layer, Segment::Mlp, Operand::Flow);
        self.route(out, layer, pass);
        self.segment(out, layer, Segment::Mlp, pass, recompute);
        self.route(out, layer, pass);
        if pass == Pass::Forward {
            // In recomputation the block's output was computed before: its all-reduce is not needed.
            self.complete(out, layer, Segment::Mlp);
        }
    }

    fn half_backward(
        &self,
        out: &mut Vec<Instruction>,
        layer: usize,
        segment: Segment,
        norm: Segment,
        recompute: Recompute,
    ) {
        self.gather_rows(out, layer, segment, Operand::Flow);
        self.gather_rows(out, layer, segment, Operand::SavedInput);
        if segment == Segment::Attention {
            self.exchange(out, layer, Pass::Backward);
        }
        if segment == Segment::Mlp {
            self.route(out, layer, Pass::Backward);
        }
        self.segment(out, layer, segment, Pass::Backward, recompute);
        if segment == Segment::Mlp {
            self.route(out, layer, Pass::Backward);
        }
        self.complete(out, layer, segment);
        self.segment(out, layer, norm, Pass::Backward, recompute);
    }

    fn layer_forward(&self, out: &mut Vec<Instruction>, layer: usize, recompute: Recompute) {
        match self.model.kind(layer) {
            LayerKind::Embedding => {
                self.segment(out, layer, Segment::Embedding, Pass::Forward, recompute);
                self.complete(out, layer, Segment::Embedding);
            }
            LayerKind::Block => self.block_forward(out, layer, Pass::Forward, recompute),
            LayerKind::Head => {
                self.segment(out, layer, Segment::FinalNorm, Pass::Forward, recompute);
                self.gather_rows(out, layer, Segment::Logits, Operand::Flow);
                let reduce = |out: &mut Vec<Instruction>, segment, collective, elements| {
                    if self.tensor_parallel() {
                        out.push(Instruction::Tensor {
                            layer,
                            segment,
                            collective,
                            operand: Operand::Flow,
                            elements,
                        });
                    }
                };
                self.segment(out, layer, Segment::Logits, Pass::Forward, recompute);
                reduce(out, Segment::Logits, TensorCollective::MaxAll, self.tokens);
                self.segment(out, layer, Segment::Normalizer, Pass::Forward, recompute);
                reduce(out, Segment::Normalizer, TensorCollective::SumAll, 2 * self.tokens);
                self.segment(out, layer, Segment::Loss, Pass::Forward, recompute);
            }
        }
    }

    fn layer_backward(&self, out: &mut Vec<Instruction>, layer: usize, recompute: Recompute) {
        match self.model.kind(layer) {
            LayerKind::Embedding => {
                self.gather_rows(out, layer, Segment::Embedding, Operand::Flow);
                self.segment(out, layer, Segment::Embedding, Pass::Backward, recompute);
            }
            LayerKind::Block => {
                if recompute == Recompute::Full {
                    self.block_forward(out, layer, Pass::Recompute, recompute);
                }
                self.half_backward(out, layer, Segment::Mlp, Segment::MlpNorm, recompute);
                self.half_backward(out, layer, Segment::Attention, Segment::AttentionNorm, recompute);
            }
            LayerKind::Head => {
                self.gather_rows(out, layer, Segment::Loss, Operand::SavedInput);
                self.segment(out, layer, Segment::Loss, Pass::Backward, recompute);
                self.complete(out, layer, Segment::Loss);
                self.segment(out, layer, Segment::FinalNorm, Pass::Backward, recompute);
            }
        }
    }

    /// Calls `visit` for the layers in turn, with their parameters gathered just before and freed just after
    /// (ZeRO-3); the next layer's all-gather overlaps.
    fn with_parameters(
        &self,
        out: &mut Vec<Instruction>,
        chunk: usize,
        layers: &[usize],
        mut visit: impl FnMut(&mut Vec<Instruction>, usize),
    ) {
        let needs: Vec<Vec<usize>> = layers.iter().map(|layer| self.gathered(chunk, *layer)).collect();
        let start = |out: &mut Vec<Instruction>, buckets: &[usize], held: &[usize]| {
            for bucket in buckets.iter().filter(|b| !held.contains(b)) {
                out.push(Instruction::Start { transfer: Transfer::Gather, bucket: *bucket });
            }
        };
        start(out, &needs[0], &[]);
        for (index, layer) in layers.iter().enumerate() {
            let previous: &[usize] = if index > 0 { &needs[index - 1] } else { &[] };
            let next: &[usize] = needs.get(index + 1).map_or(&[], Vec::as_slice);
            for bucket in needs[index].iter().filter(|b| !previous.contains(b)) {
                out.push(Instruction::Wait { transfer: Transfer::Gather, bucket: *bucket });
            }
            start(out, next, &needs[index]);
            visit(out, *layer);
            for bucket in needs[index].iter().filter(|b| !next.contains(b)) {
                out.push(Instruction::Release { bucket: *bucket });
            }
        }
    }

    fn forward(&self, chunk: usize) -> Body {
        let stage = &self.stages[chunk];
        let layers: Vec<usize> = stage.layers().collect();
        let mut out = Vec::new();
        self.with_parameters(&mut out, chunk, &layers, |out, layer| {
            self.layer_forward(out, layer, LayerStrategy::of(self.strategy, stage, layer).recompute);
        });
        Body { kind: BodyKind::Forward { chunk }, instructions: out }
    }

    /// Backward of one micro-batch; `last` for the chunk's last one, after which the gradients are complete.
    fn backward(&self, chunk: usize, last: bool) -> Body {
        let stage = &self.stages[chunk];
        let layers: Vec<usize> = stage.layers().rev().collect();
        let mut out = Vec::new();
        let mut in_flight: Option<usize> = None;
        self.with_parameters(&mut out, chunk, &layers, |out, layer| {
            self.layer_backward(out, layer, LayerStrategy::of(self.strategy, stage, layer).recompute);
            for bucket in self.completed_by(chunk, layer) {
                self.bucket_complete(out, bucket, last, &mut in_flight);
            }
        });
        if let Some(bucket) = in_flight {
            out.push(Instruction::Wait { transfer: Transfer::Reduce, bucket });
        }
        Body { kind: BodyKind::Backward { chunk }, instructions: out }
    }

    /// Buckets whose gradients are complete once `layer` of `chunk` has run backward.
    fn completed_by(&self, chunk: usize, layer: usize) -> Vec<usize> {
        let complete = |bucket: &Bucket| {
            // A copied table is used only by the head; a table that one rank shares between both ends is
            // complete with the embedding, which is the bucket's own layer.
            let last_user = if bucket.copy { self.model.chain_len() - 1 } else { bucket.layers[0].layer };
            bucket.chunk == chunk && last_user == layer
        };
        (0..self.buckets.len()).filter(|b| complete(&self.buckets[*b])).collect()
    }

    fn bucket_complete(
        &self,
        out: &mut Vec<Instruction>,
        bucket: usize,
        last: bool,
        in_flight: &mut Option<usize>,
    ) {
        let Bucket { residence, expert, .. } = self.buckets[bucket];
        if !last && !residence.shards_gradients() {
            return;
        }
        if self.strategy.sequence_parallel && expert == 1 {
            let elements = self.buckets[bucket].replicated();
            out.push(Instruction::SumReplicated { bucket, elements });
        }
        if self.strategy.replicas() == 1 {
            return;
        }
        if residence.shards_gradients() {
            // Whole gradients exist only until their reduce-scatter: at most two buckets of them at a time.
            if let Some(previous) = in_flight.replace(bucket) {
                out.push(Instruction::Wait { transfer: Transfer::Reduce, bucket: previous });
            }
        }
        out.push(Instruction::Start { transfer: Transfer::Reduce, bucket });
    }

    fn optimizer(&self) -> Body {
        let residence = |bucket: &usize| self.buckets[*bucket].residence;
        let copies = self.strategy.replicas() / self.strategy.shards() > 1;
        let over_replicas = |bucket: &usize| residence(bucket).shards_state() && copies;
        let all = 0..self.buckets.len();
        let mut out = Vec::new();
        let start = |transfer: Transfer, bucket: usize| Instruction::Start { transfer, bucket };
        let wait = |transfer: Transfer, bucket: usize| Instruction::Wait { transfer, bucket };
        if self.strategy.replicas() > 1 {
            for bucket in all.clone().filter(|b| !residence(b).shards_gradients()) {
                out.push(wait(Transfer::Reduce, bucket));
                if over_replicas(&bucket) {
                    out.push(start(Transfer::ReduceReplicas, bucket));
                }
            }
        }
        let scattered = |b: &usize| over_replicas(b) && residence(b).shards_gradients();
        out.extend(all.clone().filter(scattered).map(|b| start(Transfer::ReduceReplicas, b)));
        out.extend(all.clone().filter(over_replicas).map(|b| wait(Transfer::ReduceReplicas, b)));
        let own = |bucket: usize| self.buckets[bucket].shard_elements();
        for bucket in all.clone().filter(|b| self.buckets[*b].tied) {
            out.push(Instruction::SumTied { bucket, elements: own(bucket) });
        }
        out.push(Instruction::GradientNorm { elements: all.clone().map(own).sum() });
        // What is not gathered for each use is gathered once.
        let gathers = |b: &usize| residence(b).shards_state() && !residence(b).shards_parameters();
        for bucket in all.clone() {
            out.push(Instruction::Update { bucket, elements: own(bucket) });
            if gathers(&bucket) {
                out.push(start(Transfer::Gather, bucket));
            }
        }
        out.extend(all.filter(gathers).map(|b| wait(Transfer::Gather, b)));
        Body { kind: BodyKind::Optimizer, instructions: out }
    }
}

/// The body that computes a pass; `last` for the chunk's last one of its kind. The engines compute whole
/// backward passes, so the orders have no other.
fn body_of(bodies: &[Body], slot: &Slot, last: bool) -> usize {
    let chunk = slot.chunk;
    let forward = slot.kind == SlotKind::Forward;
    let kind = if forward { BodyKind::Forward { chunk } } else { BodyKind::Backward { chunk } };
    let first = bodies.iter().position(|body| body.kind == kind);
    first.expect("a rank has the bodies of its chunks") + usize::from(!forward && last)
}
