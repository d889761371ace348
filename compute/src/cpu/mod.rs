//! The CPU backend: GEMMs by the `gemm` crate, the rest by vectorised loops. It uses one thread; other cores
//! run other ranks.

mod buffer;
mod kernels;
mod real;
mod simd;
#[cfg(test)]
mod tests;

pub use buffer::{ALIGNMENT, HostBuffer};
pub use real::Real;

use crate::backend::*;
use autodist_spec::model::{Activation, Norm};
use simd::Simd;
use std::marker::PhantomData;
use std::num::NonZeroUsize;
use std::ops::Range;
use std::time::Instant;

/// One core, computing in `T`.
#[derive(Debug, Clone)]
pub struct Cpu<T> {
    simd: Simd,
    heads_at_once: usize,
    element: PhantomData<fn() -> T>,
}

impl<T: Real> Cpu<T> {
    /// Uses the widest vector instructions that the processor has.
    pub fn new() -> Self {
        Self { simd: Simd::detect(), heads_at_once: 1, element: PhantomData }
    }

    /// By default heads are computed one by one, so that the scores of one stay in the cache.
    #[must_use]
    pub fn with_heads_at_once(self, heads_at_once: NonZeroUsize) -> Self {
        Self { heads_at_once: heads_at_once.get(), ..self }
    }
}

impl<T: Real> Default for Cpu<T> {
    fn default() -> Self {
        Self::new()
    }
}

fn slice<T: Real>(region: Region<'_, Cpu<T>>, len: usize) -> &[T] {
    &region.buffer[region.offset..][..len]
}

fn slice_mut<T: Real>(region: RegionMut<'_, Cpu<T>>, len: usize) -> &mut [T] {
    &mut region.buffer[region.offset..][..len]
}

/// The elements from a matrix's first to its last, over the whole batch.
fn extent(
    offset: usize,
    batch: (usize, usize),
    rows: (usize, usize),
    columns: (usize, usize),
) -> Range<usize> {
    let last: usize = [batch, rows, columns].iter().map(|&(count, stride)| (count - 1) * stride).sum();
    offset..offset + last + 1
}

fn matrix<T: Real>(matrix: Matrix<'_, Cpu<T>>, batch: usize, rows: usize, columns: usize) -> &[T] {
    let Matrix { region, row_stride, column_stride, batch_stride } = matrix;
    let range = extent(region.offset, (batch, batch_stride), (rows, row_stride), (columns, column_stride));
    &region.buffer[range]
}

fn matrix_mut<T: Real>(matrix: MatrixMut<'_, Cpu<T>>, batch: usize, rows: usize, columns: usize) -> &mut [T] {
    let MatrixMut { region, row_stride, column_stride, batch_stride } = matrix;
    let range = extent(region.offset, (batch, batch_stride), (rows, row_stride), (columns, column_stride));
    &mut region.buffer[range]
}

impl<T: Real> Backend for Cpu<T> {
    type Element = T;
    type Buffer = HostBuffer<T>;
    type Indices = Vec<u32>;
    type Scalar = f64;
    type Event = Instant;

    fn synchronise(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn queue(&self) -> Result<Self, DeviceError> {
        Ok(self.clone())
    }

    // Operations are complete when they return, so any two calls are in order.

    fn record(&self) -> Instant {
        Instant::now()
    }

    fn wait_for(&self, _event: &Instant) {}

    fn seconds_between(&self, from: &Instant, to: &Instant) -> f64 {
        to.saturating_duration_since(*from).as_secs_f64()
    }

    fn read(&self, scalar: &f64) -> f64 {
        *scalar
    }

    fn zeros(&self, len: usize) -> HostBuffer<T> {
        HostBuffer::zeros(len)
    }

    fn uninitialised(&self, len: usize) -> HostBuffer<T> {
        HostBuffer::uninitialised(len)
    }

    fn len(&self, buffer: &HostBuffer<T>) -> usize {
        buffer.len()
    }

    fn upload(&self, from: &[T]) -> HostBuffer<T> {
        HostBuffer::from(from)
    }

    fn upload_indices(&self, from: &[u32]) -> Vec<u32> {
        from.to_vec()
    }

    fn write(&self, from: &[T], to: RegionMut<'_, Self>) {
        slice_mut(to, from.len()).copy_from_slice(from);
    }

    fn download(&self, from: Region<'_, Self>, to: &mut [T]) {
        to.copy_from_slice(slice(from, to.len()));
    }

    fn host<'a>(&self, buffer: &'a HostBuffer<T>) -> Option<&'a [T]> {
        Some(buffer)
    }

    fn host_mut<'a>(&self, buffer: &'a mut HostBuffer<T>) -> Option<&'a mut [T]> {
        Some(buffer)
    }

    fn copy(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        slice_mut(to, len).copy_from_slice(slice(from, len));
    }

    fn copy_matrices(&self, product: GemmShape, from: Matrix<'_, Self>, to: MatrixMut<'_, Self>) {
        let GemmShape { batch, m, n, .. } = product;
        if batch * m * n == 0 {
            return;
        }
        let (from_strides, to_strides) =
            ((from.batch_stride, from.row_stride), (to.batch_stride, to.row_stride));
        assert!(from.column_stride == 1 && to.column_stride == 1, "rows to copy are contiguous");
        let (from, to) = (matrix(from, batch, m, n), matrix_mut(to, batch, m, n));
        for (index, row) in (0..batch).flat_map(|index| (0..m).map(move |row| (index, row))) {
            let from = &from[index * from_strides.0 + row * from_strides.1..][..n];
            to[index * to_strides.0 + row * to_strides.1..][..n].copy_from_slice(from);
        }
    }

    fn fill_zero(&self, len: usize, to: RegionMut<'_, Self>) {
        slice_mut(to, len).fill(T::ZERO);
    }

    fn add(&self, len: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        kernels::add(self.simd, slice(from, len), slice_mut(to, len));
    }

    fn scale(&self, len: usize, factor: f64, to: RegionMut<'_, Self>) {
        kernels::scale(self.simd, T::from_f64(factor), slice_mut(to, len));
    }

    fn sum_of_squares(&self, len: usize, of: Region<'_, Self>) -> f64 {
        kernels::sum_of_squares(self.simd, slice(of, len))
    }

    fn matmul(
        &self,
        product: GemmShape,
        alpha: f64,
        a: Matrix<'_, Self>,
        b: Matrix<'_, Self>,
        beta: f64,
        c: MatrixMut<'_, Self>,
    ) {
        let GemmShape { batch, m, n, k } = product;
        if batch * m * n == 0 {
            return;
        }
        assert!(k > 0, "an empty sum is no product");
        let [a_strides, b_strides] =
            [&a, &b].map(|x| (x.batch_stride, x.row_stride as isize, x.column_stride as isize));
        let c_strides = (c.batch_stride, c.row_stride as isize, c.column_stride as isize);
        let (a, b, c) = (matrix(a, batch, m, k), matrix(b, batch, k, n), matrix_mut(c, batch, m, n));
        for index in 0..batch {
            // SAFETY: the three slices hold every element of every member of the batch, as `extent` found
            // them, and `c` is borrowed uniquely.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    c.as_mut_ptr().add(index * c_strides.0),
                    c_strides.2,
                    c_strides.1,
                    beta != 0.0,
                    a.as_ptr().add(index * a_strides.0),
                    a_strides.2,
                    a_strides.1,
                    b.as_ptr().add(index * b_strides.0),
                    b_strides.2,
                    b_strides.1,
                    T::from_f64(beta),
                    T::from_f64(alpha),
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }
    }

    fn add_row(&self, rows: usize, width: usize, row: Region<'_, Self>, to: RegionMut<'_, Self>) {
        kernels::add_row(self.simd, slice(row, width), slice_mut(to, rows * width));
    }

    fn sum_rows(&self, rows: usize, width: usize, from: Region<'_, Self>, to: RegionMut<'_, Self>) {
        kernels::sum_rows(self.simd, slice(from, rows * width), slice_mut(to, width));
    }

    fn norm_forward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        x: Region<'_, Self>,
        y: RegionMut<'_, Self>,
        statistics: RegionMut<'_, Self>,
    ) {
        let NormShape { norm, rows, width, epsilon } = norm;
        let (x, y, epsilon) = (slice(x, rows * width), slice_mut(y, rows * width), T::from_f64(epsilon));
        match norm {
            Norm::LayerNorm => {
                let (weight, bias) = slice(parameters, 2 * width).split_at(width);
                kernels::layer_norm(self.simd, epsilon, weight, bias, x, y, slice_mut(statistics, 2 * rows));
            }
            Norm::RmsNorm => {
                let weight = slice(parameters, width);
                kernels::rms_norm(self.simd, epsilon, weight, x, y, slice_mut(statistics, rows));
            }
        }
    }

    fn norm_backward(
        &self,
        norm: NormShape,
        parameters: Region<'_, Self>,
        gradients: RegionMut<'_, Self>,
        x: Region<'_, Self>,
        statistics: Region<'_, Self>,
        residual: Option<Region<'_, Self>>,
        gradient: RegionMut<'_, Self>,
    ) {
        let NormShape { norm, rows, width, .. } = norm;
        let (x, gradient) = (slice(x, rows * width), slice_mut(gradient, rows * width));
        let residual = residual.map_or(&[][..], |residual| slice(residual, rows * width));
        let weight = slice(parameters, width);
        match norm {
            Norm::LayerNorm => {
                let (weight_gradient, bias_gradient) = slice_mut(gradients, 2 * width).split_at_mut(width);
                let statistics = slice(statistics, 2 * rows);
                kernels::layer_norm_backward(
                    self.simd,
                    weight,
                    weight_gradient,
                    bias_gradient,
                    x,
                    statistics,
                    residual,
                    gradient,
                );
            }
            Norm::RmsNorm => {
                let (weight_gradient, statistics) = (slice_mut(gradients, width), slice(statistics, rows));
                kernels::rms_norm_backward(
                    self.simd,
                    weight,
                    weight_gradient,
                    x,
                    statistics,
                    residual,
                    gradient,
                );
            }
        }
    }

    fn heads_at_once(&self, heads: usize) -> usize {
        self.heads_at_once.min(heads)
    }

    fn rotary(&self, rotary: RotaryShape, direction: Direction, rows: RegionMut<'_, Self>) {
        let RotaryShape { positions, repeat, row_width, heads, head_dim, theta } = rotary;
        let sign = match direction {
            Direction::Forward => 1.0,
            Direction::Backward => -1.0,
        };
        // Rotary embedding: each pair rotates by a fixed angle per position. Repeated multiplication of unit
        // complex numbers in double precision is exact enough for any sequence length.
        let turns: Vec<(f64, f64)> = (0..head_dim / 2)
            .map(|i| theta.powf(-((2 * i) as f64) / head_dim as f64).sin_cos())
            .map(|(sine, cosine)| (cosine, sign * sine))
            .collect();
        let mut angles = vec![(1.0, 0.0); turns.len()];
        let (mut cosines, mut sines) = (vec![T::ONE; turns.len()], vec![T::ZERO; turns.len()]);
        let rows = slice_mut(rows, positions * repeat * row_width);
        for rows in rows.chunks_exact_mut(repeat * row_width) {
            for row in rows.chunks_exact_mut(row_width) {
                kernels::rotate(self.simd, &cosines, &sines, &mut row[..heads * head_dim]);
            }
            for (i, (angle, turn)) in angles.iter_mut().zip(&turns).enumerate() {
                *angle = (angle.0 * turn.0 - angle.1 * turn.1, angle.0 * turn.1 + angle.1 * turn.0);
                (cosines[i], sines[i]) = (T::from_f64(angle.0), T::from_f64(angle.1));
            }
        }
    }

    fn causal_softmax(&self, count: usize, seq_len: usize, scores: RegionMut<'_, Self>) {
        kernels::causal_softmax(self.simd, seq_len, slice_mut(scores, count * seq_len * seq_len));
    }

    fn causal_softmax_backward(
        &self,
        count: usize,
        seq_len: usize,
        scale: f64,
        probabilities: Region<'_, Self>,
        gradient: RegionMut<'_, Self>,
    ) {
        let len = count * seq_len * seq_len;
        let (probabilities, gradient) = (slice(probabilities, len), slice_mut(gradient, len));
        kernels::causal_softmax_backward(self.simd, seq_len, T::from_f64(scale), probabilities, gradient);
    }

    fn activation_forward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: Region<'_, Self>,
        outer: RegionMut<'_, Self>,
    ) {
        let (outer, len) = (slice_mut(outer, rows * width), rows * width);
        match activation {
            Activation::Gelu => kernels::gelu(self.simd, slice(inner, len), outer),
            Activation::SwiGlu => kernels::swiglu(self.simd, width, slice(inner, 2 * len), outer),
        }
    }

    fn activation_backward(
        &self,
        activation: Activation,
        rows: usize,
        width: usize,
        inner: RegionMut<'_, Self>,
        outer: RegionMut<'_, Self>,
    ) {
        let (outer, len) = (slice_mut(outer, rows * width), rows * width);
        match activation {
            Activation::Gelu => kernels::gelu_backward(self.simd, slice_mut(inner, len), outer),
            Activation::SwiGlu => {
                kernels::swiglu_backward(self.simd, width, slice_mut(inner, 2 * len), outer);
            }
        }
    }

    fn gather_rows(
        &self,
        table: TableShape,
        indices: &Vec<u32>,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let width = table.width;
        let (from, to) = (slice(from, table.rows * width), slice_mut(to, indices.len() * width));
        for (&index, to) in indices.iter().zip(to.chunks_exact_mut(width)) {
            match table.local(index) {
                Some(row) => to.copy_from_slice(&from[row * width..][..width]),
                None => to.fill(T::ZERO),
            }
        }
    }

    fn scatter_add_rows(
        &self,
        table: TableShape,
        indices: &Vec<u32>,
        from: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let width = table.width;
        let (from, to) = (slice(from, indices.len() * width), slice_mut(to, table.rows * width));
        for (&index, from) in indices.iter().zip(from.chunks_exact(width)) {
            if let Some(row) = table.local(index) {
                kernels::add(self.simd, from, &mut to[row * width..][..width]);
            }
        }
    }

    fn add_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        table: Region<'_, Self>,
        to: RegionMut<'_, Self>,
    ) {
        let (table, to) = (slice(table, positions * width), slice_mut(to, positions * repeat * width));
        for (row, to) in table.chunks_exact(width).zip(to.chunks_exact_mut(repeat * width)) {
            kernels::add_row(self.simd, row, to);
        }
    }

    fn sum_positions(
        &self,
        positions: usize,
        repeat: usize,
        width: usize,
        from: Region<'_, Self>,
        table: RegionMut<'_, Self>,
    ) {
        let (from, table) = (slice(from, positions * repeat * width), slice_mut(table, positions * width));
        for (from, row) in from.chunks_exact(repeat * width).zip(table.chunks_exact_mut(width)) {
            kernels::sum_rows(self.simd, from, row);
        }
    }

    fn row_max(&self, rows: usize, width: usize, x: Region<'_, Self>, max: RegionMut<'_, Self>) {
        kernels::row_max(self.simd, width, slice(x, rows * width), slice_mut(max, rows));
    }

    fn exponentials(
        &self,
        classes: TableShape,
        targets: &Vec<u32>,
        max: Region<'_, Self>,
        logits: RegionMut<'_, Self>,
        sums: RegionMut<'_, Self>,
    ) {
        let rows = targets.len();
        let (max, logits) = (slice(max, rows), slice_mut(logits, rows * classes.rows));
        let (sums, at_target) = slice_mut(sums, 2 * rows).split_at_mut(rows);
        for (row, logits) in logits.chunks_exact_mut(classes.rows).enumerate() {
            at_target[row] = classes.local(targets[row]).map_or(T::ZERO, |class| logits[class] - max[row]);
            sums[row] = kernels::exponentials(self.simd, max[row], logits);
        }
    }

    fn cross_entropy(&self, rows: usize, sums: Region<'_, Self>) -> f64 {
        let (sums, at_target) = slice(sums, 2 * rows).split_at(rows);
        sums.iter().zip(at_target).map(|(sum, target)| sum.to_f64().ln() - target.to_f64()).sum()
    }

    fn cross_entropy_backward(
        &self,
        classes: TableShape,
        targets: &Vec<u32>,
        sums: Region<'_, Self>,
        scale: f64,
        exponentials: RegionMut<'_, Self>,
    ) {
        let (sums, scale) = (slice(sums, targets.len()), T::from_f64(scale));
        let exponentials = slice_mut(exponentials, targets.len() * classes.rows);
        for (row, exponentials) in exponentials.chunks_exact_mut(classes.rows).enumerate() {
            kernels::scale(self.simd, scale / sums[row], exponentials);
            if let Some(class) = classes.local(targets[row]) {
                exponentials[class] -= scale;
            }
        }
    }

    fn adamw_step(
        &self,
        len: usize,
        step: AdamWStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        first_moment: RegionMut<'_, Self>,
        second_moment: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    ) {
        assert!(working.is_none(), "the CPU computes in one precision");
        kernels::adamw(
            self.simd,
            T::from_f64(step.gradient_scale),
            T::from_f64(step.beta1),
            T::from_f64(step.beta2),
            T::from_f64(step.decay),
            T::from_f64(step.rate),
            T::from_f64(step.root),
            T::from_f64(step.epsilon),
            slice(gradient, len),
            slice_mut(parameter, len),
            slice_mut(first_moment, len),
            slice_mut(second_moment, len),
        );
    }

    fn sgd_momentum_step(
        &self,
        len: usize,
        step: SgdStep,
        gradient: Region<'_, Self>,
        parameter: RegionMut<'_, Self>,
        momentum: RegionMut<'_, Self>,
        working: Option<RegionMut<'_, Self>>,
    ) {
        assert!(working.is_none(), "the CPU computes in one precision");
        kernels::sgd(
            self.simd,
            T::from_f64(step.gradient_scale),
            T::from_f64(step.momentum),
            T::from_f64(step.weight_decay),
            T::from_f64(step.rate),
            slice(gradient, len),
            slice_mut(parameter, len),
            slice_mut(momentum, len),
        );
    }
}
