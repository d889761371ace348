//! What a reduction costs whose gradients are compressed.

use crate::CostModel;
use crate::curve::{Curve, Price};
use crate::measured::Unpriced;
use autodist_codecs::{Phase, Tensor};
use autodist_program::{Bucket, Program, Transfer};
use autodist_spec::profile::CodecCost;
use autodist_spec::{Algorithm, Bytes, Codec, CollectiveKind, Pattern, Reduction};
use std::collections::BTreeMap;

/// Coding times by codec and group size, over the elements of a bucket.
#[derive(Debug, Clone, Default)]
pub(crate) struct Codings(BTreeMap<(Codec, u32), Curve>);

impl Codings {
    pub fn new(costs: &[CodecCost]) -> Self {
        let mut curves: BTreeMap<(Codec, u32), Curve> = BTreeMap::new();
        for cost in costs {
            let curve = curves.entry((cost.codec, cost.group)).or_default();
            curve.insert(cost.elements as f64, Price::from(&cost.time));
        }
        Self(curves)
    }

    fn price(&self, codec: Codec, group: usize, elements: usize) -> Result<Price, Unpriced> {
        let curve = self.0.get(&(codec, group as u32));
        curve.and_then(|curve| curve.linear(elements as f64)).ok_or_else(|| Unpriced {
            what: format!("the profile has no {} over {group} ranks", codec.name()),
            hint: "profile again with this codec in `--codecs`".to_owned(),
        })
    }
}

/// The parameters of a bucket as codecs see them.
pub(crate) fn tensors(program: &Program, bucket: &Bucket) -> Vec<Tensor> {
    let parameters = bucket.parameters(&program.model, 0, program.strategy.tensor as usize);
    parameters.iter().map(|p| Tensor { offset: p.offset, rows: p.rows, columns: p.columns }).collect()
}

/// Coding, and the exchanges one after the other.
pub(crate) fn reduction(
    costs: &CostModel,
    program: &Program,
    bucket: &Bucket,
    reduction: Reduction,
    groups: &[Vec<usize>],
    stride: usize,
) -> Result<Price, Unpriced> {
    let size = groups.iter().map(Vec::len).max().unwrap_or(1);
    let codec = reduction.codec;
    let mut total = costs.codings.price(codec, size, bucket.padded)?;
    for (pattern, bytes) in exchanges(program, bucket, reduction) {
        total = total
            + match (&costs.routes, pattern) {
                (Some(routes), pattern) => routes.collective(pattern, groups, bytes),
                (None, Pattern::AllReduce(algorithm)) => {
                    costs.exchange(CollectiveKind::AllReduce, algorithm, groups, stride, bytes)?
                }
                // An all-to-all moves as much as a gather by rings, at most as fast.
                (None, _) => {
                    costs.exchange(CollectiveKind::AllGather, Algorithm::Ring, groups, stride, bytes)?
                }
            };
    }
    Ok(total)
}

/// The exchanges of a compressed reduction, one after the other, each with the bytes of its tensor.
pub(crate) fn exchanges(program: &Program, bucket: &Bucket, reduction: Reduction) -> Vec<(Pattern, Bytes)> {
    let size = program.strategy.data as usize;
    let phases = autodist_codecs::phases(reduction.codec, &tensors(program, bucket), bucket.padded, size);
    let exchange = |phase: Phase| match phase {
        Phase::Sum { elements } => (Pattern::AllReduce(reduction.algorithm), Bytes::of_f32(elements as u64)),
        Phase::Max => (Pattern::AllReduce(Algorithm::Ring), Bytes::of_f32(1)),
        Phase::AllGather { bytes } => {
            (Pattern::AllGather(Algorithm::Ring), Bytes(bytes.iter().sum::<usize>() as u64))
        }
        Phase::AllToAll { bytes } => {
            // What a member sends, with the part that stays: parts are equal but for rounding.
            let most = bytes.iter().flatten().copied().max().unwrap_or(0);
            (Pattern::AllToAll, Bytes((most * size) as u64))
        }
    };
    phases.into_iter().map(exchange).collect()
}

/// Bytes that the codecs of a pipeline rank keep between steps, and the most that one needs while it works, in the memory
/// in which gradients lie.
pub(crate) fn memory(program: &Program, pipeline_rank: usize, on_accelerators: bool) -> (u64, u64) {
    let size = program.strategy.data as usize;
    let (mut state, mut scratch) = (0, 0);
    for (index, bucket) in program.ranks[pipeline_rank].buckets.iter().enumerate() {
        let codec = program.strategy.communication.reduction(pipeline_rank, index).codec;
        if codec != Codec::None && size > 1 {
            let footprint =
                autodist_codecs::footprint(codec, &tensors(program, bucket), bucket.padded, size, 0);
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

/// What the reductions of one step take on the communication stream of a pipeline rank.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ReductionSummary {
    /// Seconds of exchanges.
    pub wire_s: f64,
    /// Seconds of coding.
    pub coding_s: f64,
    /// Bytes that a rank sends.
    pub sent_bytes: f64,
}

impl CostModel {
    /// Of pipeline rank `pipeline_rank`.
    ///
    /// # Errors
    /// A cost that the profile does not hold.
    pub fn reductions(&self, program: &Program, pipeline_rank: usize) -> Result<ReductionSummary, Unpriced> {
        let mut summary = ReductionSummary::default();
        let (size, stride) = program.transfer_group(Transfer::Reduce);
        let groups = program.transfer_groups(pipeline_rank, Transfer::Reduce);
        let ring = 2.0 * (size as f64 - 1.0) / size.max(1) as f64;
        for (index, bucket) in program.ranks[pipeline_rank].buckets.iter().enumerate() {
            let reduced = program.reduction(pipeline_rank, Transfer::Reduce, index);
            let (kind, _) = program.transfer_work(Transfer::Reduce, bucket);
            let bytes = program.transfer_bytes(Transfer::Reduce, bucket);
            if reduced.codec == Codec::None || size < 2 {
                summary.wire_s += self.over(kind, reduced.algorithm, &groups, stride, bytes)?.seconds;
                summary.sent_bytes += ring * bytes.as_f64();
                continue;
            }
            let coding = self.codings.price(reduced.codec, size, bucket.padded)?.seconds;
            let whole = reduction(self, program, bucket, reduced, &groups, stride)?.seconds;
            summary.coding_s += coding;
            summary.wire_s += whole - coding;
            for phase in
                autodist_codecs::phases(reduced.codec, &tensors(program, bucket), bucket.padded, size)
            {
                summary.sent_bytes += match phase {
                    Phase::Sum { elements } => ring * 4.0 * elements as f64,
                    Phase::Max => ring * 4.0,
                    Phase::AllGather { bytes } => {
                        (size - 1) as f64 / size as f64 * bytes.iter().sum::<usize>() as f64
                    }
                    Phase::AllToAll { bytes } => {
                        bytes.first().map_or(0, |row| row.iter().skip(1).sum::<usize>()) as f64
                    }
                };
            }
        }
        Ok(summary)
    }
}
