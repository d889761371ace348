//! Prices of a program's operations on devices and links without measurements: kernels and collectives of the
//! hardware model, at the rates of a training step that the free parameters describe.
//!
//! A block's segments and collectives take as long as the block of the closed form (`estimate`), so that both
//! rest on the same fit. The simulator models effects that the closed form approximates: the order of
//! micro-batches, uneven stages, overlap of single buckets.

use crate::adapters::AdapterWork;
use crate::estimate::{Rates, attention, block, launch_seconds};
use crate::launches::Launches;
use crate::memory::{self, Reserve};
use crate::parameters::FreeParameters;
use crate::run::{ParallelDims, TrainingRun};
use crate::software::BUCKET;
use crate::states::{check_strategy, parameter_bytes};
use crate::trainer::{AttentionKind, Trainer};
use crate::work::StepWork;
use autodist_cost_model::{
    CollectiveQuery, CostModel, MessageQuery, Price, Prices, Purpose, SegmentPrice, SegmentQuery, StepCosts,
    Unpriced,
};
use autodist_program::{Held, Transfer, residual_stream};
use autodist_spec::profile::Interference;
use autodist_spec::{
    Algorithm, BlockSpec, Bytes, Collective, DeviceClasses, Job, Kernels, LayerTraining, ModelSpec,
    ParallelStrategy, Pass, Provenance, Recompute, Seconds, Segment,
};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// Costs of one job on one kind of nodes with one trainer.
#[derive(Debug)]
pub struct CataloguePrices {
    /// Model, machine, trainer and batch; its layout is ignored.
    run: TrainingRun,
    /// The ranks on these nodes.
    ranks: Range<u32>,
    /// Nodes of the whole cluster.
    nodes: u32,
    parameters: FreeParameters,
    blocks: RwLock<BTreeMap<Key, Arc<Costs>>>,
}

/// The properties on which the costs of segments and of tensor collectives depend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    block: Option<BlockSpec>,
    training: LayerTraining,
    tensor: u32,
    context: u32,
    expert: u32,
    sequence_parallel: bool,
    micro_batch: u32,
    recompute: Recompute,
    accumulates: bool,
    copies: Sharding,
}

/// What the copies of FSDP2 depend on; the default for other trainers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Sharding {
    zero_stage: u8,
    shard: u32,
    /// Whether there are several data-parallel ranks, and several pipeline ranks.
    data: bool,
    pipeline: bool,
}

/// Seconds of the forward and of the backward pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Passes {
    pub forward: f64,
    /// Seconds of the forward pass when recomputation repeats it.
    pub again: f64,
    /// Does not include a repeated forward pass of the whole segment.
    pub backward: f64,
}

/// Costs of one micro-batch.
#[derive(Debug, Default)]
struct Costs {
    norm: Passes,
    attention: Passes,
    mlp: Passes,
    embedding: Passes,
    /// All GEMMs of the head in `forward` and `backward`.
    logits: Passes,
    /// Memory-bound work of the loss.
    loss: Passes,
    /// Exposed exchange of keys and values.
    context: Passes,
    /// Time of a tensor collective in a step, relative to the collective alone.
    tensor: f64,
    launches: Launches,
    kept: Kept,
}

/// Bytes of the tensors of one micro-batch.
#[derive(Debug, Clone, Copy, Default)]
struct Kept {
    /// An activation between layers, and this rank's rows of it.
    whole: i64,
    rows: i64,
    /// Activations that attention and the MLP keep in addition to their inputs.
    attention: i64,
    mlp: i64,
    /// Gradients of these that are alive at the same time.
    attention_gradient: i64,
    mlp_gradient: i64,
    /// The largest gradient of a weight before it is accumulated: of the MLP, and of the embedding table.
    mlp_weights: i64,
    table: i64,
    /// Logits in 16 bits, and the tensors that the loss makes from them.
    logits: i64,
    loss: i64,
}

impl CataloguePrices {
    /// Prices on a cluster of `devices` devices, all in nodes of one kind. `run` has the model, the machine, the
    /// trainer and the batch.
    pub fn new(run: &TrainingRun, devices: u32, parameters: &FreeParameters) -> Self {
        let nodes = devices.div_ceil(run.machine.devices_per_node);
        Self::among(run, nodes, 0..devices, parameters)
    }

    /// Prices on the nodes of one kind, which have these ranks, in a cluster of `nodes` nodes.
    pub fn among(run: &TrainingRun, nodes: u32, ranks: Range<u32>, parameters: &FreeParameters) -> Self {
        Self { run: run.clone(), ranks, nodes, parameters: *parameters, blocks: RwLock::default() }
    }

    /// The cost model of a model and a job with these prices; `error_bar` is the relative half-width of the
    /// interval of a step time.
    pub fn cost_model(self, model: &ModelSpec, job: &Job, error_bar: f64) -> CostModel {
        let step = self.step_costs(error_bar);
        CostModel::of_prices(model, job, DeviceClasses::alike(), vec![Arc::new(self)], step)
    }

    /// The costs of a step beyond its prices, which depend on the trainer alone.
    pub fn step_costs(&self, error_bar: f64) -> StepCosts {
        let trainer = self.run.trainer;
        // Seconds that compute loses for each second in which it overlaps with a transfer.
        let lost = if trainer.traits().shards_parameters || !self.run.overlap {
            self.parameters.gather_drag
        } else {
            self.parameters.reduce_exposed
        };
        let by_stage = [0, 1, 2, 3].map(|zero_stage| {
            let layout = ParallelDims { zero_stage, ..self.run.layout };
            let run = TrainingRun { layout, ..self.run.clone() };
            parameter_bytes(&run, memory::Bytes::of(&run).each)
        });
        StepCosts {
            overlaps_reductions: self.run.overlap,
            receives_block: trainer.traits().receives_block,
            frees_gradients: trainer.traits().shards_parameters,
            pipelines_stay_gathered: trainer.traits().shards_parameters,
            parameter_bytes: by_stage.map(|[device, _]| device),
            host_bytes: by_stage.map(|[_, host]| host),
            whole_gradient_bytes: self.run.whole_gradient_bytes(),
            activations_on_host: self.run.states.activations.is_away(),
            interference: Interference {
                compute_slowdown: 1.0 / (1.0 - lost.clamp(0.0, 0.95)),
                communication_slowdown: 1.0,
                provenance: Provenance::Modelled,
            },
            overhead_s: Seconds(self.parameters.step_s),
            baseline_bytes: Bytes(Reserve::SHIPPED.context as u64),
            fragmentation: Reserve::SHIPPED.fragmentation_of(trainer),
            peak_error: Reserve::PEAKS,
            spread: error_bar,
        }
    }

    /// A run of such strategies with this block, with one micro-batch in a step, or two if gradients are
    /// accumulated.
    fn laid_out(&self, key: &Key) -> TrainingRun {
        let Key { tensor, context, expert, sequence_parallel, micro_batch, recompute, copies, .. } = *key;
        let data = copies.shard.max(if copies.data { 2 } else { 1 });
        let (block, training) = (key.block.unwrap_or(self.run.block), key.training);
        let layout = ParallelDims {
            tensor,
            context,
            expert,
            sequence_parallel,
            data,
            shard: copies.shard,
            zero_stage: copies.zero_stage,
            pipeline: if copies.pipeline { 2 } else { 1 },
            ..ParallelDims::default()
        };
        let global_batch = micro_batch * data * if key.accumulates { 2 } else { 1 };
        TrainingRun { block, training, layout, micro_batch, recompute, global_batch, ..self.run.clone() }
    }

    fn sharding(&self, strategy: &ParallelStrategy) -> Sharding {
        if self.run.trainer != Trainer::Fsdp2 {
            return Sharding { zero_stage: 0, shard: 1, data: false, pipeline: false };
        }
        let ParallelStrategy { zero_stage, shard, data, pipeline, .. } = *strategy;
        Sharding { zero_stage, shard: shard.max(1), data: data > 1, pipeline: pipeline > 1 }
    }

    /// Costs of a block, or of the run's own.
    fn costs(
        &self,
        strategy: &ParallelStrategy,
        (block, training): (Option<BlockSpec>, LayerTraining),
        recompute: Recompute,
        accumulates: bool,
    ) -> Arc<Costs> {
        let ParallelStrategy { tensor, context, expert, sequence_parallel, micro_batch, .. } = *strategy;
        let key = Key {
            block,
            training,
            tensor,
            context,
            expert,
            sequence_parallel,
            micro_batch,
            recompute,
            accumulates,
            copies: self.sharding(strategy),
        };
        if let Some(known) = self.blocks.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Arc::clone(known);
        }
        let made = Arc::new(self.block_costs(&self.laid_out(&key)));
        self.blocks.write().unwrap_or_else(PoisonError::into_inner).entry(key).or_insert(made).clone()
    }

    /// Slowdown by the slowest of all nodes.
    fn jitter(&self) -> f64 {
        1.0 + self.parameters.jitter * f64::from(self.nodes).log2()
    }

    fn block_costs(&self, run: &TrainingRun) -> Costs {
        let p = &self.parameters;
        let work = StepWork::of(run);
        let rates = Rates::new(run, p);
        let block = block(run, &work, &rates);
        let tokens = run.shard().tokens;
        let hidden = f64::from(run.model.hidden);

        let core = attention(run, &work, &rates);
        let [qkv_forward, qkv_backward] =
            [work.projections_forward, work.projections_backward].map(|gemms| rates.gemms(gemms));
        let [linear_forward, linear_backward] =
            [work.linear_forward, work.linear_backward].map(|gemms| rates.gemms(gemms));
        let [attention_kernels, mlp_kernels] = run.kernels();
        let norm_kernels = run.model.kernels(&run.block, Segment::AttentionNorm, &run.shard());
        let [norm, around_core, activation] = [&norm_kernels, &attention_kernels, &mlp_kernels].map(|one| {
            [one.forward_elements, one.backward_elements]
                .map(|elements| run.word() * elements * rates.elementwise(run))
        });
        let casts = rates.casts(run, &work);
        let qkv_casts = casts * qkv_forward / linear_forward;
        let gathered = work.gather_bytes * rates.second_per_byte;
        let reduced = work.gradient_bytes * rates.second_per_byte;
        let [in_attention, in_mlp] = work.adapters.map(|one| {
            let expanded = one.expanded_bytes * rates.second_per_byte;
            [one.forward_bytes, one.backward_bytes].map(|bytes| bytes * rates.elementwise(run) + expanded)
        });
        let attention_part =
            attention_kernels.weights() / (attention_kernels.weights() + mlp_kernels.weights());
        let mut costs = Costs {
            norm: Passes { forward: norm[0], again: norm[0], backward: norm[1] },
            attention: Passes {
                forward: qkv_forward
                    + qkv_casts
                    + core.0
                    + around_core[0]
                    + in_attention[0]
                    + attention_part * gathered,
                again: qkv_forward + qkv_casts + core.0 + around_core[0] + in_attention[0],
                backward: qkv_backward
                    + qkv_casts
                    + core.1
                    + around_core[1]
                    + in_attention[1]
                    + attention_part * reduced,
            },
            mlp: Passes {
                forward: linear_forward - qkv_forward + casts - qkv_casts
                    + activation[0]
                    + in_mlp[0]
                    + (1.0 - attention_part) * gathered,
                again: linear_forward - qkv_forward + casts - qkv_casts + activation[0] + in_mlp[0],
                backward: linear_backward - qkv_backward + casts - qkv_casts
                    + activation[1]
                    + in_mlp[1]
                    + (1.0 - attention_part) * reduced,
            },
            context: Passes {
                forward: block.context_forward,
                again: block.context_forward,
                backward: block.context_backward,
            },
            kept: Kept::of(run),
            ..Costs::default()
        };
        let stops = run.trainer.traits().shards_parameters;
        let halves = run.recompute == Recompute::Selective && run.trainer.traits().shards_parameters;
        match run.recompute {
            // PyTorch recomputes every second block or GEMM: half of them, without the attention core.
            Recompute::Selective if halves => {
                for passes in [&mut costs.norm, &mut costs.mlp] {
                    passes.backward += 0.5 * passes.forward;
                }
                costs.attention.backward += 0.5 * (costs.attention.forward - core.0);
            }
            Recompute::Selective => costs.attention.backward += core.0,
            Recompute::Full if stops => {
                costs.mlp.again -= (1.0 - p.early_stop).max(0.0) * linear_forward;
            }
            Recompute::Full | Recompute::None => {}
        }

        // In the block's passes, tensor collectives partly overlap with GEMMs, and ranks wait for the
        // slowest.
        let alone: f64 = [work.tensor_forward, work.tensor_backward]
            .iter()
            .map(|time| rates.transfer(time.exposed) + rates.transfer(time.overlapped))
            .sum();
        costs.tensor = if alone > 0.0 { block.tensor / alone } else { 1.0 };

        let head = rates.gemms(work.logit_gemms);
        let loss =
            work.logits * if run.fused_loss { 0.4 } else { 1.0 } * p.logit_bytes * rates.second_per_byte;
        let table = work.head_gradient_bytes * rates.second_per_byte;
        // Forward, gradients of the input and, if they are trained, of the weights.
        let once = head / if run.training.weights { 3.0 } else { 2.0 };
        costs.logits = Passes { forward: once, again: once, backward: head - once + table };
        costs.loss = Passes { forward: 0.5 * loss, again: 0.5 * loss, backward: 0.5 * loss };
        let lookup = 4.0 * run.word() * tokens * hidden * rates.second_per_byte;
        let embedding = work.embedding_bytes * rates.second_per_byte;
        let backward = if run.training.weights { embedding - lookup } else { 0.0 };
        costs.embedding = Passes { forward: lookup, again: lookup, backward };

        if run.recompute == Recompute::Full && !stops {
            // A program leaves out the collective after the repeated block, whose output is known: one of two
            // all-reduces, or one of four reduce-scatters and all-gathers. Trainers repeat all of them.
            let programs = if run.layout.sequence_parallel { 0.75 } else { 0.5 };
            let forward = &work.tensor_forward;
            let alone = rates.transfer(forward.exposed) + rates.transfer(forward.overlapped);
            costs.mlp.again += block.tensor_forward - programs * costs.tensor * alone;
        }
        costs.mlp.forward += block.away_forward;
        costs.mlp.backward += block.away_backward;
        let jitter = self.jitter();
        let more = 1.0 + work.adapters.iter().map(|one| one.launches).sum::<f64>();
        costs.launches = Launches::of(jitter * launch_seconds(run, &work, p) * more);
        for passes in [&mut costs.norm, &mut costs.attention, &mut costs.mlp] {
            passes.scale(jitter);
        }
        for passes in [&mut costs.context, &mut costs.logits, &mut costs.loss, &mut costs.embedding] {
            passes.scale(jitter);
        }
        costs
    }

    /// Seconds of a collective alone, at the rate of a training step.
    fn alone(&self, kind: Collective, group: u32, stride: u32, bytes: f64) -> f64 {
        let machine = &self.run.machine;
        let near = (machine.devices_per_node / stride).clamp(1, group);
        let sharing = stride.min(machine.devices_per_node);
        let seconds = machine.collective(kind, bytes, group, near, sharing);
        self.rated(seconds, group > near)
    }

    fn rated(&self, seconds: f64, between_nodes: bool) -> f64 {
        let rates = Rates::new(&self.run, &self.parameters);
        rates.transfer(crate::work::LinkTime { seconds, between_nodes }) * self.jitter()
    }

    /// Seconds per byte of the optimizer's memory traffic.
    fn per_optimizer_byte(&self) -> f64 {
        self.parameters.optimizer * Rates::new(&self.run, &self.parameters).second_per_byte
    }
}

impl Passes {
    pub fn scale(&mut self, factor: f64) {
        self.forward *= factor;
        self.again *= factor;
        self.backward *= factor;
    }

    pub fn of(&self, pass: Pass) -> f64 {
        match pass {
            Pass::Forward => self.forward,
            Pass::Recompute => self.again,
            Pass::Backward => self.backward,
        }
    }
}

impl Kept {
    /// As in `memory`, tensor by tensor (Korthikanti et al. 2022, 2205.05198, section 4).
    fn of(run: &TrainingRun) -> Self {
        let ([attention, mlp], word) = (run.kernels(), run.word());
        let (tokens, rows, hidden) = (run.shard().tokens, run.residual_rows(), f64::from(run.model.hidden));
        let tensor = f64::from(run.layout.tensor);
        let ffn = run.block.ffn.max(run.block.experts.map_or(0, |experts| experts.shared_ffn));
        let [ffn, vocab] = [ffn, run.model.vocab].map(|size| f64::from(size) / tensor);
        let bytes = |each: f64, elements: f64| (each * elements).round() as i64;
        // Dropout masks, which newer models do not have.
        let mask = if run.gated() { 0 } else { bytes(1.0, rows) };
        let (heads, all) =
            attention.core.map_or((0.0, 0.0), |core| (core.tokens * core.heads, core.scores()));
        let (scores, score_gradients) = match run.attention {
            AttentionKind::Unfused => (bytes(2.0 * word + 1.0, all), bytes(2.0 * word, all)),
            _ => (bytes(4.0, heads), 0),
        };
        let projections = bytes(word, attention.kept);
        let matrices = f64::from(run.model.activation.matrices());
        let inner = bytes(matrices * word, tokens * run.block.inner_width() / tensor);
        let fully_sharded = run.trainer.traits().shards_parameters;
        // Under ZeRO-3 the program counts whole gradients.
        let gradient = if fully_sharded { 0.0 } else { word };
        let (selective, halves) = (run.recompute == Recompute::Selective, fully_sharded);
        let part = if selective && halves { 0.5 } else { 1.0 };
        let dropped = if selective && !halves { scores } else { 0 };
        let of_part = |whole: i64| (part * whole as f64).round() as i64;
        let beside = |segment, kernels: &Kernels| {
            let not = run.not_kept(segment, inner as f64 / matrices);
            (AdapterWork::of(run, segment, kernels).kept - not).round() as i64
        };
        let trained = if run.training.weights { 1.0 } else { 0.0 };
        let more = run.kept_by_each_operation();
        // One weight at a time is expanded to the training precision.
        let expanded = if run.training.bits.is_whole() { 0.0 } else { word * ffn * hidden };
        Self {
            whole: bytes(word, tokens * hidden),
            rows: bytes(word, rows),
            attention: of_part(
                projections + mask + scores - dropped
                    + beside(Segment::Attention, &attention)
                    + bytes(1.0, more[0]),
            ),
            mlp: of_part(bytes(word, mlp.kept) + mask + beside(Segment::Mlp, &mlp) + bytes(1.0, more[1])),
            attention_gradient: projections.max(score_gradients),
            mlp_gradient: inner,
            mlp_weights: bytes(trained * gradient, (matrices - 1.0) * ffn * hidden) + bytes(1.0, expanded),
            table: bytes(trained * gradient, vocab * hidden),
            logits: bytes(word, tokens * vocab),
            // Beside the logits in 16 bits.
            loss: bytes(memory::Bytes::of(run).logit(run.fused_loss) - 2.0, tokens * vocab),
        }
    }

    /// Live bytes after a segment minus before, and their maximum during it.
    fn change(&self, query: &SegmentQuery) -> (i64, i64) {
        use Segment::*;
        let Self { whole, attention, mlp, logits, loss, .. } = *self;
        let SegmentQuery { segment, pass, recompute, strategy, .. } = *query;
        let stream = (whole as f64
            * residual_stream(segment, pass, (recompute, query.training.backward), strategy))
        .round() as i64;
        let has_backward = query.training.backward;
        let forgets = pass == Pass::Forward && (recompute == Recompute::Full || !has_backward);
        // What is kept beside the residual stream, and the peak.
        let (inside, peak) = match (segment, pass) {
            (Attention, Pass::Forward) if forgets => (0, attention + whole),
            (Mlp, Pass::Forward) if forgets => (0, mlp + whole),
            (Attention, Pass::Forward | Pass::Recompute) => (attention, attention + whole),
            (Attention, Pass::Backward) => (-attention, self.attention_gradient + whole),
            (Mlp, Pass::Forward) => (mlp, mlp + whole),
            (Mlp, Pass::Recompute) => (mlp, mlp),
            (Mlp, Pass::Backward) => (-mlp, self.mlp_gradient + whole + self.mlp_weights),
            (AttentionNorm | MlpNorm | FinalNorm, Pass::Backward) => (0, self.rows),
            (Embedding, Pass::Backward) => (0, 0),
            (Embedding | AttentionNorm | MlpNorm | FinalNorm, _) => (0, stream),
            (Logits, _) => (logits, logits),
            (Normalizer, _) => (loss, loss),
            (Loss, Pass::Forward | Pass::Recompute) => (0, 0),
            (Loss, Pass::Backward) => (-logits - loss, whole + self.table),
        };
        (stream + inside, peak)
    }
}

fn modelled(seconds: f64) -> Price {
    Price { seconds, provenance: Provenance::Modelled, ..Price::ZERO }
}

impl Prices for CataloguePrices {
    fn segment(&self, query: &SegmentQuery) -> Result<SegmentPrice, Unpriced> {
        let SegmentQuery { block, training, segment, pass, recompute, strategy, micro_batches } = *query;
        let costs = self.costs(strategy, (Some(block), training), recompute, micro_batches > 1);
        let seconds = match segment {
            Segment::AttentionNorm | Segment::MlpNorm => costs.norm.of(pass),
            Segment::Attention => costs.attention.of(pass),
            Segment::Mlp => costs.mlp.of(pass),
            Segment::Embedding => costs.embedding.of(pass),
            // Part of the head's elementwise work, which the loss has.
            Segment::FinalNorm => 0.0,
            Segment::Logits => costs.logits.forward,
            Segment::Normalizer => costs.loss.forward,
            // The backward pass of the whole head is one segment.
            Segment::Loss if pass == Pass::Backward => costs.loss.backward + costs.logits.backward,
            Segment::Loss => 0.0,
        };
        let (growth_bytes, peak_bytes) = costs.kept.change(query);
        let launch_s = Seconds(costs.launches.seconds(segment, pass));
        Ok(SegmentPrice { time: modelled(seconds), launch_s, growth_bytes, peak_bytes })
    }

    fn collective(&self, query: &CollectiveQuery) -> Result<Price, Unpriced> {
        let CollectiveQuery { purpose, kind, algorithm, group, stride, bytes, strategy } = *query;
        if algorithm != Algorithm::Ring {
            return Err(Unpriced {
                what: format!(
                    "the catalogue has the times of NCCL's own choice of algorithm, not of {}",
                    algorithm.name()
                ),
                hint: "remove the algorithm from `allow.algorithms`".to_owned(),
                doubted: false,
            });
        }
        let bytes = match purpose {
            // A program counts gradients in fp32.
            Purpose::Bucket(Transfer::Reduce | Transfer::ReduceReplicas) => {
                bytes.as_f64() * self.run.gradient_bytes() / 4.0
            }
            _ => bytes.as_f64(),
        };
        if let Err(error) = check_strategy(self.run.trainer, &self.run.states, strategy) {
            let what = format!("`{}` is `{}`: {}", error.field, error.value, error.problem);
            return Err(Unpriced { what, hint: error.hint, doubted: false });
        }
        // Under ZeRO-1 and 2 only Megatron-Core reduce-scatters: the others all-reduce whole gradients.
        let whole = matches!(strategy.zero_stage, 1 | 2) && !self.run.trainer.traits().core;
        let alone = match purpose {
            Purpose::Bucket(Transfer::Reduce) if whole => {
                self.alone(Collective::AllReduce, strategy.replicas(), strategy.tensor, bytes)
            }
            Purpose::Bucket(Transfer::ReduceReplicas) if whole => 0.0,
            Purpose::Bucket(Transfer::Gather) if strategy.zero_stage == 3 => {
                let gather =
                    |group: u32| self.alone(kind, group, stride as u32, bytes * self.run.gathered_part());
                // Every second gather, that of the backward pass, is from a second copy if there is one.
                let group = group as u32;
                let second = self.run.states.second_shard.unwrap_or(group).min(group);
                0.5 * (gather(group) + gather(second))
            }
            _ => self.alone(kind, group as u32, stride as u32, bytes),
        };
        let p = &self.parameters;
        Ok(modelled(match purpose {
            Purpose::Context(block, pass) => self
                .costs(strategy, (Some(block), LayerTraining::WHOLE), Recompute::None, false)
                .context
                .of(pass),
            // A program has the way to the experts and the way back.
            Purpose::Experts => alone,
            Purpose::Tensor(block) => {
                alone
                    * self.costs(strategy, (Some(block), LayerTraining::WHOLE), Recompute::None, false).tensor
            }
            // The next step's forward pass starts with the buckets that have arrived.
            Purpose::Bucket(Transfer::Gather) if strategy.zero_stage < 3 => {
                alone * p.update_gather * if self.run.overlap { p.reduce_exposed.min(1.0) } else { 1.0 }
            }
            // The shard is fetched before it is gathered.
            Purpose::Bucket(Transfer::Gather) => {
                alone + self.run.fetch_seconds(bytes / self.run.word() / group as f64)
            }
            _ => alone,
        }))
    }

    /// Every rank of a stage sends at the same time; without sequence parallelism, its tensor-parallel part
    /// of the activation.
    fn message(&self, query: &MessageQuery) -> Result<Price, Unpriced> {
        let MessageQuery { ends, stride, bytes, strategy } = *query;
        let parts = if strategy.sequence_parallel { 1.0 } else { f64::from(strategy.tensor) };
        let machine = &self.run.machine;
        let (stage, per_node) = (stride as u32, machine.devices_per_node);
        // Ranks beyond these nodes are on others.
        let node = |stage_number: usize| {
            let first = stage_number as u32 * stage;
            self.ranks.contains(&first).then(|| (first - self.ranks.start) / per_node)
        };
        let crosses = match ends {
            Some((from, to)) => stage >= per_node || node(from) != node(to),
            None => stage >= per_node,
        };
        let (on_a_node, sharing) = if crosses { (1, per_node.min(stage)) } else { (2, 1) };
        let seconds = machine.collective(Collective::SendRecv, bytes.as_f64() / parts, 2, on_a_node, sharing);
        let p = &self.parameters;
        Ok(modelled(self.rated(seconds, crosses) * p.message_exposed + p.message_s * self.jitter()))
    }

    fn update(&self, elements: usize) -> Result<Price, Unpriced> {
        let (run, elements) = (&self.run, elements as f64);
        let bytes = run.update_bytes() * run.updated_on_device() * elements;
        Ok(modelled(bytes * self.per_optimizer_byte() + run.update_away(elements)))
    }

    /// DeepSpeed's pipeline keeps an input and an output buffer for each micro-batch.
    fn kept_of_pass(&self, strategy: &ParallelStrategy) -> Bytes {
        if self.run.trainer != Trainer::MegatronDeepspeed || strategy.pipeline == 1 {
            return Bytes::ZERO;
        }
        let tokens = u64::from(strategy.micro_batch) * u64::from(self.run.seq_len);
        Bytes(2 * self.run.word() as u64 * tokens * u64::from(self.run.model.hidden))
    }

    fn update_buffers(&self, elements: u64, strategy: &ParallelStrategy) -> Bytes {
        let shard = elements as f64 / f64::from(strategy.shards());
        Bytes(memory::update_buffers(&self.run, strategy.zero_stage, shard) as u64)
    }

    /// DeepSpeed's flat buffers of gradients. PyTorch's allocator does not give the memory of the logits to a
    /// block's backward pass, so that FSDP needs both.
    fn buffers(&self, held: &Held, strategy: &ParallelStrategy) -> Bytes {
        let trainer = self.run.trainer;
        if trainer.traits().shards_parameters && strategy.pipeline == 1 {
            let Kept { whole, attention, mlp, attention_gradient, mlp_gradient, logits, loss, .. } =
                self.costs(strategy, (None, self.run.training), strategy.recompute, false).kept;
            let again = if strategy.recompute == Recompute::None { 0 } else { attention + mlp };
            let backward = again + attention_gradient.max(mlp_gradient) + whole;
            // The table of the embedding stays gathered; a frozen one that no rank shards has no copy to gather.
            let whole_table = strategy.zero_stage == 0 && !self.run.training.weights;
            let table = self.run.word() * self.run.table() / f64::from(strategy.tensor);
            let table = if whole_table { 0.0 } else { table };
            return Bytes((logits + loss).min(backward).max(0) as u64 + table as u64);
        }
        let (pipeline, stage, shards) = (strategy.pipeline, strategy.zero_stage, strategy.shards());
        // Buckets that are not given are DeepSpeed's own.
        let bucket = match strategy.bucket_bytes {
            BUCKET => memory::BUCKET,
            given => given.as_f64() / 4.0,
        };
        let (elements, trained) = (held.elements as f64, held.trained as f64);
        let sizes = (self.run.live_parameters(), bucket.min(trained));
        let filled = if stage == 3 { elements } else { trained };
        let flat = memory::flat_buffers(trainer, filled, pipeline, stage, shards, sizes);
        if trainer == Trainer::Deepspeed && stage == 3 {
            // The program has the gathered parameters of two blocks, which are among those that stay.
            let blocks = 2.0 * self.run.kernels().iter().map(Kernels::weights).sum::<f64>();
            let counted = self.run.word() * blocks.min(sizes.0).min(elements);
            let second = self.run.second_copy(elements);
            return Bytes((flat - counted + second).max(0.0) as u64);
        }
        Bytes(flat as u64)
    }

    /// Whole gradients are read for their norm, and set to zero.
    fn norm(&self, elements: usize) -> Result<Price, Unpriced> {
        let bytes = if self.run.trainer.traits().shards_parameters { 0.0 } else { 8.0 };
        Ok(modelled(bytes * elements as f64 * self.per_optimizer_byte()))
    }
}
