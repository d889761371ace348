//! The fields of a plan that a trainer may have a setting for, as a flat struct.

use crate::document::{LARGEST_SIZE, shortest};
use autodist_spec::{
    Algorithm, Codec, Hyperparameter, LayerKind, LearningRate, ModelSpec, Optimizer, ParallelStrategy, Plan,
    Precision, Recompute, ScheduleKind, Stage, StateStorage, Trainable,
};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use strum::{IntoStaticStr, VariantArray};

/// One field of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Field {
    Model,
    Data,
    Tensor,
    Pipeline,
    Context,
    Expert,
    ZeroStage,
    Shard,
    MicroBatch,
    GlobalBatch,
    SeqLen,
    VirtualStages,
    Schedule,
    SequenceParallel,
    Stages,
    Recompute,
    Precision,
    Optimizer,
    States,
    Trainable,
    LearningRate,
    GradientClip,
    Seed,
    BucketBytes,
    #[strum(serialize = "reduce.codec")]
    Gradients,
    #[strum(serialize = "buckets")]
    BucketCodecs,
    Parameters,
    Activations,
    Algorithms,
    Placement,
    CheckpointInterval,
}

impl Field {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The flag of `autodist estimate` that overrides a file's value.
    pub fn flag(self) -> Option<&'static str> {
        Some(match self {
            Self::Model => "--model",
            Self::Data => "--dp",
            Self::Tensor => "--tp",
            Self::Pipeline => "--pp",
            Self::Context => "--cp",
            Self::Expert => "--ep",
            Self::ZeroStage => "--zero",
            Self::Shard => "--shard",
            Self::MicroBatch => "--micro-batch",
            Self::GlobalBatch => "--global-batch",
            Self::SeqLen => "--seq-len",
            Self::VirtualStages => "--vpp",
            Self::Schedule => "--schedule",
            Self::SequenceParallel => "--sp",
            Self::Recompute => "--recompute",
            Self::Precision => "--precision",
            Self::BucketBytes => "--bucket-bytes",
            Self::Seed => "--seed",
            _ => return None,
        })
    }

    /// Whether it is part of the layout, which `estimate --best` searches.
    pub fn is_layout(self) -> bool {
        matches!(
            self,
            Self::Tensor
                | Self::Pipeline
                | Self::Data
                | Self::Context
                | Self::Expert
                | Self::VirtualStages
                | Self::ZeroStage
                | Self::Shard
                | Self::SequenceParallel
                | Self::Recompute
                | Self::MicroBatch
                | Self::Schedule
                | Self::BucketBytes
                | Self::Stages
        )
    }

    /// The name in the plan file.
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The hyperparameters of a learning rate schedule.
pub(crate) const LEARNING_RATE: [Hyperparameter; 4] = [
    Hyperparameter::PeakLearningRate,
    Hyperparameter::WarmupSteps,
    Hyperparameter::TotalSteps,
    Hyperparameter::FinalFraction,
];

/// The fields of a command line that is given with a trainer's file: it overrides the file, and provides
/// fields that the file does not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// Devices of the cluster.
    pub devices: Option<u32>,
    /// Fields that a flag or a job file gives; the values of those that are not numbers have no meaning.
    pub fields: BTreeMap<Field, u32>,
    /// GEMMs of linear layers in FP8.
    pub fp8: bool,
    /// Whether the model has experts.
    pub experts: bool,
    /// The layout is searched, so that of the file is not used.
    pub search: bool,
}

impl CommandLine {
    /// Whether a field of the file is not used: the command line gives it, or it is searched.
    pub fn replaces(&self, field: Field) -> bool {
        self.fields.contains_key(&field) || (self.search && field.is_layout())
    }
}

/// A plan as a flat struct. After reading a trainer's file, fields that it does not contain have defaults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Absent if the trainer defines the model elsewhere.
    pub model: Option<ModelSpec>,
    pub data: u32,
    pub tensor: u32,
    pub pipeline: u32,
    pub context: u32,
    pub expert: u32,
    pub zero_stage: u8,
    pub shard: u32,
    pub micro_batch: u32,
    pub global_batch: u32,
    pub seq_len: u32,
    pub virtual_stages: u32,
    pub schedule: ScheduleKind,
    pub sequence_parallel: bool,
    /// Blocks of every model chunk, in the order of the chain.
    pub stages: Vec<u32>,
    /// Recomputation policy of every block.
    pub recompute: Vec<Recompute>,
    pub precision: Precision,
    pub optimizer: Optimizer,
    /// Bits and places of weights, gradients and optimizer state.
    pub states: StateStorage,
    pub trainable: Trainable,
    pub learning_rate: LearningRate,
    pub gradient_clip: f64,
    pub seed: u64,
    pub bucket_bytes: u64,
    #[serde(rename = "reduce.codec")]
    pub gradients: Codec,
    /// Buckets whose communication differs from the default.
    #[serde(rename = "buckets")]
    pub bucket_codecs: usize,
    pub parameters: Codec,
    pub activations: Codec,
    /// Algorithms of tensor-parallel collectives, all-gathers and reductions.
    pub algorithms: [Algorithm; 3],
    pub placement: Vec<u32>,
    /// Steps between checkpoints; `None` for no checkpoints.
    pub checkpoint_interval: Option<u32>,
    /// The hyperparameters that were given; values of the others are built-in defaults, and are neither
    /// written nor read.
    #[serde(skip)]
    pub given: BTreeSet<Hyperparameter>,
    /// The command line that is given with the file.
    #[serde(skip)]
    pub command: CommandLine,
}

impl Default for Settings {
    fn default() -> Self {
        let strategy = ParallelStrategy::data_parallel(1, 1);
        Self {
            model: None,
            data: 1,
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            zero_stage: 0,
            shard: 1,
            micro_batch: 1,
            global_batch: 1,
            seq_len: 1,
            virtual_stages: 1,
            schedule: ScheduleKind::OneFOneB,
            sequence_parallel: false,
            stages: Vec::new(),
            recompute: Vec::new(),
            precision: Precision::Fp32,
            optimizer: Optimizer::default(),
            states: StateStorage::default(),
            trainable: Trainable::default(),
            learning_rate: LearningRate::default(),
            gradient_clip: 1.0,
            seed: 0,
            bucket_bytes: strategy.bucket_bytes.0,
            gradients: Codec::None,
            bucket_codecs: 0,
            parameters: Codec::None,
            activations: Codec::None,
            algorithms: [Algorithm::Ring; 3],
            placement: Vec::new(),
            checkpoint_interval: None,
            given: BTreeSet::new(),
            command: CommandLine::default(),
        }
    }
}

impl Settings {
    pub fn of(plan: &Plan, checkpoint_interval: Option<u32>) -> Self {
        let (strategy, job) = (&plan.strategy, &plan.job);
        let communication = &strategy.communication;
        let block = |layer: usize| plan.model.kind(layer) == LayerKind::Block;
        let blocks = |stage: &Stage| stage.layers().filter(|layer| block(*layer)).count() as u32;
        Self {
            model: Some(plan.model.clone()),
            data: strategy.data,
            tensor: strategy.tensor,
            pipeline: strategy.pipeline,
            context: strategy.context,
            expert: strategy.expert,
            zero_stage: strategy.zero_stage,
            shard: strategy.shard,
            micro_batch: strategy.micro_batch,
            global_batch: job.global_batch,
            seq_len: job.seq_len,
            virtual_stages: strategy.virtual_stages,
            schedule: strategy.schedule,
            sequence_parallel: strategy.sequence_parallel,
            stages: plan.stages.iter().map(blocks).collect(),
            recompute: plan
                .stages
                .iter()
                .flat_map(|stage| stage.layers().zip(&stage.recompute))
                .filter(|(layer, _)| block(*layer))
                .map(|(_, recompute)| *recompute)
                .collect(),
            precision: job.precision,
            optimizer: job.optimizer,
            states: job.states.clone(),
            trainable: job.trainable.clone(),
            learning_rate: job.learning_rate,
            gradient_clip: job.gradient_clip,
            seed: job.seed,
            bucket_bytes: strategy.bucket_bytes.0,
            gradients: communication.reduce.codec,
            bucket_codecs: communication.buckets.len(),
            parameters: communication.parameters,
            activations: communication.activations,
            algorithms: [communication.tensor, communication.gather, communication.reduce.algorithm],
            placement: communication.placement.clone(),
            checkpoint_interval,
            given: job.given(),
            command: CommandLine::default(),
        }
    }

    pub fn gives(&self, one: Hyperparameter) -> bool {
        self.given.contains(&one)
    }

    /// Marks a hyperparameter as given if a file contains it; returns whether it does.
    pub(crate) fn give(&mut self, one: Hyperparameter, said: bool) -> bool {
        if said {
            self.given.insert(one);
        }
        said
    }

    /// Takes a field from the settings of DeepSpeed; returns whether it is one of those that a trainer leaves to
    /// them.
    pub(crate) fn take(&mut self, field: Field, theirs: &Self) -> bool {
        use Hyperparameter::{Betas, Epsilon, GradientClip, Momentum, WeightDecay};
        let mut give = |all: &[Hyperparameter]| {
            self.given.extend(all.iter().filter(|one| theirs.given.contains(one)));
        };
        match field {
            Field::MicroBatch => self.micro_batch = theirs.micro_batch,
            Field::GlobalBatch => self.global_batch = theirs.global_batch,
            Field::BucketBytes => self.bucket_bytes = theirs.bucket_bytes,
            Field::Gradients => self.gradients = theirs.gradients,
            Field::Parameters => self.parameters = theirs.parameters,
            Field::Precision => self.precision = theirs.precision,
            Field::Recompute => self.recompute.clone_from(&theirs.recompute),
            Field::States => self.states.clone_from(&theirs.states),
            Field::Trainable => self.trainable.clone_from(&theirs.trainable),
            Field::Optimizer => {
                give(&[Betas, Epsilon, Momentum, WeightDecay]);
                self.optimizer = theirs.optimizer;
            }
            Field::LearningRate => {
                give(&LEARNING_RATE);
                self.learning_rate = theirs.learning_rate;
            }
            Field::GradientClip => {
                give(&[GradientClip]);
                self.gradient_clip = theirs.gradient_clip;
            }
            _ => return false,
        }
        true
    }

    /// Whether the command line gives a field, and so overrides the file.
    pub(crate) fn overridden(&self, field: Field) -> bool {
        self.command.fields.contains_key(&field)
    }

    /// The data-parallel degree, if the command line determines it together with the other degrees.
    pub(crate) fn ranks(&self) -> Option<u32> {
        if self.overridden(Field::Data) {
            return Some(self.data);
        }
        if self.command.search {
            return None;
        }
        let devices = u64::from(self.command.devices?);
        let [_, others @ ..] = self.degrees().map(u64::from);
        let others = others.into_iter().fold(1, u64::saturating_mul);
        (others > 0 && devices.is_multiple_of(others)).then(|| (devices / others) as u32)
    }

    /// Sets the numbers that the command line gives. They are checked elsewhere: numbers out of range are
    /// ignored here.
    pub(crate) fn override_numbers(&mut self) {
        for (field, number) in self.command.fields.clone() {
            let place = match field {
                Field::Tensor => &mut self.tensor,
                Field::Pipeline => &mut self.pipeline,
                Field::Data => &mut self.data,
                Field::Context => &mut self.context,
                Field::Expert => &mut self.expert,
                Field::VirtualStages => &mut self.virtual_stages,
                Field::Shard => &mut self.shard,
                Field::MicroBatch => &mut self.micro_batch,
                Field::GlobalBatch => &mut self.global_batch,
                Field::SeqLen => &mut self.seq_len,
                Field::ZeroStage => {
                    self.zero_stage = number.min(3) as u8;
                    continue;
                }
                _ => continue,
            };
            if (1..=LARGEST_SIZE).contains(&number) {
                *place = number;
            }
        }
    }

    /// Sets one recomputation policy for all blocks, or for one if their number is not known.
    pub(crate) fn recompute_all(&mut self, mode: Recompute) {
        self.recompute = vec![mode; self.blocks().max(1) as usize];
    }

    /// The chunks that were read; embedding and head belong to the first and the last.
    pub fn plan_stages(&self) -> Vec<Stage> {
        let blocks: u32 = self.stages.iter().sum();
        let mut recompute = self.recompute.iter().copied();
        let mut next = 0;
        let mut before = 0;
        self.stages
            .iter()
            .enumerate()
            .map(|(chunk, count)| {
                let first_layer = next;
                before += count;
                next = if chunk + 1 == self.stages.len() { blocks + 2 } else { before + 1 };
                let of = |layer: u32| layer > 0 && layer <= blocks;
                let recompute = (first_layer..next)
                    .map(
                        |layer| {
                            if of(layer) { recompute.next().unwrap_or_default() } else { Recompute::None }
                        },
                    )
                    .collect();
                Stage { first_layer, end_layer: next, recompute }
            })
            .collect()
    }

    /// The degrees, whose product is the number of devices.
    pub fn degrees(&self) -> [u32; 4] {
        [self.data, self.tensor, self.pipeline, self.context]
    }

    /// Number of devices of a plan whose degrees were checked.
    pub fn devices(&self) -> u32 {
        self.degrees().iter().fold(1, |product: u32, degree| product.saturating_mul(*degree))
    }

    /// Micro-batches of a step on each data-parallel rank.
    pub fn micro_batches(&self) -> u32 {
        self.global_batch / self.data.saturating_mul(self.micro_batch).max(1)
    }

    pub fn blocks(&self) -> u32 {
        self.model
            .as_ref()
            .map_or_else(|| self.stages.iter().copied().fold(0, u32::saturating_add), |model| model.layers)
    }

    /// Equal numbers of blocks per chunk, if they divide.
    pub fn equal_stages(&self) -> Option<Vec<u32>> {
        let chunks = self.pipeline.saturating_mul(self.virtual_stages);
        (chunks > 0 && self.blocks() > 0 && self.blocks().is_multiple_of(chunks))
            .then(|| vec![self.blocks() / chunks; chunks as usize])
    }

    /// Whether the plan has the field's default, so that a trainer without the field can run it.
    pub fn does_without(&self, field: Field) -> bool {
        match field {
            Field::Data => self.data == 1,
            Field::Tensor => self.tensor == 1,
            Field::Pipeline => self.pipeline == 1,
            Field::Context => self.context == 1,
            Field::Expert => self.expert == 1,
            Field::ZeroStage => self.zero_stage == 0,
            Field::Shard => self.shard == if self.zero_stage > 0 { self.data } else { 1 },
            Field::VirtualStages => self.virtual_stages == 1,
            Field::Schedule => self.pipeline == 1 || self.schedule != ScheduleKind::GPipe,
            Field::SequenceParallel => !self.sequence_parallel,
            Field::Stages => self.pipeline == 1 || self.equal_stages().as_ref() == Some(&self.stages),
            Field::Recompute => self.recompute.iter().all(|r| *r == Recompute::None),
            Field::Precision => self.precision == Precision::Fp32,
            Field::States => self.states.is_usual(),
            Field::Trainable => self.trainable.is_all(),
            Field::BucketBytes => self.bucket_bytes == Self::default().bucket_bytes || self.data == 1,
            Field::Gradients => self.gradients == Codec::None,
            Field::BucketCodecs => self.bucket_codecs == 0,
            Field::Parameters => self.parameters == Codec::None,
            Field::Activations => self.activations == Codec::None,
            Field::Algorithms => self.algorithms == [Algorithm::Ring; 3],
            Field::Placement => {
                self.placement.iter().enumerate().all(|(rank, device)| rank as u32 == *device)
            }
            Field::CheckpointInterval => self.checkpoint_interval.is_none(),
            Field::LearningRate => !LEARNING_RATE.iter().any(|part| self.gives(*part)),
            Field::GradientClip => !self.gives(Hyperparameter::GradientClip),
            Field::Seed => !self.gives(Hyperparameter::Seed),
            Field::Model | Field::MicroBatch | Field::GlobalBatch | Field::SeqLen | Field::Optimizer => false,
        }
    }

    /// A field's value for display.
    pub fn show(&self, field: Field) -> String {
        match field {
            Field::Model => self.model.as_ref().map_or_else(|| "unknown".to_owned(), |m| m.name.clone()),
            Field::Recompute => {
                let some: Vec<_> = self.recompute.iter().filter(|r| **r != Recompute::None).collect();
                some.first().map_or_else(
                    || "none".to_owned(),
                    |r| format!("{} on {} of {} blocks", r.name(), some.len(), self.recompute.len()),
                )
            }
            Field::Gradients => self.gradients.name(),
            Field::Parameters => self.parameters.name(),
            Field::Activations => self.activations.name(),
            Field::Algorithms => self.algorithms.map(Algorithm::name).join(", "),
            Field::Optimizer => match self.optimizer {
                Optimizer::AdamW { .. } => "adamw".to_owned(),
                Optimizer::Sgd { .. } => "sgd".to_owned(),
            },
            Field::LearningRate => self.show_learning_rate(),
            Field::States => self.states.words(),
            Field::Trainable => self.trainable.label(),
            other => match self.value(other) {
                serde_json::Value::String(text) => text,
                value => value.to_string(),
            },
        }
    }

    /// The given parts of the learning rate.
    fn show_learning_rate(&self) -> String {
        let LearningRate { peak, warmup_steps, total_steps, final_fraction } = self.learning_rate;
        let parts = [
            (Hyperparameter::PeakLearningRate, format!("peak {}", shortest(peak))),
            (Hyperparameter::WarmupSteps, format!("{warmup_steps} warm-up steps")),
            (Hyperparameter::TotalSteps, format!("{total_steps} steps")),
            (Hyperparameter::FinalFraction, format!("down to {} of the peak", shortest(final_fraction))),
        ];
        let given: Vec<_> = parts.into_iter().filter(|(one, _)| self.gives(*one)).map(|(_, t)| t).collect();
        if given.is_empty() { "not given".to_owned() } else { given.join(", ") }
    }

    /// A field's value for comparison.
    pub fn value(&self, field: Field) -> serde_json::Value {
        let all = serde_json::to_value(self).unwrap_or_default();
        all.get(field.name()).cloned().unwrap_or_default()
    }
}
