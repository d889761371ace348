//! Measured costs of a machine, the input of the cost model.

use crate::cluster::Cluster;
use crate::collective::Collective;
use crate::communication::{Codec, Coded};
use crate::correction::ProfileCorrection;
use crate::doubt::Doubt;
use crate::error::{InputError, bytes, finite, in_range, not_negative, positive};
use crate::job::{Optimizer, Precision};
use crate::model::ModelSpec;
use crate::network::Network;
use crate::parse::Check;
use crate::strategy::{Recompute, ScheduleKind};
use crate::units::{Bytes, FlopsPerSecond, Provenance, Seconds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// A part of a layer between two communications, which a device runs independently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    Embedding,
    AttentionNorm,
    /// Projections, attention core, output projection, residual.
    Attention,
    MlpNorm,
    Mlp,
    FinalNorm,
    /// Output projection and the largest logit of each row.
    Logits,
    /// Sum of exponentials and the target's logit of each row.
    Normalizer,
    /// Cross-entropy; its backward pass is that of the whole head.
    Loss,
}

impl Segment {
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionNorm => "attention norm",
            Self::Attention => "attention",
            Self::MlpNorm => "MLP norm",
            Self::Mlp => "MLP",
            Self::FinalNorm => "final norm",
            Self::Logits => "logits",
            Self::Normalizer => "normalizer",
            Self::Loss => "loss",
        }
    }
}

/// The pass in which a segment runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
#[derive(IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Pass {
    Forward,
    /// A forward pass that is repeated just before the backward pass.
    Recompute,
    Backward,
}

impl Pass {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// Median of repeated timings, with a 95 % confidence interval of the median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    pub median_s: Seconds,
    pub low_s: Seconds,
    pub high_s: Seconds,
    pub count: u32,
    #[serde(default)]
    pub provenance: Provenance,
}

impl Sample {
    /// Median and its confidence interval by order statistics (binomial, normal approximation).
    /// `timings` need not be sorted; an empty list gives zeros with count 0.
    pub fn of(timings: &[f64]) -> Self {
        let mut sorted = timings.to_vec();
        sorted.sort_by(f64::total_cmp);
        let n = sorted.len();
        if n == 0 {
            return Self {
                median_s: Seconds::ZERO,
                low_s: Seconds::ZERO,
                high_s: Seconds::ZERO,
                count: 0,
                provenance: Provenance::Assumed,
            };
        }
        let median = if n % 2 == 1 { sorted[n / 2] } else { 0.5 * (sorted[n / 2 - 1] + sorted[n / 2]) };
        let half_width = 0.98 * (n as f64).sqrt();
        let low = ((n as f64 / 2.0 - half_width).floor().max(0.0)) as usize;
        let high = ((n as f64 / 2.0 + half_width).ceil() as usize).min(n - 1);
        Self {
            median_s: Seconds(median),
            low_s: Seconds(sorted[low]),
            high_s: Seconds(sorted[high]),
            count: n as u32,
            provenance: Provenance::Measured,
        }
    }

    /// Width of the interval, relative to the median.
    pub fn relative_width(&self) -> f64 {
        if self.median_s.0 == 0.0 { 0.0 } else { (self.high_s - self.low_s) / self.median_s }
    }

    pub(crate) fn check(&self, field: &str) -> Result<(), InputError> {
        not_negative(&format!("{field}.median_s"), self.median_s.0)?;
        not_negative(&format!("{field}.low_s"), self.low_s.0)?;
        not_negative(&format!("{field}.high_s"), self.high_s.0)
    }
}

/// Time and memory of one pass of one segment at one tensor-parallel degree and micro-batch size, inside a
/// training step in which all ranks are busy at the same time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SegmentCost {
    pub segment: Segment,
    pub pass: Pass,
    pub tensor: u32,
    pub sequence_parallel: bool,
    pub micro_batch: u32,
    /// Recomputation policy of the layer, which determines the activations that the forward pass keeps.
    /// `none` for embedding and head.
    pub recompute: Recompute,
    pub time: Sample,
    /// Median of the time that the host takes to launch it; absent where the device is the host.
    #[serde(default, skip_serializing_if = "crate::estimate::is_zero")]
    pub launch_s: Seconds,
    /// Live memory after the segment minus live memory before it: the tensors that it keeps and outputs,
    /// minus those that it consumes.
    pub growth_bytes: i64,
    /// Highest live memory while it runs, relative to its start.
    pub peak_bytes: Bytes,
}

/// A collective over one group, while all other groups of the same kind run it too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CollectiveCost {
    pub kind: Collective,
    /// Number of ranks in the group.
    pub group: u32,
    /// Distance between neighbouring ranks of the group: 1 for tensor groups, larger for outer axes.
    pub stride: u32,
    /// Size of the whole tensor: the buffer of an all-reduce, the input of a reduce-scatter, the output of an
    /// all-gather.
    pub bytes: Bytes,
    /// Time of the slowest rank in each repetition.
    pub time: Sample,
}

/// `time = alpha + beta * bytes`, least squares on relative error (Hockney's model; Thakur et al. 2005).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LinkFit {
    /// `all_reduce`, `reduce_scatter`, `all_gather`, or `message` for send/recv.
    pub what: String,
    pub group: u32,
    pub stride: u32,
    pub alpha_s: Seconds,
    pub beta_s_per_byte: f64,
    /// Median |relative residual| over the measured sizes.
    pub residual: f64,
}

/// A send/recv between neighbouring pipeline stages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MessageCost {
    pub stride: u32,
    pub bytes: Bytes,
    /// Time from the call of send to the return of receive.
    pub time: Sample,
}

/// Optimizer step over a flat buffer, per element.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OptimizerCost {
    pub elements: u64,
    /// Update of parameters and state.
    pub update: Sample,
    /// Sum of squares for the gradient norm, and zeroing for the next step.
    pub norm: Sample,
}

/// Overhead of one pass of one chunk over one micro-batch, in addition to the chunk's layers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PipeliningCost {
    pub schedule: ScheduleKind,
    pub time: Sample,
}

/// Encoding and decoding of one bucket or one send/recv, without the communication.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CodecCost {
    pub codec: Codec,
    #[serde(default)]
    pub coded: Coded,
    /// Number of ranks; two for send/recv, whose encoding and decoding are measured together.
    pub group: u32,
    pub elements: u64,
    pub time: Sample,
}

/// Slow-down of compute and communication that overlap on one device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interference {
    /// Time of compute overlapped with communication, divided by its time alone; at least 1.
    pub compute_slowdown: f64,
    /// Time of communication overlapped with compute, divided by its time alone; at least 1.
    pub communication_slowdown: f64,
    pub provenance: Provenance,
}

/// The kind of device on which ranks compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[derive(IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum DeviceKind {
    /// One core per rank.
    #[default]
    Cpu,
    /// One NVIDIA GPU per rank.
    Cuda,
}

impl DeviceKind {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The training engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Engine {
    /// This program's own executor.
    #[default]
    Native,
    /// PyTorch: DistributedDataParallel, FSDP2 and pipelining over Gloo or NCCL.
    Torch,
}

impl Engine {
    pub fn name(self) -> &'static str {
        self.into()
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
    pub(crate) fn is_native(&self) -> bool {
        *self == Self::Native
    }
}

/// The state of a GPU during the measurement.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Accelerator {
    pub ordinal: u32,
    pub name: String,
    pub uuid: String,
    pub pci_bus: String,
    pub memory_bytes: Bytes,
    pub multiprocessors: u32,
    /// Compute capability, such as "9.0".
    pub capability: String,
    pub driver: String,
    /// Clock of the multiprocessors during the measurement in MHz; `highest_clock_mhz` is its maximum.
    pub clock_mhz: Option<u32>,
    pub highest_clock_mhz: Option<u32>,
    /// Reasons why the clock is throttled, if it is.
    pub throttled: Vec<String>,
    /// Number of other processes that compute on it.
    pub other_processes: u32,
    /// Number of active links to other GPUs.
    pub nvlinks: u32,
    /// PCI Express version and width, such as "4.0 x16".
    pub pcie: String,
}

/// The connection of two GPUs of one machine.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AcceleratorPath {
    pub from: u32,
    pub to: u32,
    /// Kind of connection, such as "NVLink", "PCIe switch", "host bridge", "across sockets".
    pub path: String,
}

/// Measurements of a device outside training steps.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hardware {
    /// Rate of the fastest GEMM of this model's shapes, run by one rank alone. It is not a peak of the
    /// device: small GEMMs are bound by launches and memory, and other load reduces the rate. Absent in older
    /// profiles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fastest_gemm_flops_per_s: Option<FlopsPerSecond>,
    /// GEMMs of the model's shapes.
    pub products: Vec<ProductCost>,
    pub copies: Vec<CopyCost>,
}

/// One GEMM of `m × k` by `k × n`, alone on the device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProductCost {
    pub m: u64,
    pub n: u64,
    pub k: u64,
    pub time: Sample,
    /// `2 m n k` divided by the median time.
    pub flops_per_s: FlopsPerSecond,
}

/// One copy of `bytes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyCost {
    pub kind: CopyKind,
    pub bytes: Bytes,
    pub time: Sample,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CopyKind {
    /// From one part of the device's memory to another: every byte is read and written.
    Device,
    HostToDevice,
    DeviceToHost,
}

/// One of several machines on which a launcher has started ranks.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Machine {
    /// The machine's own name; numbered if several machines have the same name.
    pub name: String,
    /// Ranks on this machine, in the launcher's order; rank r is device r of the network.
    pub ranks: Vec<u32>,
    pub processor: String,
    /// Number of cores that its ranks may use together.
    pub cores: u32,
    /// Free memory when the ranks joined.
    pub memory_bytes: Bytes,
}

/// Circumstances of the measurement.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Environment {
    pub host: String,
    pub processor: String,
    pub cores: u32,
    /// Whether ranks got real-time priority; without it, other load affects all measurements.
    pub realtime: bool,
    /// Seconds since 1970 when the measurement began.
    pub started_unix_s: u64,
    pub autodist_version: String,
    /// Engine whose training was measured.
    #[serde(skip_serializing_if = "Engine::is_native")]
    pub engine: Engine,
    /// Whether devices were emulated by padding and pacing. The profile is then not a measurement of such
    /// devices.
    pub emulated: bool,
    /// Kind of device on which the ranks computed.
    pub devices: DeviceKind,
    /// The GPUs, if the ranks computed on GPUs.
    pub accelerators: Vec<Accelerator>,
    pub accelerator_paths: Vec<AcceleratorPath>,
    /// Transport of collectives between GPUs: NCCL with its version, or the host's memory with the reason.
    pub collectives: String,
    /// Transport of all other communication between ranks: the MPI library, or TCP if this is empty.
    pub transport: String,
    /// The machines in the order of their first ranks, if there are several; `host`, `processor` and `cores`
    /// are those of the first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub machines: Vec<Machine>,
    // Each is written as one line: texts from drivers and ranks may contain line breaks.
    #[serde(serialize_with = "crate::text::serialize_lines")]
    #[schemars(with = "Vec<String>")]
    pub warnings: Vec<String>,
}

/// Measured costs of one model on one set of devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    pub schema_version: u32,
    pub model: ModelSpec,
    pub seq_len: u32,
    /// Precision of all measurements.
    #[serde(default)]
    pub precision: Precision,
    pub optimizer_kind: Optimizer,
    /// The devices that were measured, as a cluster.
    pub cluster: Cluster,
    pub environment: Environment,
    /// Whether every planned measurement was made; an unfinished profile can be resumed.
    pub complete: bool,
    #[serde(default)]
    pub hardware: Hardware,
    pub segments: Vec<SegmentCost>,
    pub collectives: Vec<CollectiveCost>,
    pub messages: Vec<MessageCost>,
    /// The links between the devices, if they are not all alike: on several machines, real or emulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    pub fits: Vec<LinkFit>,
    /// Coding times of gradients and other compressed data.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codecs: Vec<CodecCost>,
    /// Collectives of encoded data, if its transport differs from that of uncompressed gradients: through the
    /// host's memory instead of NCCL.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exchanges: Vec<CollectiveCost>,
    /// Collectives of tensor-parallel groups inside training steps, of the slowest group, if devices are
    /// emulated. Compared with their times alone, they show the additional time in which ranks wait for each
    /// other and for a shared core.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub within_steps: Vec<CollectiveCost>,
    pub optimizer: Vec<OptimizerCost>,
    pub interference: Interference,
    /// Additional time of a collective inside a step, compared with its time alone, because ranks start it at
    /// different times and caches are cold.
    pub synchronisation: Sample,
    /// Zeroing a new gradient buffer, in seconds per element; ZeRO-2 and 3 do it in every layer's backward
    /// pass.
    pub zero_s_per_element: f64,
    /// Adding a scattered gradient to the sum over micro-batches, in seconds per element.
    pub add_s_per_element: f64,
    /// Hand-over of a collective to the communication stream and back.
    pub stream_handover: Sample,
    /// Overhead of an engine for each gather and each scatter of a sharded bucket: host work and copies.
    /// Absent if it is part of other times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharding: Option<Sample>,
    /// Overhead of an engine's pipeline runtime for each pass of a chunk, by schedule: host work between its
    /// layers, its send/recv and their waits. Absent if it is part of other times.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pipelining: Vec<PipeliningCost>,
    /// Part of a step outside all operations: data, bookkeeping, barrier.
    pub step_overhead: Sample,
    /// Heap of a rank that has joined the job but has no model yet.
    pub baseline_bytes: Bytes,
    /// Staging memory of one communicator while it is in use.
    pub staging_bytes: Bytes,
    /// Time of the reference benchmark, measured with the steps: all times of segments and updates are
    /// corrected to this speed of the machine. 0 if it is unknown.
    #[serde(default)]
    pub reference_s: Seconds,
    /// Relative difference between two runs of the same plan, which no model can predict. Absent if every
    /// plan was run in only one round.
    #[serde(default)]
    pub repeatability: Option<f64>,
    /// Doubtful measurements.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubts: Vec<Doubt>,
    /// Step times of a trainer that `calibrate` compared with predictions from this profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<ProfileCorrection>,
}

impl Check for Profile {
    const WHAT: &'static str = "profile";

    fn check(&self) -> Result<(), InputError> {
        self.model.check().map_err(|e| e.under("model"))?;
        if !self.model.is_uniform() {
            let problem = "has blocks that differ, but a profile has the costs of one kind of block";
            return Err(InputError::new("model.blocks", "", problem)
                .hint("plan without a profile: `autodist plan --cluster`"));
        }
        self.cluster.check().map_err(|e| e.under("cluster"))?;
        in_range("seq_len", u64::from(self.seq_len), 1, 1 << 24)?;
        for (index, cell) in self.segments.iter().enumerate() {
            let at = |field: &str| format!("segments[{index}].{field}");
            in_range(&at("tensor"), u64::from(cell.tensor), 1, 1 << 20)?;
            in_range(&at("micro_batch"), u64::from(cell.micro_batch), 1, 1 << 20)?;
            cell.time.check(&at("time"))?;
            not_negative(&at("launch_s"), cell.launch_s.0)?;
            check_memory(&at("growth_bytes"), cell.growth_bytes.unsigned_abs())?;
            check_memory(&at("peak_bytes"), cell.peak_bytes.0)?;
        }
        if !self.segments.is_empty() && self.segments.iter().all(|cell| cell.time.median_s == Seconds::ZERO) {
            return Err(InputError::new(
                "segments[].time.median_s",
                0,
                "at least one segment must take longer than 0 s",
            )
            .hint("measure again with `autodist profile --fresh`"));
        }
        let collectives = [
            ("collectives", &self.collectives),
            ("exchanges", &self.exchanges),
            ("within_steps", &self.within_steps),
        ];
        for (field, cells) in collectives {
            for (index, cell) in cells.iter().enumerate() {
                in_range(&format!("{field}[{index}].group"), u64::from(cell.group), 2, 1 << 20)?;
                bytes(&format!("{field}[{index}].bytes"), cell.bytes)?;
                cell.time.check(&format!("{field}[{index}].time"))?;
            }
        }
        for (index, cell) in self.messages.iter().enumerate() {
            bytes(&format!("messages[{index}].bytes"), cell.bytes)?;
            cell.time.check(&format!("messages[{index}].time"))?;
        }
        for (index, fit) in self.fits.iter().enumerate() {
            let at = |field: &str| format!("fits[{index}].{field}");
            const KINDS: [&str; 4] = ["all_reduce", "reduce_scatter", "all_gather", "message"];
            if !KINDS.contains(&fit.what.as_str()) {
                return Err(InputError::new(at("what"), &fit.what, "is not a kind of transfer")
                    .hint(format!("expected one of {}", KINDS.join(", "))));
            }
            finite(&at("alpha_s"), fit.alpha_s.0)?;
            finite(&at("beta_s_per_byte"), fit.beta_s_per_byte)?;
            not_negative(&at("residual"), fit.residual)?;
        }
        for (index, cell) in self.optimizer.iter().enumerate() {
            in_range(&format!("optimizer[{index}].elements"), cell.elements, 1, 1 << 50)?;
            cell.update.check(&format!("optimizer[{index}].update"))?;
            cell.norm.check(&format!("optimizer[{index}].norm"))?;
        }
        for (index, cell) in self.codecs.iter().enumerate() {
            in_range(&format!("codecs[{index}].group"), u64::from(cell.group), 2, 1 << 20)?;
            in_range(&format!("codecs[{index}].elements"), cell.elements, 1, 1 << 50)?;
            cell.codec.check(&format!("codecs[{index}].codec"))?;
            cell.time.check(&format!("codecs[{index}].time"))?;
        }
        self.hardware.check()?;
        if let Some(network) = &self.network {
            network.check().map_err(|e| e.under("network"))?;
        }
        for (field, value) in [
            ("interference.compute_slowdown", self.interference.compute_slowdown),
            ("interference.communication_slowdown", self.interference.communication_slowdown),
        ] {
            if !(value.is_finite() && (1.0..=1e3).contains(&value)) {
                return Err(InputError::new(field, value, "must be a number from 1 to 1000")
                    .hint("give 1 for no slow-down"));
            }
        }
        check_memory("baseline_bytes", self.baseline_bytes.0)?;
        check_memory("staging_bytes", self.staging_bytes.0)?;
        not_negative("zero_s_per_element", self.zero_s_per_element)?;
        not_negative("add_s_per_element", self.add_s_per_element)?;
        self.synchronisation.check("synchronisation")?;
        self.stream_handover.check("stream_handover")?;
        for (index, cell) in self.pipelining.iter().enumerate() {
            cell.time.check(&format!("pipelining[{index}].time"))?;
        }
        self.sharding.as_ref().map_or(Ok(()), |sample| sample.check("sharding"))?;
        self.step_overhead.check("step_overhead")?;
        for (index, doubt) in self.doubts.iter().enumerate() {
            doubt.check(&format!("doubts[{index}]"))?;
        }
        self.correction.as_ref().map_or(Ok(()), ProfileCorrection::check)?;
        self.repeatability.map_or(Ok(()), |value| not_negative("repeatability", value))
    }
}

impl Profile {
    /// Relative difference between two runs of one plan; `None` if it was not measured. Profiles of earlier
    /// versions have 0 in this case, which does not occur in real runs.
    pub fn noise(&self) -> Option<f64> {
        self.repeatability.filter(|value| *value > 0.0)
    }
}

impl Profile {
    /// Rate of the fastest GEMM of this model's shapes; older profiles have it among the figures of the
    /// device.
    pub fn fastest_gemm(&self) -> Option<FlopsPerSecond> {
        let older = || self.cluster.nodes.first()?.device.measured_rate();
        self.hardware.fastest_gemm_flops_per_s.or_else(|| older().filter(|_| !self.environment.emulated))
    }
}

impl Hardware {
    fn check(&self) -> Result<(), InputError> {
        if let Some(rate) = self.fastest_gemm_flops_per_s {
            positive("hardware.fastest_gemm_flops_per_s", rate.0)?;
        }
        for (index, product) in self.products.iter().enumerate() {
            let at = |field: &str| format!("hardware.products[{index}].{field}");
            for (field, size) in [("m", product.m), ("n", product.n), ("k", product.k)] {
                in_range(&at(field), size, 1, 1 << 40)?;
            }
            product.time.check(&at("time"))?;
            not_negative(&at("flops_per_s"), product.flops_per_s.0)?;
        }
        for (index, copy) in self.copies.iter().enumerate() {
            bytes(&format!("hardware.copies[{index}].bytes"), copy.bytes)?;
            copy.time.check(&format!("hardware.copies[{index}].time"))?;
        }
        Ok(())
    }
}

/// Checks the memory of one operation: at most 16 TiB, so that the sum over a step does not overflow.
fn check_memory(field: &str, size: u64) -> Result<(), InputError> {
    in_range(field, size, 0, 1 << 44)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_a_median_with_an_interval_that_holds_it() {
        let timings: Vec<f64> = (1..=101).map(f64::from).collect();
        let sample = Sample::of(&timings);
        assert_eq!(sample.median_s, Seconds(51.0));
        assert!(sample.low_s.0 >= 40.0 && sample.low_s.0 < 51.0);
        assert!(sample.high_s.0 <= 62.0 && sample.high_s.0 > 51.0);
        assert_eq!(Sample::of(&[]).count, 0);
    }
}
