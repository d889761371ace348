//! Rotary positions and causal softmax.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, both, guard};
use crate::backend::{Backend, Direction, RotaryShape};

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for (positions, repeat, heads, head_dim, tail) in
        [(1, 1, 1, 2, 0), (5, 3, 5, 6, 7), (67, 2, 3, 20, 20), (13, 1, 2, 96, 1), (32, 2, 4, 64, 128)]
    {
        let row_width = heads * head_dim + tail;
        rotary(lab, RotaryShape { positions, repeat, row_width, heads, head_dim, theta: 1e4 })?;
    }
    for (count, seq_len) in [(1, 1), (3, 5), (2, 37), (1, 130), (4, 32)] {
        softmax(lab, count, seq_len)?;
    }
    let counts = [1, 2, 12];
    let holds = counts.iter().all(|&heads| (1..=heads).contains(&lab.device.heads_at_once(heads)));
    lab.require("heads_at_once", &format!("{counts:?} heads"), holds)
}

fn rotary<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, shape: RotaryShape) -> Outcome {
    let RotaryShape { positions, repeat, row_width, heads, head_dim, .. } = shape;
    let case = format!("[{positions}, {repeat}], {heads} heads of {head_dim} in rows of {row_width}");
    // The elements after the heads of a row must not change.
    let mut rows = lab.numbers(positions * repeat * row_width);
    for row in rows.chunks_exact_mut(row_width) {
        row[heads * head_dim..].iter_mut().enumerate().for_each(|(i, x)| *x = guard(i));
    }
    // Stored once; the error of an angle in full precision is proportional to the position.
    let tolerance = lab.rounding.result(BufferPrecision::Working) + positions as f64 * lab.rounding.full();
    let (mut forward, mut backward) =
        (lab.upload(BufferPrecision::Working, &rows), lab.upload(BufferPrecision::Working, &rows));
    let before = forward.exact(rows.len());
    both!(lab, on, [], [forward], on.rotary(shape, Direction::Forward, forward.region_mut()));
    lab.check("rotary", &format!("{case}, forward"), tolerance, &forward)?;
    both!(lab, on, [], [backward], on.rotary(shape, Direction::Backward, backward.region_mut()));
    lab.check("rotary", &format!("{case}, backward"), tolerance, &backward)?;

    lab.device.rotary(shape, Direction::Backward, forward.device.region_mut());
    lab.exact.write(&before, forward.exact.region_mut());
    lab.check("rotary", &format!("{case}, there and back"), 2.0 * tolerance, &forward)
}

fn softmax<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, count: usize, seq_len: usize) -> Outcome {
    let (case, len) = (format!("{count} × {seq_len} × {seq_len}"), count * seq_len * seq_len);
    let is_seen = |i: usize| i % seq_len <= i / seq_len % seq_len;
    // A sum over the row in full precision, stored once.
    let tolerance = lab.rounding.result(BufferPrecision::Working) + lab.rounding.sum(seq_len);
    let mut probabilities = Vec::new();
    for (name, spread) in [("sharp", 300.0), ("even", 3.0)] {
        // Rows do not attend to later columns.
        let mut scores = lab.around(-spread, spread, len);
        scores.iter_mut().enumerate().filter(|(i, _)| !is_seen(*i)).for_each(|(_, score)| *score = f64::NAN);
        let mut scores = lab.upload(BufferPrecision::Working, &scores);
        both!(lab, on, [], [scores], on.causal_softmax(count, seq_len, scores.region_mut()));
        lab.check("causal_softmax", &format!("{case}, {name}"), tolerance, &scores)?;
        probabilities = scores.exact(len);
    }

    // Uses the flat probabilities: the gradient of a sharp row is only rounding error.
    let probabilities = lab.upload(BufferPrecision::Working, &probabilities);
    let mut gradient = lab.random(BufferPrecision::Working, len);
    both!(lab, on, [probabilities], [gradient], {
        on.causal_softmax_backward(count, seq_len, 0.125, probabilities.region(), gradient.region_mut());
    });
    lab.check("causal_softmax_backward", &case, tolerance, &gradient)
}
