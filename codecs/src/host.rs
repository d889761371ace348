//! The host's arithmetic: loops over slices, defined in the modules of their codecs.

use crate::arithmetic::{Arithmetic, Factor, Form, Levels, LowRank, Part, PartMut};
use crate::{adam, factors, random, shards, signs, skinny, sparse};

/// The host, where numbers are slices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HostArithmetic;

fn slice<'a>(part: &Part<'a, HostArithmetic>) -> &'a [f32] {
    &part.values()[part.range()]
}

fn slice_mut(part: PartMut<'_, HostArithmetic>) -> &mut [f32] {
    let range = part.range();
    &mut part.into_values()[range]
}

/// Runs `work` compiled for the widest vectors of this processor. Its loops must be inlined for that.
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}

#[inline(always)]
pub(crate) fn square_sum(values: &[f32]) -> f64 {
    // Independent partial sums in f32 over short blocks can be vectorised by the compiler.
    values.chunks(1024).map(|part| f64::from(dot(part, part))).sum()
}

/// Independent partial sums.
const LANES: usize = 16;

#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a_lanes.zip(b_lanes) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Computed in double precision.
#[inline(always)]
pub(crate) fn exact_dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// The largest magnitude; zero for an empty slice.
#[inline(always)]
pub(crate) fn largest_magnitude(values: &[f32]) -> f32 {
    let mut most = [0.0_f32; LANES];
    let lanes = values.chunks_exact(LANES);
    let rest = lanes.remainder().iter().fold(0.0_f32, |most, value| most.max(value.abs()));
    for values in lanes {
        most.iter_mut().zip(values).for_each(|(most, value)| *most = most.max(value.abs()));
    }
    most.into_iter().fold(rest, f32::max)
}

impl Arithmetic for HostArithmetic {
    type Values = [f32];
    type Owned = Vec<f32>;
    type Bytes = Vec<u8>;
    type Sum = f64;

    fn zeros(&self, len: usize) -> Vec<f32> {
        vec![0.0; len]
    }

    fn len(values: &[f32]) -> usize {
        values.len()
    }

    fn on_host<R>(&self, at: PartMut<'_, Self>, work: impl FnOnce(&mut [f32]) -> R) -> R {
        work(slice_mut(at))
    }

    fn read(&self, sum: &f64) -> f64 {
        *sum
    }

    fn fetch(&self, bytes: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        bytes
    }

    fn bring(&self, bytes: Vec<u8>) -> Vec<u8> {
        bytes
    }

    fn fill_zero(&self, to: PartMut<'_, Self>) {
        slice_mut(to).fill(0.0);
    }

    fn copy(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) {
        slice_mut(to).copy_from_slice(slice(&from));
    }

    fn add(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) -> f64 {
        sparse::add_up(slice_mut(to), slice(&from))
    }

    fn add_with_momentum(
        &self,
        decay: f32,
        gradient: Part<'_, Self>,
        velocity: PartMut<'_, Self>,
        to: PartMut<'_, Self>,
    ) -> f64 {
        sparse::add_with_momentum(decay, slice_mut(to), slice_mut(velocity), slice(&gradient))
    }

    fn mix(&self, factor: f32, from: Part<'_, Self>, own: f32, to: PartMut<'_, Self>) {
        let (from, to) = (slice(&from), slice_mut(to));
        vectorised(|| to.iter_mut().zip(from).for_each(|(to, from)| *to = factor * from + own * *to));
    }

    fn agree(&self, decay: f32, gradient: PartMut<'_, Self>, momentum: PartMut<'_, Self>) {
        adam::agree(decay, slice_mut(gradient), slice_mut(momentum));
    }

    fn subtract(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) {
        slice_mut(to).iter_mut().zip(slice(&from)).for_each(|(to, from)| *to -= from);
    }

    fn divide(&self, divisor: f32, to: PartMut<'_, Self>) {
        slice_mut(to).iter_mut().for_each(|value| *value /= divisor);
    }

    fn clamp(&self, limit: f32, to: PartMut<'_, Self>) {
        slice_mut(to).iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
    }

    fn square_sum(&self, of: Part<'_, Self>) -> f64 {
        vectorised(|| square_sum(slice(&of)))
    }

    fn largest_magnitude(&self, of: Part<'_, Self>) -> f32 {
        vectorised(|| largest_magnitude(slice(&of)))
    }

    fn encode(&self, form: Form, of: Part<'_, Self>) -> Vec<u8> {
        shards::encode(form, slice(&of))
    }

    fn add_encoded(&self, form: Form, bytes: &Vec<u8>, to: PartMut<'_, Self>) {
        shards::add(form, bytes, slice_mut(to));
    }

    fn encode_signs(&self, scale: f32, of: Part<'_, Self>) -> Vec<u8> {
        signs::encode(slice(&of), scale)
    }

    fn add_signs(&self, bytes: &Vec<u8>, factor: f32, to: PartMut<'_, Self>) {
        signs::add(bytes, factor, slice_mut(to));
    }

    fn subtract_signs(&self, scale: f32, to: PartMut<'_, Self>) {
        signs::subtract(slice_mut(to), scale);
    }

    fn take_largest(
        &self,
        count: usize,
        values: PartMut<'_, Self>,
        velocity: Option<PartMut<'_, Self>>,
    ) -> (Vec<u8>, f64) {
        sparse::take_largest(slice_mut(values), velocity.map(slice_mut), count)
    }

    fn add_entries(&self, bytes: &Vec<u8>, to: PartMut<'_, Self>) {
        sparse::add(bytes, slice_mut(to));
    }

    fn encode_levels(&self, levels: Levels, state: u64, of: Part<'_, Self>) -> (Vec<u8>, f64) {
        random::encode(levels, state, slice(&of))
    }

    fn add_levels(&self, levels: Levels, bytes: &Vec<u8>, to: PartMut<'_, Self>) {
        random::add(levels, bytes, slice_mut(to));
    }

    fn orthogonalise(&self, factors: &[Factor], values: &mut Vec<f32>) {
        for factor in factors {
            let range = factor.offset..factor.offset + factor.rows * factor.rank;
            factors::orthogonalise(&mut values[range], factor.rank);
        }
    }

    fn add_and_multiply(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        right: Part<'_, Self>,
        left: PartMut<'_, Self>,
    ) -> f64 {
        skinny::add_and_multiply(shape, slice(&gradient), slice_mut(whole), slice(&right), slice_mut(left))
    }

    fn add_and_multiply_transposed(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    ) -> f64 {
        let (gradient, whole) = (slice(&gradient), slice_mut(whole));
        skinny::add_and_multiply_transposed(shape, gradient, whole, slice(&left), slice_mut(right))
    }

    fn multiply_transposed(
        &self,
        shape: LowRank,
        whole: Part<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    ) {
        skinny::multiply_transposed(shape, slice(&whole), slice(&left), slice_mut(right));
    }

    fn subtract_expanded(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        gradient: Option<(PartMut<'_, Self>, f32)>,
    ) -> f64 {
        let gradient = gradient.map(|(gradient, factor)| (slice_mut(gradient), factor));
        skinny::subtract_expanded(shape, slice(&left), slice(&right), slice_mut(whole), gradient)
    }

    fn expand(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        factor: f32,
        whole: PartMut<'_, Self>,
    ) {
        skinny::expand(shape, slice(&left), slice(&right), factor, slice_mut(whole));
    }
}
