//! What kernels cost on one device.

use crate::attention::AttentionModel;
use crate::catalogue::Catalogue;
use crate::gemm::{Chip, GemmModel, GemmTime};
use crate::nearest::nearest;
use crate::parameters::{AttentionParameters, GemmParameters, KernelParameters};
use crate::{Attention, AttentionKernel, Dtype, PredictedTime};
use autodist_spec::catalog::DeviceFigures;
use autodist_spec::{Cluster, FlopsPerSecond, InputError, Provenance, Seconds};

/// Spread of predictions for devices that were not measured: two thirds of what was measured of each device lie within it
/// when told from the others' parameters (`fit::check_devices`).
const OTHER_DEVICE: f64 = 0.25;

/// Spread of the backward pass of attention, which no table has: as far as its part of the peak differs between the
/// shapes of the publication that [`BACKWARD_OVER_FORWARD`] stands on; assumed.
const BACKWARD_SPREAD: f64 = 0.2;

/// What the backward pass of flash attention takes of the forward one's time: it has five products where that has two,
/// and reached 63 % of an A100's peak where that reached 73 % (FlashAttention-2, Dao 2023; recalled).
pub const BACKWARD_OVER_FORWARD: f64 = 2.5 * 73.0 / 63.0;

/// What kernels cost on one device. Made once, asked often.
#[derive(Debug, Clone)]
pub struct DeviceModel {
    figures: DeviceFigures,
    gemm: [Fitted<GemmModel>; 6],
    /// By size of heads; at least one.
    attention: Vec<(u64, Fitted<AttentionModel>)>,
    stream: f64,
    launch: f64,
}

/// A model, and how far it is to be trusted.
#[derive(Debug, Clone)]
struct Fitted<T> {
    model: T,
    spread: f64,
    spread_between: f64,
    provenance: Provenance,
}

impl<T> Fitted<T> {
    fn price(&self, (seconds, on_points): (f64, bool), within: bool) -> PredictedTime {
        let spread = if on_points { self.spread } else { self.spread_between };
        if within {
            PredictedTime::new(seconds, spread, self.provenance)
        } else {
            PredictedTime::new(seconds, 2.0 * spread, Provenance::Extrapolated)
        }
    }
}

/// Peak rate of a type; of the next wider one where the device has no such arithmetic.
pub(crate) fn peak(figures: &DeviceFigures, dtype: Dtype) -> FlopsPerSecond {
    let peaks = &figures.peaks;
    let own = match dtype {
        Dtype::Fp32 => peaks.fp32,
        Dtype::Tf32 => peaks.tf32,
        Dtype::Fp16 => peaks.fp16,
        Dtype::Bf16 => Some(figures.peak_flops_per_s),
        Dtype::Fp8 => peaks.fp8,
        Dtype::Fp4 => peaks.fp4,
    };
    own.unwrap_or_else(|| match dtype {
        Dtype::Tf32 => peak(figures, Dtype::Fp32),
        Dtype::Fp4 => peak(figures, Dtype::Fp8),
        // No figure of fp32: half of what tensor cores do with numbers half as long.
        Dtype::Fp32 => figures.peak_flops_per_s * 0.5,
        _ => figures.peak_flops_per_s,
    })
}

/// The chip that products of a type run on; absent where the number of its processors is unknown.
pub(crate) fn chip(figures: &DeviceFigures, dtype: Dtype) -> Option<Chip> {
    let processors = f64::from(figures.processors?);
    Some(Chip {
        processors,
        peak: peak(figures, dtype).0,
        processor_rate: peak(figures, dtype).0 / processors,
        memory_rate: figures.memory_bytes_per_s.0,
        operand_bytes: dtype.bytes(),
        result_bytes: dtype.result_bytes(),
    })
}

/// The chip of a device that runs with parameters of another: as many processors as that one where its own number is
/// unknown, its peak lower or higher as far as the part of it that was achieved differs between the two.
fn chip_like(figures: &DeviceFigures, reference: &DeviceFigures, dtype: Dtype) -> Chip {
    let processors = f64::from(figures.processors.or(reference.processors).unwrap_or(100));
    let achieved = |of: &DeviceFigures| Some(of.achievable_flops_per_s? / of.peak_flops_per_s);
    let ratio = match (achieved(figures), achieved(reference)) {
        (Some(own), Some(other)) if figures.name != reference.name => own / other,
        _ => 1.0,
    };
    Chip {
        processors,
        peak: peak(figures, dtype).0,
        processor_rate: ratio * peak(figures, dtype).0 / processors,
        memory_rate: figures.memory_bytes_per_s.0,
        operand_bytes: dtype.bytes(),
        result_bytes: dtype.result_bytes(),
    }
}

impl DeviceModel {
    /// The device of that name in the shipped catalogue, with the shipped parameters.
    ///
    /// # Errors
    /// An unknown name; the hint gives the closest.
    pub fn named(name: &str) -> Result<Self, InputError> {
        Self::new(Catalogue::shipped().device(name)?, KernelParameters::shipped())
    }

    /// The devices of a cluster: by their name where the catalogue knows it, with the rates of the cluster's file.
    ///
    /// # Errors
    /// A device that is in no catalogue and has no peak or memory rate in the file.
    pub fn of_cluster(cluster: &Cluster, catalogue: &Catalogue) -> Result<Self, InputError> {
        let device = cluster.device();
        let missing = |field: &str| {
            InputError::new(
                format!("nodes[0].device.{field}"),
                "",
                "is missing, and the catalogue does not have this device",
            )
            .hint("add it to the cluster file, or use a device that `autodist catalog` lists")
        };
        let mut figures = match catalogue.device(&device.name) {
            Ok(known) => known.clone(),
            Err(_) => DeviceFigures {
                name: device.name.clone(),
                memory_bytes: device.memory_bytes,
                peak_flops_per_s: device.peak_flops_per_s.ok_or_else(|| missing("peak_flops_per_s"))?,
                peaks: Default::default(),
                achievable_flops_per_s: None,
                memory_bytes_per_s: device.memory_bytes_per_s.ok_or_else(|| missing("memory_bytes_per_s"))?,
                l2_bytes: None,
                processors: None,
                architecture: None,
                link_bytes_per_s: cluster.nodes[0]
                    .link
                    .as_ref()
                    .map_or(Default::default(), |l| l.bytes_per_s),
                link: None,
                measured_as: None,
                driver_names: Vec::new(),
                source: device.source.clone().unwrap_or_default(),
            },
        };
        figures.memory_bytes = device.memory_bytes;
        figures.peak_flops_per_s = device.peak_flops_per_s.unwrap_or(figures.peak_flops_per_s);
        figures.memory_bytes_per_s = device.memory_bytes_per_s.unwrap_or(figures.memory_bytes_per_s);
        Self::new(&figures, KernelParameters::shipped())
    }

    /// A device with the parameters of the measured one that is nearest to it.
    ///
    /// # Errors
    /// Parameters without any product of bf16 or any attention.
    pub fn new(figures: &DeviceFigures, parameters: &KernelParameters) -> Result<Self, InputError> {
        let lacking = |what: &str| {
            InputError::new(what, "", "the parameters of kernels have none")
                .hint("fit them to tables of matrix products of bf16 and of attention")
        };
        let (measured, _) = nearest_gemm(figures, parameters, Dtype::Bf16).ok_or_else(|| lacking("gemm"))?;
        let (stream, launch) = (measured.stream, measured.shortest_s);
        let attention = fitted_attention(figures, parameters).ok_or_else(|| lacking("attention"))?;
        let gemm = Dtype::ALL.map(|dtype| fitted_gemm(figures, parameters, dtype));
        let [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)] = gemm else {
            return Err(lacking("gemm"));
        };
        let gemm = [a, b, c, d, e, f];
        Ok(Self { figures: figures.clone(), gemm, attention, stream, launch })
    }

    pub fn figures(&self) -> &DeviceFigures {
        &self.figures
    }

    /// Peak rate of a type; of the next wider one where the device has no such arithmetic.
    pub fn peak(&self, dtype: Dtype) -> FlopsPerSecond {
        peak(&self.figures, dtype)
    }

    /// `[m, k]` by `[k, n]`: `2 m n k` operations. Results are `[m, n]`. Sizes are at least 1.
    #[inline]
    pub fn gemm(&self, dtype: Dtype, m: u64, n: u64, k: u64) -> PredictedTime {
        self.batched_gemm(dtype, 1, m, n, k)
    }

    /// `batch` products of the same shape in one kernel.
    #[inline]
    pub fn batched_gemm(&self, dtype: Dtype, batch: u64, m: u64, n: u64, k: u64) -> PredictedTime {
        let fitted = &self.gemm[dtype as usize];
        let [batch, m, n, k] = [batch, m, n, k].map(|size| size as f64);
        let within = batch == 1.0 && fitted.model.corrections.covers([m, n, k]);
        fitted.price(fitted.model.seconds(batch, m, n, k), within)
    }

    /// Forward pass in bf16 or fp16, without dropout.
    pub fn attention_forward(&self, shape: &Attention, kernel: AttentionKernel) -> PredictedTime {
        match kernel {
            AttentionKernel::Flash => {
                let (dim, fitted) = self.of_heads(shape.head_dim);
                let within = *dim == shape.head_dim
                    && shape.causal
                    && shape.keys == shape.sequence
                    && fitted.model.corrections.covers(shape.sizes());
                fitted.price((fitted.model.seconds(shape), true), within)
            }
            AttentionKernel::Unfused => self.unfused(shape, &[(false, 1), (true, 1)], 4.0),
        }
    }

    /// Gradients of queries, keys and values. Flash attention computes the scores again:
    /// [`BACKWARD_OVER_FORWARD`] times the forward pass.
    pub fn attention_backward(&self, shape: &Attention, kernel: AttentionKernel) -> PredictedTime {
        match kernel {
            AttentionKernel::Flash => {
                let forward = self.attention_forward(shape, kernel);
                let spread = forward.spread.max(BACKWARD_SPREAD);
                PredictedTime::new(
                    forward.time.0 * BACKWARD_OVER_FORWARD,
                    spread,
                    forward.provenance.max(Provenance::Modelled),
                )
            }
            AttentionKernel::Unfused => self.unfused(shape, &[(false, 2), (true, 2)], 6.0),
        }
    }

    /// Products with the scores as result, or as operand (`true`), so many of each, and one kernel over the scores that
    /// moves `bytes` for each: softmax with its mask reads and writes 2 bytes, its gradient reads two and writes one.
    fn unfused(&self, shape: &Attention, products: &[(bool, u32)], bytes: f64) -> PredictedTime {
        let batch = shape.batch.saturating_mul(shape.heads);
        let scores = batch as f64 * shape.sequence as f64 * shape.keys as f64;
        let mut whole = self.memory_bound(bytes * scores);
        for &(operand, count) in products {
            let (n, k) = if operand { (shape.head_dim, shape.keys) } else { (shape.keys, shape.head_dim) };
            let one = self.batched_gemm(Dtype::Bf16, batch, shape.sequence, n, k);
            whole.time += one.time * f64::from(count);
            whole.spread = whole.spread.max(one.spread);
            whole.provenance = whole.provenance.max(one.provenance);
        }
        whole
    }

    fn of_heads(&self, head_dim: u64) -> &(u64, Fitted<AttentionModel>) {
        let far = |dim: u64| (dim as f64 / head_dim as f64).ln().abs();
        self.attention[1..]
            .iter()
            .fold(&self.attention[0], |best, next| if far(next.0) < far(best.0) { next } else { best })
    }

    /// A kernel that does little but read and write `bytes` in all: normalisation, activation, residual, optimizer. It
    /// reaches the part of the memory's rate that products of bf16 reached whose time is their bytes'.
    pub fn memory_bound(&self, bytes: f64) -> PredictedTime {
        let seconds = bytes / (self.stream * self.figures.memory_bytes_per_s.0) + self.launch;
        let fitted = &self.gemm[Dtype::Bf16 as usize];
        PredictedTime::new(seconds, fitted.spread.max(0.1), fitted.provenance.max(Provenance::Modelled))
    }

    /// What one kernel costs beyond its work: the fastest that was seen.
    pub fn launch(&self) -> Seconds {
        Seconds(self.launch)
    }
}

fn nearest_gemm<'a>(
    figures: &DeviceFigures,
    parameters: &'a KernelParameters,
    dtype: Dtype,
) -> Option<(&'a GemmParameters, DeviceFigures)> {
    let entries = parameters.gemm.iter().filter(|entry| entry.dtype == dtype);
    nearest(figures, entries, |entry| &entry.device)
}

fn fitted_gemm(
    figures: &DeviceFigures,
    parameters: &KernelParameters,
    dtype: Dtype,
) -> Option<Fitted<GemmModel>> {
    let has_fp8 = figures.peaks.fp8.is_some() || figures.peaks.fp4.is_some();
    let measured = match dtype {
        Dtype::Fp8 | Dtype::Fp4 if has_fp8 && parameters.gemm.iter().any(|e| e.dtype == Dtype::Fp8) => {
            Dtype::Fp8
        }
        _ => Dtype::Bf16,
    };
    let (entry, reference) = nearest_gemm(figures, parameters, measured)?;
    let (least, provenance) = match (entry.device == figures.name, dtype == measured, dtype) {
        (true, true, _) => (0.0, Provenance::Interpolated),
        // The same units at the same rate.
        (true, false, Dtype::Fp16) => (0.0, Provenance::Modelled),
        _ => (OTHER_DEVICE, Provenance::Extrapolated),
    };
    let (spread, spread_between) = (entry.spread.max(least), entry.spread_between.max(least));
    let time = GemmTime::new(&entry.base(), &chip_like(figures, &reference, dtype));
    let model = GemmModel { time, corrections: entry.tables.0.clone() };
    Some(Fitted { model, spread, spread_between, provenance })
}

/// All sizes of heads of the device that is nearest: those of another device are further off than another size of heads.
fn fitted_attention(
    figures: &DeviceFigures,
    parameters: &KernelParameters,
) -> Option<Vec<(u64, Fitted<AttentionModel>)>> {
    let found: Option<(&AttentionParameters, DeviceFigures)> =
        nearest(figures, parameters.attention.iter(), |entry| &entry.device);
    let (entry, reference) = found?;
    let own = entry.device == figures.name;
    let entries = parameters.attention.iter().filter(|other| other.device == entry.device);
    let fitted = entries.map(|entry| {
        let model = AttentionModel {
            chip: chip_like(figures, &reference, Dtype::Bf16),
            base: entry.base(),
            corrections: entry.tables.0.clone(),
        };
        let spread = if own { entry.spread } else { entry.spread.max(OTHER_DEVICE) };
        let provenance = if own { Provenance::Interpolated } else { Provenance::Extrapolated };
        (entry.head_dim, Fitted { model, spread, spread_between: spread, provenance })
    });
    Some(fitted.collect())
}
