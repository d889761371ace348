//! The free parameters of the closed-form model, each with its prior.
//!
//! Kernels and collectives are priced by `autodist-hardware` from measurements of their own. The remaining
//! differences of a training step from kernels timed alone are clocks under load, unfused operations,
//! overlapped and exposed communication, the host. Every parameter describes one of them. It has a physical
//! prior, and a fit moves it away from the prior only as far as the measured runs require.

use autodist_spec::InputError;
use serde::Serialize;
use std::collections::BTreeMap;

/// The log-normal prior of a parameter: its median (`middle`), and the standard deviation of its logarithm
/// (`spread`).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    pub name: &'static str,
    pub middle: f64,
    pub spread: f64,
    /// Meaning of the parameter, and source of the prior.
    pub meaning: &'static str,
}

macro_rules! parameters {
    ($($(#[doc = $meaning:literal])+ $name:ident: $middle:literal, $spread:literal;)*) => {
        /// Values of all parameters. They are dimensionless factors unless the name ends in a unit.
        #[derive(Debug, Clone, Copy, PartialEq, Serialize)]
        pub struct FreeParameters { $($(#[doc = $meaning])+ pub $name: f64,)* }

        /// In the order of [`FreeParameters::to_array`].
        pub const PRIORS: &[Prior] = &[$(Prior {
            name: stringify!($name), middle: $middle, spread: $spread, meaning: concat!($($meaning),+),
        }),*];

        impl FreeParameters {
            pub const COUNT: usize = PRIORS.len();

            /// Every parameter at the median of its prior.
            pub const fn prior() -> Self { Self { $($name: $middle),* } }

            pub fn to_array(&self) -> [f64; Self::COUNT] { [$(self.$name),*] }

            pub fn from_array(values: &[f64; Self::COUNT]) -> Self {
                let [$($name),*] = *values;
                Self { $($name),* }
            }
        }
    };
}

parameters! {
    /// Rate of GEMMs in a training step, relative to the same GEMMs alone: caches are cold, and clocks drop
    /// under power limits.
    gemm_efficiency: 0.92, 0.08;
    /// Rate of GEMMs on V100, relative to `gemm_efficiency`; its kernels are extrapolated from newer devices.
    volta: 0.85, 0.15;
    /// Rate of memory-bound kernels on V100, for which there is no measurement.
    volta_memory: 1.0, 0.2;
    /// Rate of links and networks in V100 clusters: a mesh inside nodes, and NICs that the devices of a node
    /// share.
    volta_links: 0.9, 0.2;
    /// Rate of GEMMs on A100, relative to `gemm_efficiency`: close to that of the GEMMs alone.
    ampere: 1.0, 0.03;
    /// Rate of GEMMs on H100 and H200, relative to `gemm_efficiency`: their clocks drop under sustained GEMMs
    /// at 700 W.
    hopper: 0.92, 0.08;
    /// Rate of PyTorch's GEMMs in the first year of Hopper, relative to later libraries.
    first_hopper: 0.85, 0.1;
    /// Rate of GEMMs on B200 and related devices, relative to `gemm_efficiency`.
    blackwell: 0.85, 0.12;
    /// Rate of GEMMs on B300 and related devices, relative to `gemm_efficiency`; they draw more power.
    blackwell_ultra: 0.9, 0.12;
    /// Rate of GEMMs on all other devices, relative to `gemm_efficiency`.
    other_device: 0.85, 0.2;
    /// Rate of GEMMs in libraries from before 2023, relative to the measured libraries.
    classic_library: 0.95, 0.08;
    /// Fraction of an incomplete last wave of tiles that libraries from before 2023 pay for; later ones split
    /// it.
    classic_waves: 0.6, 0.3;
    /// Rate of GEMMs with a dimension that is not a multiple of 64, relative to aligned ones.
    unaligned: 0.8, 0.2;
    /// Rate of attention GEMMs with head sizes that are not a multiple of 8, which do not run on tensor
    /// cores.
    unaligned_heads: 0.12, 0.5;
    /// Rate of memory-bound kernels in a training step, relative to the same kernels alone.
    memory_efficiency: 1.0, 0.12;
    /// Bytes moved per attention score and pass by masking, softmax and dropout: two reads and two writes in
    /// 16 bits, and a mask.
    score_bytes: 9.0, 0.25;
    /// Bytes moved per attention score where softmax is not fused (cast to fp32, mask, softmax, cast to 16
    /// bits), relative to the fused kernel.
    apart_score_bytes: 3.8, 0.3;
    /// Host time to launch the kernels of an unfused softmax, as a fraction of the host time of a block.
    apart_host: 0.25, 0.5;
    /// Rate of FP8 GEMMs in a training step, relative to the same GEMMs alone, beyond `gemm_efficiency`.
    eight_bits: 0.95, 0.08;
    /// Rate of FP8 GEMMs on Blackwell, relative to measurements with its first libraries, which reached half
    /// of the peak; the best reach three quarters.
    eight_bits_blackwell: 1.4, 0.15;
    /// Bytes moved per operand to cast it to FP8, where no other kernel writes it in FP8.
    cast_bytes: 2.0, 0.25;
    /// Bytes moved by norms, activations, residuals and dropout, relative to fused kernels.
    elementwise: 1.0, 0.25;
    /// Bytes moved by the same operations in trainers that run each one as a separate kernel, relative to
    /// fused kernels.
    eager: 1.8, 0.25;
    /// Bytes moved per logit by the loss, forward and backward, mostly in fp32.
    logit_bytes: 40.0, 0.3;
    /// Rate of fused attention in a training step, relative to the measured kernels.
    flash: 1.0, 0.12;
    /// Rate of FlashAttention 1 relative to FlashAttention 2, whose authors measured twice the rate (Dao
    /// 2023, 2307.08691).
    first_flash: 0.5, 0.15;
    /// Rate of fused attention on Hopper and later, relative to the measured kernels: only forward passes
    /// were measured, and backward passes gain less from the new instructions (Shah et al. 2024, 2407.08608,
    /// section 4).
    young_flash: 0.75, 0.12;
    /// Rate of PyTorch's FlashAttention 2 on Hopper, which does not use the new instructions.
    older_flash: 0.5, 0.15;
    /// Rate of cuDNN's attention of 2025 on Hopper and later, relative to the measured kernels, which are of
    /// 2024: both passes of causal attention in seven shapes, timed with PyTorch 2.11 on an H200, reach from
    /// 1.02 to 1.43 of it.
    cudnn_attention: 1.1, 0.1;
    /// Fraction of a block's linear forward pass that recomputation repeats if it stops at the last tensor
    /// that it needs: it skips the second GEMM of the MLP, a third.
    early_stop: 0.67, 0.1;
    /// Rate of links inside a node in a training step, relative to their measured rate.
    link: 1.0, 0.12;
    /// Seconds per tensor-parallel collective in addition to the collective alone: ranks wait for the
    /// slowest.
    skew_s: 50e-6, 0.5;
    /// Fraction of overlapped tensor-parallel collectives by which they slow down the GEMMs that overlap with
    /// them.
    tensor_drag: 0.25, 0.4;
    /// Rate of networks between nodes in a training step, relative to the efficiency in the catalogue.
    network: 1.0, 0.15;
    /// Rate of Omni-Path networks, relative to the efficiency in the catalogue; measured all-reduces reach
    /// 0.7 to 1.5 of it (bigscience/experiments/bandwidth). The fitted value is lower, because it also
    /// absorbs all other slowdowns of BigScience's jobs, the only ones on such a network.
    omni_path: 1.0, 0.3;
    /// Fraction of the send/recv time between pipeline stages that does not overlap with compute.
    message_exposed: 0.8, 0.25;
    /// Seconds per send/recv between pipeline stages, at both ends, in addition to its bytes.
    message_s: 100e-6, 0.5;
    /// Fraction of the gradient reduction that stays exposed when it overlaps with the backward pass: the
    /// last bucket, and the slowdown of compute.
    reduce_exposed: 0.3, 0.3;
    /// Fraction of ZeRO-3's transfers by which they slow down the compute that overlaps with them.
    gather_drag: 0.2, 0.4;
    /// Time of the all-gather of updated parameters after a sharded optimizer step, relative to an all-gather
    /// alone.
    update_gather: 1.0, 0.2;
    /// Seconds per broadcast of updated parameters, rank by rank, in addition to its bytes.
    broadcast_s: 2e-3, 0.3;
    /// Slowdown per doubling of the number of nodes: the slowest rank determines the step time.
    jitter: 0.003, 0.5;
    /// Seconds of host time to launch the forward pass of one block in Megatron.
    host_megatron_s: 0.3e-3, 0.4;
    /// Seconds of host time per block in Megatron-DeepSpeed, with activation checkpointing in Python.
    host_deepspeed_s: 0.95e-3, 0.4;
    /// Seconds of host time per block in PyTorch FSDP: processors differ widely, and eager PyTorch shows it.
    host_eager_s: 0.4e-3, 1.5;
    /// Relative growth of the host time per doubling of the tensor-parallel group.
    host_tensor: 0.04, 0.5;
    /// Memory traffic of the optimizer, relative to reading and writing every byte once.
    optimizer: 0.8, 0.3;
    /// Seconds per step outside all layers: data loading, loss scaling, logging.
    step_s: 8e-3, 0.5;
}

/// A value further from its prior than this factor, in either direction, is refused as implausible.
const FURTHEST: f64 = 1e3;

impl FreeParameters {
    pub fn to_table(&self) -> BTreeMap<String, f64> {
        PRIORS.iter().zip(self.to_array()).map(|(prior, value)| (prior.name.to_owned(), value)).collect()
    }

    /// Reads parameters by name; a missing one keeps its prior.
    ///
    /// # Errors
    /// An unknown name, or a value too far from its prior.
    pub fn from_table(table: &BTreeMap<String, f64>) -> Result<Self, InputError> {
        let mut values = Self::prior().to_array();
        for (name, &value) in table {
            let field = format!("parameters.{name}");
            let Some(index) = PRIORS.iter().position(|prior| prior.name == name) else {
                return Err(InputError::new(field, value, "is not a parameter of this release")
                    .hint("create the file again with `autodist calibrate`"));
            };
            let middle = PRIORS[index].middle;
            let (low, high) = (middle / FURTHEST, middle * FURTHEST);
            if !(low..=high).contains(&value) {
                let problem = format!("must be from {low:.3e} to {high:.3e}; its prior median is {middle}");
                let hint = "create the file again with `autodist calibrate`, or remove the line";
                return Err(InputError::new(field, value, problem).hint(hint));
            }
            values[index] = value;
        }
        Ok(Self::from_array(&values))
    }
}
