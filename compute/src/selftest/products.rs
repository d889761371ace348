//! GEMMs, and the other operations of linear layers.

use super::Outcome;
use super::grid::Grid;
use super::lab::{BufferPrecision, Lab, both};
use crate::backend::{Backend, GemmShape};

/// `m`, `n`, `k`, and the gap between rows.
const SHAPES: [(usize, usize, usize, usize); 10] = [
    (1, 1, 1, 0),
    (1, 17, 130, 0),
    (17, 1, 64, 3),
    (130, 3, 1, 0),
    (3, 64, 17, 1),
    (17, 130, 3, 0),
    (64, 130, 17, 2),
    (130, 17, 64, 0),
    (130, 64, 130, 5),
    (64, 64, 64, 0),
];

/// Alpha and beta.
const FACTORS: [(f64, f64); 4] = [(1.0, 0.0), (1.0, 1.0), (-1.5, 0.0), (0.7, 1.0)];

/// Precisions of the operands and of the result.
type Precisions = (BufferPrecision, BufferPrecision);

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    let precisions: &[Precisions] = match lab.device.is_mixed() {
        true => &[
            (BufferPrecision::Working, BufferPrecision::Working),
            (BufferPrecision::Working, BufferPrecision::Full),
            (BufferPrecision::Full, BufferPrecision::Full),
        ],
        false => &[(BufferPrecision::Working, BufferPrecision::Working)],
    };
    for &precisions in precisions {
        single(lab, precisions)?;
        batched(lab, precisions)?;
    }
    rows(lab)
}

/// Each shape with either operand stored by rows or by columns; factors are used in turn.
fn single<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, precisions: Precisions) -> Outcome {
    for (index, (m, n, k, gap)) in SHAPES.into_iter().enumerate() {
        for orders in 0..4 {
            let stored = |by_columns: bool, rows, columns| match by_columns {
                true => Grid::by_columns(1, rows, columns, gap),
                false => Grid::by_rows(1, rows, columns, gap),
            };
            let (a, b) = (stored(orders & 1 != 0, m, k), stored(orders & 2 != 0, k, n));
            let names = ["a b", "aᵀ b", "a bᵀ", "aᵀ bᵀ"];
            let case = format!("{}, {m} × {k} by {k} × {n}", names[orders]);
            let (alpha, beta) = FACTORS[(index + orders) % 4];
            // A single element might happen to cancel.
            let beta = if m * n == 1 { 0.0 } else { beta };
            multiply(lab, &case, precisions, [a, b, Grid::by_rows(1, m, n, gap)], (alpha, beta))?;
        }
    }
    Ok(())
}

fn batched<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, precisions: Precisions) -> Outcome {
    // The layout of attention: `[17 positions, 2 sequences]`, rows of 8 heads of 5 numbers, of which every
    // other one is in the batch.
    let strides = (10, 80);
    let heads = Grid {
        batch: 3,
        rows: 17,
        columns: 5,
        batch_stride: strides.0,
        row_stride: strides.1,
        column_stride: 1,
    };
    let square = Grid::by_rows(3, 17, 17, 0);
    let packed = Grid::by_rows(3, 17, 5, 0);
    let shared = Grid { batch_stride: 0, ..Grid::by_rows(3, 17, 5, 0) };
    let ordinary = Grid::by_rows(4, 64, 64, 0);
    let cases = [
        ("query keyᵀ", [heads, heads.transposed(), square], (0.4, 0.0)),
        ("probabilities value", [square, heads, heads], (1.0, 0.0)),
        ("probabilitiesᵀ gradient", [square.transposed(), heads, packed], (1.0, 1.0)),
        ("one right factor for all", [square, shared, packed], (1.0, 0.0)),
        ("64 × 64 by 64 × 64", [ordinary, ordinary.transposed(), ordinary], (1.0, 0.0)),
    ];
    for (name, grids, factors) in cases {
        let case = format!("batch of {}, {name}", grids[0].batch);
        multiply(lab, &case, precisions, grids, factors)?;
    }
    Ok(())
}

fn multiply<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    case: &str,
    (operands, result): Precisions,
    grids: [Grid; 3],
    (alpha, beta): (f64, f64),
) -> Outcome {
    let [a_grid, b_grid, c_grid] = grids;
    let (a, b) = (lab.random_grid(operands, a_grid), lab.random_grid(operands, b_grid));
    // With beta 0, the previous contents of the result must not matter.
    let mut c = if beta == 0.0 { lab.blank_grid(result, c_grid) } else { lab.random_grid(result, c_grid) };
    let (m, n, k) = (a_grid.rows, b_grid.columns, a_grid.columns);
    let product = GemmShape::new(m, n, k).batched(a_grid.batch);
    both!(lab, on, [a, b], [c], {
        let (a, b) = (a_grid.of(a.region()), b_grid.of(b.region()));
        on.matmul(product, alpha, a, b, beta, c_grid.of_mut(c.region_mut()));
    });
    let rounded = match operands {
        // A mixed device may truncate full precision to the 11 bits of TF32.
        BufferPrecision::Full => 4.0 / 2048.0,
        BufferPrecision::Working => lab.rounding.operands(),
    };
    let tolerance = lab.rounding.result(result) + rounded + lab.rounding.sum(k);
    let case = format!("{case}, alpha {alpha}, beta {beta}, {operands} to {result}");
    lab.check("matmul", &case, tolerance, &c)
}

fn rows<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    for (rows, width) in [(1, 1), (1, 300), (5, 37), (301, 13), (16, 64)] {
        let case = format!("{rows} rows of {width}");
        let (row, mut to) =
            (lab.random(BufferPrecision::Working, width), lab.random(BufferPrecision::Working, rows * width));
        both!(lab, on, [row], [to], on.add_row(rows, width, row.region(), to.region_mut()));
        // One addition, stored once.
        lab.check("add_row", &case, lab.rounding.result(BufferPrecision::Working), &to)?;

        let (from, mut to) =
            (lab.random(BufferPrecision::Working, rows * width), lab.random(BufferPrecision::Full, width));
        both!(lab, on, [from], [to], on.sum_rows(rows, width, from.region(), to.region_mut()));
        // Full precision, except for the rows themselves.
        let tolerance = lab.rounding.result(BufferPrecision::Full) + lab.rounding.sum(rows + 1);
        lab.check("sum_rows", &case, tolerance, &to)?;
    }
    Ok(())
}
