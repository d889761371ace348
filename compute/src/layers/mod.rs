//! The segments of a transformer: forward, what is saved, backward.
//!
//! | segment | collective after forward | after backward |
//! |---|---|---|
//! | [`Embedding`] | sum of `out` | – |
//! | [`Norm`] | (gather of rows, if the sequence is sharded) | – |
//! | [`Attention`], [`Mlp`] | sum of `out` | sum of `dh` |
//! | [`Head`] | largest `max`, sum of `sums`, in the course of forward | sum of `dh` |
//!
//! Sums are over the tensor-parallel group; where the sequence is sharded each is a reduce-scatter, and the
//! input of the next segment is gathered. With one rank nothing happens between segments.
//!
//! The residual stream joins inside: `out` of attention and MLP, summed over ranks, is
//! `residual + bias + projection`. Its gradient is joined by [`Norm::backward`].

mod attention;
mod embedding;
mod head;
mod mlp;
mod norm;
mod projection;
mod shape;

pub use attention::{Attention, AttentionSaved};
pub use embedding::Embedding;
pub use head::{Head, HeadStatistics};
pub use mlp::{Mlp, MlpSaved};
pub use norm::{Norm, NormStatistics};
pub use shape::{LayerShape, Layout, LayoutEntry, TensorShard};
