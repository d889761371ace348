//! Derives a run from the fields of a line, and records the assumptions.

use crate::fields::Fields;
use crate::kernel_choice::LossKind;
use crate::machine::{NodeModel, Uplink};
use crate::parameters::FreeParameters;
use crate::run::{ParallelDims, TrainingRun};
use crate::trainer::{AttentionKind, Trainer};
use crate::words;
use autodist_hardware::Catalogue;
use autodist_spec::{Activation, Experts, InputError, ModelSpec, Norm, Positions, Precision, Recompute};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Elements of an activation from which on GEMMs reach their full rate.
const LARGE_ACTIVATION: u64 = 1 << 24;

/// The same limit as in a cluster file.
const MOST_DEVICES: u32 = 1 << 20;

/// Machines that rows share, constructed once each.
pub(crate) struct Machines<'a> {
    catalogue: &'a Catalogue,
    made: BTreeMap<String, Arc<NodeModel>>,
}

impl<'a> Machines<'a> {
    pub fn of(catalogue: &'a Catalogue) -> Self {
        Self { catalogue, made: BTreeMap::new() }
    }

    fn get(
        &mut self,
        device: &str,
        per_node: u32,
        uplink: Option<&Uplink>,
    ) -> Result<Arc<NodeModel>, String> {
        let key = format!("{device} {per_node} {uplink:?}");
        if let Some(known) = self.made.get(&key) {
            return Ok(Arc::clone(known));
        }
        let machine = NodeModel::of_catalogue(self.catalogue, device, per_node, uplink);
        let machine = Arc::new(machine.map_err(|error| error.to_string())?);
        self.made.insert(key, Arc::clone(&machine));
        Ok(machine)
    }
}

/// The run of a line, with its assumptions; or the reason why the line does not describe a run.
/// Rules are for runs that did not take place.
pub(crate) fn run(
    fields: &Fields,
    machines: &mut Machines,
    sparse: bool,
    took_place: bool,
) -> Result<TrainingRun, String> {
    let catalogue = machines.catalogue;
    let mut assumptions = Vec::new();
    let model = model(fields, sparse, &mut assumptions)?;
    let (device, exact) = words::device(catalogue, fields.text("gpu").ok_or("`gpu` is not given")?)?;
    if !exact {
        assumptions.push(format!("device taken to be {device}"));
    }
    let trainer = trainer(fields, &device, &mut assumptions)?;
    let devices = fields.needed("gpus_total")?;
    if devices > MOST_DEVICES {
        return Err(format!("`gpus_total` is `{devices}`: expected a whole number from 1 to {MOST_DEVICES}"));
    }
    let layout = layout(fields, trainer, devices, &mut assumptions)?;
    let link = fields.text("inter_link").unwrap_or_default();
    let rack = words::rack(catalogue, link, &device);
    let per_node = rack
        .map_or_else(|| fields.count("gpus_per_node"), |ranks| Ok(Some(ranks.min(devices))))?
        .unwrap_or_else(|| {
            assumptions.push("8 devices per node".to_owned());
            8
        });
    let uplink = if devices > per_node {
        Some(words::uplink(catalogue, link, &device, &mut assumptions)?)
    } else {
        None
    };
    let machine = machines.get(&device, per_node, uplink.as_ref())?;

    let mut run = TrainingRun::new(&model, machine, layout, trainer);
    run.attention = attention(fields, &run, &mut assumptions)?;
    run.eager |= trainer == Trainer::Fsdp2 && fields.flag("compiled")? != Some(true);
    run.seq_len = fields.needed("seq_len")?;
    run.global_batch = fields.needed("global_batch")?;
    run.dtype = dtype(fields, &mut assumptions)?;
    run.micro_batch = match fields.count("micro_batch")? {
        Some(micro_batch) => micro_batch,
        None => {
            // Enough sequences for large GEMMs, and enough micro-batches to keep a pipeline busy, as in most
            // runs.
            let each = (run.global_batch / layout.data).max(1);
            let large = LARGE_ACTIVATION / (u64::from(run.seq_len) * u64::from(run.model.hidden)).max(1);
            let busy = if layout.pipeline > 1 { each / (4 * layout.pipeline) } else { each };
            let wanted = busy.min(large as u32).max(1);
            assumptions.push(format!("micro-batches of {wanted}: not given"));
            wanted
        }
    };
    run.overlap = fields.flag("overlap")?.unwrap_or(run.overlap);
    run.fused_loss = fields.named("loss", "fused or whole")? == Some(LossKind::Fused);
    run.broadcasts = trainer == Trainer::Internevo;
    run.recompute = recompute(fields, &run, &mut assumptions)?;
    let said = |error: InputError| format!("`{}` is `{}`: {}", error.field, error.value, error.problem);
    assumptions.extend(run.check(took_place).map_err(said)?);
    run.assumptions = assumptions;
    // Sizes that are valid one by one can give a step time that overflows; one such row would spoil all
    // averages.
    run.estimate(FreeParameters::shipped()).check().map_err(said)?;
    Ok(run)
}

fn model(fields: &Fields, sparse: bool, assumptions: &mut Vec<String>) -> Result<ModelSpec, String> {
    let family = fields.text("model_family").unwrap_or_default().to_ascii_lowercase();
    let named = |names: &[&str]| names.iter().any(|name| family.contains(name));
    let gated = named(&[
        "llama",
        "intern",
        "mistral",
        "mixtral",
        "qwen",
        "deepseek",
        "gemma",
        "yi",
        "palm",
        "nemotron-h",
    ]);
    let hidden = fields.needed("hidden")?;
    let heads = match fields.count("heads")? {
        Some(heads) => heads,
        None => {
            let head_dim = if gated { 128 } else { 64 };
            assumptions.push(format!("heads of {head_dim}: not given"));
            (hidden / head_dim).max(1)
        }
    };
    let experts = match (
        sparse,
        fields.count("experts")?,
        fields.count("experts_active")?,
        fields.count("expert_ffn")?,
    ) {
        (false, ..) => None,
        (true, Some(count), Some(active), Some(ffn)) => Some((Experts { count, active, shared_ffn: 0 }, ffn)),
        _ => {
            return Err(
                "the model has experts, but `experts`, `experts_active` or `expert_ffn` is not given"
                    .to_owned(),
            );
        }
    };
    let ffn = match (experts, fields.count("ffn")?) {
        (Some((_, ffn)), _) | (None, Some(ffn)) => ffn,
        (None, None) => {
            let ffn = if gated { (hidden * 8 / 3).div_ceil(256) * 256 } else { 4 * hidden };
            assumptions.push(format!("an MLP of {ffn}: not given"));
            ffn
        }
    };
    let vocab = match fields.count("vocab")? {
        Some(vocab) => vocab,
        None => {
            let vocab = if gated { 32_000 } else { 51_200 };
            assumptions.push(format!("a vocabulary of {vocab}: not given"));
            vocab
        }
    };
    let seq_len = fields.needed("seq_len")?;
    let gpt = ModelSpec::gpt(fields.needed("layers")?, hidden, heads, vocab, seq_len);
    Ok(ModelSpec {
        kv_heads: fields.count("kv_heads")?.unwrap_or(heads),
        head_dim: fields.count("head_dim")?.unwrap_or(hidden / heads),
        ffn,
        positions: if gated { Positions::Rotary { theta: 1e4 } } else { Positions::Learned },
        activation: if gated { Activation::SwiGlu } else { Activation::Gelu },
        norm: if gated { Norm::RmsNorm } else { Norm::LayerNorm },
        bias: !gated,
        tied_embeddings: !gated,
        experts: experts.map(|(experts, _)| experts),
        ..gpt
    })
}

fn trainer(fields: &Fields, device: &str, assumptions: &mut Vec<String>) -> Result<Trainer, String> {
    if let Some(trainer) = fields.named("trainer", "one of those in docs/files.md")? {
        return Ok(trainer);
    }
    let sharded = fields.text("zero_stage") == Some("3");
    let young = !(device.starts_with("v100") || device.starts_with("a100"));
    let young = young || device.starts_with("a100") && fields.year()?.is_none_or(|year| year >= 2022);
    let trainer = match (sharded, young) {
        (true, true) => Trainer::Fsdp2,
        (true, false) => Trainer::Fsdp,
        (false, true) => Trainer::MegatronCore,
        (false, false) => Trainer::Megatron,
    };
    assumptions.push(format!("trained by {trainer}: not named"));
    Ok(trainer)
}

/// The kernel that was used, or the trainer's default in its year.
fn attention(
    fields: &Fields,
    run: &TrainingRun,
    assumptions: &mut Vec<String>,
) -> Result<AttentionKind, String> {
    let generation = run.machine.generation;
    if let Some(named) = fields.named("attention", "unfused, flash or cudnn")? {
        return Ok(run.trainer.attention_as(named, generation));
    }
    let year = fields.year()?;
    if run.trainer.had_unfused(year, generation) {
        assumptions.push("attention not fused: of those years, and not named".to_owned());
    }
    Ok(run.trainer.attention_of(year, generation))
}

fn layout(
    fields: &Fields,
    trainer: Trainer,
    devices: u32,
    assumptions: &mut Vec<String>,
) -> Result<ParallelDims, String> {
    let sharded = trainer.traits().shards_parameters;
    let degree = |name: &str| match fields.count(name)? {
        Some(degree) => Ok(degree),
        None if sharded => Ok(1),
        None => Err(format!("`{name}` is not given: the layout is unknown")),
    };
    let (tensor, pipeline) = (degree("tp")?, degree("pp")?);
    let context = fields.count("cp")?.unwrap_or(1);
    let model = [pipeline, context].iter().fold(u64::from(tensor), |n, d| n.saturating_mul(u64::from(*d)));
    let ranks = u32::try_from(model).ok().filter(|ranks| devices.is_multiple_of(*ranks));
    let Some(ranks) = ranks else {
        return Err(format!("tp x pp x cp = {model} does not divide `gpus_total` = {devices}"));
    };
    let data = devices / ranks;
    if let Some(given) = fields.count("dp")?
        && given != data
    {
        return Err(format!("`dp` is `{given}`, but {devices} devices leave {data}"));
    }
    let zero_stage = match fields.number("zero_stage")? {
        Some(stage) if stage <= 3.0 => stage as u8,
        Some(stage) => return Err(format!("`zero_stage` is `{stage}`: expected 0 to 3")),
        None => {
            let stage = trainer.traits().usual_zero_stage;
            if data > 1 {
                assumptions.push(format!("ZeRO stage {stage}: not given"));
            }
            stage
        }
    };
    let shard = fields.count("shard")?.map_or(data, |s| s.min(data));
    let sequence_parallel = match fields.text("sequence_parallel") {
        Some("yes" | "true" | "1") => true,
        Some(_) => false,
        None => {
            let usual = trainer.abilities().sequence_parallel && tensor > 1;
            if usual {
                assumptions.push("sequence parallelism: not given".to_owned());
            }
            usual
        }
    };
    let virtual_stages = match fields.count("vpp")? {
        Some(stages) if pipeline > 1 => stages,
        None if pipeline > 1 => {
            assumptions.push("one chunk of layers per pipeline rank: vpp not given".to_owned());
            1
        }
        _ => 1,
    };
    let expert = fields.count("ep")?.unwrap_or(1);
    Ok(ParallelDims {
        tensor,
        context,
        data,
        pipeline,
        virtual_stages,
        expert,
        sequence_parallel,
        zero_stage,
        shard,
    })
}

fn dtype(fields: &Fields, assumptions: &mut Vec<String>) -> Result<Precision, String> {
    let written = fields.text("precision").unwrap_or_else(|| {
        assumptions.push("bf16: precision not given".to_owned());
        "bf16"
    });
    match written.to_ascii_lowercase().as_str() {
        "fp16" | "amp_fp16" | "float16" => Ok(Precision::Fp16),
        "bf16" | "amp_bf16" | "bfloat16" => Ok(Precision::Bf16),
        text if text.contains("fp8") => Ok(Precision::Fp8),
        "fp32" => Ok(Precision::Fp32),
        "tf32" => Ok(Precision::Tf32),
        _ => Err(format!("`precision` is `{written}`: not supported")),
    }
}

/// An unknown mode is assumed to be the cheapest that fits into memory, and is recorded as an assumption.
fn recompute(fields: &Fields, run: &TrainingRun, assumptions: &mut Vec<String>) -> Result<Recompute, String> {
    match fields.text("recompute").map(str::to_ascii_lowercase).as_deref() {
        Some("none" | "no") => return Ok(Recompute::None),
        Some(text) if text.starts_with("selective") => return Ok(Recompute::Selective),
        Some("full") => return Ok(Recompute::Full),
        Some(other) => return Err(format!("`recompute` is `{other}`: expected none, selective or full")),
        None => {}
    }
    // Before 2022, no trainer recomputed only the attention scores.
    let early = fields.year()?.is_some_and(|year| year <= 2022);
    if run.trainer == Trainer::Nemo && run.layout.zero_stage == 3 {
        assumptions
            .push("no recomputation, what does not fit offloaded as in those recipes: not given".to_owned());
        return Ok(Recompute::None);
    }
    let mode = match run.recompute_that_fitted() {
        Recompute::Selective if early => Recompute::Full,
        mode => mode,
    };
    assumptions.push(format!("recomputation {mode:?}, the least that fits: not given").to_lowercase());
    Ok(mode)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_year_and_the_columns_say_which_attention_it_had() {
        let catalogue = Catalogue::shipped();
        let attention = |trainer: &str, gpu: &str, year: &str, named: &str| {
            let sizes = ["gpus_total", "hidden", "layers", "seq_len", "global_batch", "vocab", "params_b"];
            let sizes = sizes.into_iter().zip(["8", "4096", "32", "4096", "8", "32000", "7"]);
            let words = [("model_family", "llama"), ("trainer", trainer), ("gpu", gpu)];
            let words = words.into_iter().chain([("trainer_year", year), ("attention", named)]);
            let fields = Fields::new(sizes.chain(words));
            run(&fields, &mut Machines::of(&catalogue), false, false).map(|run| run.attention)
        };
        for (gpu, year, named, expected) in [
            ("H100 SXM", "2026", "", AttentionKind::Cudnn),
            ("H100 SXM", "2024", "", AttentionKind::SecondFlash),
            ("H100 SXM", "2024", "flash", AttentionKind::SecondFlash),
            ("H100 SXM", "", "flash", AttentionKind::SecondFlash),
            ("H100 SXM", "2024", "unfused", AttentionKind::Unfused),
            ("V100", "2024", "", AttentionKind::Unfused),
        ] {
            assert_eq!(attention("fsdp2", gpu, year, named), Ok(expected), "{gpu}, {year}, {named}");
        }
        let refused = |year, named| attention("fsdp2", "H100 SXM", year, named).unwrap_err();
        assert!(refused("24", "").contains("`trainer_year` is `24`: expected a year"));
        assert!(refused("", "fast").contains("`attention` is `fast`: expected unfused, flash or cudnn"));
    }
}
