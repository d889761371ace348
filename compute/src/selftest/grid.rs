//! The positions of strided matrices' elements in a buffer.

use super::lab::guard;
use crate::backend::{Backend, Matrix, MatrixMut, Region, RegionMut};

/// A batch of strided matrices.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    pub batch: usize,
    pub rows: usize,
    pub columns: usize,
    pub batch_stride: usize,
    pub row_stride: usize,
    pub column_stride: usize,
}

impl Grid {
    /// Row after row, `gap` elements between them; matrix after matrix.
    pub fn by_rows(batch: usize, rows: usize, columns: usize, gap: usize) -> Self {
        let row_stride = columns + gap;
        Self { batch, rows, columns, batch_stride: rows * row_stride, row_stride, column_stride: 1 }
    }

    /// Matrices stored by columns.
    pub fn by_columns(batch: usize, rows: usize, columns: usize, gap: usize) -> Self {
        Self::by_rows(batch, columns, rows, gap).transposed()
    }

    #[must_use]
    pub fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }

    pub fn of<B: Backend>(self, region: Region<'_, B>) -> Matrix<'_, B> {
        let Self { batch_stride, row_stride, column_stride, .. } = self;
        Matrix { region, row_stride, column_stride, batch_stride }
    }

    pub fn of_mut<B: Backend>(self, region: RegionMut<'_, B>) -> MatrixMut<'_, B> {
        let Self { batch_stride, row_stride, column_stride, .. } = self;
        MatrixMut { region, row_stride, column_stride, batch_stride }
    }

    /// Guard elements, with `element`s at the positions of the matrices.
    pub fn among_guards(self, mut element: impl FnMut() -> f64) -> Vec<f64> {
        let Self { batch_stride, row_stride, column_stride, .. } = self;
        let last = |count: usize, stride| (count - 1) * stride;
        let len =
            last(self.batch, batch_stride) + last(self.rows, row_stride) + last(self.columns, column_stride);
        let mut values: Vec<f64> = (0..=len).map(guard).collect();
        for index in 0..self.batch * self.rows * self.columns {
            let (matrix, row) = (index / (self.rows * self.columns), index / self.columns % self.rows);
            values[matrix * batch_stride + row * row_stride + index % self.columns * column_stride] =
                element();
        }
        values
    }
}
