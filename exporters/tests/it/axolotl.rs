//! Axolotl's and LLaMA-Factory's YAML, read as the arguments of Transformers that they become.

use autodist_exporters::{CommandLine, Imported, Target, import_with};
use autodist_spec::{BaseBits, InputError, LoraTarget, MemoryTier, Precision, Recompute, catalog};

fn read(text: &str) -> Result<Imported, InputError> {
    let open = |_: &str| Err(InputError::new("", "", "is not here"));
    let command = CommandLine { devices: Some(8), ..CommandLine::default() };
    import_with(Target::Transformers, text, Some(catalog::model("llama3-8b").unwrap()), command, &open)
}

#[test]
fn a_qlora_of_axolotl_is_read() {
    let text = "base_model: NousResearch/Meta-Llama-3-8B\nload_in_4bit: true\nadapter: qlora\nlora_r: 32\nlora_alpha: 16\n\
                lora_target_linear: true\nlora_target_modules:\nsequence_len: 4096\nsample_packing: true\n\
                gradient_accumulation_steps: 4\nmicro_batch_size: 2\noptimizer: paged_adamw_32bit\nlr_scheduler: cosine\n\
                learning_rate: 0.0002\nbf16: auto\ntf32: false\ngradient_checkpointing: true\nflash_attention: true\n\
                warmup_steps: 0.1\ndatasets:\n  - path: some/data\n    type: alpaca\n";
    let Imported { settings, kernels, others, .. } = read(text).unwrap();
    assert_eq!((settings.micro_batch, settings.global_batch, settings.seq_len), (2, 64, 4096));
    assert_eq!((settings.precision, settings.recompute[0]), (Precision::Bf16, Recompute::Full));
    let lora = settings.trainable.lora.unwrap();
    assert_eq!((lora.rank, lora.targets.contains(LoraTarget::Down)), (32, true));
    assert_eq!(settings.trainable.base_bits, BaseBits::Four);
    assert_eq!(kernels.attention, Some("flash"));
    assert!(others.unknown.iter().all(|key| !key.contains("lora")), "{others:?}");
}

#[test]
fn a_whole_training_of_axolotl_is_read() {
    let fsdp = |more: &str| {
        format!(
            "base_model: meta-llama/Llama-3.1-8B\nmicro_batch_size: 1\ngradient_accumulation_steps: 8\noptimizer: adamw_torch_fused\n\
             bf16: true\nlora_r: 32\ngradient_checkpointing: offload\nsequence_len: 2048\n{more}"
        )
    };
    let stage = |more: &str| read(&fsdp(more)).unwrap().settings;
    let second =
        stage("fsdp_version: 2\nfsdp_config:\n  offload_params: false\n  reshard_after_forward: true\n");
    assert_eq!((second.zero_stage, second.trainable.is_all()), (3, true));
    assert_eq!(second.states.activations, MemoryTier::Host);
    let words = "fsdp:\n  - full_shard\n  - auto_wrap\nfsdp_config:\n  fsdp_offload_params: true\n  \
                 fsdp_state_dict_type: FULL_STATE_DICT\n";
    let offloaded = stage(words);
    assert_eq!((offloaded.zero_stage, offloaded.states.parameters), (3, MemoryTier::Host));
    let section = stage("fsdp_config:\n  fsdp_sharding_strategy: SHARD_GRAD_OP\n");
    assert_eq!(section.zero_stage, 2);
    for (more, field) in [
        ("tensor_parallel_size: 2\n", "tp_size"),
        ("context_parallel_size: 2\n", "context_parallel_size"),
        ("dp_replicate_size: 2\n", "dp_replicate_size"),
        ("adapter: llama-adapter\n", "finetuning_type"),
    ] {
        assert_eq!(read(&fsdp(more)).unwrap_err().field, field, "{more}");
    }
}

#[test]
fn llama_factory_is_read() {
    let text = "model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct\nstage: sft\ndo_train: true\nfinetuning_type: full\n\
                pure_bf16: true\ncutoff_len: 2048\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 2\n\
                warmup_ratio: 0.1\nflash_attn: fa2\nenable_liger_kernel: true\n";
    let Imported { settings, kernels, .. } = read(text).unwrap();
    assert_eq!((settings.seq_len, settings.precision), (2048, Precision::Bf16));
    assert_eq!(settings.states.master_bits, Some(0));
    assert_eq!(
        (kernels.attention, kernels.loss, kernels.blocks),
        (Some("flash"), Some("fused"), Some("fused"))
    );
    let eager = read("bf16: true\nper_device_train_batch_size: 1\n").unwrap().kernels;
    assert_eq!((eager.blocks, eager.blocks_by_default), (Some("eager"), true));
}
