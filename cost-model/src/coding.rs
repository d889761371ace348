//! What a reduction costs whose gradients are compressed.

use crate::CostModel;
use crate::curve::{Curve, Price};
use crate::measured::Unpriced;
use autodist_codecs::{Phase, Tensor};
use autodist_program::{Bucket, Program, Transfer};
use autodist_spec::profile::CodecCost;
use autodist_spec::{Algorithm, Bytes, Codec, CollectiveKind, Reduction};
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
    let ring = Algorithm::Ring;
    for phase in autodist_codecs::phases(codec, &tensors(program, bucket), bucket.padded, size) {
        total = total
            + match phase {
                Phase::Sum { elements } => {
                    let bytes = Bytes::of_f32(elements as u64);
                    costs.exchange(CollectiveKind::AllReduce, reduction.algorithm, groups, stride, bytes)?
                }
                Phase::Max => {
                    costs.exchange(CollectiveKind::AllReduce, ring, groups, stride, Bytes::of_f32(1))?
                }
                Phase::AllGather { bytes } => {
                    let whole = Bytes(bytes.iter().sum::<usize>() as u64);
                    costs.exchange(CollectiveKind::AllGather, ring, groups, stride, whole)?
                }
                Phase::AllToAll { bytes } => {
                    // What a member sends, with the part that stays: parts are equal but for rounding.
                    let most = bytes.iter().flatten().copied().max().unwrap_or(0);
                    let whole = Bytes((most * size) as u64);
                    match &costs.routes {
                        Some(routes) => routes.all_to_all(groups, whole),
                        // As much as half of an all-reduce by rings moves, at most as fast.
                        None => costs.exchange(CollectiveKind::AllGather, ring, groups, stride, whole)?,
                    }
                }
            };
    }
    Ok(total)
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
