//! The largest entries alone: with error feedback (Stich et al., 1809.07599), or with momentum correction and masking
//! (Lin et al., Deep Gradient Compression, 1712.01887, sections 3.1 and 3.2).

use crate::arithmetic::{Arithmetic, Part, PartMut};
use crate::{Exchange, Phase, Report};

/// Momentum of the correction (1712.01887, section 4).
const MOMENTUM: f32 = 0.9;
/// Magnitudes are sorted into bins by their upper bits: sign dropped, exponent and some mantissa.
const BIN_SHIFT: u32 = 15;
const BINS: usize = 1 << 16;

pub(crate) struct Sparse<A: Arithmetic> {
    count: usize,
    /// What has not been sent yet.
    pending: A::Owned,
    /// Velocity of what has not been sent yet, with momentum correction.
    velocity: Option<A::Owned>,
}

/// Entries that are sent of `elements`: at least one, where there is one.
pub(crate) fn count(elements: usize, per_mille: u32) -> usize {
    (elements * per_mille as usize).div_ceil(1000).min(elements)
}

impl<A: Arithmetic> Sparse<A> {
    pub fn new(on: &A, elements: usize, per_mille: u32, momentum: bool) -> Self {
        let velocity = momentum.then(|| on.zeros(elements));
        Self { count: count(elements, per_mille), pending: on.zeros(elements), velocity }
    }

    pub fn state(&self) -> usize {
        let len = |owned: &A::Owned| Part::<A>::whole(owned).len();
        len(&self.pending) + self.velocity.as_ref().map_or(0, len)
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
        memory: bool,
    ) -> Result<Report, X::Error> {
        let mut pending = PartMut::<A>::whole(&mut self.pending);
        let mut velocity = self.velocity.as_mut().map(PartMut::<A>::whole);
        let whole = match &mut velocity {
            Some(velocity) => {
                on.add_with_momentum(MOMENTUM, gradient.read(), velocity.again(), pending.again())
            }
            None => on.add(gradient.read(), pending.again()),
        };
        let (coded, sent) =
            on.take_largest(self.count, pending.again(), velocity.as_mut().map(PartMut::again));
        let (whole, sent) = (on.read(&whole), on.read(&sent));
        // Rounded apart, the two may differ by a little where everything is sent.
        let report = Report::of(whole, (whole - sent).max(0.0));
        let all = exchange.all_gather(&on.fetch(vec![coded])[0])?;
        on.fill_zero(gradient.again());
        all.into_iter().for_each(|part| on.add_entries(&on.bring(part), gradient.again()));
        if !memory {
            on.fill_zero(pending);
            velocity.into_iter().for_each(|velocity| on.fill_zero(velocity));
        }
        Ok(report)
    }
}

/// The `count` values of greatest magnitude as they travel, and the sum of their squares; in their places zeros are left.
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

/// Adds entries to where their indices say.
pub(crate) fn add(bytes: &[u8], values: &mut [f32]) {
    for entry in bytes.chunks_exact(8) {
        let index = u32::from_le_bytes([entry[0], entry[1], entry[2], entry[3]]) as usize;
        if let Some(value) = values.get_mut(index) {
            *value += f32::from_le_bytes([entry[4], entry[5], entry[6], entry[7]]);
        }
    }
}

/// Indices of the `count` values of greatest magnitude, ascending; of equal ones the first.
fn largest(values: &[f32], count: usize) -> Vec<usize> {
    let bin = |value: &f32| ((value.to_bits() & 0x7FFF_FFFF) >> BIN_SHIFT) as usize;
    let mut bins = vec![0_u32; BINS];
    values.iter().for_each(|value| bins[bin(value)] += 1);
    // The bin in which the count is reached: all above it are sent, and some of its own.
    let (mut above, mut edge) = (0, BINS);
    while above < count && edge > 0 {
        edge -= 1;
        above += bins[edge] as usize;
    }
    let mut chosen = Vec::with_capacity(count);
    let mut candidates = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let own = bin(value);
        if own > edge {
            chosen.push(index);
        } else if own == edge {
            candidates.push(index);
        }
    }
    let missing = count - chosen.len().min(count);
    candidates.sort_by(|a, b| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b)));
    chosen.extend(candidates.into_iter().take(missing));
    chosen.sort_unstable();
    chosen
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
