//! Reads trainers' files.

use crate::document::Document;
use crate::kernels::KernelNames;
use crate::settings::{CommandLine, Field, Settings};
use crate::unsupported::{self, OtherKeys};
use crate::{DeepSpeedKeys, Exporter, Target};
use autodist_spec::{InputError, ModelSpec, Precision, catalog, text};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Opens a file that a trainer's file names.
pub type Files<'a> = &'a dyn Fn(&str) -> Result<String, InputError>;

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
    pub kernels: KernelNames,
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
    open: Files,
) -> Result<Imported, InputError> {
    let mut document = target.exporter().parse(text, open)?;
    let included = include(target.exporter(), &mut document, open, model.clone(), &command)?;
    let mut imported = read(target, &document, model, command)?;
    match (included, target.exporter().deepspeed()) {
        (Some(theirs), _) => imported.complete(theirs)?,
        // The ZeRO stage was given instead of a file that is not there, whose other settings are not known.
        (None, Some(keys)) if document.get(keys.file).is_some_and(Value::is_string) => {
            imported.others.approximated.push(format!("{} (a file that is not there)", keys.file));
        }
        _ => {}
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
    let given = model.is_some();
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
            // With `--model`, that of the file need not be known.
            Err(error) if row.field == Field::Model && given && error.value.contains('$') => false,
            Err(error) => return Err(overridable(spelled(error), row.field)),
            Ok(found) => found,
        };
        if found {
            known.insert(row.field);
        }
        settings.override_numbers();
        let there: Vec<_> = row
            .theirs
            .split(", ")
            .filter(|key| document.says(key))
            .map(|key| exporter.spelled(key))
            .collect();
        if !there.is_empty() {
            keys.insert(row.field, there.join(", "));
        }
    }
    // A name is worth more than sizes, of which the trainer has others under it.
    if settings.model.is_none()
        && let Some((key, name)) = exporter.model_name(document)
    {
        document.get(key);
        if let Ok(model) = catalog::model(&name) {
            settings.recompute =
                vec![settings.recompute.first().copied().unwrap_or_default(); model.layers as usize];
            settings.model = Some(model);
            known.insert(Field::Model);
            keys.insert(Field::Model, exporter.spelled(key));
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
    let kernels = exporter.kernels(document).map_err(spelled)?;
    // What a row has understood, the details beside it belong to.
    let command = CommandLine {
        fp8: settings.command.fp8 || settings.precision == Precision::Fp8,
        experts: settings.command.experts || settings.model.as_ref().is_some_and(|model| model.has_experts()),
        ..settings.command.clone()
    };
    let others =
        unsupported::sort(exporter.rows(), &exporter.rules(), document, &command).map_err(spelled)?;
    let deepspeed = exporter.uses_deepspeed(document);
    Ok(Imported { settings, known, others, deepspeed, kernels, keys })
}

/// Adds the flag that overrides a wrong value.
fn overridable(error: InputError, field: Field) -> InputError {
    let Some(flag) = field.flag() else { return error };
    let hint = format!("{}, or give `{flag}`: flags override the file", error.hint);
    error.hint(hint)
}

/// The settings of DeepSpeed that ms-swift has under a name: a stage, with offload to the host or without.
fn preset(name: &str) -> Option<String> {
    let (stage, offloads) = match name.strip_suffix("_offload") {
        Some(stage) => (stage, true),
        None => (name, false),
    };
    let stage: u8 = stage.strip_prefix("zero")?.parse().ok().filter(|stage| *stage <= 3)?;
    let device = if offloads { "cpu" } else { "none" };
    let parameters = if stage == 3 { device } else { "none" };
    let auto = ["train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size"];
    let mut settings: serde_json::Map<_, _> =
        auto.map(|key| (key.to_owned(), "auto".into())).into_iter().collect();
    settings.insert("bf16".to_owned(), serde_json::json!({"enabled": "auto"}));
    let sharding = serde_json::json!({
        "stage": stage,
        "offload_optimizer": {"device": device},
        "offload_param": {"device": parameters},
    });
    settings.insert("zero_optimization".to_owned(), sharding);
    Some(Value::Object(settings).to_string())
}

/// Reads the settings of DeepSpeed in a trainer's file, or in the file that it names, by DeepSpeed's own rows
/// and rules. Only the ZeRO stage stays in the document.
fn include(
    exporter: &dyn Exporter,
    document: &mut Document,
    open: Files,
    model: Option<ModelSpec>,
    command: &CommandLine,
) -> Result<Option<Imported>, InputError> {
    let Some(DeepSpeedKeys { file: key, section, inline, splits }) = exporter.deepspeed() else {
        return Ok(None);
    };
    let named = document.get(key).and_then(Value::as_str).map(str::to_owned);
    let (theirs, place) = match named {
        Some(name) => {
            let way_out =
                "put that file next to this one, read it instead (`--from deepspeed FILE`), or give `--zero`";
            text::check(key, &name)?;
            // A script may have written it itself.
            let found = document.written.get(&name).cloned().map_or_else(|| open(&name), Ok);
            let found = found.or_else(|error| preset(&name).ok_or(error));
            let text = match (found, command.fields.get(&Field::ZeroStage)) {
                (Ok(text), _) => text,
                (Err(_), Some(stage)) => {
                    document.set(&format!("{section}.zero_optimization.stage"), *stage);
                    return Ok(None);
                }
                (Err(error), None) => {
                    return Err(InputError::new(key, &name, error.problem).hint(way_out));
                }
            };
            (
                Target::DeepSpeed.exporter().parse(&text, open).map_err(|error| error.in_file(&name))?,
                Some(name),
            )
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
    // Megatron divides the devices by degrees that DeepSpeed's file does not have: nothing is derived from them.
    let command = &CommandLine { devices: command.devices.filter(|_| !splits), ..command.clone() };
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
