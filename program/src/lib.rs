//! Plan → Program: the operations of every rank in one training step.
//!
//! One [`Program`] has two interpreters: the cost model simulates it, the executor runs it. A strategy is
//! legal if and only if it compiles, and the planner uses the same [`rules`]. No IO, no clock, no cost.
//!
//! ```
//! use autodist_program::{Program, stages};
//! use autodist_spec::{Job, Recompute, catalog, strategy::ParallelStrategy};
//! let model = catalog::model("tiny-llama").unwrap();
//! let job = Job::new(8, 128);
//! let strategy = ParallelStrategy::data_parallel(2, 2);
//! let stages = stages::even(&model, &strategy);
//! let program = Program::compile(&model, &job, 2, &strategy, &stages).unwrap();
//! assert_eq!(program.ranks.len(), 1); // one pipeline rank stands for all its data and tensor replicas
//! assert_eq!(program.micro_batches, 2);
//! ```

#![forbid(unsafe_code)]

mod bucket;
mod compile;
pub mod engine;
pub mod framework;
mod kept;
mod mesh;
mod program;
mod residence;
pub mod rules;
pub mod schedule;
pub mod stages;
mod traffic;

pub use bucket::{Bucket, BucketLayer, BucketParameter, Held, buckets};
pub use framework::{BrokenRule, Framework};
pub use kept::residual_stream;
pub use mesh::{Axis, Coordinates, DATA, Mesh, View};
pub use program::{
    Body, BodyKind, Instruction, Message, MessageKind, Op, Operand, Program, RankClass, RankProgram,
    TensorCollective, Transfer,
};
pub use residence::{LayerStrategy, Residence};
pub use rules::Illegal;
pub use traffic::Flows;
