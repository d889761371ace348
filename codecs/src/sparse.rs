//! The largest entries alone: with error feedback (Stich et al., 1809.07599), or with momentum correction and masking
//! (Lin et al., Deep Gradient Compression, 1712.01887, sections 3.1 and 3.2).

use crate::{Exchange, Phase, Report, square_sum};

/// Momentum of the correction (1712.01887, section 4).
const MOMENTUM: f32 = 0.9;
/// Magnitudes are sorted into bins by their upper bits: sign dropped, exponent and some mantissa.
const BIN_SHIFT: u32 = 15;
const BINS: usize = 1 << 16;

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
        if self.velocity.is_empty() {
            self.pending.iter_mut().zip(gradient.iter()).for_each(|(pending, g)| *pending += g);
        } else {
            for ((pending, velocity), g) in
                self.pending.iter_mut().zip(&mut self.velocity).zip(gradient.iter())
            {
                *velocity = MOMENTUM * *velocity + g;
                *pending += *velocity;
            }
        }
        let whole = square_sum(&self.pending);
        let mut coded = Vec::with_capacity(8 * self.count);
        for index in largest(&self.pending, self.count) {
            coded.extend_from_slice(&(index as u32).to_le_bytes());
            coded.extend_from_slice(&self.pending[index].to_le_bytes());
            self.pending[index] = 0.0;
            if let Some(velocity) = self.velocity.get_mut(index) {
                *velocity = 0.0;
            }
        }
        let report = Report::of(whole, square_sum(&self.pending));
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
