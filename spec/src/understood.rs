//! What was understood of a trainer's file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who said a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Said {
    /// The trainer's file, or one that it names.
    ByFile,
    /// The defaults of the trainer's version.
    ByDefault,
    /// The command line, or a job file.
    ByFlag,
    /// It follows from the cluster.
    ByCluster,
    /// Nobody: it was assumed.
    ByNobody,
}

/// A setting of the training, and who said it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UnderstoodSetting {
    /// The setting by its name in plans, e.g., `zero_stage`.
    pub setting: String,
    /// Its value in words, e.g., `ZeRO stage 3`.
    pub value: String,
    pub said: Said,
    /// The keys of the file, or the flag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}
