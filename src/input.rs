//! Reads the user's files and flags into typed, checked specs. Nothing else in the program opens an input file.

use crate::cli::{AllowArg, CatalogueArgs, JobArgs, StrategyArgs};
use crate::failure::Failure;
use autodist_analytic::table::{self, Row};
use autodist_analytic::{Calibration, Parameters};
use autodist_executor::hosts::{self, Host};
use autodist_hardware::Catalogue;
use autodist_program::rules;
use autodist_spec::error::in_range;
use autodist_spec::parse::{self, Check};
use autodist_spec::{
    Bytes, Cluster, Codec, InputError, Job, ModelSpec, Network, Objective, ParallelStrategy, Plan, Precision,
    Profile, RunRecord, ScheduleKind, Stage, Validation, catalog, huggingface,
};
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Larger files are none of ours.
const LARGEST_FILE: u64 = 1 << 28;

pub fn bytes(path: &Path, what: &str) -> Result<Vec<u8>, InputError> {
    let name = path.display().to_string();
    let failed = |problem: String| {
        InputError::new("", "", problem)
            .hint(format!("give the path of a {what} file that can be read"))
            .in_file(&name)
    };
    let unreadable = |error: std::io::Error| failed(format!("cannot be read: {error}"));
    let file = std::fs::File::open(path).map_err(unreadable)?;
    if file.metadata().map_err(unreadable)?.is_dir() {
        return Err(failed("is a folder".to_owned()));
    }
    // A pipe or a device has no length, and may have no end.
    let mut content = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > LARGEST_FILE {
        return Err(failed(format!("has more than {LARGEST_FILE} bytes, which no {what} file has")));
    }
    Ok(content)
}

fn json<T: DeserializeOwned + Check>(path: &Path) -> Result<T, Failure> {
    Ok(parse::json(&path.display().to_string(), &bytes(path, T::WHAT)?)?)
}

/// A plan that can be run: it breaks no rule.
pub fn plan(path: &Path) -> Result<Plan, Failure> {
    let plan: Plan = json(path)?;
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

pub fn profile(path: &Path) -> Result<Profile, Failure> {
    json(path)
}

pub fn run(path: &Path) -> Result<RunRecord, Failure> {
    json(path)
}

pub fn validation(path: &Path) -> Result<Validation, Failure> {
    json(path)
}

/// The hosts of a file, on which ranks are started.
pub fn hosts(path: &Path) -> Result<Vec<Host>, Failure> {
    Ok(hosts::parse(&path.display().to_string(), &bytes(path, "host")?)?)
}

/// A cluster file whose devices and links ranks on this machine can stand for.
pub fn emulated(path: &Path) -> Result<Cluster, Failure> {
    let text = path.display().to_string();
    let cluster = cluster(&text)?;
    let refuse = |field: &str, problem: &str, hint: &str| {
        Err(Failure::from(InputError::new(field, "", problem).hint(hint).in_file(&text)))
    };
    if !cluster.homogeneous() {
        return refuse(
            "nodes",
            "devices of several kinds cannot be emulated side by side",
            "give one device",
        );
    }
    in_range("devices in all", u64::from(cluster.device_count()), 1, 64).map_err(|e| e.in_file(&text))?;
    if cluster.device().peak_flops_per_s.is_none() {
        let hint = "floating-point operations that it really does in a second of training, e.g. 5e9";
        return refuse(
            "nodes[0].device.peak_flops_per_s",
            "is missing: nothing says how fast a device is",
            hint,
        );
    }
    if Network::of(&cluster).is_none() {
        let hint = "give every node group a `link`, and several nodes an `uplink` or the cluster a `network`";
        return refuse("nodes[0].link", "is missing: nothing says how devices are joined", hint);
    }
    Ok(cluster)
}

/// Refuses what no training text can be read from; ranks would find out only after they have started.
pub fn check_data_file(path: Option<&PathBuf>) -> Result<(), Failure> {
    match path {
        Some(path) if path.is_dir() => {
            Err(InputError::new("--data", path.display(), "is a folder").hint("give a text file").into())
        }
        _ => Ok(()),
    }
}

/// A model by its name in the catalogue, a Hugging Face `config.json` (or the folder that holds it), or a model file.
pub fn model(text: &str) -> Result<ModelSpec, Failure> {
    let mut path = Path::new(text).to_owned();
    let folder = path.is_dir();
    if folder {
        path.push("config.json");
    }
    let looks_like_a_file = folder || path.exists() || text.contains('/') || text.ends_with(".json");
    if !looks_like_a_file {
        return Ok(catalog::model(text)?);
    }
    let file = path.display().to_string();
    let content = bytes(&path, "model")?;
    let value = parse::json_value(&file, &content, "model")?;
    if value.get("model_type").is_some() {
        let stem = path.parent().and_then(Path::file_name).or_else(|| path.file_stem());
        let name = stem.map_or_else(|| "model".to_owned(), |s| s.to_string_lossy().into_owned());
        return Ok(huggingface::model_from_config(&file, &name, &content)?);
    }
    Ok(parse::json(&file, &content)?)
}

/// A cluster file, or the short form.
pub fn cluster(text: &str) -> Result<Cluster, Failure> {
    cluster_of(text, &Catalogue::shipped())
}

/// The same, of devices of that catalogue.
pub fn cluster_of(text: &str, catalogue: &Catalogue) -> Result<Cluster, Failure> {
    let path = Path::new(text);
    if path.exists() || text.ends_with(".toml") {
        return Ok(Cluster::read(text, &bytes(path, "cluster")?, catalogue.devices())?);
    }
    let cluster = Cluster::from_short_form_with(text, catalogue.devices());
    Ok(cluster.map_err(|e| e.in_file("--cluster"))?)
}

/// The built-in catalogue and the devices of those files.
pub fn catalogue(args: &CatalogueArgs) -> Result<Catalogue, Failure> {
    let mut catalogue = Catalogue::shipped();
    for path in &args.devices {
        catalogue = catalogue.with_devices(&path.display().to_string(), &bytes(path, "device")?)?;
    }
    Ok(catalogue)
}

/// The rows of all tables, each of which may have columns of its own.
pub fn runs(paths: &[PathBuf], catalogue: &Catalogue) -> Result<Vec<Row>, Failure> {
    let mut rows: Vec<Row> = Vec::new();
    for path in paths {
        let file = path.display().to_string();
        let more = table::read(&bytes(path, "run table")?, &file, catalogue)?;
        let known: BTreeSet<&str> = rows.iter().map(|row| row.id.as_str()).collect();
        if let Some(twice) = more.iter().find(|row| known.contains(row.id.as_str())) {
            let error = InputError::new("id", &twice.id, "is in another of the tables, too").in_file(&file);
            return Err(error.hint("give each run a name of its own, or leave one table out").into());
        }
        rows.extend(more);
    }
    Ok(rows)
}

/// Efficiencies that `autodist calibrate` wrote.
pub fn calibration(path: &Path) -> Result<(Calibration, Parameters), Failure> {
    let content = bytes(path, "calibration")?;
    Ok(Calibration::read(&path.display().to_string(), &content)?)
}

/// The job file with the flags laid over it, or the flags alone.
/// `measured` is the arithmetic of the profile that prices the job, if there is one already.
pub fn job(
    args: &JobArgs,
    default_batch: Option<u32>,
    default_seq_len: Option<u32>,
    measured: Option<Precision>,
) -> Result<Job, Failure> {
    let mut job = match &args.job {
        Some(path) => parse::toml(&path.display().to_string(), &bytes(path, "job")?)?,
        None => {
            let missing = |flag: &str, example: u32| {
                InputError::new(flag, "", "is missing")
                    .hint(format!("give {flag}, e.g. {flag} {example}, or a job file"))
            };
            let batch = args.global_batch.or(default_batch).ok_or_else(|| missing("--global-batch", 8))?;
            let seq_len = args.seq_len.or(default_seq_len).ok_or_else(|| missing("--seq-len", 128))?;
            Job { precision: measured.unwrap_or_default(), ..Job::new(batch, seq_len) }
        }
    };
    job.global_batch = args.global_batch.unwrap_or(job.global_batch);
    job.seq_len = args.seq_len.unwrap_or(job.seq_len);
    job.seed = args.seed.unwrap_or(job.seed);
    job.objective = args.objective.map_or(job.objective, Objective::from);
    job.precision = args.precision.map_or(job.precision, Precision::from);
    if args.allow.contains(&AllowArg::Compression) {
        job.allow.codecs = Codec::DEFAULTS.to_vec();
        job.allow.parameter_codecs = vec![Codec::None, Codec::Bf16, Codec::Int8 { block: 256 }];
        job.allow.activation_codecs = vec![Codec::None, Codec::Bf16];
    }
    if let Some(peak) = args.learning_rate {
        job.learning_rate.peak = peak;
    }
    let file = args.job.as_ref().map_or_else(|| "the flags".to_owned(), |path| path.display().to_string());
    let flags = [
        ("global_batch", "--global-batch", args.global_batch.is_some()),
        ("seq_len", "--seq-len", args.seq_len.is_some()),
        ("learning_rate.peak", "--learning-rate", args.learning_rate.is_some()),
    ];
    job.check().map_err(|error| by_flag(error, &flags).in_file(&file))?;
    Ok(job)
}

/// Names the flag that a wrong value was given by, where it was one.
fn by_flag(mut error: InputError, flags: &[(&str, &str, bool)]) -> InputError {
    if let Some((_, flag, _)) = flags.iter().find(|(field, _, given)| *given && *field == error.field) {
        error.field = (*flag).to_owned();
        error.in_file("the flags")
    } else {
        error
    }
}

/// Narrows what the job allows to what the flags name, for `devices` devices.
pub fn narrow(job: &mut Job, args: &StrategyArgs, devices: u32) -> Result<(), Failure> {
    for (flag, value) in [("--cp", args.cp), ("--ep", args.ep)] {
        if let Some(value) = value.filter(|value| *value != 1) {
            let error =
                InputError::new(flag, value, "is not in this release's executor, so no search goes there");
            return Err(error.hint(format!("leave {flag} out")).into());
        }
    }
    for (flag, value) in [("--tp", args.tp), ("--pp", args.pp), ("--dp", args.dp), ("--shard", args.shard)] {
        if let Some(value) = value.filter(|value| *value == 0 || !devices.is_multiple_of(*value)) {
            let error = InputError::new(flag, value, format!("does not divide the {devices} devices"));
            return Err(error
                .hint("choose a divisor, or leave the flag out for the search to choose")
                .into());
        }
    }
    let allow = &mut job.allow;
    let only = |list: &mut Option<Vec<u32>>, value: Option<u32>| {
        if let Some(value) = value {
            *list = Some(vec![value]);
        }
    };
    only(&mut allow.tensor, args.tp);
    only(&mut allow.pipeline, args.pp);
    only(&mut allow.data, args.dp);
    only(&mut allow.micro_batch, args.micro_batch);
    only(&mut allow.virtual_stages, args.vpp);
    only(&mut allow.shard, args.shard);
    if let Some(zero) = args.zero {
        allow.zero_stage = vec![zero];
    }
    if args.sp {
        allow.sequence_parallel = vec![true];
    }
    if let Some(recompute) = args.recompute {
        allow.recompute = vec![recompute.into()];
    }
    if let Some(schedule) = args.schedule {
        allow.schedule = vec![schedule.into()];
    }
    if let Some(bytes) = args.bucket_bytes {
        allow.bucket_bytes = vec![Bytes(bytes)];
    }
    let flags = [
        ("allow.micro_batch[0]", "--micro-batch", args.micro_batch.is_some()),
        ("allow.virtual_stages[0]", "--vpp", args.vpp.is_some()),
        ("allow.bucket_bytes[0]", "--bucket-bytes", args.bucket_bytes.is_some()),
    ];
    Ok(job.check().map_err(|error| by_flag(error, &flags))?)
}

/// The one strategy that the flags give on `devices` devices.
pub fn strategy(args: &StrategyArgs, devices: u32) -> Result<ParallelStrategy, Failure> {
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
                .hint("choose divisors of the device count")
                .into());
        }
    };
    let virtual_stages = args.vpp.unwrap_or(1);
    let zero_stage = args.zero.unwrap_or(0);
    let schedule = match args.schedule {
        Some(schedule) => schedule.into(),
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
        sequence_parallel: args.sp,
        recompute: args.recompute.map(Into::into).unwrap_or_default(),
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
