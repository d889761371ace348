//! Rows of the bits and places of weights, gradients and optimizer state, for every trainer that has settings for some
//! of them. What a trainer has no setting for, its row refuses by name.

use crate::document::{Document, plain};
use crate::row::{Draft, FieldMapping, UnsupportedField, refuse};
use crate::settings::{Field, Settings};
use autodist_spec::{InputError, MemoryTier, Optimizer, Precision};

/// A trainer without any of these settings.
pub const NO_STATES: UnsupportedField = refuse(
    Field::States,
    "its files have no settings of the bits and places of weights, gradients and optimizer state",
    "remove `states` from the job, or export to megatron, deepspeed or torchtitan",
);

/// Refuses all settings that the trainer does not have.
fn keep_only(settings: &Settings, draft: &mut Draft, known: &[&str]) {
    for (name, value) in settings.states.settings().into_iter().filter(|(name, _)| !known.contains(name)) {
        let error = InputError::new(format!("job.{name}"), value, "is not a setting of this trainer's files");
        draft.refusals.push(error.hint("remove it from the job, or export to another trainer"));
    }
    let name = "states.moment_bits";
    if settings.states.moment_bits.is_some()
        && known.contains(&name)
        && !matches!(settings.optimizer, Optimizer::AdamW { .. })
    {
        refuse_value(
            draft,
            name,
            settings.states.words(),
            "is of AdamW, not of SGD",
            "remove it, or use adamw",
        );
    }
}

fn refuse_value(draft: &mut Draft, name: &str, value: impl ToString, why: &str, way_out: &str) {
    draft.refusals.push(InputError::new(format!("job.{name}"), value.to_string(), why).hint(way_out));
}

/// Away are both parameters and optimizer state, or neither, as FSDP does it.
fn fsdp_offloads(settings: &Settings, draft: &mut Draft) -> bool {
    let states = &settings.states;
    let both = (states.parameters, states.optimizer, states.optimizer_part);
    let on_host = both == (MemoryTier::Host, MemoryTier::Host, 1.0);
    if !on_host && (states.parameters.is_away() || states.optimizer.is_away()) {
        let why = "is not moved alone, in part or to drives: FSDP moves parameters, gradients and state to the host together";
        let way_out = "plan with `--offload-optimizer host --offload-parameters host`, or with neither";
        refuse_value(draft, "states.optimizer", states.optimizer, why, way_out);
    }
    on_host
}

fn take_offload(settings: &mut Settings, on: bool) {
    if on {
        (settings.states.parameters, settings.states.optimizer) = (MemoryTier::Host, MemoryTier::Host);
    }
}

const MEGATRON_BITS: [&str; 4] =
    ["exp-avg-dtype", "exp-avg-sq-dtype", "main-params-dtype", "main-grads-dtype"];

/// A number of bits, by PyTorch's or Megatron's name of a type.
fn bits(document: &Document, key: &str) -> Result<Option<u8>, InputError> {
    let words = [
        ("fp32", 32),
        ("float32", 32),
        ("torch.float32", 32),
        ("bf16", 16),
        ("fp16", 16),
        ("bfloat16", 16),
        ("float16", 16),
        ("torch.bfloat16", 16),
        ("torch.float16", 16),
        ("fp8", 8),
        ("torch.uint8", 8),
    ];
    document.choice(key, &words)
}

pub const MEGATRON: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "use-precision-aware-optimizer, exp-avg-dtype, exp-avg-sq-dtype, main-params-dtype, main-grads-dtype, \
             optimizer-cpu-offload, optimizer-offload-fraction",
    write: |settings, draft| {
        let states = &settings.states;
        keep_only(
            settings,
            draft,
            &[
                "states.moment_bits",
                "states.master_bits",
                "states.gradient_bits",
                "states.optimizer",
                "states.optimizer_part",
            ],
        );
        if states.is_usual() {
            return;
        }
        if settings.zero_stage == 0 || !matches!(settings.optimizer, Optimizer::AdamW { .. }) {
            let why = "needs Megatron's distributed optimizer, with Adam";
            refuse_value(draft, "states", states.words(), why, "plan with `--zero 1` and adamw");
        }
        draft.set("use-precision-aware-optimizer", true);
        let word = |bits: u8| match bits {
            8 => "fp8",
            16 => "bf16",
            _ => "fp32",
        };
        if let Some([first, second]) = states.moment_bits {
            draft.set("exp-avg-dtype", word(first));
            draft.set("exp-avg-sq-dtype", word(second));
        }
        match states.master_bits {
            Some(0) => {
                let why = "is not a value of Megatron, whose optimizer always has master weights";
                refuse_value(draft, "states.master_bits", 0, why, "plan with `--master-bits 16` or 32");
            }
            Some(bits) => draft.set("main-params-dtype", if bits == 16 { "fp16" } else { "fp32" }),
            None => {}
        }
        if let Some(bits) = states.gradient_bits {
            draft.set("main-grads-dtype", word(bits));
        }
        match states.optimizer {
            MemoryTier::Device => {}
            MemoryTier::Host => {
                draft.set("optimizer-cpu-offload", true);
                draft.set("optimizer-offload-fraction", states.optimizer_part);
            }
            MemoryTier::Nvme => {
                let why = "is not a place of Megatron's, which moves the state to host memory only";
                refuse_value(draft, "states.optimizer", "nvme", why, "plan with `--offload-optimizer host`");
            }
        }
    },
    read: |document, settings| {
        document.flag("use-precision-aware-optimizer")?;
        let [first, second, master, gradient] = MEGATRON_BITS.map(|key| bits(document, key));
        let (first, second) = (first?, second?);
        let states = &mut settings.states;
        if first.is_some() || second.is_some() {
            states.moment_bits = Some([first.unwrap_or(32), second.unwrap_or(32)]);
        }
        (states.master_bits, states.gradient_bits) = (master?, gradient?);
        let part = document.real("optimizer-offload-fraction")?;
        if document.flag("optimizer-cpu-offload")?.unwrap_or(false) {
            let part = part.unwrap_or(1.0);
            if part > 0.0 {
                (states.optimizer, states.optimizer_part) = (MemoryTier::Host, part);
            }
        }
        Ok(true)
    },
};

/// Where DeepSpeed keeps something.
fn place(document: &Document, key: &str) -> Result<Option<MemoryTier>, InputError> {
    let words = [("none", MemoryTier::Device), ("cpu", MemoryTier::Host), ("nvme", MemoryTier::Nvme)];
    document.choice(key, &words)
}

fn word_of(tier: MemoryTier) -> &'static str {
    match tier {
        MemoryTier::Device => "none",
        MemoryTier::Host => "cpu",
        MemoryTier::Nvme => "nvme",
    }
}

const OFFLOAD: [&str; 2] =
    ["zero_optimization.offload_optimizer.device", "zero_optimization.offload_param.device"];
const RATIO: &str = "zero_optimization.offload_optimizer.ratio";
const GRADIENTS: &str = "data_types.grad_accum_dtype";
/// Switches of 16-bit masters, and of 16-bit moments.
const ALL_IN_BF16: [&str; 2] = ["bf16.bf16_master_weights_and_grads", "bf16.bf16_optimizer_states"];
const ALL_IN_FP16: &str = "fp16.fp16_master_weights_and_grads";
const LIVE: &str = "zero_optimization.stage3_max_live_parameters";
const SECOND: &str = "zero_optimization.zero_hpz_partition_size";
/// Also read by the row of codecs.
const QUANTISED: &str = "zero_optimization.zero_quantized_weights";
const ACTIVATIONS: &str = "activation_checkpointing.cpu_checkpointing";

pub const DEEPSPEED: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "zero_optimization.offload_optimizer.device, zero_optimization.offload_optimizer.ratio, \
             zero_optimization.offload_param.device, data_types.grad_accum_dtype, bf16.bf16_master_weights_and_grads, \
             bf16.bf16_optimizer_states, fp16.fp16_master_weights_and_grads, activation_checkpointing.cpu_checkpointing, \
             zero_optimization.stage3_max_live_parameters, zero_optimization.zero_hpz_partition_size, \
             zero_optimization.zero_quantized_weights",
    write: |settings, draft| {
        let states = &settings.states;
        let bf16 = matches!(settings.precision, Precision::Bf16);
        if let Some(moments) = states.moment_bits {
            let usual = if states.master_bits == Some(0) && bf16 { [16; 2] } else { [32; 2] };
            if moments != usual && !(states.master_bits == Some(0) && moments == [32; 2]) {
                let why = "is not a setting of DeepSpeed's files: its own Adam keeps moments in fp32, or all state in bf16";
                let shown = format!("{}, {}", moments[0], moments[1]);
                refuse_value(draft, "states.moment_bits", shown, why, "remove it, or export to transformers");
            }
        }
        match states.master_bits {
            Some(16) => {
                let why = "is not a value of DeepSpeed: its master weights have 32 bits, or there are none";
                refuse_value(draft, "states.master_bits", 16, why, "plan with `--master-bits 32` or 0");
            }
            Some(0) if bf16 => {
                draft.set(ALL_IN_BF16[0], true);
                draft.set(ALL_IN_BF16[1], states.moment_bits != Some([32; 2]));
            }
            Some(0) => draft.set(ALL_IN_FP16, true),
            Some(_) if bf16 => draft.set(ALL_IN_BF16[0], false),
            _ => {}
        }
        if let Some(bits) = states.gradient_bits {
            let narrow = if settings.precision == Precision::Fp16 { "fp16" } else { "bf16" };
            draft.set(GRADIENTS, if bits == 16 { narrow } else { "fp32" });
        }
        for (key, tier) in OFFLOAD.into_iter().zip([states.optimizer, states.parameters]) {
            if tier.is_away() {
                draft.set(key, word_of(tier));
            }
            if tier == MemoryTier::Nvme {
                let why = "needs a folder on the drive, which plans do not have";
                let way_out = "plan with host in its place, or add `nvme_path` to a file of your own";
                let name = if key == OFFLOAD[0] { "states.optimizer" } else { "states.parameters" };
                refuse_value(draft, name, "nvme", why, way_out);
            }
        }
        if states.optimizer_part < 1.0 {
            draft.set(RATIO, states.optimizer_part);
        }
        if states.activations.is_away() {
            draft.set(ACTIVATIONS, true);
        }
        let of_gathers =
            [states.live_parameters.is_some(), states.second_shard.is_some(), states.gather_bits.is_some()];
        if settings.zero_stage != 3 && of_gathers.contains(&true) {
            let why = "has settings of ZeRO stage 3, which other stages do not read";
            refuse_value(draft, "states", states.words(), why, "plan with `--zero 3`");
        }
        if let Some(live) = states.live_parameters {
            draft.set(LIVE, live);
        }
        if let Some(ranks) = states.second_shard {
            draft.set(SECOND, ranks);
        }
        if let Some(bits) = states.gather_bits {
            draft.set(QUANTISED, bits == 8);
        }
    },
    read: |document, settings| {
        let states = &mut settings.states;
        let [optimizer, parameters] = OFFLOAD.map(|key| place(document, key));
        // The settings of its first releases.
        let older = ["zero_optimization.cpu_offload", "zero_optimization.cpu_offload_params"].map(|key| {
            document.flag(key).map(|on| on.map(|on| if on { MemoryTier::Host } else { MemoryTier::Device }))
        });
        let [older_optimizer, older_parameters] = older;
        states.optimizer = optimizer?.or(older_optimizer?).unwrap_or_default();
        states.parameters = parameters?.or(older_parameters?).unwrap_or_default();
        let part = document.real(RATIO)?.unwrap_or(1.0);
        if states.optimizer.is_away() {
            states.optimizer_part = part;
        }
        states.gradient_bits = bits(document, GRADIENTS)?;
        let [masters, moments] = ALL_IN_BF16.map(|key| document.flag(key));
        let (masters, moments) = (masters?, moments?.unwrap_or(false));
        let masters = masters.or(document.flag(ALL_IN_FP16)?);
        states.master_bits = masters.map(|narrow| if narrow { 0 } else { 32 });
        if masters == Some(true) && !moments && document.has(ALL_IN_BF16[0]) {
            states.moment_bits = Some([32; 2]);
        }
        if document.flag(ACTIVATIONS)?.unwrap_or(false) {
            states.activations = MemoryTier::Host;
        }
        states.second_shard = document.size(SECOND)?.filter(|ranks| *ranks > 1);
        if let Some(live) = document.real(LIVE)? {
            if !(0.0..=1e15).contains(&live) {
                let problem = "is no number of parameters";
                let error = InputError::new(LIVE, live, problem);
                return Err(error.hint("give a whole number such as 1000000000"));
            }
            states.live_parameters = Some(live as u64);
        }
        states.gather_bits = document.flag(QUANTISED)?.filter(|on| *on).map(|_| 8);
        if settings.zero_stage != 3 {
            // They are settings of ZeRO-3, which others do not read.
            (settings.states.second_shard, settings.states.live_parameters, settings.states.gather_bits) =
                (None, None, None);
        }
        let states = &settings.states;
        Ok(!states.is_usual() || OFFLOAD.iter().any(|key| document.has(key)))
    },
};

pub const TORCHTITAN: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "training.enable_cpu_offload, training.dtype",
    write: |settings, draft| {
        keep_only(
            settings,
            draft,
            &["states.master_bits", "states.optimizer", "states.optimizer_part", "states.parameters"],
        );
        if fsdp_offloads(settings, draft) {
            draft.set("training.enable_cpu_offload", true);
        }
        match settings.states.master_bits {
            None => {}
            Some(0) => draft.set("training.dtype", "bfloat16"),
            Some(32) => draft.set("training.dtype", "float32"),
            Some(bits) => {
                let why = "is not a value of torchtitan: parameters are in fp32, or all is in bf16";
                refuse_value(draft, "states.master_bits", bits, why, "plan with `--master-bits 32` or 0");
            }
        }
    },
    read: |document, settings| {
        let on = document.flag("training.enable_cpu_offload")?.unwrap_or(false);
        take_offload(settings, on);
        let words = [("float32", 32), ("bfloat16", 0)];
        settings.states.master_bits = document.choice("training.dtype", &words)?;
        Ok(true)
    },
};

const ACCELERATE_OFFLOAD: [&str; 2] =
    ["deepspeed_config.offload_optimizer_device", "deepspeed_config.offload_param_device"];

pub const ACCELERATE: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "fsdp_config.fsdp_offload_params, deepspeed_config.offload_optimizer_device, \
             deepspeed_config.offload_param_device",
    write: |settings, draft| {
        keep_only(settings, draft, &["states.optimizer", "states.optimizer_part", "states.parameters"]);
        if fsdp_offloads(settings, draft) {
            draft.set("fsdp_config.fsdp_offload_params", true);
        }
    },
    read: |document, settings| {
        let on = document.flag("fsdp_config.fsdp_offload_params")?;
        take_offload(settings, on.unwrap_or(false));
        let [optimizer, parameters] = ACCELERATE_OFFLOAD.map(|key| place(document, key));
        let (optimizer, parameters) = (optimizer?, parameters?);
        settings.states.optimizer = optimizer.unwrap_or(settings.states.optimizer);
        settings.states.parameters = parameters.unwrap_or(settings.states.parameters);
        Ok(on.is_some() || optimizer.is_some() || parameters.is_some())
    },
};

/// Adam with 8-bit moments by its names in `transformers`.
pub(crate) const IN_8_BITS: [&str; 4] =
    ["adamw_bnb_8bit", "adamw_8bit", "paged_adamw_8bit", "adamw_torch_8bit"];

/// Whether a word of the `fsdp` setting is that of offload.
fn offloads(document: &Document) -> bool {
    let value = document.get("fsdp").cloned().unwrap_or_default();
    let words = plain(&value).to_ascii_lowercase();
    words.split(|c: char| !c.is_ascii_alphabetic() && c != '_').any(|word| word == "offload")
}

pub const TRANSFORMERS: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "fsdp, optim, pure_bf16, activation_offloading",
    write: |settings, draft| {
        keep_only(settings, draft, &["states.moment_bits"]);
        match settings.states.moment_bits {
            None => {}
            Some([8, 8]) => draft.set("optim", "adamw_bnb_8bit"),
            Some([32, 32]) => draft.set("optim", "paged_adamw_32bit"),
            Some([first, second]) => {
                let why = "is not a value of its optimizers: moments have 8 or 32 bits";
                refuse_value(
                    draft,
                    "states.moment_bits",
                    format!("{first}, {second}"),
                    why,
                    "plan with 8 or 32",
                );
            }
        }
    },
    read: |document, settings| {
        let on = offloads(document);
        take_offload(settings, on);
        if document.flag("activation_offloading")? == Some(true) {
            settings.states.activations = MemoryTier::Host;
        }
        if document.flag("pure_bf16")? == Some(true) {
            settings.states.master_bits = Some(0);
        }
        let optimizer = document.text("optim").unwrap_or_default();
        if IN_8_BITS.contains(&optimizer.as_str()) {
            settings.states.moment_bits = Some([8; 2]);
        } else if optimizer == "paged_adamw_32bit" {
            settings.states.moment_bits = Some([32; 2]);
        }
        Ok(on || document.has("fsdp") || settings.states.moment_bits.is_some())
    },
};

pub const MAXTEXT: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "mu_dtype",
    write: |settings, draft| {
        keep_only(settings, draft, &["states.moment_bits"]);
        match settings.states.moment_bits {
            None => {}
            Some([16, 32]) => draft.set("mu_dtype", "bfloat16"),
            Some([32, 32]) => draft.set("mu_dtype", "float32"),
            Some([first, second]) => {
                let why =
                    "is not a value of MaxText: its second moment is in fp32, the first in bf16 or fp32";
                let way_out = "plan with `--moment-bits 16,32`, or without it";
                refuse_value(draft, "states.moment_bits", format!("{first}, {second}"), why, way_out);
            }
        }
    },
    read: |document, settings| {
        let words = [("", None), ("float32", Some([32; 2])), ("bfloat16", Some([16, 32]))];
        settings.states.moment_bits = document.choice("mu_dtype", &words)?.flatten();
        Ok(true)
    },
};

pub const NANOTRON: FieldMapping = FieldMapping {
    field: Field::States,
    theirs: "optimizer.accumulate_grad_in_fp32",
    write: |settings, draft| {
        keep_only(settings, draft, &["states.master_bits"]);
        match settings.states.master_bits {
            // Precision's row has said that gradients, and so master weights, are in fp32.
            None | Some(32) => {}
            Some(0) => draft.set("optimizer.accumulate_grad_in_fp32", false),
            Some(bits) => {
                let why = "is not a value of nanotron: its master weights have 32 bits, or there are none";
                refuse_value(draft, "states.master_bits", bits, why, "plan with `--master-bits 32` or 0");
            }
        }
    },
    read: |document, settings| {
        // Without gradients in fp32 its optimizer updates the weights of the model.
        let wide = document.flag("optimizer.accumulate_grad_in_fp32")?;
        if wide == Some(false) && settings.precision != Precision::Fp32 {
            settings.states.master_bits = Some(0);
        }
        Ok(wide.is_some())
    },
};
