//! Fused attention kernels.

use crate::launch::{Argument, Form, float, int};
use crate::operands::{Cuda, named, read, read_full, same, write, write_full};
use crate::queue::Kind;
use autodist_compute::backend::{AttentionShape, FusedAttention};
use autodist_compute::{Region, RegionMut};

impl FusedAttention<Cuda> for Cuda {
    fn forward(
        &self,
        shape: AttentionShape,
        qkv: Region<'_, Cuda>,
        attended: RegionMut<'_, Cuda>,
        logsumexp: RegionMut<'_, Cuda>,
    ) {
        let kind = same(&[qkv.buffer.kind, attended.buffer.kind]);
        let sizes = Sizes::of(&shape);
        let mut arguments = sizes.arguments(&shape).to_vec();
        arguments.extend_from_slice(&[
            read(qkv, sizes.qkv).into(),
            write(&attended, sizes.attended).into(),
            write_full(&logsumexp, sizes.rows).into(),
        ]);
        self.launch(&named("attention_forward", kind), Form::attention(&shape, shape.heads), &arguments);
    }

    fn backward(
        &self,
        shape: AttentionShape,
        qkv: Region<'_, Cuda>,
        attended: Region<'_, Cuda>,
        d_attended: Region<'_, Cuda>,
        logsumexp: Region<'_, Cuda>,
        d_qkv: RegionMut<'_, Cuda>,
    ) {
        let kinds = [qkv.buffer.kind, attended.buffer.kind, d_attended.buffer.kind, d_qkv.buffer.kind];
        let kind = same(&kinds);
        let sizes = Sizes::of(&shape);
        let delta = self.queue.allocate(sizes.rows, Kind::F32);
        let d_attended = read(d_attended, sizes.attended);
        let arguments = [
            int(shape.seq_len),
            int(shape.micro_batch),
            int(shape.heads),
            int(shape.head_dim),
            read(attended, sizes.attended).into(),
            d_attended.into(),
            delta.pointer.into(),
        ];
        self.launch(&named("attention_backward_delta", kind), Form::Rows(sizes.rows), &arguments);
        let mut arguments = sizes.arguments(&shape).to_vec();
        arguments.extend_from_slice(&[
            read(qkv, sizes.qkv).into(),
            d_attended.into(),
            read_full(logsumexp, sizes.rows).into(),
            delta.pointer.into(),
            write(&d_qkv, sizes.qkv).into(),
        ]);
        for (kernel, heads) in
            [("attention_backward_query", shape.heads), ("attention_backward_key_value", shape.kv_heads)]
        {
            self.launch(&named(kernel, kind), Form::attention(&shape, heads), &arguments);
        }
    }
}

/// Elements of attention's operands.
struct Sizes {
    qkv: usize,
    attended: usize,
    /// Rows of every head.
    rows: usize,
}

impl Sizes {
    fn of(shape: &AttentionShape) -> Self {
        let tokens = shape.seq_len * shape.micro_batch;
        assert!(shape.head_dim <= 256, "fused attention takes heads of at most 256, not {}", shape.head_dim);
        Self {
            qkv: tokens * (shape.heads + 2 * shape.kv_heads) * shape.head_dim,
            attended: tokens * shape.heads * shape.head_dim,
            rows: tokens * shape.heads,
        }
    }

    fn arguments(&self, shape: &AttentionShape) -> [Argument; 6] {
        [
            int(shape.seq_len),
            int(shape.micro_batch),
            int(shape.heads),
            int(shape.kv_heads),
            int(shape.head_dim),
            float(shape.scale),
        ]
    }
}
