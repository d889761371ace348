//! Runs the segments of one micro-batch through one chunk, and keeps activations for the backward pass.

use crate::store::Store;
use autodist_compute::layers::{AttentionSaved, HeadStatistics, LayerShape, MlpSaved, NormStatistics};
use autodist_compute::{Backend, Region, RegionMut};
use autodist_spec::{Pass, Recompute, Segment};
use std::collections::BTreeMap;

/// The activations that one layer keeps between its forward and its backward pass.
struct Kept<B: Backend> {
    /// Input of the first norm, which is also the residual.
    x: Option<B::Buffer>,
    statistics: Option<NormStatistics<B>>,
    /// Output of that norm: this rank's rows.
    h: Option<B::Buffer>,
    attention: Option<AttentionSaved<B>>,
    /// Input of the second half of the block.
    x2: Option<B::Buffer>,
    statistics2: Option<NormStatistics<B>>,
    h2: Option<B::Buffer>,
    mlp: Option<MlpSaved<B>>,
    /// Logits, later their exponentials.
    logits: Option<B::Buffer>,
    head: Option<HeadStatistics<B>>,
}

impl<B: Backend> Default for Kept<B> {
    fn default() -> Self {
        Self {
            x: None,
            statistics: None,
            h: None,
            attention: None,
            x2: None,
            statistics2: None,
            h2: None,
            mlp: None,
            logits: None,
            head: None,
        }
    }
}

impl<B: Backend> Kept<B> {
    /// The kept input of a block's second half, or of any other segment.
    fn input_of(&mut self, segment: Segment) -> &mut Option<B::Buffer> {
        if segment == Segment::Mlp { &mut self.h2 } else { &mut self.h }
    }
}

/// The state of one micro-batch in one chunk.
pub struct Frame<B: Backend> {
    /// Output of the last operation: an activation in the forward pass, a gradient in the backward pass.
    pub flow: Option<B::Buffer>,
    /// The gradient that bypasses the segment on the residual connection.
    residual_gradient: Option<B::Buffer>,
    /// The gradient that is kept while a block is recomputed.
    held: Option<B::Buffer>,
    kept: BTreeMap<usize, Kept<B>>,
    pub inputs: Option<B::Indices>,
    pub targets: Option<B::Indices>,
    /// Loss summed over the tokens, after the head has run.
    pub loss: Option<B::Scalar>,
}

impl<B: Backend> Default for Frame<B> {
    fn default() -> Self {
        Self {
            flow: None,
            residual_gradient: None,
            held: None,
            kept: BTreeMap::new(),
            inputs: None,
            targets: None,
            loss: None,
        }
    }
}

/// Gets a value that must be present, by the order of the Program.
macro_rules! expect_buffer {
    ($option:expr) => {
        $option.expect("the Program has put this value in place")
    };
}

/// The rows of this tensor-parallel rank, and the number of all rows.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    pub sequence_parallel: bool,
    pub start: usize,
    pub len: usize,
    pub whole: usize,
}

/// The context in which segments run.
pub struct Context<'a, B: Backend> {
    pub device: &'a B,
    pub shape: &'a LayerShape,
    pub rows: Rows,
    /// Whether the head's table is that of the embedding.
    pub tied: bool,
    /// Factor of the loss: one divided by the tokens of the global batch.
    pub loss_scale: f64,
}

impl<B: Backend<Element = f32>> Context<'_, B> {
    /// Runs one segment.
    pub fn run(
        &self,
        store: &mut Store<B>,
        frame: &mut Frame<B>,
        layer: usize,
        segment: Segment,
        pass: Pass,
        recompute: Recompute,
    ) {
        match pass {
            Pass::Forward | Pass::Recompute => self.forward(store, frame, layer, segment, pass, recompute),
            Pass::Backward => self.backward(store, frame, layer, segment),
        }
    }

    fn forward(
        &self,
        store: &Store<B>,
        frame: &mut Frame<B>,
        layer: usize,
        segment: Segment,
        pass: Pass,
        recompute: Recompute,
    ) {
        let (device, shape) = (self.device, self.shape);
        let at = expect_buffer!(store.find(layer));
        // Under full recomputation the first forward pass keeps only the block's input.
        let keep = pass == Pass::Recompute || recompute != Recompute::Full;
        let keep_probabilities = recompute != Recompute::Selective;
        let kept = frame.kept.entry(layer).or_default();
        match segment {
            Segment::Embedding => {
                let tokens = expect_buffer!(frame.inputs.as_ref());
                frame.flow = Some(shape.embedding.forward(device, store.parameters(at), tokens));
            }
            Segment::AttentionNorm => {
                if pass == Pass::Recompute {
                    frame.held = frame.flow.take();
                } else {
                    kept.x = frame.flow.take();
                }
                let x = expect_buffer!(kept.x.as_ref());
                let (h, statistics) = shape.attention_norm.forward(device, store.parameters(at), x);
                kept.statistics = keep.then_some(statistics);
                self.pass_on(&mut frame.flow, &mut kept.h, h);
            }
            Segment::Attention => {
                let h = expect_buffer!(frame.flow.take());
                let residual = expect_buffer!(kept.x.as_ref());
                let (out, saved) = shape.attention.forward(
                    device,
                    store.parameters(at),
                    &h,
                    residual,
                    keep && keep_probabilities,
                );
                kept.attention = keep.then_some(saved);
                self.keep_input(&mut kept.h, h, keep);
                frame.flow = Some(out);
            }
            Segment::MlpNorm => {
                kept.x2 = frame.flow.take();
                let x2 = expect_buffer!(kept.x2.as_ref());
                let (h, statistics) = shape.mlp_norm.forward(device, store.parameters(at), x2);
                kept.statistics2 = keep.then_some(statistics);
                self.pass_on(&mut frame.flow, &mut kept.h2, h);
            }
            Segment::Mlp => {
                let h = expect_buffer!(frame.flow.take());
                let residual = expect_buffer!(kept.x2.as_ref());
                let (out, saved) = shape.mlp.forward(device, store.parameters(at), &h, residual);
                kept.mlp = keep.then_some(saved);
                self.keep_input(&mut kept.h2, h, keep);
                if !keep {
                    kept.x2 = None;
                }
                // After recomputation, the block's output is not needed: the flow continues with the kept
                // gradient.
                frame.flow = if pass == Pass::Recompute { frame.held.take() } else { Some(out) };
            }
            Segment::FinalNorm => {
                kept.x = frame.flow.take();
                let x = expect_buffer!(kept.x.as_ref());
                let (h, statistics) = shape.final_norm.forward(device, store.parameters(at), x);
                kept.statistics = Some(statistics);
                self.pass_on(&mut frame.flow, &mut kept.h, h);
            }
            Segment::Logits => {
                let h = expect_buffer!(frame.flow.take());
                let (logits, max) = shape.head.logits(device, self.table(store, layer), &h);
                self.keep_input(&mut kept.h, h, true);
                kept.logits = Some(logits);
                frame.flow = Some(max);
            }
            Segment::Normalizer => {
                let max = expect_buffer!(frame.flow.take());
                let targets = expect_buffer!(frame.targets.as_ref());
                let statistics =
                    shape.head.exponentials(device, expect_buffer!(kept.logits.as_mut()), max, targets);
                frame.flow = Some(statistics.sums);
            }
            Segment::Loss => {
                let statistics = HeadStatistics { sums: expect_buffer!(frame.flow.take()) };
                frame.loss = Some(shape.head.loss(device, &statistics));
                kept.head = Some(statistics);
            }
        }
    }

    fn backward(&self, store: &mut Store<B>, frame: &mut Frame<B>, layer: usize, segment: Segment) {
        let (device, shape) = (self.device, self.shape);
        let at = expect_buffer!(store.find(layer));
        let kept = frame.kept.entry(layer).or_default();
        match segment {
            Segment::Embedding => {
                let dy = expect_buffer!(frame.flow.take());
                let tokens = expect_buffer!(frame.inputs.as_ref());
                let (_, gradients) = store.region(at);
                shape.embedding.backward(device, gradients, tokens, &dy);
                frame.residual_gradient = None;
                frame.kept.remove(&layer);
            }
            Segment::AttentionNorm | Segment::FinalNorm => {
                let norm =
                    if segment == Segment::FinalNorm { &shape.final_norm } else { &shape.attention_norm };
                let dh = expect_buffer!(frame.flow.take());
                let (x, statistics) = (expect_buffer!(kept.x.take()), expect_buffer!(kept.statistics.take()));
                let residual = frame.residual_gradient.take();
                let (parameters, gradients) = store.region(at);
                frame.flow =
                    Some(norm.backward(device, parameters, gradients, &x, statistics, dh, residual.as_ref()));
                frame.kept.remove(&layer);
            }
            Segment::MlpNorm => {
                let dh = expect_buffer!(frame.flow.take());
                let (x, statistics) =
                    (expect_buffer!(kept.x2.take()), expect_buffer!(kept.statistics2.take()));
                let residual = frame.residual_gradient.take();
                let (parameters, gradients) = store.region(at);
                let dx = shape.mlp_norm.backward(
                    device,
                    parameters,
                    gradients,
                    &x,
                    statistics,
                    dh,
                    residual.as_ref(),
                );
                frame.flow = Some(dx);
            }
            Segment::Attention => {
                let (h, saved) = (expect_buffer!(kept.h.take()), expect_buffer!(kept.attention.take()));
                let dy = expect_buffer!(frame.flow.take());
                let (parameters, gradients) = store.region(at);
                let dh = shape.attention.backward(device, parameters, gradients, &h, saved, &dy);
                self.go_round(&mut frame.residual_gradient, dy);
                frame.flow = Some(dh);
            }
            Segment::Mlp => {
                let (h, saved) = (expect_buffer!(kept.h2.take()), expect_buffer!(kept.mlp.take()));
                let dy = expect_buffer!(frame.flow.take());
                let (parameters, gradients) = store.region(at);
                let dh = shape.mlp.backward(device, parameters, gradients, &h, saved, &dy);
                self.go_round(&mut frame.residual_gradient, dy);
                frame.flow = Some(dh);
            }
            Segment::Loss => {
                let h = expect_buffer!(kept.h.take());
                let (exponentials, statistics) =
                    (expect_buffer!(kept.logits.take()), expect_buffer!(kept.head.take()));
                let targets = expect_buffer!(frame.targets.as_ref());
                let (parameters, gradients) = store.region(self.table_place(store, layer));
                let dh = shape.head.backward(
                    device,
                    parameters,
                    gradients,
                    &h,
                    exponentials,
                    statistics,
                    targets,
                    self.loss_scale,
                );
                frame.flow = Some(dh);
            }
            Segment::Logits | Segment::Normalizer => {
                unreachable!("the head's backward is one segment: Loss")
            }
        }
    }

    /// The location of the head's table: in the head's own region, or in that of the embedding.
    fn table_place(&self, store: &Store<B>, layer: usize) -> (usize, usize) {
        let owner = if self.tied { 0 } else { layer };
        let (bucket, offset) = expect_buffer!(store.find(owner));
        (bucket, offset + self.shape.head.table_offset.unwrap_or(0))
    }

    fn table<'s>(&self, store: &'s Store<B>, layer: usize) -> Region<'s, B> {
        store.parameters(self.table_place(store, layer))
    }

    /// Passes on a norm's output: with sharded rows it is kept for the next gather; otherwise it is the input
    /// of the next segment.
    fn pass_on(&self, flow: &mut Option<B::Buffer>, kept: &mut Option<B::Buffer>, h: B::Buffer) {
        *(if self.rows.sequence_parallel { kept } else { flow }) = Some(h);
    }

    /// Keeps a GEMM's input after its use: with sharded rows this rank's part is already kept, so the whole
    /// is dropped.
    fn keep_input(&self, kept: &mut Option<B::Buffer>, h: B::Buffer, keep: bool) {
        if !keep {
            *kept = None;
        } else if !self.rows.sequence_parallel {
            *kept = Some(h);
        }
    }

    /// Keeps the gradient of the residual connection: with sharded rows it was already kept when they were
    /// gathered.
    fn go_round(&self, residual_gradient: &mut Option<B::Buffer>, dy: B::Buffer) {
        if !self.rows.sequence_parallel {
            *residual_gradient = Some(dy);
        }
    }

    /// A buffer for all rows with this rank's rows in place, ready to be gathered. In the forward pass, these
    /// rows are those that the last norm kept; in the backward pass, they are the current gradient, which the
    /// residual connection also uses.
    pub fn begin_gather(
        &self,
        frame: &mut Frame<B>,
        layer: usize,
        segment: Segment,
        operand_saved: bool,
    ) -> B::Buffer {
        let mut whole = self.device.uninitialised(self.rows.whole);
        let kept = frame.kept.entry(layer).or_default();
        let slot = kept.input_of(segment);
        let to = RegionMut::new(&mut whole, self.rows.start);
        if operand_saved {
            let rows = expect_buffer!(slot.take());
            self.device.copy(self.rows.len, Region::start(&rows), to);
        } else if let Some(rows) = frame.flow.take() {
            self.device.copy(self.rows.len, Region::start(&rows), to);
            frame.residual_gradient = Some(rows);
        } else {
            self.device.copy(self.rows.len, Region::start(expect_buffer!(slot.as_ref())), to);
        }
        whole
    }

    /// Stores gathered rows as the input of the next segment.
    pub fn end_gather(
        &self,
        frame: &mut Frame<B>,
        layer: usize,
        segment: Segment,
        operand_saved: bool,
        whole: B::Buffer,
    ) {
        if !operand_saved {
            frame.flow = Some(whole);
            return;
        }
        *frame.kept.entry(layer).or_default().input_of(segment) = Some(whole);
    }

    /// Keeps this rank's rows of a reduced activation for the next segment.
    pub fn scatter(&self, frame: &mut Frame<B>, whole: B::Buffer) {
        let mut rows = self.device.uninitialised(self.rows.len);
        self.device.copy(self.rows.len, Region::new(&whole, self.rows.start), RegionMut::start(&mut rows));
        frame.flow = Some(rows);
    }
}
