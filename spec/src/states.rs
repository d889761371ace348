//! Where the state of a training is kept, and in how many bits.

use crate::error::{InputError, in_range};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use strum::{Display, EnumString, IntoStaticStr, VariantArray};

/// A kind of memory, in the order of its distance from the device.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
#[derive(Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum MemoryTier {
    /// The memory of the device.
    #[default]
    Device,
    /// The memory of the node's host.
    Host,
    /// The node's NVMe drives.
    Nvme,
}

impl MemoryTier {
    pub fn name(self) -> &'static str {
        self.into()
    }

    pub fn is_away(self) -> bool {
        self != Self::Device
    }
}

/// Bits and places of the state of a training. What is missing is as the trainer does it by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StateStorage {
    /// Bits of the first and of the second moment of Adam: 8, 16 or 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub moment_bits: Option<[u8; 2]>,
    /// Bits of the weights that the optimizer updates, in training with 16-bit weights: 32 or 16, or 0 if it updates
    /// the 16-bit weights themselves. The moments then have 16 bits, too, unless `moment_bits` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub master_bits: Option<u8>,
    /// Bits of a gradient in accumulation and reduction: 16 or 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gradient_bits: Option<u8>,
    /// Where the optimizer's state is; away from the device, the host's cores update it.
    #[serde(skip_serializing_if = "is_device")]
    pub optimizer: MemoryTier,
    /// The part of the optimizer's state that is away from the device.
    #[serde(skip_serializing_if = "is_one")]
    pub optimizer_part: f64,
    /// Where the shards of ZeRO-3's parameters are between their uses.
    #[serde(skip_serializing_if = "is_device")]
    pub parameters: MemoryTier,
    /// Where the activations of blocks are between forward and backward pass: device or host.
    #[serde(skip_serializing_if = "is_device")]
    pub activations: MemoryTier,
    /// Parameters that ZeRO-3 keeps gathered at most, e.g. DeepSpeed's `stage3_max_live_parameters`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub live_parameters: Option<u64>,
    /// Ranks over which ZeRO-3 shards a second copy of the parameters, from which backward passes gather: hpZ of ZeRO++
    /// (Wang et al. 2023, 2306.10209).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub second_shard: Option<u32>,
    /// Bits in which ZeRO-3 gathers parameters: 8 or 16 (qwZ of ZeRO++).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gather_bits: Option<u8>,
}

impl Default for StateStorage {
    fn default() -> Self {
        Self {
            moment_bits: None,
            master_bits: None,
            gradient_bits: None,
            optimizer: MemoryTier::Device,
            optimizer_part: 1.0,
            parameters: MemoryTier::Device,
            activations: MemoryTier::Device,
            live_parameters: None,
            second_shard: None,
            gather_bits: None,
        }
    }
}

// For serde, which passes references.
fn is_device(tier: &MemoryTier) -> bool {
    *tier == MemoryTier::Device
}

fn is_one(part: &f64) -> bool {
    *part == 1.0
}

impl StateStorage {
    /// Whether everything is as the trainer does it by default.
    pub fn is_usual(&self) -> bool {
        *self == Self::default()
    }

    /// The part of the optimizer's state that is away from the device.
    pub fn part_away(&self) -> f64 {
        if self.optimizer.is_away() { self.optimizer_part } else { 0.0 }
    }

    /// The settings that are not the trainer's default, by their names in job files, with their values.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let usual = Self::default();
        let mut list = Vec::new();
        if let Some([first, second]) = self.moment_bits {
            list.push(("states.moment_bits", format!("{first}, {second}")));
        }
        for (name, bits) in
            [("states.master_bits", self.master_bits), ("states.gradient_bits", self.gradient_bits)]
        {
            list.extend(bits.map(|bits| (name, bits.to_string())));
        }
        for (name, tier) in [
            ("states.optimizer", self.optimizer),
            ("states.parameters", self.parameters),
            ("states.activations", self.activations),
        ] {
            if tier.is_away() {
                list.push((name, tier.name().to_owned()));
            }
        }
        if self.optimizer_part != usual.optimizer_part {
            list.push(("states.optimizer_part", self.optimizer_part.to_string()));
        }
        list.extend(self.live_parameters.map(|live| ("states.live_parameters", live.to_string())));
        list.extend(self.second_shard.map(|ranks| ("states.second_shard", ranks.to_string())));
        list.extend(self.gather_bits.map(|bits| ("states.gather_bits", bits.to_string())));
        list
    }

    /// The settings in words, such as `8-bit moments, optimizer state in host memory`; empty if all are usual.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        match self.moment_bits {
            Some([first, second]) if first == second => words.push(format!("{first}-bit moments")),
            Some([first, second]) => words.push(format!("moments of {first} and {second} bits")),
            None => {}
        }
        match self.master_bits {
            Some(0) => words.push("no master weights".to_owned()),
            Some(bits) => words.push(format!("{bits}-bit master weights")),
            None => {}
        }
        words.extend(self.gradient_bits.map(|bits| format!("{bits}-bit gradients")));
        let place = |tier: MemoryTier| if tier == MemoryTier::Host { "in host memory" } else { "on NVMe" };
        if self.optimizer.is_away() {
            let part = match self.optimizer_part {
                1.0 => String::new(),
                part => format!("{} % of the ", 100.0 * part),
            };
            words.push(format!("{part}optimizer state {}", place(self.optimizer)));
        }
        for (what, tier) in [("parameters", self.parameters), ("activations", self.activations)] {
            if tier.is_away() {
                words.push(format!("{what} {}", place(tier)));
            }
        }
        words.extend(self.live_parameters.map(|live| format!("at most {live} parameters gathered")));
        words.extend(
            self.second_shard.map(|ranks| format!("a second copy of the parameters over {ranks} ranks")),
        );
        words.extend(self.gather_bits.map(|bits| format!("parameters gathered in {bits} bits")));
        words.join(", ")
    }

    /// # Errors
    /// A number of bits that no trainer has, a part that is not one, or settings that contradict each other.
    pub fn check(&self) -> Result<(), InputError> {
        let one_of = |field: &str, bits: u8, known: &[u8]| {
            if known.contains(&bits) {
                return Ok(());
            }
            let list: Vec<_> = known.iter().map(u8::to_string).collect();
            Err(InputError::new(
                field,
                bits,
                format!("is no number of bits for it: expected {}", list.join(", ")),
            )
            .hint("give one of these numbers, or remove it for the trainer's default"))
        };
        for bits in self.moment_bits.into_iter().flatten() {
            one_of("states.moment_bits", bits, &[8, 16, 32])?;
        }
        self.master_bits.map_or(Ok(()), |bits| one_of("states.master_bits", bits, &[0, 16, 32]))?;
        self.gradient_bits.map_or(Ok(()), |bits| one_of("states.gradient_bits", bits, &[16, 32]))?;
        self.gather_bits.map_or(Ok(()), |bits| one_of("states.gather_bits", bits, &[8, 16]))?;
        in_range("states.live_parameters", self.live_parameters.unwrap_or(0), 0, 1 << 50)?;
        in_range("states.second_shard", u64::from(self.second_shard.unwrap_or(1)), 1, 1 << 20)?;
        let part = self.optimizer_part;
        if !(part > 0.0 && part <= 1.0) {
            return Err(InputError::new("states.optimizer_part", part, "must be above 0 and at most 1")
                .hint("give the part of the optimizer's state that is away from the device, e.g. 0.5"));
        }
        if part < 1.0 && !self.optimizer.is_away() {
            let problem = "is a part of what is away from the device, but the optimizer's state is on it";
            return Err(InputError::new("states.optimizer_part", part, problem)
                .hint("give `states.optimizer` (`--offload-optimizer`), too"));
        }
        if self.activations == MemoryTier::Nvme {
            let problem = "is no place for activations: they are needed again within the step";
            return Err(InputError::new("states.activations", "nvme", problem).hint("give host or device"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_usual_is_not_written_and_what_is_not_is_said() {
        let usual = StateStorage::default();
        assert_eq!(serde_json::to_string(&usual).unwrap(), "{}");
        assert!(usual.is_usual() && usual.words().is_empty() && usual.settings().is_empty());
        let other = StateStorage {
            moment_bits: Some([8, 8]),
            master_bits: Some(0),
            optimizer: MemoryTier::Host,
            optimizer_part: 0.5,
            ..usual
        };
        let again: StateStorage = serde_json::from_str(&serde_json::to_string(&other).unwrap()).unwrap();
        assert_eq!(again, other);
        assert_eq!(
            other.words(),
            "8-bit moments, no master weights, 50 % of the optimizer state in host memory"
        );
        assert_eq!(other.settings().len(), 4);
        assert_eq!((other.part_away(), StateStorage::default().part_away()), (0.5, 0.0));
    }

    #[test]
    fn impossible_settings_are_refused_by_name() {
        let refused = |change: fn(&mut StateStorage)| {
            let mut states = StateStorage::default();
            change(&mut states);
            states.check().unwrap_err().field
        };
        assert_eq!(refused(|s| s.moment_bits = Some([8, 4])), "states.moment_bits");
        assert_eq!(refused(|s| s.master_bits = Some(8)), "states.master_bits");
        assert_eq!(refused(|s| s.gradient_bits = Some(8)), "states.gradient_bits");
        assert_eq!(refused(|s| s.optimizer_part = 0.5), "states.optimizer_part");
        assert_eq!(
            refused(|s| (s.optimizer, s.optimizer_part) = (MemoryTier::Host, 0.0)),
            "states.optimizer_part"
        );
        assert_eq!(refused(|s| s.activations = MemoryTier::Nvme), "states.activations");
        StateStorage::default().check().unwrap();
    }
}
