//! Command lines of the commands that compare: clusters, documents.

use super::{FigureArgs, JobArgs, SoftwareArgs, StrategyArgs};
use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Clusters to compare, e.g., `32x8xb200 64x8xh100`, in the form of `plan --cluster`
    #[arg(required = true, value_name = "CLUSTER")]
    pub clusters: Vec<String>,
    /// Name of a built-in model (see `autodist catalog`), or the path of a Hugging Face config.json or a
    /// model file
    #[arg(long)]
    pub model: String,
    #[command(flatten)]
    pub job: JobArgs,
    /// Price of one device for one hour in US dollars, e.g., 2.50; by device: `h100=2.50,b200=4`, or
    /// a TOML file with such lines; used with --tokens
    #[arg(long, allow_hyphen_values = true)]
    pub price: Option<String>,
    /// Sizes of each cluster, in devices: the first size, twice as many, and so on up to the last, e.g., 8..65536
    #[arg(long, value_name = "FROM..TO", value_parser = sizes)]
    pub scale: Option<(u32, u32)>,
    #[command(flatten)]
    pub strategy: StrategyArgs,
    #[command(flatten)]
    pub software: SoftwareArgs,
    #[command(flatten)]
    pub figures: FigureArgs,
    /// File to draw the curves to (PNG); needs --scale
    #[arg(long, value_name = "FILE", requires = "scale")]
    pub figure: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

/// `8..65536`.
fn sizes(text: &str) -> Result<(u32, u32), String> {
    let parse = || {
        let (from, to) = text.split_once("..")?;
        let (from, to) = (from.trim().parse().ok()?, to.trim().trim_start_matches('=').parse().ok()?);
        (0 < from && from <= to && to <= 1 << 20).then_some((from, to))
    };
    parse().ok_or_else(|| "expected two numbers of devices, the smaller first, e.g. 8..65536".to_owned())
}

#[derive(Debug, Args)]
pub struct DiffArgs {
    /// The earlier document: a plan, a profile or a run record (JSON)
    pub before: PathBuf,
    /// The later document, of the same kind
    pub after: PathBuf,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Model of the training whose duration is estimated, as for `tune` [default: tiny-llama]
    #[arg(long)]
    pub model: Option<String>,
    #[command(flatten)]
    pub job: JobArgs,
    /// Python interpreter to look for PyTorch in [default: AUTODIST_PYTHON, else python3]
    #[arg(long, value_name = "PATH")]
    pub python: Option<PathBuf>,
    /// Print one JSON document (docs/json.md) instead of text
    #[arg(help_heading = "Output", long)]
    pub json: bool,
}
