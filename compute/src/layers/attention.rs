use super::projection::{Inward, Outward};
use super::shape::{ParameterLayout, Sizes};
use crate::backend::{
    AttentionShape, Backend, Direction, GemmShape, Matrix, MatrixMut, Region, RegionMut, RotaryShape,
};
use autodist_spec::model::{ModelSpec, Positions};

/// Causal self-attention with this rank's share of the heads; key/value heads may each serve a group of
/// query heads (Ainslie et al., GQA, 2305.13245).
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionLayer {
    micro_batch: usize,
    seq_len: usize,
    kv_heads: usize,
    /// Query heads for each key/value head.
    group: usize,
    head_dim: usize,
    /// Query, key and value in one GEMM.
    qkv: Inward,
    rotary: Option<RotaryShape>,
    output: Outward,
}

/// The activations that attention saves for backward.
pub struct AttentionSaved<B: Backend> {
    /// Query, key and value, rotated.
    qkv: B::Buffer,
    /// Input of the output projection.
    attended: B::Buffer,
    scores: Scores<B>,
}

/// The saved form of the scores.
enum Scores<B: Backend> {
    /// `[micro_batch, group, kv_heads, seq_len, seq_len]`.
    Probabilities(B::Buffer),
    /// Nothing is saved: the probabilities are recomputed.
    Dropped,
    /// `[micro_batch, heads, seq_len]`, on a device with fused attention.
    LogSumExp(B::Buffer),
}

/// Query heads computed together: one sequence, one member of each group, consecutive key/value heads.
#[derive(Debug, Clone, Copy)]
struct Heads {
    sequence: usize,
    member: usize,
    first_kv: usize,
    count: usize,
}

impl AttentionLayer {
    pub(super) fn new(model: &ModelSpec, sizes: &Sizes, block: &ParameterLayout) -> Self {
        let head_dim = model.head_dim as usize;
        let (heads, kv_heads) = (sizes.part(model.heads), sizes.part(model.kv_heads));
        let qkv = Inward {
            rows: sizes.tokens,
            inputs: sizes.hidden,
            outputs: (heads + 2 * kv_heads) * head_dim,
            weight: block.offset("attention.query.weight"),
            bias: block.find("attention.query.bias"),
        };
        let rotary = match model.positions {
            // Models with linear biases are refused before.
            Positions::Learned | Positions::Alibi => None,
            Positions::Rotary { theta } => Some(RotaryShape {
                positions: sizes.seq_len,
                repeat: sizes.micro_batch,
                row_width: qkv.outputs,
                heads: heads + kv_heads,
                head_dim,
                theta,
            }),
        };
        let (weight, bias) = (block.offset("attention.output.weight"), block.find("attention.output.bias"));
        Self {
            micro_batch: sizes.micro_batch,
            seq_len: sizes.seq_len,
            kv_heads,
            group: heads / kv_heads,
            head_dim,
            qkv,
            rotary,
            output: Outward::new(sizes, heads * head_dim, weight, bias),
        }
    }

    /// This rank's partial sum of `residual + bias + projection`, `[tokens, hidden]`. `h` has all rows,
    /// `residual` only this rank's.
    pub fn forward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        h: &B::Buffer,
        residual: &B::Buffer,
        keep_probabilities: bool,
    ) -> (B::Buffer, AttentionSaved<B>) {
        let mut qkv = self.qkv.forward(device, parameters, h);
        if let Some(rotary) = self.rotary {
            device.rotary(rotary, Direction::Forward, RegionMut::start(&mut qkv));
        }
        let mut attended = device.uninitialised(self.output.rows * self.output.inputs);
        let scores = match device.fused_attention() {
            Some(fused) => {
                let mut logsumexp = device.uninitialised_full(self.heads() * self.output.rows);
                fused.forward(
                    self.shape(),
                    Region::start(&qkv),
                    RegionMut::start(&mut attended),
                    RegionMut::start(&mut logsumexp),
                );
                Scores::LogSumExp(logsumexp)
            }
            None => self.attend(device, &qkv, &mut attended, keep_probabilities),
        };
        let out = self.output.forward(device, parameters, &attended, residual);
        (out, AttentionSaved { qkv, attended, scores })
    }

    /// Attention from GEMMs and softmax.
    fn attend<B: Backend>(
        &self,
        device: &B,
        qkv: &B::Buffer,
        attended: &mut B::Buffer,
        keep_probabilities: bool,
    ) -> Scores<B> {
        let matrices = if keep_probabilities {
            self.micro_batch * self.kv_heads * self.group
        } else {
            device.heads_at_once(self.kv_heads)
        };
        let mut probabilities = device.uninitialised(matrices * self.scores_len());
        for sequence in 0..self.micro_batch {
            for heads in self.kv_chunks(device, sequence).flat_map(|heads| self.members(heads)) {
                let offset = if keep_probabilities { self.probabilities_offset(heads) } else { 0 };
                self.probabilities(device, heads, qkv, RegionMut::new(&mut probabilities, offset));
                let product = GemmShape::new(self.seq_len, self.head_dim, self.seq_len).batched(heads.count);
                let (scores, value) = (self.scores(&probabilities, offset), self.value(qkv, heads));
                device.matmul(
                    product,
                    1.0,
                    scores,
                    value,
                    0.0,
                    self.query_part_mut(attended, self.output.inputs, heads),
                );
            }
        }
        if keep_probabilities { Scores::Probabilities(probabilities) } else { Scores::Dropped }
    }

    /// This rank's partial sum of the gradient of `h`, without the part through the residual connection.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        mut gradients: RegionMut<'_, B>,
        h: &B::Buffer,
        saved: AttentionSaved<B>,
        dy: &B::Buffer,
    ) -> B::Buffer {
        let AttentionSaved { mut qkv, mut attended, scores } = saved;
        self.output.backward_parameters(device, gradients.skip(0), &attended, dy);
        match scores {
            Scores::LogSumExp(logsumexp) => {
                qkv = self.backward_fused(device, parameters, qkv, attended, logsumexp, dy);
            }
            Scores::Probabilities(kept) => {
                self.output.backward_input(device, parameters, dy, &mut attended);
                self.backward_heads(device, &mut qkv, attended, Some(kept));
            }
            Scores::Dropped => {
                self.output.backward_input(device, parameters, dy, &mut attended);
                self.backward_heads(device, &mut qkv, attended, None);
            }
        }
        if let Some(rotary) = self.rotary {
            device.rotary(rotary, Direction::Backward, RegionMut::start(&mut qkv));
        }
        self.qkv.backward(device, parameters, gradients, h, qkv)
    }

    /// The gradient of query, key and value.
    fn backward_fused<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        qkv: B::Buffer,
        attended: B::Buffer,
        logsumexp: B::Buffer,
        dy: &B::Buffer,
    ) -> B::Buffer {
        let fused = device.fused_attention().expect("the device that fused the forward fuses the backward");
        let mut d_attended = device.uninitialised(self.output.rows * self.output.inputs);
        self.output.backward_input(device, parameters, dy, &mut d_attended);
        let mut d_qkv = device.uninitialised(self.qkv.rows * self.qkv.outputs);
        fused.backward(
            self.shape(),
            Region::start(&qkv),
            Region::start(&attended),
            Region::start(&d_attended),
            Region::start(&logsumexp),
            RegionMut::start(&mut d_qkv),
        );
        d_qkv
    }

    /// Replaces query, key and value by their gradients, head by head in place, given the gradient of the
    /// attention output.
    fn backward_heads<B: Backend>(
        &self,
        device: &B,
        qkv: &mut B::Buffer,
        d_attended: B::Buffer,
        kept: Option<B::Buffer>,
    ) {
        let at_once = device.heads_at_once(self.kv_heads);
        let head_len = self.seq_len * self.head_dim;
        let mut recomputed =
            if kept.is_none() { Some(device.uninitialised(at_once * self.scores_len())) } else { None };
        let mut d_scores = device.uninitialised(at_once * self.scores_len());
        let [mut d_query, mut d_key, mut d_value] =
            [(); 3].map(|()| device.uninitialised(at_once * head_len));
        let head = GemmShape::new(self.seq_len, self.head_dim, self.seq_len);
        let square = GemmShape::new(self.seq_len, self.seq_len, self.head_dim);

        for sequence in 0..self.micro_batch {
            for chunk in self.kv_chunks(device, sequence) {
                let (head, square) = (head.batched(chunk.count), square.batched(chunk.count));
                for heads in self.members(chunk) {
                    let (probabilities, offset) = match (&kept, &mut recomputed) {
                        (Some(kept), _) => (kept, self.probabilities_offset(heads)),
                        (None, Some(recomputed)) => {
                            self.probabilities(device, heads, qkv, RegionMut::start(recomputed));
                            (&*recomputed, 0)
                        }
                        (None, None) => unreachable!("probabilities are either kept or recomputed"),
                    };
                    let scores = self.scores(probabilities, offset);
                    let d_out = self.query_part(&d_attended, self.output.inputs, heads);
                    // The gradients of key/value heads are summed over their group of query heads.
                    let beta = if heads.member == 0 { 0.0 } else { 1.0 };
                    device.matmul(head, 1.0, scores.transposed(), d_out, beta, self.packed_mut(&mut d_value));
                    let d_probabilities =
                        RegionMut::start(&mut d_scores).rows(self.seq_len).batched(self.scores_len());
                    device.matmul(
                        square,
                        1.0,
                        d_out,
                        self.value(qkv, heads).transposed(),
                        0.0,
                        d_probabilities,
                    );
                    device.causal_softmax_backward(
                        heads.count,
                        self.seq_len,
                        self.scale(),
                        scores.region,
                        RegionMut::start(&mut d_scores),
                    );
                    let d_scores = self.scores(&d_scores, 0);
                    let query = self.query_part(qkv, self.qkv.outputs, heads);
                    device.matmul(head, 1.0, d_scores.transposed(), query, beta, self.packed_mut(&mut d_key));
                    device.matmul(
                        head,
                        1.0,
                        d_scores,
                        self.key(qkv, heads),
                        0.0,
                        self.packed_mut(&mut d_query),
                    );
                    let query = self.query_part_mut(qkv, self.qkv.outputs, heads);
                    device.copy_matrices(head, self.packed(&d_query), query);
                }
                device.copy_matrices(
                    head,
                    self.packed(&d_key),
                    self.kv_part_mut(qkv, self.key_column(), chunk),
                );
                device.copy_matrices(
                    head,
                    self.packed(&d_value),
                    self.kv_part_mut(qkv, self.value_column(), chunk),
                );
            }
        }
    }

    /// `softmax(query keyᵀ / sqrt(head_dim))`, causal.
    fn probabilities<B: Backend>(&self, device: &B, heads: Heads, qkv: &B::Buffer, mut to: RegionMut<'_, B>) {
        let product = GemmShape::new(self.seq_len, self.seq_len, self.head_dim).batched(heads.count);
        let query = self.query_part(qkv, self.qkv.outputs, heads);
        let scores = to.skip(0).rows(self.seq_len).batched(self.scores_len());
        device.matmul(product, self.scale(), query, self.key(qkv, heads).transposed(), 0.0, scores);
        device.causal_softmax(heads.count, self.seq_len, to);
    }

    fn heads(&self) -> usize {
        self.kv_heads * self.group
    }

    fn shape(&self) -> AttentionShape {
        AttentionShape {
            seq_len: self.seq_len,
            micro_batch: self.micro_batch,
            heads: self.heads(),
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: self.scale(),
        }
    }

    fn scale(&self) -> f64 {
        (self.head_dim as f64).sqrt().recip()
    }

    fn scores_len(&self) -> usize {
        self.seq_len * self.seq_len
    }

    fn probabilities_offset(&self, heads: Heads) -> usize {
        ((heads.sequence * self.group + heads.member) * self.kv_heads + heads.first_kv) * self.scores_len()
    }

    /// The key/value heads of a sequence, in chunks of `heads_at_once`.
    fn kv_chunks<B: Backend>(&self, device: &B, sequence: usize) -> impl Iterator<Item = Heads> + use<B> {
        let (kv_heads, at_once) = (self.kv_heads, device.heads_at_once(self.kv_heads));
        (0..kv_heads).step_by(at_once).map(move |first_kv| {
            let count = at_once.min(kv_heads - first_kv);
            Heads { sequence, member: 0, first_kv, count }
        })
    }

    /// The query heads that a chunk of key/value heads serves.
    fn members(&self, chunk: Heads) -> impl Iterator<Item = Heads> + use<> {
        (0..self.group).map(move |member| Heads { member, ..chunk })
    }

    // Matrices `[seq_len, head_dim]`, a batch over key/value heads, inside activations.

    fn query_column(&self, heads: Heads) -> usize {
        (heads.first_kv * self.group + heads.member) * self.head_dim
    }

    fn key_column(&self) -> usize {
        self.kv_heads * self.group * self.head_dim
    }

    fn value_column(&self) -> usize {
        self.key_column() + self.kv_heads * self.head_dim
    }

    /// The query heads' columns in rows of `width` (of `qkv`, or of `attended`).
    fn query_part<'a, B: Backend>(&self, buffer: &'a B::Buffer, width: usize, heads: Heads) -> Matrix<'a, B> {
        let region = Region::new(buffer, heads.sequence * width + self.query_column(heads));
        region.rows(self.micro_batch * width).batched(self.group * self.head_dim)
    }

    fn query_part_mut<'a, B: Backend>(
        &self,
        buffer: &'a mut B::Buffer,
        width: usize,
        heads: Heads,
    ) -> MatrixMut<'a, B> {
        let region = RegionMut::new(buffer, heads.sequence * width + self.query_column(heads));
        region.rows(self.micro_batch * width).batched(self.group * self.head_dim)
    }

    fn key<'a, B: Backend>(&self, qkv: &'a B::Buffer, heads: Heads) -> Matrix<'a, B> {
        self.kv_part(qkv, self.key_column(), heads)
    }

    fn value<'a, B: Backend>(&self, qkv: &'a B::Buffer, heads: Heads) -> Matrix<'a, B> {
        self.kv_part(qkv, self.value_column(), heads)
    }

    fn kv_part<'a, B: Backend>(&self, qkv: &'a B::Buffer, column: usize, heads: Heads) -> Matrix<'a, B> {
        let width = self.qkv.outputs;
        let region = Region::new(qkv, heads.sequence * width + column + heads.first_kv * self.head_dim);
        region.rows(self.micro_batch * width).batched(self.head_dim)
    }

    fn kv_part_mut<'a, B: Backend>(
        &self,
        qkv: &'a mut B::Buffer,
        column: usize,
        heads: Heads,
    ) -> MatrixMut<'a, B> {
        let width = self.qkv.outputs;
        let region = RegionMut::new(qkv, heads.sequence * width + column + heads.first_kv * self.head_dim);
        region.rows(self.micro_batch * width).batched(self.head_dim)
    }

    fn scores<'a, B: Backend>(&self, buffer: &'a B::Buffer, offset: usize) -> Matrix<'a, B> {
        Region::new(buffer, offset).rows(self.seq_len).batched(self.scores_len())
    }

    /// The heads, stored one after the other.
    fn packed<'a, B: Backend>(&self, buffer: &'a B::Buffer) -> Matrix<'a, B> {
        Region::start(buffer).rows(self.head_dim).batched(self.seq_len * self.head_dim)
    }

    fn packed_mut<'a, B: Backend>(&self, buffer: &'a mut B::Buffer) -> MatrixMut<'a, B> {
        RegionMut::start(buffer).rows(self.head_dim).batched(self.seq_len * self.head_dim)
    }
}
