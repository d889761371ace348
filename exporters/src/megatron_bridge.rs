//! The configuration of Megatron-Bridge, which has the settings of Megatron-LM's command line in sections.

use crate::document::Document;
use crate::launch::Script;
use crate::megatron::{ROUND, ROWS, RULES, TF32, connections};
use crate::row::{
    ACTIVATIONS_AS_THEY_ARE, FieldMapping, PARAMETERS_AS_THEY_ARE, UnsupportedField, instead, refuse,
};
use crate::settings::{Field, Settings};
use crate::trainable;
use crate::unsupported::{KeyRule, approximated, ignored, refused, refused_unless};
use crate::{Export, Exporter, File, Files};
use autodist_spec::{Codec, InputError, Precision};
use serde_json::json;

pub struct MegatronBridge;

/// The inverse of Megatron-LM's flag.
const IN_FP32: &str = "ddp.grad_reduce_in_fp32";

/// Megatron-LM's flag, and its key in Megatron-Bridge's configuration.
const PATHS: [(&str, &str); 47] = [
    ("seq-length", "model.seq_length"),
    ("micro-batch-size", "train.micro_batch_size"),
    ("global-batch-size", "train.global_batch_size"),
    ("tensor-model-parallel-size", "model.tensor_model_parallel_size"),
    ("pipeline-model-parallel-size", "model.pipeline_model_parallel_size"),
    ("context-parallel-size", "model.context_parallel_size"),
    ("expert-model-parallel-size", "model.expert_model_parallel_size"),
    ("num-experts", "model.num_moe_experts"),
    ("moe-router-topk", "model.moe_router_topk"),
    ("moe-ffn-hidden-size", "model.moe_ffn_hidden_size"),
    ("moe-grouped-gemm", "model.moe_grouped_gemm"),
    ("moe-token-dispatcher-type", "model.moe_token_dispatcher_type"),
    ("fp8-format", "model.fp8"),
    ("sequence-parallel", "model.sequence_parallel"),
    ("num-virtual-stages-per-pipeline-rank", "model.virtual_pipeline_model_parallel_size"),
    ("pipeline-model-parallel-layout", "model.pipeline_model_parallel_layout"),
    ("decoder-first-pipeline-num-layers", "model.num_layers_in_first_pipeline_stage"),
    ("decoder-last-pipeline-num-layers", "model.num_layers_in_last_pipeline_stage"),
    ("recompute-granularity", "model.recompute_granularity"),
    ("recompute-method", "model.recompute_method"),
    ("recompute-num-layers", "model.recompute_num_layers"),
    ("use-distributed-optimizer", "ddp.use_distributed_optimizer"),
    ("use-megatron-fsdp", "ddp.use_megatron_fsdp"),
    ("use-torch-fsdp2", "dist.use_torch_fsdp2"),
    ("data-parallel-sharding-strategy", "ddp.data_parallel_sharding_strategy"),
    ("ckpt-format", "checkpoint.ckpt_format"),
    ("overlap-grad-reduce", "ddp.overlap_grad_reduce"),
    ("overlap-param-gather", "ddp.overlap_param_gather"),
    ("num-distributed-optimizer-instances", "ddp.num_distributed_optimizer_instances"),
    ("ddp-bucket-size", "ddp.bucket_size"),
    ("bf16", "model.bf16"),
    ("fp16", "model.fp16"),
    ("optimizer", "optimizer.optimizer"),
    ("adam-beta1", "optimizer.adam_beta1"),
    ("adam-beta2", "optimizer.adam_beta2"),
    ("adam-eps", "optimizer.adam_eps"),
    ("sgd-momentum", "optimizer.sgd_momentum"),
    ("weight-decay", "optimizer.weight_decay"),
    ("lr", "optimizer.lr"),
    ("min-lr", "optimizer.min_lr"),
    ("clip-grad", "optimizer.clip_grad"),
    (ROUND, "model.microbatch_group_size_per_vp_stage"),
    ("lr-decay-style", "scheduler.lr_decay_style"),
    ("lr-warmup-iters", "scheduler.lr_warmup_iters"),
    ("lr-decay-iters", "scheduler.lr_decay_iters"),
    ("train-iters", "train.train_iters"),
    ("seed", "rng.seed"),
];

/// Settings that recipes have and the plan may not: virtual stages, layouts and recomputation. A recipe's
/// `comm_overlap` would overwrite the buckets and the overlap of gradients.
const WITHOUT: [&str; 10] = [
    "model.virtual_pipeline_model_parallel_size",
    "model.pipeline_model_parallel_layout",
    "model.num_layers_in_first_pipeline_stage",
    "model.num_layers_in_last_pipeline_stage",
    "model.recompute_granularity",
    "model.recompute_method",
    "model.recompute_num_layers",
    "model.recompute_modules",
    "model.fp8",
    "comm_overlap",
];

const OFF: [&str; 8] = [
    "model.account_for_embedding_in_pipeline_split",
    "model.account_for_loss_in_pipeline_split",
    "model.bf16",
    "model.fp16",
    "model.tp_comm_overlap",
    "ddp.use_megatron_fsdp",
    "ddp.overlap_grad_reduce",
    "ddp.overlap_param_gather",
];

/// Sets the whole recipe of mixed precision, which overwrites the precision of model, optimizer and gradients.
fn mixed_precision(nested: &mut Document, settings: &Settings) {
    let mut set = |key: &str, value: serde_json::Value| nested.set(&format!("mixed_precision.{key}"), value);
    set("_target_", "megatron.bridge.training.mixed_precision.MixedPrecisionConfig".into());
    let precision = settings.precision;
    let kind = match precision {
        Precision::Bf16 | Precision::Fp8 => "torch.bfloat16",
        Precision::Fp16 => "torch.float16",
        Precision::Fp32 | Precision::Tf32 => "torch.float32",
    };
    for key in ["params_dtype", "pipeline_dtype"] {
        set(key, json!({ "_target_": kind, "_call_": false }));
    }
    set("fp32", (kind == "torch.float32").into());
    set("bf16", (kind == "torch.bfloat16").into());
    set("fp16", (kind == "torch.float16").into());
    set("fp8", if precision == Precision::Fp8 { "hybrid".into() } else { serde_json::Value::Null });
    if precision == Precision::Fp8 {
        // Megatron-LM's default.
        set("fp8_recipe", "delayed".into());
    }
    set("fp8_param", false.into());
    set("fp8_param_gather", false.into());
    set("fp4", serde_json::Value::Null);
    set("autocast_enabled", false.into());
    let in_fp32 = settings.gradients == Codec::None;
    set("grad_reduce_in_fp32", in_fp32.into());
    nested.set(IN_FP32, in_fp32);
}

impl Exporter for MegatronBridge {
    fn version(&self) -> &'static str {
        "Megatron-Bridge 0.6"
    }

    fn rows(&self) -> &'static [FieldMapping] {
        // All but the first three: the recipe has the model, types of the state that a file cannot override, and adapters.
        &ROWS[3..]
    }

    fn unsupported_fields(&self) -> &'static [UnsupportedField] {
        UNSUPPORTED
    }

    fn spelled(&self, flag: &str) -> String {
        let more = [("grad-reduce-in-bf16", IN_FP32), ("save-interval", "checkpoint.save_interval")];
        let path = PATHS.iter().chain(&more).find(|(other, _)| *other == flag).map(|(_, path)| *path);
        path.unwrap_or(flag).to_owned()
    }

    fn files(&self, document: &Document, job: &Export<'_>) -> Vec<File> {
        let mut nested = Document::default();
        // What is not written keeps the value of the recipe.
        for key in WITHOUT {
            nested.set(key, serde_json::Value::Null);
        }
        for key in OFF {
            nested.set(key, false);
        }
        for (flag, path) in PATHS {
            let entry = document.entries().iter().find(|(other, _)| other == flag);
            if let Some((_, value)) = entry {
                nested.set(path, value.clone());
            }
        }
        let settings = job.settings;
        // One that is on would switch on the other.
        for key in ["use_distributed_optimizer", "overlap_param_gather"] {
            let value = nested.get(&format!("ddp.{key}")).cloned().unwrap_or(false.into());
            nested.set(&format!("optimizer.{key}"), value);
        }
        nested.set("ddp.num_distributed_optimizer_instances", settings.data / settings.shard.max(1));
        if settings.zero_stage == 0 {
            nested.set("ddp.num_distributed_optimizer_instances", 1);
        }
        nested.set("model.attention_dropout", 0.0);
        nested.set("model.hidden_dropout", 0.0);
        nested.set("model.overlap_p2p_comm", settings.pipeline > 1 && settings.virtual_stages > 1);
        nested.set("model.batch_p2p_comm", settings.pipeline > 1 && settings.virtual_stages == 1);
        nested.set("dataset.seq_length", settings.seq_len);
        mixed_precision(&mut nested, settings);
        if job.settings.checkpoint_interval.is_some() {
            nested.set("checkpoint.save_interval", job.settings.checkpoint_interval);
        }
        let mut setup = connections(job.settings.zero_stage);
        setup.push(": \"${RECIPE:?script that trains by a recipe and takes --config-file}\"");
        if job.settings.precision == Precision::Tf32 {
            setup.push(TF32);
        }
        let purpose = format!("Megatron-Bridge trains as planned: {}", job.plan.strategy.label());
        let command = format!("{} \"$RECIPE\"", job.machines.torchrun());
        let arguments = ["--config-file \"$(dirname \"$0\")/megatron-bridge.yaml\"".to_owned()];
        let mut overrides = format!(
            "# world size {}: data parallelism takes what the other degrees leave\n",
            job.machines.devices()
        );
        overrides += &nested.yaml();
        vec![
            File::text("megatron-bridge.yaml", overrides),
            File::script(
                "megatron-bridge.sh",
                Script::new(&purpose, job.machines, &setup).run(&command, &arguments),
            ),
        ]
    }

    fn describes_all_blocks_and_fp8(&self) -> bool {
        true
    }

    fn rules(&self) -> Vec<&'static [KeyRule]> {
        vec![RULES, BRIDGE]
    }

    fn parse(&self, text: &str, _open: Files) -> Result<Document, InputError> {
        let nested = Document::of_yaml(text)?;
        let mut flat = Document::default();
        // The recipe of mixed precision overwrites the settings of model and gradients.
        let inside = |path: &str| path.starts_with(MIXED);
        let (last, first): (Vec<_>, Vec<_>) = nested.entries().iter().partition(|(path, _)| inside(path));
        for (path, value) in first.into_iter().chain(last) {
            let path = match path.strip_prefix(MIXED) {
                Some("grad_reduce_in_fp32") => IN_FP32,
                Some("bf16") => "model.bf16",
                Some("fp16") => "model.fp16",
                Some("fp8") => "model.fp8",
                _ => path,
            };
            let named = value.as_str().filter(|_| path == "mixed_precision").and_then(recipe);
            if let Some((flag, fp8)) = named {
                flat.set(flag, true);
                if fp8 {
                    flat.set("fp8-format", "hybrid");
                }
                continue;
            }
            if path == IN_FP32 {
                flat.set(
                    "grad-reduce-in-bf16",
                    match nested.flag(path)? {
                        Some(fp32) => (!fp32).into(),
                        None => serde_json::Value::Null,
                    },
                );
                continue;
            }
            let flag = PATHS.iter().find(|(_, other)| *other == path).map(|(flag, _)| *flag);
            let flag = flag.or((path == "checkpoint.save_interval").then_some("save-interval"));
            flat.set(flag.unwrap_or(path), value.clone());
        }
        // The default of its recipes.
        if nested.entries().iter().all(|(key, _)| key != "ddp.use_distributed_optimizer") {
            flat.imply("use-distributed-optimizer", true);
        }
        // Files written by autodist contain the number of processes as `# world size N`.
        let world = text.lines().find_map(|line| line.strip_prefix("# world size ")?.split(':').next());
        if let Some(world) = world {
            flat.set("nproc-per-node", world);
        }
        Ok(flat)
    }
}

/// The 16-bit flag of a recipe of mixed precision, and whether its GEMMs are in FP8: `bf16_mixed`,
/// `bf16_with_fp8_current_scaling_mixed`, … Those in 4 bits, and those that keep state in FP8, are not read.
fn recipe(name: &str) -> Option<(&'static str, bool)> {
    const FP8: [&str; 7] = [
        "with_fp8_delayed_scaling_mixed",
        "with_fp8_current_scaling_mixed",
        "with_fp8_subchannel_scaling_mixed",
        "with_mxfp8_mixed",
        "with_fp8_mixed",
        "with_fp8_tensorwise_scaling_mixed",
        "with_fp8_blockwise_scaling_mixed",
    ];
    let name = name.replace('-', "_");
    let (flag, rest) = match name.strip_prefix("bf16_") {
        Some(rest) => ("bf16", rest),
        None => ("fp16", name.strip_prefix("fp16_")?),
    };
    match rest {
        "mixed" => Some((flag, false)),
        _ if FP8.contains(&rest) => Some((flag, true)),
        _ => None,
    }
}

const MIXED: &str = "mixed_precision.";

static BRIDGE: &[KeyRule] = &[
    ignored(&[
        "mixed_precision._target_",
        "mixed_precision.params_dtype.",
        "mixed_precision.pipeline_dtype.",
        "mixed_precision.fp32",
        "mixed_precision.fp8_recipe",
        "mixed_precision.fp8_param",
        "mixed_precision.fp8_param_gather",
        "mixed_precision.fp4",
        "mixed_precision.autocast_enabled",
        "model.fp8_recipe",
    ]),
    refused_unless(
        Field::Precision,
        &["mixed_precision", "mixed_precision."],
        "is a recipe of mixed precision that is not read",
        "use bf16_mixed or fp16_mixed, or give `--precision`; without a profile `--precision fp8` prices FP8",
    ),
    refused(
        &["main_grads_dtype", "main_params_dtype", "exp_avg_dtype", "exp_avg_sq_dtype"],
        &["fp32", "float32", "torch.float32"],
        "is a type of the optimizer's state that is not read from these files",
        "remove it from the file, and give `--moment-bits`, `--master-bits` or `--gradient-bits`",
    ),
    approximated(&["comm_overlap.", "use_precision_aware_optimizer"]),
    // The recipe builds the model, and the optimizer follows the model's precision.
    ignored(&[
        "model.num_layers",
        "model.hidden_size",
        "model.ffn_hidden_size",
        "model.num_attention_heads",
        "model.num_query_groups",
        "model.kv_channels",
        "model.vocab_size",
        "model.rotary_base",
        "model.normalization",
        "model.layernorm_epsilon",
        "model.share_embeddings_and_output_weights",
        "model.moe_layer_freq",
        "model.moe_shared_expert_intermediate_size",
        "model.multi_latent_attention",
        "model.qk_layernorm",
        "model.add_qkv_bias",
        "model.softmax_type",
        "model.window_size",
        "model.window_attn_skip_freq",
        "model.q_lora_rank",
        "model.kv_lora_rank",
        "model.qk_head_dim",
        "model.qk_pos_emb_head_dim",
        "model.v_head_dim",
        "optimizer.bf16",
        "optimizer.fp16",
        "optimizer.use_distributed_optimizer",
    ]),
];

static UNSUPPORTED: &[UnsupportedField] = &[
    trainable::NO_TRAINABLE,
    instead(Field::Model, "the recipe builds the model: use the recipe of this model"),
    refuse(
        Field::States,
        "its configuration files do not override types of the optimizer's state, which recipes set in Python",
        "remove `states` from the job, or export to megatron",
    ),
    PARAMETERS_AS_THEY_ARE,
    ACTIVATIONS_AS_THEY_ARE,
];
