//! The cost of codecs for gradients, parameters and activations.

use crate::CostModel;
use crate::curve::{Curve, Price};
use crate::measured::Unpriced;
use crate::prices::{CollectiveQuery, Purpose};
use autodist_codecs::{Form, Phase, Tensor, rounding};
use autodist_program::{Bucket, Instruction, Message, Op, Program, Transfer};
use autodist_spec::profile::CodecCost;
use autodist_spec::{Algorithm, Bytes, Codec, Coded, Collective, Pattern, Reduction};
use std::collections::BTreeMap;

/// Coding times by codec, payload and group size, over the elements of a bucket or a send/recv.
#[derive(Debug, Clone, Default)]
pub(crate) struct Codings(BTreeMap<(Codec, Coded, u32), Curve>);

impl Codings {
    pub fn new(costs: &[CodecCost]) -> Self {
        let mut curves: BTreeMap<(Codec, Coded, u32), Curve> = BTreeMap::new();
        for cost in costs {
            let curve = curves.entry((cost.codec, cost.coded, cost.group)).or_default();
            curve.insert(cost.elements as f64, Price::from(&cost.time));
        }
        Self(curves)
    }

    pub fn price(
        &self,
        codec: Codec,
        coded: Coded,
        group: usize,
        elements: usize,
    ) -> Result<Price, Unpriced> {
        let curve = self.0.get(&(codec, coded, group as u32));
        curve.and_then(|curve| curve.linear(elements as f64)).ok_or_else(|| Unpriced {
            what: format!("the profile has no {} of {} over {group} ranks", codec.name(), coded.name()),
            hint: "profile again with `--allow compression`, or with this codec in the job's `allow`"
                .to_owned(),
            doubted: false,
        })
    }
}

/// The parameters of a bucket as a codec's input.
pub(crate) fn tensors(program: &Program, bucket: &Bucket) -> Vec<Tensor> {
    let parameters = bucket.parameters(&program.model, 0, program.strategy.tensor as usize);
    parameters.iter().map(|p| Tensor { offset: p.offset, rows: p.rows, columns: p.columns }).collect()
}

/// Coding, and the codec's collectives one after the other.
pub(crate) fn reduction(
    costs: &CostModel,
    program: &Program,
    transfer: Transfer,
    bucket: &Bucket,
    reduction: Reduction,
    groups: &[Vec<usize>],
    stride: usize,
) -> Result<Price, Unpriced> {
    let size = groups.iter().map(Vec::len).max().unwrap_or(1);
    let codec = reduction.codec;
    let mut total = costs.codings.price(codec, program.coded(transfer), size, bucket.padded)?;
    let (purpose, strategy) = (Purpose::Bucket(transfer), &program.strategy);
    let exchange = |kind, algorithm, bytes| {
        costs.exchange(&CollectiveQuery { purpose, kind, algorithm, group: size, stride, bytes, strategy })
    };
    for (pattern, bytes) in exchanges(program, transfer, bucket, reduction) {
        total = total
            + match (&costs.routes, pattern) {
                (Some(routes), pattern) => costs.sped_up(routes.collective(pattern, groups, bytes)),
                (None, Pattern::AllReduce(algorithm)) => exchange(Collective::AllReduce, algorithm, bytes)?,
                // An all-to-all moves as many bytes as a ring all-gather, and is at most as fast.
                (None, _) => exchange(Collective::AllGather, Algorithm::Ring, bytes)?,
            };
    }
    Ok(total)
}

fn phases(program: &Program, transfer: Transfer, bucket: &Bucket, codec: Codec) -> Vec<Phase> {
    let size = program.transfer_view(transfer, bucket).size();
    let (coded, tensors) = (program.coded(transfer), tensors(program, bucket));
    autodist_codecs::phases(codec, coded, &tensors, bucket.padded, size)
}

/// The collectives of a coded transfer, one after the other, each with the bytes of its tensor.
pub(crate) fn exchanges(
    program: &Program,
    transfer: Transfer,
    bucket: &Bucket,
    reduction: Reduction,
) -> Vec<(Pattern, Bytes)> {
    let size = program.transfer_view(transfer, bucket).size();
    let exchange = |phase: Phase| match phase {
        Phase::Sum { elements } => (Pattern::AllReduce(reduction.algorithm), Bytes::of_f32(elements as u64)),
        Phase::Max => (Pattern::AllReduce(Algorithm::Ring), Bytes::of_f32(1)),
        Phase::AllGather { bytes } => {
            (Pattern::AllGather(Algorithm::Ring), Bytes(bytes.iter().sum::<usize>() as u64))
        }
        Phase::AllToAll { bytes } => {
            // Bytes that a member sends, including its own part; parts are equal up to rounding.
            let most = bytes.iter().flatten().copied().max().unwrap_or(0);
            (Pattern::AllToAll, Bytes((most * size) as u64))
        }
    };
    phases(program, transfer, bucket, reduction.codec).into_iter().map(exchange).collect()
}

/// A send/recv between pipeline ranks: bytes on the wire, and coding, half of it at each end.
pub(crate) fn message(
    costs: &CostModel,
    program: &Program,
    elements: usize,
) -> Result<(Bytes, Price), Unpriced> {
    let codec = program.strategy.communication.activations;
    match Form::of(codec) {
        None => Ok((program.precision.working(elements as u64), Price::ZERO)),
        Some(form) => {
            let bytes = Bytes(rounding::message_bytes(form, elements) as u64);
            Ok((bytes, costs.codings.price(codec, Coded::Activations, 2, elements)?))
        }
    }
}

/// Bytes that the codecs of a pipeline rank keep between steps, and the largest workspace of one of them, in
/// the memory that holds gradients.
pub(crate) fn memory(program: &Program, pipeline_rank: usize, on_accelerators: bool) -> (u64, u64) {
    let (mut state, mut scratch) = (0, 0);
    for (index, bucket) in program.ranks[pipeline_rank].buckets().iter().enumerate() {
        for transfer in [Transfer::Reduce, Transfer::Gather] {
            let codec = program.reduction(pipeline_rank, transfer, index).codec;
            let size = program.transfer_view(transfer, bucket).size();
            if codec == Codec::None || size < 2 {
                continue;
            }
            let (coded, tensors) = (program.coded(transfer), tensors(program, bucket));
            let footprint = autodist_codecs::footprint(codec, coded, &tensors, bucket.padded, size, 0);
            state += footprint.state_bytes;
            let own = match on_accelerators {
                true => footprint.device_scratch_bytes,
                false => footprint.scratch_bytes,
            };
            scratch = own.max(scratch);
        }
    }
    (state, scratch)
}

/// The cost of one kind of traffic in a step, for a pipeline rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CodedSummary {
    /// Seconds of the codec's collectives.
    pub wire_s: f64,
    /// Seconds of coding.
    pub coding_s: f64,
    /// Bytes that a rank sends.
    pub sent_bytes: f64,
}

impl CostModel {
    /// Coding cost of one kind of traffic in a step, for pipeline rank `pipeline_rank`.
    ///
    /// # Errors
    /// The profile lacks a cost.
    pub fn coded(
        &self,
        program: &Program,
        pipeline_rank: usize,
        coded: Coded,
    ) -> Result<CodedSummary, Unpriced> {
        let mut summary = CodedSummary::default();
        let rank = &program.ranks[pipeline_rank];
        let priced = self.price(program)?;
        for op in &rank.ops {
            match *op {
                Op::Send(Message { peer, elements, .. }) if coded == Coded::Activations => {
                    let (bytes, coding) = message(self, program, elements)?;
                    summary.coding_s += coding.seconds;
                    summary.wire_s += priced.message_seconds(pipeline_rank, peer);
                    summary.sent_bytes += bytes.as_f64();
                }
                Op::Run { body, .. } => {
                    for instruction in &rank.bodies[body].instructions {
                        let Instruction::Start { transfer, bucket } = *instruction else { continue };
                        if transfer != Transfer::ReduceReplicas && program.coded(transfer) == coded {
                            self.add(program, pipeline_rank, transfer, bucket, &mut summary)?;
                        }
                    }
                }
                Op::Send(_) | Op::Receive(_) => {}
            }
        }
        Ok(summary)
    }

    fn add(
        &self,
        program: &Program,
        pipeline_rank: usize,
        transfer: Transfer,
        index: usize,
        summary: &mut CodedSummary,
    ) -> Result<(), Unpriced> {
        let bucket = &program.ranks[pipeline_rank].buckets()[index];
        let view = program.transfer_view(transfer, bucket);
        let (size, stride) = (view.size(), view.stride());
        if size < 2 {
            return Ok(());
        }
        let groups = || program.transfer_groups(pipeline_rank, transfer);
        let reduced = program.reduction(pipeline_rank, transfer, index);
        let (kind, _) = program.transfer_work(transfer, bucket);
        let bytes = program.transfer_bytes(transfer, bucket);
        let around = (size as f64 - 1.0) / size as f64;
        if reduced.codec == Codec::None {
            let passes = if kind == Collective::AllReduce { 2.0 } else { 1.0 };
            let query = CollectiveQuery {
                purpose: Purpose::Bucket(transfer),
                kind,
                algorithm: reduced.algorithm,
                group: size,
                stride,
                bytes,
                strategy: &program.strategy,
            };
            // Without a network, only the shape of the groups matters, and their ranks may be many.
            let price = match &self.routes {
                Some(_) => self.over(&query, &groups())?,
                None => self.collective(&query, self.classes_of(&program.strategy)[pipeline_rank])?,
            };
            summary.wire_s += price.seconds;
            summary.sent_bytes += passes * around * bytes.as_f64();
            return Ok(());
        }
        let coded = program.coded(transfer);
        let coding = self.codings.price(reduced.codec, coded, size, bucket.padded)?.seconds;
        let whole = reduction(self, program, transfer, bucket, reduced, &groups(), stride)?.seconds;
        summary.coding_s += coding;
        summary.wire_s += whole - coding;
        for phase in phases(program, transfer, bucket, reduced.codec) {
            summary.sent_bytes += match phase {
                Phase::Sum { elements } => 2.0 * around * 4.0 * elements as f64,
                Phase::Max => 2.0 * around * 4.0,
                Phase::AllGather { bytes } => around * bytes.iter().sum::<usize>() as f64,
                Phase::AllToAll { bytes } => {
                    bytes.first().map_or(0, |row| row.iter().skip(1).sum::<usize>()) as f64
                }
            };
        }
        Ok(())
    }
}
