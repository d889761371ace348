//! Reads the user's files and flags into typed, checked specs. Nothing else in the program opens an input
//! file.

use crate::cli::{self, AllowArg, CatalogueArgs, JobArgs, Layout, NumberArgs, StrategyArgs};
use crate::failure::Failure;
use crate::output;
use autodist_analytic::table::{self, TableRow};
use autodist_analytic::{Calibration, FreeParameters};
use autodist_executor::host;
use autodist_executor::hosts::{self, HostEntry};
use autodist_hardware::Catalogue;
use autodist_program::rules;
use autodist_spec::error::in_range;
use autodist_spec::parse::{self, Check};
use autodist_spec::{
    Bytes, Cluster, Codec, Hyperparameter, InputError, Job, ModelSpec, Network, NodeGroup, ParallelStrategy,
    Plan, Precision, Profile, RunRecord, ScheduleKind, Stage, Validation, catalog, huggingface, text,
};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// The name of the command line in errors, in place of a file name.
pub const FLAGS: &str = "the flags";

/// Maximum bytes of an input file by kind. Documents written by autodist grow with plans and steps; files
/// written by hand do not.
fn largest(what: &str) -> u64 {
    match what {
        // The longest record has some 80 MB.
        "run" => 128 * MIB,
        // A trace of a few steps has a million events.
        "log" => 1024 * MIB,
        "plan" | "profile" | "validation" => 64 * MIB,
        "run table" | "choice set" | "measured plans" => 16 * MIB,
        "model" | "configuration" => 4 * MIB,
        _ => MIB,
    }
}

/// The content of a file; `what` is its kind.
///
/// # Errors
/// The file cannot be read, is too large for its kind, or has a name that documents cannot contain.
pub fn bytes(path: &Path, what: &str) -> Result<Vec<u8>, InputError> {
    let name = path.display().to_string();
    let failed = |problem: String| {
        InputError::new("", "", problem)
            .hint(format!("give the path of a readable {what} file"))
            .in_file(&name)
    };
    // File names are written into plans, calibrations and scripts.
    text::check("name of the file", &name)?;
    let unreadable = |error: std::io::Error| failed(format!("cannot be read: {error}"));
    let file = readable(path).map_err(failed)?;
    output::note_input(&file);
    // The file may grow while it is read.
    let largest = largest(what);
    let mut content = Vec::new();
    file.take(largest + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > largest {
        let problem = format!("is larger than {} MiB, the limit for a {what} file", largest / MIB);
        return Err(failed(problem).hint(format!("give a {what} file of at most {largest} bytes")));
    }
    Ok(content)
}

/// The content of a text file.
///
/// # Errors
/// As of [`bytes`], or it is not UTF-8.
pub fn text_file(path: &Path, what: &str) -> Result<String, InputError> {
    String::from_utf8(bytes(path, what)?).map_err(|_| {
        InputError::new("", "", "expected a text file in UTF-8")
            .hint(format!("give a {what} file"))
            .in_file(&path.display().to_string())
    })
}

/// Opens a file without blocking: a pipe or a device has no length, and may have no end. A file descriptor
/// from the shell, as `/dev/stdin` or by `<(…)`, is read as a stream.
///
/// # Errors
/// The problem, as a phrase for an error message.
fn readable(path: &Path) -> Result<std::fs::File, String> {
    if ["/dev/stdin", "/dev/fd", "/proc/self/fd"].iter().any(|handed| path.starts_with(handed)) {
        return std::fs::File::open(path).map_err(|error| format!("cannot be read: {error}"));
    }
    regular(path)
}

/// Opens a regular file, which can be read repeatedly.
fn regular(path: &Path) -> Result<std::fs::File, String> {
    if path.is_dir() {
        return Err("is a folder, not a file".to_owned());
    }
    host::open_regular(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::Other => error.to_string(),
        _ => format!("cannot be read: {error}"),
    })
}

/// Refuses paths in documents or folders that are not regular files, so that reading never blocks.
///
/// # Errors
/// The path is not a regular file or a link to one; the error names `path`. A missing file is reported when
/// it is read.
pub fn check_plain(path: &Path, what: &str) -> Result<(), InputError> {
    if !path.exists() {
        return Ok(());
    }
    regular(path).map(drop).map_err(|problem| {
        InputError::new("", "", problem)
            .hint(format!("give the path of a readable {what} file"))
            .in_file(&path.display().to_string())
    })
}

/// Refuses a command-line value that files and scripts cannot contain.
pub fn check_flag(flag: &str, value: &str) -> Result<(), InputError> {
    text::check(flag, value)
}

fn json<T: DeserializeOwned + Check>(path: &Path) -> Result<T, Failure> {
    document(&path.display().to_string(), &bytes(path, T::WHAT)?)
}

/// Parses a document; one of another kind is called what it is.
fn document<T: DeserializeOwned + Check>(name: &str, content: &[u8]) -> Result<T, Failure> {
    parse::json(name, content).map_err(|error| match kind(name, content) {
        Some(kind) if kind != T::WHAT => {
            InputError::new("", "", format!("is a {kind} file, not a {}", T::WHAT))
                .hint(format!("give a {} file", T::WHAT))
                .in_file(name)
                .into()
        }
        _ => error.into(),
    })
}

/// The kind of a document that autodist wrote, by a field that only this kind has.
pub fn kind(name: &str, content: &[u8]) -> Option<&'static str> {
    let keys = parse::json_keys(name, content, "document").ok()?;
    let kinds =
        [("segments", "profile"), ("search", "plan"), ("ranks", "run"), ("median_error", "validation")];
    kinds.into_iter().find(|(field, _)| keys.iter().any(|key| key == field)).map(|(_, kind)| kind)
}

/// Reads a plan that can run: it breaks no rule.
pub fn plan(path: &Path) -> Result<Plan, Failure> {
    let mut plan: Plan = json(path)?;
    plan.correct_mfu();
    let devices = plan.cluster.device_count();
    let legal = |field: &str, strategy: &ParallelStrategy, stages: &[Stage]| {
        rules::check(&plan.model, &plan.job, devices, strategy, stages).map_err(|broken| {
            InputError::new(field, strategy.label(), broken.reason)
                .hint("make the plan again with `autodist plan` or `autodist estimate`")
                .in_file(&path.display().to_string())
        })
    };
    legal("strategy", &plan.strategy, &plan.stages)?;
    for (index, other) in plan.alternatives.iter().enumerate() {
        legal(&format!("alternatives[{index}].strategy"), &other.strategy, &other.stages)?;
    }
    Ok(plan)
}

/// Selects one of the plans of a document as its choice.
pub fn nth_plan(path: &Path, NumberArgs { number }: NumberArgs) -> Result<Plan, Failure> {
    let document = plan(path)?;
    document.nth(number).ok_or_else(|| {
        let count = document.count();
        let numbers = if count == 1 { "1".to_owned() } else { format!("a number from 1 to {count}") };
        let problem =
            format!("{} holds only {}", path.display(), autodist_reports::plural(count as u64, "plan"));
        InputError::new("--plan", number, problem)
            .hint(format!("give {numbers}; `autodist plan --top` keeps more"))
            .into()
    })
}

pub fn profile(path: &Path) -> Result<Profile, Failure> {
    json(path)
}

pub fn run(path: &Path) -> Result<RunRecord, Failure> {
    json(path)
}

pub fn validation(path: &Path) -> Result<Validation, Failure> {
    json(path)
}

/// A file with measurements of a plan.
pub enum MeasurementFile {
    Plan,
    Run(Box<RunRecord>),
    Validation(Box<Validation>),
}

/// A document of autodist.
pub enum AnyDocument {
    Plan(Box<Plan>),
    Profile(Box<Profile>),
    Run(Box<RunRecord>),
}

impl AnyDocument {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Plan(_) => "plan",
            Self::Profile(_) => "profile",
            Self::Run(_) => "run record",
        }
    }
}

/// Reads a plan, a profile or a run record, depending on the content of the file.
pub fn any_document(path: &Path) -> Result<AnyDocument, Failure> {
    let (name, content) = (path.display().to_string(), bytes(path, "run")?);
    let keys = parse::json_keys(&name, &content, "document")?;
    let has = |name: &str| keys.iter().any(|key| key == name);
    Ok(if has("search") {
        AnyDocument::Plan(Box::new(plan(path)?))
    } else if has("segments") {
        AnyDocument::Profile(Box::new(profile(path)?))
    } else if has("steps") {
        AnyDocument::Run(Box::new(document(&name, &content)?))
    } else {
        let error = InputError::new("", "", "is not a plan, a profile or a run record").in_file(&name);
        return Err(error.hint("give a file that `plan -o`, `profile`, `train` or `validate` wrote").into());
    })
}

/// Reads a run, a validation, or a plan, depending on the content of the file.
pub fn measured(path: &Path) -> Result<MeasurementFile, Failure> {
    let (name, content) = (path.display().to_string(), bytes(path, "run")?);
    let keys = parse::json_keys(&name, &content, "run")?;
    let has = |name: &str| keys.iter().any(|key| key == name);
    Ok(if has("search") {
        MeasurementFile::Plan
    } else if has("runs") {
        MeasurementFile::Validation(Box::new(parse::json(&name, &content)?))
    } else {
        MeasurementFile::Run(Box::new(document(&name, &content)?))
    })
}

/// Reads the hosts on which ranks are started.
pub fn hosts(path: &Path) -> Result<Vec<HostEntry>, Failure> {
    Ok(hosts::parse(&path.display().to_string(), &bytes(path, "host")?)?)
}

/// Reads a cluster file whose devices and links can be emulated on this machine.
pub fn emulated(path: &Path) -> Result<Cluster, Failure> {
    let text = path.display().to_string();
    let ReadCluster { cluster, .. } = cluster(&text, &Catalogue::shipped(), None)?;
    let refuse = |field: &str, problem: &str, hint: &str| {
        Err(Failure::from(InputError::new(field, "", problem).hint(hint).in_file(&text)))
    };
    if !cluster.homogeneous() {
        return refuse(
            "nodes",
            "devices of different kinds cannot be emulated together",
            "use the same device in all node groups",
        );
    }
    in_range("total number of devices", u64::from(cluster.device_count()), 1, 64)
        .map_err(|e| e.in_file(&text))?;
    if cluster.device().peak_flops_per_s.is_none() {
        let hint =
            "give the floating-point operations per second that the device reaches in training, e.g. 5e9";
        return refuse(
            "nodes[0].device.peak_flops_per_s",
            "is missing, but emulation needs the speed of the device",
            hint,
        );
    }
    if Network::of(&cluster).is_none() {
        let hint = "give every node group a `link`, and several nodes an `uplink` or the cluster a `network`";
        return refuse("nodes[0].link", "is missing, but emulation needs the links between devices", hint);
    }
    Ok(cluster)
}

/// Refuses training text that cannot be read; ranks would detect this only after they have started.
pub fn check_data_file(path: Option<&PathBuf>) -> Result<(), Failure> {
    let Some(path) = path else { return Ok(()) };
    let wrong = |problem: String| {
        InputError::new("--data", path.display(), problem)
            .hint("give the path of a text file, or remove `--data` to train on a synthetic language")
    };
    Ok(regular(path).map(drop).map_err(wrong)?)
}

/// A model by its name in the catalogue, a Hugging Face `config.json` (or the folder that holds it), or a
/// model file.
pub fn model(text: &str) -> Result<ModelSpec, Failure> {
    let mut path = Path::new(text).to_owned();
    let folder = path.is_dir();
    if folder {
        path.push("config.json");
    }
    // Names on the hub have one slash.
    let hub = text.split('/').count() == 2 && !text.starts_with(['.', '/', '~']);
    let looks_like_a_file =
        folder || path.exists() || (text.contains('/') && !hub) || text.ends_with(".json");
    if !looks_like_a_file {
        autodist_spec::text::check_name("--model", text)?;
        let model = catalog::model(text)?;
        if model.name != text {
            output::note(&format!("--model: `{text}` is read as {} of the catalogue", model.name));
        }
        return Ok(model);
    }
    let file = path.display().to_string();
    if folder {
        check_plain(&path, "model")?;
    }
    let content = bytes(&path, "model")?;
    let value = parse::json_value(&file, &content, "model")?;
    if value.get("model_type").is_some() {
        let name = name_of(&value, &path);
        text::check_name("name of the model", &name).map_err(|e| e.in_file(&file))?;
        return Ok(huggingface::model_from_config(&file, &name, &content)?);
    }
    Ok(parse::json(&file, &content)?)
}

/// The name of a Hugging Face model: from the configuration itself, or from the file name, or from the folder
/// if the file is called `config.json`, which is the usual name.
fn name_of(config: &serde_json::Value, path: &Path) -> String {
    let last = |name: &str| name.rsplit('/').find(|part| !part.is_empty()).map(str::to_owned);
    let own = config.get("_name_or_path").and_then(serde_json::Value::as_str).and_then(last);
    let place = || {
        let whole = std::path::absolute(path).ok()?;
        let everywhere = path.file_name().is_some_and(|name| name == "config.json");
        let name = if everywhere { whole.parent()?.file_name()? } else { path.file_stem()? };
        Some(name.to_string_lossy().into_owned())
    };
    own.filter(|name| name != "." && name != "..").or_else(place).unwrap_or_else(|| "model".to_owned())
}

/// A cluster, and what nobody said about it.
pub struct ReadCluster {
    pub cluster: Cluster,
    pub assumptions: Vec<String>,
}

/// A cluster file, or the short form, with the devices of the given catalogue. In the short form, nodes without a
/// device name have devices like `own`.
pub fn cluster(text: &str, catalogue: &Catalogue, own: Option<&NodeGroup>) -> Result<ReadCluster, Failure> {
    let path = Path::new(text);
    if path.exists() || text.ends_with(".toml") {
        let cluster = Cluster::read(text, &bytes(path, "cluster")?, catalogue.devices())?;
        return Ok(ReadCluster { cluster, assumptions: Vec::new() });
    }
    let read = || -> Result<ReadCluster, InputError> {
        let written = catalogue.complete(text)?;
        let mut cluster = Cluster::from_short_form_like(&written.text, catalogue.devices(), own)?;
        if let (Some(latency), Some(network)) = (written.latency, &mut cluster.network) {
            network.latency_s = latency;
        }
        written.notes.iter().for_each(|note| output::note_once(&format!("--cluster: {note}")));
        Ok(ReadCluster { cluster, assumptions: written.assumptions })
    };
    Ok(read().map_err(|error| error.in_file("--cluster"))?)
}

/// The source of a cluster in error messages: its file, or the flag with the short form.
pub fn cluster_source(text: &str) -> &str {
    if Path::new(text).exists() || text.ends_with(".toml") { text } else { "--cluster" }
}

/// The built-in catalogue with the devices of the given files.
pub fn catalogue(args: &CatalogueArgs) -> Result<Catalogue, Failure> {
    let mut catalogue = Catalogue::shipped();
    for path in &args.devices {
        catalogue = catalogue.with_devices(&path.display().to_string(), &bytes(path, "device")?)?;
    }
    Ok(catalogue)
}

/// The rows of all tables, which may have different columns.
pub fn runs(paths: &[PathBuf], catalogue: &Catalogue) -> Result<Vec<TableRow>, Failure> {
    let mut rows: Vec<TableRow> = Vec::new();
    for path in paths {
        let file = path.display().to_string();
        let content = bytes(path, "run table")?;
        let more = table::read(&content, &file, catalogue)?;
        let unread = table::unread_columns(&content, &file)?;
        if !unread.is_empty() {
            let columns = unread.join(", ");
            output::warn(&format!(
                "{file}: columns that are not read: {columns}; docs/files.md lists those that are"
            ));
        }
        let missing: Vec<_> = table::missing_columns(&content, &file, catalogue)?.into_iter().collect();
        if !missing.is_empty() {
            output::note(&format!(
                "{file}: facts of the software are read from `source`, `url_or_repo_path` and `notes`; there are columns for them: {}",
                missing.join(", ")
            ));
        }
        let known: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        if let Some(twice) = more.iter().find(|row| known.contains(row.id.as_str())) {
            let error = InputError::new("id", &twice.id, "is also in another table").in_file(&file);
            return Err(error.hint("give each run its own id, or remove one of the tables").into());
        }
        rows.extend(more);
    }
    Ok(rows)
}

/// Efficiencies written by `autodist calibrate`.
pub fn calibration(path: &Path) -> Result<(Calibration, FreeParameters), Failure> {
    let content = bytes(path, "calibration")?;
    Ok(Calibration::read(&path.display().to_string(), &content)?)
}

/// The sequences of a step that `--global-batch` or `--global-batch-tokens` give. People call 4 x 1024 x 1024 tokens
/// 4M, too: of both readings, the one that is a whole number of sequences is meant, else the nearest whole number.
fn batch(args: &JobArgs, seq_len: Option<u32>) -> Result<Option<u32>, Failure> {
    let Some(tokens) = args.global_batch_tokens else { return Ok(args.global_batch) };
    let Some(seq_len) = seq_len.map(u64::from).filter(|length| *length > 0) else {
        let error = InputError::new("--global-batch-tokens", tokens, "needs the length of sequences");
        return Err(error.hint("give `--seq-len`, e.g. `--seq-len 4096`").into());
    };
    let binary = (1..=4).rev().find_map(|power| {
        let whole = tokens / 1000_u64.pow(power);
        tokens.is_multiple_of(1000_u64.pow(power)).then(|| whole << (10 * power))
    });
    let understood =
        [Some(tokens), binary].into_iter().flatten().find(|tokens| tokens.is_multiple_of(seq_len));
    let sequences = understood.map_or_else(|| (tokens + seq_len / 2) / seq_len, |tokens| tokens / seq_len);
    if sequences == 0 {
        let problem = format!("is less than one sequence of {seq_len} tokens");
        return Err(InputError::new("--global-batch-tokens", tokens, problem)
            .hint("give at least the tokens of one sequence")
            .into());
    }
    in_range("--global-batch-tokens, in sequences", sequences, 1, 1 << 20)?;
    if understood != Some(tokens) {
        output::note_once(&format!(
            "--global-batch-tokens: {sequences} sequences of {seq_len} tokens, which are {} tokens",
            sequences * seq_len
        ));
    }
    Ok(Some(sequences as u32))
}

/// The job file overridden by flags, or flags alone.
/// `measured` is the precision of the profile that prices the job, or that of prices without a profile; a job
/// that gives none has it.
pub fn job(
    args: &JobArgs,
    default_batch: Option<u32>,
    default_seq_len: Option<u32>,
    measured: Option<Precision>,
) -> Result<Job, Failure> {
    let mut file_has_objective = false;
    let mut job = match &args.job {
        Some(path) => {
            let (file, content) = (path.display().to_string(), bytes(path, "job")?);
            let mut job = Job::read(&file, &content)?;
            file_has_objective = Job::gives_objective(&file, &content)?;
            if let (Some(measured), None) = (measured, Job::precision_in(&file, &content)?) {
                job.precision = measured;
            }
            job
        }
        None => {
            let missing = |flag: &str, example: u32| {
                InputError::new(flag, "", "is required")
                    .hint(format!("give {flag}, e.g. {flag} {example}, or a job file"))
            };
            let seq_len = args.seq_len.or(default_seq_len);
            let batch = batch(args, seq_len)?.or(default_batch);
            let batch = batch.ok_or_else(|| missing("--global-batch", 8))?;
            let seq_len = seq_len.ok_or_else(|| missing("--seq-len", 4096))?;
            Job {
                precision: measured.unwrap_or_default(),
                given: Some(BTreeSet::new()),
                ..Job::new(batch, seq_len)
            }
        }
    };
    job.seq_len = args.seq_len.unwrap_or(job.seq_len);
    job.global_batch = batch(args, Some(job.seq_len))?.unwrap_or(job.global_batch);
    job.training_tokens = args.tokens.or(job.training_tokens);
    if let (Some(tokens), false) = (args.tokens, job.given().contains(&Hyperparameter::TotalSteps)) {
        // The schedule ends with the training, and exports train so long.
        job.learning_rate.total_steps = tokens.div_ceil(job.tokens().max(1)).min(1 << 30) as u32;
        job.give(Hyperparameter::TotalSteps);
        job.fit_schedule();
    }
    if let Some(seed) = args.seed {
        job.seed = seed;
        job.give(Hyperparameter::Seed);
    }
    job.precision = args.precision.unwrap_or(job.precision);
    if args.allow.contains(&AllowArg::Compression) {
        job.allow.codecs = Codec::DEFAULTS.to_vec();
        job.allow.parameter_codecs = vec![Codec::None, Codec::Bf16, Codec::Int8 { block: 256 }];
        job.allow.activation_codecs = vec![Codec::None, Codec::Bf16];
        if !file_has_objective {
            job.objective = job.usual_objective();
        }
    }
    job.objective = args.objective.unwrap_or(job.objective);
    if let Some(peak) = args.learning_rate {
        job.learning_rate.peak = peak;
        job.give(Hyperparameter::PeakLearningRate);
    }
    let file = args.job.as_ref().map_or_else(|| FLAGS.to_owned(), |path| path.display().to_string());
    args.states.apply(&mut job.states);
    args.trainable.apply(&mut job.trainable).map_err(|error| blame_trainable(error, args))?;
    let mut flags = vec![
        ("global_batch", "--global-batch", args.global_batch.is_some()),
        ("seq_len", "--seq-len", args.seq_len.is_some()),
        ("training_tokens", "--tokens", args.tokens.is_some()),
        ("learning_rate.peak", "--learning-rate", args.learning_rate.is_some()),
    ];
    flags.extend(states_flags(args));
    flags.extend(trainable_flags(args));
    job.check().map_err(|error| by_flag(error, &flags).in_file(&file))?;
    Ok(job)
}

/// The precision that a flag or the job file gives; a job file that leaves it out does not give it.
pub fn given_precision(args: &JobArgs) -> Result<Option<Precision>, Failure> {
    let (None, Some(path)) = (args.precision, &args.job) else { return Ok(args.precision) };
    Ok(Job::precision_in(&path.display().to_string(), &bytes(path, "job")?)?)
}

/// The flags of the state of a training, by the fields that they set, and whether they are given.
fn states_flags(args: &JobArgs) -> Vec<(&'static str, &'static str, bool)> {
    let given = |(field, flag)| (field, flag, args.states.flag(field).is_some());
    cli::STATE_FLAGS.into_iter().map(given).collect()
}

/// Names the flag of an error in the state of a training, if it is given.
pub fn blame_states(error: InputError, args: &JobArgs) -> InputError {
    by_flag(error, &states_flags(args))
}

/// The flags of what is trained, as above.
fn trainable_flags(args: &JobArgs) -> Vec<(&'static str, &'static str, bool)> {
    let given = |(field, flag)| (field, flag, args.trainable.flag(field).is_some());
    cli::TRAINABLE_FLAGS.into_iter().map(given).collect()
}

/// Names the flag of an error in what is trained, if it is given.
pub fn blame_trainable(error: InputError, args: &JobArgs) -> InputError {
    by_flag(error, &trainable_flags(args))
}

/// Adds the flag to an error if the invalid value came from a flag.
fn by_flag(mut error: InputError, flags: &[(&str, &str, bool)]) -> InputError {
    // An entry of a list has its index in brackets.
    let field = error.field.split('[').next().unwrap_or_default();
    if let Some((_, flag, _)) = flags.iter().find(|(name, _, given)| *given && *name == field) {
        error.field = (*flag).to_owned();
        error.in_file(FLAGS)
    } else {
        error
    }
}

/// Restricts the options that the job allows to those of the flags, for `devices` devices.
pub fn narrow(job: &mut Job, args: &StrategyArgs, devices: u32) -> Result<(), Failure> {
    let degrees = [
        ("--tp", &args.tp),
        ("--pp", &args.pp),
        ("--dp", &args.dp),
        ("--cp", &args.cp),
        ("--shard", &args.shard),
    ];
    for (flag, values) in degrees {
        let wrong = values.iter().find(|value| **value == 0 || !devices.is_multiple_of(**value));
        if let Some(value) = wrong {
            let error = InputError::new(flag, value, format!("must divide the {devices} devices"));
            return Err(error
                .hint(format!("use a divisor of {devices}, or remove `{flag}` to search it"))
                .into());
        }
    }
    // Products of one value of each flag, as far as they divide the devices.
    let mut products: BTreeSet<u64> = [1].into();
    for (_, values) in degrees.iter().filter(|(flag, values)| *flag != "--shard" && !values.is_empty()) {
        let all =
            products.iter().flat_map(|product| values.iter().map(move |value| product * u64::from(*value)));
        products = all.filter(|product| u64::from(devices).is_multiple_of(*product)).collect();
    }
    if products.is_empty() {
        let lists = [&args.tp, &args.pp, &args.dp, &args.cp];
        let problem = match lists.iter().all(|list| list.len() <= 1) {
            true => {
                let product: u64 =
                    lists.iter().flat_map(|list| list.iter()).copied().map(u64::from).product();
                format!("multiply to {product}, which does not divide the {devices} devices")
            }
            false => format!("have no product that divides the {devices} devices"),
        };
        let shown = lists.map(|list| if list.is_empty() { "1".to_owned() } else { list_of(list) });
        return Err(InputError::new("--tp x --pp x --dp x --cp", shown.join(" x "), problem)
            .hint("choose degrees whose product divides the devices, or remove some to search them")
            .into());
    }
    if args.sequence_parallel() == Some(true) && !args.tp.is_empty() && args.tp.iter().all(|tp| *tp == 1) {
        let error = InputError::new("--sp", "", "needs tensor parallelism, but `--tp` is 1");
        return Err(error.hint("remove `--sp`, or raise `--tp`").into());
    }
    let allow = &mut job.allow;
    let only = |list: &mut Option<Vec<u32>>, values: &[u32]| {
        if !values.is_empty() {
            *list = Some(values.to_vec());
        }
    };
    only(&mut allow.tensor, &args.tp);
    only(&mut allow.pipeline, &args.pp);
    only(&mut allow.data, &args.dp);
    only(&mut allow.context, &args.cp);
    only(&mut allow.expert, &args.ep);
    only(&mut allow.micro_batch, &args.micro_batch);
    only(&mut allow.virtual_stages, &args.vpp);
    only(&mut allow.shard, &args.shard);
    if !args.zero.is_empty() {
        allow.zero_stage = args.zero.clone();
    } else if !args.shard.is_empty() && args.shard.iter().all(|shard| *shard > 1) {
        // Stage 0 shards nothing.
        allow.zero_stage.retain(|stage| *stage > 0);
    }
    if let Some(wanted) = args.sequence_parallel() {
        allow.sequence_parallel = vec![wanted];
    }
    if !args.recompute.is_empty() {
        allow.recompute = args.recompute.clone();
    }
    if !args.schedule.is_empty() {
        allow.schedule = args.schedule.clone();
    }
    if !args.bucket_bytes.is_empty() {
        allow.bucket_bytes = args.bucket_bytes.iter().copied().map(Bytes).collect();
    }
    let flags = [
        ("allow.micro_batch", "--micro-batch", !args.micro_batch.is_empty()),
        ("allow.virtual_stages", "--vpp", !args.vpp.is_empty()),
        ("allow.expert", "--ep", !args.ep.is_empty()),
        ("allow.bucket_bytes", "--bucket-bytes", !args.bucket_bytes.is_empty()),
    ];
    Ok(job.check().map_err(|error| by_flag(error, &flags))?)
}

/// The values of a flag, as they are written.
fn list_of(values: &[u32]) -> String {
    values.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

/// The one strategy that the flags give on `devices` devices.
pub fn strategy(args: &Layout, devices: u32) -> Result<ParallelStrategy, Failure> {
    let (tensor, pipeline, context) = (args.tp.unwrap_or(1), args.pp.unwrap_or(1), args.cp.unwrap_or(1));
    for (flag, degree) in [("--tp", tensor), ("--pp", pipeline), ("--cp", context)] {
        in_range(flag, u64::from(degree), 1, 1 << 20)?;
    }
    let others = u64::from(tensor) * u64::from(pipeline) * u64::from(context);
    let data = match args.dp {
        Some(data) => data,
        None if u64::from(devices) % others == 0 => (u64::from(devices) / others) as u32,
        None => {
            let problem =
                format!("tp={tensor} x pp={pipeline} x cp={context} does not divide {devices} devices");
            return Err(InputError::new("--tp, --pp, --cp", others, problem)
                .hint(format!("choose degrees whose product divides {devices}"))
                .into());
        }
    };
    let virtual_stages = args.vpp.unwrap_or(1);
    let zero_stage = args.zero.unwrap_or(0);
    let schedule = match args.schedule {
        Some(schedule) => schedule,
        None if virtual_stages > 1 => ScheduleKind::Interleaved,
        None => ScheduleKind::OneFOneB,
    };
    let strategy = ParallelStrategy {
        tensor,
        pipeline,
        context,
        expert: args.ep.unwrap_or(1),
        zero_stage,
        shard: args.shard.unwrap_or(if zero_stage > 0 { data } else { 1 }),
        virtual_stages,
        sequence_parallel: args.sp.unwrap_or(false),
        recompute: args.recompute.unwrap_or_default(),
        schedule,
        bucket_bytes: Bytes(args.bucket_bytes.unwrap_or(25 << 20)),
        ..ParallelStrategy::data_parallel(data, args.micro_batch.unwrap_or(1))
    };
    let flags = [
        ("data", "--dp", true),
        ("expert", "--ep", true),
        ("virtual_stages", "--vpp", true),
        ("shard", "--shard", true),
        ("micro_batch", "--micro-batch", true),
        ("bucket_bytes", "--bucket-bytes", true),
    ];
    strategy.check().map_err(|error| by_flag(error, &flags))?;
    Ok(strategy)
}
