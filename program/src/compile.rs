//! From a strategy to the ordered operations of every rank.

use crate::bucket::{Bucket, buckets};
use crate::mesh::Mesh;
use crate::program::{
    Body, BodyKind, Instruction, Message, MessageKind, Op, Operand, Program, RankClass, RankProgram,
    TensorCollective, Transfer,
};
use crate::residence::LayerStrategy;
use crate::rules::{self, Illegal};
use crate::schedule::{Extent, Slot, SlotKind, order};
use autodist_spec::{
    Job, LayerKind, LayerTraining, ModelSpec, ParallelStrategy, Pass, Recompute, Segment, Stage,
};

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
        let training = job.trainable.layers(model);
        let compiler = |rank| {
            Compiler::new((model, &training), strategy, stages, seq_len, micro_batches, rank).compile(extent)
        };
        let ranks = (0..strategy.pipeline as usize).map(compiler).collect();
        Ok(Self {
            model: model.clone(),
            training,
            base_bits: job.trainable.base_bits,
            strategy: strategy.clone(),
            stages: stages.to_vec(),
            mesh: Mesh::of(strategy),
            seq_len,
            micro_batches,
            precision: job.precision,
            ranks,
        })
    }
}

/// Instructions of a layer in a body, about: for the capacity of lists.
const PER_LAYER: usize = 16;

/// More elements than any device sends: their bytes can still be counted.
const MOST: usize = 1 << 60;

struct Compiler<'a> {
    model: &'a ModelSpec,
    training: &'a [LayerTraining],
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
        (model, training): (&'a ModelSpec, &'a [LayerTraining]),
        strategy: &'a ParallelStrategy,
        stages: &'a [Stage],
        seq_len: usize,
        micro_batches: usize,
        rank: usize,
    ) -> Self {
        let tokens = seq_len * strategy.micro_batch as usize / strategy.context as usize;
        Self {
            model,
            training,
            strategy,
            stages,
            micro_batches,
            rank,
            buckets: buckets(model, training, strategy, stages, rank, 0),
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
            let others =
                buckets(self.model, self.training, self.strategy, self.stages, self.rank, larger as usize);
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
            let width = model.block(layer).kv_width() as usize / strategy.tensor as usize;
            let times = if pass == Pass::Backward { 2 } else { 1 };
            let elements = (times * width).saturating_mul(tokens * strategy.context as usize).min(MOST);
            out.push(Instruction::Context { layer, pass, elements });
        }
    }

    /// Tokens to their experts, or back; with sequence parallelism only this rank's rows.
    fn route(&self, out: &mut Vec<Instruction>, layer: usize, pass: Pass) {
        if let (Some(experts), true) = (self.model.block(layer).experts, self.strategy.expert > 1) {
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
            // Nothing before it or of it is trained.
            LayerKind::Block if !self.training[layer].backward => {}
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
        if !self.buckets.iter().any(|bucket| bucket.residence.shards_parameters()) {
            layers.iter().for_each(|layer| visit(out, *layer));
            return;
        }
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
        let mut out = Vec::with_capacity(PER_LAYER * layers.len());
        self.with_parameters(&mut out, chunk, &layers, |out, layer| {
            self.layer_forward(out, layer, LayerStrategy::of(self.strategy, stage, layer).recompute);
        });
        out.shrink_to_fit();
        Body { kind: BodyKind::Forward { chunk }, instructions: out }
    }

    /// Backward of one micro-batch; `last` for the chunk's last one, after which the gradients are complete.
    fn backward(&self, chunk: usize, last: bool) -> Body {
        let stage = &self.stages[chunk];
        let layers: Vec<usize> = stage.layers().rev().collect();
        let mut out = Vec::with_capacity(PER_LAYER * layers.len());
        let mut in_flight: Option<usize> = None;
        self.with_parameters(&mut out, chunk, &layers, |out, layer| {
            self.layer_backward(out, layer, LayerStrategy::of(self.strategy, stage, layer).recompute);
            for bucket in self.completed_by(chunk, layer) {
                self.bucket_complete(out, bucket, last, &mut in_flight);
            }
        });
        if let Some(bucket) = in_flight {
            self.scattered(&mut out, bucket, last);
        }
        out.shrink_to_fit();
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
        let Bucket { residence, expert, trained, .. } = self.buckets[bucket];
        if trained == 0 {
            return;
        }
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
                self.scattered(out, previous, last);
            }
        }
        out.push(Instruction::Start { transfer: Transfer::Reduce, bucket });
    }

    /// Waits for a reduce-scatter in the backward pass. After the last one, the shard is all-reduced over the
    /// groups that hold the same one, during the rest of the pass, as FSDP does (`HYBRID_SHARD`).
    fn scattered(&self, out: &mut Vec<Instruction>, bucket: usize, last: bool) {
        out.push(Instruction::Wait { transfer: Transfer::Reduce, bucket });
        if last && self.over_replicas(bucket) {
            out.push(Instruction::Start { transfer: Transfer::ReduceReplicas, bucket });
        }
    }

    /// Whether several groups shard the state of the bucket.
    fn over_replicas(&self, bucket: usize) -> bool {
        self.buckets[bucket].residence.shards_state() && self.strategy.replicas() / self.strategy.shards() > 1
    }

    fn optimizer(&self) -> Body {
        let residence = |bucket: &usize| self.buckets[*bucket].residence;
        let trained = |bucket: &usize| self.buckets[*bucket].trained > 0;
        let all: Vec<usize> = (0..self.buckets.len()).filter(trained).collect();
        let all = || all.iter().copied();
        let mut out = Vec::new();
        let start = |transfer: Transfer, bucket: usize| Instruction::Start { transfer, bucket };
        let wait = |transfer: Transfer, bucket: usize| Instruction::Wait { transfer, bucket };
        if self.strategy.replicas() > 1 {
            for bucket in all().filter(|b| !residence(b).shards_gradients()) {
                out.push(wait(Transfer::Reduce, bucket));
                if self.over_replicas(bucket) {
                    out.push(start(Transfer::ReduceReplicas, bucket));
                }
            }
        }
        let summed = all().filter(|bucket| self.over_replicas(*bucket));
        out.extend(summed.map(|bucket| wait(Transfer::ReduceReplicas, bucket)));
        let own = |bucket: usize| self.buckets[bucket].shard_gradients();
        for bucket in all().filter(|b| self.buckets[*b].tied) {
            out.push(Instruction::SumTied { bucket, elements: own(bucket) });
        }
        out.push(Instruction::GradientNorm { elements: all().map(own).sum() });
        // What is not gathered for each use is gathered once.
        let gathers = |b: &usize| residence(b).shards_state() && !residence(b).shards_parameters();
        for bucket in all() {
            out.push(Instruction::Update { bucket, elements: own(bucket) });
            if gathers(&bucket) {
                out.push(start(Transfer::Gather, bucket));
            }
        }
        out.extend(all().filter(gathers).map(|b| wait(Transfer::Gather, b)));
        Body { kind: BodyKind::Optimizer, instructions: out }
    }
}

/// The body that computes a pass; `last` for the chunk's last one of its kind. The engines compute whole
/// backward passes, so the orders have no other.
fn body_of(bodies: &[Body], slot: &Slot, last: bool) -> usize {
    let chunk = slot.chunk;
    let (kind, later) = match slot.kind {
        SlotKind::Forward => (BodyKind::Forward { chunk }, false),
        SlotKind::Backward => (BodyKind::Backward { chunk }, last),
        SlotKind::BackwardInput | SlotKind::BackwardWeight => {
            unreachable!("no order splits backward passes")
        }
    };
    let first = bodies.iter().position(|body| body.kind == kind);
    first.expect("a rank has the bodies of its chunks") + usize::from(later)
}
