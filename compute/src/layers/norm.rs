use super::shape::Sizes;
use crate::backend::{Backend, NormShape, Region, RegionMut};
use autodist_spec::model::{self, ModelSpec};

/// LayerNorm or RMSNorm of this rank's rows of the residual stream.
#[derive(Debug, Clone, PartialEq)]
pub struct NormLayer {
    shape: NormShape,
    /// The weight's offset; the bias, if any, follows it.
    offset: usize,
}

/// One or two numbers per row.
pub struct NormStatistics<B: Backend>(B::Buffer);

impl NormLayer {
    pub(super) fn new(model: &ModelSpec, sizes: &Sizes, offset: usize) -> Self {
        let shape = NormShape {
            norm: model.norm,
            rows: sizes.rows.len(),
            width: sizes.hidden,
            epsilon: model.norm_epsilon,
        };
        Self { shape, offset }
    }

    /// The normalised rows, and the statistics that backward needs in addition to `x`.
    pub fn forward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        x: &B::Buffer,
    ) -> (B::Buffer, NormStatistics<B>) {
        let per_row = match self.shape.norm {
            model::Norm::LayerNorm => 2,
            model::Norm::RmsNorm => 1,
        };
        let mut h = device.uninitialised(self.shape.rows * self.shape.width);
        let mut statistics = device.uninitialised_full(self.shape.rows * per_row);
        device.norm_forward(
            self.shape,
            parameters.skip(self.offset),
            Region::start(x),
            RegionMut::start(&mut h),
            RegionMut::start(&mut statistics),
        );
        (h, NormStatistics(statistics))
    }

    /// The gradient of `x`: that of `h` through the norm, computed in place of `dh`, plus
    /// `residual_gradient`, that of the residual connection.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        mut gradients: RegionMut<'_, B>,
        x: &B::Buffer,
        statistics: NormStatistics<B>,
        mut dh: B::Buffer,
        residual_gradient: Option<&B::Buffer>,
    ) -> B::Buffer {
        device.norm_backward(
            self.shape,
            parameters.skip(self.offset),
            gradients.skip(self.offset),
            Region::start(x),
            Region::start(&statistics.0),
            residual_gradient.map(Region::start),
            RegionMut::start(&mut dh),
        );
        dh
    }
}
