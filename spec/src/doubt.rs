//! Doubtful measurements, and the reasons.

use crate::collective::Collective;
use crate::error::{InputError, finite};
use crate::plan::Recompute;
use crate::profile::{Pass, Profile, Segment, SegmentCost};
use crate::units::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The measurement that is in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum DoubtedCell {
    Segment {
        segment: Segment,
        pass: Pass,
        tensor: u32,
        sequence_parallel: bool,
        micro_batch: u32,
        recompute: Recompute,
    },
    Collective {
        kind: Collective,
        group: u32,
        stride: u32,
        bytes: Bytes,
    },
    Message {
        stride: u32,
        bytes: Bytes,
    },
    /// The optimizer's update of so many elements.
    Update {
        elements: u64,
    },
}

impl From<&SegmentCost> for DoubtedCell {
    fn from(cell: &SegmentCost) -> Self {
        let SegmentCost { segment, pass, tensor, sequence_parallel, micro_batch, recompute, .. } = *cell;
        Self::Segment { segment, pass, tensor, sequence_parallel, micro_batch, recompute }
    }
}

impl DoubtedCell {
    /// Where a segment was measured; nothing for what is no segment.
    fn place(&self) -> Option<String> {
        let Self::Segment { tensor, sequence_parallel, micro_batch, recompute, .. } = self else {
            return None;
        };
        let sequence = if *sequence_parallel { " sp" } else { "" };
        Some(format!("tp{tensor}{sequence} mb{micro_batch}, recompute {}", recompute.name()))
    }
}

impl fmt::Display for DoubtedCell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment { segment, pass, .. } => {
                let place = self.place().unwrap_or_default();
                write!(f, "{} {} at {place}", segment.name(), pass.name())
            }
            Self::Collective { kind, group, stride, bytes } => {
                write!(f, "{} of {bytes} over {group} ranks at stride {stride}", kind.name())
            }
            Self::Message { stride, bytes } => {
                write!(f, "send/recv of {bytes} between ranks at stride {stride}")
            }
            Self::Update { elements } => write!(f, "optimizer update of {elements} elements"),
        }
    }
}

/// What speaks against a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtKind {
    /// More FLOP/s than the device does in its fastest GEMM.
    Rate,
    /// Unlike the same kernel under other recompute policies.
    Policy,
    /// Unlike the same kernel at other micro-batches.
    MicroBatch,
    /// Unlike the same kernel at other tensor degrees or with the other sequence parallelism.
    Sharding,
    /// Brought to the machine's usual speed by a factor that no other probe needed.
    Correction,
    /// Unlike the same transfer or update at other sizes.
    Size,
    /// Unlike other collectives of that size: an all-reduce is a reduce-scatter and an all-gather.
    Collective,
}

/// A measured cost that is not believed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Doubt {
    pub cell: DoubtedCell,
    pub kind: DoubtKind,
    /// What was found, and the limit that it breaks: FLOP/s of `rate`, a factor of `correction`, seconds of all others.
    pub figure: f64,
    pub limit: f64,
    /// The reason in words.
    pub reason: String,
    /// Plans use the measurement all the same, because there is no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used: bool,
}

impl Doubt {
    pub(crate) fn check(&self, at: &str) -> Result<(), InputError> {
        finite(&format!("{at}.figure"), self.figure)?;
        finite(&format!("{at}.limit"), self.limit)
    }
}

/// More lines would hide the others.
const LINES: usize = 8;

/// Doubts in words, those of one place and kind together.
pub fn lines(doubts: &[Doubt]) -> Vec<String> {
    let mut places: BTreeMap<(String, DoubtKind, bool), Vec<&Doubt>> = BTreeMap::new();
    for doubt in doubts {
        let place = doubt.cell.place().unwrap_or_else(|| doubt.cell.to_string());
        places.entry((place, doubt.kind, doubt.used)).or_default().push(doubt);
    }
    let count = places.len();
    let mut lines: Vec<String> = places
        .into_values()
        .take(LINES)
        .filter_map(|doubts| {
            let first = doubts.first()?;
            let others = match doubts.len() - 1 {
                0 => String::new(),
                1 => " (and 1 other segment there)".to_owned(),
                n => format!(" (and {n} other segments there)"),
            };
            let consequence = if first.used {
                "it is used all the same, because there is no other measurement"
            } else {
                "no plan uses it"
            };
            // The text may come from a file.
            let reason = crate::text::one_line(&first.reason);
            Some(format!("doubtful measurement: {}: {reason}{others}; {consequence}", first.cell))
        })
        .collect();
    if count > LINES {
        lines.push(format!("doubtful measurements in {} other places", count - LINES));
    }
    lines
}

impl DoubtedCell {
    /// Whether it is of what devices send each other, which is measured in one piece.
    pub fn is_of_links(&self) -> bool {
        matches!(self, Self::Collective { .. } | Self::Message { .. })
    }
}

impl Profile {
    /// Why plans must not rest on a cell, if so.
    pub fn distrusts(&self, cell: &DoubtedCell) -> Option<&Doubt> {
        self.doubts.iter().find(|doubt| !doubt.used && doubt.cell == *cell)
    }

    /// What tells its measurements from others: doubts are conclusions from them, and no part of it.
    pub fn fingerprint(&self) -> String {
        if self.doubts.is_empty() {
            return crate::fingerprint(self);
        }
        crate::fingerprint(&Self { doubts: Vec::new(), ..self.clone() })
    }
}
