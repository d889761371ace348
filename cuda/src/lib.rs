//! NVIDIA GPUs: [`Cuda`] is a [`Backend`](autodist_compute::Backend) over the driver, cuBLASLt and our own kernels,
//! codes gradients there, and [`NcclGroup`] lets GPUs of several ranks talk.
//!
//! Nothing of NVIDIA's is linked: [`Libraries`] finds and loads what is there when a GPU is asked for, and says what
//! is missing otherwise. Kernels (`kernels/`) are compiled for the device by NVRTC at first use.
//!
//! Work is queued on streams. Operations do not fail one by one: a device keeps its first failure, and
//! `synchronise` returns it; without memory for an operand, an operation is left out. Threads that wait sleep.

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
