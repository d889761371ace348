//! Two phases: each member gathers one shard of everybody's gradient in few bits, sums it in fp32, and hands the sum on
//! in few bits again. Sums in few bits would lose more with every member; this loses twice, whatever the group's size.

use crate::{Exchange, Phase, Report, square_sum};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// Elements that are converted together.
const STRETCH: usize = 256;

/// How a shard is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shards {
    Fp16,
    Bf16,
    /// One fp32 scale per block, then one byte an element: the largest magnitude of a block is 127.
    Int8 {
        block: usize,
    },
}

/// Member `index`'s elements: as equal as can be, the first ones longer by one.
pub(crate) fn range(length: usize, size: usize, index: usize) -> Range<usize> {
    autodist_collectives::shard_range(length, size.max(1), index.min(size.saturating_sub(1)))
}

impl Shards {
    fn bytes(&self, elements: usize) -> usize {
        match self {
            Self::Fp16 | Self::Bf16 => 2 * elements,
            Self::Int8 { block } => elements + 4 * elements.div_ceil(*block),
        }
    }

    fn encode(&self, values: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes(values.len()));
        match self {
            Self::Fp16 => {
                let mut halves = [f16::ZERO; STRETCH];
                let mut limited = [0.0; STRETCH];
                for part in values.chunks(STRETCH) {
                    let (halves, limited) = (&mut halves[..part.len()], &mut limited[..part.len()]);
                    // Beyond its range half precision knows infinity only, which no later step recovers from.
                    limited.iter_mut().zip(part).for_each(|(l, v)| *l = v.clamp(-65504.0, 65504.0));
                    halves.convert_from_f32_slice(limited);
                    bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
                }
            }
            Self::Bf16 => {
                let mut halves = [bf16::ZERO; STRETCH];
                for part in values.chunks(STRETCH) {
                    let halves = &mut halves[..part.len()];
                    halves.convert_from_f32_slice(part);
                    bytes.extend(halves.iter().flat_map(|half| half.to_le_bytes()));
                }
            }
            Self::Int8 { block } => {
                for part in values.chunks(*block) {
                    let scale = part.iter().fold(0.0_f32, |most, v| most.max(v.abs())) / 127.0;
                    bytes.extend_from_slice(&scale.to_le_bytes());
                    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                    bytes.extend(part.iter().map(|v| ((v * inverse).round() as i8) as u8));
                }
            }
        }
        bytes
    }

    /// Adds what `bytes` say to `values`.
    fn add(&self, bytes: &[u8], values: &mut [f32]) {
        match self {
            Self::Fp16 => {
                let (mut halves, mut decoded) = ([f16::ZERO; STRETCH], [0.0; STRETCH]);
                for (part, coded) in values.chunks_mut(STRETCH).zip(bytes.chunks(2 * STRETCH)) {
                    let (halves, decoded) = (&mut halves[..part.len()], &mut decoded[..part.len()]);
                    let pairs = coded.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]));
                    halves.iter_mut().zip(pairs).for_each(|(half, read)| *half = read);
                    halves.convert_to_f32_slice(decoded);
                    part.iter_mut().zip(decoded).for_each(|(value, decoded)| *value += *decoded);
                }
            }
            Self::Bf16 => {
                for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value += bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
                }
            }
            Self::Int8 { block } => {
                for (part, coded) in values.chunks_mut(*block).zip(bytes.chunks(block + 4)) {
                    let (scale, levels) = coded.split_at(4);
                    let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                    for (value, level) in part.iter_mut().zip(levels) {
                        *value += scale * f32::from(*level as i8);
                    }
                }
            }
        }
    }

    pub fn reduce<X: Exchange>(&self, gradient: &mut [f32], exchange: &mut X) -> Result<Report, X::Error> {
        let (size, rank, length) = (exchange.size(), exchange.rank(), gradient.len());
        let parts: Vec<Vec<u8>> =
            (0..size).map(|to| self.encode(&gradient[range(length, size, to)])).collect();
        let report = self.report(gradient, &parts, size);
        let arrived = exchange.all_to_all(&parts)?;
        drop(parts);
        let own = &mut gradient[range(length, size, rank)];
        own.fill(0.0);
        // In the order of members: a sum does not depend on who was first.
        arrived.iter().for_each(|part| self.add(part, own));
        let coded = self.encode(own);
        let all = exchange.all_gather(&coded)?;
        gradient.fill(0.0);
        for (from, part) in all.iter().enumerate() {
            self.add(part, &mut gradient[range(length, size, from)]);
        }
        Ok(report)
    }

    fn report(&self, gradient: &[f32], parts: &[Vec<u8>], size: usize) -> Report {
        let mut lost = 0.0;
        let mut decoded = Vec::new();
        for (to, part) in parts.iter().enumerate() {
            let exact = &gradient[range(gradient.len(), size, to)];
            decoded.clear();
            decoded.resize(exact.len(), 0.0);
            self.add(part, &mut decoded);
            decoded.iter_mut().zip(exact).for_each(|(d, e)| *d -= e);
            lost += square_sum(&decoded);
        }
        // Nothing of it is kept.
        Report { error_norm: 0.0, ..Report::of(square_sum(gradient), lost) }
    }
}

pub(crate) fn phases(form: &Shards, elements: usize, size: usize) -> Vec<Phase> {
    two_phases(elements, size, |elements| form.bytes(elements))
}

/// All-to-all of shards, then all-gather of them, where a shard of some elements takes `bytes`.
pub(crate) fn two_phases(elements: usize, size: usize, bytes: impl Fn(usize) -> usize) -> Vec<Phase> {
    let row: Vec<usize> = (0..size).map(|to| bytes(range(elements, size, to).len())).collect();
    vec![Phase::AllToAll { bytes: vec![row.clone(); size] }, Phase::AllGather { bytes: row }]
}
