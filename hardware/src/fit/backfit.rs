//! Tables that correct the residuals of a physical model, by least squares with a roughness penalty.

use crate::tables::{Axis, Corrections, PAIRS};

/// Logarithm of measured / modelled, and the logarithms of the sizes of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Residual {
    pub logs: [f64; 3],
    pub value: f64,
}

/// Smoothing of the tables.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Smoothing {
    /// Weight of the squared difference of neighbours in a table of two sizes, relative to one measurement.
    pub neighbours: f64,
    /// Weight of the squared value in the table of three sizes.
    pub shrinkage: f64,
    /// Errors beyond this have a constant influence (Huber 1964): rows of another library, or of another
    /// machine.
    pub outlier: f64,
    /// Iterations over all tables.
    pub sweeps: usize,
}

/// The cells of a table that a measurement reads, and their weights.
type Reads = Vec<Vec<(u32, f32)>>;

/// Backfitting (Friedman and Stuetzle 1981): each table in turn is fitted to the residuals of the others, one
/// Jacobi step at a time.
pub(crate) fn backfit(tables: &mut Corrections, residuals: &[Residual], smoothing: Smoothing) {
    let reads: Vec<Reads> = PAIRS
        .iter()
        .map(|&(x, y)| reads(&[&tables.fine[x], &tables.fine[y]], &[x, y], residuals))
        .chain([reads(&tables.coarse.each_ref().map(|axis| axis), &[0, 1, 2], residuals)])
        .collect();
    let mut left: Vec<f64> = residuals.iter().map(|residual| residual.value).collect();
    for _ in 0..smoothing.sweeps {
        for (table, reads) in reads.iter().enumerate() {
            let (values, columns, neighbours, shrinkage) = match PAIRS.get(table) {
                Some(&(_, y)) => (&mut tables.pairs[table], tables.fine[y].len(), smoothing.neighbours, 0.0),
                None => (&mut tables.block, 0, 0.0, smoothing.shrinkage),
            };
            let trust: Vec<f64> = left.iter().map(|left| (smoothing.outlier / left.abs()).min(1.0)).collect();
            let steps = steps(values, columns, reads, (&left, &trust), neighbours, shrinkage);
            for (read, left) in reads.iter().zip(&mut left) {
                *left -=
                    read.iter().map(|(cell, weight)| steps[*cell as usize] * f64::from(*weight)).sum::<f64>();
            }
            values.iter_mut().zip(&steps).for_each(|(value, step)| *value += step);
        }
    }
}

/// The update of each cell of a table: only the diagonal of the normal equations is used.
fn steps(
    values: &[f64],
    columns: usize,
    reads: &Reads,
    (left, trust): (&[f64], &[f64]),
    neighbours: f64,
    shrinkage: f64,
) -> Vec<f64> {
    let mut pull: Vec<f64> = values.iter().map(|value| -shrinkage * value).collect();
    let mut weight = vec![shrinkage; values.len()];
    for ((read, left), trust) in reads.iter().zip(left).zip(trust) {
        for (cell, part) in read {
            pull[*cell as usize] += f64::from(*part) * trust * left;
            weight[*cell as usize] += f64::from(*part) * trust;
        }
    }
    if neighbours > 0.0 {
        for cell in 0..values.len() {
            let (row, column) = (cell / columns, cell % columns);
            let beside = [
                (row > 0).then(|| cell - columns),
                (cell + columns < values.len()).then_some(cell + columns),
                (column > 0).then(|| cell - 1),
                (column + 1 < columns).then_some(cell + 1),
            ];
            for other in beside.into_iter().flatten() {
                pull[cell] += neighbours * (values[other] - values[cell]);
                weight[cell] += neighbours;
            }
        }
    }
    pull.iter().zip(&weight).map(|(pull, weight)| if *weight > 0.0 { pull / weight } else { 0.0 }).collect()
}

fn reads(axes: &[&Axis], sizes: &[usize], residuals: &[Residual]) -> Reads {
    let corners = |residual: &Residual| {
        let mut corners = vec![(0usize, 1.0f64)];
        for (axis, size) in axes.iter().zip(sizes) {
            let place = axis.place(residual.logs[*size]);
            let ends = [(place.lower, 1.0 - place.part), (place.lower + 1, place.part)];
            corners = corners
                .iter()
                .flat_map(|(cell, weight)| ends.map(|(end, part)| (cell * axis.len() + end, weight * part)))
                .filter(|(_, weight)| *weight > 1e-9)
                .collect();
        }
        corners.into_iter().map(|(cell, weight)| (cell as u32, weight as f32)).collect()
    };
    residuals.iter().map(corners).collect()
}

/// Rounds all values to the precision of the parameter file.
pub(crate) fn round(tables: &mut Corrections, quantum: f64) {
    let values = tables.pairs.iter_mut().chain([&mut tables.block]).flatten();
    values.for_each(|value| *value = (*value / quantum).round() * quantum);
}
