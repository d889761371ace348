//! Work and memory of low-rank adapters, and of frozen weights in fewer bits.

use crate::run::TrainingRun;
use crate::trainer::Trainer;
use crate::work::{GemmTime, linear_layer};
use autodist_spec::{Kernels, LoraTarget, Norm, Segment};

/// Kernels of an adapter's forward pass, relative to those of a block: of about 40 in eager PyTorch, seven more for
/// each adapted layer (casts of the input and the weights, two GEMMs, the scaling and the sum).
const LAUNCHES: f64 = 7.0 / 40.0;

/// Part of the memory's rate at which quantised weights are expanded. LitGPT's table of 2023 has LoRA on a 40 GB A100
/// with bitsandbytes' NF4 and without: 79 ms longer for each pass forward and backward of Llama 2 7B, 191 ms of 13B,
/// which are 420 and 340 of 1555 GB/s.
const EXPANSION: f64 = 0.25;

/// Beside the frozen layers of a segment, for one micro-batch on one rank.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct AdapterWork {
    pub forward: GemmTime,
    pub backward: GemmTime,
    /// Bytes that its elementwise kernels move.
    pub forward_bytes: f64,
    pub backward_bytes: f64,
    /// Bytes that the memory could move while the segment's quantised weights are expanded, once in each pass.
    pub expanded_bytes: f64,
    /// Elements that are trained.
    pub elements: f64,
    /// Launches, relative to those of the block without adapters.
    pub launches: f64,
    /// Bytes that are kept for the backward pass: what comes out of the first matrix and, by PEFT, a copy of the
    /// input of each adapted layer.
    pub kept: f64,
}

impl AdapterWork {
    /// Of a block's attention or MLP.
    pub fn of(run: &TrainingRun, segment: Segment, kernels: &Kernels) -> Self {
        let (training, word) = (&run.training, run.word());
        let mut work = Self::default();
        if !training.weights && !training.bits.is_whole() {
            let read = training.bits.bytes(word);
            work.expanded_bytes = (read + word) * kernels.weights() / EXPANSION;
        }
        let copies = run.copies_inputs();
        for one in training.adapter_kernels(&run.model, &run.block, segment, &run.shard()) {
            let (down, down_back) = linear_layer(run, one.rows, one.rank, one.into, true);
            let (up, up_back) = linear_layer(run, one.rows, one.out, one.rank, true);
            work.forward = work.forward + (down + up).times(one.count);
            work.backward = work.backward + (down_back + up_back).times(one.count);
            let [into, out] = [one.into, one.out].map(|width| word * one.count * one.rows * width);
            // The scaled result is added to that of the layer, the gradient of the input to the layer's.
            work.forward_bytes += 5.0 * out + if copies { 2.0 * into } else { 0.0 };
            work.backward_bytes += 2.0 * out + 3.0 * into;
            work.elements += one.count * one.rank * (one.into + one.out);
            work.launches += LAUNCHES;
            let inner = word * one.count * one.rows * one.rank;
            work.kept += inner + if copies { into } else { 0.0 };
        }
        work
    }
}

impl TrainingRun {
    /// Bytes that attention and the MLP of a block keep, each with its norm, beyond what fused kernels keep. An RMS norm
    /// keeps its input in fp32, and what the gradient of its weight needs; a SwiGLU what comes out of SiLU
    /// (scripts/kept_by_peft.py measures it in Transformers' Llama).
    pub(crate) fn kept_by_each_operation(&self) -> [f64; 2] {
        if !self.keeps_each {
            return [0.0; 2];
        }
        let norm = match self.model.norm {
            // One kernel in PyTorch.
            Norm::LayerNorm => 0.0,
            Norm::RmsNorm => {
                let own = if self.training.weights { self.word() } else { 0.0 };
                let input = if self.word() < 4.0 { 4.0 - self.word() } else { 0.0 };
                (input + own) * self.residual_rows()
            }
        };
        let inner = self.shard().tokens * self.block.inner_width() / f64::from(self.layout.tensor);
        let activation = if self.gated() { self.word() * inner } else { 0.0 };
        [norm, norm + activation]
    }

    /// Whether each adapter keeps a copy of its input of its own: PEFT's are in fp32, to which it casts what it reads,
    /// and autocast casts that back. Others share the tensor that the frozen layers read.
    fn copies_inputs(&self) -> bool {
        self.trainer.traits().shards_parameters || self.trainer == Trainer::Deepspeed
    }

    /// Bytes that frozen layers of a segment do not keep for the backward pass: the input of a layer serves the
    /// gradient of its weights only, or of its adapter. `inner` are those of an input of the MLP's last matrix.
    pub(crate) fn not_kept(&self, segment: Segment, inner: f64) -> f64 {
        let reads_norm: &[LoraTarget] = match segment {
            Segment::Attention => &[LoraTarget::Q, LoraTarget::K, LoraTarget::V],
            _ => &[LoraTarget::Gate, LoraTarget::Up],
        };
        let keeps = |layers: &[LoraTarget]| {
            let shares = self.training.weights || !self.copies_inputs();
            shares && self.training.keeps_input_of(layers)
        };
        let norm = if keeps(reads_norm) { 0.0 } else { self.word() * self.residual_rows() };
        let last = segment == Segment::Mlp && !keeps(&[LoraTarget::Down]);
        norm + if last { inner } else { 0.0 }
    }
}
