//! Selects the measurements of a round.

use crate::assemble::{Assembly, in_block};
use crate::{Assignment, CodingTask, HardwareTask, LinkTask, NetworkTask, OverlapTask, PatternTask, Request};
use autodist_executor::{CodecOptions, DataSource, Task};
use autodist_program::{rules, stages};
use autodist_spec::{
    Bytes, Codec, DoubtedCell, Engine, Job, ParallelStrategy, Recompute, ScheduleKind, TensorSplit,
};

/// Maximum number of rounds, however noisy the machine: more would not help.
const MOST_ROUNDS: usize = 20;
/// A probe is short and repeated in every round: the speed of a shared machine changes for seconds at a time,
/// and every probe should be measured at all of its speeds.
const STEPS: u32 = 5;
const WARMUP_STEPS: u32 = 2;
const EMULATED_STEPS: u32 = 4;
/// Passes that measure collectives of tensor groups inside steps, for emulated devices.
const TENSOR_PASSES: usize = 3;
/// Stages of a pipeline probe.
const PIPELINE: u32 = 2;
const PIPELINED_MICRO_BATCHES: u32 = 4;
/// A micro-batch whose activations exceed this fraction of a rank's memory is not probed.
const LARGEST_PART_OF_MEMORY: f64 = 0.4;

/// One strategy and micro-batch whose layers are timed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Probe {
    pub tensor: u32,
    pub sequence_parallel: bool,
    pub micro_batch: u32,
    pub recompute: Recompute,
    /// Ranks that shard the optimizer's work; more than 1 only to time smaller updates.
    pub shard: u32,
    /// Pipeline schedule of a probe that times the overhead of an engine's runtime around passes.
    pub schedule: Option<ScheduleKind>,
}

impl Probe {
    fn plain(tensor: u32, micro_batch: u32) -> Self {
        Self {
            tensor,
            sequence_parallel: false,
            micro_batch,
            recompute: Recompute::None,
            shard: 1,
            schedule: None,
        }
    }

    /// The probe's name in messages.
    pub fn words(&self) -> String {
        let sp = if self.sequence_parallel { " sp" } else { "" };
        let shard = if self.shard > 1 { format!(" shard {}", self.shard) } else { String::new() };
        let Self { tensor, micro_batch, recompute, .. } = self;
        format!("tp{tensor}{sp} mb{micro_batch}{shard}, recompute {}", recompute.name())
    }

    /// Whether this probe measures the given cell. All probes measure updates, except probes of smaller
    /// updates, which need fewer runs.
    pub fn times(&self, cell: &DoubtedCell) -> bool {
        match *cell {
            DoubtedCell::Segment { segment, tensor, sequence_parallel, micro_batch, recompute, .. } => {
                self.schedule.is_none()
                    && (self.tensor, self.sequence_parallel) == (tensor, sequence_parallel)
                    && self.micro_batch == micro_batch
                    && (self.recompute == recompute || !in_block(segment))
            }
            // They depend on neither; so few probes are enough.
            DoubtedCell::Update { .. } => {
                self.schedule.is_none() && !self.sequence_parallel && self.recompute == Recompute::None
            }
            DoubtedCell::Collective { .. } | DoubtedCell::Message { .. } => false,
        }
    }
}

/// All probes of a request, cheapest first.
pub fn all(request: &Request) -> Vec<Probe> {
    let ranks = request.ranks;
    let allow = &request.job.allow;
    let mut probes = Vec::new();
    for tensor in (1..=ranks).filter(|t| ranks % t == 0) {
        if !allows(&allow.tensor, tensor) {
            continue;
        }
        for sequence_parallel in [false, true] {
            if !allow.sequence_parallel.contains(&sequence_parallel) {
                continue;
            }
            for micro_batch in micro_batches(request, tensor) {
                for recompute in &allow.recompute {
                    let plain = Probe::plain(tensor, micro_batch);
                    probes.push(Probe { sequence_parallel, recompute: *recompute, ..plain });
                }
            }
        }
    }
    if let Some(smallest) = micro_batches(request, 1).first() {
        for shard in (2..=ranks).filter(|s| ranks % s == 0) {
            probes.push(Probe { shard, ..Probe::plain(1, *smallest) });
        }
        // The native engine has no overhead in addition to its operations.
        if request.engine == Engine::Torch && ranks % PIPELINE == 0 {
            let kinds = allow.schedule.iter().filter(|_| allows(&allow.pipeline, PIPELINE));
            probes.extend(kinds.map(|kind| Probe { schedule: Some(*kind), ..Probe::plain(1, *smallest) }));
        }
    }
    probes.retain(|probe| legal(request, probe));
    probes.sort_by_key(|p| (p.micro_batch, *p));
    probes
}

fn allows(list: &Option<Vec<u32>>, degree: u32) -> bool {
    list.as_ref().is_none_or(|list| list.contains(&degree))
}

fn legal(request: &Request, probe: &Probe) -> bool {
    let task = task(request, probe);
    let fits = activation_bytes(request, probe)
        < LARGEST_PART_OF_MEMORY * autodist_executor::host::available_memory() as f64;
    rules::check(&task.model, &task.job, request.ranks, &task.strategy, &task.stages).is_ok() && fits
}

/// Upper estimate of the bytes that all ranks keep for the backward pass: 34 hidden-wide values per token and
/// layer, attention scores and logits (Korthikanti et al., 2205.05198, section 4.1, in fp32).
fn activation_bytes(request: &Request, probe: &Probe) -> f64 {
    let model = &request.model;
    let tokens = f64::from(request.job.seq_len) * f64::from(probe.micro_batch);
    let scores = f64::from(model.heads) * f64::from(request.job.seq_len);
    let layer = 17.0 * f64::from(model.hidden) + 2.0 * scores;
    4.0 * tokens * (layer * f64::from(model.layers) + 2.0 * f64::from(model.vocab)) * f64::from(request.ranks)
        / f64::from(probe.tensor)
}

/// Micro-batches that are possible in plans with this tensor degree.
fn micro_batches(request: &Request, tensor: u32) -> Vec<u32> {
    let batch = request.job.global_batch;
    let others = request.ranks / tensor;
    let possible = |m: u32| (1..=others).any(|data| others % data == 0 && batch % (data * m) == 0);
    let allowed = |m: &u32| allows(&request.job.allow.micro_batch, *m);
    let list: Vec<u32> = (1..=batch).filter(|m| possible(*m)).filter(allowed).collect();
    thinned(&list)
}

/// At most six of a list: both ends and powers of two between; the others are interpolated.
fn thinned(list: &[u32]) -> Vec<u32> {
    if list.len() <= 6 {
        return list.to_vec();
    }
    let ends = [list[0], list[list.len() - 1]];
    list.iter().copied().filter(|m| ends.contains(m) || m.is_power_of_two()).collect()
}

/// The training task of a probe: one micro-batch on every rank, and several in a pipeline.
pub fn task(request: &Request, probe: &Probe) -> Task {
    let pipeline = if probe.schedule.is_some() { PIPELINE } else { 1 };
    let micro_batches = if probe.schedule.is_some() { PIPELINED_MICRO_BATCHES } else { 1 };
    let data = request.ranks / probe.tensor / pipeline;
    let strategy = ParallelStrategy {
        pipeline,
        schedule: probe.schedule.unwrap_or_default(),
        virtual_stages: if probe.schedule == Some(ScheduleKind::Interleaved) { 2 } else { 1 },
        tensor: probe.tensor,
        sequence_parallel: probe.sequence_parallel,
        recompute: probe.recompute,
        zero_stage: match (probe.shard, request.engine) {
            (1, _) => 0,
            (_, Engine::Native) => 1,
            // The smallest shard group of FSDP2.
            (_, Engine::Torch) => 2,
        },
        shard: probe.shard,
        // One bucket: its reduction starts after the backward pass and disturbs no layer.
        bucket_bytes: Bytes(1 << 40),
        ..ParallelStrategy::data_parallel(data, probe.micro_batch)
    };
    let stages = stages::even(&request.model, &strategy);
    let job = Job { global_batch: data * probe.micro_batch * micro_batches, ..request.job.clone() };
    Task {
        model: request.model.clone(),
        job,
        strategy,
        stages,
        data: DataSource::Synthetic,
        start_step: 0,
        // The times of an emulated device do not vary.
        steps: if request.emulated.is_some() { EMULATED_STEPS } else { STEPS },
        warmup_steps: if request.emulated.is_some() { 1 } else { WARMUP_STEPS },
        detail: true,
        count_memory: true,
        emulated_flops_per_s: request.emulated_flops_per_s(),
        coding: CodecOptions::default(),
    }
}

/// The assignments of a round: in the first all missing measurements, later those that are not accurate
/// enough.
pub fn round(request: &Request, assembly: &Assembly, round: usize) -> Vec<Assignment> {
    if round >= MOST_ROUNDS {
        return Vec::new();
    }
    let mut probes: Vec<Probe> = all(request).into_iter().filter(|p| assembly.wants(p, round)).collect();
    if round % 2 == 1 {
        // Alternate the order, so that drift of the machine does not always affect the same probes.
        probes.reverse();
    }
    let mut pieces: Vec<Assignment> = Vec::new();
    let network = NetworkTask::of(request);
    // A library's collectives use its own schedules: they are measured by group.
    let by_group = network.is_none() || assembly.library_collectives();
    if by_group && request.emulated.is_none() && assembly.wants_links(round) {
        pieces.push(Assignment::Links(links(request)));
    }
    if let Some(task) = network.filter(|_| assembly.wants_network(round)) {
        pieces.insert(0, Assignment::Network(task));
        let structure = request.structure().filter(|_| !assembly.library_collectives());
        let patterns = structure.and_then(|structure| PatternTask::of(&structure.nodes));
        pieces.extend(patterns.map(Assignment::Patterns));
    }
    if request.emulated.is_none() && assembly.wants_overlap(round) {
        pieces.push(Assignment::Overlap(overlap(request)));
        if round == 0 {
            let sizes = micro_batches(request, 1);
            let tokens = |size: Option<&u32>| request.job.seq_len as usize * size.map_or(1, |m| *m as usize);
            let largest = probes.iter().map(|probe| probe.micro_batch).max();
            pieces.push(Assignment::Hardware(HardwareTask::of(
                &request.model,
                tokens(sizes.first()),
                tokens(largest.as_ref()),
                request.job.precision,
            )));
        }
    }
    if let Some(task) = CodingTask::of(request).filter(|task| assembly.wants_codings(task, round)) {
        pieces.push(Assignment::Coding(task));
    }
    let train = |probe: &Probe| Assignment::Train(Box::new(task(request, probe)));
    pieces.extend(probes.iter().map(train));
    if request.emulated.is_some() && round == 0 {
        // The waiting time between ranks in a step varies over time.
        let collective = || probes.iter().filter(|probe| probe.tensor > 1).map(train);
        (1..TENSOR_PASSES).for_each(|_| pieces.extend(collective()));
    }
    pieces
}

/// The probes without a valid run so far, once more.
pub fn again(request: &Request, assembly: &Assembly) -> Vec<Assignment> {
    let probes = assembly.unsettled().map(|probe| Assignment::Train(Box::new(task(request, probe))));
    let links = assembly.links_unsettled().then(|| Assignment::Links(links(request)));
    links.into_iter().chain(probes).collect()
}

/// Groups that are possible in plans, and sizes up to the largest transfer.
fn links(request: &Request) -> LinkTask {
    let ranks = request.ranks as usize;
    let divisors: Vec<usize> = (1..=ranks).filter(|d| ranks % d == 0).collect();
    let mut groups = Vec::new();
    for size in divisors.iter().filter(|s| **s > 1) {
        groups.extend(
            divisors.iter().filter(|stride| ranks % (size * **stride) == 0).map(|stride| (*size, *stride)),
        );
    }
    let message_strides: Vec<usize> =
        divisors.iter().copied().filter(|s| 2 * s <= ranks && ranks % (2 * s) == 0).collect();
    let model = &request.model;
    let parameters = 4 * model.total_parameters() as usize;
    let activation = 4 * (request.job.seq_len * request.job.global_batch * model.hidden) as usize;
    let largest = parameters.max(activation).min(64 << 20);
    let mut sizes = vec![64];
    while sizes[sizes.len() - 1] < largest {
        sizes.push((sizes[sizes.len() - 1] * 4).min(largest.next_multiple_of(64)));
    }
    LinkTask {
        groups,
        message_strides,
        sizes,
        repetitions: 6,
        precision: request.job.precision,
        codecs: request.job.allow.codecs.iter().any(|codec| *codec != Codec::None),
    }
}

/// The model's largest GEMM, which overlaps with a reduction of a block's gradients.
fn overlap(request: &Request) -> OverlapTask {
    let model = &request.model;
    let rows = (request.job.seq_len as usize).clamp(64, 512);
    let matrices =
        model.parameters(1).into_iter().filter(|p| p.split != TensorSplit::Replicated && p.columns > 1);
    let largest = matrices.max_by_key(|p| p.rows * p.columns);
    let (n, k) = largest.map_or((64, 64), |p| (p.rows as usize, p.columns as usize));
    let sum_bytes = (4 * model.layer_parameters(1) as usize).clamp(1 << 16, 32 << 20);
    // Between machines, a shorter sequence takes long enough.
    let (reduce_bytes, row) = match request.machines.len() {
        0 | 1 => (sum_bytes, 8 << 20),
        _ => (sum_bytes.min(256 << 10), 512 << 10),
    };
    let reductions = (row / reduce_bytes).clamp(2, 64);
    OverlapTask {
        product: (rows, n, k),
        reduce_bytes,
        reductions,
        sum_bytes,
        repetitions: 4,
        precision: request.job.precision,
    }
}
