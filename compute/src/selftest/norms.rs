//! LayerNorm and RMSNorm.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, both};
use crate::backend::{Backend, NormShape};
use autodist_spec::model::Norm;

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for norm in [Norm::LayerNorm, Norm::RmsNorm] {
        for (rows, width) in [(1, 37), (5, 37), (13, 300), (33, 5), (16, 64)] {
            let shape = NormShape { norm, rows, width, epsilon: 1e-5 };
            for with_residual in [false, true] {
                check(lab, shape, with_residual)?;
            }
        }
    }
    Ok(())
}

fn check<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, shape: NormShape, with_residual: bool) -> Outcome {
    let NormShape { norm, rows, width, .. } = shape;
    let (name, numbers_per_row, parameters_len) = match norm {
        Norm::LayerNorm => ("LayerNorm", 2, 2 * width),
        Norm::RmsNorm => ("RMSNorm", 1, width),
    };
    let case = format!("{name}, {rows} rows of {width}");
    let (r, len) = (lab.rounding, rows * width);
    let parameters = lab.around(1.0, 0.5, parameters_len);
    let parameters = lab.upload(BufferPrecision::Working, &parameters);
    // Numbers whose mean is far from zero.
    let x = lab.around(0.5, 1.0, len);
    let x = lab.upload(BufferPrecision::Working, &x);
    let mut y = lab.blank(BufferPrecision::Working, len);
    let mut statistics = lab.blank(BufferPrecision::Full, rows * numbers_per_row);
    both!(lab, on, [parameters, x], [y, statistics], {
        on.norm_forward(shape, parameters.region(), x.region(), y.region_mut(), statistics.region_mut());
    });
    if !with_residual {
        // Means over the row in full precision; y is stored once.
        lab.check("norm_forward", &case, r.result(BufferPrecision::Working) + r.sum(width), &y)?;
        let tolerance = r.result(BufferPrecision::Full) + r.sum(width);
        lab.check("norm_forward", &format!("{case}, statistics"), tolerance, &statistics)?;
    }

    // Both backward passes use the CPU's statistics.
    let statistics = lab.upload(BufferPrecision::Full, &statistics.exact(rows * numbers_per_row));
    let residual = if with_residual { Some(lab.random(BufferPrecision::Working, len)) } else { None };
    let (mut gradient, mut gradients) =
        (lab.random(BufferPrecision::Working, len), lab.random(BufferPrecision::Full, parameters_len));
    match residual {
        Some(residual) => {
            both!(lab, on, [parameters, x, statistics, residual], [gradient, gradients], {
                on.norm_backward(
                    shape,
                    parameters.region(),
                    gradients.region_mut(),
                    x.region(),
                    statistics.region(),
                    Some(residual.region()),
                    gradient.region_mut(),
                );
            });
        }
        None => {
            both!(lab, on, [parameters, x, statistics], [gradient, gradients], {
                on.norm_backward(
                    shape,
                    parameters.region(),
                    gradients.region_mut(),
                    x.region(),
                    statistics.region(),
                    None,
                    gradient.region_mut(),
                );
            });
        }
    }
    let case = if with_residual { format!("{case}, residual") } else { case };
    // Two means over the row and a difference, stored once.
    lab.check("norm_backward", &case, r.result(BufferPrecision::Working) + r.sum(width), &gradient)?;
    // Sums over rows in full precision.
    let tolerance = r.result(BufferPrecision::Full) + r.sum(rows + 1);
    lab.check("norm_backward", &format!("{case}, parameters"), tolerance, &gradients)
}
