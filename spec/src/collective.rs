//! The collective operations and their names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// A collective over a group of ranks, on buffers of equal length. `bytes` is always the size of the whole
/// tensor.
///
/// - All-reduce: all members end with the reduction of all elements.
/// - Reduce-scatter: each member ends with the reduction of its shard; the rest of its buffer is undefined.
/// - All-gather: each member begins with its shard; all end with all shards.
/// - All-to-all: each member sends an equal part of its buffer to every member.
/// - Broadcast: all members end with the buffer of one of them.
/// - Send/recv: one device sends its buffer to one other.
///
/// Profiles have measurements of the first three only, so files support no others: to read or write another
/// kind is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "CollectiveKind", description = "What a collective does.")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Collective {
    AllReduce,
    ReduceScatter,
    AllGather,
    #[serde(skip)]
    AllToAll,
    #[serde(skip)]
    Broadcast,
    #[serde(skip)]
    SendRecv,
}

impl Collective {
    pub const ALL: &'static [Self] = Self::VARIANTS;

    /// The name in prose.
    pub fn name(self) -> &'static str {
        match self {
            Self::AllReduce => "all-reduce",
            Self::ReduceScatter => "reduce-scatter",
            Self::AllGather => "all-gather",
            Self::AllToAll => "all-to-all",
            Self::Broadcast => "broadcast",
            Self::SendRecv => "send/recv",
        }
    }

    /// The name in tables and fits, which can be parsed.
    pub fn key(self) -> &'static str {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_name_the_three_that_profiles_hold_by_their_keys_and_no_others() {
        for &collective in Collective::ALL {
            assert_eq!(collective.key().parse(), Ok(collective));
            let text = format!("\"{}\"", collective.key());
            if collective <= Collective::AllGather {
                assert_eq!(serde_json::to_string(&collective).unwrap(), text);
                assert_eq!(serde_json::from_str::<Collective>(&text).unwrap(), collective);
            } else {
                assert!(serde_json::to_string(&collective).is_err(), "{text}");
                assert!(serde_json::from_str::<Collective>(&text).is_err(), "{text}");
            }
        }
        assert!("message".parse::<Collective>().is_err());
    }
}
