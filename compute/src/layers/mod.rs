//! The segments of a transformer: forward, what is saved, backward.
//!
//! | segment | collective after forward | after backward |
//! |---|---|---|
//! | [`Embedding`] | sum of `out` | – |
//! | [`NormLayer`] | (gather of rows, if the sequence is sharded) | – |
//! | [`AttentionLayer`], [`Mlp`] | sum of `out` | sum of `dh` |
//! | [`LmHead`] | largest `max`, sum of `sums`, in the course of forward | sum of `dh` |
//!
//! Sums are over the tensor-parallel group; where the sequence is sharded each is a reduce-scatter, and the
//! input of the next segment is gathered. With one rank nothing happens between segments.
//!
//! The residual stream joins inside: `out` of attention and MLP, summed over ranks, is
//! `residual + bias + projection`. Its gradient is joined by [`NormLayer::backward`].

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
