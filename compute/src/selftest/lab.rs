//! Pairs of buffers on a device and on the CPU, and their comparison.

use super::grid::Grid;
use super::{Outcome, SelftestResult, UnitRoundoff};
use crate::backend::{Backend, Element, Region, RegionMut};
use crate::cpu::Cpu;
use std::fmt;
use std::ops::Range;

/// The value of guard elements, alternating with NaN, which an operation must neither read nor write: a sum
/// that reads either is wrong, and so is a maximum that reads this one. It is exact in every precision, and
/// far from every number of a test.
const GUARD: f64 = 12288.0;
/// Guards behind the data.
const TAIL: usize = 5;
/// The error of one element counts divided by this: rounding errors seldom exceed their mean by so much.
const OUTLIER: f64 = 8.0;

/// The precision of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferPrecision {
    Working,
    Full,
}

impl fmt::Display for BufferPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BufferPrecision::Working => "working precision",
            BufferPrecision::Full => "full precision",
        })
    }
}

/// The buffer of one side, and the offset of the data.
pub struct Side<B: Backend> {
    pub buffer: B::Buffer,
    pub offset: usize,
}

impl<B: Backend> Side<B> {
    pub fn region(&self) -> Region<'_, B> {
        Region::new(&self.buffer, self.offset)
    }

    pub fn region_mut(&mut self) -> RegionMut<'_, B> {
        RegionMut::new(&mut self.buffer, self.offset)
    }
}

/// The same numbers on the device and on the CPU.
pub struct Pair<B: Backend> {
    pub device: Side<B>,
    pub exact: Side<Cpu<f64>>,
}

impl<B: Backend<Element = f32>> Pair<B> {
    /// The CPU's numbers in the region.
    pub fn exact(&self, len: usize) -> Vec<f64> {
        self.exact.buffer[self.exact.offset..][..len].to_vec()
    }

    /// Whether the device's numbers still equal the CPU's.
    pub fn is_intact(&self, device: &B) -> bool {
        compare(&host(device, &self.device.buffer), &self.exact.buffer, 0.0, |_| true) == 0.0
    }
}

/// The same token ids on both.
pub struct Ids<B: Backend> {
    pub device: B::Indices,
    pub exact: Vec<u32>,
}

impl<B: Backend> Ids<B> {
    /// The [`Backend`] interface cannot write ids.
    pub fn is_intact(&self, _device: &B) -> bool {
        true
    }
}

/// Runs the same work on the device and on the CPU and returns both results. `$work` is compiled once for
/// each; `$on` is the device, and the names of pairs are bound to their sides. The pairs of the first list
/// must not change.
macro_rules! both {
    ($lab:ident, $on:ident, [$($read:ident),*], [$($written:ident),*], $work:expr) => {
        (
            {
                let $on = $lab.device;
                $(let $read = &$read.device;)*
                $(let $written = &mut $written.device;)*
                $work
            },
            {
                $($lab.is_intact &= $read.is_intact($lab.device);)*
                let $on = &$lab.exact;
                $(let $read = &$read.exact;)*
                $(let $written = &mut $written.exact;)*
                $work
            },
        )
    };
}
pub(super) use both;

/// Makes pairs and compares them.
pub struct Lab<'a, B: Backend> {
    pub device: &'a B,
    pub exact: Cpu<f64>,
    pub rounding: UnitRoundoff,
    /// Guards before the data, which is the offset of every region.
    pub lead: usize,
    /// Whether operations have left their inputs unchanged since the last check.
    pub is_intact: bool,
    pub checks: Vec<SelftestResult>,
    seen: &'a mut dyn FnMut(&SelftestResult),
    noise: u64,
}

impl<'a, B: Backend<Element = f32>> Lab<'a, B> {
    pub fn new(device: &'a B, rounding: UnitRoundoff, seen: &'a mut dyn FnMut(&SelftestResult)) -> Self {
        let exact = Cpu::new();
        Self { device, exact, rounding, lead: 0, is_intact: true, checks: Vec::new(), seen, noise: 0 }
    }

    /// The precisions in which the device holds numbers.
    pub fn precisions(&self) -> &'static [BufferPrecision] {
        if self.device.is_mixed() {
            &[BufferPrecision::Working, BufferPrecision::Full]
        } else {
            &[BufferPrecision::Working]
        }
    }

    /// A number in -1..1: position and mixing function of SplitMix64 (Steele et al., OOPSLA 2014).
    fn number(&mut self) -> f64 {
        self.noise = self.noise.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.noise;
        for (shift, factor) in [(30, 0xbf58_476d_1ce4_e5b9), (27, 0x94d0_49bb_1331_11eb)] {
            bits = (bits ^ bits >> shift).wrapping_mul(factor);
        }
        ((bits ^ bits >> 31) >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.number()).collect()
    }

    /// Numbers in `centre - spread..centre + spread`.
    pub fn around(&mut self, centre: f64, spread: f64, len: usize) -> Vec<f64> {
        self.numbers(len).into_iter().map(|x| centre + spread * x).collect()
    }

    /// Ids in `0..count`.
    pub fn ids(&mut self, len: usize, count: u32) -> Ids<B> {
        let ids = self.numbers(len).into_iter().map(|x| ((x + 1.0) / 2.0 * f64::from(count)) as u32);
        let exact: Vec<u32> = ids.collect();
        Ids { device: self.device.upload_indices(&exact), exact }
    }

    /// Uploads numbers between guards to the device; the CPU gets them as rounded by the device.
    pub fn upload(&self, held: BufferPrecision, values: &[f64]) -> Pair<B> {
        let guarded = (0..self.lead).map(guard).chain(values.iter().copied()).chain((0..TAIL).map(guard));
        let guarded: Vec<f32> = guarded.map(|x| x as f32).collect();
        let buffer = match held {
            BufferPrecision::Working => self.device.upload(&guarded),
            BufferPrecision::Full => self.device.upload_full(&guarded),
        };
        let exact = self.exact.upload(&host(self.device, &buffer));
        let offset = self.lead;
        Pair { device: Side { buffer, offset }, exact: Side { buffer: exact, offset } }
    }

    pub fn random(&mut self, held: BufferPrecision, len: usize) -> Pair<B> {
        let values = self.numbers(len);
        self.upload(held, &values)
    }

    /// A pair filled with NaN, to be written before it is read.
    pub fn blank(&self, held: BufferPrecision, len: usize) -> Pair<B> {
        self.upload(held, &vec![f64::NAN; len])
    }

    pub fn random_grid(&mut self, held: BufferPrecision, grid: Grid) -> Pair<B> {
        let values = grid.among_guards(|| self.number());
        self.upload(held, &values)
    }

    pub fn blank_grid(&self, held: BufferPrecision, grid: Grid) -> Pair<B> {
        self.upload(held, &grid.among_guards(|| f64::NAN))
    }

    /// Compares the two sides of a pair.
    pub fn check(&mut self, what: &'static str, case: &str, tolerance: f64, pair: &Pair<B>) -> Outcome {
        self.check_part(what, case, tolerance, pair, |_| true)
    }

    /// Compares the elements of the data for which `counts` returns true, and all guards.
    pub fn check_part(
        &mut self,
        what: &'static str,
        case: &str,
        tolerance: f64,
        pair: &Pair<B>,
        counts: impl Fn(usize) -> bool,
    ) -> Outcome {
        let (found, lead) = (host(self.device, &pair.device.buffer), pair.device.offset);
        let counts = |i: usize| i.checked_sub(lead).is_some_and(&counts);
        self.finish(what, case, tolerance, compare(&found, &pair.exact.buffer, 0.0, counts))
    }

    /// Compares numbers; `floor` is as in [`compare`].
    pub fn check_values(
        &mut self,
        what: &'static str,
        case: &str,
        tolerance: f64,
        (found, expected): (&[f64], &[f64]),
        floor: f64,
    ) -> Outcome {
        self.finish(what, case, tolerance, compare(found, expected, floor, |_| true))
    }

    /// Compares one number.
    pub fn check_number(
        &mut self,
        what: &'static str,
        case: &str,
        tolerance: f64,
        pair: (f64, f64),
    ) -> Outcome {
        self.check_values(what, case, tolerance, (&[pair.0], &[pair.1]), 0.0)
    }

    /// Records a property that holds or does not.
    pub fn require(&mut self, what: &'static str, case: &str, holds: bool) -> Outcome {
        self.finish(what, case, 0.0, if holds { 0.0 } else { f64::INFINITY })
    }

    fn finish(&mut self, what: &'static str, case: &str, tolerance: f64, error: f64) -> Outcome {
        self.device.synchronise()?;
        let error = if std::mem::replace(&mut self.is_intact, true) { error } else { f64::INFINITY };
        let offset = if self.lead > 0 { format!(", offset {}", self.lead) } else { String::new() };
        let check = SelftestResult { what, case: format!("{case}{offset}"), error, tolerance };
        (self.seen)(&check);
        self.checks.push(check);
        Ok(())
    }
}

/// The guard in place `index`.
pub fn guard(index: usize) -> f64 {
    if index % 2 == 0 { GUARD } else { f64::NAN }
}

/// All of a buffer.
pub fn host<B: Backend>(device: &B, buffer: &B::Buffer) -> Vec<f64> {
    host_range(device, buffer, 0..device.len(buffer))
}

pub fn host_range<B: Backend>(device: &B, buffer: &B::Buffer, range: Range<usize>) -> Vec<f64> {
    let mut values = vec![B::Element::default(); range.len()];
    device.download(Region::new(buffer, range.start), &mut values);
    values.into_iter().map(Element::to_f64).collect()
}

/// The error of a [`SelftestResult`] over the elements for which `counts` returns true. Where the expected
/// number is a guard, the found one must be the same. Errors are relative to at least `floor`.
pub fn compare(found: &[f64], expected: &[f64], floor: f64, counts: impl Fn(usize) -> bool) -> f64 {
    if found.len() != expected.len() {
        return f64::INFINITY;
    }
    let mut pairs = Vec::with_capacity(found.len());
    for (i, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        if expected.is_nan() || expected == GUARD {
            if found != expected && !(found.is_nan() && expected.is_nan()) {
                return f64::INFINITY;
            }
        } else if !found.is_finite() || !expected.is_finite() {
            return f64::INFINITY;
        } else if counts(i) {
            pairs.push((found - expected, expected));
        }
    }
    if pairs.is_empty() {
        return 0.0;
    }
    let mean = |sum: f64| (sum / pairs.len() as f64).sqrt();
    let size = mean(pairs.iter().map(|(_, expected)| expected * expected).sum()).max(floor);
    let unit = if size > 0.0 { size } else { 1.0 };
    let spread = mean(pairs.iter().map(|(difference, _)| difference * difference).sum()) / unit;
    let worst = pairs.iter().map(|(difference, expected)| difference.abs() / (expected.abs() + unit));
    worst.fold(spread, |error, worst| error.max(worst / OUTLIER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::Precision;

    fn everywhere(found: &[f64], expected: &[f64]) -> f64 {
        compare(found, expected, 0.0, |_| true)
    }

    #[test]
    fn equal_numbers_have_no_error_and_others_a_relative_one() {
        assert_eq!(everywhere(&[3.0, -4.0, f64::NAN, GUARD], &[3.0, -4.0, f64::NAN, GUARD]), 0.0);
        assert_eq!(everywhere(&[], &[]), 0.0);
        assert!((everywhere(&[3.0, 4.0, 0.5], &[3.0, 4.0, 0.0]) - 0.1).abs() < 1e-15);
        assert_eq!(everywhere(&[0.25, 0.25], &[0.0, 0.0]), 0.25, "absolute where nothing is expected");
        assert_eq!(compare(&[0.25, 0.25], &[0.0, 0.0], 2.0, |_| true), 0.125, "relative to the floor");
    }

    #[test]
    fn what_is_no_number_is_infinitely_wrong() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(everywhere(&[1.0, bad], &[1.0, 2.0]), f64::INFINITY);
            assert_eq!(compare(&[1.0, bad], &[1.0, 2.0], 0.0, |i| i == 0), f64::INFINITY, "counted or not");
            assert_eq!(everywhere(&[1.0, 2.0], &[1.0, bad]), f64::INFINITY);
        }
        assert_eq!(everywhere(&[1.0], &[1.0, 2.0]), f64::INFINITY);
    }

    #[test]
    fn a_changed_guard_is_infinitely_wrong() {
        assert_eq!(everywhere(&[GUARD + 1.0, 1.0], &[GUARD, 1.0]), f64::INFINITY);
        assert_eq!(everywhere(&[f64::NAN, 1.0], &[GUARD, 1.0]), f64::INFINITY);
        assert_eq!(everywhere(&[0.0, 1.0], &[f64::NAN, 1.0]), f64::INFINITY);
        assert_eq!(compare(&[0.0, 1.0], &[GUARD, 1.0], 0.0, |i| i == 1), f64::INFINITY, "counted or not");
    }

    #[test]
    fn two_swapped_elements_among_thousands_show_even_in_bf16() {
        let (device, mut ignore) = (Cpu::<f32>::new(), |_: &SelftestResult| ());
        let mut lab = Lab::new(&device, UnitRoundoff::of(Precision::Bf16), &mut ignore);
        let expected = lab.numbers(20_000);
        let mut found = expected.clone();
        found.swap(77, 78);
        assert!(everywhere(&found, &expected) > 2.0 * lab.rounding.result(BufferPrecision::Working));
    }

    #[test]
    fn a_lab_sees_what_an_operation_writes_beside_its_result() {
        let (device, mut seen) = (Cpu::<f32>::new(), Vec::new());
        let mut push = |check: &SelftestResult| seen.push(check.passed());
        let mut lab = Lab::new(&device, UnitRoundoff::of(Precision::Fp32), &mut push);
        lab.lead = 3;
        // One element too many, before and behind; then an input.
        for (offset, len) in [(3, 4), (3, 5), (2, 4)] {
            let (from, mut to) =
                (lab.random(BufferPrecision::Working, 4), lab.random(BufferPrecision::Working, 4));
            device.add(
                len,
                Region::new(&from.device.buffer, offset),
                RegionMut::new(&mut to.device.buffer, offset),
            );
            lab.exact.add(4, from.exact.region(), to.exact.region_mut());
            lab.check("add", "", 1e-6, &to).unwrap();
        }
        let mut from = lab.random(BufferPrecision::Working, 4);
        from.device.buffer[4] += 1.0;
        both!(lab, on, [from], [], on.len(&from.buffer));
        lab.require("len", "", true).unwrap();
        assert_eq!(seen, [true, false, false, false]);
    }
}
