//! How ranks communicate: placement, algorithms and codecs.

use crate::error::{InputError, in_range};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The algorithm of a collective. Sizes are those of its group.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// Every rank exchanges data with its two neighbours (Patarasuk and Yuan, 2009).
    #[default]
    Ring,
    /// Two complementary binary trees, each for half of the data, in chunks (Sanders, Speck and Träff, 2009).
    DoubleBinaryTree,
    /// Recursive halving, then recursive doubling; groups whose size is not a power of two are folded (Thakur
    /// et al., 2005).
    HalvingDoubling,
    /// Rings inside nodes of `inner` consecutive members, then rings across nodes on the part that each
    /// member has reduced.
    Hierarchical { inner: u32 },
    /// Rings along the rows of a grid with `columns` columns, then along its columns on the part that each
    /// member has reduced.
    Torus { columns: u32 },
}

impl Algorithm {
    /// The label, such as `ring` or `hierarchical/4`.
    pub fn name(self) -> String {
        match self {
            Self::Ring => "ring".to_owned(),
            Self::DoubleBinaryTree => "double-binary-tree".to_owned(),
            Self::HalvingDoubling => "halving-doubling".to_owned(),
            Self::Hierarchical { inner } => format!("hierarchical/{inner}"),
            Self::Torus { columns } => format!("torus/{columns}"),
        }
    }
}

/// The format in which gradients are sent. Every codec except the first loses precision. Codecs with error
/// feedback keep the error and add it to the next step's gradient.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Codec {
    /// Uncompressed (fp32).
    #[default]
    None,
    /// IEEE half precision on the wire, sums in fp32.
    Fp16,
    /// bfloat16 on the wire, sums in fp32.
    Bf16,
    /// 8-bit integers with one scale per `block` elements; all-to-all, sum in fp32, all-gather.
    Int8 { block: u32 },
    /// Low-rank factors, as in PyTorch's communication hook (Vogels et al., 1905.13727).
    #[serde(rename = "powersgd")]
    PowerSgd {
        rank: u32,
        /// Number of first steps with uncompressed gradients.
        #[serde(default = "powersgd_start")]
        start_step: u32,
    },
    /// The form of its authors: one factor per step, alternating.
    #[serde(rename = "powersgd_half")]
    PowerSgdHalf {
        rank: u32,
        /// Number of first steps with uncompressed gradients.
        #[serde(default = "powersgd_half_start")]
        start_step: u32,
    },
    /// The `per_mille` thousandths of the entries with the largest magnitudes, with error feedback.
    TopK { per_mille: u32 },
    /// The largest entries with momentum correction and masking (Deep Gradient Compression, 1712.01887). It
    /// requires SGD without gradient clipping, and replaces its momentum.
    Dgc {
        per_mille: u32,
        /// Number of first steps in which everything is sent. They replace the authors' epochs of increasing
        /// sparsity.
        #[serde(default = "dgc_start")]
        start_step: u32,
    },
    /// Signs and one scale, with error feedback at the sender and at the reducer (Tang et al., 2102.02888).
    OneBit,
    /// Random rounding to `levels` levels, one norm per `bucket` elements; unbiased (Alistarh et al.,
    /// 1610.02132).
    Qsgd { levels: u32, bucket: u32 },
    /// Random rounding to -1, 0 and 1 times one scale; unbiased (Wen et al., 1705.07878).
    #[serde(rename = "terngrad")]
    TernGrad,
    /// 1-bit Adam (Tang et al., 2102.02888): uncompressed gradients for `warmup_steps` steps; then the second
    /// moments are frozen and the momentum is sent as in `one_bit`. It requires AdamW without gradient
    /// clipping.
    OneBitAdam { warmup_steps: u32 },
}

/// The value of `start_powerSGD_iter` in the first release of PyTorch's hook.
const fn powersgd_start() -> u32 {
    10
}

/// The value of `start_compressing_after_num_steps` in the authors' package.
const fn powersgd_half_start() -> u32 {
    100
}

const fn dgc_start() -> u32 {
    100
}

/// The kind of data that a codec compresses.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
pub enum Coded {
    /// Gradients that are all-reduced: every rank needs the whole sum.
    #[default]
    Gradients,
    /// Gradients that are reduce-scattered: each rank keeps a shard of the sum (ZeRO).
    GradientShards,
    /// Parameters that are gathered for one pass (ZeRO-3).
    Parameters,
    /// Activations and their gradients, sent between pipeline ranks.
    Activations,
}

impl Coded {
    pub fn name(self) -> &'static str {
        match self {
            Self::Gradients => "gradients",
            Self::GradientShards => "gradient shards",
            Self::Parameters => "parameters",
            Self::Activations => "activations",
        }
    }
}

impl Codec {
    /// Every codec with its default parameters, the lossless one first.
    pub const DEFAULTS: [Codec; 12] = [
        Self::None,
        Self::Fp16,
        Self::Bf16,
        Self::Int8 { block: 256 },
        Self::PowerSgd { rank: 4, start_step: powersgd_start() },
        Self::PowerSgdHalf { rank: 4, start_step: powersgd_half_start() },
        Self::TopK { per_mille: 10 },
        Self::Dgc { per_mille: 10, start_step: dgc_start() },
        Self::OneBit,
        Self::Qsgd { levels: 127, bucket: 128 },
        Self::TernGrad,
        Self::OneBitAdam { warmup_steps: 100 },
    ];

    /// The label, such as `powersgd/4`.
    pub fn name(self) -> String {
        match self {
            Self::None => "none".to_owned(),
            Self::Fp16 => "fp16".to_owned(),
            Self::Bf16 => "bf16".to_owned(),
            Self::Int8 { block } => format!("int8/{block}"),
            Self::PowerSgd { rank, .. } => format!("powersgd/{rank}"),
            Self::PowerSgdHalf { rank, .. } => format!("powersgd-half/{rank}"),
            Self::TopK { per_mille } => format!("top-k/{per_mille}"),
            Self::Dgc { per_mille, .. } => format!("dgc/{per_mille}"),
            Self::OneBit => "one-bit".to_owned(),
            Self::Qsgd { levels, bucket } => format!("qsgd/{levels}/{bucket}"),
            Self::TernGrad => "terngrad".to_owned(),
            Self::OneBitAdam { warmup_steps } => format!("one-bit-adam/{warmup_steps}"),
        }
    }

    /// The codec without its warm-up; 1-bit Adam, which needs a step for the second moments, starts in its
    /// second step.
    #[must_use]
    pub fn at_once(self) -> Self {
        match self {
            Self::PowerSgd { rank, .. } => Self::PowerSgd { rank, start_step: 0 },
            Self::PowerSgdHalf { rank, .. } => Self::PowerSgdHalf { rank, start_step: 0 },
            Self::Dgc { per_mille, .. } => Self::Dgc { per_mille, start_step: 0 },
            Self::OneBitAdam { .. } => Self::OneBitAdam { warmup_steps: 1 },
            other => other,
        }
    }

    /// Number of first steps with uncompressed gradients.
    pub fn dense_steps(self) -> u32 {
        match self {
            Self::PowerSgd { start_step, .. }
            | Self::PowerSgdHalf { start_step, .. }
            | Self::Dgc { start_step, .. } => start_step,
            Self::OneBitAdam { warmup_steps } => warmup_steps,
            _ => 0,
        }
    }

    pub(crate) fn check(self, field: &str) -> Result<(), InputError> {
        let number = |name: &str, value: u32, least: u64, most: u64| {
            in_range(&format!("{field}.{name}"), u64::from(value), least, most)
        };
        match self {
            Self::Int8 { block } => number("block", block, 1, 1 << 20),
            Self::PowerSgd { rank, .. } | Self::PowerSgdHalf { rank, .. } => number("rank", rank, 1, 1 << 10),
            Self::TopK { per_mille } | Self::Dgc { per_mille, .. } => number("per_mille", per_mille, 1, 1000),
            Self::Qsgd { levels, bucket } => {
                number("levels", levels, 1, 127)?;
                number("bucket", bucket, 1, 1 << 20)
            }
            Self::OneBitAdam { warmup_steps } => number("warmup_steps", warmup_steps, 1, 1 << 30),
            Self::None | Self::Fp16 | Self::Bf16 | Self::OneBit | Self::TernGrad => Ok(()),
        }
    }
}

/// How one bucket of gradients is reduced.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(deny_unknown_fields, default)]
pub struct Reduction {
    pub algorithm: Algorithm,
    pub codec: Codec,
}

/// A bucket that is reduced differently from the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(deny_unknown_fields)]
pub struct BucketReduction {
    pub pipeline_rank: u32,
    /// Index of the bucket, in the order in which the rank's gradients become complete.
    pub bucket: u32,
    pub reduction: Reduction,
}

/// The communication of a strategy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(deny_unknown_fields, default)]
pub struct Communication {
    /// The device of every rank, which also orders the rings. Empty: rank `r` on device `r`.
    pub placement: Vec<u32>,
    /// Tensor- and sequence-parallel collectives.
    pub tensor: Algorithm,
    /// Gathers of parameters (ZeRO).
    pub gather: Algorithm,
    /// Codec of gathered parameters. Only a copy for one pass is rounded (ZeRO-3): each owner keeps its shard
    /// exact (ZeRO++, 2306.10209, section 3.1).
    pub parameters: Codec,
    /// Codec of activations and their gradients between pipeline ranks.
    pub activations: Codec,
    /// Reductions of gradients, except those in `buckets`.
    pub reduce: Reduction,
    pub buckets: Vec<BucketReduction>,
}

impl Communication {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// The device of a rank.
    pub fn device(&self, rank: usize) -> usize {
        self.placement.get(rank).map_or(rank, |device| *device as usize)
    }

    /// The rank on a device.
    pub fn rank(&self, device: usize) -> usize {
        self.placement.iter().position(|d| *d as usize == device).unwrap_or(device)
    }

    pub fn reduction(&self, pipeline_rank: usize, bucket: usize) -> Reduction {
        let exception = self
            .buckets
            .iter()
            .find(|b| b.pipeline_rank as usize == pipeline_rank && b.bucket as usize == bucket);
        exception.map_or(self.reduce, |b| b.reduction)
    }

    /// Number of steps after which every codec has ended its warm-up.
    pub fn warmup_steps(&self) -> u32 {
        self.reductions().map(|reduction| reduction.codec.dense_steps()).max().unwrap_or(0)
    }

    /// Every reduction that occurs.
    pub fn reductions(&self) -> impl Iterator<Item = Reduction> + '_ {
        std::iter::once(self.reduce).chain(self.buckets.iter().map(|b| b.reduction))
    }

    /// The settings that differ from the default, each with a leading space.
    pub(crate) fn label(&self) -> String {
        let mut text = String::new();
        let mut algorithm = |what: &str, algorithm: Algorithm| {
            if algorithm != Algorithm::Ring {
                text += &format!(" {what}={}", algorithm.name());
            }
        };
        algorithm("tensor", self.tensor);
        algorithm("gather", self.gather);
        algorithm("reduce", self.reduce.algorithm);
        for (what, codec) in
            [("codec", self.reduce.codec), ("parameters", self.parameters), ("activations", self.activations)]
        {
            if codec != Codec::None {
                text += &format!(" {what}={}", codec.name());
            }
        }
        if !self.buckets.is_empty() {
            text += &format!(" +{} buckets", self.buckets.len());
        }
        if !self.placement.is_empty() {
            let devices: Vec<String> = self.placement.iter().map(u32::to_string).collect();
            text += &format!(" on {}", devices.join(","));
        }
        text
    }

    pub(crate) fn check(&self, field: &str) -> Result<(), InputError> {
        for (index, device) in self.placement.iter().enumerate() {
            let at = format!("{field}.placement[{index}]");
            in_range(&at, u64::from(*device), 0, self.placement.len() as u64 - 1)?;
            if self.placement[..index].contains(device) {
                return Err(InputError::new(&at, device, "is already the device of an earlier rank").hint(
                    "give every rank its own device, or remove `placement` to put rank r on device r",
                ));
            }
        }
        let sizes = |at: &str, algorithm: Algorithm| match algorithm {
            Algorithm::Hierarchical { inner } => {
                in_range(&format!("{at}.inner"), u64::from(inner), 1, 1 << 20)
            }
            Algorithm::Torus { columns } => {
                in_range(&format!("{at}.columns"), u64::from(columns), 1, 1 << 20)
            }
            Algorithm::Ring | Algorithm::DoubleBinaryTree | Algorithm::HalvingDoubling => Ok(()),
        };
        sizes(&format!("{field}.tensor"), self.tensor)?;
        sizes(&format!("{field}.gather"), self.gather)?;
        sizes(&format!("{field}.reduce.algorithm"), self.reduce.algorithm)?;
        self.reduce.codec.check(&format!("{field}.reduce.codec"))?;
        self.parameters.check(&format!("{field}.parameters"))?;
        self.activations.check(&format!("{field}.activations"))?;
        for (index, bucket) in self.buckets.iter().enumerate() {
            let at = format!("{field}.buckets[{index}].reduction");
            sizes(&format!("{at}.algorithm"), bucket.reduction.algorithm)?;
            bucket.reduction.codec.check(&format!("{at}.codec"))?;
        }
        Ok(())
    }
}
