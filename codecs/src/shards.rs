//! All-reduce in two phases: each member receives one shard of every member's gradient in few bits, sums it
//! in fp32, and sends the sum in few bits. Summing in few bits would add an error per member; here values are
//! rounded twice in groups of any size.

use crate::arithmetic::{Arithmetic, Form, Part, PartMut};
use crate::host::{largest_magnitude, vectorised};
use crate::{CodingQuality, Exchange, Phase, rounding};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use std::ops::Range;

/// Elements converted at a time.
const STRETCH: usize = 256;

/// Member `index`'s elements: as equal as can be, the first ones longer by one.
pub(crate) fn range(length: usize, size: usize, index: usize) -> Range<usize> {
    autodist_collectives::shard_range(length, size.max(1), index.min(size.saturating_sub(1)))
}

pub(crate) fn reduce<A: Arithmetic, X: Exchange>(
    form: Form,
    on: &A,
    mut gradient: PartMut<'_, A>,
    exchange: &mut X,
) -> Result<CodingQuality, X::Error> {
    let parts = rounding::encode_shards(form, on, &gradient, exchange.size());
    let report = report(form, on, &gradient, &parts);
    rounding::sum_shards(form, on, parts, gradient.again(), exchange)?;
    rounding::all_gather(form, on, gradient, exchange)?;
    Ok(report)
}

fn report<A: Arithmetic>(form: Form, on: &A, gradient: &PartMut<'_, A>, parts: &[A::Bytes]) -> CodingQuality {
    let shard = |member: usize| range(gradient.len(), parts.len(), member);
    // The first shard is the longest.
    let mut decoded = on.zeros(shard(0).len());
    let whole = on.square_sum(gradient.read());
    let lost: Vec<A::Sum> = parts
        .iter()
        .enumerate()
        .map(|(to, part)| {
            let exact = gradient.part(shard(to));
            let own = 0..exact.len();
            on.fill_zero(PartMut::whole(&mut decoded));
            on.add_encoded(form, part, PartMut::whole(&mut decoded).part_mut(own.clone()));
            on.subtract(exact, PartMut::whole(&mut decoded).part_mut(own.clone()));
            on.square_sum(Part::whole(&decoded).part(own))
        })
        .collect();
    let lost = lost.iter().map(|lost| on.read(lost)).sum();
    // The codec does not keep the error.
    CodingQuality { error_norm: 0.0, ..CodingQuality::of(on.read(&whole), lost) }
}

pub(crate) fn encode(form: Form, values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; form.bytes(values.len())];
    match form {
        Form::Fp16 => {
            let mut halves = [f16::ZERO; STRETCH];
            let mut limited = [0.0; STRETCH];
            for (part, coded) in values.chunks(STRETCH).zip(bytes.chunks_mut(2 * STRETCH)) {
                let (halves, limited) = (&mut halves[..part.len()], &mut limited[..part.len()]);
                // Values beyond the range of half precision would become infinite, and training could not
                // recover.
                limited.iter_mut().zip(part).for_each(|(l, v)| *l = v.clamp(-65504.0, 65504.0));
                halves.convert_from_f32_slice(limited);
                let pairs = coded.chunks_exact_mut(2).zip(halves);
                pairs.for_each(|(pair, half)| pair.copy_from_slice(&half.to_le_bytes()));
            }
        }
        Form::Bf16 => vectorised(|| {
            for (pair, value) in bytes.chunks_exact_mut(2).zip(values) {
                pair.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
            }
        }),
        Form::Int8 { block } => vectorised(|| {
            for (part, coded) in values.chunks(block).zip(bytes.chunks_mut(block + 4)) {
                let scale = largest_magnitude(part) / 127.0;
                let (head, levels) = coded.split_at_mut(4);
                head.copy_from_slice(&scale.to_le_bytes());
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                let pairs = levels.iter_mut().zip(part);
                pairs.for_each(|(level, v)| *level = ((v * inverse).round() as i8) as u8);
            }
        }),
    }
    bytes
}

/// Decodes `bytes` and adds them to `values`.
pub(crate) fn add(form: Form, bytes: &[u8], values: &mut [f32]) {
    match form {
        Form::Fp16 => {
            let (mut halves, mut decoded) = ([f16::ZERO; STRETCH], [0.0; STRETCH]);
            for (part, coded) in values.chunks_mut(STRETCH).zip(bytes.chunks(2 * STRETCH)) {
                let (halves, decoded) = (&mut halves[..part.len()], &mut decoded[..part.len()]);
                let pairs = coded.chunks_exact(2).map(|pair| f16::from_le_bytes([pair[0], pair[1]]));
                halves.iter_mut().zip(pairs).for_each(|(half, read)| *half = read);
                halves.convert_to_f32_slice(decoded);
                part.iter_mut().zip(decoded).for_each(|(value, decoded)| *value += *decoded);
            }
        }
        Form::Bf16 => vectorised(|| {
            for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value += bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            }
        }),
        Form::Int8 { block } => vectorised(|| {
            for (part, coded) in values.chunks_mut(block).zip(bytes.chunks(block + 4)) {
                let (scale, levels) = coded.split_at(4);
                let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                for (value, level) in part.iter_mut().zip(levels) {
                    *value += scale * f32::from(*level as i8);
                }
            }
        }),
    }
}

pub(crate) fn phases(form: Form, elements: usize, size: usize) -> Vec<Phase> {
    two_phases(elements, size, |elements| form.bytes(elements))
}

/// All-to-all, then all-gather of shards; `bytes` gives the encoded size of a shard.
pub(crate) fn two_phases(elements: usize, size: usize, bytes: impl Fn(usize) -> usize) -> Vec<Phase> {
    let row: Vec<usize> = (0..size).map(|to| bytes(range(elements, size, to).len())).collect();
    vec![Phase::AllToAll { bytes: vec![row.clone(); size] }, Phase::AllGather { bytes: row }]
}
