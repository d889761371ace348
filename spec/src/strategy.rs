//! A way of training: the parallel degrees and options, and the layers of each stage.

use crate::communication::Communication;
use crate::error::{InputError, in_range};
use crate::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// Activations that the forward pass discards and the backward pass computes again.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "snake_case")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Recompute {
    #[default]
    None,
    /// The attention core: scores and probabilities (Korthikanti et al., 2205.05198, section 5).
    Selective,
    /// The whole block: only its input is kept (Chen et al., 1604.06174).
    Full,
}

/// Order of micro-batches through the pipeline.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema, Hash,
)]
#[serde(rename_all = "lowercase")]
#[derive(EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum ScheduleKind {
    /// All forwards, then all backwards (Huang et al., 1811.06965).
    GPipe,
    /// One forward, one backward (Narayanan et al., SC'21, section 2.2.1).
    #[default]
    #[serde(rename = "1f1b")]
    #[strum(serialize = "1f1b")]
    OneFOneB,
    /// 1F1B over several virtual stages per rank (SC'21, section 2.2.2).
    Interleaved,
}

impl ScheduleKind {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

impl Recompute {
    pub fn name(self) -> &'static str {
        self.into()
    }
}

/// The parallel degrees and options of a training. The degrees multiply to the number of devices.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, Hash)]
#[serde(deny_unknown_fields)]
pub struct ParallelStrategy {
    pub data: u32,
    pub tensor: u32,
    pub pipeline: u32,
    #[serde(default = "one")]
    pub context: u32,
    #[serde(default = "one")]
    pub expert: u32,
    /// ZeRO stage (1910.02054): 0 shards nothing, 1 the optimizer state, 2 also the gradients, 3 also the
    /// parameters.
    #[serde(default)]
    pub zero_stage: u8,
    /// Size of the group that ZeRO shards over; `data / shard` groups hold replicas (HSDP). 1 with
    /// `zero_stage` 0.
    #[serde(default = "one")]
    pub shard: u32,
    pub micro_batch: u32,
    /// Number of model chunks per pipeline rank.
    #[serde(default = "one")]
    pub virtual_stages: u32,
    #[serde(default)]
    pub sequence_parallel: bool,
    /// Policy of the blocks that recompute; `stages` has the policy of each layer.
    #[serde(default)]
    pub recompute: Recompute,
    #[serde(default)]
    pub schedule: ScheduleKind,
    /// Minimum size of the buckets in which gradients are reduced; the last may be smaller.
    #[serde(default = "default_bucket")]
    pub bucket_bytes: Bytes,
    #[serde(default, skip_serializing_if = "Communication::is_default")]
    pub communication: Communication,
}

fn one() -> u32 {
    1
}

fn default_bucket() -> Bytes {
    Bytes(25 << 20)
}

impl ParallelStrategy {
    /// Plain data parallelism over `data` devices.
    pub fn data_parallel(data: u32, micro_batch: u32) -> Self {
        Self {
            data,
            tensor: 1,
            pipeline: 1,
            context: 1,
            expert: 1,
            zero_stage: 0,
            shard: 1,
            micro_batch,
            virtual_stages: 1,
            sequence_parallel: false,
            recompute: Recompute::None,
            schedule: ScheduleKind::OneFOneB,
            bucket_bytes: default_bucket(),
            communication: Communication::default(),
        }
    }

    /// Ranks that hold the same parameters: those of the data and of the context axis.
    pub fn replicas(&self) -> u32 {
        self.data.saturating_mul(self.context)
    }

    /// Ranks over which ZeRO shards a replica. Context-parallel ranks hold the same parameters, so a shard
    /// group contains all of them.
    pub fn shards(&self) -> u32 {
        if self.zero_stage == 0 { 1 } else { self.shard.saturating_mul(self.context) }
    }

    pub fn devices(&self) -> u64 {
        [self.data, self.tensor, self.pipeline, self.context]
            .iter()
            .fold(1, |n: u64, d| n.saturating_mul(u64::from(*d)))
    }

    /// Number of micro-batches that each data-parallel rank runs in a step.
    pub fn micro_batches(&self, global_batch: u32) -> u32 {
        let sequences = u64::from(self.data) * u64::from(self.micro_batch);
        (u64::from(global_batch) / sequences.max(1)) as u32
    }

    /// Number of model chunks in the whole pipeline.
    pub fn chunks(&self) -> u32 {
        self.pipeline.saturating_mul(self.virtual_stages)
    }

    /// Ranks of one pipeline stage: neighbours, which together hold its layers.
    pub fn stage_ranks(&self) -> usize {
        self.replicas() as usize * self.tensor as usize
    }

    /// The pipeline rank of a model chunk: chunks are dealt out in turn, so that neighbours are on neighbouring
    /// ranks (Narayanan et al., SC'21, section 2.2.2).
    pub fn rank_of(&self, chunk: usize) -> usize {
        chunk % self.pipeline.max(1) as usize
    }

    /// The position of a model chunk among those of its pipeline rank.
    pub fn turn_of(&self, chunk: usize) -> usize {
        chunk / self.pipeline.max(1) as usize
    }

    /// The model chunks of a pipeline rank.
    pub fn chunks_of(&self, rank: usize) -> impl Iterator<Item = usize> + use<> {
        (rank..self.chunks() as usize).step_by(self.pipeline.max(1) as usize)
    }

    /// The label, such as `dp2 tp1 pp1 mb4 zero1 recompute=full`.
    pub fn label(&self) -> String {
        let mut text =
            format!("dp{} tp{} pp{} mb{}", self.data, self.tensor, self.pipeline, self.micro_batch);
        if self.context > 1 {
            text += &format!(" cp{}", self.context);
        }
        if self.expert > 1 {
            text += &format!(" ep{}", self.expert);
        }
        if self.zero_stage > 0 {
            text += &format!(" zero{}", self.zero_stage);
            if self.shard != self.data {
                text += &format!("/{}", self.shard);
            }
        }
        if self.sequence_parallel {
            text += " sp";
        }
        if self.pipeline > 1 {
            text += &format!(" {}", self.schedule.name());
            if self.virtual_stages > 1 {
                text += &format!(" v{}", self.virtual_stages);
            }
        }
        if self.recompute != Recompute::None {
            text += &format!(" recompute={}", self.recompute.name());
        }
        text + &self.communication.label()
    }

    /// Checks the ranges of the single fields; `program` checks whether they are consistent.
    pub fn check(&self) -> Result<(), InputError> {
        for (field, value) in [
            ("data", self.data),
            ("tensor", self.tensor),
            ("pipeline", self.pipeline),
            ("context", self.context),
            ("expert", self.expert),
            ("shard", self.shard),
            ("micro_batch", self.micro_batch),
            ("virtual_stages", self.virtual_stages),
        ] {
            in_range(field, u64::from(value), 1, 1 << 20)?;
        }
        in_range("data x tensor x pipeline x context", self.devices(), 1, 1 << 20)?;
        in_range("zero_stage", u64::from(self.zero_stage), 0, 3)?;
        in_range("bucket_bytes", self.bucket_bytes.0, 1, 1 << 40)
    }
}

/// One model chunk: consecutive layers of the chain. [`ParallelStrategy::rank_of`] has its pipeline rank.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// First layer of the chain (0 is the embedding).
    pub first_layer: u32,
    /// One past the last layer.
    pub end_layer: u32,
    /// Recomputation of each layer of this chunk.
    pub recompute: Vec<Recompute>,
}

impl Stage {
    pub fn layers(&self) -> std::ops::Range<usize> {
        self.first_layer as usize..self.end_layer as usize
    }

    pub fn len(&self) -> usize {
        self.layers().len()
    }

    pub fn is_empty(&self) -> bool {
        self.layers().is_empty()
    }
}

/// Blocks that recompute, if not all of them do, and all blocks.
pub fn some_recompute(strategy: &ParallelStrategy, stages: &[Stage]) -> Option<(usize, usize)> {
    let entries = || stages.iter().flat_map(|stage| &stage.recompute);
    let recomputing = entries().filter(|r| **r != Recompute::None).count();
    // Embedding and head never recompute.
    let blocks = entries().count().saturating_sub(2);
    (strategy.recompute != Recompute::None && recomputing < blocks).then_some((recomputing, blocks))
}

/// The strategy's label, with the number of blocks that recompute if not all of them do.
pub fn label(strategy: &ParallelStrategy, stages: &[Stage]) -> String {
    let label = strategy.label();
    match some_recompute(strategy, stages) {
        None => label,
        Some((some, blocks)) => {
            let all = format!("recompute={}", strategy.recompute.name());
            label.replace(&all, &format!("{all}({some}/{blocks})"))
        }
    }
}

/// Checks each stage by itself; `program` checks whether the stages cover the layers.
pub(crate) fn check_stages(stages: &[Stage]) -> Result<(), InputError> {
    for (index, stage) in stages.iter().enumerate() {
        if stage.first_layer >= stage.end_layer || stage.recompute.len() != stage.len() {
            return Err(InputError::new(
                format!("stages[{index}]"),
                format!(
                    "layers {}..{}, {} recompute entries",
                    stage.first_layer,
                    stage.end_layer,
                    stage.recompute.len()
                ),
                "a stage must hold at least one layer, and one recompute entry per layer",
            )
            .hint("make the plan again with `autodist plan` or `autodist estimate`"));
        }
    }
    Ok(())
}
