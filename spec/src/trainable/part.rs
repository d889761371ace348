//! Parts of a model that are frozen.

use crate::model::LayerKind;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// A part of a model whose weights are frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum FrozenPart {
    Embedding,
    /// Blocks `first` to `last`, counted from 0.
    Blocks {
        first: u32,
        last: u32,
    },
    /// The final norm and the output projection.
    Head,
    /// Embedding and blocks.
    AllButHead,
}

const EXPECTED: &str = "expected embedding, head, all-but-head, or blocks such as blocks:0-15";

impl FrozenPart {
    /// Whether a layer of the chain belongs to it.
    pub fn holds(&self, kind: LayerKind, layer: usize) -> bool {
        match (self, kind) {
            (Self::Embedding, LayerKind::Embedding) | (Self::Head, LayerKind::Head) => true,
            (Self::AllButHead, kind) => kind != LayerKind::Head,
            (Self::Blocks { first, last }, LayerKind::Block) => {
                layer.checked_sub(1).is_some_and(|block| (*first as usize..=*last as usize).contains(&block))
            }
            _ => false,
        }
    }

    /// The part of it that is no block.
    pub(super) fn ends(&self) -> &'static [Self] {
        match self {
            Self::Embedding | Self::AllButHead => &[Self::Embedding],
            Self::Head => &[Self::Head],
            Self::Blocks { .. } => &[],
        }
    }
}

impl fmt::Display for FrozenPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("embedding"),
            Self::Head => f.write_str("head"),
            Self::AllButHead => f.write_str("all-but-head"),
            Self::Blocks { first, last } if first == last => write!(f, "blocks:{first}"),
            Self::Blocks { first, last } => write!(f, "blocks:{first}-{last}"),
        }
    }
}

impl FromStr for FrozenPart {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "embedding" => return Ok(Self::Embedding),
            "head" => return Ok(Self::Head),
            "all-but-head" => return Ok(Self::AllButHead),
            _ => {}
        }
        let range = text.strip_prefix("blocks:").ok_or(EXPECTED)?;
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse().map_err(|_| EXPECTED.to_owned());
        Ok(Self::Blocks { first: number(first)?, last: number(last)? })
    }
}

impl TryFrom<String> for FrozenPart {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse().map_err(|error| format!("`{text}` is no part of a model: {error}"))
    }
}

impl From<FrozenPart> for String {
    fn from(part: FrozenPart) -> Self {
        part.to_string()
    }
}

impl JsonSchema for FrozenPart {
    fn schema_name() -> Cow<'static, str> {
        "FrozenPart".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "A part of a model whose weights are frozen; blocks count from 0.",
            "type": "string",
            "pattern": "^(embedding|head|all-but-head|blocks:[0-9]+(-[0-9]+)?)$"
        })
    }
}
