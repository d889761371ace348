//! Time of kernels on one device.

use crate::attention::AttentionModel;
use crate::catalogue::Catalogue;
use crate::gemm::{Chip, GemmModel, GemmTime};
use crate::nearest::{are_of_one_generation, nearest};
use crate::parameters::{AttentionParameters, GemmParameters, KernelParameters};
use crate::{Attention, AttentionKernel, PredictedTime};
use autodist_spec::catalog::DeviceFigures;
use autodist_spec::{Cluster, FlopsPerSecond, InputError, Precision, Provenance, Seconds};

/// Spread of predictions for unmeasured devices: two thirds of the measurements of each device lie within it
/// when they are predicted from the other devices' parameters (`fit::check_devices`).
const OTHER_DEVICE: f64 = 0.25;

/// Spread of the backward pass of attention, which no table covers: the range of its fraction of the peak
/// over the shapes of the publication that [`BACKWARD_OVER_FORWARD`] is based on; assumed.
const BACKWARD_SPREAD: f64 = 0.2;

/// Time of the backward pass of flash attention relative to the forward pass: it has five GEMMs instead of
/// two, and reached 63 % of an A100's peak where the forward pass reached 73 % (FlashAttention-2, Dao 2023;
/// recalled).
pub const BACKWARD_OVER_FORWARD: f64 = 2.5 * 73.0 / 63.0;

/// Prices kernels on one device. Constructed once, queried often.
#[derive(Debug, Clone)]
pub struct DeviceModel {
    figures: DeviceFigures,
    gemm: [Fitted<GemmModel>; 5],
    /// By head size; at least one.
    attention: Vec<(u64, Fitted<AttentionModel>)>,
    stream: f64,
    launch: f64,
    same_generation: bool,
}

/// A model and its uncertainty.
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

/// Peak FLOP/s of a type; if the device does not support it, of the next wider one.
pub(crate) fn peak(figures: &DeviceFigures, dtype: Precision) -> FlopsPerSecond {
    let peaks = &figures.peaks;
    let own = match dtype {
        Precision::Fp32 => peaks.fp32,
        Precision::Tf32 => peaks.tf32,
        Precision::Fp16 => peaks.fp16,
        Precision::Bf16 => Some(figures.peak_flops_per_s),
        Precision::Fp8 => peaks.fp8,
    };
    own.unwrap_or_else(|| match dtype {
        Precision::Tf32 => peak(figures, Precision::Fp32),
        // No figure for fp32: half of the tensor cores' FLOP/s for operands of half the width.
        Precision::Fp32 => figures.peak_flops_per_s * 0.5,
        _ => figures.peak_flops_per_s,
    })
}

/// The chip for GEMMs of a type; `None` if its number of streaming multiprocessors is unknown.
pub(crate) fn chip(figures: &DeviceFigures, dtype: Precision) -> Option<Chip> {
    let processors = f64::from(figures.processors?);
    Some(Chip {
        processors,
        peak: peak(figures, dtype).0,
        processor_rate: peak(figures, dtype).0 / processors,
        memory_rate: figures.memory_bytes_per_s.0,
        operand_bytes: dtype.operand_bytes(),
        result_bytes: dtype.result_bytes(),
    })
}

/// The chip of a device that uses the parameters of another: with that one's number of streaming
/// multiprocessors if its own is unknown, and its peak scaled by the ratio of the fractions of peak that the
/// two achieved.
fn chip_like(figures: &DeviceFigures, reference: &DeviceFigures, dtype: Precision) -> Chip {
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
        operand_bytes: dtype.operand_bytes(),
        result_bytes: dtype.result_bytes(),
    }
}

impl DeviceModel {
    /// The device of that name in the shipped catalogue, with the shipped parameters.
    ///
    /// # Errors
    /// The name is unknown; the hint gives the closest one.
    pub fn named(name: &str) -> Result<Self, InputError> {
        Self::new(Catalogue::shipped().device(name)?, KernelParameters::shipped())
    }

    /// The devices of a cluster's group of nodes `index`: by name if the catalogue contains it, with the FLOP/s
    /// and bandwidths of the cluster's file.
    ///
    /// # Errors
    /// The device is in no catalogue, and the file gives no peak or no memory bandwidth.
    pub fn of_nodes(cluster: &Cluster, index: usize, catalogue: &Catalogue) -> Result<Self, InputError> {
        let group = &cluster.nodes[index];
        let device = &group.device;
        let missing = |field: &str| {
            InputError::new(
                format!("nodes[{index}].device.{field}"),
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
                link_bytes_per_s: group.link.as_ref().map_or(Default::default(), |l| l.bytes_per_s),
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

    /// A device with the parameters of the nearest measured one.
    ///
    /// # Errors
    /// The parameters have no bf16 GEMM or no attention.
    pub fn new(figures: &DeviceFigures, parameters: &KernelParameters) -> Result<Self, InputError> {
        let lacking = |what: &str| {
            InputError::new(what, "", "the parameters of kernels have none")
                .hint("fit them to tables of bf16 GEMMs and of attention")
        };
        let (measured, reference) =
            nearest_gemm(figures, parameters, Precision::Bf16).ok_or_else(|| lacking("gemm"))?;
        let (stream, launch) = (measured.stream, measured.shortest_s);
        let attention = fitted_attention(figures, parameters).ok_or_else(|| lacking("attention"))?;
        let gemm = Precision::ALL.iter().map(|&dtype| fitted_gemm(figures, parameters, dtype));
        let gemm: Option<Vec<_>> = gemm.collect();
        let gemm = gemm.and_then(|gemm| gemm.try_into().ok()).ok_or_else(|| lacking("gemm"))?;
        let same_generation = are_of_one_generation(figures, &reference);
        Ok(Self { figures: figures.clone(), gemm, attention, stream, launch, same_generation })
    }

    /// Whether kernels of a device of the same generation were measured; otherwise they are extrapolated from
    /// another generation's, which are written differently.
    pub fn has_kernels_of_its_generation(&self) -> bool {
        self.same_generation
    }

    /// Whether GEMMs of such sizes were measured; otherwise they are extrapolated from others.
    pub fn covers_gemm(&self, dtype: Precision, m: u64, n: u64, k: u64) -> bool {
        self.gemm[dtype as usize].model.corrections.covers([m, n, k].map(|size| size as f64))
    }

    /// Whether flash attention of such a shape was measured.
    pub fn covers_attention(&self, shape: &Attention) -> bool {
        let (dim, fitted) = self.of_heads(shape.head_dim);
        *dim == shape.head_dim && fitted.model.corrections.covers(shape.sizes())
    }

    pub fn figures(&self) -> &DeviceFigures {
        &self.figures
    }

    /// Peak FLOP/s of a type; if the device does not support it, of the next wider one.
    pub fn peak(&self, dtype: Precision) -> FlopsPerSecond {
        peak(&self.figures, dtype)
    }

    /// `[m, k]` by `[k, n]`: `2 m n k` FLOPs. The result is `[m, n]`. Sizes are at least 1.
    #[inline]
    pub fn gemm(&self, dtype: Precision, m: u64, n: u64, k: u64) -> PredictedTime {
        self.batched_gemm(dtype, 1, m, n, k)
    }

    /// `batch` GEMMs of the same shape in one kernel.
    #[inline]
    pub fn batched_gemm(&self, dtype: Precision, batch: u64, m: u64, n: u64, k: u64) -> PredictedTime {
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

    /// Gradients of queries, keys and values. Flash attention recomputes the scores:
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

    /// Batched GEMMs with the scores as result, or as operand (`true`), as many as the counts give, and one
    /// kernel over the scores that moves `bytes` per score: softmax with its mask reads and writes 2 bytes,
    /// its gradient reads two and writes one.
    fn unfused(&self, shape: &Attention, products: &[(bool, u32)], bytes: f64) -> PredictedTime {
        let batch = shape.batch.saturating_mul(shape.heads);
        let scores = batch as f64 * shape.sequence as f64 * shape.keys as f64;
        let mut whole = self.memory_bound(bytes * scores);
        for &(operand, count) in products {
            let (n, k) = if operand { (shape.head_dim, shape.keys) } else { (shape.keys, shape.head_dim) };
            let one = self.batched_gemm(Precision::Bf16, batch, shape.sequence, n, k);
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

    /// A memory-bound kernel that reads and writes `bytes` in total: normalisation, activation, residual,
    /// optimizer. It reaches the fraction of the memory bandwidth that memory-bound bf16 GEMMs reached.
    pub fn memory_bound(&self, bytes: f64) -> PredictedTime {
        let seconds = bytes / (self.stream * self.figures.memory_bytes_per_s.0) + self.launch;
        let fitted = &self.gemm[Precision::Bf16 as usize];
        PredictedTime::new(seconds, fitted.spread.max(0.1), fitted.provenance.max(Provenance::Modelled))
    }

    /// Fixed time of one kernel in addition to its work: the shortest measured kernel.
    pub fn launch(&self) -> Seconds {
        Seconds(self.launch)
    }
}

fn nearest_gemm<'a>(
    figures: &DeviceFigures,
    parameters: &'a KernelParameters,
    dtype: Precision,
) -> Option<(&'a GemmParameters, DeviceFigures)> {
    let entries = parameters.gemm.iter().filter(|entry| entry.dtype == dtype);
    nearest(figures, entries, |entry| &entry.device)
}

fn fitted_gemm(
    figures: &DeviceFigures,
    parameters: &KernelParameters,
    dtype: Precision,
) -> Option<Fitted<GemmModel>> {
    let has_fp8 = figures.peaks.fp8.is_some();
    let measured = match dtype {
        Precision::Fp8 if has_fp8 && parameters.gemm.iter().any(|e| e.dtype == Precision::Fp8) => {
            Precision::Fp8
        }
        _ => Precision::Bf16,
    };
    let (entry, reference) = nearest_gemm(figures, parameters, measured)?;
    let (least, provenance) = match (entry.device == figures.name, dtype == measured, dtype) {
        (true, true, _) => (0.0, Provenance::Interpolated),
        // The same units at the same FLOP/s.
        (true, false, Precision::Fp16) => (0.0, Provenance::Modelled),
        _ => (OTHER_DEVICE, Provenance::Extrapolated),
    };
    let (spread, spread_between) = (entry.spread.max(least), entry.spread_between.max(least));
    let time = GemmTime::new(&entry.base(), &chip_like(figures, &reference, dtype));
    let model = GemmModel { time, corrections: entry.tables.0.clone() };
    Some(Fitted { model, spread, spread_between, provenance })
}

/// All head sizes of the nearest device: another head size of the same device is closer than another device.
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
            chip: chip_like(figures, &reference, Precision::Bf16),
            base: entry.base(),
            corrections: entry.tables.0.clone(),
        };
        let spread = if own { entry.spread } else { entry.spread.max(OTHER_DEVICE) };
        let provenance = if own { Provenance::Interpolated } else { Provenance::Extrapolated };
        (entry.head_dim, Fitted { model, spread, spread_between: spread, provenance })
    });
    Some(fitted.collect())
}
