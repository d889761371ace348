//! Scratch memory of a reduction on a device whose transfers go through the host: encoded parts to send, and
//! small buffers for sums and selections. Received parts are copied to the device one by one.

use crate::arithmetic::{Form, Levels, Scale};
use crate::layout::{Layout, Tensor};
use crate::{shards, sparse};
use autodist_spec::{Codec, Coded};

/// Numbers per partial sum, or per count of a selection.
const TILE: usize = 2048;
/// Bytes of a selection: the histogram of one digit, of 2^11 values.
const SELECTION: usize = 4 * ((1 << 11) + 2);

/// Bytes.
pub(crate) fn on_device(
    codec: Codec,
    coded: Coded,
    tensors: &[Tensor],
    elements: usize,
    size: usize,
) -> usize {
    let words = |bytes: usize| bytes.next_multiple_of(4);
    let tiles = elements.div_ceil(TILE);
    let sums = 8 * (tiles + size + 2);
    let parts = |bytes: &dyn Fn(usize) -> usize| -> usize {
        (0..size).map(|member| words(bytes(shards::range(elements, size, member).len()))).sum()
    };
    match (coded, Form::of(codec)) {
        (Coded::GradientShards, Some(form)) => return parts(&|len| form.bytes(len)),
        (Coded::Parameters, Some(form)) => return words(form.bytes(shards::range(elements, size, 0).len())),
        _ => {}
    }
    // Encoded parts, and one that is decoded to measure the error.
    let shards = |form: Form| parts(&|len| form.bytes(len)) + 4 * shards::range(elements, size, 0).len();
    let factors = |rank: u32, half: bool| {
        let layout = Layout::of(tensors, elements, rank, half);
        let (left, right, dense) = (layout.left(), layout.right(), layout.dense_elements());
        let message = if half { left.max(right) + dense } else { left.max(dense) };
        // A matrix has three words in a table and two sums; each partial sum of a GEMM covers 32 rows.
        let rows = layout.matrices.iter().map(|matrix| matrix.rows).max().unwrap_or(0);
        4 * message + (12 + 16) * layout.matrices.len() + 8 * rows.div_ceil(32)
    };
    let entries = |per_mille: u32| 8 * sparse::count(elements, per_mille) + SELECTION + 2 * 4 * tiles;
    let levels = |levels: u32, scale: Scale| words(Levels { levels, scale }.bytes(elements));
    sums + match codec {
        Codec::None => 0,
        Codec::Fp16 => shards(Form::Fp16),
        Codec::Bf16 => shards(Form::Bf16),
        Codec::Int8 { block } => shards(Form::Int8 { block: block as usize }),
        Codec::PowerSgd { rank, .. } => factors(rank, false),
        Codec::PowerSgdHalf { rank, .. } => factors(rank, true),
        Codec::TopK { per_mille } | Codec::Dgc { per_mille, .. } => entries(per_mille),
        Codec::OneBit | Codec::OneBitAdam { .. } => parts(&|len| 4 + len.div_ceil(8)),
        Codec::Qsgd { levels: count, bucket } => levels(count, Scale::Norms { bucket: bucket as usize }),
        Codec::TernGrad => levels(1, Scale::Common(0.0)),
    }
}
