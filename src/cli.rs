//! Command lines: clap types only.

mod answers;
mod examples;
mod fewer;
mod job;
pub mod look;
mod measured;
mod mistakes;
mod ranks;
mod software;
mod states;
mod strategy;
mod trainable;
mod understood;
mod values;
mod version;

pub use answers::{CompareArgs, DiffArgs, DoctorArgs};
pub use fewer::FewerArgs;
pub use job::{AllowArg, CatalogueArgs, FigureArgs, JobArgs, ModelArg, PriceArgs};
pub use measured::{BacktestArgs, CalibrateArgs, IN_A_PLAN, MeasuredRun, MeasuredRunArgs};
pub use mistakes::explained;
pub use ranks::{DevicesArg, RanksArgs, RunArgs, TransportArg};
pub use software::SoftwareArgs;
pub use states::{FLAGS as STATE_FLAGS, StateArgs};
pub use strategy::{Layout, StrategyArgs};
pub use trainable::{FLAGS as TRAINABLE_FLAGS, TrainableArgs};
pub use understood::understood;

use autodist_exporters::Target;
use autodist_spec::{Precision, quantity};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use values::{one_of, own_precisions};

/// Plan distributed training: find the fastest parallel strategy for a model on a cluster, and check it by
/// training
///
/// Exit codes: 0 success; 2 bad input; 3 no plan fits; 4 a rank or a device failed, or a result could not be
/// written; 5 the measurement refutes the plan's prediction; 130 interrupted.
#[derive(Debug, Parser)]
#[command(version, long_version = version::long(), propagate_version = true, after_help = examples::ALL)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub look: look::LookArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure the model's layers, the collectives and the links on this machine; write a profile
    #[command(after_help = examples::PROFILE)]
    Profile(ProfileArgs),
    /// Search for the fastest parallel strategy that fits in memory, priced by a profile, or without one by
    /// published figures
    #[command(after_help = examples::PLAN)]
    Plan(PlanArgs),
    /// Predict step time and memory of one given strategy, from a profile or from published hardware figures
    #[command(after_help = examples::ESTIMATE)]
    Estimate(EstimateArgs),
    /// Compare clusters for one job: which is faster, which is cheaper, and how each scales
    #[command(after_help = examples::COMPARE)]
    Compare(CompareArgs),
    /// Compare predictions from hardware figures with a table of measured runs
    #[command(after_help = examples::BACKTEST)]
    Backtest(BacktestArgs),
    /// Correct predictions by measured step times: of plans without a profile, or of a profile
    #[command(after_help = examples::CALIBRATE)]
    Calibrate(CalibrateArgs),
    /// Train plans, compare measured with predicted step times, and put the fastest plan first in the plan
    /// document
    #[command(after_help = examples::VALIDATE)]
    Validate(ValidateArgs),
    /// Run profile, plan, validate and report in one go
    #[command(after_help = examples::TUNE)]
    Tune(TuneArgs),
    /// Write a plan as the configuration of another trainer, with a launch script
    #[command(after_help = examples::EXPORT)]
    Export(ExportArgs),
    /// List what differs between two plans, two profiles or two runs
    #[command(after_help = examples::DIFF)]
    Diff(DiffArgs),
    /// Explain why a plan won, what limits it, and what other hardware would change
    #[command(after_help = examples::EXPLAIN)]
    Explain(ExplainArgs),
    /// Write an HTML report, PNG figures and CSV tables for a plan and its runs
    #[command(after_help = examples::REPORT)]
    Report(ReportArgs),
    /// Train one plan and write a run record with losses and step times
    #[command(after_help = examples::TRAIN)]
    Train(TrainArgs),
    /// Show what this machine has, and what each command would do here and for how long
    #[command(after_help = examples::DOCTOR)]
    Doctor(DoctorArgs),
    /// Run every kernel and layer on a device and compare the results with the CPU's in double precision
    #[command(after_help = examples::SELFTEST)]
    Selftest(SelftestArgs),
    /// List the built-in models and devices
    #[command(after_help = examples::CATALOG)]
    Catalog(JsonArgs),
    /// Print the JSON Schema of a file format
    #[command(after_help = examples::SCHEMA)]
    Schema(SchemaArgs),
    /// Print the completions of a shell, e.g., `autodist completions bash`
    #[command(after_help = examples::COMPLETIONS)]
    Completions(CompletionsArgs),
    /// Write the manual pages of all commands into a folder, or print the first one
    #[command(after_help = examples::MAN)]
    Man(ManArgs),
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
    /// Time limit, after which no further round of measurements begins, e.g., 90s or 2m
    #[arg(help_heading = "Measurement", long, value_name = "TIME", default_value = "60s", value_parser = quantity::seconds)]
    pub budget: f64,
    /// Target precision: a measurement is repeated until the 95 % interval of its median is this narrow,
    /// relative to the median, e.g., 0.05 for 5 %
    #[arg(help_heading = "Measurement", long, default_value_t = 0.05)]
    pub interval: f64,
    /// Measure again even if the output file already holds a profile of this model on this machine
    #[arg(help_heading = "Measurement", long)]
    pub fresh: bool,
    /// File to write the profile to
    #[arg(help_heading = "Output", short, long, default_value = "profile.json")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct PlanArgs {
    /// Compare with a trainer's own configuration, and list the smallest changes that make it fit or faster, e.g.,
    /// `--from megatron pretrain.sh`
    ///
    /// Flags of the job and of the strategy override the file. All strategies are searched.
    #[arg(help_heading = "Model and job", long, num_args = 2, value_names = ["TRAINER", "FILE"])]
    pub from: Vec<String>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file [default: the model in --from, else tiny-llama]
    #[arg(help_heading = "Model and job", long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    #[command(flatten)]
    pub fewer: FewerArgs,
    #[command(flatten)]
    pub software: SoftwareArgs,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// File that `validate --probe` wrote (validation.json): measured cost of lossy codecs, in steps
    #[arg(help_heading = "Search", long)]
    pub probes: Option<PathBuf>,
    /// Number of plans to keep in the document: the best and the runners-up
    #[arg(help_heading = "Search", long, default_value_t = 5)]
    pub top: usize,
    /// Time limit of the search, e.g., 30s or 10m, after which it returns the best plan so far with its optimality
    /// gap [default: none]
    #[arg(help_heading = "Search", long, value_name = "TIME", value_parser = quantity::seconds)]
    pub time_limit: Option<f64>,
    /// Threads of the search, 0 for one per core; the plan does not depend on it
    #[arg(help_heading = "Search", long, default_value_t = 0)]
    pub threads: usize,
    /// File to write the plan document to, e.g., plan.json [default: the plan is only printed]
    #[arg(help_heading = "Output", short, long)]
    pub output: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct EstimateArgs {
    /// Plan document whose strategy and stages are priced, instead of flags
    #[arg(conflicts_with_all = IN_A_PLAN, conflicts_with_all = ["device_memory", "attention", "loss", "best"])]
    pub plan: Option<PathBuf>,
    /// Read the job and the strategy from a trainer's own configuration, e.g., `--from megatron pretrain.sh`;
    /// flags override it
    #[arg(help_heading = "Model and job", long, num_args = 2, value_names = ["TRAINER", "FILE"], conflicts_with = "plan")]
    pub from: Vec<String>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file [default: the model in --from, else tiny-llama]
    #[arg(help_heading = "Model and job", long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub price: PriceArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    /// With --best: use every device, even if fewer are as fast [default: with a profile]
    #[arg(help_heading = "Search", long, requires = "best", conflicts_with = "fewer_devices")]
    pub all_devices: bool,
    /// With --best: leave devices off if fewer are as fast [default: without a profile]
    #[arg(help_heading = "Search", long, requires = "best")]
    pub fewer_devices: bool,
    #[command(flatten)]
    pub software: SoftwareArgs,
    /// Search the strategies that the flags leave open, as `plan --top COUNT` does (10 if no number is given)
    #[arg(help_heading = "Search", long, value_name = "COUNT", num_args = 0..=1, default_missing_value = "10", conflicts_with = "plan")]
    pub best: Option<usize>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// File to write the plan document to; with --best it holds the fastest layout [default: no file is
    /// written]
    #[arg(help_heading = "Output", short, long)]
    pub output: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

/// How many of a plan's alternatives.
#[derive(Debug, Args)]
pub struct SelectionArgs {
    /// Number of plans of the document to train, best first
    #[arg(help_heading = "Search", long, default_value_t = 1)]
    pub top: usize,
    /// Train every plan of the search space that fits in memory
    #[arg(help_heading = "Search", long, conflicts_with = "top")]
    pub all: bool,
    /// Measured steps per plan, spread over several rounds in which the plans take turns
    #[arg(help_heading = "Training", long, default_value = "20", value_parser = quantity::count)]
    pub steps: u32,
    /// Text file to train on, with bytes as tokens [default: a synthetic language]
    #[arg(help_heading = "Training", long)]
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
    #[arg(help_heading = "Training", long, value_name = "STEPS", num_args = 0..=1, default_missing_value = "100", value_parser = quantity::count)]
    pub probe: Option<u32>,
    /// Profile that the plan was made from [default: the path in the plan]
    #[arg(help_heading = "Cluster and prices", long)]
    pub profile: Option<PathBuf>,
    /// Folder to write the run records and validation.json to
    #[arg(help_heading = "Output", short, long, default_value = "runs")]
    pub output: PathBuf,
    /// Continue an unfinished validation of the same plans in the output folder; finished rounds are not
    /// repeated
    #[arg(help_heading = "Training", long)]
    pub resume: bool,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
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
    #[arg(help_heading = "Search", long, default_value_t = 5)]
    pub top: usize,
    /// Measured steps per plan, spread over several rounds in which the plans take turns
    #[arg(help_heading = "Training", long, default_value = "20", value_parser = quantity::count)]
    pub steps: u32,
    /// Time limit of the profile, e.g., 90s or 2m
    #[arg(help_heading = "Measurement", long, value_name = "TIME", default_value = "60s", value_parser = quantity::seconds)]
    pub budget: f64,
    /// Text file to train on, with bytes as tokens [default: a synthetic language]
    #[arg(help_heading = "Training", long)]
    pub data: Option<PathBuf>,
    /// Folder to write the profile, the plan, the run records and the report to
    #[arg(help_heading = "Output", short, long, default_value = "autodist-tune")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
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
    /// Steps between checkpoints, e.g., 500 or 1k, which is 1000 [default: the trainer's own]
    #[arg(long, value_name = "STEPS", value_parser = values::above_zero)]
    pub checkpoint_interval: Option<u32>,
    /// Script to start on every node, as `export` writes it for a trainer; only for slurm and kubernetes
    /// [default: autodist itself trains]
    #[arg(long)]
    pub script: Option<String>,
    /// Container image; only for kubernetes
    #[arg(long, default_value = "autodist:latest")]
    pub image: String,
    /// Folder to write the configuration and the script to
    #[arg(help_heading = "Output", short, long, default_value = "export")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Profile that the plan was made from [default: the path in the plan]
    #[arg(help_heading = "Cluster and prices", long)]
    pub profile: Option<PathBuf>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// Plan document to compare with
    #[arg(long)]
    pub against: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
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
    /// Profile that the plan was made from [default: the path in the plan]
    #[arg(help_heading = "Cluster and prices", long)]
    pub profile: Option<PathBuf>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// Folder to write the report to
    #[arg(help_heading = "Output", short, long, default_value = "report")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Plan document
    pub plan: PathBuf,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Optimizer steps to train
    #[arg(help_heading = "Training", long, default_value = "200", value_parser = quantity::count)]
    pub steps: u32,
    /// Text file to train on, with bytes as tokens [default: a synthetic language]
    #[arg(help_heading = "Training", long)]
    pub data: Option<PathBuf>,
    /// File to write a line of JSON to after every step: step, loss, step time, tokens per second and learning
    /// rate; it grows during the training
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    #[command(flatten)]
    pub run: RunArgs,
    /// File to write the run record to
    #[arg(help_heading = "Output", short, long, default_value = "run.json")]
    pub output: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
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
    /// Test only this precision [default: all that the device supports]
    #[arg(long, value_parser = own_precisions())]
    pub precision: Option<Precision>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
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

#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// Shell that reads them
    pub shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub struct ManArgs {
    /// Folder to write autodist.1, autodist-plan.1 and the others to [default: autodist.1 is printed]
    pub folder: Option<PathBuf>,
}
