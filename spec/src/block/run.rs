//! Lists of blocks, as runs of equal ones.

use super::{BlockSpec, Experts};
use crate::error::{InputError, in_range};
use crate::model::MOST_BLOCKS;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

/// Equal blocks in a row, in the fields in which they differ from the model's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BlockRun {
    /// Number of blocks in a row; 1 if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub window: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "given")]
    pub experts: Option<Experts>,
}

/// A value that is not null: a run cannot remove what the model has.
fn given<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

impl BlockRun {
    fn count(&self) -> usize {
        self.count.unwrap_or(1) as usize
    }

    /// The run of the block with this index, of a list that is repeated.
    pub(crate) fn at(runs: &[Self], index: usize) -> Option<&Self> {
        let length = runs.iter().map(Self::count).fold(0, usize::saturating_add);
        let mut left = index.checked_rem(length)?;
        runs.iter().find(|run| {
            let here = left < run.count();
            left = left.saturating_sub(run.count());
            here
        })
    }

    /// A block of the run, where the others are `usual`.
    pub(crate) fn of(&self, usual: BlockSpec) -> BlockSpec {
        BlockSpec {
            heads: self.heads.unwrap_or(usual.heads),
            kv_heads: self.kv_heads.unwrap_or(usual.kv_heads),
            head_dim: self.head_dim.unwrap_or(usual.head_dim),
            window: self.window.or(usual.window),
            latent: usual.latent,
            ffn: self.ffn.unwrap_or(usual.ffn),
            experts: self.experts.or(usual.experts),
        }
    }

    /// The runs of these blocks in the fields in which they differ from `usual`, up to where they repeat.
    pub(crate) fn list(blocks: &[BlockSpec], usual: &BlockSpec) -> Vec<Self> {
        let repeats = |period: &usize| (*period..blocks.len()).all(|at| blocks[at] == blocks[at - period]);
        let period = (1..blocks.len()).find(repeats).unwrap_or(blocks.len());
        if period == 1 && blocks[0] == *usual {
            return Vec::new();
        }
        let runs = blocks[..period].chunk_by(|a, b| a == b);
        runs.map(|run| Self::differing(run.len(), &run[0], usual)).collect()
    }

    fn differing(count: usize, block: &BlockSpec, usual: &BlockSpec) -> Self {
        let other = |theirs: u32, ours: u32| (theirs != ours).then_some(theirs);
        Self {
            count: (count > 1).then_some(count as u32),
            heads: other(block.heads, usual.heads),
            kv_heads: other(block.kv_heads, usual.kv_heads),
            head_dim: other(block.head_dim, usual.head_dim),
            window: block.window.filter(|_| block.window != usual.window),
            ffn: other(block.ffn, usual.ffn),
            experts: block.experts.filter(|_| block.experts != usual.experts),
        }
    }

    /// # Errors
    /// The list is for another number of blocks than the model's.
    pub(crate) fn check(runs: &[Self], layers: u32) -> Result<(), InputError> {
        let mut described = 0;
        for (index, run) in runs.iter().enumerate() {
            in_range(&format!("blocks[{index}].count"), run.count() as u64, 1, MOST_BLOCKS)?;
            described += run.count() as u64;
        }
        if described > u64::from(layers) {
            let problem = format!("describe {described} blocks, but the model has {layers}");
            return Err(InputError::new("blocks", "", problem).hint(
                "let the counts of `blocks` sum to `layers`, or to the length of a pattern that repeats",
            ));
        }
        Ok(())
    }
}
