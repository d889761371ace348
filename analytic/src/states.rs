//! State in fewer bits, and state that is kept away from the devices: its bytes, and the time of moving and updating it.
//!
//! The host's cores update what is away: an update is bound by the host's memory, which all devices of a node share.
//! Trainers wait for it. Gradients reach the host while the backward pass goes on, except of Megatron-Core, which copies
//! them after it. Shards of parameters are fetched before they are gathered, and overlap with compute like the gathers.
//! Activations are copied while other blocks run; only DeepSpeed waits for the copies.

use crate::machine::{Generation, NodeModel};
use crate::memory;
use crate::run::TrainingRun;
use crate::trainer::Trainer;
use autodist_cost_model::ParameterBytes;
use autodist_spec::{InputError, MemoryTier, NodeHost, Optimizer, ParallelStrategy, Precision, StateStorage};

/// Rates of a node's host, in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HostRates {
    /// All cores together, reading and writing memory.
    pub memory: f64,
    /// Between host memory and one device, in one direction.
    pub link: f64,
    /// All drives together.
    pub nvme: f64,
}

/// Part of the host's peak memory rate that an update on its cores reaches: DeepSpeed's CPU-Adam updates 4 billion
/// parameters in 1.03 s, 30 bytes each, on two sockets with six channels of DDR4-2666 (Ren et al. 2021, 2101.06840,
/// table 4).
const HOST_UPDATE: f64 = 0.5;
/// Part of a PCIe link's rate that large copies from pinned memory reach.
const PCIE: f64 = 0.8;
/// Rate of a node's drives that is assumed: four drives of 3 GB/s.
const DRIVES: f64 = 12e9;

impl HostRates {
    /// The given rates, and those that are usual for nodes of this generation.
    pub fn of(given: Option<&NodeHost>, generation: Generation, device: &str) -> Self {
        let usual = Self::usual(generation, device);
        let of = |rate: Option<autodist_spec::BytesPerSecond>, usual: f64| rate.map_or(usual, |rate| rate.0);
        let Some(host) = given else { return usual };
        Self {
            memory: of(host.memory_bytes_per_s, usual.memory),
            link: of(host.link_bytes_per_s, usual.link),
            nvme: of(host.nvme_bytes_per_s, usual.nvme),
        }
    }

    fn usual(generation: Generation, device: &str) -> Self {
        // Two sockets with all their channels; PCIe with 16 lanes.
        let (memory, link) = match generation {
            // Grace: LPDDR5X, and NVLink-C2C of 450 GB/s in each direction.
            _ if ["gh200", "gb200", "gb300"].iter().any(|name| device.starts_with(name)) => (500e9, 450e9),
            // DDR4-2666 with six channels, PCIe 3.0.
            Generation::Volta => (256e9, 15.75e9),
            // DDR4-3200 with eight channels, PCIe 4.0.
            Generation::Ampere | Generation::Other => (410e9, 31.5e9),
            // DDR5-4800 with eight channels, PCIe 5.0.
            Generation::Hopper | Generation::Blackwell | Generation::BlackwellUltra => (614e9, 63e9),
        };
        Self { memory: HOST_UPDATE * memory, link: PCIE * link, nvme: DRIVES }
    }

    /// What is assumed of the hosts of a machine, if the cluster does not give it.
    pub fn assumption(
        given: Option<&NodeHost>,
        machine: &NodeModel,
        states: &StateStorage,
    ) -> Option<String> {
        let rates = machine.host;
        let gb = |rate: f64| format!("{:.0} GB/s", rate / 1e9);
        let given = given.cloned().unwrap_or_default();
        let nvme = [states.optimizer, states.parameters].contains(&MemoryTier::Nvme);
        let parts = [
            (given.link_bytes_per_s.is_none(), "from the host to each device", rates.link),
            (given.memory_bytes_per_s.is_none(), "of host memory in updates", rates.memory),
            (nvme && given.nvme_bytes_per_s.is_none(), "of a node's drives", rates.nvme),
        ];
        let parts: Vec<_> = parts
            .iter()
            .filter(|(missing, ..)| *missing)
            .map(|(_, what, rate)| format!("{} {what}", gb(*rate)))
            .collect();
        let device = &machine.device_name;
        (!parts.is_empty()).then(|| {
            format!(
                "{}, as usual for nodes with {device}: the cluster has no `host` that says it",
                parts.join(", ")
            )
        })
    }
}

/// Bytes of a value of so many bits; an 8-bit moment has an fp32 scale for each 256 values (Dettmers et al. 2021,
/// 2110.02861, as in bitsandbytes).
fn bytes_of(bits: u8) -> f64 {
    f64::from(bits) / 8.0 + if bits == 8 { 4.0 / 256.0 } else { 0.0 }
}

/// Bytes of the parts of the optimizer's state for each parameter.
struct StateBytes {
    master: f64,
    moments: f64,
}

impl StateBytes {
    fn of(run: &TrainingRun) -> Self {
        let states = &run.states;
        let in_place = run.trainer.traits().shards_parameters;
        let master = match states.master_bits {
            // In fp32 the weights themselves are updated, and by FSDP always.
            _ if run.word() > 2.0 || in_place => 0.0,
            Some(bits) => bytes_of(bits),
            None => 4.0,
        };
        let usual = if states.master_bits == Some(0) && run.word() <= 2.0 { 16 } else { 32 };
        let moments = states.moment_bits.unwrap_or([usual; 2]);
        Self { master, moments: moments.into_iter().map(bytes_of).sum() }
    }
}

/// Bytes for each parameter on the device, and in the host's memory; what is on drives is in neither. `usual` is what the trainer has
/// on the device by default.
pub fn parameter_bytes(run: &TrainingRun, usual: ParameterBytes) -> [ParameterBytes; 2] {
    let (states, trainer) = (&run.states, run.trainer);
    if states.is_usual() {
        return [usual, ParameterBytes::default()];
    }
    let in_place = trainer.traits().shards_parameters;
    let StateBytes { master, moments } = StateBytes::of(run);
    let mut device = usual;
    let sixteen = run.word() <= 2.0;
    if sixteen && in_place && states.master_bits == Some(0) {
        // The gradients of 16-bit weights have 16 bits, too.
        (device.weight, device.gradient) = (2.0, 2.0);
    }
    if sixteen && !in_place && states.master_bits == Some(0) {
        device.gradient = 2.0;
    }
    if let Some(bits) = states.gradient_bits {
        // DeepSpeed accumulates those of the backward pass, which are in 16 bits, into others.
        let passing = if trainer.traits().flat_buffers && bits > 16 && sixteen { 2.0 } else { 0.0 };
        device.gradient = passing + bytes_of(bits);
    }
    // Copies of the shard's gradient.
    let usual_state = if in_place || !sixteen { 8.0 } else { 12.0 };
    let copies = (usual.state - usual_state).max(0.0);
    device.state = master + moments + copies;
    let mut host = ParameterBytes::default();
    let away = states.part_away();
    let in_memory = |tier: MemoryTier, bytes: f64| if tier == MemoryTier::Host { bytes } else { 0.0 };
    if away > 0.0 {
        host.state = in_memory(states.optimizer, away * (master + moments));
        device.state = (1.0 - away) * (master + moments);
        if trainer.traits().core {
            host.gradient = away * device.gradient;
        } else {
            // Those of the shard are on the host as soon as they are reduced, in fp32 for the update.
            host.gradient = in_memory(states.optimizer, 4.0);
            device.gradient = 0.0;
        }
    }
    if states.parameters.is_away() {
        host.weight = in_memory(states.parameters, device.weight);
        host.frozen = in_memory(states.parameters, device.frozen);
        (device.weight, device.frozen) = (0.0, 0.0);
    }
    [device, host]
}

impl TrainingRun {
    /// Bytes of a gradient before it is reduced to the shards of ZeRO-2 and 3: PyTorch reduces it in fp32 unless all
    /// state has 16 bits; DeepSpeed copies each into its flat buffers at once, which are counted by themselves.
    pub fn whole_gradient_bytes(&self) -> f64 {
        match self.states.master_bits {
            _ if self.trainer.traits().flat_buffers => 0.0,
            Some(0) => self.word(),
            _ => 4.0,
        }
    }

    /// Bytes per gradient in accumulation and reduction.
    pub fn gradient_bytes(&self) -> f64 {
        let in_place = self.trainer.traits().shards_parameters;
        match (self.states.gradient_bits, self.states.master_bits) {
            (Some(bits), _) => bytes_of(bits),
            (None, Some(0)) if in_place && self.word() <= 2.0 => 2.0,
            _ => self.trainer.gradient_bytes(self.dtype),
        }
    }

    /// Bytes that the optimizer's update of a parameter reads and writes: it reads the gradient, reads and writes master
    /// weight and moments, and writes the weight that layers read; without a master weight it reads that one, too.
    pub fn update_bytes(&self) -> f64 {
        if self.states.is_usual() {
            // To this the fits belong: fp32 gradient, master weight and moments, 16-bit weight.
            return 30.0;
        }
        let StateBytes { master, moments } = StateBytes::of(self);
        let sixteen = self.word() <= 2.0 && self.states.master_bits == Some(0);
        let master = if master > 0.0 || sixteen { master } else { 4.0 };
        let gradient = self.states.gradient_bits.map_or(if sixteen { 2.0 } else { 4.0 }, bytes_of);
        gradient + 2.0 * (master + moments) + if sixteen { 2.0 * 2.0 } else { 2.0 }
    }

    /// Parameters that DeepSpeed's ZeRO-3 keeps gathered at most.
    pub fn live_parameters(&self) -> f64 {
        self.states.live_parameters.map_or(memory::LIVE, |live| live as f64)
    }

    /// Bytes of the second copy of `elements` parameters.
    pub fn second_copy(&self, elements: f64) -> f64 {
        self.states.second_shard.map_or(0.0, |ranks| self.word() * elements / f64::from(ranks))
    }

    /// Bytes of a gathered parameter on links, relative to its bytes in a pass.
    pub fn gathered_part(&self) -> f64 {
        self.states.gather_bits.map_or(1.0, |bits| f64::from(bits) / 16.0).min(1.0)
    }

    /// Part of the update that the device does.
    pub fn updated_on_device(&self) -> f64 {
        1.0 - self.states.part_away()
    }

    /// Seconds of the update of the part of `elements` parameters that is away, on every device of a node at once.
    pub fn update_away(&self, elements: f64) -> f64 {
        let (states, host) = (&self.states, self.machine.host);
        let away = states.part_away() * elements;
        if away <= 0.0 {
            return 0.0;
        }
        let devices = f64::from(self.machine.devices_per_node);
        let down = if self.trainer.traits().core { self.gradient_bytes() } else { 0.0 };
        let up = if states.parameters.is_away() { 0.0 } else { self.word() };
        let drives = if states.optimizer == MemoryTier::Nvme {
            let StateBytes { master, moments } = StateBytes::of(self);
            2.0 * (master + moments) * devices / host.nvme
        } else {
            0.0
        };
        away * ((down + up) / self.link_to_host() + self.update_bytes() * devices / host.memory + drives)
    }

    /// Rate between host and device while all devices of the node copy.
    fn link_to_host(&self) -> f64 {
        let host = self.machine.host;
        host.link.min(host.memory / HOST_UPDATE / f64::from(self.machine.devices_per_node))
    }

    /// Seconds to fetch a shard of so many parameters before it is gathered.
    pub fn fetch_seconds(&self, elements: f64) -> f64 {
        let devices = f64::from(self.machine.devices_per_node);
        let wide = self.trainer.traits().shards_parameters && self.states.master_bits != Some(0);
        let bytes = elements * if wide { 4.0 } else { self.word() };
        match self.states.parameters {
            MemoryTier::Device => 0.0,
            MemoryTier::Host => bytes / self.link_to_host(),
            MemoryTier::Nvme => bytes * (1.0 / self.link_to_host()).max(devices / self.machine.host.nvme),
        }
    }

    /// Seconds by which the copy of so many bytes of activations makes a pass of `pass` seconds longer.
    pub fn exposed_copy(&self, bytes: f64, pass: f64) -> f64 {
        if !self.states.activations.is_away() {
            return 0.0;
        }
        let copy = bytes / self.link_to_host();
        if self.trainer.traits().flat_buffers { copy } else { (copy - pass).max(0.0) }
    }
}

/// The state of a trainer that moves what belongs together: FSDP has optimizer state and gradients where the
/// parameters are. The second part is what follows from that.
pub fn completed(trainer: Trainer, states: &StateStorage) -> (StateStorage, Option<String>) {
    let mut all = states.clone();
    if trainer.traits().shards_parameters && states.parameters.is_away() && !states.optimizer.is_away() {
        all.optimizer = states.parameters;
        let why = format!("optimizer state in host memory: {trainer} has it where the parameters are");
        return (all, Some(why));
    }
    (all, None)
}

/// # Errors
/// The trainer does not keep its state in this way.
pub fn check_states(
    trainer: Trainer,
    states: &StateStorage,
    optimizer: &Optimizer,
    precision: Precision,
) -> Result<(), InputError> {
    let traits = trainer.traits();
    let deepspeed = trainer == Trainer::Deepspeed;
    let (fsdp, core) = (traits.shards_parameters, traits.core);
    let refuse = |field: &str, why: String, way_out: &str| {
        let value = states.settings().into_iter().find(|(name, _)| *name == field);
        Err(InputError::new(field, value.map_or(String::new(), |(_, value)| value), why)
            .hint(way_out.to_owned()))
    };
    let other =
        "remove it, or give another trainer with `--trainer`: megatron-core, nemo, deepspeed, fsdp or fsdp2";
    if let Some((field, _)) = states.settings().first().filter(|_| !(deepspeed || fsdp || core)) {
        return refuse(field, format!("is not supported by {trainer}"), other);
    }
    if states.moment_bits.is_some() && !matches!(optimizer, Optimizer::AdamW { .. }) {
        return refuse("states.moment_bits", "is of AdamW, not of SGD".to_owned(), "remove it, or use adamw");
    }
    let wide = matches!(precision, Precision::Fp32 | Precision::Tf32);
    if wide && states.master_bits.is_some() {
        let why = format!("is of training in 16 bits, not in {precision}");
        return refuse("states.master_bits", why, "remove it, or give `--precision bf16`");
    }
    if wide && states.gradient_bits == Some(16) {
        let why = format!("is of training in 16 bits, not in {precision}");
        return refuse("states.gradient_bits", why, "remove it, or give `--precision bf16`");
    }
    let gathers = states.settings().into_iter().map(|(name, _)| name).find(|name| OF_GATHERS.contains(name));
    if let Some(field) = gathers.filter(|_| !deepspeed) {
        let why = format!("is not supported by {trainer}: it is a setting of DeepSpeed's ZeRO-3");
        return refuse(field, why, "remove it, or give `--trainer deepspeed`");
    }
    match states.master_bits {
        Some(16) if !core => {
            let why =
                format!("is not supported by {trainer}: its master weights have 32 bits, or there are none");
            return refuse("states.master_bits", why, "give 32 or 0");
        }
        Some(0) if core => {
            let why = format!("is not supported by {trainer}, whose optimizer always has master weights");
            return refuse("states.master_bits", why, "give 32 or 16");
        }
        _ => {}
    }
    if states.optimizer.is_away() && fsdp && !states.parameters.is_away() {
        let why =
            format!("is not supported by {trainer} alone: it moves parameters, gradients and state together");
        return refuse("states.optimizer", why, "give `--offload-parameters`, too");
    }
    if states.parameters.is_away() && core {
        let why = format!("is not supported by {trainer}");
        return refuse("states.parameters", why, "remove it, or give `--trainer deepspeed` or `fsdp2`");
    }
    if states.optimizer_part < 1.0 && fsdp {
        return refuse("states.optimizer_part", format!("is not supported by {trainer}"), other);
    }
    for (field, tier) in [("states.parameters", states.parameters), ("states.optimizer", states.optimizer)] {
        if tier == MemoryTier::Nvme && !deepspeed {
            let why = format!("is not supported by {trainer}: only DeepSpeed keeps state on drives");
            return refuse(field, why, "give host, or `--trainer deepspeed`");
        }
    }
    Ok(())
}

/// The ZeRO stages that a search may use; `None` for all.
pub fn stages(trainer: Trainer, states: &StateStorage) -> Option<&'static [u8]> {
    let drives = trainer == Trainer::Deepspeed && states.optimizer == MemoryTier::Nvme;
    let gathers = OF_GATHERS.iter().any(|field| states.settings().iter().any(|(name, _)| name == field));
    if states.parameters.is_away() || drives || gathers { Some(&[3]) } else { None }
}

/// Settings of the parameters that ZeRO-3 gathers.
const OF_GATHERS: [&str; 3] = ["states.live_parameters", "states.second_shard", "states.gather_bits"];

/// # Errors
/// The strategy has no state of this kind to move.
pub fn check_strategy(
    trainer: Trainer,
    states: &StateStorage,
    strategy: &ParallelStrategy,
) -> Result<(), InputError> {
    let stage = strategy.zero_stage;
    let refuse = |field: &str, tier: MemoryTier, why: String, way_out: &str| {
        Err(InputError::new(field, tier.name(), why).hint(way_out.to_owned()))
    };
    if states.parameters.is_away() && stage != 3 {
        let why = format!("needs ZeRO stage 3 over several ranks, but the stage is {stage}");
        let way_out = "give `--zero 3` and several data-parallel ranks, or keep the parameters on the device";
        return refuse("states.parameters", states.parameters, why, way_out);
    }
    if trainer == Trainer::Deepspeed && states.optimizer == MemoryTier::Nvme && stage != 3 {
        let why = format!("needs ZeRO stage 3, but the stage is {stage}");
        return refuse("states.optimizer", states.optimizer, why, "give `--zero 3`, or host in its place");
    }
    let ranks = strategy.replicas();
    if let Some(second) = states.second_shard.filter(|second| stage == 3 && ranks % second != 0) {
        let why = format!("does not divide the {ranks} ranks over which ZeRO-3 shards");
        let way_out = "give a divisor of them, such as the devices of a node";
        return Err(InputError::new("states.second_shard", second, why).hint(way_out));
    }
    let gathers = states.settings().into_iter().find(|(name, _)| OF_GATHERS.contains(name));
    if let Some((field, value)) = gathers.filter(|_| stage != 3 && ranks > 1) {
        let why = format!("is a setting of ZeRO stage 3, but the stage is {stage}");
        return Err(InputError::new(field, value, why).hint("give `--zero 3`, or remove it"));
    }
    let whole = strategy.replicas() > 1 && stage == 0;
    if states.optimizer.is_away() && whole && trainer == Trainer::Deepspeed {
        let why = format!("needs an optimizer whose state is sharded: {trainer} moves no other");
        return refuse("states.optimizer", states.optimizer, why, "give `--zero 1` or more");
    }
    Ok(())
}
