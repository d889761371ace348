//! Time and memory of a training run from hardware figures alone: no profile, no GPU, a few microseconds.
//!
//! ```
//! use autodist_analytic::{FreeParameters, NodeModel, ParallelDims, Trainer, TrainingRun, Uplink};
//! use autodist_spec::Recompute;
//! use std::sync::Arc;
//! let model = autodist_spec::catalog::model("gpt3-175b").unwrap();
//! let network = Uplink { fabric: "infiniband".into(), bytes_per_s: 200e9, nics: 8 };
//! let machine = Arc::new(NodeModel::named("a100-80gb-sxm", 8, Some(&network)).unwrap());
//! let layout = ParallelDims { tensor: 8, pipeline: 8, virtual_stages: 3, data: 8, ..ParallelDims::default() };
//! let mut run = TrainingRun::new(&model, machine, layout, Trainer::Megatron);
//! run.global_batch = 1536;
//! run.recompute = Recompute::Full;
//! let estimate = run.estimate(FreeParameters::shipped());
//! assert!((40.0..80.0).contains(&estimate.step.0), "{estimate:?}");
//! ```
//!
//! `work` takes the times of kernels and collectives from the hardware model; `estimate` computes how a step
//! differs from kernels timed alone, with the free `parameters`, which `fit` fits to `table`s of runs and
//! evaluates on held-out runs.

#![forbid(unsafe_code)]

mod adapters;
pub mod backtest;
mod basis;
mod calibration;
mod cells;
mod described;
mod doubts;
mod estimate;
pub mod few;
mod fields;
pub mod fit;
mod kernel_choice;
mod launches;
mod machine;
pub mod measured;
mod memo;
mod memory;
mod older;
mod parameters;
mod prices;
pub mod reserve;
mod run;
pub mod sets;
pub mod software;
pub mod states;
mod statistics;
pub mod table;
mod trainer;
mod words;
mod work;

pub use backtest::{Backtest, backtest};
pub use basis::{Basis, StatedBar};
pub use calibration::{COVERAGE, Calibration, errors, left_out_bars, usual_fold};
pub use estimate::{Breakdown, StepEstimate, time};
pub use fit::Fold;
pub use kernel_choice::{AttentionChoice, BlockKind, KernelChoice, LossKind};
pub use machine::{FabricKind, Generation, NodeModel, Uplink};
pub use memory::{Memory, Reserve};
pub use parameters::{FreeParameters, PRIORS, Prior};
pub use prices::CataloguePrices;
pub use run::{ParallelDims, TrainingRun, even_blocks};
pub use trainer::{AttentionKind, HostKind, TensorOverlap, Trainer, TrainerTraits};
pub use work::StepWork;
