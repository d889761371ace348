//! Numbers with units. Raw numbers appear only at file boundaries, where the key names the unit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Div, Mul, Sub};

macro_rules! unit {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Default, Serialize, Deserialize, JsonSchema)]
        #[serde(transparent)]
        pub struct $name(pub f64);

        impl $name {
            pub const ZERO: Self = Self(0.0);
            pub fn max(self, other: Self) -> Self { Self(self.0.max(other.0)) }
            pub fn min(self, other: Self) -> Self { Self(self.0.min(other.0)) }
        }
        impl Add for $name { type Output = Self; fn add(self, rhs: Self) -> Self { Self(self.0 + rhs.0) } }
        impl Sub for $name { type Output = Self; fn sub(self, rhs: Self) -> Self { Self(self.0 - rhs.0) } }
        impl AddAssign for $name { fn add_assign(&mut self, rhs: Self) { self.0 += rhs.0; } }
        impl Mul<f64> for $name { type Output = Self; fn mul(self, rhs: f64) -> Self { Self(self.0 * rhs) } }
        impl Div<f64> for $name { type Output = Self; fn div(self, rhs: f64) -> Self { Self(self.0 / rhs) } }
        impl Div for $name { type Output = f64; fn div(self, rhs: Self) -> f64 { self.0 / rhs.0 } }
        impl Sum for $name { fn sum<I: Iterator<Item = Self>>(iter: I) -> Self { iter.fold(Self::ZERO, Add::add) } }
    };
}

unit!(
    /// A duration in seconds.
    Seconds
);
unit!(
    /// Floating-point operations (a multiply-add counts as two).
    Flops
);
unit!(
    /// Floating-point operations per second.
    FlopsPerSecond
);
unit!(
    /// Bytes per second.
    BytesPerSecond
);

/// A number of bytes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const ZERO: Self = Self(0);
    /// Four bytes per element.
    pub const fn of_f32(elements: u64) -> Self {
        Self(elements * 4)
    }
    pub fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
    pub fn as_f64(self) -> f64 {
        self.0 as f64
    }
}

impl Add for Bytes {
    type Output = Self;
    fn add(self, rhs: Self) -> Self {
        Self(self.0 + rhs.0)
    }
}
impl AddAssign for Bytes {
    fn add_assign(&mut self, rhs: Self) {
        self.0 += rhs.0;
    }
}
impl Mul<u64> for Bytes {
    type Output = Self;
    fn mul(self, rhs: u64) -> Self {
        Self(self.0 * rhs)
    }
}
impl Sum for Bytes {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}
impl Div<BytesPerSecond> for Bytes {
    type Output = Seconds;
    fn div(self, rhs: BytesPerSecond) -> Seconds {
        Seconds(self.as_f64() / rhs.0)
    }
}
impl Div<Seconds> for Bytes {
    type Output = BytesPerSecond;
    fn div(self, rhs: Seconds) -> BytesPerSecond {
        BytesPerSecond(self.as_f64() / rhs.0)
    }
}
impl Div<FlopsPerSecond> for Flops {
    type Output = Seconds;
    fn div(self, rhs: FlopsPerSecond) -> Seconds {
        Seconds(self.0 / rhs.0)
    }
}
impl Div<Seconds> for Flops {
    type Output = FlopsPerSecond;
    fn div(self, rhs: Seconds) -> FlopsPerSecond {
        FlopsPerSecond(self.0 / rhs.0)
    }
}

/// Formats a number with three significant digits and without an exponent.
fn digits(value: f64) -> String {
    let magnitude = value.abs();
    if magnitude >= 999.5 {
        grouped(value)
    } else if magnitude >= 99.95 {
        format!("{value:.0}")
    } else if magnitude >= 9.995 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// `12,345`.
fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits.as_str()), |digits| ("-", digits));
    let mut text = sign.to_owned();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digit.is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn scaled(f: &mut fmt::Formatter<'_>, value: f64, base: f64, units: &[&str]) -> fmt::Result {
    if value.abs() < 5e-3 {
        return f.pad(&format!("0 {}", units[0]));
    }
    let mut scaled = value;
    let mut index = 0;
    while scaled.abs() >= base && index + 1 < units.len() {
        scaled /= base;
        index += 1;
    }
    f.pad(&format!("{} {}", digits(scaled), units[index]))
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let magnitude = self.0.abs();
        // Less than half of the last digit is shown as zero, which has one form.
        let text = if magnitude < 5e-9 {
            "0 s".to_owned()
        } else if magnitude >= 0.9995 {
            format!("{} s", digits(self.0))
        } else if magnitude >= 0.9995e-3 {
            format!("{} ms", digits(self.0 * 1e3))
        } else {
            format!("{} µs", digits(self.0 * 1e6))
        };
        f.pad(&text)
    }
}
impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.as_f64(), 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
    }
}
impl fmt::Display for BytesPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, 1000.0, &["B/s", "kB/s", "MB/s", "GB/s", "TB/s"])
    }
}
impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(f, self.0, 1000.0, &["FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"])
    }
}
impl fmt::Display for FlopsPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        scaled(
            f,
            self.0,
            1000.0,
            &["FLOP/s", "kFLOP/s", "MFLOP/s", "GFLOP/s", "TFLOP/s", "PFLOP/s", "EFLOP/s"],
        )
    }
}

/// The source of a number, from the most to the least trusted. A combination keeps the least trusted of its
/// parts, so the order matters.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
#[derive(strum::Display, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Provenance {
    /// Timed or counted on this machine.
    #[default]
    Measured,
    /// Interpolated between two measured points.
    Interpolated,
    /// Computed from a hardware catalogue or extrapolated past the measured points.
    Modelled,
    /// Computed by a model outside its validated range: for other devices, or for sizes outside its range.
    Extrapolated,
    /// A stated assumption, neither measured nor modelled.
    Assumed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dividing_bytes_by_a_rate_gives_a_time() {
        assert_eq!(Bytes(3_000_000) / BytesPerSecond(1.5e6), Seconds(2.0));
    }

    #[test]
    fn numbers_print_in_the_largest_unit_that_leaves_a_digit() {
        let cases = [
            (Seconds(0.01234).to_string(), "12.3 ms"),
            (Seconds(2.5).to_string(), "2.50 s"),
            (Bytes(3 << 30).to_string(), "3.00 GiB"),
            (BytesPerSecond(2.5e10).to_string(), "25.0 GB/s"),
            (FlopsPerSecond(3.12e14).to_string(), "312 TFLOP/s"),
            (Seconds(2.5e-5).to_string(), "25.0 µs"),
            (Seconds(0.9996).to_string(), "1.00 s"),
            (Seconds(-0.0).to_string(), "0 s"),
            (Seconds(1e-9).to_string(), "0 s"),
            (Seconds(9.999).to_string(), "10.0 s"),
            (Seconds(1_234_567.0).to_string(), "1,234,567 s"),
            (Seconds(-1234.0).to_string(), "-1,234 s"),
            (Seconds(0.0).to_string(), "0 s"),
            (Bytes(0).to_string(), "0 B"),
        ];
        for (shown, expected) in cases {
            assert_eq!(shown, expected);
        }
    }

    #[test]
    fn the_least_trusted_source_wins() {
        assert_eq!(Provenance::Measured.max(Provenance::Modelled), Provenance::Modelled);
    }
}
