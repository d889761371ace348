//! Self-test: compares a device's results with those of the CPU in double precision.
//!
//! Every operation of [`Backend`], every segment of [`layers`](crate::layers), and the order of work across
//! queues, on inputs without pattern. Both sides start from the numbers as rounded by the device, so the
//! rounding of inputs does not count as an error. Regions begin at odd and at aligned offsets between guard
//! elements, which must not change.
//!
//! ```
//! use autodist_compute::Cpu;
//! use autodist_compute::selftest::{self, UnitRoundoff};
//! use autodist_spec::Precision;
//!
//! let checks = selftest::run(&Cpu::<f32>::new(), UnitRoundoff::of(Precision::Fp32), |_| ())?;
//! assert!(checks.iter().all(|check| check.passed()));
//! # Ok::<(), autodist_compute::DeviceError>(())
//! ```

mod activations;
mod attention;
mod buffers;
mod fused;
mod grid;
mod lab;
mod layers;
mod loss;
mod norms;
mod optimizers;
mod products;
mod queues;
mod tables;

use crate::backend::{Backend, DeviceError};
use autodist_spec::Precision;
use lab::{BufferPrecision, Lab};

/// One comparison of a device's result with the CPU's in double precision.
#[derive(Debug, Clone, PartialEq)]
pub struct SelftestResult {
    /// The operation or the layer.
    pub what: &'static str,
    /// The shape and other parameters of this check, as text.
    pub case: String,
    /// The larger of two: the root mean square of the differences, relative to that of the expected elements
    /// (absolute where that is zero); and an eighth of the largest difference of one element, relative to
    /// that element plus the root mean square. The second finds one wrong element among thousands. Infinite
    /// where a result is not finite, an element outside the result has changed, or a property without a
    /// number does not hold.
    pub error: f64,
    pub tolerance: f64,
}

impl SelftestResult {
    pub fn passed(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Unit roundoffs: the largest relative error of rounding one number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct UnitRoundoff {
    /// Rounding error of a number stored in working precision.
    pub working: f64,
    /// Rounding error of a GEMM operand.
    pub product: f64,
}

impl UnitRoundoff {
    pub fn of(precision: Precision) -> Self {
        // Half the distance from 1 to the next number: 24, 11 and 8 bits of mantissa, the leading one
        // included.
        const FP32: f64 = 1.0 / (1 << 24) as f64;
        const TF32: f64 = 1.0 / (1 << 11) as f64;
        const BF16: f64 = 1.0 / (1 << 8) as f64;
        match precision {
            Precision::Fp32 => Self { working: FP32, product: FP32 },
            Precision::Tf32 => Self { working: FP32, product: TF32 },
            // 11 bits of mantissa, as TF32.
            Precision::Fp16 => Self { working: TF32, product: TF32 },
            Precision::Bf16 | Precision::Fp8 => Self { working: BF16, product: BF16 },
        }
    }

    /// Full precision is single, unless working precision is finer still.
    fn full(self) -> f64 {
        self.working.min(f64::from(f32::EPSILON) / 2.0)
    }

    fn store(self, held: BufferPrecision) -> f64 {
        match held {
            BufferPrecision::Working => self.working,
            BufferPrecision::Full => self.full(),
        }
    }

    /// Tolerance for a result that is stored once, after a few operations in full precision: an exponential,
    /// a quotient or a root may each have an error of two units, and a coefficient is rounded when it is
    /// passed to the device.
    fn result(self, held: BufferPrecision) -> f64 {
        self.store(held) + 8.0 * self.full()
    }

    /// Tolerance for a sum in full precision. Rounding errors of either sign add up to about √terms units;
    /// the rest of the factor allows for the order of summation and for hardware that truncates.
    fn sum(self, terms: usize) -> f64 {
        4.0 * (terms as f64).sqrt() * self.full()
    }

    /// Tolerance for a GEMM operand. Hardware with a lower precision than the buffer may truncate operands,
    /// which doubles the error.
    fn operand(self) -> f64 {
        if self.product > self.working { 2.0 * self.product } else { self.product }
    }

    /// Tolerance for both operands of a GEMM, each in a buffer.
    fn operands(self) -> f64 {
        if self.product > self.working { 2.0 * self.operand() } else { 0.0 }
    }
}

/// The result of a check; a failure of the device ends the test.
type Outcome = Result<(), DeviceError>;

/// Runs every operation of the boundary and every layer segment, forward and backward. `seen` is called with
/// each check when it is done.
pub fn run<B: Backend<Element = f32>>(
    device: &B,
    rounding: UnitRoundoff,
    mut seen: impl FnMut(&SelftestResult),
) -> Result<Vec<SelftestResult>, DeviceError> {
    let mut lab = Lab::new(device, rounding, &mut seen);
    for lead in [3, 64] {
        lab.lead = lead;
        buffers::run(&mut lab)?;
        products::run(&mut lab)?;
        norms::run(&mut lab)?;
        activations::run(&mut lab)?;
        attention::run(&mut lab)?;
        fused::run(&mut lab)?;
        tables::run(&mut lab)?;
        loss::run(&mut lab)?;
        optimizers::run(&mut lab)?;
    }
    lab.lead = 0;
    layers::run(&mut lab)?;
    queues::run(&mut lab)?;
    Ok(lab.checks)
}
