//! Stateless rounding of single numbers, the only kind of codec for shards, gathered parameters and
//! activations. Rounded numbers are accumulated in fp32 at their destination.

use crate::arithmetic::{Arithmetic, Form, PartMut};
use crate::shards::range;
use crate::{Exchange, Phase};
use autodist_spec::{Codec, Coded};

impl Form {
    /// The number format; `None` for codecs with state, or that do not encode numbers one by one.
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

/// Reduce-scatter: leaves this member's shard of the sum over all members in place; the other shards are
/// undefined.
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

/// The encoded shard of every member.
pub(crate) fn encode_shards<A: Arithmetic>(
    form: Form,
    on: &A,
    gradient: &PartMut<'_, A>,
    size: usize,
) -> Vec<A::Bytes> {
    let shard = |member: usize| range(gradient.len(), size, member);
    (0..size).map(|to| on.encode(form, gradient.part(shard(to)))).collect()
}

/// Sends encoded shards to their members, and replaces this member's shard by the sum of those received.
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
    // In rank order, so that the result does not depend on the order of arrival.
    for part in arrived {
        on.add_encoded(form, &on.bring(part), gradient.part_mut(own.clone()));
    }
    Ok(())
}

/// All-gather: fills `values`, of which this member holds its shard, with the rounded shards of all members.
/// Its own shard is rounded too, so that all members have the same values.
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

/// The collectives of a rounded transfer; empty for a send/recv.
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
