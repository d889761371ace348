//! The data types of autodist, their units and their files.
//!
//! Nothing here opens a file, prints, or searches: it defines a model, a cluster, a job, a profile, a plan
//! and a run, reads them from bytes with errors that name file, field, value and a remedy, and writes them
//! back.
//!
//! ```
//! use autodist_spec::{catalog, strategy::ParallelStrategy};
//! let model = catalog::model("gpt3-175b").unwrap();
//! assert_eq!((model.total_parameters() as f64 / 1e9).round(), 175.0);
//! assert_eq!(ParallelStrategy::data_parallel(8, 4).micro_batches(64), 2);
//! ```

#![forbid(unsafe_code)]

mod agreement;
mod block;
pub mod catalog;
mod classes;
pub mod cluster;
pub mod collective;
pub mod communication;
mod comparison;
mod correction;
pub mod doubt;
pub mod error;
pub mod estimate;
mod host;
pub mod huggingface;
pub mod job;
mod kernels;
pub mod model;
mod model_names;
pub mod network;
mod nicknames;
pub mod parse;
mod part;
pub mod plan;
mod priced;
pub mod profile;
pub mod quantity;
pub mod run;
mod source;
mod states;
pub mod strategy;
mod survey;
pub mod text;
mod trainable;
mod training;
mod understood;
pub mod units;
pub mod utilisation;
mod variant;

pub use block::{Addition, BlockRun, BlockSpec, Experts, Latent};
pub use classes::{ClassRange, DeviceClasses, NodeKind};
pub use cluster::{Cluster, Device, Link, NodeGroup};
pub use collective::Collective;
pub use communication::{Algorithm, BucketReduction, Codec, Coded, Communication, Reduction};
pub use comparison::{BestOn, ClusterComparison, ComparedCluster, Difference};
pub use correction::ProfileCorrection;
pub use doubt::{Doubt, DoubtKind, DoubtedCell};
pub use error::InputError;
pub use estimate::{CostBreakdown, Estimate, MemoryBreakdown, Slowdown, StageEstimate};
pub use host::NodeHost;
pub use job::{Convergence, Hyperparameter, Job, LearningRate, Objective, Optimizer, Precision};
pub use kernels::{AttentionCore, Kernels, Linear, Shard};
pub use model::{Activation, LayerKind, ModelSpec, Norm, Parameter, Positions, TensorSplit};
pub use network::{Network, Path, Pattern, PatternTiming, SharedLink};
pub use parse::{Check, SCHEMA_VERSION, fingerprint, to_json};
pub use part::ClusterPart;
pub use plan::{
    Alternative, CodecVerdict, CollectiveShare, DeviceChoice, MeasuredChoice, PlacementReport, Plan,
    Rejection, SearchReport, StopReason,
};
pub use priced::{PricedOutcome, PricedPoint};
pub use profile::{DeviceKind, Engine, Environment, Machine, Pass, Profile, Sample, Segment, SegmentCost};
pub use run::{
    CodecProbe, OperationKind, RunRecord, Stream, TimelineEvent, ValidatedRun, Validation, Verdict,
};
pub use source::{CatalogueReference, CostSource, KernelReference, ProfileReference};
pub use states::{MemoryTier, StateStorage};
pub use strategy::{ParallelStrategy, Recompute, ScheduleKind, Stage};
pub use text::{one_line, printable};
pub use trainable::{Adapter, BaseBits, FrozenPart, LayerTraining, Lora, LoraTarget, LoraTargets, Trainable};
pub use training::Training;
pub use understood::{Said, UnderstoodSetting};
pub use units::{Bytes, BytesPerSecond, Flops, FlopsPerSecond, Provenance, Seconds};
pub use utilisation::{Peak, Utilisation};
pub use variant::{Change, GivenStrategy, Setting, Variant};
