use super::projection::{Inward, Outward};
use super::shape::{ParameterLayout, Sizes};
use crate::backend::{Backend, Region, RegionMut};
use autodist_spec::model::{Activation, ModelSpec};

/// The MLP with this rank's share of the inner width.
#[derive(Debug, Clone, PartialEq)]
pub struct Mlp {
    activation: Activation,
    /// Local inner width.
    ffn: usize,
    /// Up, or gate and up, in one GEMM.
    up: Inward,
    down: Outward,
}

/// The values before the activation; those after it are recomputed.
pub struct MlpSaved<B: Backend> {
    inner: B::Buffer,
}

impl Mlp {
    pub(super) fn new(model: &ModelSpec, sizes: &Sizes, block: &ParameterLayout) -> Self {
        let ffn = sizes.part(model.ffn);
        let (matrices, first) = match model.activation {
            Activation::Gelu => (1, ["mlp.up.weight", "mlp.up.bias"]),
            Activation::SwiGlu => (2, ["mlp.gate.weight", "mlp.gate.bias"]),
        };
        let up = Inward {
            rows: sizes.tokens,
            inputs: sizes.hidden,
            outputs: matrices * ffn,
            weight: block.offset(first[0]),
            bias: block.find(first[1]),
        };
        let down = Outward::new(sizes, ffn, block.offset("mlp.down.weight"), block.find("mlp.down.bias"));
        Self { activation: model.activation, ffn, up, down }
    }

    /// This rank's partial sum of `residual + bias + projection`, `[tokens, hidden]`. `h` has all rows,
    /// `residual` only this rank's.
    pub fn forward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        h: &B::Buffer,
        residual: &B::Buffer,
    ) -> (B::Buffer, MlpSaved<B>) {
        let inner = self.up.forward(device, parameters, h);
        let mut outer = device.uninitialised(self.up.rows * self.ffn);
        device.activation_forward(
            self.activation,
            self.up.rows,
            self.ffn,
            Region::start(&inner),
            RegionMut::start(&mut outer),
        );
        (self.down.forward(device, parameters, &outer, residual), MlpSaved { inner })
    }

    /// This rank's partial sum of the gradient of `h`, without the part through the residual connection.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        mut gradients: RegionMut<'_, B>,
        h: &B::Buffer,
        saved: MlpSaved<B>,
        dy: &B::Buffer,
    ) -> B::Buffer {
        let MlpSaved { mut inner } = saved;
        let mut outer = device.uninitialised(self.up.rows * self.ffn);
        self.down.backward_input(device, parameters, dy, &mut outer);
        device.activation_backward(
            self.activation,
            self.up.rows,
            self.ffn,
            RegionMut::start(&mut inner),
            RegionMut::start(&mut outer),
        );
        // Now `outer` holds the activations again and `inner` its own gradient.
        self.down.backward_parameters(device, gradients.skip(0), &outer, dy);
        drop(outer);
        self.up.backward(device, parameters, gradients, h, inner)
    }
}
