//! Converts plans to and from the configurations of other trainers.
//!
//! A trainer is a list of [`FieldMapping`]s, each of which converts a field of a plan to and from the
//! trainer's settings, and of [`UnsupportedField`]s, for which it has no setting. So writing, reading and the
//! mapping table in the documentation use the same lists, and a test compares both lists of every trainer
//! with [`Field::ALL`], so that no field is missing.

#![forbid(unsafe_code)]

mod accelerate;
mod deepspeed;
mod document;
mod galvatron;
mod kubernetes;
mod launch;
mod maxtext;
mod megatron;
mod megatron_bridge;
mod nanotron;
mod row;
mod settings;
mod shell;
mod slurm;
mod stages;
mod torchtitan;
mod transformers;
mod unsupported;

pub use document::Document;
pub use launch::Machines;
pub use row::{FieldMapping, Note, Otherwise, UnsupportedField};
pub use settings::{CommandLine, Field, Settings};
pub use unsupported::OtherKeys;

use autodist_spec::{DeviceKind, Hyperparameter, InputError, ModelSpec, Plan, text};
use row::{Draft, instead, refuse};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use unsupported::KeyRule;

/// An export target: a trainer or a scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Megatron,
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
    pub const ALL: [Target; 11] = [
        Self::Megatron,
        Self::MegatronBridge,
        Self::Torchtitan,
        Self::DeepSpeed,
        Self::Accelerate,
        Self::Transformers,
        Self::Nanotron,
        Self::Galvatron,
        Self::MaxText,
        Self::Slurm,
        Self::Kubernetes,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Megatron => "megatron",
            Self::MegatronBridge => "megatron-bridge",
            Self::Torchtitan => "torchtitan",
            Self::DeepSpeed => "deepspeed",
            Self::Accelerate => "accelerate",
            Self::Transformers => "transformers",
            Self::Nanotron => "nanotron",
            Self::Galvatron => "galvatron",
            Self::MaxText => "maxtext",
            Self::Slurm => "slurm",
            Self::Kubernetes => "kubernetes",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|target| target.name() == name)
    }

    /// Whether it has its own configuration format; the others start processes, which read the plan file
    /// itself.
    pub fn is_trainer(self) -> bool {
        !matches!(self, Self::Slurm | Self::Kubernetes)
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
    fn parse(&self, text: &str) -> Result<Document, InputError>;
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

    pub(crate) fn script(name: &str, content: String) -> Self {
        Self { name: name.to_owned(), content, executable: true }
    }
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
    let machines =
        Machines::of(&plan.cluster, plan.profile.devices == DeviceKind::Cuda).map_err(|error| vec![error])?;
    let exporter = target.exporter();
    let mut draft = Draft::new(&settings, machines);
    for row in exporter.rows() {
        (row.write)(&settings, &mut draft);
    }
    for unsupported in unsupported_fields(target) {
        draft.unsupported(unsupported);
    }
    let Draft { document, notes, refusals, .. } = draft;
    if !refusals.is_empty() {
        return Err(refusals);
    }
    let job = Export { exporter, plan, settings: &settings, machines, options };
    let files = exporter.files(&document, &job);
    // Targets that only start processes pass on the plan, and read the arguments of autodist from the
    // environment.
    let asked_only = !target.is_trainer();
    let asked: Vec<_> = job.asked().filter(|_| !asked_only || options.script.is_none()).collect();
    let not_given = |what: &Hyperparameter| !settings.gives(*what) && what.is_of(&settings.optimizer);
    let not_given = Hyperparameter::ALL.into_iter().filter(not_given).map(|what| {
        let asked_as = asked.iter().filter(|ask| ask.what == what).map(|ask| ask.variable).collect();
        NotGiven { what, asked_as }
    });
    let not_given = not_given.filter(|one| !one.asked_as.is_empty() || !asked_only).collect();
    Ok(Exported { files, notes, not_given })
}

/// The content of a trainer's file.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    pub settings: Settings,
    /// Fields that the file contains; all other settings are defaults.
    pub known: BTreeSet<Field>,
    /// Keys of the file that set no field.
    pub others: OtherKeys,
    /// Whether training is based on DeepSpeed.
    pub deepspeed: bool,
    /// Keys of the file that affect a field.
    keys: BTreeMap<Field, String>,
}

impl Imported {
    /// Adds the fields that only the settings of DeepSpeed have.
    ///
    /// # Errors
    /// If both have a field, with different values.
    fn complete(&mut self, theirs: Self) -> Result<(), InputError> {
        for (field, keys) in theirs.keys {
            if !theirs.known.contains(&field) || self.settings.command.replaces(field) {
                continue;
            }
            if !self.known.contains(&field) {
                if self.settings.take(field, &theirs.settings) {
                    self.known.insert(field);
                    self.keys.insert(field, keys);
                }
                continue;
            }
            let both = [Field::MicroBatch, Field::Precision].contains(&field);
            if both && self.settings.value(field) != theirs.settings.value(field) {
                let own = self.keys.get(&field).map_or("this trainer's default", String::as_str);
                let problem = format!(
                    "contradicts {own}, {}: the settings of DeepSpeed and of its launcher must agree",
                    self.settings.show(field)
                );
                let error = InputError::new(keys, theirs.settings.show(field), problem)
                    .hint("give one value in both, or `auto` in the settings of DeepSpeed");
                return Err(overridable(error, field));
            }
        }
        self.others.irrelevant.extend(theirs.others.irrelevant);
        self.others.approximated.extend(theirs.others.approximated);
        self.others.unknown.extend(theirs.others.unknown);
        Ok(())
    }

    /// The keys of the file that set a field, if any.
    pub fn keys(&self, field: Field) -> Option<&str> {
        self.keys.get(&field).map(String::as_str)
    }

    /// Checks that all blocks recompute alike, for estimates with one policy.
    ///
    /// # Errors
    /// If they do not, and the command line does not override it.
    pub fn check_one_recompute(&self) -> Result<(), InputError> {
        let all = &self.settings.recompute;
        let overridden =
            self.settings.overridden(Field::Recompute) || !self.known.contains(&Field::Recompute);
        if overridden || all.windows(2).all(|pair| pair[0] == pair[1]) {
            return Ok(());
        }
        let keys = self.keys(Field::Recompute).unwrap_or("recomputation");
        let problem = "recomputes only some blocks, but this estimate has one policy for all";
        Err(InputError::new(keys, self.settings.show(Field::Recompute), problem).hint(
            "give `--recompute full`, `--recompute selective` or `--recompute none`: flags override the file; or \
             estimate with `--profile`",
        ))
    }

    /// Checks that the stages in the file are those of a pipeline over `blocks` blocks.
    ///
    /// # Errors
    /// If they are not; the error names their keys.
    pub fn check_stages(&self, blocks: u32) -> Result<(), InputError> {
        let recompute = &self.settings.recompute;
        let said = self.known.contains(&Field::Recompute) && !self.settings.overridden(Field::Recompute);
        // If the file contains the model, the list has an entry for each of its blocks.
        let listed = said && recompute.len() as u64 != u64::from(self.settings.blocks().max(1));
        if listed && !recompute.is_empty() && recompute.len() as u64 != u64::from(blocks) {
            let key = self.keys(Field::Recompute).unwrap_or("recomputation");
            let problem = format!("recomputes in {} blocks, but the model has {blocks}", recompute.len());
            return Err(InputError::new(key, recompute.len(), problem)
                .hint("give one entry per block, or give `--recompute`: flags override the file"));
        }
        let Some(keys) = self.keys(Field::Stages).filter(|_| self.known.contains(&Field::Stages)) else {
            return Ok(());
        };
        let Settings { stages, pipeline, virtual_stages, .. } = &self.settings;
        let wrong = |problem: String, hint: &str| {
            let list: Vec<String> = stages.iter().map(u32::to_string).collect();
            Err(InputError::new(keys, list.join(", "), problem).hint(hint))
        };
        let sum: u64 = stages.iter().map(|blocks| u64::from(*blocks)).sum();
        if sum != u64::from(blocks) {
            let problem = format!("assigns {sum} blocks, but the model has {blocks}");
            return wrong(problem, "assign every block of the model to exactly one stage");
        }
        let chunks = u64::from(*pipeline) * u64::from(*virtual_stages);
        if stages.len() as u64 != chunks {
            let problem = format!("has {} stages, but the pipeline has {chunks}", stages.len());
            return wrong(problem, "list one stage per pipeline rank, or a multiple of that");
        }
        Ok(())
    }
}

/// Reads a trainer's file alone. `model` is used if the file does not contain the model.
///
/// # Errors
/// If it is not in the trainer's file format, or a value is invalid.
pub fn import(target: Target, text: &str, model: Option<ModelSpec>) -> Result<Imported, InputError> {
    let open = |_: &str| Err(InputError::new("", "", "is another file, which is not read here"));
    import_with(target, text, model, CommandLine::default(), &open)
}

/// Reads a trainer's file with a command line. `open` reads a file that the trainer's file names.
///
/// # Errors
/// If it is not in the trainer's file format, or a value is invalid or not supported, and the command line
/// does not override it.
pub fn import_with(
    target: Target,
    text: &str,
    model: Option<ModelSpec>,
    command: CommandLine,
    open: &dyn Fn(&str) -> Result<String, InputError>,
) -> Result<Imported, InputError> {
    let mut document = target.exporter().parse(text)?;
    let included = include(target.exporter(), &mut document, open, model.clone(), &command)?;
    let mut imported = read(target, &document, model, command)?;
    if let Some(theirs) = included {
        imported.complete(theirs)?;
    }
    Ok(imported)
}

/// Reads a configuration by the rows and rules of its trainer.
fn read(
    target: Target,
    document: &Document,
    model: Option<ModelSpec>,
    command: CommandLine,
) -> Result<Imported, InputError> {
    let exporter = target.exporter();
    let mut settings = Settings { model, command, ..Settings::default() };
    settings.override_numbers();
    let (mut known, mut keys) = (BTreeSet::new(), BTreeMap::new());
    let spelled = |error: InputError| InputError { field: exporter.spelled(&error.field), ..error };
    for row in exporter.rows() {
        // Later rows may depend on it; when all other degrees are known, it is right.
        if !known.contains(&Field::Data) {
            settings.data = settings.ranks().unwrap_or(1);
        }
        let found = match (row.read)(document, &mut settings) {
            Err(_) if settings.command.replaces(row.field) => false,
            Err(error) => return Err(overridable(spelled(error), row.field)),
            Ok(found) => found,
        };
        if found {
            known.insert(row.field);
        }
        settings.override_numbers();
        let there: Vec<_> =
            row.theirs.split(", ").filter(|key| document.has(key)).map(|key| exporter.spelled(key)).collect();
        if !there.is_empty() {
            keys.insert(row.field, there.join(", "));
        }
    }
    let data_known = known.contains(&Field::Data) || settings.ranks().is_some();
    if !known.contains(&Field::Data) {
        settings.data = settings.ranks().unwrap_or(1);
    }
    if !data_known && settings.shard == settings.data {
        // It is all data-parallel ranks, whose number is not given.
        known.remove(&Field::Shard);
    }
    if data_known && u64::from(settings.data) * u64::from(settings.context) == 1 {
        // One rank cannot shard.
        (settings.zero_stage, settings.shard) = (0, 1);
        settings.override_numbers();
    }
    document.check_texts().map_err(spelled)?;
    if document.unread().count() == document.entries().len() {
        return Err(InputError::new("", "", format!("contains no setting of {}", target.name()))
            .hint(format!("give {}, or name another trainer with `--from`", exporter.forms())));
    }
    let others = unsupported::sort(exporter.rows(), &exporter.rules(), document, &settings.command)
        .map_err(spelled)?;
    let deepspeed = exporter.uses_deepspeed(document);
    Ok(Imported { settings, known, others, deepspeed, keys })
}

/// Adds the flag that overrides a wrong value.
fn overridable(error: InputError, field: Field) -> InputError {
    let Some(flag) = field.flag() else { return error };
    let hint = format!("{}, or give `{flag}`: flags override the file", error.hint);
    error.hint(hint)
}

/// Reads the settings of DeepSpeed in a trainer's file, or in the file that it names, by DeepSpeed's own rows
/// and rules. Only the ZeRO stage stays in the document.
fn include(
    exporter: &dyn Exporter,
    document: &mut Document,
    open: &dyn Fn(&str) -> Result<String, InputError>,
    model: Option<ModelSpec>,
    command: &CommandLine,
) -> Result<Option<Imported>, InputError> {
    let Some(DeepSpeedKeys { file: key, section, inline }) = exporter.deepspeed() else { return Ok(None) };
    let named = document.get(key).and_then(serde_json::Value::as_str).map(str::to_owned);
    let (theirs, place) = match named {
        Some(name) => {
            let way_out = "put that file beside this one, or read it instead: `--from deepspeed FILE`";
            text::check(key, &name)?;
            let text =
                open(&name).map_err(|error| InputError::new(key, &name, error.problem).hint(way_out))?;
            (Target::DeepSpeed.exporter().parse(&text).map_err(|error| error.in_file(&name))?, Some(name))
        }
        None if inline => (document.take(section)?, None),
        None => return Ok(None),
    };
    if theirs.entries().is_empty() {
        return Ok(None);
    }
    let found = |error: InputError| match &place {
        Some(name) => error.in_file(name),
        None => error.under(section),
    };
    let imported = read(Target::DeepSpeed, &theirs, model, command.clone()).map_err(found)?;
    if imported.settings.tensor > 1 && !command.fields.contains_key(&Field::Tensor) {
        let problem = "is tensor parallelism, which is read from DeepSpeed's own files only";
        let error = InputError::new("tensor_parallel.autotp_size", imported.settings.tensor, problem);
        return Err(found(error.hint("give the degree by `--tp`")));
    }
    document.set(&format!("{section}.zero_optimization.stage"), imported.settings.zero_stage);
    let at = |key: &str| if place.is_some() { key.to_owned() } else { format!("{section}.{key}") };
    let each = |keys: &[String]| -> Vec<String> { keys.iter().map(|key| at(key)).collect() };
    let others = OtherKeys {
        irrelevant: each(&imported.others.irrelevant),
        approximated: each(&imported.others.approximated),
        unknown: each(&imported.others.unknown),
    };
    let keys = imported
        .keys
        .iter()
        .map(|(field, keys)| (*field, keys.split(", ").map(at).collect::<Vec<_>>().join(", ")));
    Ok(Some(Imported { keys: keys.collect(), others, ..imported }))
}

/// The mapping table of the documentation, in Markdown.
pub fn mapping() -> String {
    let mut text = String::new();
    for target in Target::ALL.into_iter().filter(|target| target.is_trainer()) {
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
        for unsupported in unsupported_fields(target) {
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
