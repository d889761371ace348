//! A synthetic profile: every cell is the price of the hardware model that the analytic model uses, so that
//! both models price the same machine.

use autodist_analytic::{FreeParameters, Trainer, TrainingRun};
use autodist_cost_model::synthetic;
use autodist_hardware::{Attention, BACKWARD_OVER_FORWARD};
use autodist_program::{Instruction, Op, Program};
use autodist_spec::profile::{CollectiveCost, Interference, MessageCost, OptimizerCost};
use autodist_spec::{
    Bytes, Collective, Job, Pass, Profile, Provenance, Recompute, Sample, Seconds, Segment, SegmentCost,
};
use std::collections::BTreeMap;

/// Only the cells that `program` needs: nothing is interpolated.
pub fn profile(run: &TrainingRun, parameters: &FreeParameters, job: &Job, program: &Program) -> Profile {
    let cells = Cells { run, parameters: *parameters };
    let none = exactly(0.0);
    Profile {
        segments: cells.segments(program),
        collectives: cells.collectives(program),
        messages: cells.messages(program),
        fits: Vec::new(),
        optimizer: [1, 1 << 30].map(|elements| cells.optimizer(elements)).to_vec(),
        interference: Interference {
            compute_slowdown: 1.0,
            communication_slowdown: 1.0,
            provenance: Provenance::Assumed,
        },
        stream_handover: none,
        synchronisation: none,
        step_overhead: exactly(parameters.step_s),
        // The cells of backward passes include the accumulation of gradients.
        zero_s_per_element: 0.0,
        add_s_per_element: 0.0,
        baseline_bytes: Bytes(0),
        staging_bytes: Bytes(0),
        ..synthetic::SyntheticMachine::new(1).profile(&program.model, job)
    }
}

fn exactly(seconds: f64) -> Sample {
    let seconds = Seconds(seconds);
    Sample { median_s: seconds, low_s: seconds, high_s: seconds, count: 1, provenance: Provenance::Assumed }
}

pub struct Cells<'a> {
    pub run: &'a TrainingRun,
    pub parameters: FreeParameters,
}

/// Bytes of the tensors of one micro-batch.
struct Tensors {
    /// An activation between layers, and this rank's rows of it.
    whole: i64,
    rows: i64,
    /// Activations that attention and the MLP keep in addition to their inputs.
    attention: i64,
    /// The part of it that selective recomputation drops.
    scores: i64,
    mlp: i64,
    /// Simultaneously live gradients of these activations.
    attention_gradient: i64,
    mlp_gradient: i64,
    /// The largest weight gradient before accumulation: of the MLP, and of the embedding table.
    mlp_weights: i64,
    table: i64,
    /// Logits in 16 bits, and the tensors that the loss computes from them.
    logits: i64,
    loss: i64,
}

/// Sizes on one rank.
struct Sizes {
    tokens: f64,
    hidden: f64,
    /// Elements of a token's row outside the tensor-parallel parts.
    along: f64,
    query: f64,
    kv: f64,
    ffn: f64,
    gated: f64,
    /// Rows of the embedding table, padded.
    rows: f64,
}

impl Cells<'_> {
    fn sizes(&self) -> Sizes {
        let (shape, layout) = (&self.run.shape, &self.run.layout);
        let tensor = f64::from(layout.tensor);
        let hidden = f64::from(shape.hidden);
        Sizes {
            tokens: f64::from(self.run.micro_batch) * f64::from(self.run.seq_len),
            hidden,
            along: if layout.sequence_parallel { hidden / tensor } else { hidden },
            query: f64::from(shape.heads) * f64::from(shape.head_dim) / tensor,
            kv: f64::from(shape.kv_heads) * f64::from(shape.head_dim) / tensor,
            ffn: f64::from(shape.ffn) / tensor,
            gated: f64::from(u8::from(shape.gated)),
            rows: (f64::from(shape.vocab) / 128.0 / tensor).ceil() * 128.0,
        }
    }

    fn segments(&self, program: &Program) -> Vec<SegmentCost> {
        use Segment::*;
        let ends = [Embedding, FinalNorm, Logits, Normalizer, Loss].map(|segment| (segment, Recompute::None));
        let blocks =
            [AttentionNorm, Attention, MlpNorm, Mlp].map(|segment| (segment, program.strategy.recompute));
        let of = |(segment, recompute)| {
            [Pass::Forward, Pass::Recompute, Pass::Backward]
                .map(|pass| self.segment(segment, pass, recompute, program))
        };
        ends.into_iter().chain(blocks).flat_map(of).collect()
    }

    fn segment(&self, segment: Segment, pass: Pass, recompute: Recompute, program: &Program) -> SegmentCost {
        let strategy = &program.strategy;
        let (growth_bytes, peak) = self.memory(segment, pass, recompute);
        SegmentCost {
            segment,
            pass,
            tensor: strategy.tensor,
            sequence_parallel: strategy.sequence_parallel,
            micro_batch: strategy.micro_batch,
            recompute,
            time: exactly(self.seconds(segment, pass)),
            growth_bytes,
            peak_bytes: Bytes(peak as u64),
        }
    }

    /// Seconds per byte of a memory-bound kernel.
    fn per_byte(&self) -> f64 {
        self.run.machine.seconds_per_byte / self.parameters.memory_efficiency
    }

    /// GEMMs of a linear layer: forward; input and weight gradients.
    fn linear(&self, rows: f64, out: f64, into: f64) -> (f64, f64) {
        let product = |m: f64, n: f64, k: f64| {
            self.run.machine.gemms(self.run.dtype, 1, m as u64, n as u64, k as u64)
                / (self.parameters.gemm_efficiency * self.parameters.ampere)
        };
        (product(rows, out, into), product(rows, into, out) + product(out, into, rows))
    }

    fn attention_core(&self) -> f64 {
        let (shape, layout) = (&self.run.shape, &self.run.layout);
        let local = |heads: u32| u64::from(heads / layout.tensor);
        let sequence = u64::from(self.run.seq_len);
        let core = Attention {
            batch: u64::from(self.run.micro_batch),
            sequence,
            keys: sequence,
            heads: local(shape.heads),
            kv_heads: local(shape.kv_heads),
            head_dim: u64::from(shape.head_dim),
            causal: true,
        };
        self.run.machine.attention(&core) / (self.parameters.flash * self.parameters.ampere)
    }

    /// Seconds to accumulate the gradients of the given number of parameters over micro-batches.
    fn accumulation(&self, elements: f64) -> f64 {
        if self.run.micro_batches() > 1.0 {
            elements * 3.0 * self.run.trainer.gradient_bytes(self.run.dtype) * self.per_byte()
        } else {
            0.0
        }
    }

    fn seconds(&self, segment: Segment, pass: Pass) -> f64 {
        let Sizes { tokens, hidden, along, query, kv, ffn, gated, rows } = self.sizes();
        let backward = pass == Pass::Backward;
        let pick = |(forward, back): (f64, f64)| if backward { back } else { forward };
        // Elements per token that kernels read and write in 16 bits.
        let moved = |elements: f64| 2.0 * tokens * elements * self.parameters.elementwise * self.per_byte();
        let head = self.linear(tokens, rows, hidden);
        let loss = 0.5 * tokens * rows * self.parameters.logit_bytes * self.per_byte();
        let up = (1.0 + gated) * ffn;
        match segment {
            Segment::AttentionNorm | Segment::MlpNorm => moved(pick((2.0 * along, 5.0 * along))),
            Segment::Attention => {
                let products = pick(self.linear(tokens, query + 2.0 * kv, hidden))
                    + pick(self.linear(tokens, hidden, query));
                let core = self.attention_core();
                let again = if self.run.recompute == Recompute::Selective { core } else { 0.0 };
                let parameters = 2.0 * (query + kv) * hidden;
                let core = pick((core, BACKWARD_OVER_FORWARD * core + again));
                let added = pick((0.0, self.accumulation(parameters)));
                products + core + added + moved(pick((3.5 * along, 3.0 * along)))
            }
            Segment::Mlp => {
                let products = pick(self.linear(tokens, up, hidden)) + pick(self.linear(tokens, hidden, ffn));
                let added = pick((0.0, self.accumulation((up + ffn) * hidden)));
                let inner = pick(((2.0 + gated) * ffn, (3.0 + 2.0 * gated) * ffn));
                products + added + moved(pick((3.5 * along, 3.0 * along)) + inner)
            }
            Segment::FinalNorm => 0.0,
            Segment::Logits => head.0,
            Segment::Normalizer => loss,
            // Its backward is that of the whole head.
            Segment::Loss => pick((0.0, head.1 + loss + self.accumulation(rows * hidden))),
            Segment::Embedding => {
                let tied = self.run.shape.tied_embeddings && self.run.layout.pipeline == 1;
                let gradient = 3.0 * self.run.trainer.gradient_bytes(self.run.dtype);
                let added = if self.run.micro_batches() > 1.0 || tied { gradient } else { 0.0 };
                let zeroed = rows * hidden * (2.0 + added);
                (8.0 * tokens * hidden + pick((0.0, zeroed))) * self.per_byte()
            }
        }
    }

    fn tensors(&self) -> Tensors {
        let Sizes { tokens, hidden, along, query, kv, ffn, gated, .. } = self.sizes();
        let shape = &self.run.shape;
        let heads = f64::from(shape.heads) / f64::from(self.run.layout.tensor);
        let table = f64::from(shape.vocab) / f64::from(self.run.layout.tensor) * hidden;
        let fully_sharded = self.run.trainer == Trainer::Fsdp2;
        let bytes = |each: f64, elements: f64| (each * elements).round() as i64;
        // Dropout masks, which newer models do not have.
        let mask = if shape.gated { 0 } else { bytes(1.0, tokens * along) };
        let scores = bytes(4.0, tokens * heads);
        let projections = bytes(2.0, tokens * (2.0 * query + 2.0 * kv));
        let inner = bytes(if shape.gated { 6.0 } else { 4.0 }, tokens * ffn);
        // With sharded gradients, the program determines the lifetime of whole ones.
        let gradient = if self.run.layout.zero_stage >= 2 { 0.0 } else { 2.0 };
        let logits = tokens * f64::from(shape.vocab) / f64::from(self.run.layout.tensor);
        Tensors {
            whole: bytes(2.0, tokens * hidden),
            rows: bytes(2.0, tokens * along),
            attention: projections + scores + mask,
            scores,
            mlp: inner + mask,
            attention_gradient: projections,
            mlp_gradient: inner,
            mlp_weights: bytes(gradient, (1.0 + gated) * ffn * hidden),
            table: bytes(gradient, table),
            logits: bytes(2.0, logits),
            loss: bytes(if fully_sharded { 10.0 } else { 4.0 }, logits),
        }
    }

    /// Live bytes after a segment minus before, and their maximum during it. A forward pass keeps its input,
    /// which is the output of the previous segment; with sequence parallelism it keeps the rows and frees the
    /// gathered tensor.
    fn memory(&self, segment: Segment, pass: Pass, recompute: Recompute) -> (i64, i64) {
        use Segment::*;
        let Tensors { whole, rows, attention, scores, mlp, logits, loss, .. } = self.tensors();
        let Tensors { attention_gradient, mlp_gradient, mlp_weights, table, .. } = self.tensors();
        let gathered = if self.run.layout.sequence_parallel { whole } else { 0 };
        let attention = attention - if recompute == Recompute::Selective { scores } else { 0 };
        let forgets = recompute == Recompute::Full && pass == Pass::Forward;
        match (segment, pass) {
            (Embedding, Pass::Forward | Pass::Recompute) => (whole, whole),
            (Embedding, Pass::Backward) => (-rows - gathered, 0),
            (AttentionNorm | MlpNorm | FinalNorm, Pass::Forward | Pass::Recompute) => (rows, rows),
            // The norm's input, the residual's gradient and that of its output are replaced by the gradient
            // of its input.
            (AttentionNorm | MlpNorm, Pass::Backward) => (-2 * rows, rows),
            (FinalNorm, Pass::Backward) => (-rows, rows),
            // The norm's output is freed, and before the block ends its input, too.
            (Attention, Pass::Forward) if forgets => (whole - gathered - rows, attention + whole),
            (Mlp, Pass::Forward) if forgets => (whole - gathered - 2 * rows, mlp + whole),
            (Attention, Pass::Forward | Pass::Recompute) => (attention + whole - gathered, attention + whole),
            (Mlp, Pass::Forward) => (mlp + whole - gathered, mlp + whole),
            // The block's output is not needed again.
            (Mlp, Pass::Recompute) => (mlp - gathered, mlp),
            (Attention, Pass::Backward) => (-attention - gathered, attention_gradient + whole),
            (Mlp, Pass::Backward) => (-mlp - gathered, mlp_gradient + whole + mlp_weights),
            (Logits, _) => (logits - gathered, logits),
            (Normalizer, _) => (loss, loss),
            (Loss, Pass::Forward | Pass::Recompute) => (0, 0),
            (Loss, Pass::Backward) => (-logits - loss, whole + table),
        }
    }

    /// Seconds of one block: forward; backward with recomputation. Without tensor-parallel collectives.
    pub fn block(&self) -> (f64, f64) {
        use Segment::*;
        let pass = |pass| -> f64 {
            [AttentionNorm, Attention, MlpNorm, Mlp].map(|segment| self.seconds(segment, pass)).iter().sum()
        };
        let again = if self.run.recompute == Recompute::Full { pass(Pass::Recompute) } else { 0.0 };
        (pass(Pass::Forward), pass(Pass::Backward) + again)
    }

    /// Bytes that the backward pass of a block allocates: gradients, and recomputed activations.
    pub fn passing(&self) -> f64 {
        let Tensors { whole, rows, attention, mlp, mlp_gradient, .. } = self.tensors();
        let again = if self.run.recompute == Recompute::None { 0 } else { attention + mlp + 4 * rows };
        (mlp_gradient + 2 * whole + again) as f64
    }

    /// A collective of neighbours `stride` ranks apart, with all such groups at once.
    pub fn collective(&self, kind: Collective, group: usize, stride: usize, bytes: Bytes) -> f64 {
        let machine = &self.run.machine;
        let (ranks, stride) = (group as u32, stride as u32);
        let per_node = (machine.devices_per_node / stride).clamp(1, ranks);
        let sharing = stride.min(machine.devices_per_node);
        let rate = if ranks > per_node { self.parameters.network } else { self.parameters.link };
        machine.collective(kind, bytes.as_f64(), ranks, per_node, sharing) / rate
    }

    fn collectives(&self, program: &Program) -> Vec<CollectiveCost> {
        let mut asked = BTreeMap::new();
        let layout = program.layout;
        for rank in &program.ranks {
            for instruction in rank.bodies.iter().flat_map(|body| &body.instructions) {
                let (kind, (group, stride), bytes) = match *instruction {
                    Instruction::Tensor { segment, collective, elements, .. } => {
                        let bytes = program.tensor_bytes(segment, collective, elements);
                        (collective.kind(), (layout.tensor, 1), bytes)
                    }
                    Instruction::SumReplicated { elements, .. } => {
                        (Collective::AllReduce, (layout.tensor, 1), Bytes::of_f32(elements as u64))
                    }
                    Instruction::Start { transfer, bucket } => {
                        let bucket = &rank.buckets[bucket];
                        let (kind, _) = program.transfer_work(transfer, bucket);
                        (kind, program.transfer_group(transfer), program.transfer_bytes(transfer, bucket))
                    }
                    Instruction::SumTied { elements, .. } => {
                        let inner = layout.world() / layout.pipeline;
                        let ends = (2, inner * (layout.pipeline - 1));
                        (Collective::AllReduce, ends, Bytes::of_f32(elements as u64))
                    }
                    Instruction::GradientNorm { .. } => {
                        let ranks = layout.model_group(layout.coordinates(0)).len();
                        (Collective::AllReduce, (ranks, 1), Bytes::of_f32(1))
                    }
                    _ => continue,
                };
                if group > 1 {
                    let time = exactly(self.collective(kind, group, stride, bytes));
                    let (group, stride) = (group as u32, stride as u32);
                    let cell = CollectiveCost { kind, group, stride, bytes, time };
                    asked.insert((kind, group, stride, bytes), cell);
                }
            }
        }
        asked.into_values().collect()
    }

    /// Every rank of a stage sends at the same time.
    fn messages(&self, program: &Program) -> Vec<MessageCost> {
        let machine = &self.run.machine;
        let layout = program.layout;
        let (stride, near) = (layout.data * layout.tensor, machine.devices_per_node as usize);
        let crosses = stride >= near && layout.world() > near;
        let (ends, sharing) = if crosses { (1, machine.devices_per_node) } else { (2, 1) };
        let rate = if crosses { self.parameters.network } else { self.parameters.link };
        let cell = |elements: usize| {
            let bytes = program.precision.working(elements as u64);
            let alone = machine.collective(Collective::SendRecv, bytes.as_f64(), 2, ends, sharing);
            MessageCost { stride: stride as u32, bytes, time: exactly(alone / rate) }
        };
        let sizes = program.ranks.iter().flat_map(|rank| &rank.ops).filter_map(|op| match op {
            Op::Send(message) => Some(message.elements),
            _ => None,
        });
        sizes.collect::<std::collections::BTreeSet<_>>().into_iter().map(cell).collect()
    }

    /// An update reads the gradient and reads and writes master weight and moments; ranks with whole
    /// gradients zero them and read them for their norm.
    fn optimizer(&self, elements: u64) -> OptimizerCost {
        let per_byte = self.parameters.optimizer * self.per_byte();
        let seconds = |bytes: f64| exactly(bytes * elements as f64 * per_byte);
        let whole = if self.run.trainer.shards_parameters() { 0.0 } else { 8.0 };
        OptimizerCost { elements, update: seconds(30.0), norm: seconds(whole) }
    }
}
