//! Time of kernels and collectives that were not measured on the machine: GEMMs, attention, memory-bound
//! kernels and collectives, priced from a catalogue of published figures and parameters fitted to published
//! measurements.
//!
//! ```
//! use autodist_hardware::{DeviceModel, GroupShape, Interconnect};
//! use autodist_spec::{Bytes, Collective, Precision, Provenance};
//! let h100 = DeviceModel::named("h100-80gb-sxm").unwrap();
//! let gemm = h100.gemm(Precision::Bf16, 4096, 4096, 4096);
//! assert!(gemm.time.0 > 2.0 * 4096f64.powi(3) / 989e12);
//! assert_eq!(gemm.provenance, Provenance::Interpolated);
//! let node = Interconnect::named("dgx-h100").unwrap();
//! let one = node.collective(Collective::AllReduce, Bytes(1 << 28), GroupShape::in_one_node(8));
//! let two = node.collective(Collective::AllReduce, Bytes(1 << 28), GroupShape { per_node: 8, nodes: 2, sharing: 1 });
//! assert!(two.time.0 > one.time.0);
//! assert_eq!(two.provenance, Provenance::Extrapolated);
//! ```

#![forbid(unsafe_code)]

mod attention;
mod catalogue;
mod collective;
mod device;
pub mod fit;
mod gemm;
mod nccl;
mod nearest;
mod network;
mod parameters;
mod price;
mod tables;
mod written;

pub use attention::{Attention, AttentionKernel};
pub use autodist_spec::catalog::{DeviceFigures, LinkKind, Peaks};
pub use catalogue::{BusRates, Catalogue, Fabric, NodeShape};
pub use collective::{GroupShape, InterNodeNetwork, Interconnect};
pub use device::{BACKWARD_OVER_FORWARD, DeviceModel};
pub use nccl::NcclDatatype;
pub use parameters::KernelParameters;
pub use price::PredictedTime;
pub use written::WrittenCluster;
