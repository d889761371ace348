//! Doubtful measurements, and the reasons.

use crate::collective::Collective;
use crate::error::{InputError, finite};
use crate::profile::{Pass, Profile, Segment, SegmentCost};
use crate::strategy::Recompute;
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
    /// The optimizer's update of `elements` elements.
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
    /// Where a segment was measured; `None` for other cells.
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

/// The reason to doubt a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DoubtKind {
    /// More FLOP/s than in the device's fastest GEMM.
    Rate,
    /// Differs from the same kernel under other recomputation policies.
    Policy,
    /// Differs from the same kernel at other micro-batch sizes.
    MicroBatch,
    /// Differs from the same kernel at other tensor-parallel degrees, or with or without sequence
    /// parallelism.
    Sharding,
    /// Corrected to the machine's usual speed by a factor that no other probe needed.
    Correction,
    /// Differs from the same transfer or update at other sizes.
    Size,
    /// Inconsistent with other collectives of the same size: an all-reduce is a reduce-scatter and an
    /// all-gather.
    Collective,
}

/// A doubtful measured cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Doubt {
    pub cell: DoubtedCell,
    pub kind: DoubtKind,
    /// The measured figure; `limit` is the limit that it violates. Both are FLOP/s for `rate`, a factor for
    /// `correction`, and seconds for all other kinds.
    pub figure: f64,
    pub limit: f64,
    /// The reason in words.
    pub reason: String,
    /// Whether plans use the measurement nevertheless, because there is no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub used: bool,
}

impl Doubt {
    pub(crate) fn check(&self, at: &str) -> Result<(), InputError> {
        finite(&format!("{at}.figure"), self.figure)?;
        finite(&format!("{at}.limit"), self.limit)
    }
}

/// Maximum number of lines: more would hide other messages.
const LINES: usize = 8;

/// Doubts as text, with one line per place and kind.
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
                "it is used nevertheless, because there is no other measurement"
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
    /// Whether the cell measures transfers between devices, which are all measured together.
    pub fn is_of_links(&self) -> bool {
        matches!(self, Self::Collective { .. } | Self::Message { .. })
    }
}

impl Profile {
    /// The doubt because of which plans must not use a cell, if there is one.
    pub fn distrusts(&self, cell: &DoubtedCell) -> Option<&Doubt> {
        self.doubts.iter().find(|doubt| !doubt.used && doubt.cell == *cell)
    }

    /// Fingerprint of the measurements, without doubts, which are only derived from them.
    pub fn fingerprint(&self) -> String {
        if self.doubts.is_empty() {
            return crate::fingerprint(self);
        }
        crate::fingerprint(&Self { doubts: Vec::new(), ..self.clone() })
    }
}
