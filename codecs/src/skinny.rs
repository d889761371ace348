//! GEMMs of a matrix with a factor of few columns. They process blocks of rows that stay in the cache until
//! all steps on them are done: at these shapes, the time is bound by memory, not by arithmetic.

use crate::arithmetic::LowRank;
use crate::host::{dot, square_sum, vectorised};

/// Rows of a block: few enough for the nearest cache, and enough for a GEMM where one is used.
fn stretch(rank: usize) -> usize {
    if rank > FEW { 64 } else { 4 }
}
/// Columns of a factor up to which plain loops are as fast as a GEMM that packs its operands.
const FEW: usize = 8;

/// Adds the gradient to the kept error, `whole`, and multiplies: `left = whole · right`. Returns the sum of
/// squares.
pub(crate) fn add_and_multiply(
    shape: LowRank,
    gradient: &[f32],
    whole: &mut [f32],
    right: &[f32],
    left: &mut [f32],
) -> f64 {
    let LowRank { columns, rank, .. } = shape;
    let transposed = transpose(right, rank);
    let mut squares = 0.0;
    let stretches = whole.chunks_mut(stretch(rank) * columns).zip(gradient.chunks(stretch(rank) * columns));
    for ((whole, gradient), left) in stretches.zip(left.chunks_mut(stretch(rank) * rank)) {
        squares += add(whole, gradient);
        if rank > FEW {
            let rows = whole.len() / columns;
            product((rows, rank, columns), (whole, columns, 1), (right, rank, 1), (left, rank));
            continue;
        }
        vectorised(|| {
            for (row, left) in whole.chunks_exact(columns).zip(left.chunks_exact_mut(rank)) {
                for (left, right) in left.iter_mut().zip(transposed.chunks_exact(columns)) {
                    *left = dot(row, right);
                }
            }
        });
    }
    squares
}

/// Like [`add_and_multiply`], with the transposed matrix: `right = wholeᵀ · left`.
pub(crate) fn add_and_multiply_transposed(
    shape: LowRank,
    gradient: &[f32],
    whole: &mut [f32],
    left: &[f32],
    right: &mut [f32],
) -> f64 {
    let LowRank { columns, rank, .. } = shape;
    let stretches = whole.chunks_mut(stretch(rank) * columns).zip(gradient.chunks(stretch(rank) * columns));
    let squares = stretches.map(|(whole, gradient)| add(whole, gradient)).sum();
    multiply_transposed(shape, whole, left, right);
    squares
}

/// `right = wholeᵀ · left`.
pub(crate) fn multiply_transposed(shape: LowRank, whole: &[f32], left: &[f32], right: &mut [f32]) {
    let LowRank { rows, columns, rank } = shape;
    if rank > FEW {
        product((columns, rank, rows), (whole, 1, columns), (left, rank, 1), (right, rank));
        return;
    }
    let mut transposed = vec![0.0; columns * rank];
    // Four rows at once: the accumulator is read and written a quarter as often.
    for (four, left) in whole.chunks(4 * columns).zip(left.chunks(4 * rank)) {
        for (k, sums) in transposed.chunks_exact_mut(columns).enumerate() {
            if four.len() < 4 * columns {
                for (row, left) in four.chunks_exact(columns).zip(left.chunks_exact(rank)) {
                    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += left[k] * value);
                }
                continue;
            }
            let (a, rest) = four.split_at(columns);
            let (b, rest) = rest.split_at(columns);
            let (c, d) = rest.split_at(columns);
            let factors = [left[k], left[rank + k], left[2 * rank + k], left[3 * rank + k]];
            vectorised(|| {
                for ((((sum, a), b), c), d) in sums.iter_mut().zip(a).zip(b).zip(c).zip(d) {
                    *sum += (factors[0] * a + factors[1] * b) + (factors[2] * c + factors[3] * d);
                }
            });
        }
    }
    for (k, sums) in transposed.chunks_exact(columns).enumerate() {
        right.iter_mut().skip(k).step_by(rank).zip(sums).for_each(|(right, sum)| *right = *sum);
    }
}

/// Subtracts `left · rightᵀ` from `whole` and returns the sum of squares of the remainder. `gradient`, if
/// given, becomes `left · rightᵀ · scale`.
pub(crate) fn subtract_expanded(
    shape: LowRank,
    left: &[f32],
    right: &[f32],
    whole: &mut [f32],
    mut gradient: Option<(&mut [f32], f32)>,
) -> f64 {
    let LowRank { columns, rank, .. } = shape;
    let transposed = transpose(right, rank);
    let mut expanded = vec![0.0; stretch(rank) * columns];
    let mut squares = 0.0;
    let stretches = whole.chunks_mut(stretch(rank) * columns).zip(left.chunks(stretch(rank) * rank));
    for (index, (whole, left)) in stretches.enumerate() {
        let expanded = &mut expanded[..whole.len()];
        expand_stretch(left, right, &transposed, rank, columns, expanded);
        squares += vectorised(|| {
            whole.iter_mut().zip(&*expanded).for_each(|(whole, value)| *whole -= value);
            square_sum(whole)
        });
        if let Some((gradient, scale)) = &mut gradient {
            let at = index * stretch(rank) * columns;
            let gradient = &mut gradient[at..at + expanded.len()];
            vectorised(|| gradient.iter_mut().zip(&*expanded).for_each(|(g, value)| *g = *scale * value));
        }
    }
    squares
}

/// `whole = left · rightᵀ · scale`.
pub(crate) fn expand(shape: LowRank, left: &[f32], right: &[f32], scale: f32, whole: &mut [f32]) {
    let LowRank { columns, rank, .. } = shape;
    let scaled: Vec<f32> = right.iter().map(|value| value * scale).collect();
    let transposed = transpose(&scaled, rank);
    for (whole, left) in whole.chunks_mut(stretch(rank) * columns).zip(left.chunks(stretch(rank) * rank)) {
        expand_stretch(left, &scaled, &transposed, rank, columns, whole);
    }
}

fn expand_stretch(
    left: &[f32],
    right: &[f32],
    transposed: &[f32],
    rank: usize,
    columns: usize,
    whole: &mut [f32],
) {
    if rank > FEW {
        product((whole.len() / columns, columns, rank), (left, rank, 1), (right, 1, rank), (whole, columns));
        return;
    }
    vectorised(|| {
        for (row, left) in whole.chunks_exact_mut(columns).zip(left.chunks_exact(rank)) {
            let (first, others) = transposed.split_at(columns);
            row.iter_mut().zip(first).for_each(|(row, right)| *row = left[0] * right);
            for (left, right) in left[1..].iter().zip(others.chunks_exact(columns)) {
                row.iter_mut().zip(right).for_each(|(row, right)| *row += left * right);
            }
        }
    });
}

/// Adds `gradient` to `whole` and returns the sum of squares of the result.
fn add(whole: &mut [f32], gradient: &[f32]) -> f64 {
    vectorised(|| {
        whole.iter_mut().zip(gradient).for_each(|(whole, g)| *whole += g);
        square_sum(whole)
    })
}

/// The columns of a row-major factor, one after the other.
fn transpose(factor: &[f32], rank: usize) -> Vec<f32> {
    (0..rank).flat_map(|k| factor.iter().skip(k).step_by(rank).copied()).collect()
}

/// `c = a · b` for `m x k` by `k x n`; operands with their strides of rows and columns.
fn product(
    (m, n, k): (usize, usize, usize),
    (a, a_row, a_column): (&[f32], usize, usize),
    (b, b_row, b_column): (&[f32], usize, usize),
    (c, c_row): (&mut [f32], usize),
) {
    assert!(
        a.len() >= m * k && b.len() >= k * n && c.len() >= m * n,
        "operands are as large as their shapes"
    );
    // SAFETY: the asserted lengths cover all that the shapes and strides reach, and `c` is exclusively
    // borrowed.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            c_row as isize,
            false,
            a.as_ptr(),
            a_column as isize,
            a_row as isize,
            b.as_ptr(),
            b_column as isize,
            b_row as isize,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// The reference result, by plain loops.
    fn exact(whole: &[f32], columns: usize, factor: &[f32], rank: usize, transposed: bool) -> Vec<f64> {
        let rows = whole.len() / columns;
        let (m, k) = if transposed { (columns, rows) } else { (rows, columns) };
        let element = |i: usize, j: usize| {
            f64::from(if transposed { whole[j * columns + i] } else { whole[i * columns + j] })
        };
        let entry =
            |i: usize, c: usize| (0..k).map(|j| element(i, j) * f64::from(factor[j * rank + c])).sum();
        (0..m).flat_map(|i| (0..rank).map(move |c| (i, c))).map(|(i, c)| entry(i, c)).collect()
    }

    fn assert_close(got: &[f32], expected: &[f64]) {
        assert_eq!(got.len(), expected.len());
        for (got, expected) in got.iter().zip(expected) {
            assert!((f64::from(*got) - expected).abs() < 1e-4, "{got} where {expected} is due");
        }
    }

    #[test]
    fn few_columns_and_many_give_the_exact_products() {
        for (rows, columns, rank) in
            [(5, 3, 1), (33, 37, 2), (70, 50, 4), (66, 40, 8), (67, 41, 9), (40, 70, 20)]
        {
            let shape = LowRank { rows, columns, rank };
            let (gradient, kept) = (values(rows * columns, 1), values(rows * columns, 2));
            let whole: Vec<f32> = gradient.iter().zip(&kept).map(|(g, e)| g + e).collect();
            let (left, right) = (values(rows * rank, 3), values(columns * rank, 4));
            let squares: f64 = whole.iter().map(|v| f64::from(*v).powi(2)).sum();

            let (mut error, mut product) = (kept.clone(), vec![0.0; rows * rank]);
            let sum = add_and_multiply(shape, &gradient, &mut error, &right, &mut product);
            assert_close(&product, &exact(&whole, columns, &right, rank, false));
            assert!((sum / squares - 1.0).abs() < 1e-5);
            assert_eq!(error, whole);

            let (mut error, mut product) = (kept, vec![0.0; columns * rank]);
            let sum = add_and_multiply_transposed(shape, &gradient, &mut error, &left, &mut product);
            assert_close(&product, &exact(&whole, columns, &left, rank, true));
            assert!((sum / squares - 1.0).abs() < 1e-5);

            let outer = |scale: f64| -> Vec<f64> {
                let entry = |at: usize| {
                    let (i, j) = (at / columns, at % columns);
                    (0..rank)
                        .map(|k| f64::from(left[i * rank + k]) * f64::from(right[j * rank + k]))
                        .sum::<f64>()
                };
                (0..rows * columns).map(|at| scale * entry(at)).collect()
            };
            let mut expanded = vec![0.0; rows * columns];
            expand(shape, &left, &right, 3.0, &mut expanded);
            assert_close(&expanded, &outer(3.0));
            let lost = subtract_expanded(shape, &left, &right, &mut error, Some((&mut expanded, 2.0)));
            assert_close(&expanded, &outer(2.0));
            let rest: Vec<f64> = whole.iter().zip(outer(1.0)).map(|(w, o)| f64::from(*w) - o).collect();
            assert_close(&error, &rest);
            assert!((lost / rest.iter().map(|v| v * v).sum::<f64>() - 1.0).abs() < 1e-4);
        }
    }
}
