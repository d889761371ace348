//! Numbers rounded one by one, without memory: all that shards, gathered parameters and activations may be. Sums of
//! rounded numbers are made in fp32 where they are kept.

use crate::arithmetic::{Arithmetic, Form, PartMut};
use crate::shards::range;
use crate::{Exchange, Phase};
use autodist_spec::{Codec, Coded};

impl Form {
    /// `None` for codecs that keep something, or that know a number only among others.
    #[must_use]
    pub fn of(codec: Codec) -> Option<Self> {
        match codec {
            Codec::Fp16 => Some(Self::Fp16),
            Codec::Bf16 => Some(Self::Bf16),
            Codec::Int8 { block } => Some(Self::Int8 { block: block as usize }),
            _ => None,
        }
    }
}

/// Leaves this member's shard of the sum over all members in place; the rest holds anything.
///
/// # Errors
/// Those of the exchange.
pub fn reduce_scatter<A: Arithmetic, X: Exchange>(
    form: Form,
    on: &A,
    mut gradient: PartMut<'_, A>,
    exchange: &mut X,
) -> Result<(), X::Error> {
    let parts = encode_shards(form, on, &gradient, exchange.size());
    sum_shards(form, on, parts, gradient.again(), exchange)
}

/// Every member's shard as it travels.
pub(crate) fn encode_shards<A: Arithmetic>(
    form: Form,
    on: &A,
    gradient: &PartMut<'_, A>,
    size: usize,
) -> Vec<A::Bytes> {
    let shard = |member: usize| range(gradient.len(), size, member);
    (0..size).map(|to| on.encode(form, gradient.part(shard(to)))).collect()
}

/// Hands out encoded shards, and puts the sum of those that come into the place of this member's.
pub(crate) fn sum_shards<A: Arithmetic, X: Exchange>(
    form: Form,
    on: &A,
    parts: Vec<A::Bytes>,
    mut gradient: PartMut<'_, A>,
    exchange: &mut X,
) -> Result<(), X::Error> {
    let arrived = exchange.all_to_all(&on.fetch(parts))?;
    let own = range(gradient.len(), exchange.size(), exchange.rank());
    on.fill_zero(gradient.part_mut(own.clone()));
    // In the order of members: a sum does not depend on who was first.
    for part in arrived {
        on.add_encoded(form, &on.bring(part), gradient.part_mut(own.clone()));
    }
    Ok(())
}

/// Fills `values`, of which this member holds its shard, with the shards of all as they were rounded: its own too, so that
/// all members have the same.
///
/// # Errors
/// Those of the exchange.
pub fn all_gather<A: Arithmetic, X: Exchange>(
    form: Form,
    on: &A,
    mut values: PartMut<'_, A>,
    exchange: &mut X,
) -> Result<(), X::Error> {
    let (size, rank, length) = (exchange.size(), exchange.rank(), values.len());
    let shard = |member: usize| range(length, size, member);
    let coded = on.fetch(vec![on.encode(form, values.part(shard(rank)))]);
    let all = exchange.all_gather(&coded[0])?;
    on.fill_zero(values.again());
    for (from, part) in all.into_iter().enumerate() {
        on.add_encoded(form, &on.bring(part), values.part_mut(shard(from)));
    }
    Ok(())
}

/// Exchanges of what is rounded; a message is none.
pub(crate) fn phases(form: Form, coded: Coded, elements: usize, size: usize) -> Vec<Phase> {
    let row: Vec<usize> = (0..size).map(|to| form.bytes(range(elements, size, to).len())).collect();
    match coded {
        Coded::GradientShards => vec![Phase::AllToAll { bytes: vec![row; size] }],
        Coded::Parameters => vec![Phase::AllGather { bytes: row }],
        Coded::Gradients | Coded::Activations => Vec::new(),
    }
}

/// Bytes of a message of `elements`, in whole words.
#[must_use]
pub fn message_bytes(form: Form, elements: usize) -> usize {
    form.bytes(elements).next_multiple_of(4)
}
