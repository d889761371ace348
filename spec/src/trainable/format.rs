//! Formats of frozen weights.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Bits of a frozen weight of a block's linear layers. Embedding, head, norms and biases stay in the training
/// precision, as bitsandbytes and torchao leave them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub enum BaseBits {
    /// The training precision.
    #[default]
    Whole,
    /// 8-bit integers (Dettmers et al., 2208.07339); one scale for each row is not counted.
    Eight,
    /// NF4 with an fp32 scale for every 64 weights.
    FourSingle,
    /// NF4 with double quantisation (Dettmers et al., 2305.14314, section 3).
    Four,
}

impl BaseBits {
    const ALL: [Self; 4] = [Self::Whole, Self::Eight, Self::FourSingle, Self::Four];

    /// The number that stands for it in files and flags.
    fn number(self) -> f64 {
        match self {
            Self::Whole => 16.0,
            Self::Eight => 8.0,
            Self::FourSingle => 4.5,
            Self::Four => 4.0,
        }
    }

    pub fn is_whole(&self) -> bool {
        *self == Self::Whole
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "the training precision",
            Self::Eight => "8 bits",
            Self::FourSingle => "NF4 (4.5 bits a weight)",
            Self::Four => "NF4 (4.127 bits a weight, double quantisation)",
        }
    }

    /// Bytes of a weight with its scales; `whole` are those of a weight in the training precision.
    pub fn bytes(self, whole: f64) -> f64 {
        match self {
            Self::Whole => whole,
            Self::Eight => 1.0,
            // Blocks of 64 have an fp32 scale, or one in 8 bits, of which 256 have an fp32 scale.
            Self::FourSingle => (4.0 + 32.0 / 64.0) / 8.0,
            Self::Four => (4.0 + 8.0 / 64.0 + 32.0 / (64.0 * 256.0)) / 8.0,
        }
    }
}

impl From<BaseBits> for f64 {
    fn from(bits: BaseBits) -> Self {
        bits.number()
    }
}

impl TryFrom<f64> for BaseBits {
    type Error = String;

    fn try_from(number: f64) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|bits| bits.number() == number)
            .ok_or_else(|| format!("{number} is none of 16, 8, 4.5, 4"))
    }
}

impl FromStr for BaseBits {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 = text.parse().map_err(|_| "expected 16, 8, 4.5 or 4".to_owned())?;
        Self::try_from(number)
    }
}

impl fmt::Display for BaseBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

impl JsonSchema for BaseBits {
    fn schema_name() -> Cow<'static, str> {
        "BaseBits".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "Bits of a frozen weight: 16 for the training precision, 8, or for NF4 4 (with double quantisation) or 4.5 (without).",
            "type": "number",
            "enum": [16.0, 8.0, 4.5, 4.0]
        })
    }
}
