//! Unbiased stochastic rounding: QSGD (Alistarh et al., 1610.02132, section 3.1) and TernGrad (Wen et al.,
//! 1705.07878, sections 3 and 4). Nothing is kept between steps.

use crate::arithmetic::{Arithmetic, Levels, PartMut, Scale};
use crate::host::square_sum;
use crate::{CodingQuality, Exchange, Phase};

/// TernGrad clips at this many standard deviations.
const CLIP: f64 = 2.5;

#[derive(Debug)]
pub(crate) struct Random {
    /// Levels, and elements per norm; `None` for TernGrad.
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

/// Reads the codes that a [`Packer`] wrote.
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

    pub fn reduce<A: Arithmetic, X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
    ) -> Result<CodingQuality, X::Error> {
        // Each member and each step has its own random numbers.
        let state =
            self.seed ^ (self.step << 20) ^ (exchange.rank() as u64).wrapping_mul(0xA24B_AED4_963E_E407);
        self.step += 1;
        let levels = match self.levels {
            Some((levels, bucket)) => Levels { levels, scale: Scale::Norms { bucket } },
            None => {
                let squares = on.read(&on.square_sum(gradient.read()));
                let deviation = (squares / gradient.len().max(1) as f64).sqrt();
                on.clamp((CLIP * deviation) as f32, gradient.again());
                let largest = exchange.max(on.largest_magnitude(gradient.read()))?;
                Levels { levels: 1, scale: Scale::Common(largest) }
            }
        };
        let squares = on.square_sum(gradient.read());
        let (coded, lost) = on.encode_levels(levels, state, gradient.read());
        let report = CodingQuality::of(on.read(&squares), on.read(&lost));
        let all = exchange.all_gather(&on.fetch(vec![coded])[0])?;
        on.fill_zero(gradient.again());
        all.into_iter().for_each(|part| on.add_levels(levels, &on.bring(part), gradient.again()));
        // The codec does not keep the error.
        Ok(CodingQuality { error_norm: 0.0, ..report })
    }
}

/// Returns the encoded levels and the squared norm of the rounding error.
pub(crate) fn encode(levels: Levels, mut state: u64, values: &[f32]) -> (Vec<u8>, f64) {
    let whole = levels.levels;
    let mut bytes = Vec::with_capacity(levels.bytes(values.len()));
    let (scales, bucket): (Vec<f32>, usize) = match levels.scale {
        Scale::Norms { bucket } => {
            (values.chunks(bucket).map(|part| square_sum(part).sqrt() as f32).collect(), bucket)
        }
        Scale::Common(scale) => (vec![scale], values.len().max(1)),
    };
    scales[..levels.norms(values.len())]
        .iter()
        .for_each(|scale| bytes.extend_from_slice(&scale.to_le_bytes()));
    let mut lost = 0.0;
    let mut packer = Packer { width: levels.width(), buffer: 0, held: 0, bytes };
    for (part, scale) in values.chunks(bucket).zip(&scales) {
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
    (packer.finish(), lost)
}

/// Decodes levels and adds them to `values`.
pub(crate) fn add(levels: Levels, bytes: &[u8], values: &mut [f32]) {
    let whole = levels.levels;
    let (head, coded) = bytes.split_at(4 * levels.norms(values.len()));
    let (scales, bucket): (Vec<f32>, usize) = match levels.scale {
        Scale::Norms { bucket } => {
            (head.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(), bucket)
        }
        Scale::Common(scale) => (vec![scale], values.len().max(1)),
    };
    let mut unpacker = Unpacker { width: levels.width(), buffer: 0, held: 0, bytes: coded };
    for (part, scale) in values.chunks_mut(bucket).zip(&scales) {
        let step = scale / whole as f32;
        for value in part {
            let Some(code) = unpacker.next() else { break };
            *value += (code as i32 - whole as i32) as f32 * step;
        }
    }
}

pub(crate) fn phases(levels: Option<(u32, usize)>, elements: usize, size: usize) -> Vec<Phase> {
    match levels {
        Some((levels, bucket)) => {
            let bytes = Levels { levels, scale: Scale::Norms { bucket } }.bytes(elements);
            vec![Phase::AllGather { bytes: vec![bytes; size] }]
        }
        None => {
            let bytes = Levels { levels: 1, scale: Scale::Common(0.0) }.bytes(elements);
            vec![Phase::Max, Phase::AllGather { bytes: vec![bytes; size] }]
        }
    }
}
