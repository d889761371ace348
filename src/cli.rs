//! Command lines: clap types only.

use autodist_analytic::Trainer;
use autodist_exporters::Target;
use autodist_spec::{Engine, Objective, Precision, Recompute, ScheduleKind};
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// How should this model be split on these machines, and how fast will it go?
///
/// Exit codes: 0 done, 2 bad input, 3 nothing fits, 4 a rank or a device failed or a result could not be written,
/// 5 the measurement refutes the plan's prediction, 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure what layers cost on this machine's devices and what its links carry
    Profile(ProfileArgs),
    /// Search for the fastest way of training
    Plan(PlanArgs),
    /// Predict one given way of training, without a search
    Estimate(EstimateArgs),
    /// Hold predictions without a profile against a table of measured runs
    Backtest(BacktestArgs),
    /// Learn a cluster's efficiencies from a table of its runs
    Calibrate(CalibrateArgs),
    /// Train plans for real, hold the measurement beside the prediction, and put the fastest first in the document
    Validate(ValidateArgs),
    /// Profile, plan, validate the best few and report, in one go
    Tune(TuneArgs),
    /// Write a plan as another trainer's configuration, with a script that starts it
    Export(ExportArgs),
    /// Say why a plan won, what limits it, and what other hardware would change
    Explain(ExplainArgs),
    /// Write an HTML page, PNG figures and CSV tables of a plan and its runs
    Report(ReportArgs),
    /// Train one plan and write its losses
    Train(TrainArgs),
    /// Run every kernel and layer on a device and hold the results against the CPU's in double precision
    Selftest(SelftestArgs),
    /// List the built-in models and devices
    Catalog(JsonArgs),
    /// Print the JSON Schema of a file format
    Schema(SchemaArgs),
}

/// What is trained.
#[derive(Debug, Clone, Args)]
pub struct JobArgs {
    /// Job file (TOML); flags override it
    #[arg(long)]
    pub job: Option<PathBuf>,
    /// Sequences per optimizer step, over all devices
    #[arg(long)]
    pub global_batch: Option<u32>,
    /// Tokens per sequence
    #[arg(long)]
    pub seq_len: Option<u32>,
    /// Seed of the initial parameters and the data
    #[arg(long)]
    pub seed: Option<u64>,
    /// Peak learning rate
    #[arg(long)]
    pub learning_rate: Option<f64>,
    /// Arithmetic: fp32 everywhere, tf32 and bf16 on GPUs
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    /// What the search minimises; it differs where gradients may be lossy
    #[arg(long, value_enum)]
    pub objective: Option<ObjectiveArg>,
    /// Consider what is not exact, too
    #[arg(long, value_enum)]
    pub allow: Vec<AllowArg>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ObjectiveArg {
    StepTime,
    /// Step time times what lossy gradients cost in steps
    TimeToLoss,
}

impl From<ObjectiveArg> for Objective {
    fn from(arg: ObjectiveArg) -> Self {
        match arg {
            ObjectiveArg::StepTime => Self::StepTime,
            ObjectiveArg::TimeToLoss => Self::TimeToLoss,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PrecisionArg {
    Fp32,
    Tf32,
    Bf16,
}

impl From<PrecisionArg> for Precision {
    fn from(arg: PrecisionArg) -> Self {
        match arg {
            PrecisionArg::Fp32 => Self::Fp32,
            PrecisionArg::Tf32 => Self::Tf32,
            PrecisionArg::Bf16 => Self::Bf16,
        }
    }
}

impl From<Precision> for PrecisionArg {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Tf32 => Self::Tf32,
            Precision::Bf16 => Self::Bf16,
        }
    }
}

/// Hardware that the built-in catalogue does not have.
#[derive(Debug, Args)]
pub struct CatalogueArgs {
    /// File of devices (TOML, docs/hardware.md), for predictions without a profile: they join the catalogue, or take the place of those of the
    /// same name; may be given more than once
    #[arg(long, value_name = "FILE")]
    pub devices: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ModelArg {
    /// Name from the catalogue, a Hugging Face config.json, or a model file
    #[arg(long, default_value = "tiny-llama")]
    pub model: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum RecomputeArg {
    None,
    Selective,
    Full,
}

impl From<RecomputeArg> for Recompute {
    fn from(arg: RecomputeArg) -> Self {
        match arg {
            RecomputeArg::None => Self::None,
            RecomputeArg::Selective => Self::Selective,
            RecomputeArg::Full => Self::Full,
        }
    }
}

impl From<Recompute> for RecomputeArg {
    fn from(recompute: Recompute) -> Self {
        match recompute {
            Recompute::None => Self::None,
            Recompute::Selective => Self::Selective,
            Recompute::Full => Self::Full,
        }
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ScheduleArg {
    Gpipe,
    #[value(name = "1f1b")]
    OneFOneB,
    Interleaved,
}

impl From<ScheduleArg> for ScheduleKind {
    fn from(arg: ScheduleArg) -> Self {
        match arg {
            ScheduleArg::Gpipe => Self::GPipe,
            ScheduleArg::OneFOneB => Self::OneFOneB,
            ScheduleArg::Interleaved => Self::Interleaved,
        }
    }
}

impl From<ScheduleKind> for ScheduleArg {
    fn from(kind: ScheduleKind) -> Self {
        match kind {
            ScheduleKind::GPipe => Self::Gpipe,
            ScheduleKind::OneFOneB => Self::OneFOneB,
            ScheduleKind::Interleaved => Self::Interleaved,
        }
    }
}

/// Degrees and switches of a way of training; a search takes each as a restriction.
#[derive(Debug, Clone, Args)]
pub struct StrategyArgs {
    /// Tensor-parallel degree
    #[arg(long)]
    pub tp: Option<u32>,
    /// Pipeline-parallel degree
    #[arg(long)]
    pub pp: Option<u32>,
    /// Data-parallel degree
    #[arg(long)]
    pub dp: Option<u32>,
    /// Context-parallel degree
    #[arg(long)]
    pub cp: Option<u32>,
    /// Expert-parallel degree
    #[arg(long)]
    pub ep: Option<u32>,
    /// Virtual stages per pipeline rank
    #[arg(long)]
    pub vpp: Option<u32>,
    /// ZeRO stage
    #[arg(long, value_parser = clap::value_parser!(u8).range(0..=3))]
    pub zero: Option<u8>,
    /// Size of the group that ZeRO shards over; the whole data axis if not given
    #[arg(long)]
    pub shard: Option<u32>,
    /// Sequence parallelism beside tensor parallelism
    #[arg(long)]
    pub sp: bool,
    #[arg(long, value_enum)]
    pub recompute: Option<RecomputeArg>,
    /// Sequences per micro-batch
    #[arg(long)]
    pub micro_batch: Option<u32>,
    #[arg(long, value_enum)]
    pub schedule: Option<ScheduleArg>,
    /// Smallest gradient bucket, bytes
    #[arg(long)]
    pub bucket_bytes: Option<u64>,
}

/// What is not exact, and used only where it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AllowArg {
    /// Gradients, gathered parameters and activations in fewer bytes, by every codec that does with its defaults
    Compression,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineArg {
    Native,
    Torch,
}

impl From<EngineArg> for Engine {
    fn from(arg: EngineArg) -> Self {
        match arg {
            EngineArg::Native => Self::Native,
            EngineArg::Torch => Self::Torch,
        }
    }
}

/// How ranks are run.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// What trains: autodist itself, or PyTorch; for a plan, that for which it was made if not given
    #[arg(long, value_enum)]
    pub engine: Option<EngineArg>,
    /// Python with PyTorch and autodist_torch; if not given AUTODIST_PYTHON, or .venv/bin/python where --engine torch is
    /// given, or python3
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Do not ask for real-time priority
    #[arg(long)]
    pub no_realtime: bool,
    /// Address where the ranks find each other
    #[arg(long, default_value = "127.0.0.1:0")]
    pub rendezvous: std::net::SocketAddr,
    /// Seconds without a sign of life, or without a byte for a peer that waits, after which a rank is given up
    #[arg(long, default_value_t = 60.0)]
    pub timeout: f64,
    /// What carries what ranks say to each other: `mpi` needs mpirun, and an autodist built with it
    #[arg(long, value_enum, default_value = "tcp")]
    pub transport: TransportArg,
    /// Start ranks by ssh on the hosts of this file: a line for each, `host slots=N`
    #[arg(long, value_name = "FILE")]
    pub hosts: Option<PathBuf>,
    /// What starts a command on a host, as ssh does; with arguments, if need be
    #[arg(long, value_name = "COMMAND", default_value = "ssh")]
    pub ssh: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TransportArg {
    Tcp,
    Mpi,
}

/// The devices that are measured.
#[derive(Debug, Args)]
pub struct RanksArgs {
    /// What ranks compute on: GPUs, one CPU core each, or GPUs where there are any
    #[arg(long, value_enum, default_value = "auto")]
    pub devices: DevicesArg,
    /// Ranks, one device each; the number of devices if not given
    #[arg(long)]
    pub ranks: Option<u32>,
    /// Allow more ranks than devices: plans run, but predicted step times do not hold
    #[arg(long)]
    pub oversubscribe: bool,
    /// Make the ranks stand for the devices and links of this cluster file: arithmetic is real but takes as long as
    /// there, and bytes cross links as slow as there
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
    /// Seconds after which no further round of measurements begins
    #[arg(long, default_value_t = 60.0)]
    pub budget: f64,
    /// Width of a median's 95 % interval, relative to it, that is narrow enough
    #[arg(long, default_value_t = 0.05)]
    pub interval: f64,
    /// Measure again even if the file holds a profile of this model on this machine
    #[arg(long)]
    pub fresh: bool,
    #[arg(short, long, default_value = "profile.json")]
    pub output: PathBuf,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DevicesArg {
    Auto,
    Cpu,
    Cuda,
}

/// What prices a plan.
#[derive(Debug, Args)]
pub struct PriceArgs {
    /// Profile of the devices
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// Cluster file (TOML), or <nodes>x<devices per node>x<device>[@<NICs per node>x<rate>]
    #[arg(long)]
    pub cluster: Option<String>,
    /// Plan as if every device had this much memory, bytes
    #[arg(long)]
    pub device_memory: Option<u64>,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub model: ModelArg,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    /// Validation of earlier probes (`validate --probe`): what codecs cost in steps
    #[arg(long)]
    pub probes: Option<PathBuf>,
    /// Plans to keep: the best and its runners-up
    #[arg(long, default_value_t = 5)]
    pub top: usize,
    /// Seconds after which the best plan so far is returned, with its gap
    #[arg(long)]
    pub time_limit: Option<f64>,
    /// Threads of the search; the answer does not depend on it
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
    /// Where to write the plan
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// A plan whose strategy and stages are taken, in place of flags
    #[arg(conflicts_with_all = [
        "model", "job", "global_batch", "seq_len", "seed", "learning_rate", "precision", "cluster", "device_memory", "tp", "pp",
        "dp", "cp", "ep", "vpp", "zero", "shard", "sp", "recompute", "micro_batch", "schedule", "bucket_bytes",
        "devices",
    ])]
    pub plan: Option<PathBuf>,
    /// What a trainer's own file says, in the place of flags; flags override it
    #[arg(long, num_args = 2, value_names = ["TRAINER", "FILE"], conflicts_with = "plan")]
    pub from: Vec<String>,
    /// Name from the catalogue, a Hugging Face config.json, or a model file; tiny-llama if nothing says it
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    /// Without a profile: the software that trains
    #[arg(long, value_parser = trainers())]
    pub trainer: Option<Trainer>,
    /// Without a profile: search all layouts that the flags leave open, and list so many of the fastest
    #[arg(long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10", conflicts_with = "plan")]
    pub best: Option<usize>,
    /// Without a profile: GEMMs of linear layers in 8 bits; MFU is then of the device's fp8 peak
    #[arg(long, conflicts_with = "precision")]
    pub fp8: bool,
    /// Without a profile: a cluster's own efficiencies, as `autodist calibrate` writes them
    #[arg(long)]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    /// Where to write the plan document; with --best that of the fastest layout
    #[arg(short, long)]
    pub output: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

fn trainers() -> impl TypedValueParser<Value = Trainer> {
    PossibleValuesParser::new(Trainer::ALL.map(Trainer::name))
        .try_map(|name| Trainer::of_name(&name).ok_or("no such trainer"))
}

#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// Tables of runs (CSV, docs/files.md); the one that is shipped if not given
    pub runs: Vec<PathBuf>,
    /// Layouts of the same jobs (CSV): regret of the predicted best, and rank correlation
    #[arg(long, value_name = "FILE")]
    pub choice_sets: Option<PathBuf>,
    /// Plans over layers that others have timed (JSON, docs/files.md), in place of a table
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "choice_sets", "leave_one_group_out", "devices"])]
    pub measured_plans: Option<PathBuf>,
    /// Efficiencies to predict with, in place of those that are shipped
    #[arg(long, conflicts_with = "leave_one_group_out")]
    pub calibration: Option<PathBuf>,
    /// Fit anew for every group of rows, without that group
    #[arg(long)]
    pub leave_one_group_out: bool,
    /// Of this group leave out only half of the jobs at a time
    #[arg(long, value_name = "GROUP", requires = "leave_one_group_out")]
    pub half_of_jobs: Vec<String>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Tables of runs (CSV, docs/files.md)
    #[arg(required = true)]
    pub runs: Vec<PathBuf>,
    /// Where to write the efficiencies (TOML)
    #[arg(short, long)]
    pub output: PathBuf,
    /// Start from what is known without any run, not from what is shipped: so the shipped file was made
    #[arg(long)]
    pub from_priors: bool,
    /// Of this group leave out only half of the jobs at a time
    #[arg(long, value_name = "GROUP")]
    pub half_of_jobs: Vec<String>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

/// How many of a plan's alternatives.
#[derive(Debug, Args)]
pub struct SelectionArgs {
    /// Train the best K plans of the document
    #[arg(long, default_value_t = 1)]
    pub top: usize,
    /// Train every plan of the space that fits in memory
    #[arg(long, conflicts_with = "top")]
    pub all: bool,
    /// Measured steps of each plan, over several rounds in which all plans take turns
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
    /// Text file to train on, bytes as tokens; a synthetic language if not given
    #[arg(long)]
    pub data: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct ValidateArgs {
    pub plan: PathBuf,
    #[command(flatten)]
    pub selection: SelectionArgs,
    #[command(flatten)]
    pub run: RunArgs,
    /// Also train with every codec that the plan's job allows, and without, for as many steps: what it costs in steps
    #[arg(long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "100")]
    pub probe: Option<u32>,
    /// Profile that the plan was made from; the path in the plan if not given
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// Folder for the run records and the validation
    #[arg(short, long, default_value = "runs")]
    pub output: PathBuf,
    /// Go on with an unfinished validation of the same plans in that folder: rounds that are done are not trained again
    #[arg(long)]
    pub resume: bool,
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
    /// Plans to train for real
    #[arg(long, default_value_t = 5)]
    pub top: usize,
    /// Measured steps of each plan, over several rounds in which all plans take turns
    #[arg(long, default_value_t = 20)]
    pub steps: u32,
    /// Seconds for the profile
    #[arg(long, default_value_t = 60.0)]
    pub budget: f64,
    /// Text file to train on, bytes as tokens
    #[arg(long)]
    pub data: Option<PathBuf>,
    /// Folder for everything that is made
    #[arg(short, long, default_value = "autodist-tune")]
    pub output: PathBuf,
    #[arg(long)]
    pub json: bool,
}

/// Which plan of a document.
#[derive(Debug, Clone, Copy, Args)]
pub struct NumberArgs {
    /// The N-th plan of the document: 1 is its choice, 2 the first alternative
    #[arg(long = "plan", value_name = "N", default_value_t = 1)]
    pub number: usize,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// What takes the plan
    #[arg(long, value_parser = targets())]
    pub to: Target,
    /// Steps between checkpoints; the trainer's own setting holds if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub checkpoint_interval: Option<u32>,
    /// For slurm and kubernetes: a script to start on every node, as `export` writes it for a trainer, in place of autodist
    #[arg(long)]
    pub script: Option<String>,
    /// For kubernetes: the container image
    #[arg(long, default_value = "autodist:latest")]
    pub image: String,
    /// Folder for what is written
    #[arg(short, long, default_value = "export")]
    pub output: PathBuf,
    #[arg(long)]
    pub json: bool,
}

fn targets() -> impl TypedValueParser<Value = Target> {
    PossibleValuesParser::new(Target::ALL.map(Target::name))
        .try_map(|name| Target::of_name(&name).ok_or("no such target"))
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Profile that the plan was made from; the path in the plan if not given
    #[arg(long)]
    pub profile: Option<PathBuf>,
    /// Another plan to compare with
    #[arg(long)]
    pub against: Option<PathBuf>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Run records (JSON) of `validate` or `train`, and its validation.json
    pub runs: Vec<PathBuf>,
    #[arg(long)]
    pub profile: Option<PathBuf>,
    #[arg(short, long, default_value = "report")]
    pub output: PathBuf,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    #[arg(long, default_value_t = 200)]
    pub steps: u32,
    /// Text file to train on, bytes as tokens; a synthetic language if not given
    #[arg(long)]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
    /// Where to write the run record
    #[arg(short, long, default_value = "run.json")]
    pub output: PathBuf,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SelftestArgs {
    #[arg(long, value_enum, default_value = "auto")]
    pub device: DevicesArg,
    /// Which of several GPUs
    #[arg(long, default_value_t = 0)]
    pub ordinal: usize,
    /// Only this arithmetic; all that the device has if not given
    #[arg(long, value_enum)]
    pub precision: Option<PrecisionArg>,
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct JsonArgs {
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct SchemaArgs {
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
