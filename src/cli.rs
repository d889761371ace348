//! Command lines: clap types only.

mod answers;
pub mod look;

pub use answers::{CompareArgs, DiffArgs, DoctorArgs};

use crate::quantity;
use autodist_analytic::Trainer;
use autodist_exporters::Target;
use autodist_spec::{Engine, Objective, Precision, Recompute, ScheduleKind};
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::error::Error;
use std::path::PathBuf;
use std::str::FromStr;

/// Plan distributed training: find the fastest parallel strategy for a model on a cluster, and check it by
/// training
///
/// Exit codes: 0 success; 2 bad input; 3 no plan fits; 4 a rank or a device failed, or a result could not be
/// written; 5 the measurement refutes the plan's prediction; 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub look: look::LookArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure the model's layers, the collectives and the links on this machine; write a profile
    Profile(ProfileArgs),
    /// Search for the fastest parallel strategy that fits in memory, priced by a profile, or without one by
    /// published figures
    Plan(PlanArgs),
    /// Predict step time and memory of one given strategy, from a profile or from published hardware figures
    Estimate(EstimateArgs),
    /// Compare clusters for one job: which is faster, which is cheaper, and how each scales
    Compare(CompareArgs),
    /// Compare predictions from hardware figures with a table of measured runs
    Backtest(BacktestArgs),
    /// Fit the efficiencies behind plans without a profile to a table of a cluster's own runs
    Calibrate(CalibrateArgs),
    /// Train plans, compare measured with predicted step times, and put the fastest plan first in the plan
    /// document
    Validate(ValidateArgs),
    /// Run profile, plan, validate and report in one go
    Tune(TuneArgs),
    /// Write a plan as the configuration of another trainer, with a launch script
    Export(ExportArgs),
    /// List what differs between two plans, two profiles or two runs
    Diff(DiffArgs),
    /// Explain why a plan won, what limits it, and what other hardware would change
    Explain(ExplainArgs),
    /// Write an HTML report, PNG figures and CSV tables for a plan and its runs
    Report(ReportArgs),
    /// Train one plan and write a run record with losses and step times
    Train(TrainArgs),
    /// Show what this machine has, and what each command would do here and for how long
    Doctor(DoctorArgs),
    /// Run every kernel and layer on a device and compare the results with the CPU's in double precision
    Selftest(SelftestArgs),
    /// List the built-in models and devices
    Catalog(JsonArgs),
    /// Print the JSON Schema of a file format
    Schema(SchemaArgs),
}

/// The training job.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    /// Job file (TOML, docs/files.md), e.g., `job.toml`; flags override its fields
    #[arg(long)]
    pub job: Option<PathBuf>,
    /// Sequences per optimizer step, summed over all devices, e.g., 1024 (default for `profile` and `tune`:
    /// 8)
    #[arg(long)]
    pub global_batch: Option<u32>,
    /// Tokens per optimizer step, in place of --global-batch, e.g., 4M: a whole number of sequences, where 4M may
    /// also be 4 x 1024 x 1024
    #[arg(long, value_name = "TOKENS", value_parser = quantity::tokens, conflicts_with = "global_batch")]
    pub global_batch_tokens: Option<u64>,
    /// Tokens of the whole training, e.g., 1T: plans then include its days, device hours and cost
    #[arg(long, value_parser = quantity::tokens)]
    pub tokens: Option<u64>,
    /// Tokens per sequence, e.g., 4096 (default: the profile's, if one is used)
    #[arg(long)]
    pub seq_len: Option<u32>,
    /// Seed of the initial parameters and of the synthetic data (default: 0)
    #[arg(long)]
    pub seed: Option<u64>,
    /// Peak learning rate, e.g., 3e-4 (default: 3e-3)
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Training precision (default: that of the job file; else the profile's; without a profile bf16 for `plan`
    /// and `estimate`, and fp32 for the others)
    #[arg(long, value_parser = precisions())]
    pub precision: Option<Precision>,
    /// What the search minimises (default: step-time); the two differ only if lossy codecs are allowed
    #[arg(long, value_parser = objectives())]
    pub objective: Option<Objective>,
    /// Also consider options that change the training numerics
    #[arg(long, value_enum)]
    pub allow: Vec<AllowArg>,
}

/// Hardware that the built-in catalogue does not have.
#[derive(Debug, Args)]
pub struct CatalogueArgs {
    /// Device file (TOML, docs/hardware.md), used without a profile: adds devices to the catalogue or
    /// replaces devices of the same name; can be repeated
    #[arg(long, value_name = "FILE")]
    pub devices: Vec<PathBuf>,
}

/// The source of prices of a cluster that was not measured.
#[derive(Debug, Args)]
pub struct FigureArgs {
    /// Efficiencies (TOML) that `autodist calibrate` fitted to a cluster; only without a profile (default:
    /// built-in)
    #[arg(long)]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

#[derive(Debug, Args)]
pub struct ModelArg {
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file
    #[arg(long, default_value = "tiny-llama")]
    pub model: String,
}

/// The parallel strategy. `estimate` prices exactly this one; a search takes every flag as a restriction.
#[derive(Debug, Clone, Default, Args)]
pub struct StrategyArgs {
    /// Tensor-parallel degree; it must divide the devices and the attention heads (default: searched; 1 for
    /// `estimate`)
    #[arg(long)]
    pub tp: Option<u32>,
    /// Pipeline-parallel degree; it must divide the devices (default: searched; 1 for `estimate`)
    #[arg(long)]
    pub pp: Option<u32>,
    /// Data-parallel degree (default: searched; for `estimate` the devices that the other degrees leave)
    #[arg(long)]
    pub dp: Option<u32>,
    /// Context-parallel degree: ranks that split every sequence; above 1 only without a profile (default:
    /// searched; 1 for `estimate`)
    #[arg(long)]
    pub cp: Option<u32>,
    /// Expert-parallel degree: data-parallel ranks over which a layer's experts are distributed; above 1 only
    /// without a profile (default: searched; 1 for `estimate`)
    #[arg(long)]
    pub ep: Option<u32>,
    /// Virtual stages per pipeline rank; above 1 the schedule is interleaved (default: searched; 1 for
    /// `estimate`)
    #[arg(long)]
    pub vpp: Option<u32>,
    /// ZeRO stage: 1 shards the optimizer state, 2 also gradients, 3 also parameters (default: searched; for
    /// `estimate` 0, or with --cluster the trainer's usual stage)
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub zero: Option<u8>,
    /// Data-parallel ranks that ZeRO shards over; fewer than --dp is HSDP, sharded in a group and replicated
    /// across groups (default: searched; for `estimate` all data-parallel ranks)
    #[arg(long)]
    pub shard: Option<u32>,
    /// Use sequence parallelism in the tensor-parallel groups (default: searched; off for `estimate`)
    #[arg(long)]
    pub sp: bool,
    /// Activation recomputation (default: searched; for `estimate` none, or with --cluster the least that
    /// fits in memory)
    #[arg(long, value_parser = recompute_modes())]
    pub recompute: Option<Recompute>,
    /// Sequences per micro-batch and data-parallel rank (default: searched; 1 for `estimate`)
    #[arg(long)]
    pub micro_batch: Option<u32>,
    /// Pipeline schedule (default: searched; for `estimate` 1f1b, or interleaved if --vpp is above 1)
    #[arg(long, value_parser = schedules())]
    pub schedule: Option<ScheduleKind>,
    /// Minimum size of a gradient bucket, in bytes (default: 26214400, which is 25 MiB)
    #[arg(long)]
    pub bucket_bytes: Option<u64>,
}

/// Options that change the training numerics, and are used only on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AllowArg {
    /// Lossy codecs for gradients, gathered parameters and activations, each with its default settings
    Compression,
}

/// How ranks are run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Training engine (default: the one that the plan was made for, else native)
    #[arg(long, value_parser = engines())]
    pub engine: Option<Engine>,
    /// Python interpreter that has PyTorch and autodist_torch (default: AUTODIST_PYTHON, else
    /// .venv/bin/python if --engine torch is given, else python3)
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Do not request real-time priority for ranks on CPUs; measured times then include other load
    #[arg(long)]
    pub no_realtime: bool,
    /// IP address and port of the rendezvous, where the ranks find each other; port 0 takes any free port
    #[arg(long, default_value = "127.0.0.1:0")]
    pub rendezvous: std::net::SocketAddr,
    /// Seconds after which a rank counts as lost, if it sends no heartbeat, or no data that a peer waits for
    #[arg(long, default_value_t = 60.0)]
    pub timeout: f64,
    /// Transport between ranks
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: TransportArg,
    /// Start the ranks by ssh on the hosts of this file; each line is `<host> slots=<ranks>`, e.g.,
    /// `node01 slots=8`
    #[arg(long, value_name = "FILE")]
    pub hosts: Option<PathBuf>,
    /// Command that starts a program on a host as ssh does, with its arguments, e.g., `ssh -p 2222`; used
    /// with --hosts
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub ssh: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransportArg {
    /// TCP connections
    Tcp,
    /// MPI; needs mpirun, and an autodist that was built with `--features mpi`
    Mpi,
}

/// The devices that are measured.
#[derive(Debug, Args)]
pub struct RanksArgs {
    /// Devices that the ranks compute on
    #[arg(long, value_enum, default_value = "auto")]
    pub devices: DevicesArg,
    /// Number of ranks, one device each, up to 64 (default: all devices of this machine)
    #[arg(long)]
    pub ranks: Option<u32>,
    /// Allow more ranks than devices; plans run, but predicted step times do not apply
    #[arg(long)]
    pub oversubscribe: bool,
    /// Emulate the cluster of this file on this machine: ranks compute on CPU cores at the speed of its
    /// devices, and send over links as slow as its links
    #[arg(long, conflicts_with_all = ["ranks", "devices"])]
    pub emulate: Option<PathBuf>,
}

impl RanksArgs {
    /// Emulated devices are cores.
    pub fn kind(&self) -> DevicesArg {
        if self.emulate.is_some() { DevicesArg::Cpu } else { self.devices }
    }
}

#[derive(Debug, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub ranks: RanksArgs,
    /// Time limit in seconds, after which no further round of measurements begins
    #[arg(long, default_value_t = 60.0)]
    pub budget: f64,
    /// Target precision: a measurement is repeated until the 95 % interval of its median is this narrow,
    /// relative to the median, e.g., 0.05 for 5 %
    #[arg(long, default_value_t = 0.05)]
    pub interval: f64,
    /// Measure again even if the output file already holds a profile of this model on this machine
    #[arg(long)]
    pub fresh: bool,
    /// File to write the profile to
    #[arg(short, long, default_value = "profile.json")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DevicesArg {
    /// NVIDIA GPUs if the machine has any, else CPU cores
    Auto,
    /// CPU cores, one per rank
    Cpu,
    /// NVIDIA GPUs
    Cuda,
}

/// The source of prices of a plan.
#[derive(Debug, Args)]
pub struct PriceArgs {
    /// Profile that `autodist profile` wrote (default: profile.json in this folder, unless --cluster is
    /// given)
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// Cluster file (TOML), or `<nodes>x<devices per node>x<device>[@<NICs per node>x<rate>]`, e.g.,
    /// `2x8xh100-80gb-sxm@8x400gbps`, with `+` between kinds of nodes; without --profile the cluster is priced
    /// from published figures. With --profile, `<nodes>x<devices per node>[@…]` are more of its devices
    #[arg(long)]
    pub cluster: Option<String>,
    /// Plan as if every device had this much memory, in bytes, e.g., 85899345920 (80 GiB)
    #[arg(long)]
    pub device_memory: Option<u64>,
    /// Price of one device for one hour in US dollars, e.g., 2.50; by device: `h100-80gb-sxm=2.50,b200-180gb=4`, or
    /// a TOML file with such lines; used with --tokens
    #[arg(long)]
    pub price: Option<String>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Compare with the strategy of a trainer's own configuration, and list the smallest changes that make it fit or
    /// make it faster, e.g., `--from megatron pretrain.sh`; flags of the job and the strategy override the file
    #[arg(long, num_args = 2, value_names = ["TRAINER", "FILE"])]
    pub from: Vec<String>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file (default: the model in --from, else tiny-llama)
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    /// Training framework to plan for (megatron: Megatron-LM of 2021; megatron-core: since 2023); only
    /// without a profile (default: megatron-core)
    #[arg(long, value_parser = trainers())]
    pub trainer: Option<Trainer>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// File that `validate --probe` wrote (validation.json): measured cost of lossy codecs, in steps
    #[arg(long)]
    pub probes: Option<PathBuf>,
    /// Number of plans to keep in the document: the best and the runners-up
    #[arg(long, default_value_t = 5)]
    pub top: usize,
    /// Time limit of the search in seconds, after which it returns the best plan so far with its optimality
    /// gap (default: none)
    #[arg(long)]
    pub time_limit: Option<f64>,
    /// Threads of the search, 0 for one per core; the plan does not depend on it
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// File to write the plan document to, e.g., plan.json (default: the plan is only printed)
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// Plan document whose strategy and stages are priced, instead of flags
    #[arg(conflicts_with_all = [
        "model", "job", "global_batch", "seq_len", "seed", "learning_rate", "precision", "cluster", "device_memory", "tp", "pp",
        "dp", "cp", "ep", "vpp", "zero", "shard", "sp", "recompute", "micro_batch", "schedule", "bucket_bytes", "trainer", "best",
    ])]
    pub plan: Option<PathBuf>,
    /// Read the job and the strategy from a trainer's own configuration, e.g., `--from megatron pretrain.sh`;
    /// flags override it
    #[arg(long, num_args = 2, value_names = ["TRAINER", "FILE"], conflicts_with = "plan")]
    pub from: Vec<String>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file (default: the model in --from, else tiny-llama)
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    /// Training framework to predict for (megatron: Megatron-LM of 2021; megatron-core: since 2023); only
    /// without a profile (default: megatron-core)
    #[arg(long, value_parser = trainers())]
    pub trainer: Option<Trainer>,
    /// Search the strategies that the flags leave open, as `plan --top COUNT` does (10 if no number is given)
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10", conflicts_with = "plan")]
    pub best: Option<usize>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// File to write the plan document to; with --best it holds the fastest layout (default: no file is
    /// written)
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// Tables of runs (CSV, docs/files.md) (default: the built-in table of published runs)
    pub runs: Vec<PathBuf>,
    /// Table of layouts measured for the same jobs (CSV), to report the regret of the predicted best and the
    /// rank correlation
    #[arg(long, value_name = "FILE")]
    pub choice_sets: Option<PathBuf>,
    /// Plans with layer times that others measured (JSON, docs/files.md), instead of a table
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "choice_sets", "leave_one_group_out", "devices"])]
    pub measured_plans: Option<PathBuf>,
    /// Efficiencies (TOML) to predict with (default: built-in)
    #[arg(long, conflicts_with = "leave_one_group_out")]
    pub calibration: Option<PathBuf>,
    /// Cross-validate: predict every group of rows by a fit to all the other groups
    #[arg(long)]
    pub leave_one_group_out: bool,
    /// For this group, leave out only half of its jobs at a time; can be repeated
    #[arg(long, value_name = "GROUP", requires = "leave_one_group_out")]
    pub half_of_jobs: Vec<String>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Tables of runs (CSV, docs/files.md)
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// File to write the efficiencies to (TOML), for `estimate --calibration`
    #[arg(short, long)]
    pub output: PathBuf,
    /// Start the fit from the physical priors instead of the built-in efficiencies
    #[arg(long)]
    pub from_priors: bool,
    /// For this group, leave out only half of its jobs at a time when the error is estimated; can be repeated
    #[arg(long, value_name = "GROUP")]
    pub half_of_jobs: Vec<String>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

/// How many of a plan's alternatives.
#[derive(Debug, Args)]
pub struct SelectionArgs {
    /// Number of plans of the document to train, best first
    #[arg(long, default_value_t = 1)]
    pub top: usize,
    /// Train every plan of the search space that fits in memory
    #[arg(long, conflicts_with = "top")]
    pub all: bool,
    /// Measured steps per plan, spread over several rounds in which the plans take turns
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
    /// Text file to train on, with bytes as tokens (default: a synthetic language)
    #[arg(long)]
    pub data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    /// Plan document; the fastest measured plan is put first in it
    pub plan: PathBuf,
    #[command(flatten)]
    pub selection: SelectionArgs,
    #[command(flatten)]
    pub run: RunArgs,
    /// Also train with and without every codec that the plan's job allows, STEPS steps each (100 if no number
    /// is given), to measure what lossy gradients cost in steps
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "100")]
    pub probe: Option<u32>,
    /// Profile that the plan was made from (default: the path in the plan)
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// Folder to write the run records and validation.json to
    #[arg(short, long, default_value = "runs")]
    pub output: PathBuf,
    /// Continue an unfinished validation of the same plans in the output folder; finished rounds are not
    /// repeated
    #[arg(long)]
    pub resume: bool,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TuneArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    #[command(flatten)]
    pub ranks: RanksArgs,
    /// Number of plans to train, best first
    #[arg(long, default_value_t = 5)]
    pub top: usize,
    /// Measured steps per plan, spread over several rounds in which the plans take turns
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
    /// Time limit of the profile in seconds
    #[arg(long, default_value_t = 60.0)]
    pub budget: f64,
    /// Text file to train on, with bytes as tokens (default: a synthetic language)
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder to write the profile, the plan, the run records and the report to
    #[arg(short, long, default_value = "autodist-tune")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

/// Which plan of a document.
#[derive(Debug, Clone, Copy, Args)]
pub struct NumberArgs {
    /// Which plan of the document: 1 is its choice, 2 the first alternative
    #[arg(long = "plan", value_name = "N", default_value_t = 1)]
    pub number: usize,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Trainer or scheduler to write the plan for
    #[arg(long, value_parser = one_of::<Target>(Target::ALL.iter().map(|one| one.name())))]
    pub to: Target,
    /// Steps between checkpoints (default: the trainer's own)
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub checkpoint_interval: Option<u32>,
    /// Script to start on every node, as `export` writes it for a trainer; only for slurm and kubernetes
    /// (default: autodist itself trains)
    #[arg(long)]
    pub script: Option<String>,
    /// Container image; only for kubernetes
    #[arg(long, default_value = "autodist:latest")]
    pub image: String,
    /// Folder to write the configuration and the script to
    #[arg(short, long, default_value = "export")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Profile that the plan was made from (default: the path in the plan)
    #[arg(long)]
    pub profile: Option<PathBuf>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// Plan document to compare with
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Run records (JSON) of `validate` or `train`, and validation.json
    pub runs: Vec<PathBuf>,
    /// Profile that the plan was made from (default: the path in the plan)
    #[arg(long)]
    pub profile: Option<PathBuf>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// Folder to write the report to
    #[arg(short, long, default_value = "report")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Optimizer steps to train
    #[arg(long, default_value_t = 200)]
    pub steps: u32,
    /// Text file to train on, with bytes as tokens (default: a synthetic language)
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// File to write a line of JSON to after every step: step, loss, step time, tokens per second and learning
    /// rate; it grows during the training
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
    /// File to write the run record to
    #[arg(short, long, default_value = "run.json")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SelftestArgs {
    /// Device to test
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DevicesArg,
    /// Index of the GPU to test, from 0
    #[arg(long, default_value_t = 0)]
    pub ordinal: usize,
    /// Test only this precision (default: all that the device supports)
    #[arg(long, value_parser = own_precisions())]
    pub precision: Option<Precision>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// File format
    #[arg(value_enum)]
    pub what: SchemaOf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SchemaOf {
    Model,
    Cluster,
    Job,
    Profile,
    Plan,
    Run,
    Validation,
}

/// Parses the names of some values.
fn one_of<T>(names: impl IntoIterator<Item = impl Into<PossibleValue>>) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: Into<Box<dyn Error + Send + Sync>>> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Training frameworks, also by the names of the projects that use them.
fn trainers() -> impl TypedValueParser<Value = Trainer> {
    one_of(Trainer::ALL.iter().map(|trainer| {
        let value = PossibleValue::new(trainer.name());
        match trainer {
            Trainer::Fsdp2 => value.alias("torchtitan"),
            Trainer::Nemo => value.alias("megatron-bridge"),
            _ => value,
        }
    }))
}

/// A value's name and its description in the help.
fn described(value: impl Into<&'static str>, help: &'static str) -> PossibleValue {
    PossibleValue::new(value.into()).help(help)
}

fn objectives() -> impl TypedValueParser<Value = Objective> {
    one_of([
        described(Objective::StepTime, "Time of one optimizer step"),
        described(
            Objective::TimeToLoss,
            "Step time, multiplied by how many more steps lossy gradients need to reach the same loss",
        ),
    ])
}

fn own_precisions() -> impl TypedValueParser<Value = Precision> {
    one_of(Precision::OWN.map(described_precision))
}

fn precisions() -> impl TypedValueParser<Value = Precision> {
    one_of(Precision::ALL.iter().copied().map(described_precision))
}

fn described_precision(precision: Precision) -> PossibleValue {
    let help = match precision {
        Precision::Fp32 => "32-bit floats; the only precision on CPUs",
        Precision::Tf32 => "32-bit floats, with GEMM operands rounded to TF32 (GPUs only)",
        Precision::Fp16 => {
            "fp16 parameters and activations, with fp32 master weights and optimizer state (other trainers only)"
        }
        Precision::Bf16 => {
            "bf16 parameters and activations, with fp32 master weights, gradients and optimizer state (GPUs only)"
        }
        Precision::Fp8 => "As bf16, with the GEMMs of linear layers in FP8 (other trainers only)",
    };
    described(precision, help)
}

fn recompute_modes() -> impl TypedValueParser<Value = Recompute> {
    one_of([
        described(Recompute::None, "Keep all activations until the backward pass"),
        described(Recompute::Selective, "Recompute the attention core"),
        described(Recompute::Full, "Recompute whole transformer blocks"),
    ])
}

fn schedules() -> impl TypedValueParser<Value = ScheduleKind> {
    one_of([
        described(ScheduleKind::GPipe, "All forward passes, then all backward passes"),
        described(ScheduleKind::OneFOneB, "One forward, one backward"),
        described(ScheduleKind::Interleaved, "1F1B with several virtual stages per pipeline rank"),
    ])
}

fn engines() -> impl TypedValueParser<Value = Engine> {
    one_of([
        described(Engine::Native, "autodist's own executor"),
        described(Engine::Torch, "PyTorch, with the package in executor/torch"),
    ])
}
