//! NVIDIA GPUs: [`Cuda`] is a [`Backend`](autodist_compute::Backend) over the driver, cuBLASLt and our own
//! kernels, including gradient codecs, and [`NcclGroup`] runs collectives between GPUs of several ranks.
//!
//! NVIDIA's libraries are not linked: [`Libraries`] finds and loads them when a GPU is requested, and reports
//! which are missing. Kernels (`kernels/`) are compiled for the device by NVRTC at first use.
//!
//! Work is queued on streams. Single operations do not report errors: a device keeps its first failure, and
//! `synchronise` returns it. An operation is skipped if an operand could not be allocated. Waiting threads
//! sleep.

mod api;
mod attention;
mod backend;
pub mod blas;
mod codecs;
pub mod compile;
mod device;
mod error;
mod launch;
mod library;
mod nccl;
pub mod nvml;
mod operands;
mod queue;
pub mod selftest;

pub use api::{CublasLt, Driver, Nccl, Nvrtc};
pub use codecs::Encoded;
pub use device::{Gpu, gpus};
pub use error::{CudaError, Missing};
pub use library::{Libraries, OVERRIDE, Search, diagnose};
pub use nccl::{NcclGroup, Reduce, Traffic, UniqueId};
pub use operands::{Cuda, Scalar};
pub use queue::{Buffer, Event};
