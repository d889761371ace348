//! A training job: its settings, and the allowed strategies.

use crate::communication::{Algorithm, Codec, Communication};
use crate::error::{InputError, in_range, not_negative, positive};
use crate::model::ModelSpec;
use crate::parse::{self, Check, SCHEMA_VERSION};
use crate::states::StateStorage;
use crate::strategy::{Recompute, ScheduleKind};
use crate::trainable::Trainable;
use crate::training::check_tokens;
use crate::units::{Bytes, Flops};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// A training job. Every field except the global batch and the sequence length has a default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Job {
    pub schema_version: u32,
    /// Sequences per optimizer step, over all devices.
    pub global_batch: u32,
    /// Tokens per sequence.
    pub seq_len: u32,
    #[serde(default)]
    pub precision: Precision,
    /// What of the model is trained: all of it, if the field is missing.
    #[serde(default, skip_serializing_if = "Trainable::is_all")]
    pub trainable: Trainable,
    #[serde(default)]
    pub optimizer: Optimizer,
    /// Bits and places of weights, gradients and optimizer state, where they are not as the trainer has them by
    /// default.
    #[serde(default, skip_serializing_if = "StateStorage::is_usual")]
    pub states: StateStorage,
    #[serde(default)]
    pub learning_rate: LearningRate,
    /// Largest global L2 norm of the gradient; 0 turns clipping off.
    #[serde(default = "one")]
    pub gradient_clip: f64,
    /// Seeds the initial parameters and the data.
    #[serde(default)]
    pub seed: u64,
    #[serde(default)]
    pub objective: Objective,
    /// Tokens of the whole training: plans then include its time and its cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub training_tokens: Option<u64>,
    /// If the number of steps to the wanted loss is known, plans include the time to that loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub convergence: Option<Convergence>,
    #[serde(default)]
    pub allow: Allow,
    /// The hyperparameters that the user gave by flag, job file or a trainer's file: `export` writes only
    /// these. If the list is missing, as in plans of older releases, all values that differ from the built-in
    /// defaults count as given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<BTreeSet<Hyperparameter>>,
    /// Fraction of a device's memory that no plan may use.
    #[serde(default = "default_reserve")]
    pub memory_reserve: f64,
}

/// A value that affects the result of training, but not its speed: plans do not need it and use built-in
/// defaults. If `learning_rate.final_fraction` is given, the learning rate decays along a cosine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
#[derive(IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Hyperparameter {
    #[serde(rename = "learning_rate.peak")]
    #[strum(serialize = "learning_rate.peak")]
    PeakLearningRate,
    #[serde(rename = "learning_rate.warmup_steps")]
    #[strum(serialize = "learning_rate.warmup_steps")]
    WarmupSteps,
    #[serde(rename = "learning_rate.total_steps")]
    #[strum(serialize = "learning_rate.total_steps")]
    TotalSteps,
    #[serde(rename = "learning_rate.final_fraction")]
    #[strum(serialize = "learning_rate.final_fraction")]
    FinalFraction,
    #[serde(rename = "optimizer.betas")]
    #[strum(serialize = "optimizer.betas")]
    Betas,
    #[serde(rename = "optimizer.epsilon")]
    #[strum(serialize = "optimizer.epsilon")]
    Epsilon,
    #[serde(rename = "optimizer.momentum")]
    #[strum(serialize = "optimizer.momentum")]
    Momentum,
    #[serde(rename = "optimizer.weight_decay")]
    #[strum(serialize = "optimizer.weight_decay")]
    WeightDecay,
    GradientClip,
    Seed,
}

impl Hyperparameter {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The name in job files.
    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether `optimizer` has this hyperparameter.
    pub fn is_of(self, optimizer: &Optimizer) -> bool {
        !matches!(
            (self, optimizer),
            (Self::Betas | Self::Epsilon, Optimizer::Sgd { .. }) | (Self::Momentum, Optimizer::AdamW { .. })
        )
    }

    /// Whether two jobs have the same value of it.
    fn is_same(self, one: &Job, other: &Job) -> bool {
        let (rate, others) = (&one.learning_rate, &other.learning_rate);
        let parts = |job: &Job| match job.optimizer {
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                (Some((beta1, beta2)), Some(epsilon), None, weight_decay)
            }
            Optimizer::Sgd { momentum, weight_decay } => (None, None, Some(momentum), weight_decay),
        };
        let (own, theirs) = (parts(one), parts(other));
        match self {
            Self::PeakLearningRate => rate.peak == others.peak,
            Self::WarmupSteps => rate.warmup_steps == others.warmup_steps,
            Self::TotalSteps => rate.total_steps == others.total_steps,
            Self::FinalFraction => rate.final_fraction == others.final_fraction,
            Self::Betas => own.0 == theirs.0,
            Self::Epsilon => own.1 == theirs.1,
            Self::Momentum => own.2 == theirs.2,
            // Another optimizer has its own default decay.
            Self::WeightDecay => own.3 == theirs.3 && own.2.is_some() == theirs.2.is_some(),
            Self::GradientClip => one.gradient_clip == other.gradient_clip,
            Self::Seed => one.seed == other.seed,
        }
    }

    /// Whether a job file sets it.
    fn is_in(self, file: &serde_json::Value) -> bool {
        let part = |table: &str, field: &str| file.get(table).and_then(|table| table.get(field)).is_some();
        match self {
            Self::Betas => part("optimizer", "beta1") || part("optimizer", "beta2"),
            Self::GradientClip | Self::Seed => file.get(self.name()).is_some(),
            other => other.name().split_once('.').is_some_and(|(table, field)| part(table, field)),
        }
    }
}

fn one() -> f64 {
    1.0
}

fn default_reserve() -> f64 {
    0.04
}

/// Number formats of the training, by the operands of its GEMMs. CPUs compute in fp32.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Precision {
    #[default]
    Fp32,
    /// fp32, except in GEMMs, where the tensor cores round operands to 10 bits of mantissa.
    Tf32,
    /// fp16 activations and parameters, with a loss scale; fp32 master weights and optimizer state.
    Fp16,
    /// bf16 activations and parameters; fp32 master weights, gradients and optimizer state.
    Bf16,
    /// As bf16, with the GEMMs of linear layers in FP8.
    Fp8,
}

impl Precision {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Bytes of `elements` activations or parameters, as layers read them.
    pub fn working(self, elements: u64) -> Bytes {
        match self {
            Self::Fp32 | Self::Tf32 => Bytes(4 * elements),
            Self::Fp16 | Self::Bf16 | Self::Fp8 => Bytes(2 * elements),
        }
    }

    /// Bytes of one operand's element of a GEMM; scales of fp8 are not counted.
    pub fn operand_bytes(self) -> f64 {
        match self {
            Self::Fp32 | Self::Tf32 => 4.0,
            Self::Fp16 | Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
        }
    }

    /// Bytes of one element of a GEMM's result: like the operands, but 2 for fp8.
    pub fn result_bytes(self) -> f64 {
        self.operand_bytes().max(2.0)
    }

    /// Those in which autodist's own engines train, on devices that have them.
    pub const OWN: [Self; 3] = [Self::Fp32, Self::Tf32, Self::Bf16];

    pub fn is_own(self) -> bool {
        Self::OWN.contains(&self)
    }

    /// Whether the optimizer keeps master weights in addition to the parameters that layers read.
    pub fn is_mixed(self) -> bool {
        !matches!(self, Self::Fp32 | Self::Tf32)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "kind", deny_unknown_fields)]
pub enum Optimizer {
    /// Decoupled weight decay (Loshchilov & Hutter, 1711.05101).
    #[serde(rename = "adamw")]
    AdamW {
        beta1: f64,
        beta2: f64,
        epsilon: f64,
        weight_decay: f64,
    },
    Sgd {
        momentum: f64,
        weight_decay: f64,
    },
}

impl Default for Optimizer {
    fn default() -> Self {
        Self::AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1 }
    }
}

impl Optimizer {
    /// Elements of optimizer state per parameter.
    pub fn state_elements(&self) -> u64 {
        match self {
            Self::AdamW { .. } => 2,
            Self::Sgd { .. } => 1,
        }
    }
}

/// Linear warm-up to `peak`, then half a cosine down to `peak * final_fraction` (Loshchilov & Hutter,
/// 1608.03983).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LearningRate {
    pub peak: f64,
    pub warmup_steps: u32,
    /// Step at which the cosine ends.
    pub total_steps: u32,
    pub final_fraction: f64,
}

impl Default for LearningRate {
    fn default() -> Self {
        Self { peak: 3e-3, warmup_steps: 10, total_steps: 200, final_fraction: 0.1 }
    }
}

impl LearningRate {
    /// Learning rate of optimizer step `step`, counted from 0.
    pub fn at(&self, step: u32) -> f64 {
        if step < self.warmup_steps {
            return self.peak * f64::from(step + 1) / f64::from(self.warmup_steps);
        }
        let span = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let progress = (f64::from(step - self.warmup_steps) / f64::from(span)).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.peak * (self.final_fraction + (1.0 - self.final_fraction) * cosine)
    }
}

/// The objective that the search minimises. If a job file or the flags do not give it, it is the step time, or
/// the time to a loss if lossy codecs are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[derive(EnumString, IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub enum Objective {
    #[default]
    StepTime,
    /// Step time multiplied by the factor by which lossy gradients increase the number of steps
    /// (`slowdown` of an estimate).
    TimeToLoss,
}

/// Number of steps to the wanted loss: `min_steps * (1 + critical_batch / global_batch)` (McCandlish et al.,
/// 1812.06162, section 2.2).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Convergence {
    /// Number of steps that even the largest batch needs.
    pub min_steps: f64,
    /// Global batch, in sequences, at which twice as many steps are needed.
    pub critical_batch: f64,
}

/// The part of the search space that is allowed. A missing list allows every legal value.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Allow {
    pub tensor: Option<Vec<u32>>,
    pub pipeline: Option<Vec<u32>>,
    pub data: Option<Vec<u32>>,
    /// Context-parallel degrees: ranks that split a sequence. A missing list allows those that the trainer
    /// supports; engines of autodist support none.
    pub context: Option<Vec<u32>>,
    /// Expert-parallel degrees: ranks over which the experts of a layer are distributed. A missing list allows
    /// every divisor of the number of experts.
    pub expert: Option<Vec<u32>>,
    pub micro_batch: Option<Vec<u32>>,
    pub virtual_stages: Option<Vec<u32>>,
    /// ZeRO stages, 0 to 3 (Rajbhandari et al., 1910.02054).
    pub zero_stage: Vec<u8>,
    /// Sizes of the group over which ZeRO shards; a missing list allows every divisor of the data-parallel
    /// degree.
    pub shard: Option<Vec<u32>>,
    pub sequence_parallel: Vec<bool>,
    pub recompute: Vec<Recompute>,
    pub schedule: Vec<ScheduleKind>,
    /// Sizes of the gradient buckets that are reduced while the backward pass continues.
    pub bucket_bytes: Vec<Bytes>,
    /// Whether only some blocks of a stage may be recomputed, as many as needed to fit.
    pub partial_recompute: bool,
    /// Whether the numbers of layers of two stages may differ by more than one.
    pub uneven_stages: bool,
    /// Algorithms of collectives. Each is tried for all collectives that it supports; if the list is missing,
    /// every group and size uses the fastest.
    pub algorithms: Option<Vec<Algorithm>>,
    /// Codecs of gradients. Lossy codecs are used only if they are listed here.
    pub codecs: Vec<Codec>,
    /// Codecs of parameters that are gathered for one pass (ZeRO-3).
    pub parameter_codecs: Vec<Codec>,
    /// Codecs of activations and their gradients between pipeline ranks.
    pub activation_codecs: Vec<Codec>,
    /// Placements to try, each with the devices of the ranks in rank order. If the list is missing, the
    /// planner searches for placements; an empty entry places rank r on device r.
    pub placements: Option<Vec<Vec<u32>>>,
}

impl Default for Allow {
    fn default() -> Self {
        Self {
            tensor: None,
            pipeline: None,
            data: None,
            context: None,
            expert: None,
            micro_batch: None,
            virtual_stages: None,
            zero_stage: vec![0, 1, 2, 3],
            shard: None,
            sequence_parallel: vec![false, true],
            recompute: vec![Recompute::None, Recompute::Selective, Recompute::Full],
            schedule: vec![ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::Interleaved],
            bucket_bytes: vec![Bytes(25 << 20)],
            partial_recompute: true,
            uneven_stages: true,
            algorithms: None,
            codecs: vec![Codec::None],
            parameter_codecs: vec![Codec::None],
            activation_codecs: vec![Codec::None],
            placements: None,
        }
    }
}

impl Allow {
    /// Whether plans may have lossy codecs.
    pub fn is_lossy(&self) -> bool {
        let lists = [&self.codecs, &self.parameter_codecs, &self.activation_codecs];
        lists.into_iter().flatten().any(|codec| *codec != Codec::None)
    }
}

impl Job {
    pub fn new(global_batch: u32, seq_len: u32) -> Self {
        Self {
            schema_version: SCHEMA_VERSION,
            global_batch,
            seq_len,
            precision: Precision::default(),
            trainable: Trainable::default(),
            optimizer: Optimizer::default(),
            states: StateStorage::default(),
            learning_rate: LearningRate::default(),
            gradient_clip: 1.0,
            seed: 0,
            objective: Objective::default(),
            training_tokens: None,
            convergence: None,
            allow: Allow::default(),
            given: None,
            memory_reserve: default_reserve(),
        }
    }

    /// Reads a job's TOML file, and records which hyperparameters it sets.
    ///
    /// # Errors
    /// Text that is not a valid job; the error names `file`, the field and its value.
    pub fn read(file: &str, text: &[u8]) -> Result<Self, InputError> {
        let value = parse::toml_value(file, text, Self::WHAT)?;
        let given = Hyperparameter::ALL.iter().copied().filter(|one| one.is_in(&value)).collect();
        let objective = value.get("objective").is_some();
        let job: Self = parse::from_value(file, value)?;
        let mut job = Self { given: job.given.or(Some(given)), ..job };
        if !objective {
            job.objective = job.usual_objective();
        }
        job.fit_schedule();
        Ok(job)
    }

    /// The precision that a job's TOML file gives; `None` if it leaves it out.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn precision_in(file: &str, text: &[u8]) -> Result<Option<Precision>, InputError> {
        let given = parse::toml_value(file, text, Self::WHAT)?.get("precision").is_some();
        let job = Self::read(file, text)?;
        Ok(given.then_some(job.precision))
    }

    /// Whether a job's TOML file gives the objective.
    ///
    /// # Errors
    /// As of [`Self::read`].
    pub fn gives_objective(file: &str, text: &[u8]) -> Result<bool, InputError> {
        Ok(parse::toml_value(file, text, Self::WHAT)?.get("objective").is_some())
    }

    /// The objective of a job that does not give one: the time to a loss if the steps to it may depend on the plan.
    pub fn usual_objective(&self) -> Objective {
        if self.allow.is_lossy() { Objective::TimeToLoss } else { Objective::StepTime }
    }

    /// Fits the built-in default of the warm-up or of the schedule's length to the other one, if only that was
    /// given.
    pub fn fit_schedule(&mut self) {
        let given = self.given();
        let is_given = |one| given.contains(&one);
        let rate = &mut self.learning_rate;
        match (is_given(Hyperparameter::WarmupSteps), is_given(Hyperparameter::TotalSteps)) {
            (false, true) => rate.warmup_steps = rate.warmup_steps.min(rate.total_steps),
            (true, false) => rate.total_steps = rate.total_steps.max(rate.warmup_steps),
            _ => {}
        }
    }

    /// The hyperparameters that the user gave; the values of the others are built-in defaults.
    pub fn given(&self) -> BTreeSet<Hyperparameter> {
        let own = |one: &Hyperparameter| one.is_of(&self.optimizer);
        match &self.given {
            Some(given) => given.iter().copied().filter(own).collect(),
            None => {
                let default = Self::new(self.global_batch, self.seq_len);
                let differs = |one: &Hyperparameter| !one.is_same(self, &default);
                Hyperparameter::ALL.iter().copied().filter(own).filter(differs).collect()
            }
        }
    }

    /// Marks a hyperparameter as given by the user.
    pub fn give(&mut self, one: Hyperparameter) {
        let mut given = self.given();
        given.insert(one);
        self.given = Some(given);
    }

    /// Bytes that a plan may use of a device with `memory` bytes.
    pub fn usable(&self, memory: Bytes) -> Bytes {
        Bytes((memory.as_f64() * (1.0 - self.memory_reserve)).floor() as u64)
    }

    /// Number of steps to the wanted loss, if the job gives it.
    pub fn steps_to_loss(&self) -> Option<f64> {
        let Convergence { min_steps, critical_batch } = self.convergence?;
        Some(min_steps * (1.0 + critical_batch / f64::from(self.global_batch)))
    }

    /// FLOPs of one optimizer step, without recomputation.
    pub fn step_flops(&self, model: &ModelSpec) -> Flops {
        self.trainable.step_flops(model, self.tokens(), u64::from(self.seq_len))
    }

    /// Tokens of one optimizer step.
    pub fn tokens(&self) -> u64 {
        u64::from(self.global_batch) * u64::from(self.seq_len)
    }
}

impl Check for Job {
    const WHAT: &'static str = "job";

    fn check(&self) -> Result<(), InputError> {
        in_range("global_batch", u64::from(self.global_batch), 1, 1 << 20)?;
        in_range("seq_len", u64::from(self.seq_len), 1, 1 << 24)?;
        in_range("global_batch x seq_len", self.tokens(), 1, 1 << 36)?;
        self.training_tokens.map_or(Ok(()), |tokens| check_tokens("training_tokens", tokens))?;
        self.trainable.check()?;
        not_negative("gradient_clip", self.gradient_clip)?;
        not_negative("memory_reserve", self.memory_reserve)?;
        if self.memory_reserve >= 1.0 {
            return Err(InputError::new("memory_reserve", self.memory_reserve, "must be below 1")
                .hint("give the fraction of the device's memory that no plan may use, e.g. 0.04"));
        }
        positive("learning_rate.peak", self.learning_rate.peak)?;
        in_range("learning_rate.warmup_steps", u64::from(self.learning_rate.warmup_steps), 0, 1 << 30)?;
        in_range("learning_rate.total_steps", u64::from(self.learning_rate.total_steps), 1, 1 << 30)?;
        let rate = &self.learning_rate;
        let given = self.given();
        let both = [Hyperparameter::WarmupSteps, Hyperparameter::TotalSteps];
        if both.iter().all(|one| given.contains(one)) && rate.warmup_steps > rate.total_steps {
            let (warmup, total) = (rate.warmup_steps, rate.total_steps);
            let problem = format!(
                "the warm-up of {warmup} steps must not be longer than the schedule, which ends at step {total}"
            );
            return Err(InputError::new(
                "learning_rate.warmup_steps, learning_rate.total_steps",
                format!("{warmup}, {total}"),
                problem,
            )
            .hint("lower `warmup_steps`, or raise `total_steps`, which counts the warm-up too"));
        }
        if !(0.0..=1.0).contains(&rate.final_fraction) {
            let problem = "must be from 0 to 1: the learning rate falls from its peak to this fraction of it";
            return Err(InputError::new("learning_rate.final_fraction", rate.final_fraction, problem)
                .hint("use a fraction such as 0.1"));
        }
        if let Some(convergence) = &self.convergence {
            positive("convergence.min_steps", convergence.min_steps)?;
            not_negative("convergence.critical_batch", convergence.critical_batch)?;
        }
        match self.optimizer {
            Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
                for (field, value) in [("optimizer.beta1", beta1), ("optimizer.beta2", beta2)] {
                    not_negative(field, value)?;
                    if value >= 1.0 {
                        return Err(InputError::new(field, value, "must be below 1")
                            .hint("give a number from 0 to below 1; usual values are 0.9 and 0.95"));
                    }
                }
                positive("optimizer.epsilon", epsilon)?;
                not_negative("optimizer.weight_decay", weight_decay)?;
            }
            Optimizer::Sgd { momentum, weight_decay } => {
                not_negative("optimizer.momentum", momentum)?;
                if momentum >= 1.0 {
                    return Err(InputError::new("optimizer.momentum", momentum, "must be below 1")
                        .hint("give a number from 0 to below 1, e.g. 0.9"));
                }
                not_negative("optimizer.weight_decay", weight_decay)?;
            }
        }
        self.states.check()?;
        let allow = &self.allow;
        for (field, list) in [
            ("allow.tensor", &allow.tensor),
            ("allow.pipeline", &allow.pipeline),
            ("allow.data", &allow.data),
            ("allow.context", &allow.context),
            ("allow.expert", &allow.expert),
            ("allow.micro_batch", &allow.micro_batch),
            ("allow.virtual_stages", &allow.virtual_stages),
            ("allow.shard", &allow.shard),
        ] {
            let Some(list) = list else { continue };
            if list.is_empty() {
                return Err(InputError::new(field, "[]", "must not be empty").hint(format!(
                    "list at least one value, or remove `{field}` to allow every legal value"
                )));
            }
            for (index, value) in list.iter().enumerate() {
                in_range(&format!("{field}[{index}]"), u64::from(*value), 1, 1 << 24)?;
            }
        }
        for (index, stage) in allow.zero_stage.iter().enumerate() {
            in_range(&format!("allow.zero_stage[{index}]"), u64::from(*stage), 0, 3)?;
        }
        for (index, bytes) in allow.bucket_bytes.iter().enumerate() {
            in_range(&format!("allow.bucket_bytes[{index}]"), bytes.0, 1, 1 << 40)?;
        }
        for (field, codecs) in [
            ("codecs", &allow.codecs),
            ("parameter_codecs", &allow.parameter_codecs),
            ("activation_codecs", &allow.activation_codecs),
        ] {
            for (index, codec) in codecs.iter().enumerate() {
                codec.check(&format!("allow.{field}[{index}]"))?;
            }
        }
        for (index, algorithm) in allow.algorithms.iter().flatten().enumerate() {
            let communication = Communication { tensor: *algorithm, ..Communication::default() };
            communication.check(&format!("allow.algorithms[{index}]"))?;
        }
        for (index, placement) in allow.placements.iter().flatten().enumerate() {
            let communication = Communication { placement: placement.clone(), ..Communication::default() };
            communication.check(&format!("allow.placements[{index}]"))?;
        }
        for (field, empty) in [
            ("allow.zero_stage", allow.zero_stage.is_empty()),
            ("allow.sequence_parallel", allow.sequence_parallel.is_empty()),
            ("allow.recompute", allow.recompute.is_empty()),
            ("allow.schedule", allow.schedule.is_empty()),
            ("allow.bucket_bytes", allow.bucket_bytes.is_empty()),
            ("allow.codecs", allow.codecs.is_empty()),
            ("allow.parameter_codecs", allow.parameter_codecs.is_empty()),
            ("allow.activation_codecs", allow.activation_codecs.is_empty()),
            ("allow.algorithms", allow.algorithms.as_ref().is_some_and(Vec::is_empty)),
            ("allow.placements", allow.placements.as_ref().is_some_and(Vec::is_empty)),
        ] {
            if empty {
                return Err(InputError::new(field, "[]", "must not be empty")
                    .hint(format!("list at least one value, or remove `{field}` for the default")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_knows_what_somebody_gave() {
        let given = |text: &str| -> Vec<&str> {
            let head = "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n";
            let job = Job::read("job.toml", format!("{head}{text}").as_bytes()).unwrap();
            let again: Job = serde_json::from_str(&crate::to_json(&job)).unwrap();
            assert_eq!(again.given(), job.given(), "it survives a plan document");
            job.given().into_iter().map(Hyperparameter::name).collect()
        };
        assert!(given("").is_empty());
        // Given even if it equals the default.
        assert_eq!(given("seed = 0\n[learning_rate]\npeak = 3e-3\n"), ["learning_rate.peak", "seed"]);
        assert_eq!(
            given("[optimizer]\nkind = \"sgd\"\nmomentum = 0.9\nweight_decay = 0.0\n"),
            ["optimizer.momentum", "optimizer.weight_decay"]
        );
        // In an older plan, the values that differ from the defaults.
        let mut old = Job::new(8, 16);
        assert!(old.given().is_empty());
        old.learning_rate.peak = 3e-4;
        old.optimizer = Optimizer::AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.1 };
        assert_eq!(
            old.given().into_iter().collect::<Vec<_>>(),
            [Hyperparameter::PeakLearningRate, Hyperparameter::Betas]
        );
        // All other values are then kept.
        old.give(Hyperparameter::Seed);
        assert_eq!(old.given().len(), 3);
    }

    #[test]
    fn a_schedule_holds_its_warm_up() {
        let read = |text: &str| {
            let head = "schema_version = 1\nglobal_batch = 8\nseq_len = 16\n[learning_rate]\n";
            Job::read("job.toml", format!("{head}{text}").as_bytes()).unwrap()
        };
        let longer = read("warmup_steps = 300\ntotal_steps = 200\n").check().unwrap_err();
        assert_eq!(longer.field, "learning_rate.warmup_steps, learning_rate.total_steps");
        assert_eq!(longer.value, "300, 200");
        read("warmup_steps = 200\ntotal_steps = 200\n").check().unwrap();
        // Built-in defaults give way.
        let (late, short) = (read("warmup_steps = 300\n"), read("total_steps = 4\n"));
        assert_eq!((late.learning_rate.warmup_steps, late.learning_rate.total_steps), (300, 300));
        assert_eq!((short.learning_rate.warmup_steps, short.learning_rate.total_steps), (4, 4));
        for job in [late, short] {
            job.check().unwrap();
        }
    }

    #[test]
    fn the_learning_rate_warms_up_then_falls_along_a_cosine() {
        let rate = LearningRate { peak: 1.0, warmup_steps: 4, total_steps: 104, final_fraction: 0.1 };
        let shown: Vec<f64> =
            [0, 3, 4, 54, 104, 500].iter().map(|&s| (rate.at(s) * 1e3).round() / 1e3).collect();
        assert_eq!(shown, [0.25, 1.0, 1.0, 0.55, 0.1, 0.1]);
    }
}
