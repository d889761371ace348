//! The largest entries alone: with error feedback (Stich et al., 1809.07599), or with momentum correction and masking
//! (Lin et al., Deep Gradient Compression, 1712.01887, sections 3.1 and 3.2).

use crate::{Exchange, Phase, Report, square_sum, vectorised};
use std::cmp::Ordering;

/// Momentum of the correction (1712.01887, section 4).
const MOMENTUM: f32 = 0.9;
/// The bits of an fp32 number without its sign: as integers they are in the order of the magnitudes.
const MAGNITUDE: u32 = 0x7FFF_FFFF;

#[derive(Debug)]
pub(crate) struct Sparse {
    count: usize,
    /// What has not been sent yet.
    pending: Vec<f32>,
    /// Velocity of what has not been sent yet; empty without momentum correction.
    velocity: Vec<f32>,
}

/// Entries that are sent of `elements`: at least one, where there is one.
fn count(elements: usize, per_mille: u32) -> usize {
    (elements * per_mille as usize).div_ceil(1000).min(elements)
}

impl Sparse {
    pub fn new(elements: usize, per_mille: u32, momentum: bool) -> Self {
        let velocity = if momentum { vec![0.0; elements] } else { Vec::new() };
        Self { count: count(elements, per_mille), pending: vec![0.0; elements], velocity }
    }

    pub fn state(&self) -> usize {
        self.pending.len() + self.velocity.len()
    }

    pub fn kept(&self) -> &[f32] {
        &self.pending
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
        memory: bool,
    ) -> Result<Report, X::Error> {
        let whole = if self.velocity.is_empty() {
            add(&mut self.pending, gradient)
        } else {
            add_with_momentum(&mut self.pending, &mut self.velocity, gradient)
        };
        let mut coded = Vec::with_capacity(8 * self.count);
        let mut sent = 0.0;
        for index in largest(&self.pending, self.count) {
            let value = std::mem::take(&mut self.pending[index]);
            sent += f64::from(value).powi(2);
            coded.extend_from_slice(&(index as u32).to_le_bytes());
            coded.extend_from_slice(&value.to_le_bytes());
            if let Some(velocity) = self.velocity.get_mut(index) {
                *velocity = 0.0;
            }
        }
        let report = Report::of(whole, (whole - sent).max(0.0));
        let all = exchange.all_gather(&coded)?;
        gradient.fill(0.0);
        for entry in all.iter().flat_map(|part| part.chunks_exact(8)) {
            let index = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
            if let Some(value) = gradient.get_mut(index) {
                *value += f32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
            }
        }
        if !memory {
            self.pending.fill(0.0);
            self.velocity.fill(0.0);
        }
        Ok(report)
    }
}

/// Elements that are worked on together while they are in the nearest cache.
const STRETCH: usize = 4096;

/// Adds the gradient; returns the sum of squares of the result.
fn add(pending: &mut [f32], gradient: &[f32]) -> f64 {
    let stretches = pending.chunks_mut(STRETCH).zip(gradient.chunks(STRETCH));
    let squares = stretches.map(|(pending, gradient)| {
        vectorised(|| {
            pending.iter_mut().zip(gradient).for_each(|(pending, g)| *pending += g);
            square_sum(pending)
        })
    });
    squares.sum()
}

/// The gradient joins the velocity, and that what is pending; returns the sum of squares of the latter.
fn add_with_momentum(pending: &mut [f32], velocity: &mut [f32], gradient: &[f32]) -> f64 {
    let stretches =
        pending.chunks_mut(STRETCH).zip(velocity.chunks_mut(STRETCH)).zip(gradient.chunks(STRETCH));
    let squares = stretches.map(|((pending, velocity), gradient)| {
        vectorised(|| {
            for ((pending, velocity), g) in pending.iter_mut().zip(velocity).zip(gradient) {
                *velocity = MOMENTUM * *velocity + g;
                *pending += *velocity;
            }
            square_sum(pending)
        })
    });
    squares.sum()
}

/// Of the values every so many are looked at for a first guess of the least magnitude that is sent.
const SAMPLED: usize = 61;

/// Indices of the `count` values of greatest magnitude, ascending; of equal ones the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    if count == 0 || count >= values.len() {
        return (0..count.min(values.len())).collect();
    }
    let guess = guess(values, count);
    let mut candidates = at_least(values, guess);
    if candidates.len() < count {
        // Too few: the sample was not like the whole.
        candidates = (0..values.len() as u32).collect();
    }
    let magnitude = |index: &u32| values[*index as usize].to_bits() & MAGNITUDE;
    let mut sorted: Vec<u32> = candidates.iter().map(magnitude).collect();
    let place = sorted.len() - count;
    let (_, least, above) = sorted.select_nth_unstable(place);
    let least = *least;
    // Above, some are equal to the least; of these the first are taken.
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

/// A magnitude, as bits, that somewhat more than `count` of the values reach, as far as a sample tells.
fn guess(values: &[f32], count: usize) -> u32 {
    let mut sample: Vec<u32> = values.iter().step_by(SAMPLED).map(|v| v.to_bits() & MAGNITUDE).collect();
    let expected = count as f64 * sample.len() as f64 / values.len() as f64;
    // Four standard deviations more.
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
            // Most stretches have none: that is seen without a branch per value.
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
