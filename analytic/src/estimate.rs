//! From work to step time: overlap, waiting and exposed communication.

use crate::machine::{FabricKind, Generation};
use crate::memory::{self, Memory};
use crate::parameters::FreeParameters;
use crate::run::TrainingRun;
use crate::trainer::{AttentionKind, HostKind, Trainer};
use crate::work::{GemmTime, LinkTime, StepWork, TensorParallelTime};
use autodist_spec::error::positive;
use autodist_spec::{InputError, Precision, Recompute, Seconds};
use serde::Serialize;

/// The parts of a step's time on the critical path; they sum to the step time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Breakdown {
    /// Linear layers, forward and backward.
    pub linear_s: f64,
    pub attention_s: f64,
    /// Norms, activations, residuals, and accumulation of gradients over micro-batches.
    pub elementwise_s: f64,
    /// Embedding, logits and loss.
    pub head_s: f64,
    /// Forward passes repeated by recomputation, their communication included.
    pub recompute_s: f64,
    pub tensor_s: f64,
    pub context_s: f64,
    pub expert_s: f64,
    /// Exposed copies of activations to the host's memory and back.
    pub away_s: f64,
    /// Exposed send/recv between pipeline stages.
    pub message_s: f64,
    /// Bubble: pipeline ranks that wait for work.
    pub bubble_s: f64,
    /// Exposed all-reduces or reduce-scatters of gradients, and all-gathers of updated parameters.
    pub data_s: f64,
    /// Exposed all-gathers of sharded parameters.
    pub gather_s: f64,
    pub optimizer_s: f64,
    /// Devices that wait for the host to launch kernels.
    pub host_s: f64,
    /// Ranks that wait for the slowest node.
    pub jitter_s: f64,
    pub other_s: f64,
}

impl Breakdown {
    /// Seconds of the step.
    pub fn total(&self) -> f64 {
        self.busy() + self.jitter_s + self.optimizer_s + self.other_s
    }

    fn busy(&self) -> f64 {
        let compute = self.linear_s + self.attention_s + self.elementwise_s + self.head_s + self.recompute_s;
        let inside = self.tensor_s + self.context_s + self.expert_s + self.away_s + self.gather_s;
        compute + inside + self.message_s + self.bubble_s + self.data_s + self.host_s
    }
}

/// Time and memory of one step.
#[derive(Debug, Clone)]
pub struct StepEstimate {
    pub step: Seconds,
    pub breakdown: Breakdown,
    pub memory: Memory,
}

/// One EiB.
const MOST_BYTES: f64 = (1_u64 << 60) as f64;

impl StepEstimate {
    /// # Errors
    /// A number is not finite or not plausible; the error names its field.
    pub fn check(&self) -> Result<(), InputError> {
        positive("step", self.step.0)?;
        let memory = self.memory.total();
        if memory <= MOST_BYTES {
            return positive("memory", memory);
        }
        Err(InputError::new("memory", format!("{memory:.1e}"), "is more bytes than any device could hold"))
    }
}

/// Embedding, head and loss have about as many kernels as a block, and the host launches them too.
pub(crate) const HOST_OF_ENDS: f64 = 1.0;

/// Maximum of two times that overlap almost fully; slightly above the maximum where they are equal.
fn hiding(a: f64, b: f64) -> f64 {
    let (low, high) = (a.min(b), a.max(b));
    if low <= 0.0 { high } else { high * (1.0 + (low / high).powi(8)).powf(0.125) }
}

/// Time of one block and one micro-batch, in seconds.
pub(crate) struct Block {
    linear: f64,
    attention: f64,
    elementwise: f64,
    recompute: f64,
    pub tensor: f64,
    /// The part of the forward pass.
    pub tensor_forward: f64,
    pub context_forward: f64,
    pub context_backward: f64,
    pub expert: f64,
    /// Copies of activations to the host's memory and back that the passes wait for.
    pub away_forward: f64,
    pub away_backward: f64,
    pub forward: f64,
    /// Recomputation included.
    pub backward: f64,
}

pub(crate) struct Rates<'a> {
    parameters: &'a FreeParameters,
    gemm: f64,
    /// Rate of 16-bit GEMMs.
    gemm_16: f64,
    waves: f64,
    pub second_per_byte: f64,
    link: f64,
    network: f64,
}

impl<'a> Rates<'a> {
    pub fn new(run: &TrainingRun, parameters: &'a FreeParameters) -> Self {
        let p = parameters;
        let generation = match run.machine.generation {
            Generation::Volta => p.volta,
            Generation::Ampere => p.ampere,
            Generation::Hopper => p.hopper,
            Generation::Blackwell => p.blackwell,
            Generation::BlackwellUltra => p.blackwell_ultra,
            Generation::Other => p.other_device,
        };
        let classic = run.trainer.traits().classic;
        let (memory, links) = match run.machine.generation {
            Generation::Volta => (p.volta_memory, p.volta_links),
            _ => (1.0, 1.0),
        };
        let library = match (run.trainer, run.machine.generation) {
            (Trainer::Fsdp, Generation::Hopper) => p.first_hopper,
            _ if classic => p.classic_library,
            _ => 1.0,
        };
        let eight_bits = match run.machine.generation {
            Generation::Blackwell | Generation::BlackwellUltra => p.eight_bits_blackwell,
            _ => p.eight_bits,
        };
        let gemm_16 = p.gemm_efficiency * generation * library;
        Self {
            parameters,
            gemm: gemm_16 * if run.dtype == Precision::Fp8 { eight_bits } else { 1.0 },
            gemm_16,
            waves: if classic { p.classic_waves } else { 0.0 },
            second_per_byte: run.machine.seconds_per_byte / (p.memory_efficiency * memory),
            link: p.link * links,
            network: match run.machine.fabric {
                FabricKind::InfinibandOrEthernet => p.network * links,
                FabricKind::OmniPath => p.omni_path,
            },
        }
    }

    /// Seconds per byte of norms, activations and residuals.
    pub fn elementwise(&self, run: &TrainingRun) -> f64 {
        let p = self.parameters;
        p.elementwise * self.second_per_byte * if run.eager { p.eager } else { 1.0 }
    }

    /// Seconds of the casts of one block's pass. In FP8, operands are read in 16 bits and written twice,
    /// directly and transposed; so are their gradients.
    pub fn casts(&self, run: &TrainingRun, work: &StepWork) -> f64 {
        let bytes = self.parameters.cast_bytes * work.operands;
        if run.dtype == Precision::Fp8 { bytes * self.second_per_byte } else { 0.0 }
    }

    pub fn gemms(&self, work: GemmTime) -> f64 {
        let unaligned = work.unaligned * (1.0 / self.parameters.unaligned - 1.0);
        (work.plain + work.waves * self.waves + unaligned) / self.gemm
    }

    pub fn transfer(&self, work: LinkTime) -> f64 {
        work.seconds / if work.between_nodes { self.network } else { self.link }
    }
}

/// Time of a step, by parts.
pub fn time(run: &TrainingRun, work: &StepWork, parameters: &FreeParameters) -> Breakdown {
    let p = parameters;
    let rates = Rates::new(run, p);
    let layout = &run.layout;
    let block = block(run, work, &rates);
    let stages = f64::from(layout.pipeline);
    let (blocks, missing_at_ends) = run.blocks();
    let micro_batches = run.micro_batches();

    let loss_bytes = if run.fused_loss { 0.4 } else { 1.0 } * p.logit_bytes;
    let head_bytes = work.logits * loss_bytes + work.head_gradient_bytes;
    let head = rates.gemms(work.logit_gemms) + head_bytes * rates.second_per_byte;
    let embedding = work.embedding_bytes * rates.second_per_byte;

    // Compute of a stage for one micro-batch; the all-gathers of ZeRO-3 overlap with it.
    let all_gather =
        if layout.zero_stage == 3 { rates.transfer(work.block_gather) + work.block_fetch } else { 0.0 };
    let alone = block.forward + block.backward;
    let beside_gathers = |gather: f64, again: f64| {
        let (forward, backward) = (block.forward.max(gather), block.backward.max((1.0 + again) * gather));
        forward + backward + (2.0 + again) * p.gather_drag * gather
    };
    // A pipeline keeps the gathered parameters until its last micro-batch, and reduce-scatters gradients
    // after that.
    let (gather, gathered_once) = if stages > 1.0 {
        (0.0, blocks * (beside_gathers(all_gather, 0.0) - alone))
    } else {
        (all_gather, 0.0)
    };
    let beside = beside_gathers(gather, 1.0);
    let stage = blocks * beside;
    let block_host = host_seconds(run, work, p);
    let host = blocks * block_host;
    let middle = hiding(stage, host);
    let ends = head + embedding;
    let (here, queued) = if stages > 1.0 { (head, 0.5 * HOST_OF_ENDS) } else { (ends, HOST_OF_ENDS) };
    let last =
        hiding(stage - missing_at_ends * beside + here, host + (queued - missing_at_ends) * block_host);

    // 1F1B: every stage processes all micro-batches; the slowest stage determines the rate, the others add
    // the fill and the drain of the pipeline.
    let virtual_stages = f64::from(layout.virtual_stages);
    let fill = (stages - 1.0) / virtual_stages * middle;
    let pace = (micro_batches - 1.0) * (last - middle).max(0.0);
    let (near, far) = (rates.transfer(work.message_near), rates.transfer(work.message_far));
    // As many micro-batches are under way as there are stages, so each waits for its share of all send/recv.
    let mean = near + work.far_neighbours * (far - near);
    let message = mean * p.message_exposed + p.message_s;
    let passes = micro_batches * virtual_stages;
    // A link between nodes carries every micro-batch, one after the other.
    let busiest = if work.far_neighbours > 0.0 { far } else { near };
    let messages = if stages > 1.0 {
        (2.0 * (passes + stages - 1.0) * message).max(passes * busiest - micro_batches * middle)
    } else {
        0.0
    };

    let mut out = Breakdown::default();
    let times = micro_batches * blocks;
    out.linear_s = times * block.linear;
    out.attention_s = times * block.attention;
    out.elementwise_s = times * block.elementwise;
    out.recompute_s = times * block.recompute;
    out.tensor_s = times * block.tensor;
    out.context_s = times * (block.context_forward + block.context_backward);
    out.expert_s = times * block.expert;
    out.away_s = times * (block.away_forward + block.away_backward);
    out.gather_s = gathered_once + times * (beside - alone) + 2.0 * all_gather;
    if stages > 1.0 {
        let once = (last - middle + embedding).max(0.0);
        out.head_s = pace + once;
        out.host_s = micro_batches * (middle - stage);
        out.bubble_s = fill;
        out.message_s = messages;
    } else {
        out.head_s = micro_batches * ends;
        out.host_s = micro_batches * (last - stage - here);
    }
    out.data_s = data(run, work, &rates, blocks * block.backward);
    let nodes = f64::from(layout.devices().div_ceil(run.machine.devices_per_node));
    out.jitter_s = out.busy() * p.jitter * nodes.log2();
    out.optimizer_s = work.optimizer_bytes * p.optimizer * rates.second_per_byte + work.update_away;
    out.other_s = p.step_s;
    out
}

pub(crate) fn block(run: &TrainingRun, work: &StepWork, rates: &Rates) -> Block {
    let p = rates.parameters;
    let linear_forward = rates.gemms(work.linear_forward);
    let linear_backward = rates.gemms(work.linear_backward);
    let (attention_forward, attention_backward) = attention(run, work, rates);
    let bytes = rates.elementwise(run);
    let casts = rates.casts(run, work);
    let forward_elements = work.element_bytes_forward * bytes + casts;
    let gather = work.gather_bytes * rates.second_per_byte;
    let backward_elements =
        work.element_bytes_backward * bytes + work.gradient_bytes * rates.second_per_byte + casts;

    // With more ranks, the slowest one is later.
    let skew = p.skew_s * f64::from(run.layout.tensor).log2();
    // Collectives that overlap with GEMMs take streaming multiprocessors and bandwidth from them.
    let collectives = |time: &TensorParallelTime, gemms: f64| {
        let overlapped = rates.transfer(time.overlapped);
        let longer = (overlapped - gemms).max(0.0) + p.tensor_drag * overlapped.min(gemms);
        rates.transfer(time.exposed) + time.calls * skew + longer
    };
    let tensor_forward = collectives(&work.tensor_forward, linear_forward);
    let tensor_backward = collectives(&work.tensor_backward, linear_backward);
    let context = rates.transfer(work.context);
    let experts = rates.transfer(work.experts);
    // Keys and values of the next ring step are sent while the scores of this one are computed.
    let context_forward = (context - 0.5 * attention_forward).max(0.3 * context);
    let context_backward = (2.0 * context - 0.5 * attention_backward).max(0.6 * context);

    let mut forward = linear_forward
        + attention_forward
        + gather
        + forward_elements
        + tensor_forward
        + context_forward
        + experts;
    let backward = linear_backward
        + attention_backward
        + backward_elements
        + tensor_backward
        + context_backward
        + experts;
    let recompute = match run.recompute {
        Recompute::None => 0.0,
        // PyTorch recomputes every second block or GEMM: half of them.
        Recompute::Selective if run.trainer.traits().shards_parameters => {
            0.5 * (linear_forward + forward_elements + tensor_forward)
        }
        Recompute::Selective => attention_forward,
        Recompute::Full => {
            let stops = run.trainer.traits().shards_parameters;
            forward - gather - if stops { (1.0 - p.early_stop).max(0.0) * linear_forward } else { 0.0 }
        }
    };
    let backward = backward + recompute;
    // After the repeated forward pass was taken from them.
    let copied = copied_bytes(run);
    let away_forward = run.exposed_copy(copied, forward);
    let away_backward = run.exposed_copy(copied, backward);
    forward += away_forward;
    Block {
        away_forward,
        away_backward,
        linear: linear_forward + linear_backward,
        attention: attention_forward + attention_backward,
        elementwise: gather + forward_elements + backward_elements,
        recompute,
        tensor: tensor_forward + tensor_backward,
        tensor_forward,
        context_forward,
        context_backward,
        expert: 2.0 * experts,
        forward,
        backward: backward + away_backward,
    }
}

/// Bytes of one block's activations that are copied to the host and back.
fn copied_bytes(run: &TrainingRun) -> f64 {
    if !run.states.activations.is_away() {
        return 0.0;
    }
    memory::kept(run.word(), run.gated(), &run.kernels(), run.attention, run.residual_rows()).of_pass(run)
}

/// Seconds of one block's attention core, forward and backward.
pub(crate) fn attention(run: &TrainingRun, work: &StepWork, rates: &Rates) -> (f64, f64) {
    let p = rates.parameters;
    match run.attention {
        AttentionKind::Unfused => {
            let heads = if run.block.head_dim % 8 == 0 { 1.0 } else { 1.0 / p.unaligned_heads };
            let apart = if work.softmax_apart { p.apart_score_bytes } else { 1.0 };
            let scores = work.scores * p.score_bytes * apart * rates.second_per_byte;
            let gemms = heads / rates.gemm_16;
            (work.attention_forward * gemms + scores, work.attention_backward * gemms + 1.2 * scores)
        }
        _ => {
            let flash = match (run.attention, run.machine.generation) {
                (AttentionKind::FirstFlash, _) => p.first_flash,
                (_, Generation::Volta | Generation::Ampere | Generation::Other) => p.flash,
                (AttentionKind::SecondFlash, Generation::Hopper) => p.older_flash,
                (AttentionKind::Cudnn, _) => p.cudnn_attention,
                _ => p.young_flash,
            };
            let rate = flash * rates.gemm_16 / p.gemm_efficiency;
            (work.attention_forward / rate, work.attention_backward / rate)
        }
    }
}

/// Kernels of a backward pass, relative to its forward pass.
pub(crate) const BACKWARD_LAUNCHES: f64 = 1.5;

/// Host seconds to launch the kernels of one block's passes over one micro-batch.
fn host_seconds(run: &TrainingRun, work: &StepWork, p: &FreeParameters) -> f64 {
    launch_seconds(run, work, p) * (1.0 + BACKWARD_LAUNCHES + StepWork::repeats(run))
}

/// Host seconds to launch the kernels of one block's forward pass.
pub(crate) fn launch_seconds(run: &TrainingRun, work: &StepWork, p: &FreeParameters) -> f64 {
    let forward = match run.trainer.traits().host {
        HostKind::MegatronDeepspeed => p.host_deepspeed_s,
        HostKind::Eager => p.host_eager_s,
        HostKind::Megatron => p.host_megatron_s,
    };
    let tensor = 1.0 + p.host_tensor * f64::from(run.layout.tensor).log2();
    let apart = if work.softmax_apart { 1.0 + p.apart_host } else { 1.0 };
    forward * tensor * apart * run.machine.host_slowness
}

/// Exposed seconds of the gradient reduction and of the all-gather of updates; `last_backward` can overlap
/// with them.
fn data(run: &TrainingRun, work: &StepWork, rates: &Rates, last_backward: f64) -> f64 {
    let p = rates.parameters;
    let reduce = rates.transfer(work.reduce);
    let exposed = if run.overlap { (p.reduce_exposed * reduce).max(reduce - last_backward) } else { reduce };
    let updates = match run.layout.zero_stage {
        1 | 2 if run.broadcasts => {
            p.broadcast_s * f64::from(run.layout.shard) + rates.transfer(work.update_gather)
        }
        1 | 2 => rates.transfer(work.update_gather) * p.update_gather,
        _ => 0.0,
    };
    let hidden = if run.overlap && !run.broadcasts { p.reduce_exposed } else { 1.0 };
    exposed + updates * hidden
}

impl TrainingRun {
    /// Time and memory with the given parameters.
    pub fn estimate(&self, parameters: &FreeParameters) -> StepEstimate {
        let breakdown = time(self, &StepWork::of(self), parameters);
        StepEstimate { step: Seconds(breakdown.total()), breakdown, memory: Memory::of(self) }
    }
}
