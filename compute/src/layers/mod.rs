//! The segments of a transformer: forward, saved activations, backward.
//!
//! | segment | collective after forward | after backward |
//! |---|---|---|
//! | [`Embedding`] | all-reduce of `out` | – |
//! | [`NormLayer`] | (all-gather of rows, with sequence parallelism) | – |
//! | [`AttentionLayer`], [`Mlp`] | all-reduce of `out` | all-reduce of `dh` |
//! | [`LmHead`] | all-reduces of `max` (maximum) and `sums`, within forward | all-reduce of `dh` |
//!
//! Collectives run over the tensor-parallel group. With sequence parallelism, each all-reduce of `out` or
//! `dh` is a reduce-scatter, and the input of the next segment is all-gathered. With one rank, there are no
//! collectives.
//!
//! Segments add the residual: `out` of attention and MLP, reduced over ranks, is `residual + bias +
//! projection`. [`NormLayer::backward`] adds the gradient of the residual.

mod attention;
mod embedding;
mod head;
mod mlp;
mod norm;
mod projection;
mod shape;

pub use attention::{AttentionLayer, AttentionSaved};
pub use embedding::Embedding;
pub use head::{HeadStatistics, LmHead};
pub use mlp::{Mlp, MlpSaved};
pub use norm::{NormLayer, NormStatistics};
pub use shape::{LayerShape, LayoutEntry, ParameterLayout, TensorShard};
