//! What devices and fabrics cost that nobody measured here: matrix products, attention, memory-bound kernels and
//! collectives, priced from a catalogue of published figures and parameters fitted to published measurements.
//!
//! ```
//! use autodist_hardware::{Collective, DeviceModel, Dtype, Group, Interconnect};
//! use autodist_spec::Bytes;
//! let h100 = DeviceModel::named("h100-80gb-sxm").unwrap();
//! let product = h100.gemm(Dtype::Bf16, 4096, 4096, 4096);
//! assert!(product.time.0 > 2.0 * 4096f64.powi(3) / 989e12);
//! let node = Interconnect::named("dgx-h100").unwrap();
//! let sum = node.collective(Collective::AllReduce, Bytes(1 << 28), Group::in_one_node(8));
//! assert!(sum.time.0 > 0.0);
//! ```

mod attention;
mod catalogue;
mod collective;
mod device;
mod dtype;
mod price;

pub use attention::{Attention, AttentionKernel};
pub use catalogue::{Catalogue, DeviceFigures, Fabric, LinkKind, NodeShape};
pub use collective::{Collective, Group, Interconnect, Network};
pub use device::DeviceModel;
pub use dtype::Dtype;
pub use price::Price;
