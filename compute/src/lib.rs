//! The arithmetic of a decoder-only transformer, forward and hand-written backward, on one device.
//!
//! Layers are split into *segments*: the arithmetic between two tensor-parallel collectives. A segment uses
//! one rank's shard of the parameters and is independent of other ranks; its caller (the executor) runs the
//! collectives between segments. The activations that a segment saves for its backward pass are an owned
//! value, so it is explicit when memory is allocated and freed.
//!
//! This crate is not a tensor library: no graph, no automatic differentiation, no shapes beyond those of
//! [`layers`]. Code above [`Backend`] is the same for every device.
//!
//! Activations are row-major `[sequence, micro_batch, features]`, sequence outermost, so a sequence shard is
//! a range of rows. A layer's parameters are one flat region in the order of `ModelSpec::parameters`; its
//! gradients have the same layout, and backward adds to them.
//!
//! ```
//! use autodist_compute::layers::{LayerShape, TensorShard};
//! use autodist_compute::{Backend, Cpu, Region, RegionMut};
//! use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions};
//!
//! let model = ModelSpec {
//!     name: "tiny".into(), layers: 1, hidden: 8, heads: 2, kv_heads: 2, head_dim: 4, ffn: 16, vocab: 11,
//!     max_seq_len: 4, positions: Positions::Learned, norm: Norm::LayerNorm, norm_epsilon: 1e-5,
//!     activation: Activation::Gelu, bias: true, tied_embeddings: true, window: None,
//!     latent: None, experts: None, blocks: Vec::new(), additions: Vec::new(),
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
