//! Tables of tokens and of positions.

use super::Outcome;
use super::lab::{BufferPrecision, Lab, both};
use crate::backend::{Backend, TableShape};

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    // A share of a vocabulary: ids below and above it are missing, and those within come several times.
    rows(lab, TableShape { first: 7, rows: 11, width: 37 }, 29, 30)?;
    rows(lab, TableShape { first: 3, rows: 1, width: 1 }, 5, 5)?;
    rows(lab, TableShape { first: 0, rows: 5, width: 300 }, 13, 3)?;
    rows(lab, TableShape { first: 0, rows: 32, width: 64 }, 48, 32)?;
    for (count, repeat, width) in [(1, 1, 1), (5, 3, 37), (3, 19, 13), (16, 2, 64)] {
        positions(lab, count, repeat, width)?;
    }
    Ok(())
}

fn rows<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, shape: TableShape, len: usize, ids: u32) -> Outcome {
    let TableShape { first, rows, width } = shape;
    let case = format!("{len} of rows {first} to {} of {width}", first + rows - 1);
    let ids = lab.ids(len, ids);
    let (table, mut to) = (
        lab.random(BufferPrecision::Working, rows * width),
        lab.blank(BufferPrecision::Working, len * width),
    );
    both!(lab, on, [table, ids], [to], on.gather_rows(shape, ids, table.region(), to.region_mut()));
    lab.check("gather_rows", &case, 0.0, &to)?;

    let (from, mut table) =
        (lab.random(BufferPrecision::Working, len * width), lab.random(BufferPrecision::Full, rows * width));
    both!(lab, on, [from, ids], [table], on.scatter_add_rows(shape, ids, from.region(), table.region_mut()));
    // A sum in full precision, in any order.
    let tolerance = lab.rounding.result(BufferPrecision::Full) + lab.rounding.sum(len + 1);
    lab.check("scatter_add_rows", &case, tolerance, &table)
}

fn positions<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    count: usize,
    repeat: usize,
    width: usize,
) -> Outcome {
    let (case, len) = (format!("[{count}, {repeat}, {width}]"), count * repeat * width);
    let (table, mut to) =
        (lab.random(BufferPrecision::Working, count * width), lab.random(BufferPrecision::Working, len));
    both!(lab, on, [table], [to], on.add_positions(count, repeat, width, table.region(), to.region_mut()));
    // One addition, stored once.
    lab.check("add_positions", &case, lab.rounding.result(BufferPrecision::Working), &to)?;

    let (from, mut table) =
        (lab.random(BufferPrecision::Working, len), lab.random(BufferPrecision::Full, count * width));
    both!(
        lab,
        on,
        [from],
        [table],
        on.sum_positions(count, repeat, width, from.region(), table.region_mut())
    );
    // A sum in full precision.
    let tolerance = lab.rounding.result(BufferPrecision::Full) + lab.rounding.sum(repeat + 1);
    lab.check("sum_positions", &case, tolerance, &table)
}
