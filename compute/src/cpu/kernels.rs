//! The kernels that are not GEMMs.

use super::real::Real;
use super::simd::{Simd, kernels};

/// Independent partial sums: enough for one AVX-512 register of `f32`, two of `f64`.
const LANES: usize = 16;

/// `Σ f(i)` for `i` in `0..len`.
#[inline(always)]
fn sum_by<T: Real>(len: usize, f: impl Fn(usize) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        for lane in 0..LANES {
            lanes[lane] += f(start + lane);
        }
    }
    let mut total = T::ZERO;
    for lane in lanes {
        total += lane;
    }
    for i in whole..len {
        total += f(i);
    }
    total
}

#[inline(always)]
fn largest<T: Real>(x: &[T]) -> T {
    let larger = |a: T, b: T| if b > a { b } else { a };
    let mut lanes = [T::LOWEST; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] = larger(lanes[lane], chunk[lane]);
        }
    }
    lanes.iter().chain(rest).fold(T::LOWEST, |a, &b| larger(a, b))
}

/// GELU's tanh form as `x σ(2z)`, since `1 + tanh z = 2 σ(2z)`; `2z` of `x`.
#[inline(always)]
fn gelu_argument<T: Real>(x: T) -> T {
    let (scale, cubic) = gelu_constants::<T>();
    scale * x * (T::ONE + cubic * x * x)
}

/// The derivative of [`gelu_argument`].
#[inline(always)]
fn gelu_argument_slope<T: Real>(x: T) -> T {
    let (scale, cubic) = gelu_constants::<T>();
    scale * (T::ONE + T::from_f64(3.0) * cubic * x * x)
}

/// `2 sqrt(2/π)` and the cubic term's factor.
#[inline(always)]
fn gelu_constants<T: Real>() -> (T, T) {
    (T::from_f64(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2), T::from_f64(0.044715))
}

kernels! {
    fn add<T>(from: &[T], to: &mut [T]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to += from;
        }
    }

    fn scale<T>(factor: T, to: &mut [T]) {
        for to in to {
            *to *= factor;
        }
    }

    fn sum_of_squares<T>(of: &[T]) -> f64 {
        sum_by(of.len(), |i| of[i].to_f64() * of[i].to_f64())
    }

    fn add_row<T>(row: &[T], to: &mut [T]) {
        for to in to.chunks_exact_mut(row.len()) {
            for (to, &row) in to.iter_mut().zip(row) {
                *to += row;
            }
        }
    }

    fn sum_rows<T>(from: &[T], to: &mut [T]) {
        for from in from.chunks_exact(to.len()) {
            for (to, &from) in to.iter_mut().zip(from) {
                *to += from;
            }
        }
    }

    fn layer_norm<T>(epsilon: T, weight: &[T], bias: &[T], x: &[T], y: &mut [T], statistics: &mut [T]) {
        let width = weight.len();
        let scale = T::from_f64(1.0 / width as f64);
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let mean = sum_by(width, |i| x[i]) * scale;
            let variance = sum_by(width, |i| (x[i] - mean) * (x[i] - mean)) * scale;
            let reciprocal = T::ONE / (variance + epsilon).sqrt();
            for i in 0..width {
                y[i] = (x[i] - mean) * reciprocal * weight[i] + bias[i];
            }
            statistics[2 * row] = mean;
            statistics[2 * row + 1] = reciprocal;
        }
    }

    /// `gradient` holds dy and receives dx, to which `residual` is added unless it is empty.
    fn layer_norm_backward<T>(
        weight: &[T],
        weight_gradient: &mut [T],
        bias_gradient: &mut [T],
        x: &[T],
        statistics: &[T],
        residual: &[T],
        gradient: &mut [T],
    ) {
        let width = weight.len();
        let scale = T::from_f64(1.0 / width as f64);
        let (weight_gradient, bias_gradient) = (&mut weight_gradient[..width], &mut bias_gradient[..width]);
        for (row, (x, gradient)) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)).enumerate() {
            let (mean, reciprocal) = (statistics[2 * row], statistics[2 * row + 1]);
            let normal = |i: usize| (x[i] - mean) * reciprocal;
            let sum = sum_by(width, |i| gradient[i] * weight[i]) * scale;
            let dot = sum_by(width, |i| gradient[i] * weight[i] * normal(i)) * scale;
            for i in 0..width {
                weight_gradient[i] += gradient[i] * normal(i);
                bias_gradient[i] += gradient[i];
                gradient[i] = reciprocal * (gradient[i] * weight[i] - sum - normal(i) * dot);
            }
            add_residual(row, residual, gradient);
        }
    }

    fn rms_norm<T>(epsilon: T, weight: &[T], x: &[T], y: &mut [T], statistics: &mut [T]) {
        let width = weight.len();
        let scale = T::from_f64(1.0 / width as f64);
        for (row, (x, y)) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)).enumerate() {
            let reciprocal = T::ONE / (sum_by(width, |i| x[i] * x[i]) * scale + epsilon).sqrt();
            for i in 0..width {
                y[i] = x[i] * reciprocal * weight[i];
            }
            statistics[row] = reciprocal;
        }
    }

    fn rms_norm_backward<T>(
        weight: &[T],
        weight_gradient: &mut [T],
        x: &[T],
        statistics: &[T],
        residual: &[T],
        gradient: &mut [T],
    ) {
        let width = weight.len();
        let scale = T::from_f64(1.0 / width as f64);
        let weight_gradient = &mut weight_gradient[..width];
        for (row, (x, gradient)) in x.chunks_exact(width).zip(gradient.chunks_exact_mut(width)).enumerate() {
            let reciprocal = statistics[row];
            let dot = sum_by(width, |i| gradient[i] * weight[i] * x[i]) * reciprocal * scale;
            for i in 0..width {
                let normal = x[i] * reciprocal;
                weight_gradient[i] += gradient[i] * normal;
                gradient[i] = reciprocal * (gradient[i] * weight[i] - normal * dot);
            }
            add_residual(row, residual, gradient);
        }
    }

    /// Rotates pairs `(i, i + half)` of every head in `row` by the angles whose cosines and sines are given.
    fn rotate<T>(cosines: &[T], sines: &[T], row: &mut [T]) {
        let half = cosines.len();
        for head in row.chunks_exact_mut(2 * half) {
            let (first, second) = head.split_at_mut(half);
            for i in 0..half {
                let (a, b) = (first[i], second[i]);
                first[i] = a * cosines[i] - b * sines[i];
                second[i] = a * sines[i] + b * cosines[i];
            }
        }
    }

    fn causal_softmax<T>(seq_len: usize, scores: &mut [T]) {
        for (index, row) in scores.chunks_exact_mut(seq_len).enumerate() {
            let (seen, unseen) = row.split_at_mut(index % seq_len + 1);
            unseen.fill(T::ZERO);
            let max = largest(seen);
            for x in seen.iter_mut() {
                *x = (*x - max).exp();
            }
            let reciprocal = T::ONE / sum_by(seen.len(), |i| seen[i]);
            for x in seen {
                *x *= reciprocal;
            }
        }
    }

    fn causal_softmax_backward<T>(seq_len: usize, scale: T, probabilities: &[T], gradient: &mut [T]) {
        let rows = probabilities.chunks_exact(seq_len).zip(gradient.chunks_exact_mut(seq_len));
        for (index, (probabilities, gradient)) in rows.enumerate() {
            let (seen, unseen) = gradient.split_at_mut(index % seq_len + 1);
            unseen.fill(T::ZERO);
            let probabilities = &probabilities[..seen.len()];
            let dot = sum_by(seen.len(), |i| probabilities[i] * seen[i]);
            for i in 0..seen.len() {
                seen[i] = probabilities[i] * (seen[i] - dot) * scale;
            }
        }
    }

    fn gelu<T>(inner: &[T], outer: &mut [T]) {
        for (outer, &x) in outer.iter_mut().zip(inner) {
            *outer = x * gelu_argument(x).sigmoid();
        }
    }

    /// `inner` becomes its gradient, `outer` changes from gradient to value.
    fn gelu_backward<T>(inner: &mut [T], outer: &mut [T]) {
        for (inner, outer) in inner.iter_mut().zip(outer) {
            let (x, gradient) = (*inner, *outer);
            let sigmoid = gelu_argument(x).sigmoid();
            *outer = x * sigmoid;
            *inner = gradient * sigmoid * (T::ONE + x * (T::ONE - sigmoid) * gelu_argument_slope(x));
        }
    }

    fn swiglu<T>(width: usize, inner: &[T], outer: &mut [T]) {
        for (inner, outer) in inner.chunks_exact(2 * width).zip(outer.chunks_exact_mut(width)) {
            let (gate, up) = inner.split_at(width);
            for i in 0..width {
                outer[i] = gate[i] * gate[i].sigmoid() * up[i];
            }
        }
    }

    fn swiglu_backward<T>(width: usize, inner: &mut [T], outer: &mut [T]) {
        for (inner, outer) in inner.chunks_exact_mut(2 * width).zip(outer.chunks_exact_mut(width)) {
            let (gate, up) = inner.split_at_mut(width);
            for i in 0..width {
                let (x, u, gradient) = (gate[i], up[i], outer[i]);
                let sigmoid = x.sigmoid();
                let silu = x * sigmoid;
                outer[i] = silu * u;
                up[i] = gradient * silu;
                gate[i] = gradient * u * sigmoid * (T::ONE + x * (T::ONE - sigmoid));
            }
        }
    }

    fn row_max<T>(width: usize, x: &[T], max: &mut [T]) {
        for (max, x) in max.iter_mut().zip(x.chunks_exact(width)) {
            *max = largest(x);
        }
    }

    /// Replaces `row` by `exp(row - max)` and returns the sum.
    fn exponentials<T>(max: T, row: &mut [T]) -> T {
        for x in row.iter_mut() {
            *x = (*x - max).exp();
        }
        sum_by(row.len(), |i| row[i])
    }

    fn adamw<T>(
        gradient_scale: T,
        beta1: T,
        beta2: T,
        decay: T,
        rate: T,
        root: T,
        epsilon: T,
        gradient: &[T],
        parameter: &mut [T],
        first_moment: &mut [T],
        second_moment: &mut [T],
    ) {
        let moments = first_moment.iter_mut().zip(second_moment);
        for ((parameter, &gradient), (first, second)) in parameter.iter_mut().zip(gradient).zip(moments) {
            let g = gradient * gradient_scale;
            let m = beta1 * *first + (T::ONE - beta1) * g;
            let v = beta2 * *second + (T::ONE - beta2) * g * g;
            *first = m;
            *second = v;
            *parameter = decay * *parameter - rate * m / (v.sqrt() * root + epsilon);
        }
    }

    fn sgd<T>(
        gradient_scale: T,
        momentum_factor: T,
        weight_decay: T,
        rate: T,
        gradient: &[T],
        parameter: &mut [T],
        momentum: &mut [T],
    ) {
        for ((parameter, &gradient), momentum) in parameter.iter_mut().zip(gradient).zip(momentum) {
            let g = gradient * gradient_scale + weight_decay * *parameter;
            let v = momentum_factor * *momentum + g;
            *momentum = v;
            *parameter -= rate * v;
        }
    }
}

/// Adds row `row` of `residual` to `to`, if there is a residual.
#[inline(always)]
fn add_residual<T: Real>(row: usize, residual: &[T], to: &mut [T]) {
    if !residual.is_empty() {
        let residual = &residual[row * to.len()..][..to.len()];
        for i in 0..to.len() {
            to[i] += residual[i];
        }
    }
}
