//! Projections into a segment and back onto the residual stream (Shoeybi et al., Megatron-LM, 1909.08053).

use super::shape::Sizes;
use crate::backend::{Backend, GemmShape, Region, RegionMut};
use std::ops::Range;

/// `y = x Wᵀ + b` with this rank's share of the output features: column-parallel.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Inward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub weight: usize,
    pub bias: Option<usize>,
}

impl Inward {
    pub fn forward<B: Backend>(&self, device: &B, parameters: Region<'_, B>, x: &B::Buffer) -> B::Buffer {
        let mut y = device.uninitialised(self.rows * self.outputs);
        let weight = parameters.skip(self.weight).rows(self.inputs).transposed();
        let x = Region::start(x).rows(self.inputs);
        let product = GemmShape::new(self.rows, self.outputs, self.inputs);
        device.matmul(product, 1.0, x, weight, 0.0, RegionMut::start(&mut y).rows(self.outputs));
        if let Some(bias) = self.bias {
            device.add_row(self.rows, self.outputs, parameters.skip(bias), RegionMut::start(&mut y));
        }
        y
    }

    /// This rank's part of the gradient of `x`.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        mut gradients: RegionMut<'_, B>,
        x: &B::Buffer,
        dy: B::Buffer,
    ) -> B::Buffer {
        let dy_rows = Region::start(&dy).rows(self.outputs);
        let product = GemmShape::new(self.outputs, self.inputs, self.rows);
        let x = Region::start(x).rows(self.inputs);
        let weight_gradient = gradients.skip(self.weight).rows(self.inputs);
        device.matmul(product, 1.0, dy_rows.transposed(), x, 1.0, weight_gradient);
        if let Some(bias) = self.bias {
            device.sum_rows(self.rows, self.outputs, Region::start(&dy), gradients.skip(bias));
        }
        let mut dx = device.uninitialised(self.rows * self.inputs);
        let product = GemmShape::new(self.rows, self.inputs, self.outputs);
        let weight = parameters.skip(self.weight).rows(self.inputs);
        device.matmul(product, 1.0, dy_rows, weight, 0.0, RegionMut::start(&mut dx).rows(self.inputs));
        dx
    }
}

/// `y = x Wᵀ` from this rank's share of the input features: row-parallel, so `y` is a partial sum. Residual
/// and bias are added in the rows that this rank contributes them to.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Outward {
    pub rows: usize,
    pub inputs: usize,
    pub outputs: usize,
    pub weight: usize,
    pub bias: Option<usize>,
    /// Rows in which this rank's `y` includes residual and bias.
    pub contributed_rows: Range<usize>,
    /// Rows over which this rank sums the bias' gradient.
    pub bias_rows: Range<usize>,
}

impl Outward {
    pub fn new(sizes: &Sizes, inputs: usize, weight: usize, bias: Option<usize>) -> Self {
        Self {
            rows: sizes.tokens,
            inputs,
            outputs: sizes.hidden,
            weight,
            bias,
            contributed_rows: sizes.contributed_rows.clone(),
            bias_rows: sizes.rows.clone(),
        }
    }

    /// `residual` holds this rank's rows; a rank that contributes no rows does not read it.
    pub fn forward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        x: &B::Buffer,
        residual: &B::Buffer,
    ) -> B::Buffer {
        let mut y = device.uninitialised(self.rows * self.outputs);
        let Range { start, end } = self.contributed_rows;
        if start < end {
            let len = (end - start) * self.outputs;
            let offset = start * self.outputs;
            device.copy(len, Region::start(residual), RegionMut::new(&mut y, offset));
            if let Some(bias) = self.bias {
                device.add_row(
                    end - start,
                    self.outputs,
                    parameters.skip(bias),
                    RegionMut::new(&mut y, offset),
                );
            }
        }
        let weight = parameters.skip(self.weight).rows(self.inputs).transposed();
        for (rows, beta) in [(0..start, 0.0), (start..end, 1.0), (end..self.rows, 0.0)] {
            if rows.is_empty() {
                continue;
            }
            let product = GemmShape::new(rows.len(), self.outputs, self.inputs);
            let x = Region::new(x, rows.start * self.inputs).rows(self.inputs);
            let y = RegionMut::new(&mut y, rows.start * self.outputs).rows(self.outputs);
            device.matmul(product, 1.0, x, weight, beta, y);
        }
        y
    }

    /// Adds the gradients of weight and bias, given the input of forward.
    pub fn backward_parameters<B: Backend>(
        &self,
        device: &B,
        mut gradients: RegionMut<'_, B>,
        x: &B::Buffer,
        dy: &B::Buffer,
    ) {
        let product = GemmShape::new(self.outputs, self.inputs, self.rows);
        let dy_columns = Region::start(dy).rows(self.outputs).transposed();
        let x = Region::start(x).rows(self.inputs);
        device.matmul(product, 1.0, dy_columns, x, 1.0, gradients.skip(self.weight).rows(self.inputs));
        if let Some(bias) = self.bias {
            let dy = Region::new(dy, self.bias_rows.start * self.outputs);
            device.sum_rows(self.bias_rows.len(), self.outputs, dy, gradients.skip(bias));
        }
    }

    /// The gradient of forward's input, written over `dx`.
    pub fn backward_input<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        dy: &B::Buffer,
        dx: &mut B::Buffer,
    ) {
        let product = GemmShape::new(self.rows, self.inputs, self.outputs);
        let weight = parameters.skip(self.weight).rows(self.inputs);
        let dy = Region::start(dy).rows(self.outputs);
        device.matmul(product, 1.0, dy, weight, 0.0, RegionMut::start(dx).rows(self.inputs));
    }
}
