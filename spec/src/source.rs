//! Where the costs of a plan come from.

use crate::correction::ProfileCorrection;
use crate::profile::{DeviceKind, Engine};
use crate::units::Seconds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The source of a plan's costs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CostSource {
    /// A profile of the plan's devices.
    Profile(ProfileReference),
    /// A profile whose prices are extrapolated to the cluster of the plan; `assumptions` lists how.
    Mixed(ProfileReference),
    /// Published figures of devices and links, and efficiencies that were fitted to training runs.
    Catalogue(CatalogueReference),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileReference {
    /// Fingerprint of the profile's content.
    pub fingerprint: String,
    /// Path of the profile, as given.
    #[serde(default)]
    pub path: String,
    /// The profile's `reference_s`.
    #[serde(default)]
    pub reference_s: Seconds,
    /// Kind of device on which the profile was measured, and for which the plan is valid.
    #[serde(default)]
    pub devices: DeviceKind,
    /// Engine with which the profile was measured, and for which the plan is valid.
    #[serde(default, skip_serializing_if = "Engine::is_native")]
    pub engine: Engine,
    /// Whether the devices and links were emulated: the plan is validated on the same emulation.
    #[serde(default)]
    pub emulated: bool,
    /// The correction of the profile by measured step times; absent without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub correction: Option<ProfileCorrection>,
}

/// The source of a plan's costs for a cluster that was not measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CatalogueReference {
    /// Training framework for which the plan is priced, e.g., `megatron-core`.
    pub trainer: String,
    /// Runs to which the efficiencies of a training step were fitted.
    pub calibration: String,
    /// Fingerprint of these efficiencies.
    pub fingerprint: String,
    /// Fingerprint of the figures of the devices; empty in older plans.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub devices: String,
    /// Of which runs the error bar of the step time is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error_bar_of: String,
    /// Kernels of the steps; absent in older plans, which have the trainer's defaults.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernels: Option<KernelReference>,
}

/// Kernels of the steps that are priced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KernelReference {
    /// `unfused`, `flash` or `cudnn`.
    pub attention: String,
    /// Whether the attention kernel was given; otherwise it is the trainer's default.
    pub attention_given: bool,
    /// `whole` logits, or `fused`.
    pub loss: String,
    /// Whether that was given.
    pub loss_given: bool,
    /// `fused` or `eager` operations of blocks; empty for the trainer's default.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub blocks: String,
}

impl CostSource {
    pub fn profile(&self) -> Option<&ProfileReference> {
        match self {
            Self::Profile(reference) | Self::Mixed(reference) => Some(reference),
            Self::Catalogue(_) => None,
        }
    }

    pub fn profile_mut(&mut self) -> Option<&mut ProfileReference> {
        match self {
            Self::Profile(reference) | Self::Mixed(reference) => Some(reference),
            Self::Catalogue(_) => None,
        }
    }

    pub fn catalogue(&self) -> Option<&CatalogueReference> {
        match self {
            Self::Catalogue(reference) => Some(reference),
            Self::Profile(_) | Self::Mixed(_) => None,
        }
    }

    /// Of the profile, or of the fitted efficiencies.
    pub fn fingerprint(&self) -> &str {
        match self {
            Self::Profile(reference) | Self::Mixed(reference) => &reference.fingerprint,
            Self::Catalogue(reference) => &reference.fingerprint,
        }
    }

    /// Whether the devices and links were emulated.
    pub fn is_emulated(&self) -> bool {
        self.profile().is_some_and(|profile| profile.emulated)
    }

    /// The devices for which the plan is valid: those of the catalogue are GPUs.
    pub fn devices(&self) -> DeviceKind {
        self.profile().map_or(DeviceKind::Cuda, |profile| profile.devices)
    }

    /// The engine that trains the plan, unless another one is given.
    pub fn engine(&self) -> Engine {
        self.profile().map_or(Engine::Native, |profile| profile.engine)
    }
}
