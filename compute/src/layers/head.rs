use super::embedding::vocabulary_share;
use super::shape::{ParameterLayout, Sizes};
use crate::backend::{Backend, GemmShape, Region, RegionMut, TableShape};
use autodist_spec::model::ModelSpec;

/// Output projection and cross-entropy over this rank's share of the vocabulary (the final norm is a
/// [`NormLayer`](super::NormLayer) of its own).
///
/// The forward pass runs in steps: [`logits`](LmHead::logits), [`exponentials`](LmHead::exponentials),
/// [`loss`](LmHead::loss). The table is a separate argument because a tied one belongs to the embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct LmHead {
    tokens: usize,
    classes: TableShape,
    /// Offset of the table in the head's own parameters; `None` if it is tied to the embedding.
    pub table_offset: Option<usize>,
}

/// Statistics per row; they cover the whole vocabulary after the all-reduce over ranks.
pub struct HeadStatistics<B: Backend> {
    /// `[2, tokens]`: softmax denominators, then the targets' logits, both relative to the row's largest
    /// logit.
    pub sums: B::Buffer,
}

impl LmHead {
    pub(super) fn new(model: &ModelSpec, sizes: &Sizes, layout: &ParameterLayout) -> Self {
        let classes = vocabulary_share(model, sizes);
        Self { tokens: sizes.tokens, classes, table_offset: layout.find("output.weight") }
    }

    /// Logits `[tokens, local vocabulary]` of all rows, and the largest of each row, for an all-reduce (max)
    /// over ranks.
    pub fn logits<B: Backend>(
        &self,
        device: &B,
        table: Region<'_, B>,
        h: &B::Buffer,
    ) -> (B::Buffer, B::Buffer) {
        let TableShape { rows: vocab, width: hidden, .. } = self.classes;
        let mut logits = device.uninitialised(self.tokens * vocab);
        let product = GemmShape::new(self.tokens, vocab, hidden);
        let (h, table) = (Region::start(h).rows(hidden), table.rows(hidden).transposed());
        device.matmul(product, 1.0, h, table, 0.0, RegionMut::start(&mut logits).rows(vocab));
        let mut max = device.uninitialised_full(self.tokens);
        device.row_max(self.tokens, vocab, Region::start(&logits), RegionMut::start(&mut max));
        (logits, max)
    }

    /// Replaces logits by exponentials; the result's `sums` need an all-reduce over ranks.
    pub fn exponentials<B: Backend>(
        &self,
        device: &B,
        logits: &mut B::Buffer,
        max: B::Buffer,
        targets: &B::Indices,
    ) -> HeadStatistics<B> {
        let mut sums = device.uninitialised_full(2 * self.tokens);
        device.exponentials(
            self.classes,
            targets,
            Region::start(&max),
            RegionMut::start(logits),
            RegionMut::start(&mut sums),
        );
        HeadStatistics { sums }
    }

    /// Cross-entropy summed over the rows, in nats.
    pub fn loss<B: Backend>(&self, device: &B, statistics: &HeadStatistics<B>) -> B::Scalar {
        device.cross_entropy(self.tokens, Region::start(&statistics.sums))
    }

    /// This rank's partial sum of the gradient of `h`; the loss is multiplied by `scale`.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        table: Region<'_, B>,
        table_gradient: RegionMut<'_, B>,
        h: &B::Buffer,
        mut exponentials: B::Buffer,
        statistics: HeadStatistics<B>,
        targets: &B::Indices,
        scale: f64,
    ) -> B::Buffer {
        let TableShape { rows: vocab, width: hidden, .. } = self.classes;
        device.cross_entropy_backward(
            self.classes,
            targets,
            Region::start(&statistics.sums),
            scale,
            RegionMut::start(&mut exponentials),
        );
        drop(statistics);
        let d_logits = Region::start(&exponentials).rows(vocab);
        let product = GemmShape::new(vocab, hidden, self.tokens);
        let h = Region::start(h).rows(hidden);
        device.matmul(product, 1.0, d_logits.transposed(), h, 1.0, table_gradient.rows(hidden));
        let mut dh = device.uninitialised(self.tokens * hidden);
        let product = GemmShape::new(self.tokens, hidden, vocab);
        device.matmul(
            product,
            1.0,
            d_logits,
            table.rows(hidden),
            0.0,
            RegionMut::start(&mut dh).rows(hidden),
        );
        dh
    }
}
