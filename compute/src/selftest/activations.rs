//! GELU and SwiGLU.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, both};
use crate::backend::Backend;
use autodist_spec::model::Activation;

/// Where exponentials overflow or vanish.
const EXTREMES: [f64; 8] = [-1000.0, -100.0, -30.0, -0.0, 1e-20, 30.0, 100.0, 1000.0];

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for activation in [Activation::Gelu, Activation::SwiGlu] {
        for (rows, width) in [(1, 13), (5, 37), (3, 300), (16, 64)] {
            let inner = lab.around(0.0, 5.0, rows * width * factors(activation));
            check(lab, activation, (rows, width), &format!("{rows} rows of {width}"), &inner)?;
        }
        let inner = vec![EXTREMES; factors(activation)].concat();
        check(lab, activation, (1, EXTREMES.len()), "extreme values", &inner)?;
    }
    Ok(())
}

/// Number of inner values per outer one.
fn factors(activation: Activation) -> usize {
    match activation {
        Activation::Gelu => 1,
        Activation::SwiGlu => 2,
    }
}

fn check<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    activation: Activation,
    (rows, width): (usize, usize),
    case: &str,
    inner: &[f64],
) -> Outcome {
    let name = match activation {
        Activation::Gelu => "GELU",
        Activation::SwiGlu => "SwiGLU",
    };
    let case = format!("{name}, {case}");
    // One sigmoid in full precision, stored once.
    let tolerance = lab.rounding.result(BufferPrecision::Working);
    let mut inner = lab.upload(BufferPrecision::Working, inner);
    let mut outer = lab.blank(BufferPrecision::Working, rows * width);
    both!(lab, on, [inner], [outer], {
        on.activation_forward(activation, rows, width, inner.region(), outer.region_mut());
    });
    lab.check("activation_forward", &case, tolerance, &outer)?;

    let mut outer = lab.random(BufferPrecision::Working, rows * width);
    both!(lab, on, [], [inner, outer], {
        on.activation_backward(activation, rows, width, inner.region_mut(), outer.region_mut());
    });
    lab.check("activation_backward", &format!("{case}, outer values"), tolerance, &outer)?;
    // GELU's gradient contains 1 - sigmoid, with an error of half a unit of 1, times a factor of up to 35 at
    // 5.
    let tolerance = tolerance + 16.0 * lab.rounding.full();
    lab.check("activation_backward", &format!("{case}, inner gradient"), tolerance, &inner)
}
