//! One bit per element, with error feedback at the sender and at the reducer (Tang et al., 2102.02888,
//! algorithm 1; compression stage).

use crate::arithmetic::{Arithmetic, Part, PartMut};
use crate::shards::{range, two_phases};
use crate::{CodingQuality, Exchange, Phase};

pub(crate) struct Signs<A: Arithmetic> {
    /// Error feedback of this member's signs.
    own: A::Owned,
    /// Error feedback of the signs of its shard's mean; `None` before the first reduction.
    shard: Option<A::Owned>,
}

/// Root mean square: signs with this scale have the L2 norm of the values.
fn scale(square_sum: f64, elements: usize) -> f32 {
    if elements == 0 { 0.0 } else { (square_sum / elements as f64).sqrt() as f32 }
}

impl<A: Arithmetic> Signs<A> {
    pub fn new(on: &A, elements: usize) -> Self {
        Self { own: on.zeros(elements), shard: None }
    }

    pub fn state(&self) -> usize {
        Part::<A>::whole(&self.own).len()
            + self.shard.as_ref().map_or(0, |shard| Part::<A>::whole(shard).len())
    }

    pub fn kept(&self) -> &A::Owned {
        &self.own
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
        memory: bool,
    ) -> Result<CodingQuality, X::Error> {
        let (size, rank, length) = (exchange.size(), exchange.rank(), gradient.len());
        let mut own = PartMut::<A>::whole(&mut self.own);
        let shard = self.shard.get_or_insert_with(|| on.zeros(range(length, size, rank).len()));
        let mut shard = PartMut::<A>::whole(shard);
        let whole = on.read(&on.add(gradient.read(), own.again()));
        let own_scale = scale(whole, length);
        let parts: Vec<A::Bytes> =
            (0..size).map(|to| on.encode_signs(own_scale, own.part(range(length, size, to)))).collect();
        on.subtract_signs(own_scale, own.again());
        let report = CodingQuality::of(whole, on.read(&on.square_sum(own.read())));
        let arrived = exchange.all_to_all(&on.fetch(parts))?;
        let mean = 1.0 / size as f32;
        arrived.into_iter().for_each(|part| on.add_signs(&on.bring(part), mean, shard.again()));
        let shard_scale = scale(on.read(&on.square_sum(shard.read())), shard.len());
        let coded = on.fetch(vec![on.encode_signs(shard_scale, shard.read())]);
        on.subtract_signs(shard_scale, shard.again());
        let all = exchange.all_gather(&coded[0])?;
        on.fill_zero(gradient.again());
        for (from, part) in all.into_iter().enumerate() {
            on.add_signs(&on.bring(part), size as f32, gradient.part_mut(range(length, size, from)));
        }
        if !memory {
            on.fill_zero(own);
            on.fill_zero(shard);
        }
        Ok(report)
    }
}

/// Encodes a scale, then one bit per element: set for zero and above.
pub(crate) fn encode(values: &[f32], scale: f32) -> Vec<u8> {
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(values.chunks(8).map(|eight| {
        eight.iter().enumerate().fold(0_u8, |byte, (bit, value)| byte | (u8::from(*value >= 0.0) << bit))
    }));
    bytes
}

/// Adds signs, multiplied by `factor` and by the scale encoded with them.
pub(crate) fn add(bytes: &[u8], factor: f32, values: &mut [f32]) {
    let scale = factor * f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (eight, byte) in values.chunks_mut(8).zip(&bytes[4..]) {
        for (bit, value) in eight.iter_mut().enumerate() {
            *value += if byte >> bit & 1 == 1 { scale } else { -scale };
        }
    }
}

/// Subtracts `scale * sign(value)` from every value.
pub(crate) fn subtract(values: &mut [f32], scale: f32) {
    values.iter_mut().for_each(|value| *value -= if *value >= 0.0 { scale } else { -scale });
}

pub(crate) fn phases(elements: usize, size: usize) -> Vec<Phase> {
    two_phases(elements, size, |elements| 4 + elements.div_ceil(8))
}
