//! Command lines that compare predictions with measured runs.

use super::values::{one_of, trainers};
use super::{CatalogueArgs, FigureArgs, JobArgs, NumberArgs, StrategyArgs};
use autodist_analytic::Trainer;
use autodist_exporters::logs::LogFormat;
use autodist_spec::quantity;
use clap::{Args, Parser};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct BacktestArgs {
    /// Tables of runs (CSV, or as `calibrate` reads them, docs/files.md) [default: the built-in table of published runs, every group of which is
    /// predicted by a fit to the other groups]
    pub runs: Vec<PathBuf>,
    /// Table of layouts measured for the same jobs (CSV), to report the regret of the predicted best and the
    /// rank correlation
    #[arg(long, value_name = "FILE")]
    pub choice_sets: Option<PathBuf>,
    /// Plans with layer times that others measured (JSON, docs/files.md), instead of a table
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runs", "choice_sets", "leave_one_group_out", "devices"])]
    pub measured_plans: Option<PathBuf>,
    /// Efficiencies (TOML) to predict with [default: built-in]
    #[arg(long, conflicts_with = "leave_one_group_out")]
    pub calibration: Option<PathBuf>,
    /// Cross-validate: predict every group of rows by a fit to all the other groups (default without tables)
    #[arg(long)]
    pub leave_one_group_out: bool,
    /// For this group, leave out only half of its jobs at a time; can be repeated
    #[arg(long, value_name = "GROUP", conflicts_with_all = ["calibration", "in_fit", "measured_plans"])]
    pub half_of_jobs: Vec<String>,
    /// Predict the published runs by the built-in efficiencies, which were fitted to them: these errors are smaller
    /// than those of other runs
    #[arg(long, conflicts_with_all = ["runs", "leave_one_group_out", "calibration", "measured_plans"])]
    pub in_fit: bool,
    /// Test the error bars of `calibrate`: leave out every group of published runs, calibrate with 1 to 10 of its
    /// runs, and predict the rest
    #[arg(long, conflicts_with_all = ["runs", "choice_sets", "measured_plans", "leave_one_group_out", "calibration",
        "half_of_jobs", "in_fit"])]
    pub few_runs: bool,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
    /// File to draw predicted against measured step times to (PNG)
    #[arg(help_heading = "Output", long, value_name = "FILE", conflicts_with_all = ["measured_plans", "few_runs"])]
    pub figure: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct CalibrateArgs {
    /// Tables of runs (CSV or TOML, docs/files.md; `--template` prints an example)
    #[arg(required_unless_present_any = ["from", "plan_file", "measured", "log", "template"])]
    pub runs: Vec<PathBuf>,
    #[command(flatten)]
    pub run: MeasuredRunArgs,
    /// Profile to correct by the runs [default: the profile of the plan of --plan-file, if it has one; else efficiencies
    /// are fitted]
    ///
    /// All its times are multiplied by the mean of measured over predicted step time. Without --from and --plan-file, the
    /// flags of the strategy say what was run.
    #[arg(help_heading = "Cluster and prices", long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// File to write to: the efficiencies (TOML), for `--calibration`, or the corrected profile (JSON), for `--profile`
    #[arg(short, long, required_unless_present = "template")]
    pub output: Option<PathBuf>,
    /// Print a table of runs to fill in, and end
    #[arg(long, conflicts_with_all = ["runs", "from", "plan_file", "profile", "measured", "log", "output"])]
    pub template: bool,
    /// Start the fit from the physical priors instead of the built-in efficiencies; needs three runs
    #[arg(long, conflicts_with = "calibration")]
    pub from_priors: bool,
    /// For this group, leave out only half of its jobs at a time when the error is estimated; can be repeated
    #[arg(long, value_name = "GROUP", requires = "from_priors")]
    pub half_of_jobs: Vec<String>,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

/// What a plan document gives, and so what cannot be given beside it.
pub const IN_A_PLAN: [&str; 34] = [
    "model",
    "job",
    "global_batch",
    "global_batch_tokens",
    "seq_len",
    "seed",
    "learning_rate",
    "precision",
    "cluster",
    "tp",
    "pp",
    "dp",
    "cp",
    "ep",
    "vpp",
    "zero",
    "shard",
    "sp",
    "no_sp",
    "recompute",
    "micro_batch",
    "schedule",
    "bucket_bytes",
    "trainer",
    "moment_bits",
    "master_bits",
    "gradient_bits",
    "offload_optimizer",
    "offload_part",
    "offload_parameters",
    "offload_activations",
    "live_parameters",
    "second_shard",
    "gather_bits",
];

/// One run: what was trained, on what, and how long a step took.
#[derive(Debug, Clone, Args)]
pub struct MeasuredRunArgs {
    /// Configuration of the run in its trainer's own format, e.g., `--from megatron pretrain.sh`; flags of the job and
    /// the strategy override the file
    #[arg(long, num_args = 2, value_names = ["TRAINER", "FILE"])]
    pub from: Vec<String>,
    /// Plan document of the run, which autodist's own engine or another trainer trained, in place of --from, --model,
    /// --cluster and all flags of the job and the strategy
    #[arg(long, value_name = "FILE", conflicts_with = "from", conflicts_with_all = IN_A_PLAN)]
    pub plan_file: Option<PathBuf>,
    #[command(flatten)]
    pub number: NumberArgs,
    /// Measured time of a step, e.g., 41.2s or 412ms
    #[arg(long, value_name = "TIME", value_parser = quantity::seconds, conflicts_with = "log")]
    pub measured: Option<f64>,
    /// Log of the run, in place of --measured: of Megatron-LM, NeMo, torchtitan, DeepSpeed, nanotron or the Hugging
    /// Face Trainer, a trace of PyTorch's profiler, a run record or `--log` file of `autodist train`, or CSV or JSON lines
    /// with a column `step_time_s`
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Format of the log [default: detected]
    #[arg(long, value_name = "FORMAT", requires = "log", value_parser = one_of::<LogFormat>(LogFormat::ALL.iter().map(|f| f.name())))]
    pub log_format: Option<LogFormat>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file [default: the model in --from]
    #[arg(long)]
    pub model: Option<String>,
    /// Cluster of the run: a cluster file (TOML), or e.g. `2x8xh100-80gb-sxm@8x400gbps`, as for `estimate`
    #[arg(long)]
    pub cluster: Option<String>,
    /// Training framework of the run [default: that of --from, else megatron-core]
    #[arg(long, value_parser = trainers())]
    pub trainer: Option<Trainer>,
    #[command(flatten)]
    pub job: JobArgs,
    #[command(flatten)]
    pub strategy: StrategyArgs,
}

/// The same flags in a line of a table.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
pub struct MeasuredRun {
    #[command(flatten)]
    pub run: MeasuredRunArgs,
}
