//! Converts plans to and from the configurations of other trainers.
//!
//! A trainer is a list of [`FieldMapping`]s, each of which converts a field of a plan to and from the
//! trainer's settings, and of [`UnsupportedField`]s, for which it has no setting. So writing, reading and the
//! mapping table in the documentation use the same lists, and a test compares both lists of every trainer
//! with [`Field::ALL`], so that no field is missing.

#![forbid(unsafe_code)]

mod accelerate;
mod axolotl;
mod deepspeed;
mod document;
mod galvatron;
mod import;
mod kernels;
mod kubernetes;
mod launch;
pub mod logs;
mod maxtext;
mod megatron;
mod megatron_bridge;
mod nanotron;
mod omegaconf;
mod pattern;
mod recompute;
mod row;
mod settings;
mod shell;
mod slurm;
mod stages;
mod states;
mod torchtitan;
mod trainable;
mod transformers;
mod unsupported;
mod yaml;

pub use document::Document;
pub use import::{Files, Imported, import, import_with};
pub use kernels::KernelNames;
pub use launch::{Machines, quoted};
pub use row::{FieldMapping, Note, Otherwise, UnsupportedField};
pub use settings::{CommandLine, Field, Settings};
pub use unsupported::OtherKeys;

use autodist_program::{Framework, framework};
use autodist_spec::{Addition, DeviceKind, Hyperparameter, InputError, Plan, Precision};
use row::{Draft, instead, refuse};
use std::fmt::Write;
use strum::{EnumString, IntoStaticStr, VariantArray};
use unsupported::KeyRule;

/// An export target: a trainer or a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Target {
    Megatron,
    #[strum(serialize = "megatron-bridge")]
    MegatronBridge,
    Torchtitan,
    DeepSpeed,
    Accelerate,
    Transformers,
    Nanotron,
    Galvatron,
    MaxText,
    Slurm,
    Kubernetes,
}

impl Target {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether it has its own configuration format; the others start processes, which read the plan file
    /// itself.
    pub fn is_trainer(self) -> bool {
        !matches!(self, Self::Slurm | Self::Kubernetes)
    }

    /// The framework whose rules its strategies have to keep; `None` if only its files restrict them.
    pub fn framework(self) -> Option<Framework> {
        Some(match self {
            Self::Megatron | Self::MegatronBridge => Framework::MegatronCore,
            Self::Torchtitan => Framework::Fsdp2,
            Self::DeepSpeed => Framework::Deepspeed,
            Self::Nanotron => Framework::Nanotron,
            Self::MaxText => Framework::MaxText,
            Self::Accelerate | Self::Transformers | Self::Galvatron | Self::Slurm | Self::Kubernetes => {
                return None;
            }
        })
    }

    pub fn exporter(self) -> &'static dyn Exporter {
        match self {
            Self::Megatron => &megatron::Megatron,
            Self::MegatronBridge => &megatron_bridge::MegatronBridge,
            Self::Torchtitan => &torchtitan::Torchtitan,
            Self::DeepSpeed => &deepspeed::DeepSpeed,
            Self::Accelerate => &accelerate::Accelerate,
            Self::Transformers => &transformers::Transformers,
            Self::Nanotron => &nanotron::Nanotron,
            Self::Galvatron => &galvatron::Galvatron,
            Self::MaxText => &maxtext::MaxText,
            Self::Slurm => &slurm::Slurm,
            Self::Kubernetes => &kubernetes::Kubernetes,
        }
    }
}

/// Writes plans for one target.
pub trait Exporter: Sync {
    /// The version of the trainer whose settings these are.
    fn version(&self) -> &'static str;

    fn rows(&self) -> &'static [FieldMapping];

    fn unsupported_fields(&self) -> &'static [UnsupportedField];

    /// Required hyperparameters that the script reads from the environment if they are not given.
    fn asks(&self) -> &'static [Ask] {
        &[]
    }

    /// A key of the document in the spelling of the trainer's file.
    fn spelled(&self, key: &str) -> String {
        key.to_owned()
    }

    /// How keys without a row are treated; the first rule for a key holds.
    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![]
    }

    /// Whether its files describe experts, windows, latent attention and blocks that differ, and GEMMs in FP8.
    fn describes_all_blocks_and_fp8(&self) -> bool {
        false
    }

    /// Where the settings of DeepSpeed are.
    fn deepspeed(&self) -> Option<DeepSpeedKeys> {
        None
    }

    /// Whether training with this configuration is based on DeepSpeed.
    fn uses_deepspeed(&self, _document: &Document) -> bool {
        false
    }

    /// The files of a configuration, and the script that starts it.
    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File>;

    /// The forms of the trainer's configuration that are read, for error messages.
    fn forms(&self) -> &'static str {
        "the configuration file of the trainer"
    }

    /// # Errors
    /// If the text is not in the trainer's file format.
    fn parse(&self, text: &str, open: Files) -> Result<Document, InputError>;

    /// The kernels that the file names, or that the trainer has by default.
    ///
    /// # Errors
    /// A kernel that is not known.
    fn kernels(&self, _document: &Document) -> Result<KernelNames, InputError> {
        Ok(KernelNames::default())
    }

    /// The name of a model that the file gives in place of its sizes, and its key.
    fn model_name(&self, _document: &Document) -> Option<(&'static str, String)> {
        None
    }
}

/// Where a trainer's file has the settings of DeepSpeed.
#[derive(Debug, Clone, Copy)]
pub struct DeepSpeedKeys {
    /// The key with the name of DeepSpeed's own file.
    file: &'static str,
    /// The section in which the ZeRO stage is looked up.
    section: &'static str,
    /// Whether the section itself can hold the content of that file.
    inline: bool,
    /// Whether the trainer's file has degrees of parallelism that divide DeepSpeed's ranks.
    splits: bool,
}

/// The inputs of an export.
pub struct Export<'a> {
    pub exporter: &'static dyn Exporter,
    pub plan: &'a Plan,
    pub settings: &'a Settings,
    pub machines: Machines,
    pub options: &'a Options,
}

/// A hyperparameter that a trainer requires, and the variable from which its script reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    pub what: Hyperparameter,
    /// The trainer's name for it.
    pub key: &'static str,
    /// Name in the environment.
    pub variable: &'static str,
}

impl Ask {
    /// A line of a script that ends it if the variable is empty.
    pub(crate) fn line(&self) -> String {
        let what = match self.what {
            Hyperparameter::PeakLearningRate => "peak learning rate, such as 0.0003",
            Hyperparameter::TotalSteps => "steps to train, such as 1000",
            Hyperparameter::WeightDecay => "weight decay, such as 0.1",
            Hyperparameter::Epsilon => "epsilon of AdamW, such as 0.00000001",
            Hyperparameter::Betas => "beta of AdamW, such as 0.9",
            other => other.name(),
        };
        format!(": \"${{{}:?{what}: the plan does not say it}}\"", self.variable)
    }
}

impl Export<'_> {
    /// The hyperparameters that the script reads from the environment.
    pub(crate) fn asked(&self) -> impl Iterator<Item = &'static Ask> {
        self.exporter
            .asks()
            .iter()
            .filter(|ask| ask.what.is_of(&self.settings.optimizer) && !self.settings.gives(ask.what))
    }
}

/// A hyperparameter that is not in the files, because it was not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotGiven {
    pub what: Hyperparameter,
    /// The variables from which the script reads it; if empty, the trainer's default applies.
    pub asked_as: Vec<&'static str>,
}

/// Options of an export that are not part of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Steps between checkpoints; `None` for no checkpoints.
    pub checkpoint_interval: Option<u32>,
    /// For Slurm and Kubernetes: a script to start on every node, instead of autodist.
    pub script: Option<String>,
    /// Container image, for Kubernetes.
    pub image: String,
}

/// A complete file to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub content: String,
    pub executable: bool,
}

impl File {
    pub(crate) fn text(name: &str, content: String) -> Self {
        Self { name: name.to_owned(), content, executable: false }
    }

    /// Adds a comment after the first line of a script.
    fn comment(&mut self, words: &str) {
        if self.content.starts_with("#!")
            && let Some(end) = self.content.find('\n')
        {
            self.content.insert_str(end + 1, &launch::comment(words));
        }
    }

    pub(crate) fn script(name: &str, content: String) -> Self {
        Self { name: name.to_owned(), content, executable: true }
    }
}

/// The parts of a plan for which the files of most trainers have no settings.
///
/// `writes_model`: whether the files describe the model; otherwise the training script builds it, whatever it is.
fn beyond_files(plan: &Plan, target: Target, writes_model: bool) -> Vec<InputError> {
    let refuse = |field: &str, value: &str, what: &str| {
        let problem = format!("{what}, which files of {} do not describe", target.name());
        InputError::new(field, value, problem).hint("export to megatron or megatron-bridge")
    };
    let model = &plan.model;
    let of_model = [
        model.has_experts().then_some("has experts"),
        (!model.is_uniform()).then_some("has blocks that differ"),
        model.latent.is_some().then_some("has multi-head latent attention"),
        model.attends_within_window(plan.job.seq_len).then_some("has a window of attention"),
        // Scaled positions matter only to files that describe the model.
        model
            .additions
            .iter()
            .any(|one| *one != Addition::ScaledPositions)
            .then_some("has additions to its blocks"),
    ];
    let of_model = of_model.into_iter().flatten().next().filter(|_| writes_model);
    let of_model = of_model.map(|what| refuse("model.name", &model.name, what));
    let fp8 = plan.job.precision == Precision::Fp8;
    let fp8 = fp8.then(|| refuse("job.precision", "fp8", "is arithmetic in 8 bits"));
    of_model.into_iter().chain(fp8).collect()
}

/// The order that nodes of different kinds must have; `None` if all are alike.
fn order_of_nodes(plan: &Plan) -> Option<String> {
    let kinds = plan.cluster.node_kinds();
    if kinds.len() < 2 {
        return None;
    }
    let (mut first, mut parts) = (0, Vec::new());
    for kind in kinds {
        let nodes = kind.devices.len() as u32 / kind.group.devices;
        let last = first + nodes - 1;
        let which = if nodes == 1 { format!("node {first}") } else { format!("nodes {first} to {last}") };
        parts.push(format!("{which}: {} x {}", kind.group.devices, kind.group.device.name));
        first = last + 1;
    }
    Some(format!("The nodes differ, and the plan needs this order: {}", parts.join("; ")))
}

/// The result of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    pub files: Vec<File>,
    /// Settings that the trainer does not support, and its behaviour instead.
    pub notes: Vec<Note>,
    /// Hyperparameters that were not given: plans use built-in defaults, which are not suitable for other
    /// training.
    pub not_given: Vec<NotGiven>,
}

/// No trainer that is started by a script supports a choice of algorithms or placement.
const EVERYWHERE: [UnsupportedField; 3] = [
    instead(
        Field::Algorithms,
        "the communication library chooses the algorithm of every collective by itself",
    ),
    refuse(
        Field::Placement,
        "rank r runs on device r",
        "order the hosts accordingly and plan with allow.placements = [[]], or train with autodist",
    ),
    refuse(
        Field::BucketCodecs,
        "all gradient buckets use the same codec",
        "plan with one codec in allow.codecs",
    ),
];

/// Every field that a target does not support.
pub fn unsupported_fields(target: Target) -> impl Iterator<Item = &'static UnsupportedField> {
    let common: &[UnsupportedField] = if target.is_trainer() { &EVERYWHERE } else { &[] };
    target.exporter().unsupported_fields().iter().chain(common)
}

/// Writes a plan for a target.
///
/// # Errors
/// Everything that the target cannot express and that has no substitute, each with an alternative.
pub fn export(plan: &Plan, target: Target, options: &Options) -> Result<Exported, Vec<InputError>> {
    let settings = Settings::of(plan, options.checkpoint_interval);
    let machines = Machines::of(&plan.cluster, plan.cost_source.devices() == DeviceKind::Cuda)
        .map_err(|error| vec![error])?;
    let exporter = target.exporter();
    let mut draft = Draft::new(&settings, machines);
    for row in exporter.rows() {
        (row.write)(&settings, &mut draft);
    }
    for unsupported in unsupported_fields(target) {
        draft.unsupported(unsupported);
    }
    let writes_model = exporter.rows().iter().any(|row| row.field == Field::Model);
    if writes_model && plan.model.additions.contains(&Addition::ScaledPositions) {
        let problem = format!("are not written into files of {}", target.name());
        let error = InputError::new("model.additions", Addition::ScaledPositions.name(), problem);
        let hint = "set rope_type to default in the model's config.json, and plan again: plain positions cost the same";
        draft.refusals.push(error.hint(hint));
    }
    if target.is_trainer() && !exporter.describes_all_blocks_and_fp8() {
        draft.refusals.extend(beyond_files(plan, target, writes_model));
    }
    if let Some(framework) = target.framework() {
        for broken in framework::broken(framework, &plan.model, &plan.job, &plan.strategy) {
            draft.refuse_rule(broken);
        }
    }
    let Draft { document, notes, refusals, .. } = draft;
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let job = Export { exporter, plan, settings: &settings, machines, options };
    let mut files = exporter.files(&document, &job);
    if let Some(order) = order_of_nodes(plan) {
        files.iter_mut().for_each(|file| file.comment(&order));
    }
    // Targets that only start processes pass on the plan, and read the arguments of autodist from the
    // environment.
    let asked_only = !target.is_trainer();
    let asked: Vec<_> = job.asked().filter(|_| !asked_only || options.script.is_none()).collect();
    let not_given = |what: &Hyperparameter| !settings.gives(*what) && what.is_of(&settings.optimizer);
    let not_given = Hyperparameter::ALL.iter().copied().filter(not_given).map(|what| {
        let asked_as = asked.iter().filter(|ask| ask.what == what).map(|ask| ask.variable).collect();
        NotGiven { what, asked_as }
    });
    let not_given = not_given.filter(|one| !one.asked_as.is_empty() || !asked_only).collect();
    Ok(Exported { files, notes, not_given })
}

/// The mapping table of the documentation, in Markdown.
pub fn mapping() -> String {
    let mut text = String::new();
    for target in Target::ALL.iter().filter(|target| target.is_trainer()) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "### {} ({})\n\n| plan | setting |\n|---|---|",
            target.name(),
            target.exporter().version()
        );
        for row in target.exporter().rows() {
            let spelled = |key| format!("`{}`", target.exporter().spelled(key));
            let theirs: Vec<_> = row.theirs.split(", ").map(spelled).collect();
            let _ = writeln!(text, "| `{}` | {} |", row.field.name(), theirs.join(", "));
        }
        for unsupported in unsupported_fields(*target) {
            let what = match unsupported.otherwise {
                Otherwise::Refuse { why, way_out } => format!("refused: {why}; {way_out}"),
                Otherwise::Instead(what) => format!("instead: {what}"),
            };
            let _ = writeln!(text, "| `{}` | {what} |", unsupported.field.name());
        }
        text.push('\n');
    }
    text
}
