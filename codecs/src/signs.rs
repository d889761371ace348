//! One bit an element, with error feedback at the sender and at the reducer (Tang et al., 2102.02888, algorithm 1;
//! compression stage).

use crate::shards::{range, two_phases};
use crate::{Exchange, Phase, Report, square_sum};

#[derive(Debug, Default)]
pub(crate) struct Signs {
    /// What this member's signs left out.
    own: Vec<f32>,
    /// What the signs of its shard's mean left out.
    shard: Vec<f32>,
}

/// A scale, then one bit an element: set for zero and above.
fn encode(values: &[f32], scale: f32) -> Vec<u8> {
    let mut bytes = scale.to_le_bytes().to_vec();
    bytes.extend(values.chunks(8).map(|eight| {
        eight.iter().enumerate().fold(0_u8, |byte, (bit, value)| byte | (u8::from(*value >= 0.0) << bit))
    }));
    bytes
}

fn add(bytes: &[u8], factor: f32, values: &mut [f32]) {
    let scale = factor * f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    for (eight, byte) in values.chunks_mut(8).zip(&bytes[4..]) {
        for (bit, value) in eight.iter_mut().enumerate() {
            *value += if byte >> bit & 1 == 1 { scale } else { -scale };
        }
    }
}

/// Root mean square: what makes signs as long as the values.
fn scale(values: &[f32]) -> f32 {
    if values.is_empty() { 0.0 } else { (square_sum(values) / values.len() as f64).sqrt() as f32 }
}

/// Takes `scale * sign(value)` from every value.
fn subtract_signs(values: &mut [f32], scale: f32) {
    values.iter_mut().for_each(|value| *value -= if *value >= 0.0 { scale } else { -scale });
}

impl Signs {
    pub fn new(elements: usize) -> Self {
        Self { own: vec![0.0; elements], shard: Vec::new() }
    }

    pub fn state(&self) -> usize {
        self.own.len() + self.shard.len()
    }

    pub fn kept(&self) -> &[f32] {
        &self.own
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
        memory: bool,
    ) -> Result<Report, X::Error> {
        let (size, rank, length) = (exchange.size(), exchange.rank(), gradient.len());
        let shard = range(length, size, rank);
        self.shard.resize(shard.len(), 0.0);
        self.own.iter_mut().zip(gradient.iter()).for_each(|(error, value)| *error += value);
        let whole = square_sum(&self.own);
        let own_scale = scale(&self.own);
        let parts: Vec<Vec<u8>> =
            (0..size).map(|to| encode(&self.own[range(length, size, to)], own_scale)).collect();
        subtract_signs(&mut self.own, own_scale);
        let report = Report::of(whole, square_sum(&self.own));
        let arrived = exchange.all_to_all(&parts)?;
        let mean = 1.0 / size as f32;
        arrived.iter().for_each(|part| add(part, mean, &mut self.shard));
        let shard_scale = scale(&self.shard);
        let coded = encode(&self.shard, shard_scale);
        subtract_signs(&mut self.shard, shard_scale);
        let all = exchange.all_gather(&coded)?;
        gradient.fill(0.0);
        for (from, part) in all.iter().enumerate() {
            add(part, size as f32, &mut gradient[range(length, size, from)]);
        }
        if !memory {
            self.own.fill(0.0);
            self.shard.fill(0.0);
        }
        Ok(report)
    }
}

pub(crate) fn phases(elements: usize, size: usize) -> Vec<Phase> {
    two_phases(elements, size, |elements| 4 + elements.div_ceil(8))
}
