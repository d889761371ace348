//! The position of each local parameter in the whole model, and its initial values.

use crate::random::RandomStream;
use autodist_program::Bucket;
use autodist_spec::model::{Init, share};
use autodist_spec::{ModelSpec, Parameter, TensorSplit};
use std::ops::Range;

/// The local part of a parameter in a bucket.
struct Placed {
    layer: usize,
    index: usize,
    parameter: Parameter,
    /// Range of elements in the bucket.
    range: Range<usize>,
    local_columns: usize,
    first_row: usize,
    first_column: usize,
}

/// An element of the whole model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModelElement {
    pub layer: usize,
    /// Index in `ModelSpec::parameters`.
    pub parameter: usize,
    /// Row-major index in the whole parameter.
    pub position: usize,
}

fn placed(model: &ModelSpec, bucket: &Bucket, tensor_rank: usize, degree: usize) -> Vec<Placed> {
    let mut list = Vec::new();
    for layer in &bucket.layers {
        let mut offset = layer.offset;
        for (index, parameter) in model.parameters(layer.layer).into_iter().enumerate() {
            let (rows, columns) = parameter.local_shape(tensor_rank as u32, degree as u32);
            let first = |total| share(total, tensor_rank as u64, degree as u64).start as usize;
            let (first_row, first_column) = match parameter.split {
                TensorSplit::Rows => (first(parameter.rows), 0),
                TensorSplit::Columns => (0, first(parameter.columns)),
                TensorSplit::Replicated => (0, 0),
            };
            let elements = (rows * columns) as usize;
            list.push(Placed {
                layer: layer.layer,
                index,
                parameter,
                range: offset..offset + elements,
                local_columns: columns as usize,
                first_row,
                first_column,
            });
            offset += elements;
        }
    }
    list
}

/// Calls `visit` with every element of `range` of the bucket except padding: its index in the bucket, and its
/// position in the model.
pub fn elements(
    model: &ModelSpec,
    bucket: &Bucket,
    tensor_rank: usize,
    degree: usize,
    range: Range<usize>,
    mut visit: impl FnMut(usize, ModelElement, &Parameter),
) {
    for placed in placed(model, bucket, tensor_rank, degree) {
        for at in placed.range.start.max(range.start)..placed.range.end.min(range.end) {
            let local = at - placed.range.start;
            let row = placed.first_row + local / placed.local_columns;
            let column = placed.first_column + local % placed.local_columns;
            let position = row * placed.parameter.columns as usize + column;
            visit(
                at,
                ModelElement { layer: placed.layer, parameter: placed.index, position },
                &placed.parameter,
            );
        }
    }
}

/// The initial values of `range` of a bucket (Radford et al. 2019, section 2.3: projections onto the residual
/// stream are scaled by the number of layers). They do not depend on how the model is sharded.
pub fn initial(
    model: &ModelSpec,
    bucket: &Bucket,
    tensor_rank: usize,
    degree: usize,
    range: Range<usize>,
    seed: u64,
) -> Vec<f32> {
    let mut values = vec![0.0; range.len()];
    let scaled = 0.02 / (2.0 * f64::from(model.layers)).sqrt();
    let start = range.start;
    elements(model, bucket, tensor_rank, degree, range, |at, element, parameter| {
        let normal = |deviation: f64| {
            let stream = RandomStream::new(&[seed, 0x1217, element.layer as u64, element.parameter as u64]);
            (deviation * stream.normal(element.position as u64)) as f32
        };
        values[at - start] = match parameter.init {
            Init::Normal => normal(0.02),
            Init::ScaledNormal => normal(scaled),
            Init::Zeros => 0.0,
            Init::Ones => 1.0,
        };
    });
    values
}
