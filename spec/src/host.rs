//! The host of a node: its memory, and the way from there to the devices.

use crate::error::{InputError, bytes, rate};
use crate::units::{Bytes, BytesPerSecond};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node's host has for state that is kept away from the devices. Rates that are missing are assumed, by the
/// generation of the devices.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NodeHost {
    /// Memory of the host that a training may use; without it, what plans need there is only said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<Bytes>,
    /// Rate at which all cores of the host together read and write its memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_s: Option<BytesPerSecond>,
    /// Rate between host memory and one device, in one direction: PCIe or NVLink-C2C.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bytes_per_s: Option<BytesPerSecond>,
    /// Rate of the node's NVMe drives together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvme_bytes_per_s: Option<BytesPerSecond>,
}

impl NodeHost {
    /// # Errors
    /// A size or a rate that no host has.
    pub(crate) fn check(&self) -> Result<(), InputError> {
        self.memory_bytes.map_or(Ok(()), |size| bytes("memory_bytes", size).map(drop))?;
        for (field, value) in [
            ("memory_bytes_per_s", self.memory_bytes_per_s),
            ("link_bytes_per_s", self.link_bytes_per_s),
            ("nvme_bytes_per_s", self.nvme_bytes_per_s),
        ] {
            value.map_or(Ok(()), |value| rate(field, value.0).map(drop))?;
        }
        Ok(())
    }
}
