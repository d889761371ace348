//! Executes a Program: ranks, layers, collectives, optimizer, measurement.
//!
//! [`train`] is one rank's part of a training job over any [`TrainingDevice`] and any endpoint;
//! [`local::train`] runs all ranks as threads of this process, [`launcher::launch`] as processes of their
//! own: of this machine, or of all machines on which a cluster's launcher has started this program
//! ([`external`]). Every operation of the Program is timed, and the memory that it takes is counted.

mod compression;
pub mod cuda;
pub mod data;
pub mod device;
pub mod devices;
pub mod external;
pub mod guard;
pub mod host;
pub mod hosts;
pub mod launcher;
mod layers;
pub mod local;
pub mod memory;
mod pace;
mod parameters;
mod random;
mod rank;
mod record;
mod reference;
mod rounding;
pub mod state;
mod store;
pub mod stream;
mod task;
mod thinned;

pub use autodist_communication::mpi::{Mpi, MpiError};
pub use cuda::Absent;
pub use data::{Data, DataSource, SyntheticLanguage};
pub use device::TrainingDevice;
pub use devices::RankDevices;
pub use external::External;
pub use guard::Guard;
pub use rank::{Tell, train};
pub use record::{
    Growing, InstructionSample, LONGEST_RECORD, NamedSample, RankOutcome, StepOutcome, Timed, merge,
};
pub use reference::Reference;
pub use task::{CodecOptions, Task};

use autodist_communication::CommunicationError;
use std::io;

/// The reason why a rank could not continue.
#[derive(Debug, thiserror::Error)]
pub enum ExecutionError {
    #[error(transparent)]
    Communication(#[from] CommunicationError),
    #[error(transparent)]
    Device(#[from] autodist_compute::DeviceError),
    #[error(transparent)]
    Gpu(#[from] autodist_cuda::CudaError),
    #[error(
        "the state to continue from lacks `{name}` of layer {layer}: expected {elements} elements with {state} values of optimizer \
         state each"
    )]
    ForeignState { layer: usize, name: &'static str, elements: usize, state: usize },
    #[error("the group's first rank could not create the NCCL communicator; see its own error")]
    NoIdentity,
    #[error("the thread that sends to rank {peer} ended early")]
    MessagesEnded { peer: usize },
    #[error(transparent)]
    Illegal(#[from] autodist_program::Illegal),
    #[error(transparent)]
    Data(#[from] data::DataError),
    #[error("reading the training data: {0}")]
    Read(io::Error),
    #[error("{what}: {source}")]
    System { what: &'static str, source: io::Error },
    #[error("the communication stream ended before {key:?} was done")]
    StreamEnded { key: stream::TransferKey },
    #[error("rank {peer} sent {given} values instead of {expected}")]
    Message { peer: usize, expected: usize, given: usize },
    #[error(
        "the {what} of step {step} is {value}: training diverged; lower the learning rate, or clip gradients"
    )]
    Diverged { what: &'static str, step: u32, value: f64 },
    #[error("the job was stopped")]
    Stopped,
    #[error("the job has {expected} ranks, but the task is for {given}")]
    World { expected: usize, given: usize },
    #[error("rank {rank} panicked: {message}")]
    Panicked { rank: usize, message: String },
}

impl ExecutionError {
    /// Whether this rank failed only because another did.
    pub fn is_consequence(&self) -> bool {
        match self {
            Self::Communication(error) => {
                error.accused_rank().is_some() || matches!(error, CommunicationError::Broken { .. })
            }
            Self::Stopped | Self::StreamEnded { .. } | Self::MessagesEnded { .. } | Self::NoIdentity => true,
            _ => false,
        }
    }
}
