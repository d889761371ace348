//! Low-rank factors (Vogels et al., PowerSGD, 1905.13727, algorithm 1), in two forms that must not be mixed:
//! that of PyTorch's communication hook (both factors every step; the error is relative to the approximation
//! of the mean), and that of the authors' own package (one factor per step, alternating; the error is
//! relative to the member's own approximation). `tests/it/parity.rs` compares both with their references.
//!
//! The hook also keeps an "error" of uncompressed parameters: the member's gradient minus the mean. Over the
//! members it sums to zero and does not change any result; it is left out here.

use crate::arithmetic::{Arithmetic, Factor, Part, PartMut};
use crate::host::{exact_dot, vectorised};
use crate::layout::{Layout, Matrix};
use crate::{CodingQuality, Exchange, Phase};
use std::borrow::BorrowMut;
use std::ops::Range;

pub(crate) struct Factors<A: Arithmetic> {
    layout: Layout,
    lefts: Vec<Factor>,
    rights: Vec<Factor>,
    half: bool,
    /// Error feedback: the part that has not been sent yet; zero for parameters that are sent uncompressed.
    error: A::Owned,
    /// Left factors, `rows x rank` each; kept between steps only by the half form, which begins with them.
    left: Option<A::Owned>,
    /// Right factors, `columns x rank` each.
    right: A::Owned,
    /// Steps so far; the half form renews the right factors in even ones.
    step: u64,
}

type Place = (Matrix, Range<usize>, Range<usize>);

/// Normally distributed random numbers, the same on all members (Box and Muller, 1958).
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

/// Squared norms of the compressed matrices, and of their compression errors.
type Squares<A> = (Vec<<A as Arithmetic>::Sum>, Vec<<A as Arithmetic>::Sum>);

impl<A: Arithmetic> Factors<A> {
    pub fn new(on: &A, layout: Layout, elements: usize, seed: u64, half: bool) -> Self {
        let right = on.zeros(layout.right());
        let left = half.then(|| on.zeros(layout.left()));
        let (lefts, rights) = (layout.lefts(), layout.rights());
        let first = if half { layout.left() } else { layout.right() };
        let mut factors =
            Self { error: on.zeros(elements), left, right, lefts, rights, layout, half, step: 0 };
        factors.begin_with(on, &normal(first, seed));
        factors
    }

    /// Replaces the initial factors.
    pub fn begin_with(&mut self, on: &A, given: &[f32]) {
        let first = self.left.as_mut().unwrap_or(&mut self.right);
        on.on_host(PartMut::whole(first), |own| {
            own.iter_mut().zip(given).for_each(|(own, given)| *own = *given);
        });
    }

    pub fn kept(&self) -> &A::Owned {
        &self.error
    }

    pub fn state(&self) -> usize {
        let len = |owned: &A::Owned| Part::<A>::whole(owned).len();
        len(&self.error) + len(&self.right) + self.left.as_ref().map_or(0, len)
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
        memory: bool,
    ) -> Result<CodingQuality, X::Error> {
        let (whole, lost) = match (self.half, self.left.take()) {
            (true, Some(left)) => self.one_factor(on, left, gradient.again(), exchange)?,
            _ => self.both_factors(on, gradient.again(), exchange)?,
        };
        self.step += 1;
        let read = |sums: Vec<A::Sum>| sums.iter().map(|sum| on.read(sum)).sum();
        let report = CodingQuality::of(read(whole), read(lost));
        if !memory {
            on.fill_zero(PartMut::whole(&mut self.error));
        }
        Ok(report)
    }

    /// Returns the squared norms of the compressed matrices and of their compression errors.
    fn both_factors<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
    ) -> Result<Squares<A>, X::Error> {
        let size = exchange.size() as f32;
        let dense = self.layout.dense_elements();
        if dense > 0 {
            let mut message = on.zeros(dense);
            self.collect(on, &gradient, PartMut::whole(&mut message));
            on.on_host(PartMut::whole(&mut message), |values| exchange.sum(values))?;
            self.spread(on, Part::whole(&message), gradient.again());
        }
        let mut left = on.zeros(self.layout.left());
        let whole = self.renew_left(on, gradient.read(), &mut left);
        if !self.lefts.is_empty() {
            on.on_host(PartMut::whole(&mut left), |values| exchange.sum(values))?;
        }
        on.orthogonalise(&self.lefts, &mut left);
        let places = self.places();
        for (matrix, own_left, own_right) in &places {
            let (whole, left) = (Part::whole(&self.error), Part::whole(&left));
            let (whole, left) = (whole.part(matrix.range()), left.part(own_left.clone()));
            on.multiply_transposed(
                matrix.shape(),
                whole,
                left,
                part::<A>(&mut self.right, own_right.clone()),
            );
        }
        if !self.rights.is_empty() {
            on.on_host(PartMut::whole(&mut self.right), |values| exchange.sum(values))?;
        }
        on.divide(size, PartMut::whole(&mut self.right));
        let mut lost = Vec::with_capacity(places.len());
        for (matrix, own_left, own_right) in places {
            let (left, right) = (Part::whole(&left).part(own_left), Part::whole(&self.right).part(own_right));
            // The error relative to the approximation of the mean.
            let error = part::<A>(&mut self.error, matrix.range());
            let approximation = Some((gradient.part_mut(matrix.range()), size));
            lost.push(on.subtract_expanded(matrix.shape(), left, right, error, approximation));
        }
        Ok((whole, lost))
    }

    /// Like [`both_factors`](Factors::both_factors), with one factor per step.
    fn one_factor<X: Exchange>(
        &mut self,
        on: &A,
        mut left: A::Owned,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
    ) -> Result<Squares<A>, X::Error> {
        let size = exchange.size() as f32;
        let renew_left = self.step % 2 == 1;
        let whole = match renew_left {
            true => self.renew_left(on, gradient.read(), &mut left),
            false => self.renew_right(on, gradient.read(), &mut left),
        };
        let places = self.places();
        let mut lost = Vec::with_capacity(places.len());
        for (matrix, own_left, own_right) in &places {
            let (left, right) = (Part::whole(&left), Part::whole(&self.right));
            let (left, right) = (left.part(own_left.clone()), right.part(own_right.clone()));
            // The error relative to this member's own approximation.
            let error = part::<A>(&mut self.error, matrix.range());
            lost.push(on.subtract_expanded(matrix.shape(), left, right, error, None));
        }
        // One all-reduce for the renewed factors and all uncompressed parameters.
        let renewed = if renew_left { &mut left } else { &mut self.right };
        let factors = Part::<A>::whole(renewed).len();
        let end = factors + self.layout.dense_elements();
        let mut message = on.zeros(end);
        on.copy(Part::whole(renewed), part::<A>(&mut message, 0..factors));
        self.collect(on, &gradient, part::<A>(&mut message, factors..end));
        if end > 0 {
            on.on_host(PartMut::whole(&mut message), |values| exchange.sum(values))?;
        }
        self.spread(on, Part::whole(&message).part(factors..end), gradient.again());
        let renewed = if renew_left { &mut left } else { &mut self.right };
        on.copy(Part::whole(&message).part(0..factors), PartMut::whole(renewed));
        on.divide(size, PartMut::whole(renewed));
        for (matrix, own_left, own_right) in places {
            let (left, right) = (Part::whole(&left).part(own_left), Part::whole(&self.right).part(own_right));
            on.expand(matrix.shape(), left, right, size, gradient.part_mut(matrix.range()));
        }
        self.left = Some(left);
        Ok((whole, lost))
    }

    /// Adds the gradient to the kept error and multiplies the resulting matrices by the right factors.
    /// Returns the sums of squares of the matrices.
    fn renew_left(&mut self, on: &A, gradient: Part<'_, A>, left: &mut A::Owned) -> Vec<A::Sum> {
        on.orthogonalise(&self.rights, &mut self.right);
        let places = self.places().into_iter();
        let product = |(matrix, own_left, own_right): Place| {
            let (gradient, right) = (gradient.part(matrix.range()), Part::whole(&self.right).part(own_right));
            let whole = part::<A>(&mut self.error, matrix.range());
            on.add_and_multiply(matrix.shape(), gradient, whole, right, part::<A>(left, own_left))
        };
        places.map(product).collect()
    }

    /// Renews the right factors from the left ones.
    fn renew_right(&mut self, on: &A, gradient: Part<'_, A>, left: &mut A::Owned) -> Vec<A::Sum> {
        on.orthogonalise(&self.lefts, left);
        let places = self.places().into_iter();
        let product = |(matrix, own_left, own_right): Place| {
            let (gradient, left) = (gradient.part(matrix.range()), Part::whole(left).part(own_left));
            let whole = part::<A>(&mut self.error, matrix.range());
            let right = part::<A>(&mut self.right, own_right);
            on.add_and_multiply_transposed(matrix.shape(), gradient, whole, left, right)
        };
        places.map(product).collect()
    }

    /// Every matrix, and where its left and its right factor lie.
    fn places(&self) -> Vec<Place> {
        let range = |factor: &Factor| factor.offset..factor.offset + factor.rows * factor.rank;
        let factors = self.lefts.iter().map(range).zip(self.rights.iter().map(range));
        self.layout.matrices.iter().zip(factors).map(|(matrix, (l, r))| (*matrix, l, r)).collect()
    }

    /// Copies the uncompressed parameters into one buffer.
    fn collect(&self, on: &A, gradient: &PartMut<'_, A>, mut message: PartMut<'_, A>) {
        let mut at = 0;
        for range in &self.layout.dense {
            on.copy(gradient.part(range.clone()), message.part_mut(at..at + range.len()));
            at += range.len();
        }
    }

    /// The inverse of [`collect`](Factors::collect).
    fn spread(&self, on: &A, message: Part<'_, A>, mut gradient: PartMut<'_, A>) {
        let mut at = 0;
        for range in &self.layout.dense {
            on.copy(message.part(at..at + range.len()), gradient.part_mut(range.clone()));
            at += range.len();
        }
    }
}

fn part<A: Arithmetic>(owned: &mut A::Owned, range: Range<usize>) -> PartMut<'_, A> {
    PartMut::new(owned.borrow_mut(), range)
}

/// Makes the columns of a row-major `n x rank` factor orthonormal: Gram-Schmidt twice, as accurate as a QR
/// decomposition; a column that depends on the others becomes zero.
pub(crate) fn orthogonalise(factor: &mut [f32], rank: usize) {
    let rows = factor.len() / rank;
    if rows == 0 {
        return;
    }
    // Column-major, because the algorithm works on columns.
    let mut columns = vec![0.0; factor.len()];
    for (column, values) in columns.chunks_exact_mut(rows).enumerate() {
        values.iter_mut().zip(factor.iter().skip(column).step_by(rank)).for_each(|(to, from)| *to = *from);
    }
    for column in 0..rank {
        let (earlier, own) = columns.split_at_mut(column * rows);
        let own = &mut own[..rows];
        vectorised(|| {
            let before = exact_dot(own, own);
            for _ in 0..2 {
                for earlier in earlier.chunks_exact(rows) {
                    let along = exact_dot(earlier, own) as f32;
                    own.iter_mut().zip(earlier).for_each(|(own, earlier)| *own -= along * earlier);
                }
            }
            let norm = exact_dot(own, own);
            let inverse = if norm > 1e-12 * before { (1.0 / norm.sqrt()) as f32 } else { 0.0 };
            own.iter_mut().for_each(|own| *own *= inverse);
        });
    }
    for (column, values) in columns.chunks_exact(rows).enumerate() {
        factor.iter_mut().skip(column).step_by(rank).zip(values).for_each(|(to, from)| *to = *from);
    }
}

pub(crate) fn phases(layout: &Layout, half: bool) -> Vec<Phase> {
    let sums = if half {
        // Left and right factors are sent in turn; the size is that of the larger one.
        vec![layout.dense_elements() + layout.left().max(layout.right())]
    } else {
        vec![layout.dense_elements(), layout.left(), layout.right()]
    };
    sums.into_iter().filter(|elements| *elements > 0).map(|elements| Phase::Sum { elements }).collect()
}
