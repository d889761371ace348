//! The linear layers of a block that have adapters.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// A linear layer of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "kebab-case")]
pub enum LoraTarget {
    /// Queries; with latent attention both of their projections.
    Q,
    /// Keys; with latent attention the projections of keys and values.
    K,
    V,
    /// The output of attention.
    O,
    Gate,
    Up,
    Down,
    /// All of them.
    AllLinear,
}

impl LoraTarget {
    pub const LAYERS: [Self; 7] = [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];
    pub const ALL: &'static [Self] = Self::VARIANTS;

    pub fn name(self) -> &'static str {
        self.into()
    }

    /// Whether a parameter of a block is a weight of this layer.
    pub fn is(self, parameter: &str) -> bool {
        let Some(name) = parameter.strip_suffix(".weight") else { return false };
        let of_mlp =
            |part: &str| ["mlp", "experts", "shared"].iter().any(|mlp| name == format!("{mlp}.{part}"));
        let latent = ["attention.kv_up", "attention.kv_down"].contains(&name);
        match self {
            Self::Q => ["attention.query", "attention.query_up", "attention.query_down"].contains(&name),
            Self::K => name == "attention.key" || latent,
            Self::V => name == "attention.value" || latent,
            Self::O => name == "attention.output",
            Self::Gate => of_mlp("gate"),
            Self::Up => of_mlp("up"),
            Self::Down => of_mlp("down"),
            Self::AllLinear => Self::LAYERS.into_iter().any(|one| one.is(parameter)),
        }
    }
}

/// A set of linear layers; by default those of PEFT for Llama: q and v.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<LoraTarget>", into = "Vec<LoraTarget>")]
pub struct LoraTargets(u8);

impl LoraTargets {
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether a layer is in the set, itself or by `all-linear`.
    pub fn contains(self, target: LoraTarget) -> bool {
        self.0 & (bit(target) | bit(LoraTarget::AllLinear)) != 0
    }

    /// As they are listed.
    pub fn iter(self) -> impl Iterator<Item = LoraTarget> {
        LoraTarget::ALL.iter().copied().filter(move |one| self.0 & bit(*one) != 0)
    }
}

fn bit(target: LoraTarget) -> u8 {
    1 << target as u8
}

impl Default for LoraTargets {
    fn default() -> Self {
        Self::from_iter([LoraTarget::Q, LoraTarget::V])
    }
}

impl FromIterator<LoraTarget> for LoraTargets {
    fn from_iter<I: IntoIterator<Item = LoraTarget>>(targets: I) -> Self {
        Self(targets.into_iter().map(bit).fold(0, |all, one| all | one))
    }
}

impl From<Vec<LoraTarget>> for LoraTargets {
    fn from(targets: Vec<LoraTarget>) -> Self {
        targets.into_iter().collect()
    }
}

impl From<LoraTargets> for Vec<LoraTarget> {
    fn from(targets: LoraTargets) -> Self {
        targets.iter().collect()
    }
}

/// `q, v`.
impl fmt::Display for LoraTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(LoraTarget::name).collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Debug for LoraTargets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

impl JsonSchema for LoraTargets {
    fn schema_name() -> Cow<'static, str> {
        "LoraTargets".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        <Vec<LoraTarget>>::json_schema(generator)
    }
}
