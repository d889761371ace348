//! The arithmetic of codecs. Each codec is written once, over this trait; the host implements it with loops
//! over slices, a device with kernels over its own memory, which copies only the encoded bytes to the host.

use std::borrow::{Borrow, BorrowMut};
use std::fmt;
use std::ops::Range;

/// A place where gradients are encoded and decoded.
///
/// A call may return before the device has finished, unless it returns a value to the host. The device keeps
/// its failures until they are queried by the code that queues the work. Host and device write the same
/// format. Results have the same bits, except for sums of many numbers.
pub trait Arithmetic: Sized {
    /// fp32 numbers that are borrowed, such as gradients.
    type Values: ?Sized;
    /// Numbers that a codec keeps between steps.
    type Owned: BorrowMut<Self::Values> + Send;
    /// Encoded bytes, before they are sent or after they are received.
    type Bytes;
    /// A sum that may not have been computed yet.
    type Sum;

    fn zeros(&self, len: usize) -> Self::Owned;
    fn len(values: &Self::Values) -> usize;

    // Between here and the host.

    /// Runs `work` on the host: in place where possible, otherwise on a copy that is written back.
    fn on_host<R>(&self, at: PartMut<'_, Self>, work: impl FnOnce(&mut [f32]) -> R) -> R;
    fn read(&self, sum: &Self::Sum) -> f64;
    fn fetch(&self, bytes: Vec<Self::Bytes>) -> Vec<Vec<u8>>;
    fn bring(&self, bytes: Vec<u8>) -> Self::Bytes;

    // Number by number. Operands are equally long.

    fn fill_zero(&self, to: PartMut<'_, Self>);
    fn copy(&self, from: Part<'_, Self>, to: PartMut<'_, Self>);
    /// `to += from`; the sum of squares of the result.
    fn add(&self, from: Part<'_, Self>, to: PartMut<'_, Self>) -> Self::Sum;
    /// `velocity = decay velocity + gradient`, then `to += velocity`; the sum of squares of `to`.
    fn add_with_momentum(
        &self,
        decay: f32,
        gradient: Part<'_, Self>,
        velocity: PartMut<'_, Self>,
        to: PartMut<'_, Self>,
    ) -> Self::Sum;
    /// `to = factor from + own to`.
    fn mix(&self, factor: f32, from: Part<'_, Self>, own: f32, to: PartMut<'_, Self>);
    /// Replaces the new momentum in `gradient` by the gradient that produces it, `(new - decay old) / (1 -
    /// decay)`. Where the old momentum is zero, the new one is zero too.
    fn agree(&self, decay: f32, gradient: PartMut<'_, Self>, momentum: PartMut<'_, Self>);
    /// `to -= from`.
    fn subtract(&self, from: Part<'_, Self>, to: PartMut<'_, Self>);
    /// `to /= divisor`.
    fn divide(&self, divisor: f32, to: PartMut<'_, Self>);
    /// Limits magnitudes.
    fn clamp(&self, limit: f32, to: PartMut<'_, Self>);

    // Results over all numbers.

    fn square_sum(&self, of: Part<'_, Self>) -> Self::Sum;
    /// The largest magnitude; 0 for an empty part.
    fn largest_magnitude(&self, of: Part<'_, Self>) -> f32;

    // Formats.

    fn encode(&self, form: Form, of: Part<'_, Self>) -> Self::Bytes;
    /// Adds the numbers encoded in `bytes`.
    fn add_encoded(&self, form: Form, bytes: &Self::Bytes, to: PartMut<'_, Self>);
    /// Encodes `scale`, then one bit per number: set for zero and above.
    fn encode_signs(&self, scale: f32, of: Part<'_, Self>) -> Self::Bytes;
    /// Adds signs, multiplied by `factor` and by the scale encoded with them.
    fn add_signs(&self, bytes: &Self::Bytes, factor: f32, to: PartMut<'_, Self>);
    /// Subtracts `scale * sign(value)` from every value.
    fn subtract_signs(&self, scale: f32, to: PartMut<'_, Self>);
    /// Removes the `count` numbers of greatest magnitude and returns them as pairs of index (u32) and value,
    /// ordered by index; among equal ones, the first. Their places are set to zero, in `velocity` too. Also
    /// returns the sum of their squares.
    fn take_largest(
        &self,
        count: usize,
        values: PartMut<'_, Self>,
        velocity: Option<PartMut<'_, Self>>,
    ) -> (Self::Bytes, Self::Sum);
    /// Adds each value at its index.
    fn add_entries(&self, bytes: &Self::Bytes, to: PartMut<'_, Self>);
    /// Rounds stochastically; also returns the squared norm of the rounding error. Element `i` uses the
    /// `i`-th random number after `state`.
    fn encode_levels(&self, levels: Levels, state: u64, of: Part<'_, Self>) -> (Self::Bytes, Self::Sum);
    fn add_levels(&self, levels: Levels, bytes: &Self::Bytes, to: PartMut<'_, Self>);

    // Low-rank factors; all matrices are row-major.

    /// Makes the columns of each factor orthonormal; a column that depends on the others becomes zero.
    fn orthogonalise(&self, factors: &[Factor], values: &mut Self::Owned);
    /// `whole += gradient`, then `left[rows, rank] = whole[rows, columns] · right[columns, rank]`; the sum of
    /// squares of `whole`.
    fn add_and_multiply(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        right: Part<'_, Self>,
        left: PartMut<'_, Self>,
    ) -> Self::Sum;
    /// The transposed form of `add_and_multiply`: `right = wholeᵀ · left`.
    fn add_and_multiply_transposed(
        &self,
        shape: LowRank,
        gradient: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    ) -> Self::Sum;
    /// `right = wholeᵀ · left`.
    fn multiply_transposed(
        &self,
        shape: LowRank,
        whole: Part<'_, Self>,
        left: Part<'_, Self>,
        right: PartMut<'_, Self>,
    );
    /// `whole -= left · rightᵀ`; returns the sum of squares of the remainder. `gradient`, if given, becomes
    /// `left · rightᵀ` times the factor given with it.
    fn subtract_expanded(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        whole: PartMut<'_, Self>,
        gradient: Option<(PartMut<'_, Self>, f32)>,
    ) -> Self::Sum;
    /// `whole = factor left · rightᵀ`.
    fn expand(
        &self,
        shape: LowRank,
        left: Part<'_, Self>,
        right: Part<'_, Self>,
        factor: f32,
        whole: PartMut<'_, Self>,
    );
}

/// Formats that encode each number by itself or in small blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Values beyond the range of half precision would become infinite, and training could not recover: they
    /// are clamped.
    Fp16,
    Bf16,
    /// One fp32 scale per block, then one byte per number: the largest magnitude of a block is 127.
    Int8 {
        block: usize,
    },
}

impl Form {
    pub fn bytes(self, elements: usize) -> usize {
        match self {
            Self::Fp16 | Self::Bf16 => 2 * elements,
            Self::Int8 { block } => elements + 4 * elements.div_ceil(block),
        }
    }
}

/// Rounding to `-levels..=levels` parts of a scale, packed in as few bits as possible.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Levels {
    pub levels: u32,
    pub scale: Scale,
}

/// The scale of rounded numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scale {
    /// The L2 norm of each bucket of numbers; the norms are sent as fp32 before the levels.
    Norms { bucket: usize },
    /// A number that is the same on all members.
    Common(f32),
}

impl Levels {
    /// Bits of one number.
    pub fn width(self) -> usize {
        (u32::BITS - (2 * self.levels).leading_zeros()) as usize
    }

    /// Number of norms that are sent before `elements` levels.
    pub fn norms(self, elements: usize) -> usize {
        match self.scale {
            Scale::Norms { bucket } => elements.div_ceil(bucket),
            Scale::Common(_) => 0,
        }
    }

    pub fn bytes(self, elements: usize) -> usize {
        4 * self.norms(elements) + (elements * self.width()).div_ceil(8)
    }
}

/// A matrix with factors of `rank` columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowRank {
    pub rows: usize,
    pub columns: usize,
    pub rank: usize,
}

/// A row-major factor in a buffer of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Factor {
    pub offset: usize,
    pub rows: usize,
    pub rank: usize,
}

/// A range of values.
pub struct Part<'a, A: Arithmetic> {
    values: &'a A::Values,
    range: Range<usize>,
}

/// A [`Part`] to write to.
pub struct PartMut<'a, A: Arithmetic> {
    values: &'a mut A::Values,
    range: Range<usize>,
}

/// # Panics
/// If the range is outside the outer one.
fn inner(outer: &Range<usize>, range: &Range<usize>) -> Range<usize> {
    assert!(range.start <= range.end && range.end <= outer.len(), "{range:?} of {} numbers", outer.len());
    outer.start + range.start..outer.start + range.end
}

impl<'a, A: Arithmetic> Part<'a, A> {
    /// # Panics
    /// When the range leaves the values.
    pub fn new(values: &'a A::Values, range: Range<usize>) -> Self {
        let range = inner(&(0..A::len(values)), &range);
        Self { values, range }
    }

    pub fn whole(owned: &'a A::Owned) -> Self {
        let values = owned.borrow();
        Self { values, range: 0..A::len(values) }
    }

    pub fn values(&self) -> &'a A::Values {
        self.values
    }

    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// A part of this part.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        Self { values: self.values, range: inner(&self.range, &range) }
    }
}

impl<'a, A: Arithmetic> PartMut<'a, A> {
    /// # Panics
    /// When the range leaves the values.
    pub fn new(values: &'a mut A::Values, range: Range<usize>) -> Self {
        let range = inner(&(0..A::len(values)), &range);
        Self { values, range }
    }

    pub fn whole(owned: &'a mut A::Owned) -> Self {
        let values = owned.borrow_mut();
        let range = 0..A::len(values);
        Self { values, range }
    }

    pub fn into_values(self) -> &'a mut A::Values {
        self.values
    }

    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    /// All of it, to read.
    pub fn read(&self) -> Part<'_, A> {
        Part { values: &*self.values, range: self.range.clone() }
    }

    /// A part of it, to read.
    pub fn part(&self, range: Range<usize>) -> Part<'_, A> {
        self.read().part(range)
    }

    /// All of it, borrowed.
    pub fn again(&mut self) -> PartMut<'_, A> {
        PartMut { values: &mut *self.values, range: self.range.clone() }
    }

    /// A part of it, borrowed.
    pub fn part_mut(&mut self, range: Range<usize>) -> PartMut<'_, A> {
        let range = inner(&self.range, &range);
        PartMut { values: &mut *self.values, range }
    }
}

impl<A: Arithmetic> fmt::Debug for Part<'_, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("range", &self.range).finish_non_exhaustive()
    }
}
