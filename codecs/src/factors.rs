//! Low-rank factors (Vogels et al., PowerSGD, 1905.13727, algorithm 1), in two forms that must not be mixed: as PyTorch's
//! communication hook does it (both factors every step; the error is against the mean's approximation), and as its authors'
//! own package does (one factor a step, alternating; the error is against the member's own approximation). `tests/parity.rs`
//! holds both against their references.
//!
//! The hook also keeps an "error" of what travels as it is, the member's gradient less the mean. Over the members it sums
//! to zero, so it changes no result; it is left out here.

use crate::layout::{Layout, Matrix};
use crate::skinny::{
    add_and_multiply, add_and_multiply_transposed, expand, multiply_transposed, subtract_expanded,
};
use crate::{Exchange, Phase, Report};

pub(crate) struct Factors {
    layout: Layout,
    half: bool,
    /// What has not been sent yet; zero where parameters travel as they are.
    error: Vec<f32>,
    /// Left factors, `rows x rank` each; kept between steps by the half form alone, which begins with them.
    left: Vec<f32>,
    /// Right factors, `columns x rank` each.
    right: Vec<f32>,
    /// Steps so far; the half form renews the right factors in even ones.
    step: u64,
}

/// Normally distributed numbers, the same on all members (Box and Muller, 1958).
fn normal(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed ^ 0x5DEE_CE66_D1CE_4E5B;
    let mut uniform = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((mixed ^ (mixed >> 31)) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    };
    (0..count)
        .map(|_| ((-2.0 * uniform().ln()).sqrt() * (std::f64::consts::TAU * uniform()).cos()) as f32)
        .collect()
}

impl Factors {
    pub fn new(layout: Layout, elements: usize, seed: u64, half: bool) -> Self {
        let (left, right) = match half {
            true => (normal(layout.left(), seed), vec![0.0; layout.right()]),
            false => (Vec::new(), normal(layout.right(), seed)),
        };
        Self { error: vec![0.0; elements], left, right, layout, half, step: 0 }
    }

    pub fn state(&self) -> usize {
        self.error.len() + self.left.len() + self.right.len()
    }

    /// Replaces the factors that the first products are made with.
    pub fn begin_with(&mut self, factors: &[f32]) {
        let first = if self.half { &mut self.left } else { &mut self.right };
        first.iter_mut().zip(factors).for_each(|(own, given)| *own = *given);
    }

    pub fn kept(&self) -> &[f32] {
        &self.error
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
        memory: bool,
    ) -> Result<Report, X::Error> {
        let (whole, lost) = if self.half {
            self.one_factor(gradient, exchange)?
        } else {
            self.both_factors(gradient, exchange)?
        };
        self.step += 1;
        if !memory {
            self.error.fill(0.0);
        }
        Ok(Report::of(whole, lost))
    }

    /// Returns the sums of squares of what was compressed and of what it lost.
    fn both_factors<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
    ) -> Result<(f64, f64), X::Error> {
        let size = exchange.size() as f32;
        let (mut whole, mut lost) = (0.0, 0.0);
        self.sum_dense(gradient, exchange)?;
        let mut left = vec![0.0; self.layout.left()];
        // From here on `error` is the whole matrix: this step's gradient and what earlier ones left.
        for ((matrix, left), right) in each(&self.layout, &mut left, &mut self.right) {
            orthogonalise(right, matrix.rank);
            let range = matrix.range();
            whole += add_and_multiply(matrix, &gradient[range.clone()], &mut self.error[range], right, left);
        }
        if !left.is_empty() {
            exchange.sum(&mut left)?;
        }
        for ((matrix, left), right) in each(&self.layout, &mut left, &mut self.right) {
            orthogonalise(left, matrix.rank);
            multiply_transposed(matrix, &self.error[matrix.range()], left, right);
        }
        if !left.is_empty() {
            exchange.sum(&mut self.right)?;
        }
        self.right.iter_mut().for_each(|value| *value /= size);
        for ((matrix, left), right) in each(&self.layout, &mut left, &mut self.right) {
            let range = matrix.range();
            // Against the approximation of the mean.
            let approximation = Some((&mut gradient[range.clone()], size));
            lost += subtract_expanded(matrix, left, right, &mut self.error[range], approximation);
        }
        Ok((whole, lost))
    }

    /// As [`Factors::both_factors`].
    fn one_factor<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
    ) -> Result<(f64, f64), X::Error> {
        let size = exchange.size() as f32;
        let renew_left = self.step % 2 == 1;
        let (mut whole, mut lost) = (0.0, 0.0);
        for ((matrix, left), right) in each(&self.layout, &mut self.left, &mut self.right) {
            let range = matrix.range();
            let (gradient, error) = (&gradient[range.clone()], &mut self.error[range]);
            if renew_left {
                orthogonalise(right, matrix.rank);
                whole += add_and_multiply(matrix, gradient, error, right, left);
            } else {
                orthogonalise(left, matrix.rank);
                whole += add_and_multiply_transposed(matrix, gradient, error, left, right);
            }
            // Against this member's own approximation.
            lost += subtract_expanded(matrix, left, right, error, None);
        }
        // One sum for the renewed factors and all that travels as it is.
        let renewed = if renew_left { &mut self.left } else { &mut self.right };
        let factors = renewed.len();
        let mut message = renewed.clone();
        self.layout.dense.iter().for_each(|range| message.extend_from_slice(&gradient[range.clone()]));
        if !message.is_empty() {
            exchange.sum(&mut message)?;
        }
        let mut at = factors;
        for range in &self.layout.dense {
            gradient[range.clone()].copy_from_slice(&message[at..at + range.len()]);
            at += range.len();
        }
        renewed.copy_from_slice(&message[..factors]);
        renewed.iter_mut().for_each(|value| *value /= size);
        for ((matrix, left), right) in each(&self.layout, &mut self.left, &mut self.right) {
            expand(matrix, left, right, size, &mut gradient[matrix.range()]);
        }
        Ok((whole, lost))
    }

    fn sum_dense<X: Exchange>(&self, gradient: &mut [f32], exchange: &mut X) -> Result<(), X::Error> {
        let mut message = Vec::with_capacity(self.layout.dense_elements());
        self.layout.dense.iter().for_each(|range| message.extend_from_slice(&gradient[range.clone()]));
        if message.is_empty() {
            return Ok(());
        }
        exchange.sum(&mut message)?;
        let mut at = 0;
        for range in &self.layout.dense {
            gradient[range.clone()].copy_from_slice(&message[at..at + range.len()]);
            at += range.len();
        }
        Ok(())
    }
}

/// Every matrix with its part of the flat factors.
fn each<'a>(
    layout: &'a Layout,
    mut left: &'a mut [f32],
    mut right: &'a mut [f32],
) -> impl Iterator<Item = ((&'a Matrix, &'a mut [f32]), &'a mut [f32])> {
    layout.matrices.iter().map(move |matrix| {
        let (own_left, rest) = std::mem::take(&mut left).split_at_mut(matrix.rows * matrix.rank);
        left = rest;
        let (own_right, rest) = std::mem::take(&mut right).split_at_mut(matrix.columns * matrix.rank);
        right = rest;
        ((matrix, own_left), own_right)
    })
}

/// Orthonormal columns of a row-major `n x rank` factor: Gram and Schmidt twice, which is as good as a QR decomposition;
/// a column that depends on the others becomes zero.
fn orthogonalise(factor: &mut [f32], rank: usize) {
    let rows = factor.len() / rank;
    for column in 0..rank {
        let dot = |factor: &[f32], a: usize, b: usize| -> f64 {
            (0..rows).map(|row| f64::from(factor[row * rank + a]) * f64::from(factor[row * rank + b])).sum()
        };
        let before = dot(factor, column, column);
        for _ in 0..2 {
            for earlier in 0..column {
                let along = dot(factor, earlier, column) as f32;
                for row in 0..rows {
                    factor[row * rank + column] -= along * factor[row * rank + earlier];
                }
            }
        }
        let norm = dot(factor, column, column);
        let inverse = if norm > 1e-12 * before { (1.0 / norm.sqrt()) as f32 } else { 0.0 };
        (0..rows).for_each(|row| factor[row * rank + column] *= inverse);
    }
}

pub(crate) fn phases(layout: &Layout, half: bool) -> Vec<Phase> {
    let sums = if half {
        // Left and right factors take turns; the greater stands for both.
        vec![layout.dense_elements() + layout.left().max(layout.right())]
    } else {
        vec![layout.dense_elements(), layout.left(), layout.right()]
    };
    sums.into_iter().filter(|elements| *elements > 0).map(|elements| Phase::Sum { elements }).collect()
}
