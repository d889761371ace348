//! Only the largest entries: with error feedback (Stich et al., 1809.07599), or with momentum correction and
//! masking (Lin et al., Deep Gradient Compression, 1712.01887, sections 3.1 and 3.2).

use crate::arithmetic::{Arithmetic, Part, PartMut};
use crate::host::{square_sum, vectorised};
use crate::{CodingQuality, Exchange, Phase};
use std::cmp::Ordering;

/// Default momentum of the correction (1712.01887, section 4).
const MOMENTUM: f32 = 0.9;
/// The bits of an fp32 number without its sign: as integers, they are ordered by magnitude.
const MAGNITUDE: u32 = 0x7FFF_FFFF;

pub(crate) struct Sparse<A: Arithmetic> {
    count: usize,
    /// Error feedback: the part that has not been sent yet.
    pending: A::Owned,
    /// Velocity of the part that has not been sent yet, with momentum correction.
    velocity: Option<A::Owned>,
    momentum: f32,
    /// Remaining steps that send everything uncompressed and still update the velocity.
    whole_steps: u64,
}

/// Number of entries to send of `elements`: at least one, unless `elements` is 0.
pub(crate) fn count(elements: usize, per_mille: u32) -> usize {
    (elements * per_mille as usize).div_ceil(1000).min(elements)
}

impl<A: Arithmetic> Sparse<A> {
    pub fn new(on: &A, elements: usize, per_mille: u32, momentum: bool) -> Self {
        let velocity = momentum.then(|| on.zeros(elements));
        Self {
            count: count(elements, per_mille),
            pending: on.zeros(elements),
            velocity,
            momentum: MOMENTUM,
            whole_steps: 0,
        }
    }

    pub fn set_momentum(&mut self, momentum: f32) {
        self.momentum = momentum;
    }

    pub fn starting_at(self, step: u32) -> Self {
        Self { whole_steps: u64::from(step), ..self }
    }

    pub fn end_warmup(&mut self) {
        self.whole_steps = 0;
    }

    /// Sends all of the velocity from now on: the codec keeps the momentum, because the optimizer has no
    /// momentum. Returns false if the codec has no momentum.
    pub fn send_whole(&mut self) -> bool {
        self.whole_steps = u64::MAX;
        self.velocity.is_some()
    }

    pub fn state(&self) -> usize {
        let len = |owned: &A::Owned| Part::<A>::whole(owned).len();
        len(&self.pending) + self.velocity.as_ref().map_or(0, len)
    }

    pub fn kept(&self) -> &A::Owned {
        &self.pending
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
        memory: bool,
    ) -> Result<CodingQuality, X::Error> {
        let mut pending = PartMut::<A>::whole(&mut self.pending);
        let mut velocity = self.velocity.as_mut().map(PartMut::<A>::whole);
        let whole = match &mut velocity {
            Some(velocity) => {
                on.add_with_momentum(self.momentum, gradient.read(), velocity.again(), pending.again())
            }
            None => on.add(gradient.read(), pending.again()),
        };
        if self.whole_steps > 0 {
            self.whole_steps -= 1;
            on.copy(pending.read(), gradient.again());
            on.fill_zero(pending);
            return on.on_host(gradient, |values| exchange.sum(values)).map(|()| CodingQuality::LOSSLESS);
        }
        let (coded, sent) =
            on.take_largest(self.count, pending.again(), velocity.as_mut().map(PartMut::again));
        let (whole, sent) = (on.read(&whole), on.read(&sent));
        // Because of rounding, the two may differ slightly even if everything is sent.
        let report = CodingQuality::of(whole, (whole - sent).max(0.0));
        let all = exchange.all_gather(&on.fetch(vec![coded])[0])?;
        on.fill_zero(gradient.again());
        all.into_iter().for_each(|part| on.add_entries(&on.bring(part), gradient.again()));
        if !memory {
            on.fill_zero(pending);
        }
        Ok(report)
    }
}

/// Removes the `count` values of greatest magnitude; returns them encoded, with the sum of their squares.
/// Their places are set to zero.
pub(crate) fn take_largest(
    values: &mut [f32],
    mut velocity: Option<&mut [f32]>,
    count: usize,
) -> (Vec<u8>, f64) {
    let mut coded = Vec::with_capacity(8 * count);
    let mut squares = 0.0;
    for index in largest(values, count) {
        let value = std::mem::take(&mut values[index]);
        squares += f64::from(value).powi(2);
        coded.extend_from_slice(&(index as u32).to_le_bytes());
        coded.extend_from_slice(&value.to_le_bytes());
        if let Some(velocity) = &mut velocity {
            velocity[index] = 0.0;
        }
    }
    (coded, squares)
}

/// Adds each entry at its index.
pub(crate) fn add(bytes: &[u8], values: &mut [f32]) {
    for entry in bytes.chunks_exact(8) {
        let index = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        if let Some(value) = values.get_mut(index) {
            *value += f32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        }
    }
}

/// Elements processed at a time, so that they stay in the nearest cache.
const STRETCH: usize = 4096;

/// Adds the gradient; returns the sum of squares of the result.
pub(crate) fn add_up(pending: &mut [f32], gradient: &[f32]) -> f64 {
    let stretches = pending.chunks_mut(STRETCH).zip(gradient.chunks(STRETCH));
    let squares = stretches.map(|(pending, gradient)| {
        vectorised(|| {
            pending.iter_mut().zip(gradient).for_each(|(pending, g)| *pending += g);
            square_sum(pending)
        })
    });
    squares.sum()
}

/// Adds the gradient to the decayed velocity, and the velocity to `pending`; returns the sum of squares of
/// `pending`.
pub(crate) fn add_with_momentum(
    decay: f32,
    pending: &mut [f32],
    velocity: &mut [f32],
    gradient: &[f32],
) -> f64 {
    let stretches =
        pending.chunks_mut(STRETCH).zip(velocity.chunks_mut(STRETCH)).zip(gradient.chunks(STRETCH));
    let squares = stretches.map(|((pending, velocity), gradient)| {
        vectorised(|| {
            for ((pending, velocity), g) in pending.iter_mut().zip(velocity).zip(gradient) {
                *velocity = decay * *velocity + g;
                *pending += *velocity;
            }
            square_sum(pending)
        })
    });
    squares.sum()
}

/// One value in this many is sampled for a first estimate of the smallest magnitude to send.
const SAMPLED: usize = 61;

/// Indices of the `count` values of greatest magnitude, ascending; among equal ones, the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    if count == 0 || count >= values.len() {
        return (0..count.min(values.len())).collect();
    }
    let guess = guess(values, count);
    let mut candidates = at_least(values, guess);
    if candidates.len() < count {
        // Too few: the sample was not representative.
        candidates = (0..values.len() as u32).collect();
    }
    let magnitude = |index: &u32| values[*index as usize].to_bits() & MAGNITUDE;
    let mut sorted: Vec<u32> = candidates.iter().map(magnitude).collect();
    let place = sorted.len() - count;
    let (_, least, above) = sorted.select_nth_unstable(place);
    let least = *least;
    // If several values equal the threshold, the first ones are taken.
    let mut equal = count - above.iter().filter(|magnitude| **magnitude > least).count();
    candidates.retain(|index| match magnitude(index).cmp(&least) {
        Ordering::Greater => true,
        Ordering::Equal if equal > 0 => {
            equal -= 1;
            true
        }
        Ordering::Equal | Ordering::Less => false,
    });
    candidates.into_iter().map(|index| index as usize).collect()
}

/// A magnitude, as bits, that slightly more than `count` of the values reach, estimated from a sample.
fn guess(values: &[f32], count: usize) -> u32 {
    let mut sample: Vec<u32> = values.iter().step_by(SAMPLED).map(|v| v.to_bits() & MAGNITUDE).collect();
    let expected = count as f64 * sample.len() as f64 / values.len() as f64;
    // A margin of four standard deviations.
    let wanted = (expected + 4.0 * expected.sqrt() + 4.0) as usize;
    if wanted >= sample.len() {
        return 0;
    }
    let place = sample.len() - wanted;
    *sample.select_nth_unstable(place).1
}

/// Indices of the values whose magnitude, as bits, is `least` or more.
fn at_least(values: &[f32], least: u32) -> Vec<u32> {
    const SOME: usize = 16;
    let mut found = Vec::new();
    vectorised(|| {
        for (index, some) in values.chunks(SOME).enumerate() {
            // Most blocks have no such value, which is checked without a branch per value.
            if !some.iter().fold(false, |any, value| any | (value.to_bits() & MAGNITUDE >= least)) {
                continue;
            }
            for (at, value) in some.iter().enumerate() {
                if value.to_bits() & MAGNITUDE >= least {
                    found.push((SOME * index + at) as u32);
                }
            }
        }
    });
    found
}

pub(crate) fn phases(elements: usize, per_mille: u32, size: usize) -> Vec<Phase> {
    vec![Phase::AllGather { bytes: vec![8 * count(elements, per_mille); size] }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_those_that_sorting_finds() {
        let values: Vec<f32> = (0..5000_u64).map(|i| ((i * 7919) % 4801) as f32 - 2400.0).collect();
        for count in [0, 1, 7, 500, 4999, 5000] {
            let mut sorted: Vec<usize> = (0..values.len()).collect();
            sorted.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
            sorted.truncate(count);
            sorted.sort_unstable();
            assert_eq!(largest(&values, count), sorted);
        }
    }
}
