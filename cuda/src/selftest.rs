//! Self-test of gradient codecs on a GPU, against the host: the encoded bytes and the decoded results, for
//! every codec, over several steps, so that the state between steps is checked too.

use crate::operands::Cuda;
use autodist_codecs::{Compressor, Exchange, PartMut, Tensor};
use autodist_compute::selftest::SelftestResult;
use autodist_compute::{Backend, DeviceError, Region};
use autodist_spec::Codec;
use std::convert::Infallible;

/// Members of the group of a check; this one is not the first.
const SIZE: usize = 3;
const RANK: usize = 1;
const STEPS: usize = 4;
/// The value of guard elements around the gradient, which must not change.
const GUARD: f32 = 12288.0;

/// A matrix, a vector, a matrix with odd sides; the rest belongs to no tensor.
const TENSORS: [Tensor; 3] = [
    Tensor { offset: 0, rows: 48, columns: 40 },
    Tensor { offset: 1920, rows: 1, columns: 37 },
    Tensor { offset: 1957, rows: 45, columns: 71 },
];
/// Lengths of buckets: empty, one number, less than a byte of signs, and odd lengths of several tiles.
const LENGTHS: [usize; 5] = [0, 1, 7, 259, 5171];

/// Every codec with its default parameters and without warm-up, and with odd parameters.
fn codecs() -> Vec<Codec> {
    let others = [
        Codec::Int8 { block: 7 },
        Codec::PowerSgd { rank: 9, start_step: 0 },
        Codec::PowerSgdHalf { rank: 1, start_step: 0 },
        Codec::TopK { per_mille: 333 },
        Codec::Dgc { per_mille: 1000, start_step: 0 },
        // Uncompressed in the first step.
        Codec::PowerSgd { rank: 4, start_step: 1 },
        Codec::Dgc { per_mille: 10, start_step: 1 },
        Codec::Qsgd { levels: 1, bucket: 3000 },
        Codec::Qsgd { levels: 5, bucket: 13 },
    ];
    Codec::DEFAULTS.into_iter().map(Codec::at_once).chain(others).collect()
}

/// The name and the tolerance of a check. Codecs that encode or select single numbers must match exactly.
/// Norms are sums in double precision, in a different order; factors are sums in single precision, and errors
/// carry over between steps.
fn of(codec: Codec) -> (&'static str, f64) {
    match codec {
        Codec::None => ("codec none", 0.0),
        Codec::Fp16 => ("codec fp16", 0.0),
        Codec::Bf16 => ("codec bf16", 0.0),
        Codec::Int8 { .. } => ("codec int8", 0.0),
        Codec::PowerSgd { .. } => ("codec powersgd", 1e-4),
        Codec::PowerSgdHalf { .. } => ("codec powersgd-half", 1e-4),
        Codec::TopK { .. } => ("codec top-k", 0.0),
        Codec::Dgc { .. } => ("codec dgc", 0.0),
        Codec::OneBit => ("codec one-bit", 1e-6),
        Codec::Qsgd { .. } => ("codec qsgd", 1e-6),
        Codec::TernGrad => ("codec terngrad", 1e-6),
        Codec::OneBitAdam { .. } => ("codec one-bit-adam", 1e-6),
    }
}

/// A group whose other members send the same data as this one; it records the data.
#[derive(Default)]
struct Echo {
    bytes: Vec<u8>,
    numbers: Vec<f32>,
}

impl Exchange for Echo {
    type Error = Infallible;

    fn size(&self) -> usize {
        SIZE
    }

    fn rank(&self) -> usize {
        RANK
    }

    fn sum(&mut self, values: &mut [f32]) -> Result<(), Infallible> {
        self.numbers.extend_from_slice(values);
        values.iter_mut().for_each(|value| *value *= SIZE as f32);
        Ok(())
    }

    fn max(&mut self, value: f32) -> Result<f32, Infallible> {
        self.numbers.push(value);
        // Simulates another member with a larger value.
        Ok(1.25 * value)
    }

    fn all_gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>, Infallible> {
        self.bytes.extend_from_slice(own);
        Ok(vec![own.to_vec(); SIZE])
    }

    fn all_to_all(&mut self, parts: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, Infallible> {
        self.bytes.extend(parts.iter().flatten());
        Ok(vec![parts[RANK].clone(); SIZE])
    }
}

/// Numbers of every magnitude, ties and zeros among them.
fn gradient(step: usize, len: usize) -> Vec<f32> {
    let number = |index: usize| {
        let mixed = (step as u64 * 0x9e37_79b9 + index as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
        let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let unit = (mixed >> 40) as f32 / (1_u64 << 23) as f32 - 1.0;
        match index % 11 {
            0 => 0.0,
            1 => 0.5,
            2 => -0.5,
            3 => unit * 1e-6,
            4 => unit * 3e5,
            _ => unit,
        }
    };
    (0..len).map(number).collect()
}

/// Root mean square of the differences, relative to that of the expected numbers.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let square = |x: f64| x * x;
    let pairs = || found.iter().zip(expected).map(|(f, e)| (f64::from(*f), f64::from(*e)));
    let error: f64 = pairs().map(|(found, expected)| square(found - expected)).sum();
    let whole: f64 = pairs().map(|(_, expected)| square(expected)).sum();
    match (error, whole) {
        (0.0, _) => 0.0,
        _ if error.is_nan() => f64::INFINITY,
        _ => (error / if whole > 0.0 { whole } else { 1.0 }).sqrt(),
    }
}

/// Runs every codec on the GPU and on the host. `seen` is called with each check when it is done.
///
/// # Errors
/// The device's own failure, which ends the test.
pub fn codecs_match(
    cuda: &Cuda,
    mut seen: impl FnMut(&SelftestResult),
) -> Result<Vec<SelftestResult>, DeviceError> {
    let mut checks = Vec::new();
    for codec in codecs() {
        for len in LENGTHS {
            let tensors: &[Tensor] = if len > 5000 { &TENSORS } else { &[] };
            for (lead, memory) in [(0, true), (3, false)] {
                let check = Case { codec, tensors, len, lead, memory }.run(cuda)?;
                seen(&check);
                checks.push(check);
            }
        }
    }
    Ok(checks)
}

struct Case<'a> {
    codec: Codec,
    tensors: &'a [Tensor],
    len: usize,
    /// Guards before the gradient.
    lead: usize,
    /// Whether the codec has error feedback.
    memory: bool,
}

impl Case<'_> {
    fn run(&self, cuda: &Cuda) -> Result<SelftestResult, DeviceError> {
        let Self { codec, tensors, len, lead, memory } = *self;
        let mut host = Compressor::new(codec, tensors, len, 7);
        let mut device = Compressor::on(cuda, codec, tensors, len, 7);
        if !memory {
            (host, device) = (host.without_error_feedback(), device.without_error_feedback());
        }
        let mut error: f64 = 0.0;
        for step in 0..STEPS {
            let mut expected = gradient(step, len);
            let guarded = [&vec![GUARD; lead][..], &expected, &[GUARD; 2]].concat();
            let mut buffer = cuda.upload_full(&guarded);
            let (mut said, mut heard) = (Echo::default(), Echo::default());
            let Ok(report) = host.reduce(&mut expected, &mut said);
            let part = PartMut::new(&mut buffer, lead..lead + len);
            let Ok(reported) = device.reduce_on(cuda, part, &mut heard);
            let mut found = vec![0.0; guarded.len()];
            cuda.download(Region::start(&buffer), &mut found);
            cuda.synchronise()?;
            let intact = found[..lead].iter().chain(&found[lead + len..]).all(|guard| *guard == GUARD);
            let same_length = said.bytes.len() == heard.bytes.len();
            let wrong = said.bytes.iter().zip(&heard.bytes).filter(|(said, heard)| said != heard).count();
            let reports = |report: &autodist_codecs::CodingQuality| {
                [report.contraction as f32, report.error_norm as f32]
            };
            let differences = [
                if intact && same_length && host.state_bytes() == device.state_bytes() {
                    0.0
                } else {
                    f64::INFINITY
                },
                wrong as f64 / said.bytes.len().max(1) as f64,
                apart(&heard.numbers, &said.numbers),
                apart(&found[lead..lead + len], &expected),
                // The quality is in single precision, so small differences are allowed.
                (apart(&reports(&reported), &reports(&report)) - 1e-5).max(0.0),
            ];
            error = differences.into_iter().fold(error, f64::max);
        }
        let feedback = if memory { "" } else { ", no error feedback" };
        let case = format!("{}, {len} elements, offset {lead}{feedback}", codec.name());
        let (what, tolerance) = of(codec);
        Ok(SelftestResult { what, case, error, tolerance })
    }
}
