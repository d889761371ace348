//! Random rounding, right on average: QSGD (Alistarh et al., 1610.02132, section 3.1) and TernGrad (Wen et al.,
//! 1705.07878, sections 3 and 4). Nothing is kept between steps.

use crate::{Exchange, Phase, Report, square_sum};

/// Standard deviations beyond which TernGrad clips.
const CLIP: f64 = 2.5;

#[derive(Debug)]
pub(crate) struct Random {
    /// Levels and elements of one norm; TernGrad has neither.
    levels: Option<(u32, usize)>,
    seed: u64,
    step: u64,
}

/// The next number of a counter-based sequence (splitmix64), from 0 to 1.
fn uniform(state: &mut u64) -> f32 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let mut mixed = *state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1_u64 << 24) as f32
}

/// Bits of a level from `-levels` to `levels`.
fn bits(levels: u32) -> usize {
    (u32::BITS - (2 * levels).leading_zeros()) as usize
}

/// Writes codes of `width` bits, at most 8, one behind the other.
struct Packer {
    width: usize,
    buffer: u64,
    held: usize,
    bytes: Vec<u8>,
}

impl Packer {
    fn push(&mut self, code: u32) {
        self.buffer |= u64::from(code) << self.held;
        self.held += self.width;
        if self.held >= 32 {
            self.bytes.extend_from_slice(&(self.buffer as u32).to_le_bytes());
            self.buffer >>= 32;
            self.held -= 32;
        }
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&self.buffer.to_le_bytes()[..self.held.div_ceil(8)]);
        self.bytes
    }
}

/// Reads what a [`Packer`] wrote.
struct Unpacker<'a> {
    width: usize,
    buffer: u64,
    held: usize,
    bytes: &'a [u8],
}

impl Unpacker<'_> {
    fn next(&mut self) -> Option<u32> {
        if self.held < self.width {
            let (four, rest) = self.bytes.split_at(self.bytes.len().min(4));
            for byte in four {
                self.buffer |= u64::from(*byte) << self.held;
                self.held += 8;
            }
            self.bytes = rest;
        }
        let code = (self.buffer & ((1 << self.width) - 1)) as u32;
        self.buffer >>= self.width;
        self.held = self.held.checked_sub(self.width)?;
        Some(code)
    }
}

impl Random {
    pub fn qsgd(levels: u32, bucket: usize, seed: u64) -> Self {
        Self { levels: Some((levels, bucket)), seed, step: 0 }
    }

    pub fn terngrad(seed: u64) -> Self {
        Self { levels: None, seed, step: 0 }
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
    ) -> Result<Report, X::Error> {
        // No two members and no two steps draw the same numbers.
        let mut state =
            self.seed ^ (self.step << 20) ^ (exchange.rank() as u64).wrapping_mul(0xA24B_AED4_963E_E407);
        self.step += 1;
        let (whole, bucket, width) = match self.levels {
            Some((levels, bucket)) => (levels, bucket, bits(levels)),
            None => (1, gradient.len().max(1), 2),
        };
        let scales: Vec<f32> = match self.levels {
            Some(_) => gradient.chunks(bucket).map(|part| square_sum(part).sqrt() as f32).collect(),
            None => {
                let deviation = (square_sum(gradient) / gradient.len().max(1) as f64).sqrt();
                let limit = (CLIP * deviation) as f32;
                gradient.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
                let largest = gradient.iter().fold(0.0_f32, |most, value| most.max(value.abs()));
                vec![exchange.max(largest)?]
            }
        };
        let squares = square_sum(gradient);
        let mut lost = 0.0;
        let mut bytes = Vec::with_capacity(4 * scales.len() + (gradient.len() * width).div_ceil(8));
        if self.levels.is_some() {
            scales.iter().for_each(|scale| bytes.extend_from_slice(&scale.to_le_bytes()));
        }
        let mut packer = Packer { width, buffer: 0, held: 0, bytes };
        for (part, scale) in gradient.chunks(bucket).zip(&scales) {
            let step = scale / whole as f32;
            let inverse = if *scale > 0.0 { whole as f32 / scale } else { 0.0 };
            for value in part {
                let exact = (value.abs() * inverse).min(whole as f32);
                let below = exact as u32;
                let level = (below + u32::from(uniform(&mut state) < exact - below as f32)).min(whole);
                let signed = if *value < 0.0 { -(level as i32) } else { level as i32 };
                let missed = f64::from(signed as f32 * step - value);
                lost += missed * missed;
                packer.push((signed + whole as i32) as u32);
            }
        }
        let all = exchange.all_gather(&packer.finish())?;
        gradient.fill(0.0);
        for part in &all {
            let (scales, coded) = match self.levels {
                Some(_) => {
                    let (head, coded) = part.split_at(4 * gradient.len().div_ceil(bucket));
                    let scale = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    (head.chunks_exact(4).map(scale).collect(), coded)
                }
                None => (scales.clone(), part.as_slice()),
            };
            let mut unpacker = Unpacker { width, buffer: 0, held: 0, bytes: coded };
            for (part, scale) in gradient.chunks_mut(bucket).zip(&scales) {
                let step = scale / whole as f32;
                for value in part {
                    let Some(code) = unpacker.next() else { break };
                    *value += (code as i32 - whole as i32) as f32 * step;
                }
            }
        }
        // Nothing of it is kept.
        Ok(Report { error_norm: 0.0, ..Report::of(squares, lost) })
    }
}

pub(crate) fn phases(levels: Option<(u32, usize)>, elements: usize, size: usize) -> Vec<Phase> {
    match levels {
        Some((levels, bucket)) => {
            let bytes = 4 * elements.div_ceil(bucket) + (elements * bits(levels)).div_ceil(8);
            vec![Phase::AllGather { bytes: vec![bytes; size] }]
        }
        None => vec![Phase::Max, Phase::AllGather { bytes: vec![(2 * elements).div_ceil(8); size] }],
    }
}
