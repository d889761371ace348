//! How one field of a plan is written for one trainer, and how fields without a setting are treated.

use crate::document::{Document, TF32_SWITCH};
use crate::launch::Machines;
use crate::settings::{Field, Settings};
use autodist_program::BrokenRule;
use autodist_spec::{Hyperparameter, InputError, Optimizer, Precision};
use std::fmt;

/// The conversion of one field of a plan to and from a trainer's settings.
pub struct FieldMapping {
    pub field: Field,
    /// The trainer's setting names.
    pub theirs: &'static str,
    pub write: fn(&Settings, &mut Draft),
    /// Returns whether the document contains the field; rows are read in order, so that later ones may use
    /// earlier ones.
    pub read: fn(&Document, &mut Settings) -> Result<bool, InputError>,
}

/// A field without a setting in a trainer, and the consequence.
#[derive(Clone, Copy)]
pub struct UnsupportedField {
    pub field: Field,
    pub otherwise: Otherwise,
}

#[derive(Clone, Copy)]
pub enum Otherwise {
    /// The plan would not be the same without it.
    Refuse { why: &'static str, way_out: &'static str },
    /// The behaviour of the trainer instead.
    Instead(&'static str),
}

/// A field that the trainer does not support, and its behaviour instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub field: Field,
    pub value: String,
    pub instead: String,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: {}", self.field.name(), self.value, self.instead)
    }
}

/// A configuration under construction.
pub struct Draft<'a> {
    settings: &'a Settings,
    pub machines: Machines,
    pub document: Document,
    pub notes: Vec<Note>,
    pub refusals: Vec<InputError>,
}

impl<'a> Draft<'a> {
    pub fn new(settings: &'a Settings, machines: Machines) -> Self {
        Self { settings, machines, document: Document::default(), notes: Vec::new(), refusals: Vec::new() }
    }

    pub fn set(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.document.set(key, value);
    }

    /// Sets a hyperparameter, if it was given.
    pub fn set_given(&mut self, one: Hyperparameter, key: &str, value: impl Into<serde_json::Value>) {
        if self.settings.gives(one) {
            self.set(key, value);
        }
    }

    /// Records that the trainer uses something other than the plan.
    pub fn instead(&mut self, field: Field, what: impl Into<String>) {
        let note = Note { field, value: self.settings.show(field), instead: what.into() };
        self.notes.push(note);
    }

    pub fn refuse(&mut self, field: Field, why: impl Into<String>, way_out: impl Into<String>) {
        self.refusals
            .push(InputError::new(field.name(), self.settings.show(field), why).hint(way_out.into()));
    }

    /// Refuses what breaks a rule of the trainer, unless its field is refused already.
    pub(crate) fn refuse_rule(&mut self, broken: BrokenRule) {
        let BrokenRule { field: name, value, problem, way_out, .. } = broken;
        let flag = format!("--{name}");
        let field = Field::ALL.iter().find(|field| field.flag() == Some(&flag));
        let field = match (field, name) {
            (Some(field), _) => field.name(),
            (None, "sp") => Field::SequenceParallel.name(),
            (None, _) => name,
        };
        if self.refusals.iter().all(|refusal| refusal.field != field) {
            self.refusals.push(InputError::new(field, value, problem).hint(way_out));
        }
    }

    pub(crate) fn unsupported(&mut self, unsupported: &UnsupportedField) {
        if self.settings.does_without(unsupported.field) {
            return;
        }
        match unsupported.otherwise {
            Otherwise::Refuse { why, way_out } => self.refuse(unsupported.field, why, way_out),
            Otherwise::Instead(what) => self.instead(unsupported.field, what),
        }
    }
}

pub const fn refuse(field: Field, why: &'static str, way_out: &'static str) -> UnsupportedField {
    UnsupportedField { field, otherwise: Otherwise::Refuse { why, way_out } }
}

pub const fn instead(field: Field, what: &'static str) -> UnsupportedField {
    UnsupportedField { field, otherwise: Otherwise::Instead(what) }
}

pub const PARAMETERS_AS_THEY_ARE: UnsupportedField = refuse(
    Field::Parameters,
    "parameters are gathered in the training precision",
    "remove allow.parameter_codecs and plan again",
);

pub const ACTIVATIONS_AS_THEY_ARE: UnsupportedField = refuse(
    Field::Activations,
    "activations are sent in the training precision",
    "remove allow.activation_codecs and plan again",
);

/// A trainer without pipelines.
pub const NO_PIPELINE: [UnsupportedField; 4] = [
    refuse(Field::Pipeline, "its configuration has no pipeline parallelism", "plan with --pp 1"),
    refuse(Field::VirtualStages, "its configuration has no pipeline parallelism", "plan with --pp 1"),
    refuse(Field::Schedule, "its configuration has no pipeline parallelism", "plan with --pp 1"),
    refuse(Field::Stages, "its configuration has no pipeline parallelism", "plan with --pp 1"),
];

/// A row for a value under one key, which `$read` of a document reads.
macro_rules! keyed {
    ($read:ident, $field:ident, $member:ident, $key:literal) => {
        crate::row::FieldMapping {
            field: crate::settings::Field::$field,
            theirs: $key,
            write: |settings, draft| draft.set($key, settings.$member),
            read: |document, settings| {
                let found = document.$read($key)?;
                settings.$member = found.unwrap_or(settings.$member);
                Ok(found.is_some())
            },
        }
    };
}

/// A row for a size or a degree under one key.
macro_rules! size {
    ($field:ident, $member:ident, $key:literal) => {
        crate::row::keyed!(size, $field, $member, $key)
    };
}

/// A row for the seed under one key, written if it was given.
macro_rules! seed {
    ($key:literal) => {
        crate::row::FieldMapping {
            field: crate::settings::Field::Seed,
            theirs: $key,
            write: |settings, draft| {
                draft.set_given(autodist_spec::Hyperparameter::Seed, $key, settings.seed)
            },
            read: |document, settings| {
                let found = document.known_seed($key)?;
                settings.seed = found.unwrap_or(settings.seed);
                Ok(settings.give(autodist_spec::Hyperparameter::Seed, found.is_some()))
            },
        }
    };
}

/// How a trainer's file switches clipping off; a plan's limit is then 0.
#[derive(Clone, Copy)]
pub enum ClipOff {
    /// 0, as in plans.
    Zero,
    /// A word in the place of the limit.
    Word(&'static str),
    /// The key without a value.
    Null,
}

impl ClipOff {
    pub fn write(self, settings: &Settings, draft: &mut Draft, key: &str) {
        let value = match (self, settings.gradient_clip) {
            (Self::Word(word), 0.0) => word.into(),
            (Self::Null, 0.0) => serde_json::Value::Null,
            (_, limit) => limit.into(),
        };
        draft.set_given(Hyperparameter::GradientClip, key, value);
    }

    /// Reads the limit; returns whether the document contains it.
    ///
    /// # Errors
    /// If it is no number, or 0 where that would set all gradients to zero.
    pub fn read(self, document: &Document, settings: &mut Settings, key: &str) -> Result<bool, InputError> {
        let off = match self {
            Self::Zero => false,
            Self::Word(word) => document.text(key).as_deref() == Some(word),
            Self::Null => document.has(key) && document.get(key).is_none(),
        };
        let found = if off { Some(0.0) } else { document.known_real(key)? };
        if found == Some(0.0) && !off && !matches!(self, Self::Zero) {
            let word = if let Self::Word(word) = self { word } else { "null" };
            let problem = "sets every gradient to zero, so that nothing is learned";
            let hint = format!("write {word}, which switches clipping off");
            return Err(InputError::new(key, 0, problem).hint(hint));
        }
        settings.gradient_clip = found.unwrap_or(settings.gradient_clip);
        Ok(settings.give(Hyperparameter::GradientClip, found.is_some()))
    }
}

/// A row for the gradient norm limit under one key, written if it was given.
macro_rules! clip {
    ($key:literal) => {
        crate::row::clip!($key, Zero)
    };
    ($key:literal, $off:expr) => {
        crate::row::FieldMapping {
            field: crate::settings::Field::GradientClip,
            theirs: $key,
            write: |settings, draft| {
                use crate::row::ClipOff::*;
                $off.write(settings, draft, $key);
            },
            read: |document, settings| {
                use crate::row::ClipOff::*;
                $off.read(document, settings, $key)
            },
        }
    };
}

/// A row for a key that enables full recomputation of all blocks.
macro_rules! full_recompute {
    ($key:literal) => {
        crate::row::FieldMapping {
            field: crate::settings::Field::Recompute,
            theirs: $key,
            write: |settings, draft| {
                let full = crate::stages::uniform_recompute(settings, draft, false) == Recompute::Full;
                draft.set($key, full);
            },
            read: |document, settings| {
                let full = document.flag($key)?.unwrap_or(false);
                let mode = if full { Recompute::Full } else { Recompute::None };
                settings.recompute_all(mode);
                Ok(true)
            },
        }
    };
}

/// Keys of an optimizer's hyperparameters, if each has its own key.
pub struct OptimizerKeys {
    pub betas: [&'static str; 2],
    pub epsilon: &'static str,
    pub weight_decay: &'static str,
}

impl OptimizerKeys {
    /// Writes those that were given.
    pub fn write(&self, settings: &Settings, draft: &mut Draft) {
        use Hyperparameter::{Betas, Epsilon, WeightDecay};
        if let Optimizer::AdamW { beta1, beta2, epsilon, .. } = settings.optimizer {
            draft.set_given(Betas, self.betas[0], beta1);
            draft.set_given(Betas, self.betas[1], beta2);
            draft.set_given(Epsilon, self.epsilon, epsilon);
        }
        let (Optimizer::AdamW { weight_decay, .. } | Optimizer::Sgd { weight_decay, .. }) =
            settings.optimizer;
        draft.set_given(WeightDecay, self.weight_decay, weight_decay);
    }

    /// AdamW with the hyperparameters in the document, and otherwise the trainer's own `otherwise`.
    ///
    /// # Errors
    /// If one of them is not a number.
    pub fn read_adam(
        &self,
        document: &Document,
        settings: &mut Settings,
        otherwise: [f64; 4],
    ) -> Result<Optimizer, InputError> {
        use Hyperparameter::{Betas, Epsilon};
        let [first, second] = self.betas;
        let (beta1, beta2) = (document.known_real(first)?, document.known_real(second)?);
        let epsilon = document.known_real(self.epsilon)?;
        settings.give(Betas, beta1.is_some() || beta2.is_some());
        settings.give(Epsilon, epsilon.is_some());
        Ok(Optimizer::AdamW {
            beta1: beta1.unwrap_or(otherwise[0]),
            beta2: beta2.unwrap_or(otherwise[1]),
            epsilon: epsilon.unwrap_or(otherwise[2]),
            weight_decay: self.read_decay(document, settings)?.unwrap_or(otherwise[3]),
        })
    }

    /// # Errors
    /// If it is not a number.
    pub fn read_decay(
        &self,
        document: &Document,
        settings: &mut Settings,
    ) -> Result<Option<f64>, InputError> {
        let found = document.known_real(self.weight_decay)?;
        settings.give(Hyperparameter::WeightDecay, found.is_some());
        Ok(found)
    }
}

/// A learning rate schedule as in a document.
#[derive(Default)]
pub struct ReadRate {
    pub peak: Option<f64>,
    pub warmup_steps: Option<u32>,
    pub total_steps: Option<u32>,
    /// For a cosine decay, the final fraction of the rate.
    pub final_fraction: Option<f64>,
}

impl ReadRate {
    /// Stores the values that are present; returns whether there are any.
    pub fn take(self, settings: &mut Settings) -> bool {
        let rate = &mut settings.learning_rate;
        rate.peak = self.peak.unwrap_or(rate.peak);
        rate.warmup_steps = self.warmup_steps.unwrap_or(rate.warmup_steps);
        rate.total_steps = self.total_steps.unwrap_or(rate.total_steps);
        rate.final_fraction = self.final_fraction.unwrap_or(rate.final_fraction);
        let said = [
            settings.give(Hyperparameter::PeakLearningRate, self.peak.is_some()),
            settings.give(Hyperparameter::WarmupSteps, self.warmup_steps.is_some()),
            settings.give(Hyperparameter::TotalSteps, self.total_steps.is_some()),
            settings.give(Hyperparameter::FinalFraction, self.final_fraction.is_some()),
        ];
        said.contains(&true)
    }
}

/// The 16-bit precision of two switches; `None` if both are off.
///
/// # Errors
/// If both are on.
pub fn sixteen_bits(document: &Document, bf16: &str, fp16: &str) -> Result<Option<Precision>, InputError> {
    let on = |key| Ok::<_, InputError>(document.flag(key)?.unwrap_or(false));
    match (on(bf16)?, on(fp16)?) {
        (true, true) => {
            Err(InputError::new(fp16, "true", format!("contradicts `{bf16}`"))
                .hint("switch one of the two off"))
        }
        (true, false) => Ok(Some(Precision::Bf16)),
        (false, true) => Ok(Some(Precision::Fp16)),
        (false, false) => Ok(None),
    }
}

/// The 32-bit precision of a script: tf32 if it sets the library's switch.
///
/// # Errors
/// If the switch is not one.
pub fn thirty_two_bits(document: &Document) -> Result<Precision, InputError> {
    let tf32 = document.flag(TF32_SWITCH)?.unwrap_or(false);
    Ok(if tf32 { Precision::Tf32 } else { Precision::Fp32 })
}

/// A precision by PyTorch's or JAX's name; bf16 is the trainer's default.
///
/// # Errors
/// If the value is not one of them.
pub fn precision(document: &Document, key: &str) -> Result<Precision, InputError> {
    let half = document.text(key).filter(|kind| ["float16", "fp16", "half"].contains(&kind.as_str()));
    if let Some(half) = half {
        return Err(InputError::new(key, half, "is not trained by this trainer, which has no loss scale")
            .hint("use bfloat16, which takes the same time"));
    }
    let words = [("bfloat16", Precision::Bf16), ("float32", Precision::Fp32)];
    Ok(document.choice(key, &words)?.unwrap_or(Precision::Bf16))
}

/// Refuses a plan in fp16 for a trainer that has no loss scale.
pub fn without_fp16(settings: &Settings, draft: &mut Draft) {
    if settings.precision == Precision::Fp16 {
        let error = InputError::new(
            "job.precision",
            "fp16",
            "is not trained by this trainer, which has no loss scale",
        );
        draft.refusals.push(error.hint("plan with `--precision bf16`, or export to megatron or deepspeed"));
    }
}

/// The base of rotary positions for a trainer that takes only whole numbers.
pub fn whole_theta(theta: f64, draft: &mut Draft) -> Option<u64> {
    if theta.fract() == 0.0 && (1.0..=1e15).contains(&theta) {
        return Some(theta as u64);
    }
    let way_out = "use a whole number up to 1e15, or export to nanotron";
    let error =
        InputError::new("model.positions.theta", theta, "is not a whole number that the trainer reads");
    draft.refusals.push(error.hint(way_out));
    None
}

/// Adds a note if a trainer has no setting for tf32.
pub fn note_tf32(settings: &Settings, draft: &mut Draft) {
    if settings.precision == Precision::Tf32 {
        draft.instead(Field::Precision, "these files say fp32; set NVIDIA_TF32_OVERRIDE=1 for the processes");
    }
}

pub(crate) use {clip, full_recompute, keyed, seed, size};
