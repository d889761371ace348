//! AdamW and SGD over several steps.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, Pair, both};
use crate::backend::Backend;
use crate::optimizer::{AdamW, Sgd};

const STEPS: u64 = 5;
const LEARNING_RATE: f64 = 0.05;
const GRADIENT_SCALE: f64 = 0.25;

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for len in [0, 13, 1037, 4096] {
        adamw(lab, len)?;
        sgd(lab, len)?;
    }
    Ok(())
}

fn adamw<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, len: usize) -> Outcome {
    let case = format!("{STEPS} steps of {len} elements");
    let optimizer = AdamW { beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weight_decay: 0.1, frozen_after: None };
    let mut parameter = lab.random(BufferPrecision::Full, len);
    let [mut first, mut second] = [(); 2].map(|()| lab.upload(BufferPrecision::Full, &vec![0.0; len]));
    let mut working = lab.blank(BufferPrecision::Working, len);
    let is_mixed = lab.device.is_mixed();
    for step in 1..=STEPS {
        let gradient = lab.random(BufferPrecision::Full, len);
        both!(lab, on, [gradient], [parameter, first, second, working], {
            optimizer.step(
                on,
                len,
                step,
                LEARNING_RATE,
                GRADIENT_SCALE,
                gradient.region(),
                parameter.region_mut(),
                first.region_mut(),
                second.region_mut(),
                // The CPU has one precision.
                if on.is_mixed() { Some(working.region_mut()) } else { None },
            );
        });
    }
    // Each step rounds once more; a device may compute 1 - beta from a rounded beta, which loses digits.
    let r = lab.rounding;
    let tolerance = |beta: f64| STEPS as f64 * r.result(BufferPrecision::Full) + r.full() / (1.0 - beta);
    lab.check("adamw_step", &format!("{case}, first moments"), tolerance(optimizer.beta1), &first)?;
    lab.check("adamw_step", &format!("{case}, second moments"), tolerance(optimizer.beta2), &second)?;
    lab.check("adamw_step", &format!("{case}, parameters"), tolerance(optimizer.beta2), &parameter)?;
    if is_mixed { check_working(lab, "adamw_step", &case, len, &parameter, working) } else { Ok(()) }
}

fn sgd<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, len: usize) -> Outcome {
    let case = format!("{STEPS} steps of {len} elements");
    let optimizer = Sgd { momentum: 0.9, weight_decay: 0.1 };
    let mut parameter = lab.random(BufferPrecision::Full, len);
    let mut momentum = lab.upload(BufferPrecision::Full, &vec![0.0; len]);
    let mut working = lab.blank(BufferPrecision::Working, len);
    let is_mixed = lab.device.is_mixed();
    for _ in 0..STEPS {
        let gradient = lab.random(BufferPrecision::Full, len);
        both!(lab, on, [gradient], [parameter, momentum, working], {
            optimizer.step(
                on,
                len,
                LEARNING_RATE,
                GRADIENT_SCALE,
                gradient.region(),
                parameter.region_mut(),
                momentum.region_mut(),
                if on.is_mixed() { Some(working.region_mut()) } else { None },
            );
        });
    }
    let tolerance = STEPS as f64 * lab.rounding.result(BufferPrecision::Full);
    lab.check("sgd_momentum_step", &format!("{case}, momentum"), tolerance, &momentum)?;
    lab.check("sgd_momentum_step", &format!("{case}, parameters"), tolerance, &parameter)?;
    if is_mixed { check_working(lab, "sgd_momentum_step", &case, len, &parameter, working) } else { Ok(()) }
}

/// Checks that the layers' parameters are the optimizer's updated ones, rounded once.
fn check_working<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    what: &'static str,
    case: &str,
    len: usize,
    parameter: &Pair<B>,
    mut working: Pair<B>,
) -> Outcome {
    lab.exact.write(&parameter.exact(len), working.exact.region_mut());
    let tolerance = lab.rounding.working + STEPS as f64 * lab.rounding.result(BufferPrecision::Full);
    lab.check(what, &format!("{case}, working precision"), tolerance, &working)
}
