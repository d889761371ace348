//! Compares every kernel at every vector width with the scalar one, on lengths around the width of a
//! register.

use super::kernels;
use super::simd::Simd;

/// Numbers in -4..4 without pattern.
fn numbers(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 21) as f32 - 4.0
    };
    (0..len).map(|_| next()).collect()
}

/// Runs a kernel on two rows of each length at every level; `run` returns everything that it wrote.
fn check(name: &str, shortest: usize, run: impl Fn(Simd, usize) -> Vec<f32>) {
    for len in shortest..70 {
        let plain = run(Simd::Plain, len);
        for simd in Simd::available() {
            let vector = run(simd, len);
            for (i, (a, b)) in vector.iter().zip(&plain).enumerate() {
                let close = (a - b).abs() <= 2e-5 * (1.0 + b.abs());
                assert!(close, "{name}, {simd:?}, length {len}, element {i}: {a} is not {b}");
            }
        }
    }
}

#[test]
fn elementwise() {
    check("add", 0, |simd, len| {
        let mut to = numbers(len, 2);
        kernels::add(simd, &numbers(len, 1), &mut to);
        to
    });
    check("scale", 0, |simd, len| {
        let mut to = numbers(len, 1);
        kernels::scale(simd, 0.3, &mut to);
        to
    });
    check("sum_of_squares", 0, |simd, len| vec![kernels::sum_of_squares(simd, &numbers(len, 1)) as f32]);
    check("gelu", 0, |simd, len| {
        let (mut inner, mut outer) = (numbers(len, 1), vec![0.0; len]);
        kernels::gelu(simd, &inner, &mut outer);
        let forward = outer.clone();
        outer = numbers(len, 2);
        kernels::gelu_backward(simd, &mut inner, &mut outer);
        assert_eq!(outer, forward, "backward restores the values");
        [outer, inner].concat()
    });
    check("swiglu", 1, |simd, len| {
        let (mut inner, mut outer) = (numbers(4 * len, 1), vec![0.0; 2 * len]);
        kernels::swiglu(simd, len, &inner, &mut outer);
        let forward = outer.clone();
        outer = numbers(2 * len, 2);
        kernels::swiglu_backward(simd, len, &mut inner, &mut outer);
        assert_eq!(outer, forward, "backward restores the values");
        [outer, inner].concat()
    });
}

#[test]
fn rows() {
    check("add_row", 1, |simd, len| {
        let mut to = numbers(2 * len, 2);
        kernels::add_row(simd, &numbers(len, 1), &mut to);
        to
    });
    check("sum_rows", 1, |simd, len| {
        let mut to = numbers(len, 2);
        kernels::sum_rows(simd, &numbers(2 * len, 1), &mut to);
        to
    });
    check("rotate", 1, |simd, len| {
        let mut row = numbers(4 * len, 3);
        kernels::rotate(simd, &numbers(len, 1), &numbers(len, 2), &mut row);
        row
    });
    check("row_max", 1, |simd, len| {
        let mut max = vec![0.0; 2];
        kernels::row_max(simd, len, &numbers(2 * len, 1), &mut max);
        max
    });
    check("exponentials", 0, |simd, len| {
        let mut row = numbers(len, 1);
        let sum = kernels::exponentials(simd, 2.0, &mut row);
        row.push(sum);
        row
    });
}

#[test]
fn norms() {
    // One column has no variance to divide by.
    check("layer_norm", 2, |simd, len| {
        let (weight, bias, x) = (numbers(len, 1), numbers(len, 2), numbers(2 * len, 3));
        let (mut y, mut statistics) = (vec![0.0; 2 * len], vec![0.0; 4]);
        kernels::layer_norm(simd, 1e-2, &weight, &bias, &x, &mut y, &mut statistics);
        let (mut dw, mut db, mut dx) = (numbers(len, 4), numbers(len, 5), numbers(2 * len, 6));
        let residual = numbers(2 * len, 7);
        kernels::layer_norm_backward(simd, &weight, &mut dw, &mut db, &x, &statistics, &residual, &mut dx);
        [y, statistics, dw, db, dx].concat()
    });
    check("rms_norm", 1, |simd, len| {
        let (weight, x) = (numbers(len, 1), numbers(2 * len, 3));
        let (mut y, mut statistics) = (vec![0.0; 2 * len], vec![0.0; 2]);
        kernels::rms_norm(simd, 1e-2, &weight, &x, &mut y, &mut statistics);
        let (mut dw, mut dx) = (numbers(len, 4), numbers(2 * len, 6));
        kernels::rms_norm_backward(simd, &weight, &mut dw, &x, &statistics, &[], &mut dx);
        [y, statistics, dw, dx].concat()
    });
}

#[test]
fn softmax() {
    check("causal_softmax", 1, |simd, len| {
        let mut probabilities = numbers(2 * len * len, 1);
        kernels::causal_softmax(simd, len, &mut probabilities);
        let mut gradient = numbers(2 * len * len, 2);
        kernels::causal_softmax_backward(simd, len, 0.5, &probabilities, &mut gradient);
        [probabilities, gradient].concat()
    });
}

#[test]
fn optimizers() {
    check("adamw", 0, |simd, len| {
        let (gradient, mut parameter) = (numbers(len, 1), numbers(len, 2));
        let (mut first, mut second) = (numbers(len, 3), vec![0.25; len]);
        kernels::adamw(
            simd,
            0.5,
            0.9,
            0.99,
            0.999,
            0.1,
            2.0,
            1e-3,
            &gradient,
            &mut parameter,
            &mut first,
            &mut second,
        );
        [parameter, first, second].concat()
    });
    check("sgd", 0, |simd, len| {
        let (gradient, mut parameter, mut momentum) = (numbers(len, 1), numbers(len, 2), numbers(len, 3));
        kernels::sgd(simd, 0.5, 0.9, 0.01, 0.1, &gradient, &mut parameter, &mut momentum);
        [parameter, momentum].concat()
    });
}
