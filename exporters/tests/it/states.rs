//! Bits and places of weights, gradients and optimizer state in trainers' files.

use autodist_exporters::{Options, Settings, Target, export, import};
use autodist_spec::{Job, MemoryTier, Precision, StateStorage, catalog};

use crate::common::{self, split, zero};

const HOST: MemoryTier = MemoryTier::Host;

fn states(target: Target, text: &str) -> StateStorage {
    let model = catalog::model("tiny-llama").unwrap();
    import(target, text, Some(model)).unwrap_or_else(|error| panic!("{text}: {error}")).settings.states
}

#[test]
fn what_files_say_of_the_state_is_read() {
    let usual = StateStorage::default;
    let both = || StateStorage { optimizer: HOST, parameters: HOST, ..usual() };
    let eight = || StateStorage { moment_bits: Some([8, 8]), ..usual() };
    let zero3 =
        |more: &str| format!("{{\"train_batch_size\": 8, \"zero_optimization\": {{\"stage\": 3, {more}}}}}");
    let other = |more: &str| format!("{{\"train_batch_size\": 8, {more}}}");
    let megatron = |more: &str| format!("--micro-batch-size 1 --global-batch-size 8 {more}");
    for (target, text, expected) in [
        (Target::DeepSpeed, zero3("\"overlap_comm\": true"), usual()),
        (
            Target::DeepSpeed,
            zero3("\"offload_optimizer\": {\"device\": \"cpu\", \"pin_memory\": true, \"ratio\": 0.5}"),
            StateStorage { optimizer: HOST, optimizer_part: 0.5, ..usual() },
        ),
        (
            Target::DeepSpeed,
            zero3(
                "\"offload_optimizer\": {\"device\": \"cpu\"}, \"offload_param\": {\"device\": \"nvme\", \"nvme_path\": \"/x\"}",
            ),
            StateStorage { optimizer: HOST, parameters: MemoryTier::Nvme, ..usual() },
        ),
        (Target::DeepSpeed, zero3("\"offload_param\": {\"device\": \"none\", \"pin_memory\": true}"), usual()),
        (
            Target::DeepSpeed,
            zero3("\"stage3_max_live_parameters\": 1e8, \"zero_hpz_partition_size\": 8, \"zero_quantized_weights\": true"),
            StateStorage {
                live_parameters: Some(100_000_000),
                second_shard: Some(8),
                gather_bits: Some(8),
                ..usual()
            },
        ),
        (Target::DeepSpeed, zero3("\"cpu_offload\": true"), StateStorage { optimizer: HOST, ..usual() }),
        (
            Target::DeepSpeed,
            other("\"data_types\": {\"grad_accum_dtype\": \"bf16\"}"),
            StateStorage { gradient_bits: Some(16), ..usual() },
        ),
        (
            Target::DeepSpeed,
            other("\"bf16\": {\"enabled\": true, \"bf16_master_weights_and_grads\": true, \"bf16_optimizer_states\": true}"),
            StateStorage { master_bits: Some(0), ..usual() },
        ),
        (
            Target::DeepSpeed,
            other("\"activation_checkpointing\": {\"cpu_checkpointing\": true}"),
            StateStorage { activations: HOST, ..usual() },
        ),
        (
            Target::Megatron,
            megatron("--use-precision-aware-optimizer --exp-avg-dtype bf16 --exp-avg-sq-dtype fp8 --main-grads-dtype bf16"),
            StateStorage { moment_bits: Some([16, 8]), gradient_bits: Some(16), ..usual() },
        ),
        (
            Target::Megatron,
            megatron("--optimizer-cpu-offload --optimizer-offload-fraction 0.25 --use-precision-aware-optimizer"),
            StateStorage { optimizer: HOST, optimizer_part: 0.25, ..usual() },
        ),
        (Target::Megatron, megatron("--optimizer-offload-fraction 1.0"), usual()),
        (Target::Torchtitan, "--training.seq_len 64 --training.enable_cpu_offload".to_owned(), both()),
        (
            Target::Torchtitan,
            "--training.seq_len 64 --training.dtype bfloat16".to_owned(),
            StateStorage { master_bits: Some(0), ..usual() },
        ),
        (Target::Accelerate, "{distributed_type: FSDP, fsdp_config: {fsdp_offload_params: true}}".to_owned(), both()),
        (
            Target::Accelerate,
            "{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu, offload_param_device: none}}".to_owned(),
            StateStorage { optimizer: HOST, ..usual() },
        ),
        (Target::Transformers, r#"{"bf16": true, "fsdp": "full_shard auto_wrap offload"}"#.to_owned(), both()),
        (Target::Transformers, r#"{"bf16": true, "optim": "paged_adamw_8bit"}"#.to_owned(), eight()),
        (Target::Transformers, r#"{"bf16": true, "optim": "adamw_bnb_8bit"}"#.to_owned(), eight()),
        (Target::Transformers, r#"{"bf16": true, "optim": "adamw_torch_fused"}"#.to_owned(), usual()),
        (
            Target::MaxText,
            "{per_device_batch_size: 1, mu_dtype: bfloat16}".to_owned(),
            StateStorage { moment_bits: Some([16, 32]), ..usual() },
        ),
        (
            Target::Nanotron,
            "{parallelism: {dp: 8}, optimizer: {accumulate_grad_in_fp32: false}}".to_owned(),
            StateStorage { master_bits: Some(0), ..usual() },
        ),
    ] {
        assert_eq!(states(target, &text), expected, "{text}");
    }
}

#[test]
fn wrong_values_of_the_state_are_refused_with_their_keys() {
    for (target, text, key) in [
        (
            Target::DeepSpeed,
            r#"{"zero_optimization": {"stage": 3, "offload_param": {"device": "gpu"}}}"#,
            "zero_optimization.offload_param.device",
        ),
        (Target::Megatron, "--micro-batch-size 1 --exp-avg-dtype int4", "exp-avg-dtype"),
        (
            Target::MegatronBridge,
            "{train: {micro_batch_size: 1}, optimizer: {exp_avg_dtype: fp8}}",
            "optimizer.exp_avg_dtype",
        ),
        (Target::Torchtitan, "--training.dtype float8", "training.dtype"),
        (Target::MaxText, "{per_device_batch_size: 1, mu_dtype: int8}", "mu_dtype"),
    ] {
        let error = import(target, text, Some(catalog::model("tiny-llama").unwrap())).unwrap_err();
        assert_eq!(error.field, key, "{error}");
        assert!(!error.hint.is_empty());
    }
}

#[test]
fn what_a_trainer_cannot_keep_so_is_refused_by_name_when_it_is_written() {
    let options = Options { checkpoint_interval: None, script: None, image: String::new() };
    let model = || {
        let mut model = catalog::model("tiny-llama").unwrap();
        model.layers = 8;
        model
    };
    let refused = |target: Target, states: StateStorage| -> Option<String> {
        let job = Job { precision: Precision::Bf16, states, ..Job::new(32, 64) };
        let stages = common::stages(&model(), &[8], &[autodist_spec::Recompute::None; 8]);
        let plan = common::plan(model(), "1x4xa100-80gb-sxm", job, zero(3, split(4, 1, 1)), stages);
        assert_eq!(Settings::of(&plan, None).states, plan.job.states);
        export(&plan, target, &options).err().map(|errors| errors[0].field.clone())
    };
    let usual = StateStorage::default;
    let optimizer = || StateStorage { optimizer: HOST, ..usual() };
    let both = || StateStorage { parameters: HOST, ..optimizer() };
    let eight = || StateStorage { moment_bits: Some([8, 8]), ..usual() };
    let away = || StateStorage { activations: HOST, ..usual() };
    for (target, states, field) in [
        (Target::Megatron, optimizer(), None),
        (Target::Megatron, both(), Some("job.states.parameters")),
        (Target::Megatron, eight(), None),
        (Target::MegatronBridge, eight(), Some("states")),
        (Target::DeepSpeed, both(), None),
        (Target::DeepSpeed, away(), None),
        (Target::DeepSpeed, eight(), Some("job.states.moment_bits")),
        (Target::Torchtitan, both(), None),
        (Target::Torchtitan, optimizer(), Some("job.states.optimizer")),
        (Target::Torchtitan, away(), Some("job.states.activations")),
        (Target::Accelerate, both(), None),
        (Target::Accelerate, eight(), Some("job.states.moment_bits")),
        (Target::Transformers, eight(), None),
        (Target::Transformers, both(), Some("job.states.optimizer")),
    ] {
        assert_eq!(refused(target, states.clone()).as_deref(), field, "{} {}", target.name(), states.words());
    }
}
