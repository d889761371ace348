//! The few free numbers of the model, each with what is known of it without any training run.
//!
//! Kernels and collectives are priced by `autodist-hardware` from measurements of their own. What remains is how a
//! training step differs from kernels timed alone: clocks under load, unfused operations, hidden and exposed
//! communication, the host. Every number here is one of these; each has a physical prior, and a fit moves away from
//! it only as far as runs ask for.

use autodist_spec::InputError;
use serde::Serialize;
use std::collections::BTreeMap;

/// What is known of a parameter before any run is seen: the middle, and the standard deviation of its logarithm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Prior {
    pub name: &'static str,
    pub middle: f64,
    pub spread: f64,
    /// What the number is, and where the prior comes from.
    pub meaning: &'static str,
}

macro_rules! parameters {
    ($($(#[doc = $meaning:literal])+ $name:ident: $middle:literal, $spread:literal;)*) => {
        /// Values of all free numbers. Dimensionless factors unless the name ends in a unit.
        #[derive(Debug, Clone, Copy, PartialEq, Serialize)]
        pub struct Parameters { $($(#[doc = $meaning])+ pub $name: f64,)* }

        /// In the order of [`Parameters::to_array`].
        pub const PRIORS: &[Prior] = &[$(Prior {
            name: stringify!($name), middle: $middle, spread: $spread, meaning: concat!($($meaning),+),
        }),*];

        impl Parameters {
            pub const COUNT: usize = PRIORS.len();

            /// Every number at the middle of its prior: what is known without a single run.
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
    /// Rate of matrix products inside a step over their rate alone: caches are cold, clocks yield to power.
    gemm_efficiency: 0.92, 0.08;
    /// The same for V100, whose products are extrapolated from younger devices.
    volta: 0.85, 0.15;
    /// Rate of memory-bound kernels on V100, which nobody of the kernels' sources measured.
    volta_memory: 1.0, 0.2;
    /// Links and networks of V100's years: a mesh inside nodes, cards that the devices share outside.
    volta_links: 0.9, 0.2;
    /// For A100: close to what it does alone.
    ampere: 1.0, 0.03;
    /// For H100 and H200: at 700 W clocks fall under sustained products.
    hopper: 0.92, 0.08;
    /// What PyTorch of Hopper's first year made of it over later libraries.
    first_hopper: 0.85, 0.1;
    /// For B200 and its kin.
    blackwell: 0.85, 0.12;
    /// For B300 and its kin, which draw more power.
    blackwell_ultra: 0.9, 0.12;
    /// For every other device.
    other_device: 0.85, 0.2;
    /// Libraries of the years before 2023 over those that were measured.
    classic_library: 0.95, 0.08;
    /// Part of an incomplete last wave of tiles that such libraries pay for; later ones split it.
    classic_waves: 0.6, 0.3;
    /// Products with a side that is not a multiple of 64 elements run at this part of the rate.
    unaligned: 0.8, 0.2;
    /// Attention products over head sizes that are no multiple of 8 leave the tensor cores.
    unaligned_heads: 0.12, 0.5;
    /// Rate of memory-bound kernels inside a step over their rate alone.
    memory_efficiency: 1.0, 0.12;
    /// Bytes moved per attention score and pass by masking, softmax and dropout: read and write twice in 16 bits, and a mask.
    score_bytes: 9.0, 0.25;
    /// The same over the fused kernel's where softmax is taken apart: to fp32, masked, softmax, and back to 16 bits.
    apart_score_bytes: 3.8, 0.3;
    /// And the host's time for those kernels, as a part of a block's.
    apart_host: 0.25, 0.5;
    /// Rate of products in 8 bits inside a step over their rate alone, beyond what 16 bits lose.
    eight_bits: 0.95, 0.08;
    /// The same on Blackwell, whose products in 8 bits were measured with its first libraries, at half the peak, the best at three quarters.
    eight_bits_blackwell: 1.4, 0.15;
    /// Bytes moved per operand of a product in 8 bits by casting it, where another kernel does not write it so.
    cast_bytes: 2.0, 0.25;
    /// Bytes of norms, activations, residuals and dropout over those of fused kernels.
    elementwise: 1.0, 0.25;
    /// The same for trainers that run each operation as a kernel of its own.
    eager: 1.8, 0.25;
    /// Bytes moved per logit by the loss, forward and backward, mostly in fp32.
    logit_bytes: 40.0, 0.3;
    /// Fused attention inside a step over the measured kernels.
    flash: 1.0, 0.12;
    /// The first fused attention over the second, which its authors measured at twice the rate (Dao 2023, 2307.08691).
    first_flash: 0.5, 0.15;
    /// Fused attention of Hopper and later: forward passes were measured, and backward passes gain less from its new
    /// instructions (Shah et al. 2024, 2407.08608, section 4).
    young_flash: 0.75, 0.12;
    /// PyTorch's on Hopper, which does without these instructions.
    older_flash: 0.5, 0.15;
    /// Part of a block's linear forward that recomputation repeats where it stops at the last tensor it needs:
    /// the MLP's second product, a third, is left out.
    early_stop: 0.67, 0.1;
    /// Links of a node inside a step over their measured rate.
    link: 1.0, 0.12;
    /// Seconds that a tensor-parallel collective costs beyond the collective alone: ranks wait for the slowest.
    skew_s: 50e-6, 0.5;
    /// Part of tensor-parallel collectives beside products that slows these down.
    tensor_drag: 0.25, 0.4;
    /// Networks between nodes inside a step over the catalogue's efficiency.
    network: 1.0, 0.15;
    /// The same for Omni-Path, where measured all-reduces lie between 0.7 and 1.5 of the catalogue's efficiency
    /// (bigscience/experiments/bandwidth). The fit takes it lower: whatever else slows BigScience's jobs, the only ones on
    /// such a network, it lays on that.
    omni_path: 1.0, 0.3;
    /// Part of a pipeline's messages that is not hidden.
    message_exposed: 0.8, 0.25;
    /// Seconds that each message of a pipeline costs both ends beyond its bytes.
    message_s: 100e-6, 0.5;
    /// Part of the gradients' reduction that stays exposed where it overlaps the backward pass: the last bucket, and what slows
    /// down beside it.
    reduce_exposed: 0.3, 0.3;
    /// Part of ZeRO-3's transfers that slows down the arithmetic beside it.
    gather_drag: 0.2, 0.4;
    /// All-gather of updated parameters after a sharded step, over one that runs alone.
    update_gather: 1.0, 0.2;
    /// Seconds of each of the broadcasts that hand out updated parameters rank by rank, beyond its bytes.
    broadcast_s: 2e-3, 0.3;
    /// Slow-down per doubling of the nodes: the slowest rank sets the pace.
    jitter: 0.003, 0.5;
    /// Seconds that the host needs to queue a block's forward pass: Megatron.
    host_megatron_s: 0.3e-3, 0.4;
    /// Megatron-DeepSpeed with activation checkpointing in Python.
    host_deepspeed_s: 0.95e-3, 0.4;
    /// PyTorch FSDP.
    host_eager_s: 0.4e-3, 0.4;
    /// Growth of the host's time per doubling of the tensor-parallel group.
    host_tensor: 0.04, 0.5;
    /// Optimizer traffic over bytes read and written once.
    optimizer: 0.8, 0.3;
    /// Seconds per step that belong to no layer: data, scaling of losses, logging.
    step_s: 8e-3, 0.5;
}

/// No run moves a number further from its prior, in either direction, than by this factor: it would be no such number.
const FURTHEST: f64 = 1e3;

impl Parameters {
    pub fn to_table(&self) -> BTreeMap<String, f64> {
        PRIORS.iter().zip(self.to_array()).map(|(prior, value)| (prior.name.to_owned(), value)).collect()
    }

    /// Numbers by name; what is missing stays at its prior.
    ///
    /// # Errors
    /// A name that is none of these, or a value out of all proportion to its prior.
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
