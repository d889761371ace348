//! Arguments of the model, the job and the cluster.

use super::values::{objectives, precisions};
use super::{StateArgs, TrainableArgs};
use autodist_spec::{Objective, Precision, quantity};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(next_help_heading = "Model and job")]
pub struct ModelArg {
    /// Built-in model (`autodist catalog` lists them), or the path of a Hugging Face config.json
    ///
    /// Names are understood as on the Hugging Face hub, too, e.g., `meta-llama/Llama-3.1-8B`, if the catalogue has
    /// that architecture. A path may be a config.json, the folder that holds it, or a model file.
    #[arg(long, default_value = "tiny-llama")]
    pub model: String,
}

/// The training job.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model and job")]
pub struct JobArgs {
    /// Job file (TOML, docs/files.md), e.g., `job.toml`; flags override its fields
    #[arg(long, value_name = "FILE")]
    pub job: Option<PathBuf>,
    /// Sequences per optimizer step over all devices, e.g., 512 or 1k, which is 1024 [default: required; 8 for
    /// `profile` and `tune`]
    #[arg(long, value_name = "SEQUENCES", value_parser = quantity::length)]
    pub global_batch: Option<u32>,
    /// Tokens per optimizer step, in place of --global-batch, e.g., 4M
    ///
    /// It is a whole number of sequences: 4M may also be 4 x 1024 x 1024, if that is one; else the nearest is used.
    #[arg(long, value_name = "TOKENS", value_parser = quantity::tokens, conflicts_with = "global_batch")]
    pub global_batch_tokens: Option<u64>,
    /// Tokens of the whole training, e.g., 1T: plans then include its days, device hours and cost
    #[arg(long, allow_hyphen_values = true, value_parser = quantity::tokens)]
    pub tokens: Option<u64>,
    /// Tokens per sequence, e.g., 4096 or 8k, which is 8192 [default: the profile's; without one, required]
    #[arg(long, value_name = "TOKENS", value_parser = quantity::length)]
    pub seq_len: Option<u32>,
    /// Seed of the initial parameters and of the synthetic data [default: 0]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Peak learning rate, e.g., 3e-4 [default: 3e-3; not written by `export` unless it is given]
    #[arg(long, value_name = "RATE")]
    pub learning_rate: Option<f64>,
    /// Training precision [default: that of the job file or the profile; else bf16 for `plan` and `estimate`, fp32
    /// for the others]
    #[arg(long, value_parser = precisions())]
    pub precision: Option<Precision>,
    /// What the search minimises [default: step-time]; the two differ only if lossy codecs are allowed
    #[arg(long, value_parser = objectives())]
    pub objective: Option<Objective>,
    /// Also consider options that change the training numerics [default: none]
    #[arg(long, value_enum)]
    pub allow: Vec<AllowArg>,
    #[command(flatten)]
    pub states: StateArgs,
    #[command(flatten)]
    pub trainable: TrainableArgs,
}

/// Options that change the training numerics, and are used only on request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AllowArg {
    /// Lossy codecs for gradients, gathered parameters and activations, each with its default settings
    Compression,
}

/// Hardware that the built-in catalogue does not have.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Cluster and prices")]
pub struct CatalogueArgs {
    /// Device file (TOML, docs/hardware.md), used without a profile; can be repeated
    ///
    /// It adds devices to the catalogue, or replaces devices of the same name.
    #[arg(long, value_name = "FILE")]
    pub devices: Vec<PathBuf>,
}

/// The source of prices of a cluster that was not measured.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster and prices")]
pub struct FigureArgs {
    /// Efficiencies (TOML) that `autodist calibrate` fitted to a cluster; only without a profile [default:
    /// built-in]
    #[arg(long, value_name = "FILE")]
    pub calibration: Option<PathBuf>,
    #[command(flatten)]
    pub catalogue: CatalogueArgs,
}

/// The source of prices of a plan.
#[derive(Debug, Args)]
#[command(next_help_heading = "Cluster and prices")]
pub struct PriceArgs {
    /// Profile that `autodist profile` wrote [default: profile.json in this folder, unless --cluster is given]
    #[arg(long, value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// Cluster, e.g., `4x8xh100`, `64xh100`, `2xp5.48xlarge` or `2x8xh100-80gb-sxm@8x400gbps`, or a cluster file
    ///
    /// `<nodes>x<devices per node>x<device>[@<NICs per node>x<rate>]`, with `+` between kinds of nodes; without
    /// `@…` the network of a usual node with these devices is assumed. `<nodes>x<kind of node>` is a rented or bought
    /// machine, e.g., `16xp5.48xlarge` (`autodist catalog`). A name that ends in `.toml` is a cluster file. Without
    /// --profile the cluster is priced from published figures. With --profile, `<nodes>x<devices per node>[@…]` are
    /// more of its devices.
    #[arg(long)]
    pub cluster: Option<String>,
    /// Plan as if every device had this much memory, e.g., 80GiB, 16GB (16,000,000,000 bytes) or 80G (GiB)
    /// [default: its own]
    #[arg(long, value_name = "SIZE", value_parser = quantity::bytes)]
    pub device_memory: Option<u64>,
    /// Price of one device for one hour in US dollars, e.g., 2.50; used with --tokens
    ///
    /// By device: `h100=2.50,b200=4`, or a TOML file with such lines.
    #[arg(long, allow_hyphen_values = true)]
    pub price: Option<String>,
}
