//! Random rounding, right on average: QSGD (Alistarh et al., 1610.02132, section 3.1) and TernGrad (Wen et al.,
//! 1705.07878, sections 3 and 4). Nothing is kept between steps.

use crate::arithmetic::{Arithmetic, Levels, PartMut, Scale};
use crate::host::square_sum;
use crate::{Exchange, Phase, Report};

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

fn pack(codes: impl Iterator<Item = u32>, width: usize, bytes: &mut Vec<u8>) {
    let (mut buffer, mut held) = (0_u64, 0);
    for code in codes {
        buffer |= u64::from(code) << held;
        held += width;
        while held >= 8 {
            bytes.push(buffer as u8);
            buffer >>= 8;
            held -= 8;
        }
    }
    if held > 0 {
        bytes.push(buffer as u8);
    }
}

fn unpack(bytes: &[u8], width: usize, mut take: impl FnMut(u32) -> bool) {
    let (mut buffer, mut held) = (0_u64, 0);
    for byte in bytes {
        buffer |= u64::from(*byte) << held;
        held += 8;
        while held >= width {
            if !take((buffer & ((1 << width) - 1)) as u32) {
                return;
            }
            buffer >>= width;
            held -= width;
        }
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
    ) -> Result<Report, X::Error> {
        // No two members and no two steps draw the same numbers.
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
        let report = Report::of(on.read(&squares), on.read(&lost));
        let all = exchange.all_gather(&on.fetch(vec![coded])[0])?;
        on.fill_zero(gradient.again());
        all.into_iter().for_each(|part| on.add_levels(levels, &on.bring(part), gradient.again()));
        // Nothing of it is kept.
        Ok(Report { error_norm: 0.0, ..report })
    }
}

/// Levels as they travel, and how much of the squared norm they lose.
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
    let codes = values.iter().enumerate().map(|(index, value)| {
        let scale = scales[index / bucket];
        let (step, inverse) = (scale / whole as f32, if scale > 0.0 { whole as f32 / scale } else { 0.0 });
        let exact = (value.abs() * inverse).min(whole as f32);
        let below = exact as u32;
        let level = (below + u32::from(uniform(&mut state) < exact - below as f32)).min(whole);
        let signed = if *value < 0.0 { -(level as i32) } else { level as i32 };
        lost += f64::from(signed as f32 * step - value).powi(2);
        (signed + whole as i32) as u32
    });
    pack(codes, levels.width(), &mut bytes);
    (bytes, lost)
}

/// Adds what levels say.
pub(crate) fn add(levels: Levels, bytes: &[u8], values: &mut [f32]) {
    let whole = levels.levels;
    let (head, coded) = bytes.split_at(4 * levels.norms(values.len()));
    let (scales, bucket): (Vec<f32>, usize) = match levels.scale {
        Scale::Norms { bucket } => {
            (head.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(), bucket)
        }
        Scale::Common(scale) => (vec![scale], values.len().max(1)),
    };
    let mut index = 0;
    unpack(coded, levels.width(), |code| {
        let Some(value) = values.get_mut(index) else { return false };
        *value += (code as i32 - whole as i32) as f32 * (scales[index / bucket] / whole as f32);
        index += 1;
        true
    });
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
