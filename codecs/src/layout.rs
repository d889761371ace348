//! Which parameters of a bucket are sent as low-rank factors, and which uncompressed.

use crate::arithmetic::{Factor, LowRank};
use std::ops::Range;

/// A parameter inside a flat bucket, row-major; vectors have one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tensor {
    pub offset: usize,
    pub rows: usize,
    pub columns: usize,
}

/// A matrix is compressed if it is at least this many times larger than the factors sent per step
/// (`min_compression_rate` of both references).
const LEAST_RATE: usize = 2;

/// A matrix that is sent as factors `rows x rank` and `columns x rank`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub offset: usize,
    pub rows: usize,
    pub columns: usize,
    pub rank: usize,
}

impl Matrix {
    pub fn range(&self) -> Range<usize> {
        self.offset..self.offset + self.rows * self.columns
    }

    pub fn shape(&self) -> LowRank {
        LowRank { rows: self.rows, columns: self.columns, rank: self.rank }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Layout {
    pub matrices: Vec<Matrix>,
    /// Ranges that are all-reduced uncompressed.
    pub dense: Vec<Range<usize>>,
}

impl Layout {
    /// The layout of the tensors' low-rank factors. `half` sends one factor per step: half as much on
    /// average.
    pub fn of(tensors: &[Tensor], elements: usize, rank: u32, half: bool) -> Self {
        let least_rate = if half { LEAST_RATE / 2 } else { LEAST_RATE };
        let mut layout = Self::default();
        let mut next = 0;
        for tensor in tensors {
            let (rows, columns) = (tensor.rows, tensor.columns);
            let rank = (rank as usize).min(rows).min(columns);
            if rows < 2 || columns < 2 || (rows + columns) * rank * least_rate >= rows * columns {
                continue;
            }
            if next < tensor.offset {
                layout.dense.push(next..tensor.offset);
            }
            let matrix = Matrix { offset: tensor.offset, rows, columns, rank };
            next = matrix.range().end;
            layout.matrices.push(matrix);
        }
        if next < elements {
            layout.dense.push(next..elements);
        }
        layout
    }

    pub fn dense_elements(&self) -> usize {
        self.dense.iter().map(Range::len).sum()
    }

    /// The positions of the left factors, one after the other.
    pub fn lefts(&self) -> Vec<Factor> {
        one_after_the_other(self.matrices.iter().map(|m| (m.rows, m.rank)))
    }

    /// The positions of the right factors.
    pub fn rights(&self) -> Vec<Factor> {
        one_after_the_other(self.matrices.iter().map(|m| (m.columns, m.rank)))
    }

    /// Elements of all left factors.
    pub fn left(&self) -> usize {
        self.matrices.iter().map(|m| m.rows * m.rank).sum()
    }

    /// Elements of all right factors.
    pub fn right(&self) -> usize {
        self.matrices.iter().map(|m| m.columns * m.rank).sum()
    }

    /// FLOPs of `count` GEMMs of every matrix with a factor.
    pub fn products(&self, count: f64) -> f64 {
        let one = |m: &Matrix| 2.0 * (m.rows * m.columns * m.rank) as f64;
        count * self.matrices.iter().map(one).sum::<f64>()
    }
}

fn one_after_the_other(shapes: impl Iterator<Item = (usize, usize)>) -> Vec<Factor> {
    let place = |next: &mut usize, (rows, rank): (usize, usize)| {
        let offset = *next;
        *next += rows * rank;
        Some(Factor { offset, rows, rank })
    };
    shapes.scan(0, place).collect()
}
