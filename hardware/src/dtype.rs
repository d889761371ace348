use serde::{Deserialize, Serialize};
use strum::{Display, IntoStaticStr, VariantArray};

/// Operand type of a GEMM. TF32 operands are fp32 numbers of which tensor cores read 10 bits of mantissa.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[derive(Display, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Dtype {
    Fp32,
    Tf32,
    Fp16,
    Bf16,
    Fp8,
    Fp4,
}

impl Dtype {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Bytes of one operand's element in memory; scales of fp8 and fp4 are not counted.
    pub fn bytes(self) -> f64 {
        match self {
            Self::Fp32 | Self::Tf32 => 4.0,
            Self::Fp16 | Self::Bf16 => 2.0,
            Self::Fp8 => 1.0,
            Self::Fp4 => 0.5,
        }
    }

    /// Bytes of one element of the result: like the operands, but 2 for fp8 and fp4.
    pub fn result_bytes(self) -> f64 {
        self.bytes().max(2.0)
    }
}
