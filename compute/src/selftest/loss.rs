//! Cross-entropy, step by step.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, both};
use crate::backend::{Backend, TableShape};

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    // A share of a vocabulary of 60, then whole ones.
    check(lab, 13, TableShape { first: 5, rows: 37, width: 0 }, 60)?;
    check(lab, 5, TableShape { first: 0, rows: 300, width: 0 }, 300)?;
    check(lab, 1, TableShape { first: 0, rows: 1, width: 0 }, 1)?;
    check(lab, 32, TableShape { first: 0, rows: 128, width: 0 }, 128)
}

fn check<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    rows: usize,
    classes: TableShape,
    vocab: u32,
) -> Outcome {
    let (width, r) = (classes.rows, lab.rounding);
    let case = format!("{rows} rows, classes {} to {}", classes.first, classes.first + width - 1);
    let targets = lab.ids(rows, vocab);
    // Negative logits, so that elements outside a row would be larger than its maximum.
    let logits = lab.around(-6.0, 5.0, rows * width);
    let mut logits = lab.upload(BufferPrecision::Working, &logits);
    let mut max = lab.blank(BufferPrecision::Full, rows);
    both!(lab, on, [logits], [max], on.row_max(rows, width, logits.region(), max.region_mut()));
    lab.check("row_max", &case, 0.0, &max)?;

    // The largest logit may be another rank's.
    let larger: Vec<f64> = max.exact(rows).iter().map(|max| max + 0.5).collect();
    let max = lab.upload(BufferPrecision::Full, &larger);
    let mut sums = lab.blank(BufferPrecision::Full, 2 * rows);
    both!(lab, on, [max, targets], [logits, sums], {
        on.exponentials(classes, targets, max.region(), logits.region_mut(), sums.region_mut());
    });
    // One exponential in full precision, stored once.
    lab.check("exponentials", &case, r.result(BufferPrecision::Working), &logits)?;
    // Exponentials are summed before or after rounding; differences of logits are exact.
    let tolerance = r.result(BufferPrecision::Working) + r.sum(width);
    lab.check_part("exponentials", &format!("{case}, sums"), tolerance, &sums, |i| i < rows)?;
    let tolerance = r.result(BufferPrecision::Full);
    lab.check_part("exponentials", &format!("{case}, at targets"), tolerance, &sums, |i| i >= rows)?;

    let exponentials = logits.exact(rows * width);
    let sums = lab.upload(BufferPrecision::Full, &sums.exact(2 * rows));
    let losses = both!(lab, on, [sums], [], on.cross_entropy(rows, sums.region()));
    let losses = (lab.device.read(&losses.0), lab.exact.read(&losses.1));
    // Logarithms and their sum in full precision at least.
    lab.check_number("cross_entropy", &case, r.result(BufferPrecision::Full) + r.sum(rows), losses)?;

    let mut gradient = lab.upload(BufferPrecision::Working, &exponentials);
    both!(lab, on, [sums, targets], [gradient], {
        on.cross_entropy_backward(classes, targets, sums.region(), 1.0 / 7.0, gradient.region_mut());
    });
    // One quotient and one difference, stored once.
    lab.check("cross_entropy_backward", &case, r.result(BufferPrecision::Working), &gradient)
}
