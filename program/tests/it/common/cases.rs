//! Strategies of every kind that compiles, on models and batches that are as small as possible.

use autodist_program::{Illegal, Program, rules, stages};
use autodist_spec::{
    Activation, Algorithm, BlockRun, BucketReduction, Bytes, Codec, Communication, Experts, Job, Latent,
    ModelSpec, Norm, Optimizer, ParallelStrategy, Positions, Precision, Recompute, Reduction, ScheduleKind,
    Stage,
};

pub struct Case {
    /// `file`, or `file/variant` for similar cases that share a file.
    pub name: String,
    pub model: ModelSpec,
    pub job: Job,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
}

impl Case {
    fn new(name: &str, strategy: ParallelStrategy) -> Self {
        let model = llama(2);
        let stages = stages::even(&model, &strategy);
        Self { name: name.to_owned(), model, job: Job::new(4, 8), strategy, stages }
    }

    fn model(self, model: ModelSpec) -> Self {
        let stages = stages::even(&model, &self.strategy);
        Self { model, stages, ..self }
    }

    fn batch(mut self, sequences: u32) -> Self {
        self.job.global_batch = sequences;
        self
    }

    fn job(mut self, change: impl FnOnce(&mut Job)) -> Self {
        change(&mut self.job);
        self
    }

    fn stages(self, stages: Vec<Stage>) -> Self {
        Self { stages, ..self }
    }

    /// # Panics
    /// If the case breaks a rule.
    pub fn program(&self) -> Program {
        let Self { name, model, job, strategy, stages } = self;
        let devices = strategy.devices() as u32;
        Program::compile(model, job, devices, strategy, stages)
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn check(&self) -> Result<(), Illegal> {
        rules::check(&self.model, &self.job, self.strategy.devices() as u32, &self.strategy, &self.stages)
    }
}

/// Grouped-query attention, no bias, an output projection of its own.
fn llama(layers: u32) -> ModelSpec {
    ModelSpec {
        name: "llama".to_owned(),
        layers,
        hidden: 8,
        heads: 4,
        kv_heads: 2,
        head_dim: 2,
        ffn: 12,
        vocab: 10,
        max_seq_len: 16,
        positions: Positions::Rotary { theta: 1e4 },
        norm: Norm::RmsNorm,
        norm_epsilon: 1e-5,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
        window: None,
        latent: None,
        experts: None,
        blocks: Vec::new(),
        additions: Vec::new(),
    }
}

/// Learned positions, biases, a tied table, and a vocabulary that no tensor degree divides.
fn gpt(layers: u32) -> ModelSpec {
    ModelSpec {
        name: "gpt".to_owned(),
        kv_heads: 4,
        vocab: 11,
        positions: Positions::Learned,
        norm: Norm::LayerNorm,
        activation: Activation::Gelu,
        bias: true,
        tied_embeddings: true,
        ..llama(layers)
    }
}

/// Every rank has one sequence per micro-batch.
fn degrees(data: u32, tensor: u32, pipeline: u32) -> ParallelStrategy {
    ParallelStrategy { tensor, pipeline, ..ParallelStrategy::data_parallel(data, 1) }
}

fn zero(stage: u8, shard: u32, strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { zero_stage: stage, shard, ..strategy }
}

fn sequence_parallel(strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { sequence_parallel: true, ..strategy }
}

fn scheduled(schedule: ScheduleKind, virtual_stages: u32, strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { schedule, virtual_stages, ..strategy }
}

fn recomputing(recompute: Recompute, strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { recompute, ..strategy }
}

fn buckets(bytes: u64, strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { bucket_bytes: Bytes(bytes), ..strategy }
}

fn communicating(strategy: ParallelStrategy, change: impl FnOnce(&mut Communication)) -> ParallelStrategy {
    let mut communication = strategy.communication.clone();
    change(&mut communication);
    ParallelStrategy { communication, ..strategy }
}

const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };

/// One of each kind, with sizes for groups of four.
pub const ALGORITHMS: [Algorithm; 5] = [
    Algorithm::Ring,
    Algorithm::DoubleBinaryTree,
    Algorithm::HalvingDoubling,
    Algorithm::Hierarchical { inner: 2 },
    Algorithm::Torus { columns: 2 },
];

pub fn all() -> Vec<Case> {
    let mut list = degrees_and_buckets();
    list.extend(sharding());
    list.extend(tensor_parallelism());
    list.extend(context_parallelism());
    list.extend(expert_parallelism());
    list.extend(unlike_blocks());
    list.extend(pipelines());
    list.extend(combinations());
    list.extend(recomputation());
    list.extend(tied_tables());
    list.extend(codecs());
    list.extend(algorithms());
    list.extend(placements());
    list.extend(jobs());
    list.extend(models());
    list
}

fn degrees_and_buckets() -> Vec<Case> {
    vec![
        Case::new("one-device", degrees(1, 1, 1)),
        Case::new("one-device-one-micro-batch", degrees(1, 1, 1)).batch(1),
        Case::new("one-device-micro-batch-of-2", ParallelStrategy { micro_batch: 2, ..degrees(1, 1, 1) }),
        Case::new("dp2", degrees(2, 1, 1)),
        Case::new("dp2-one-micro-batch", degrees(2, 1, 1)).batch(2),
        Case::new("dp3", degrees(3, 1, 1)).batch(6),
        Case::new("dp2-bucket-of-a-layer", buckets(1, degrees(2, 1, 1))),
        // The head is just too small for its own bucket; a block is not.
        Case::new("dp2-bucket-of-head-and-block", buckets(4 * 89, degrees(2, 1, 1))),
        Case::new("dp2-bucket-of-two-blocks", buckets(2600, degrees(2, 1, 1))).model(llama(3)),
    ]
}

fn sharding() -> Vec<Case> {
    let mut list = Vec::new();
    for stage in 1..=3 {
        let name = |what: &str| format!("zero{stage}-{what}");
        list.push(Case::new(&name("dp2"), zero(stage, 2, degrees(2, 1, 1))));
        let one = Case::new(&name("dp2-one-micro-batch"), zero(stage, 2, degrees(2, 1, 1)));
        list.push(one.model(llama(1)).batch(2));
        // The layers are not divisible by three: buckets are padded.
        list.push(Case::new(&name("dp3"), zero(stage, 3, degrees(3, 1, 1))).model(llama(1)).batch(6));
        list.push(Case::new(&name("hybrid"), zero(stage, 2, degrees(4, 1, 1))).model(llama(1)).batch(8));
        let sharded = zero(stage, 2, sequence_parallel(degrees(2, 2, 1)));
        list.push(Case::new(&name("tp2-sp"), sharded).model(llama(1)));
        list.push(Case::new(&name("pp2"), zero(stage, 2, degrees(2, 1, 2))));
        list.push(
            Case::new(
                &name("interleaved"),
                zero(stage, 2, scheduled(ScheduleKind::Interleaved, 2, degrees(2, 1, 2))),
            )
            .batch(4),
        );
        // Bucket sizes matter for ZeRO-0 and 1; the other stages go layer by layer.
        if stage < 3 {
            list.push(Case::new(&name("bucket-of-a-layer"), buckets(1, zero(stage, 2, degrees(2, 1, 1)))));
        }
        let gpipe = scheduled(ScheduleKind::GPipe, 1, degrees(2, 1, 2));
        list.push(Case::new(&name("gpipe"), zero(stage, 2, gpipe)));
        let recompute = recomputing(Recompute::Full, degrees(2, 1, 1));
        list.push(Case::new(&name("recompute-full"), zero(stage, 2, recompute)));
    }
    list
}

fn tensor_parallelism() -> Vec<Case> {
    vec![
        Case::new("tp2", degrees(1, 2, 1)),
        Case::new("tp2-sp", sequence_parallel(degrees(1, 2, 1))),
        Case::new("tp2-uneven-vocabulary", degrees(1, 2, 1)).model(gpt(1)),
        Case::new("tp4-uneven-vocabulary-sp", sequence_parallel(degrees(1, 4, 1))).model(gpt(1)),
        Case::new(
            "tp2-sp-micro-batch-of-2",
            ParallelStrategy { micro_batch: 2, ..sequence_parallel(degrees(1, 2, 1)) },
        ),
    ]
}

fn context_parallelism() -> Vec<Case> {
    let split = |context, strategy| ParallelStrategy { context, ..strategy };
    let full = recomputing(Recompute::Full, degrees(1, 1, 1));
    vec![
        Case::new("cp2", split(2, degrees(1, 1, 1))),
        Case::new("cp2-dp2-zero1", split(2, zero(1, 2, degrees(2, 1, 1)))),
        // Only the ranks that split a sequence shard.
        Case::new("cp2-zero3", split(2, zero(3, 1, degrees(1, 1, 1)))).model(llama(1)),
        Case::new("cp2-dp2-zero3-hybrid", split(2, zero(3, 1, degrees(2, 1, 1)))).model(llama(1)),
        Case::new("cp2-tp2-sp", split(2, sequence_parallel(degrees(1, 2, 1)))),
        Case::new("cp2-pp2", split(2, degrees(1, 1, 2))),
        Case::new("cp2-recompute-full", split(2, full)).batch(2),
    ]
}

fn expert_parallelism() -> Vec<Case> {
    let sparse =
        |layers| ModelSpec { experts: Some(Experts { count: 4, active: 2, shared_ffn: 0 }), ..llama(layers) };
    let spread = |expert, strategy| ParallelStrategy { expert, ..strategy };
    let split = ParallelStrategy { context: 2, ..zero(1, 2, degrees(2, 1, 1)) };
    vec![
        Case::new("experts", degrees(2, 1, 1)).model(sparse(2)),
        Case::new("ep2", spread(2, degrees(2, 1, 1))).model(sparse(2)),
        Case::new("ep2-dp4", spread(2, degrees(4, 1, 1))).model(sparse(1)).batch(8),
        Case::new("ep2-dp4-zero1", spread(2, zero(1, 4, degrees(4, 1, 1)))).model(sparse(1)).batch(8),
        // Every rank holds other experts whole, and shards the rest.
        Case::new("ep4-dp4-zero3", spread(4, zero(3, 4, degrees(4, 1, 1)))).model(sparse(1)).batch(8),
        Case::new("ep2-dp4-zero3-hybrid", spread(2, zero(3, 2, degrees(4, 1, 1)))).model(sparse(1)).batch(8),
        Case::new("ep2-tp2-sp", spread(2, sequence_parallel(degrees(2, 2, 1)))).model(sparse(1)),
        Case::new("ep2-pp2", spread(2, degrees(2, 1, 2))).model(sparse(2)),
        Case::new("ep2-cp2-dp2-zero1-recompute-full", spread(2, recomputing(Recompute::Full, split)))
            .model(sparse(1)),
    ]
}

fn unlike_blocks() -> Vec<Case> {
    // A dense block with a window, then one with experts, and so on.
    let experts = Some(Experts { count: 4, active: 2, shared_ffn: 8 });
    let runs = vec![
        BlockRun { window: Some(4), ..BlockRun::default() },
        BlockRun { ffn: Some(6), experts, ..BlockRun::default() },
    ];
    let unlike = |layers| ModelSpec { blocks: runs.clone(), ..llama(layers) };
    let latent = Latent { query_rank: Some(6), kv_rank: 4, rope_dim: 2, value_dim: 2 };
    let alibi = ModelSpec { positions: Positions::Alibi, ..llama(1) };
    let low_rank = ModelSpec { kv_heads: 4, head_dim: 4, latent: Some(latent), ..llama(1) };
    let spread = |expert, strategy| ParallelStrategy { expert, ..strategy };
    let split = |context, strategy| ParallelStrategy { context, ..strategy };
    vec![
        Case::new("unlike-blocks", degrees(1, 1, 1)).model(unlike(2)),
        Case::new("unlike-blocks-ep2-pp2", spread(2, degrees(2, 1, 2))).model(unlike(3)),
        Case::new("unlike-blocks-ep2-tp2-sp", spread(2, sequence_parallel(degrees(2, 2, 1))))
            .model(unlike(2)),
        Case::new("latent-attention-cp2-tp2", split(2, degrees(1, 2, 1))).model(low_rank),
        Case::new("linear-biases-tp2", degrees(1, 2, 1)).model(alibi),
    ]
}

fn pipelines() -> Vec<Case> {
    use ScheduleKind::{GPipe, Interleaved, OneFOneB};
    let mut list = Vec::new();
    for (schedule, name) in [(GPipe, "gpipe"), (OneFOneB, "1f1b")] {
        let of = |pipeline| scheduled(schedule, 1, degrees(1, 1, pipeline));
        list.push(Case::new(&format!("pp2-{name}"), of(2)));
        list.push(Case::new(&format!("pp4-{name}"), of(4)).batch(6));
        list.push(Case::new(&format!("pp3-{name}-few-micro-batches"), of(3)).batch(1));
    }
    for (pipeline, virtual_stages, micro_batches) in
        [(2, 2, 4), (2, 3, 4), (4, 2, 8), (2, 2, 1), (4, 2, 2), (2, 2, 3), (3, 2, 6)]
    {
        let name = format!("pp{pipeline}-interleaved-v{virtual_stages}-m{micro_batches}");
        let strategy = scheduled(Interleaved, virtual_stages, degrees(1, 1, pipeline));
        let model = llama(pipeline * virtual_stages - 2);
        list.push(Case::new(&name, strategy).model(model).batch(micro_batches));
    }
    let cut =
        |ends: &[usize], strategy: &ParallelStrategy| stages::from_ends(&llama(4), ends, strategy.recompute);
    let uneven = degrees(1, 1, 2);
    list.push(
        Case::new("pp2-uneven-stages", uneven.clone())
            .model(llama(4))
            .stages(cut(&[0, 1, 6], &uneven))
            .batch(2),
    );
    let uneven = recomputing(Recompute::Full, scheduled(Interleaved, 2, degrees(1, 1, 2)));
    list.push(
        Case::new("interleaved-uneven-stages", uneven.clone())
            .model(llama(4))
            .stages(cut(&[0, 3, 4, 5, 6], &uneven))
            .batch(2),
    );
    list
}

fn combinations() -> Vec<Case> {
    use ScheduleKind::Interleaved;
    let all = |strategy| sequence_parallel(recomputing(Recompute::Full, strategy));
    vec![
        Case::new("dp2-tp2", degrees(2, 2, 1)),
        Case::new("dp2-pp2", degrees(2, 1, 2)),
        Case::new("tp2-pp2", degrees(1, 2, 2)),
        Case::new("tp2-pp2-sp", sequence_parallel(degrees(1, 2, 2))),
        Case::new("dp2-tp2-pp2", degrees(2, 2, 2)),
        Case::new("dp2-tp2-pp2-everything", all(zero(1, 2, degrees(2, 2, 2)))),
        Case::new("dp4-tp2-pp2-hybrid-everything", all(zero(3, 2, degrees(4, 2, 2)))).batch(8),
        Case::new(
            "dp2-tp2-pp2-interleaved-everything",
            all(zero(2, 2, scheduled(Interleaved, 2, degrees(2, 2, 2)))),
        ),
    ]
}

fn recomputation() -> Vec<Case> {
    let mut list = Vec::new();
    for (recompute, name) in [(Recompute::Selective, "selective"), (Recompute::Full, "full")] {
        let case = |what: &str, strategy| {
            Case::new(&format!("recompute-{name}{what}"), recomputing(recompute, strategy)).batch(2)
        };
        list.push(case("", degrees(1, 1, 1)));
        list.push(case("-tp2", degrees(1, 2, 1)));
        list.push(case("-tp2-sp", sequence_parallel(degrees(1, 2, 1))));
        let strategy = recomputing(recompute, degrees(1, 1, 2));
        let model = llama(4);
        let stages = stages::with_recompute(&model, &stages::even(&model, &strategy), recompute, 1);
        list.push(case("-one-block-a-stage", degrees(1, 1, 2)).model(model).stages(stages));
    }
    let policies = [Recompute::None, Recompute::Full, Recompute::None, Recompute::Selective, Recompute::None];
    let stage = Stage { first_layer: 0, end_layer: 5, recompute: policies.to_vec() };
    let strategy = recomputing(Recompute::Full, zero(3, 2, degrees(2, 1, 1)));
    list.push(Case::new("recompute-layer-by-layer", strategy).model(llama(3)).stages(vec![stage]));
    list
}

fn tied_tables() -> Vec<Case> {
    use ScheduleKind::Interleaved;
    let tied = |name: &str, strategy: ParallelStrategy| {
        let blocks = strategy.chunks().saturating_sub(2).max(1);
        Case::new(name, strategy).model(gpt(blocks))
    };
    let mut list = vec![
        tied("tied", degrees(1, 1, 1)),
        tied("tied-dp2", degrees(2, 1, 1)),
        tied("tied-dp2-bucket-of-a-layer", buckets(1, degrees(2, 1, 1))),
        tied("tied-pp2", degrees(1, 1, 2)),
        tied("tied-pp2-bucket-of-a-layer", buckets(1, degrees(2, 1, 2))),
        tied("tied-pp2-interleaved", scheduled(Interleaved, 2, degrees(1, 1, 2))),
        tied("tied-pp4", degrees(1, 1, 4)),
        tied("tied-tp2-pp2-sp", sequence_parallel(degrees(1, 2, 2))),
    ];
    for stage in 1..=3 {
        list.push(tied(&format!("tied-zero{stage}"), zero(stage, 2, degrees(2, 1, 1))));
        list.push(tied(&format!("tied-pp2-zero{stage}"), zero(stage, 2, degrees(2, 1, 2))));
        list.push(tied(&format!("tied-pp2-hybrid-zero{stage}"), zero(stage, 2, degrees(4, 1, 2))));
    }
    list
}

/// A part of a strategy for which a codec can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Gradients at that ZeRO stage.
    Gradients(u8),
    Parameters,
    Activations,
}

pub const ROLES: [Role; 6] = [
    Role::Gradients(0),
    Role::Gradients(1),
    Role::Gradients(2),
    Role::Gradients(3),
    Role::Parameters,
    Role::Activations,
];

/// A program in which the codec has that role, legal or not, for a job that allows the codec.
pub fn coded(role: Role, codec: Codec) -> Case {
    let name = codec.name().replace('/', "-");
    let case = match role {
        Role::Gradients(stage) => {
            let strategy = if stage > 0 { zero(stage, 2, degrees(2, 1, 1)) } else { degrees(2, 1, 1) };
            let strategy = communicating(strategy, |c| c.reduce.codec = codec);
            Case::new(&format!("codec-gradients-zero{stage}/{name}"), strategy)
        }
        Role::Parameters => {
            let strategy = communicating(zero(3, 2, degrees(2, 1, 1)), |c| c.parameters = codec);
            Case::new(&format!("codec-parameters/{name}"), strategy)
        }
        Role::Activations => {
            let strategy = communicating(degrees(1, 1, 2), |c| c.activations = codec);
            Case::new(&format!("codec-activations/{name}"), strategy)
        }
    };
    case.model(llama(1)).batch(2).job(|job| match codec {
        Codec::Dgc { .. } => (job.optimizer, job.gradient_clip) = (SGD, 0.0),
        Codec::OneBitAdam { .. } => job.gradient_clip = 0.0,
        _ => {}
    })
}

fn codecs() -> Vec<Case> {
    // The other cases have no codec.
    let lossy = || Codec::DEFAULTS.into_iter().filter(|codec| *codec != Codec::None);
    let every = ROLES.iter().flat_map(|role| lossy().map(|codec| coded(*role, codec)));
    let mut list: Vec<Case> = every.filter(|case| case.check().is_ok()).collect();
    // Options that the labels of codecs do not contain.
    let mut at_once = coded(Role::Gradients(0), Codec::PowerSgd { rank: 2, start_step: 0 });
    at_once.name += "-at-once";
    list.push(at_once);
    // Replicas of a shard are reduced without a codec.
    let hybrid = |stage| communicating(zero(stage, 2, degrees(4, 1, 1)), |c| c.reduce.codec = Codec::Bf16);
    list.extend(
        [1, 2, 3].map(|stage| Case::new(&format!("codec-hybrid-zero{stage}"), hybrid(stage)).model(llama(1))),
    );
    let exception = |rank, bucket, algorithm, codec| BucketReduction {
        pipeline_rank: rank,
        bucket,
        reduction: Reduction { algorithm, codec },
    };
    let by_bucket = communicating(buckets(1, degrees(4, 1, 2)), |c| {
        c.reduce = Reduction { algorithm: Algorithm::HalvingDoubling, codec: Codec::Fp16 };
        c.buckets = vec![
            exception(0, 0, Algorithm::Ring, Codec::TopK { per_mille: 100 }),
            exception(1, 1, Algorithm::Torus { columns: 2 }, Codec::None),
        ];
    });
    list.push(Case::new("codec-by-bucket", by_bucket));
    let everywhere = communicating(zero(3, 2, degrees(2, 1, 2)), |c| {
        (c.parameters, c.activations, c.reduce.codec) = (Codec::Int8 { block: 16 }, Codec::Fp16, Codec::Bf16);
    });
    list.push(Case::new("codec-everywhere", everywhere));
    list
}

/// The traffic of an algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moved {
    Gradients,
    GradientShards,
    Parameters,
    Tensors,
    SequenceShards,
}

pub const MOVED: [Moved; 5] =
    [Moved::Gradients, Moved::GradientShards, Moved::Parameters, Moved::Tensors, Moved::SequenceShards];

/// A program with that traffic over groups of four by the algorithm, legal or not.
pub fn moved(what: Moved, algorithm: Algorithm) -> Case {
    let name = algorithm.name().replace('/', "-");
    let case = |what: &str, strategy| Case::new(&format!("algorithm-{what}/{name}"), strategy);
    match what {
        Moved::Gradients => {
            case("gradients", communicating(degrees(4, 1, 1), |c| c.reduce.algorithm = algorithm))
                .model(llama(1))
        }
        Moved::GradientShards => {
            let strategy = zero(2, 4, degrees(4, 1, 1));
            case("gradient-shards", communicating(strategy, |c| c.reduce.algorithm = algorithm))
                .model(llama(1))
        }
        Moved::Parameters => {
            let strategy = zero(1, 4, degrees(4, 1, 1));
            case("parameters", communicating(strategy, |c| c.gather = algorithm)).model(llama(1))
        }
        Moved::Tensors => {
            case("tensors", communicating(degrees(1, 4, 1), |c| c.tensor = algorithm)).model(gpt(1)).batch(1)
        }
        Moved::SequenceShards => {
            let strategy = sequence_parallel(degrees(1, 4, 1));
            case("sequence-shards", communicating(strategy, |c| c.tensor = algorithm)).model(gpt(1)).batch(1)
        }
    }
}

fn algorithms() -> Vec<Case> {
    // The other cases have rings.
    let others = || ALGORITHMS.into_iter().filter(|algorithm| *algorithm != Algorithm::Ring);
    let every = MOVED.iter().flat_map(|what| others().map(|algorithm| moved(*what, algorithm)));
    every.filter(|case| case.check().is_ok()).collect()
}

fn placements() -> Vec<Case> {
    let placed = |name: &str, strategy, devices: &[u32]| {
        let strategy = communicating(strategy, |c| c.placement = devices.to_vec());
        Case::new(&format!("placement-{name}"), strategy).model(gpt(1))
    };
    vec![
        placed("dp4", degrees(4, 1, 1), &[0, 2, 1, 3]),
        placed("dp2-tp2", degrees(2, 2, 1), &[2, 0, 3, 1]),
        placed("pp2-tp2-sp", sequence_parallel(degrees(1, 2, 2)), &[3, 1, 2, 0]),
        placed("hybrid-pp2", zero(2, 2, degrees(4, 1, 2)), &[0, 4, 1, 5, 2, 6, 3, 7]),
    ]
}

fn jobs() -> Vec<Case> {
    let precision = |precision| move |job: &mut Job| job.precision = precision;
    let everything = sequence_parallel(zero(3, 2, degrees(2, 2, 2)));
    vec![
        Case::new("precision-tf32", degrees(2, 2, 1)).job(precision(Precision::Tf32)),
        Case::new("precision-fp16", degrees(2, 2, 1)).job(precision(Precision::Fp16)),
        Case::new("precision-bf16", degrees(2, 2, 1)).job(precision(Precision::Bf16)),
        Case::new("precision-fp8", degrees(2, 2, 1)).job(precision(Precision::Fp8)),
        Case::new("precision-bf16-everything", everything).job(precision(Precision::Bf16)),
        Case::new("optimizer-sgd", zero(1, 2, degrees(2, 1, 1))).job(|job| job.optimizer = SGD),
        Case::new("optimizer-sgd-plain", degrees(2, 1, 1))
            .job(|job| job.optimizer = Optimizer::Sgd { momentum: 0.0, weight_decay: 0.0 }),
        Case::new("optimizer-adamw-without-clipping", zero(1, 2, degrees(2, 1, 1)))
            .job(|job| job.gradient_clip = 0.0),
        Case::new("optimizer-sgd-without-clipping", degrees(1, 1, 2))
            .job(|job| (job.optimizer, job.gradient_clip) = (SGD, 0.0)),
    ]
}

/// Each model option changed from its value in `llama` or `gpt`.
fn models() -> Vec<Case> {
    let strategy = || buckets(1, sequence_parallel(degrees(1, 2, 1)));
    let other = |name: &str, model| Case::new(&format!("model-{name}"), strategy()).model(model).batch(1);
    vec![
        other("swiglu-bias", ModelSpec { bias: true, ..llama(1) }),
        other("layer-norm", ModelSpec { norm: Norm::LayerNorm, ..llama(1) }),
        other("gelu", ModelSpec { activation: Activation::Gelu, ..llama(1) }),
        other("learned-positions", ModelSpec { positions: Positions::Learned, ..llama(1) }),
        other("tied-rotary", ModelSpec { tied_embeddings: true, ..llama(1) }),
        other("gpt-untied", ModelSpec { tied_embeddings: false, ..gpt(1) }),
        other("narrow-heads", ModelSpec { head_dim: 4, ..llama(1) }),
    ]
}
