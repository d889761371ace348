//! Peak memory of each pipeline rank, as the executor's allocator counts it: one function per term.

use crate::coding;
use crate::measured::Unpriced;
use crate::offload::{Begins, Copied};
use crate::priced::{Priced, Pricer};
use crate::prices::ParameterBytes;
use autodist_program::{
    Body, BodyKind, Bucket, BucketLayer, Held, Instruction, Op, Operand, Program, RankProgram, Residence,
    TensorCollective, Transfer,
};
use autodist_spec::{BaseBits, Bytes, Job, LayerKind, MemoryBreakdown, ParallelStrategy, Pass, Precision};
use std::ops::Add;

/// Live bytes that change within a step, by account. Signed: a body may free memory that it did not allocate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Live {
    activations: i64,
    gradients: i64,
    buffers: i64,
    temporary: i64,
}

impl Live {
    fn total(&self) -> i64 {
        self.activations + self.gradients + self.buffers + self.temporary
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            activations: self.activations + other.activations,
            gradients: self.gradients + other.gradients,
            buffers: self.buffers + other.buffers,
            temporary: self.temporary + other.temporary,
        }
    }
}

/// Live bytes now, and their maximum so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Account {
    live: Live,
    peak: Live,
}

impl Account {
    /// Live activations.
    pub(crate) fn activations(&mut self) -> &mut i64 {
        &mut self.live.activations
    }

    fn moment(&mut self, extra: Live) {
        let candidate = self.live.plus(&extra);
        if candidate.total() > self.peak.total() {
            self.peak = candidate;
        }
    }

    /// Allocates `bytes` while one buffer is converted into the other, then frees `freed`.
    fn replace(&mut self, bytes: i64, freed: i64) {
        self.moment(Live { buffers: bytes, ..Live::default() });
        self.live.activations += bytes - freed;
    }
}

/// A body's memory, relative to its start. Only activations stay live after a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BodyMemory {
    net_activations: i64,
    peak: Live,
    /// Activations that it moves to the host's memory; negative if it fetches them.
    to_host: i64,
}

impl BodyMemory {
    pub(crate) fn net_activations(&self) -> i64 {
        self.net_activations
    }
}

/// Gradients of parameters and optimizer state are in full precision, in any compute precision.
fn f32_bytes(elements: usize) -> i64 {
    Bytes::of_f32(elements as u64).0 as i64
}

fn working_bytes(program: &Program, elements: usize) -> i64 {
    program.precision.working(elements as u64).0 as i64
}

/// The memory of a body. If activations of blocks are in the host's memory between forward and backward pass, its
/// blocks are visited once for what each keeps, and again with what is on the device.
pub(crate) fn body_memory(
    pricer: &mut Pricer,
    rank: &RankProgram,
    body: &Body,
) -> Result<BodyMemory, Unpriced> {
    let (account, to_host) = if pricer.activations_on_host() && body.kind != BodyKind::Optimizer {
        let mut begins = Begins::default();
        let mut whole = visited(pricer, rank, body, &mut |layer, account| begins.note(layer, account))?;
        let growths = begins.growths(&pricer.program().model, *whole.activations());
        let mut copied = Copied::of(body.kind, &growths);
        let mut account = visited(pricer, rank, body, &mut |_, account| copied.enter(account))?;
        copied.finish(&mut account);
        (account, growths.iter().sum())
    } else {
        (visited(pricer, rank, body, &mut |_, _| ())?, 0)
    };
    Ok(BodyMemory { net_activations: account.live.activations, peak: account.peak, to_host })
}

/// Visits a body's instructions once, in order; `enter` is told of each block when its first one begins.
fn visited(
    pricer: &mut Pricer,
    rank: &RankProgram,
    body: &Body,
    enter: &mut dyn FnMut(usize, &mut Account),
) -> Result<Account, Unpriced> {
    let program = pricer.program();
    let within_pass = !pricer.stays_gathered();
    let mut account = Account::default();
    let mut whole_gradients = vec![false; rank.buckets().len()];
    let mut block = None;
    for instruction in &body.instructions {
        if let Some(layer) = instruction.layer()
            && block != Some(layer)
        {
            block = Some(layer);
            enter(layer, &mut account);
        }
        match *instruction {
            Instruction::Segment { layer, segment, pass, recompute } => {
                if pass == Pass::Backward && within_pass {
                    allocate_gradients(pricer, rank, layer, &mut whole_gradients, &mut account);
                }
                let price = pricer.segment((rank.pipeline_rank, layer), segment, pass, recompute)?;
                account.moment(Live { temporary: price.peak_bytes, ..Live::default() });
                account.live.activations += price.growth_bytes;
            }
            Instruction::Tensor { collective, operand, elements, .. } => {
                tensor_collective(program, collective, operand, elements, &mut account);
            }
            Instruction::Start { transfer: Transfer::Gather, bucket }
                if rank.buckets()[bucket].residence.shards_parameters() && within_pass =>
            {
                account.live.buffers += program.gathered_bytes(&rank.buckets()[bucket]).0 as i64;
            }
            Instruction::Release { bucket } if within_pass => {
                account.live.buffers -= program.gathered_bytes(&rank.buckets()[bucket]).0 as i64;
            }
            Instruction::Wait { transfer: Transfer::Reduce, bucket } if whole_gradients[bucket] => {
                account.live.gradients -= pricer.whole_gradients(&rank.buckets()[bucket]);
                whole_gradients[bucket] = false;
            }
            _ => {}
        }
        account.moment(Live::default());
    }
    Ok(account)
}

/// Whole gradients of a bucket that shards them are allocated by the first backward of a layer that writes to it.
fn allocate_gradients(
    pricer: &Pricer,
    rank: &RankProgram,
    layer: usize,
    whole: &mut [bool],
    account: &mut Account,
) {
    let program = pricer.program();
    let tied_head = program.model.tied_embeddings && program.model.kind(layer) == LayerKind::Head;
    let written = |bucket: &Bucket| {
        bucket.layers.iter().any(|l| (l.layer == layer && !bucket.copy) || (tied_head && l.layer == 0))
    };
    for (index, bucket) in rank.buckets().iter().enumerate() {
        if bucket.residence.shards_gradients() && bucket.trained > 0 && written(bucket) && !whole[index] {
            whole[index] = true;
            account.live.gradients += pricer.whole_gradients(bucket);
        }
    }
}

/// All-reduces work in place; other collectives hold their input and output at the same time.
fn tensor_collective(
    program: &Program,
    collective: TensorCollective,
    operand: Operand,
    elements: usize,
    account: &mut Account,
) {
    let (whole, part) =
        (working_bytes(program, elements), working_bytes(program, elements / program.mesh.tensor));
    match (collective, operand) {
        (TensorCollective::SumAll | TensorCollective::MaxAll, _) => {}
        (TensorCollective::ReduceScatter, _) => account.replace(part, whole),
        // The rows of this rank are kept in addition to the whole tensor: in the forward pass as the saved
        // input, in the backward pass as the gradient of the residual.
        (TensorCollective::AllGather, Operand::Flow) => account.live.activations += whole,
        (TensorCollective::AllGather, Operand::SavedInput) => account.replace(whole, part),
    }
}

/// What a rank holds of these buckets: whole, or its shard of those that are `sharded`.
fn held(buckets: &[Bucket], sharded: fn(Residence) -> bool) -> Held {
    let of = |bucket: &Bucket| bucket.held(sharded(bucket.residence));
    buckets.iter().map(of).fold(Held::default(), Held::add)
}

/// Bytes of `each` per trained parameter of these buckets.
fn kept(buckets: &[Bucket], each: f64, sharded: fn(Residence) -> bool) -> Bytes {
    Bytes((held(buckets, sharded).trained as f64 * each).round() as u64)
}

/// Bytes of the weights of these buckets.
fn weights(program: &Program, buckets: &[Bucket], each: &ParameterBytes) -> Bytes {
    let held = held(buckets, Residence::shards_parameters);
    Bytes(each.weights(&held, quantised_part(program.precision, program.base_bits)).round() as u64)
}

/// Bytes of a quantised weight, relative to those of another frozen one.
fn quantised_part(precision: Precision, bits: BaseBits) -> f64 {
    let whole = precision.working(1).as_f64();
    bits.bytes(whole) / whole
}

/// Weights, gradients and optimizer state of parameters on one rank, without padding: a lower bound of a compiled
/// program (Rajbhandari et al., 1910.02054, figure 1).
pub fn persistent_bytes(all: &Held, job: &Job, strategy: &ParallelStrategy, bytes: &ParameterBytes) -> u64 {
    let shards = strategy.shards() as usize;
    let part = |elements: usize| elements / shards;
    let shard =
        Held { elements: part(all.elements), trained: part(all.trained), quantised: part(all.quantised) };
    let residence = Residence::of(strategy);
    let held = |is_sharded: bool| if is_sharded { &shard } else { all };
    let quantised = quantised_part(job.precision, job.trainable.base_bits);
    let all = bytes.weights(held(residence.shards_parameters()), quantised)
        + bytes.gradient * held(residence.shards_gradients()).trained as f64
        + bytes.state * held(residence.shards_state()).trained as f64;
    all.floor() as u64
}

/// Gradients that are freed after each update grow in the backward pass of the only micro-batch, while activations
/// are freed. A rank needs the most where that pass begins, with the gradients that are `passing`, or where it
/// ends with the reduction of embedding and head: their parameters and gradients are whole then, in working
/// precision, with a copy in fp32.
fn fuller_end(
    begin: MemoryBreakdown,
    passing: Bytes,
    program: &Program,
    rank: &RankProgram,
) -> MemoryBreakdown {
    let ends = [0, program.model.chain_len() - 1];
    let layers = rank.buckets().iter().flat_map(|bucket| &bucket.layers);
    let trained = |layer: &&BucketLayer| ends.contains(&layer.layer) && program.training[layer.layer].weights;
    let elements = layers.filter(trained).map(|layer| layer.elements).sum();
    let reduced = 2 * working_bytes(program, elements) + f32_bytes(elements);
    let end = MemoryBreakdown {
        activations_bytes: Bytes::ZERO,
        temporary_bytes: Bytes::ZERO,
        communication_buffers_bytes: Bytes(reduced.max(0) as u64),
        ..begin
    };
    let begin = MemoryBreakdown { gradients_bytes: passing, ..begin };
    if end.total() > begin.total() { end } else { begin }
}

/// Communicators with more than one rank.
pub(crate) fn communicators(program: &Program, pipeline_rank: usize) -> u64 {
    let (mesh, residence) = (&program.mesh, program.residence());
    let tied = program.model.tied_embeddings
        && mesh.pipeline > 1
        && (pipeline_rank == 0 || pipeline_rank + 1 == mesh.pipeline);
    let sizes = [
        mesh.tensor,
        mesh.view(residence.shard_axes()).size(),
        mesh.view(residence.replica_axes()).size(),
        program.model_view().size(),
        mesh.context,
        program.strategy.expert as usize,
    ];
    sizes.into_iter().filter(|size| *size > 1).count() as u64 + u64::from(tied)
}

impl Priced<'_> {
    /// The breakdown of each pipeline rank at its peak.
    pub fn memory(&self) -> Vec<MemoryBreakdown> {
        (0..self.ranks.len()).map(|rank| self.rank_memory(rank)).collect()
    }

    /// Bytes that one device of each pipeline rank keeps in its host's memory.
    pub fn host_memory(&self) -> Vec<Bytes> {
        (0..self.ranks.len()).map(|rank| self.rank_host_memory(rank)).collect()
    }

    fn rank_host_memory(&self, index: usize) -> Bytes {
        let (rank, each) = (&self.program.ranks[index], self.costs.host_bytes(&self.program.strategy));
        if *each == ParameterBytes::default() && !self.costs.activations_on_host {
            return Bytes::ZERO;
        }
        let state = weights(self.program, rank.buckets(), each)
            + kept(rank.buckets(), each.gradient, Residence::shards_gradients)
            + kept(rank.buckets(), each.state, Residence::shards_state);
        state + self.most_on_host(index)
    }

    /// The most activations that a rank has in its host's memory within a step.
    fn most_on_host(&self, index: usize) -> Bytes {
        let (rank, mut now, mut most) = (&self.program.ranks[index], 0_i64, 0);
        for op in &rank.ops {
            let Op::Run { body, .. } = op else { continue };
            now += self.ranks[index][*body].memory.to_host;
            most = most.max(now);
        }
        Bytes(most.max(0) as u64)
    }

    fn rank_memory(&self, index: usize) -> MemoryBreakdown {
        let program = self.program;
        let (rank, strategy) = (&program.ranks[index], &program.strategy);
        let each = self.costs.parameter_bytes(strategy);
        let peak = self.step_peak(index);
        let bytes = |n: i64| Bytes(n.max(0) as u64);
        let (state, scratch) = coding::memory(program, index, self.costs.on_accelerators);
        let all = rank.buckets().iter().map(Bucket::unpadded).fold(Held::default(), Held::add);
        let trained = all.trained as u64;
        let staging = self.costs.staging_bytes * communicators(program, index)
            + Bytes(state + scratch)
            + self.costs.buffers(&all, strategy);
        let staging = match strategy.zero_stage {
            // Gathered parameters in the training precision, and whole gradients, which accumulate in fp32.
            3 if self.costs.stays_gathered(strategy) => {
                let gathered: Bytes = rank.buckets().iter().map(|one| program.gathered_bytes(one)).sum();
                staging + gathered + Bytes::of_f32(trained)
            }
            2 if self.costs.stays_gathered(strategy) => staging + Bytes::of_f32(trained),
            _ => staging,
        };
        let mut memory = MemoryBreakdown {
            weights_bytes: weights(program, rank.buckets(), each),
            gradients_bytes: kept(rank.buckets(), each.gradient, Residence::shards_gradients)
                + bytes(peak.gradients),
            optimizer_state_bytes: kept(rank.buckets(), each.state, Residence::shards_state),
            activations_bytes: bytes(peak.activations),
            communication_buffers_bytes: staging + bytes(peak.buffers),
            temporary_bytes: bytes(peak.temporary),
            reserve_bytes: Bytes::ZERO,
        };
        if self.costs.frees_gradients && program.micro_batches == 1 && program.mesh.pipeline == 1 {
            memory = fuller_end(memory, bytes(peak.gradients), program, rank);
        }
        let at_update = self.costs.update_buffers(trained, strategy);
        let in_passes =
            memory.activations_bytes + memory.temporary_bytes + bytes(peak.gradients) + bytes(peak.buffers);
        if at_update > in_passes {
            memory.activations_bytes = Bytes::ZERO;
            memory.temporary_bytes = Bytes::ZERO;
            memory.gradients_bytes = kept(rank.buckets(), each.gradient, Residence::shards_gradients);
            memory.communication_buffers_bytes = staging + at_update;
        }
        let fragmentation = memory.total().as_f64() * self.costs.fragmentation;
        memory.reserve_bytes = self.costs.baseline_bytes + Bytes(fragmentation as u64);
        memory
    }

    /// Visits the operations in order: the peak live memory of the step in addition to the persistent state.
    fn step_peak(&self, index: usize) -> Live {
        let bodies = &self.program.ranks[index].bodies;
        let kept_by_forward = |chunk: usize| {
            let forward = bodies.iter().position(|body| body.kind == BodyKind::Forward { chunk });
            forward.map_or(0, |body| self.ranks[index][body].memory.net_activations)
        };
        let beside = self.costs.kept_of_pass(&self.program.strategy).0 as i64;
        let mut account = Account::default();
        let mut leaving = 0;
        for op in &self.program.ranks[index].ops {
            let left = std::mem::take(&mut leaving);
            match op {
                Op::Receive(message) => {
                    account.live.activations += working_bytes(self.program, message.elements);
                }
                Op::Run { body, .. } => {
                    let memory = &self.ranks[index][*body].memory;
                    account.moment(memory.peak);
                    account.live.activations += match bodies[*body].kind {
                        BodyKind::Backward { chunk } if self.costs.frees_late => -kept_by_forward(chunk),
                        _ => memory.net_activations,
                    };
                    account.live.buffers += match bodies[*body].kind {
                        BodyKind::Forward { .. } => beside,
                        BodyKind::Backward { .. } => -beside,
                        BodyKind::Optimizer => 0,
                    };
                }
                Op::Send(message) => {
                    // In flight until the next operation ends.
                    leaving = working_bytes(self.program, message.elements);
                    account.live.activations -= leaving;
                    account.live.buffers += leaving;
                }
            }
            account.moment(Live::default());
            account.live.buffers -= left;
        }
        account.peak
    }
}
