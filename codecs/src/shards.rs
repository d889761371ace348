//! Two phases: each member gathers one shard of everybody's gradient in few bits, sums it in fp32, and hands the sum on
//! in few bits again. Sums in few bits would lose more with every member; this loses twice, whatever the group's size.

use crate::arithmetic::{Arithmetic, Form, Part, PartMut};
use crate::{Exchange, Phase, Report};
use half::{bf16, f16};
use std::ops::Range;

/// Member `index`'s elements: as equal as can be, the first ones longer by one.
pub(crate) fn range(length: usize, size: usize, index: usize) -> Range<usize> {
    autodist_collectives::shard_range(length, size.max(1), index.min(size.saturating_sub(1)))
}

pub(crate) fn reduce<A: Arithmetic, X: Exchange>(
    form: Form,
    on: &A,
    mut gradient: PartMut<'_, A>,
    exchange: &mut X,
) -> Result<Report, X::Error> {
    let (size, rank, length) = (exchange.size(), exchange.rank(), gradient.len());
    let shard = |member: usize| range(length, size, member);
    let parts: Vec<A::Bytes> = (0..size).map(|to| on.encode(form, gradient.part(shard(to)))).collect();
    let report = report(form, on, &gradient, &parts);
    let arrived = exchange.all_to_all(&on.fetch(parts))?;
    on.fill_zero(gradient.part_mut(shard(rank)));
    // In the order of members: a sum does not depend on who was first.
    for part in arrived {
        on.add_encoded(form, &on.bring(part), gradient.part_mut(shard(rank)));
    }
    let coded = on.fetch(vec![on.encode(form, gradient.part(shard(rank)))]);
    let all = exchange.all_gather(&coded[0])?;
    on.fill_zero(gradient.again());
    for (from, part) in all.into_iter().enumerate() {
        on.add_encoded(form, &on.bring(part), gradient.part_mut(shard(from)));
    }
    Ok(report)
}

fn report<A: Arithmetic>(form: Form, on: &A, gradient: &PartMut<'_, A>, parts: &[A::Bytes]) -> Report {
    let shard = |member: usize| range(gradient.len(), parts.len(), member);
    // The first shard is no shorter than others.
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
    // Nothing of it is kept.
    Report { error_norm: 0.0, ..Report::of(on.read(&whole), lost) }
}

pub(crate) fn encode(form: Form, values: &[f32]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(form.bytes(values.len()));
    match form {
        Form::Fp16 => {
            let limited = |v: &f32| f16::from_f32(v.clamp(-65504.0, 65504.0)).to_le_bytes();
            values.iter().for_each(|v| bytes.extend_from_slice(&limited(v)));
        }
        Form::Bf16 => {
            values.iter().for_each(|v| bytes.extend_from_slice(&bf16::from_f32(*v).to_le_bytes()));
        }
        Form::Int8 { block } => {
            for part in values.chunks(block) {
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
pub(crate) fn add(form: Form, bytes: &[u8], values: &mut [f32]) {
    match form {
        Form::Fp16 => {
            for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value += f16::from_le_bytes([pair[0], pair[1]]).to_f32();
            }
        }
        Form::Bf16 => {
            for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                *value += bf16::from_le_bytes([pair[0], pair[1]]).to_f32();
            }
        }
        Form::Int8 { block } => {
            for (part, coded) in values.chunks_mut(block).zip(bytes.chunks(block + 4)) {
                let (scale, levels) = coded.split_at(4);
                let scale = f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]);
                for (value, level) in part.iter_mut().zip(levels) {
                    *value += scale * f32::from(*level as i8);
                }
            }
        }
    }
}

pub(crate) fn phases(form: Form, elements: usize, size: usize) -> Vec<Phase> {
    two_phases(elements, size, |elements| form.bytes(elements))
}

/// All-to-all of shards, then all-gather of them, where a shard of some elements takes `bytes`.
pub(crate) fn two_phases(elements: usize, size: usize, bytes: impl Fn(usize) -> usize) -> Vec<Phase> {
    let row: Vec<usize> = (0..size).map(|to| bytes(range(elements, size, to).len())).collect();
    vec![Phase::AllToAll { bytes: vec![row.clone(); size] }, Phase::AllGather { bytes: row }]
}
