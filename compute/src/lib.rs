//! The arithmetic of a decoder-only transformer, forward and hand-written backward, on one device.
//!
//! Layers are cut into *segments*: stretches of arithmetic between two communications of tensor
//! parallelism. A segment sees one rank's shard of the parameters and knows nothing of the other ranks;
//! whoever runs it (the executor) puts collectives between segments. What a segment keeps for its backward
//! is an owned value, so when memory is taken and freed is plain to see and to model.
//!
//! This crate is not a tensor library: no graph, no automatic differentiation, no shapes beyond those of
//! [`layers`]. Everything above [`Backend`] is the same on every device.
//!
//! Activations are row-major `[sequence, micro_batch, features]`, sequence outermost, so a sequence shard is
//! a range of rows. A layer's parameters are one flat region in the order of `ModelSpec::parameters`, and
//! its gradients another of the same layout, which backward adds to.
//!
//! ```
//! use autodist_compute::layers::{LayerShape, TensorShard};
//! use autodist_compute::{Backend, Cpu, Region, RegionMut};
//! use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions};
//!
//! let model = ModelSpec {
//!     name: "tiny".into(), layers: 1, hidden: 8, heads: 2, kv_heads: 2, head_dim: 4, ffn: 16, vocab: 11,
//!     max_seq_len: 4, positions: Positions::Learned, norm: Norm::LayerNorm, norm_epsilon: 1e-5,
//!     activation: Activation::Gelu, bias: true, tied_embeddings: true,
//! };
//! let (device, shape) = (Cpu::<f32>::new(), LayerShape::new(&model, 1, 4, TensorShard::WHOLE));
//! let len = shape.layout(LayerKind::Block).len();
//! let (parameters, mut gradients) = (device.upload(&vec![0.1; len]), device.zeros(len));
//! let h = device.upload(&[0.5; 4 * 8]);
//!
//! let (y, saved) = shape.mlp.forward(&device, Region::start(&parameters), &h, &h);
//! let dh = shape.mlp.backward(&device, Region::start(&parameters), RegionMut::start(&mut gradients), &h, saved, &y);
//! assert_eq!(device.len(&dh), 4 * 8);
//! ```

pub mod backend;
pub mod cpu;
pub mod layers;
pub mod optimizer;
pub mod selftest;

pub use backend::{Backend, DeviceError, Element, GemmShape, Matrix, MatrixMut, Region, RegionMut};
pub use cpu::Cpu;
