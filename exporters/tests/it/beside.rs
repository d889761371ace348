//! Trainers' files that are read with a command line: it overrides the file, and provides the fields that the
//! file does not set; settings that change time or memory are read, or refused by name.

use crate::common;
use crate::common::{split, zero};

use autodist_exporters::{
    CommandLine, Field, Imported, Options, Settings, Target, export, import, import_beside,
};
use autodist_spec::{Hyperparameter, InputError, Job, ParallelStrategy, Precision, Recompute, catalog};

fn read_with(
    target: Target,
    text: &str,
    command: CommandLine,
    open: &dyn Fn(&str) -> Result<String, InputError>,
) -> Result<Imported, InputError> {
    import_beside(target, text, Some(catalog::model("tiny-llama").unwrap()), command, open)
}

fn none(_: &str) -> Result<String, InputError> {
    Err(InputError::new("", "", "cannot be read: No such file"))
}

fn command(devices: u32, fields: &[(Field, u32)]) -> CommandLine {
    CommandLine { devices: Some(devices), fields: fields.iter().copied().collect(), ..CommandLine::default() }
}

fn read(target: Target, text: &str, devices: u32, fields: &[(Field, u32)]) -> Result<Imported, InputError> {
    read_with(target, text, command(devices, fields), &none)
}

/// Data degree, ZeRO stage, shard group, micro-batch and global batch.
fn split_of(settings: &Settings) -> (u32, u8, u32, u32, u32) {
    let Settings { data, zero_stage, shard, micro_batch, global_batch, .. } = *settings;
    (data, zero_stage, shard, micro_batch, global_batch)
}

const ZERO3: &str = r#"{"train_batch_size": 128, "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}"#;

#[test]
fn what_a_file_leaves_open_is_completed_from_the_devices() {
    let bridge = "{model: {tensor_model_parallel_size: 2}, ddp: {use_distributed_optimizer: true}, \
                  train: {micro_batch_size: 1, global_batch_size: 16}}";
    let megatron = "--tensor-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 16 \
                    --use-distributed-optimizer";
    let torchtitan = "--training.local_batch_size=2 --parallelism.tensor_parallel_degree 2";
    let hybrid =
        "{distributed_type: FSDP, num_machines: 2, fsdp_config: {fsdp_sharding_strategy: HYBRID_SHARD}}";
    for (target, text, expected) in [
        (Target::DeepSpeed, ZERO3, (8, 3, 8, 4, 128)),
        (
            Target::DeepSpeed,
            r#"{"train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2, "zero_optimization": {"stage": 1}}"#,
            (8, 1, 8, 4, 64),
        ),
        (Target::DeepSpeed, r#"{"train_micro_batch_size_per_gpu": 4}"#, (8, 0, 1, 4, 32)),
        (
            Target::DeepSpeed,
            r#"{"train_batch_size": 128, "gradient_accumulation_steps": 4, "zero_optimization": {"stage": 2}}"#,
            (8, 2, 8, 4, 128),
        ),
        (
            Target::DeepSpeed,
            r#"{"train_batch_size": 32, "tensor_parallel": {"autotp_size": 2}}"#,
            (4, 0, 1, 8, 32),
        ),
        (Target::Transformers, r#"{"per_device_train_batch_size": 2, "fsdp": true}"#, (8, 3, 8, 2, 16)),
        (
            Target::Transformers,
            r#"{"gradient_accumulation_steps": 4, "fsdp": "shard_grad_op auto_wrap"}"#,
            (8, 2, 8, 8, 256),
        ),
        (Target::Megatron, megatron, (4, 1, 4, 1, 16)),
        (Target::MegatronBridge, bridge, (4, 1, 4, 1, 16)),
        (Target::Torchtitan, torchtitan, (4, 3, 4, 2, 8)),
        (
            Target::Torchtitan,
            "--training.local_batch_size=2 --parallelism.data_parallel_shard_degree=-1 \
             --parallelism.data_parallel_replicate_degree=2",
            (8, 3, 4, 2, 16),
        ),
        (
            Target::Nanotron,
            "{parallelism: {tp: 2}, tokens: {micro_batch_size: 1, batch_accumulation_per_replica: 3}, optimizer: {zero_stage: 1}}",
            (4, 1, 4, 1, 12),
        ),
        (Target::MaxText, "{per_device_batch_size: 4, max_target_length: 64}", (8, 3, 8, 4, 32)),
        (
            Target::MaxText,
            "{per_device_batch_size: 4, ici_fsdp_parallelism: -1, ici_data_parallelism: 2}",
            (8, 3, 4, 4, 32),
        ),
        (
            Target::Galvatron,
            r#"{"pp_deg": 1, "tp_sizes_enc": "1,1,1,1", "global_bsz": 64, "chunks": 2, "default_dp_type": "zero2"}"#,
            (8, 2, 8, 4, 64),
        ),
        (Target::Accelerate, hybrid, (8, 3, 4, 1, 1)),
        (Target::Accelerate, "{distributed_type: FSDP}", (8, 3, 8, 1, 1)),
    ] {
        let imported = read(target, text, 8, &[]).unwrap_or_else(|error| panic!("{text}: {error}"));
        let mut settings = imported.settings.clone();
        if !imported.known.contains(&Field::Shard) && settings.zero_stage > 0 {
            settings.shard = settings.data;
        }
        assert_eq!(split_of(&settings), expected, "{}: {text}", target.name());
    }
    // Without a cluster, the shard group is undefined.
    let alone = import(Target::DeepSpeed, ZERO3, None).unwrap();
    assert_eq!(alone.settings.zero_stage, 3);
    assert!(!alone.known.contains(&Field::Shard) && !alone.known.contains(&Field::Data));
    // Fully sharded over context-parallel ranks alone.
    let context = "{distributed_type: FSDP, num_processes: 8, fsdp_config: {fsdp_version: 2}, parallelism_config: \
                   {parallelism_config_cp_size: 8, parallelism_config_dp_shard_size: 1}}";
    let settings = read(Target::Accelerate, context, 8, &[]).unwrap().settings;
    assert_eq!((settings.data, settings.zero_stage, settings.context), (1, 3, 8));
    // A batch that the ranks do not divide is the trainer's own error.
    let error = read(Target::DeepSpeed, &ZERO3.replace("128", "100"), 8, &[]).unwrap_err();
    assert!(error.to_string().contains("`train_batch_size` is `100`: must be a multiple of"), "{error}");
}

#[test]
fn a_flag_overrides_the_files_value_and_all_that_follows_from_it() {
    let steps = ZERO3.replace("\"bf16\"", "\"gradient_accumulation_steps\": 4, \"bf16\"");
    for (fields, expected) in [
        (&[][..], (8, 3, 8, 4, 128)),
        (&[(Field::Data, 4)], (4, 3, 4, 4, 128)),
        (&[(Field::Tensor, 2)], (4, 3, 4, 4, 128)),
        (&[(Field::GlobalBatch, 256)], (8, 3, 8, 4, 256)),
        (&[(Field::MicroBatch, 2)], (8, 3, 8, 2, 128)),
        (&[(Field::ZeroStage, 0)], (8, 0, 1, 4, 128)),
        (&[(Field::ZeroStage, 1)], (8, 1, 8, 4, 128)),
        (&[(Field::Shard, 4)], (8, 3, 4, 4, 128)),
    ] {
        for text in [ZERO3, &steps] {
            let settings = read(Target::DeepSpeed, text, 8, fields).unwrap().settings;
            assert_eq!(split_of(&settings), expected, "{fields:?}: {text}");
        }
    }
    let arguments = r#"{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "fsdp": true}"#;
    let settings = read(Target::Transformers, arguments, 8, &[(Field::Data, 4), (Field::Tensor, 2)]).unwrap();
    assert_eq!(settings.settings.global_batch, 32);
    // Degrees whose product does not fit into 64 bits.
    let large = "--tensor-model-parallel-size 67108864 --pipeline-model-parallel-size 67108864 \
                 --context-parallel-size 67108864 --micro-batch-size 1";
    assert_eq!(read(Target::Megatron, large, 8, &[]).unwrap().settings.data, 1);
    let large = "{per_device_batch_size: 1, dcn_fsdp_parallelism: 67108864, ici_data_parallelism: 67108864}";
    assert!(read(Target::MaxText, large, 8, &[]).is_err());
    // A wrong value that a flag overrides does not matter.
    for (key, field) in
        [("train_batch_size", Field::GlobalBatch), ("train_micro_batch_size_per_gpu", Field::MicroBatch)]
    {
        let wrong = steps.replace(&format!("\"{key}\": "), &format!("\"{key}\": \"many\", \"was\": "));
        let error = read(Target::DeepSpeed, &wrong, 8, &[]).unwrap_err();
        let flag = field.flag().unwrap();
        assert!(error.field == key && error.hint.contains(&format!("or give `{flag}`")), "{error}");
        assert!(read(Target::DeepSpeed, &wrong, 8, &[(field, 4), (Field::ZeroStage, 3)]).is_ok());
    }
    let megatron = "--nproc-per-node 8 --tensor-model-parallel-size 8 --pipeline-model-parallel-size 16";
    let error = read(Target::Megatron, megatron, 128, &[]).unwrap_err();
    assert!(error.hint.contains("or give `--dp`: flags override the file"), "{error}");
    assert_eq!(read(Target::Megatron, megatron, 128, &[(Field::Data, 1)]).unwrap().settings.data, 1);
    let fp16 = r#"{"train_batch_size": 8, "fp16": {"enabled": true}}"#;
    assert!(read(Target::DeepSpeed, fp16, 8, &[]).is_err());
    assert!(read(Target::DeepSpeed, fp16, 8, &[(Field::Precision, 0)]).is_ok());
}

#[test]
fn what_is_auto_is_left_to_the_command_line() {
    let auto = r#"{"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto",
        "train_batch_size": "auto", "gradient_clipping": "auto", "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto"}},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}}"#;
    let flags = [(Field::MicroBatch, 4), (Field::GlobalBatch, 128)];
    let imported = read(Target::DeepSpeed, auto, 8, &flags).unwrap();
    assert_eq!(split_of(&imported.settings), (8, 3, 8, 4, 128));
    assert!(!imported.known.contains(&Field::Precision) && imported.unread.is_empty(), "{imported:?}");
    // Without the flags it is undefined, not 1.
    let open = read(Target::DeepSpeed, auto, 8, &[]).unwrap();
    assert!(!open.known.contains(&Field::GlobalBatch) && !open.known.contains(&Field::MicroBatch));
    let arguments =
        r#"{"per_device_train_batch_size": "auto", "gradient_accumulation_steps": "auto", "bf16": true}"#;
    let open = read(Target::Transformers, arguments, 8, &[]).unwrap();
    assert!(!open.known.contains(&Field::GlobalBatch) && !open.known.contains(&Field::MicroBatch));
    let settings = read(Target::Transformers, arguments, 8, &flags).unwrap().settings;
    assert_eq!((settings.micro_batch, settings.global_batch), (4, 128));
}

#[test]
fn zero_stages_and_sharding_strategies_are_read_where_a_file_states_them() {
    let fsdp = |strategy: &str| {
        format!(
            "{{distributed_type: FSDP, num_processes: 8, fsdp_config: {{fsdp_sharding_strategy: {strategy}}}}}"
        )
    };
    for (strategy, stage) in
        [("FULL_SHARD", 3), ("1", 3), ("SHARD_GRAD_OP", 2), ("2", 2), ("NO_SHARD", 0), ("3", 0)]
    {
        assert_eq!(read(Target::Accelerate, &fsdp(strategy), 8, &[]).unwrap().settings.zero_stage, stage);
        let arguments = format!("{{\"bf16\": true, \"fsdp\": \"{} auto_wrap\"}}", strategy.to_lowercase());
        assert_eq!(read(Target::Transformers, &arguments, 8, &[]).unwrap().settings.zero_stage, stage);
    }
    for (target, text) in [
        (Target::Accelerate, fsdp("SOME_SHARD")),
        (Target::Accelerate, fsdp("HYBRID_SHARD")),
        (Target::Transformers, r#"{"bf16": true, "fsdp": "hybrid_shard"}"#.to_owned()),
    ] {
        let error = read(target, &text, 8, &[]).unwrap_err().to_string();
        assert!(error.to_ascii_uppercase().contains("_SHARD"), "{error}");
    }
    let hybrid = r#"{"bf16": true, "fsdp": "hybrid_shard"}"#;
    let settings = read(Target::Transformers, hybrid, 8, &[(Field::Shard, 4)]).unwrap().settings;
    assert_eq!((settings.zero_stage, settings.shard), (3, 4));
    let deepspeed = "{distributed_type: DEEPSPEED, deepspeed_config: {zero_stage: 3, zero3_init_flag: true, \
                     offload_optimizer_device: none, offload_param_device: none}}";
    let settings = read(Target::Accelerate, deepspeed, 8, &[]).unwrap().settings;
    assert_eq!((settings.zero_stage, settings.shard), (3, 8));
    let recomputed = r#"{"fsdp": true, "fsdp_config": {"activation_checkpointing": true}}"#;
    let settings = read(Target::Transformers, recomputed, 8, &[]).unwrap().settings;
    assert!(settings.recompute.iter().all(|mode| *mode == Recompute::Full));
    let fsdp2 = "--use-torch-fsdp2 --micro-batch-size 1 --global-batch-size 8";
    assert_eq!(read(Target::Megatron, fsdp2, 8, &[]).unwrap().settings.zero_stage, 3);
}

#[test]
fn a_deepspeed_file_that_another_trainers_file_names_is_read() {
    let open = |name: &str| {
        assert_eq!(name, "ds_z3.json");
        Ok(r#"{"train_batch_size": "auto", "zero_optimization": {"stage": 3, "overlap_comm": true}}"#
            .to_owned())
    };
    let offload = |_: &str| {
        let text = r#"{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}"#;
        Ok(text.to_owned())
    };
    let arguments = r#"{"per_device_train_batch_size": 2, "bf16": true, "deepspeed": "ds_z3.json"}"#;
    let config = "{distributed_type: DEEPSPEED, deepspeed_config: {deepspeed_config_file: ds_z3.json, zero3_init_flag: true}}";
    for (target, text, key) in [
        (Target::Transformers, arguments, "deepspeed"),
        (Target::Accelerate, config, "deepspeed_config.deepspeed_config_file"),
    ] {
        let settings = read_with(target, text, command(8, &[]), &open).unwrap().settings;
        assert_eq!((settings.zero_stage, settings.shard.max(settings.data)), (3, 8), "{text}");
        let error = read_with(target, text, command(8, &[]), &offload).unwrap_err();
        assert!(error.field.ends_with("offload_optimizer.device") && error.value == "cpu", "{error}");
        let error = read_with(target, text, command(8, &[]), &none).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), (key, "ds_z3.json"));
        assert!(error.hint.contains("--from deepspeed FILE"), "{error}");
    }
    let inline = r#"{"bf16": true, "deepspeed": {"zero_optimization": {"stage": 2}}}"#;
    assert_eq!(read(Target::Transformers, inline, 8, &[]).unwrap().settings.zero_stage, 2);
}

#[test]
fn what_changes_time_or_memory_and_is_in_no_plan_is_refused_by_name() {
    let deepspeed =
        |more: &str| format!("{{\"train_batch_size\": 8, \"zero_optimization\": {{\"stage\": 3, {more}}}}}");
    let accelerate = |more: &str| format!("{{distributed_type: DEEPSPEED, {more}}}");
    let arguments = |more: &str| format!("{{\"bf16\": true, {more}}}");
    let megatron = |more: &str| format!("--micro-batch-size 1 --global-batch-size 8 {more}");
    let nanotron = |more: &str| format!("{{parallelism: {{dp: 8}}, {more}}}");
    let titan = |more: &str| format!("--training.seq_len 64 {more}");
    for (target, on, off, key) in [
        (
            Target::DeepSpeed,
            deepspeed("\"offload_param\": {\"device\": \"cpu\"}"),
            deepspeed("\"offload_param\": {\"device\": \"none\", \"pin_memory\": true}"),
            "zero_optimization.offload_param.device",
        ),
        (
            Target::DeepSpeed,
            deepspeed("\"zero_hpz_partition_size\": 8"),
            deepspeed("\"zero_hpz_partition_size\": 1"),
            "zero_optimization.zero_hpz_partition_size",
        ),
        (
            Target::DeepSpeed,
            deepspeed("\"mics_shard_size\": 4"),
            deepspeed("\"mics_shard_size\": -1"),
            "zero_optimization.mics_shard_size",
        ),
        (
            Target::Accelerate,
            accelerate("deepspeed_config: {zero_stage: 3, offload_optimizer_device: cpu}"),
            accelerate("deepspeed_config: {zero_stage: 3, offload_optimizer_device: none}"),
            "deepspeed_config.offload_optimizer_device",
        ),
        (
            Target::Accelerate,
            accelerate("fsdp_config: {fsdp_offload_params: true}"),
            accelerate("fsdp_config: {fsdp_offload_params: false}"),
            "fsdp_config.fsdp_offload_params",
        ),
        (
            Target::Accelerate,
            "{distributed_type: MEGATRON_LM}".to_owned(),
            accelerate("num_processes: 8"),
            "distributed_type",
        ),
        (
            Target::Transformers,
            arguments("\"fsdp\": \"full_shard offload\""),
            arguments("\"fsdp\": \"full_shard\""),
            "fsdp",
        ),
        (
            Target::Transformers,
            arguments("\"optim\": \"adamw_bnb_8bit\""),
            arguments("\"optim\": \"adamw_torch_fused\""),
            "optim",
        ),
        (
            Target::Transformers,
            arguments("\"auto_find_batch_size\": true"),
            arguments("\"auto_find_batch_size\": false"),
            "auto_find_batch_size",
        ),
        (Target::Megatron, megatron("--fp8-format hybrid"), megatron("--fp8-margin 0"), "fp8-format"),
        (
            Target::Megatron,
            megatron("--optimizer-cpu-offload"),
            megatron("--optimizer-offload-fraction 1.0"),
            "optimizer-cpu-offload",
        ),
        (Target::Megatron, megatron("--num-experts 8"), megatron("--moe-router-topk 2"), "num-experts"),
        (
            Target::Megatron,
            megatron("--exp-avg-dtype bf16"),
            megatron("--exp-avg-dtype fp32"),
            "exp-avg-dtype",
        ),
        (
            Target::MegatronBridge,
            "{train: {micro_batch_size: 1}, mixed_precision: bf16_with_fp8_current_scaling_mixed}".to_owned(),
            "{train: {micro_batch_size: 1}, mixed_precision: bf16_mixed}".to_owned(),
            "mixed_precision",
        ),
        (
            Target::Nanotron,
            nanotron("model: {model_config: {moe_config: {num_experts: 8}}}"),
            nanotron("model: {model_config: {moe_config: null}}"),
            "model.model_config.moe_config.num_experts",
        ),
        (
            Target::MaxText,
            "{per_device_batch_size: 1, quantization: fp8}".to_owned(),
            "{per_device_batch_size: 1, quantization: ''}".to_owned(),
            "quantization",
        ),
        (
            Target::MaxText,
            "{per_device_batch_size: 1, optimizer_memory_host_offload: true}".to_owned(),
            "{per_device_batch_size: 1, num_experts: 1}".to_owned(),
            "optimizer_memory_host_offload",
        ),
        (
            Target::Torchtitan,
            titan("--training.enable_cpu_offload"),
            titan("--training.steps 3"),
            "training.enable_cpu_offload",
        ),
        (
            Target::Torchtitan,
            titan("--float8.recipe_name=rowwise"),
            titan("--metrics.log_freq 1"),
            "float8.recipe_name",
        ),
        (
            Target::Galvatron,
            r#"{"pp_deg": 1, "use_sp": "1,1"}"#.to_owned(),
            r#"{"pp_deg": 1, "use_sp": "0,0"}"#.to_owned(),
            "use_sp",
        ),
    ] {
        let error = read(target, &on, 8, &[]).err().unwrap_or_else(|| panic!("{on} was taken"));
        assert_eq!(error.field, key, "{on}: {error}");
        assert!(!error.value.is_empty() && !error.hint.is_empty(), "{error}");
        read(target, &off, 8, &[]).unwrap_or_else(|error| panic!("{off}: {error}"));
    }
    // A flag that overrides the value makes it harmless.
    for (text, command) in [
        (megatron("--fp8-format hybrid"), CommandLine { fp8: true, ..command(8, &[]) }),
        (megatron("--num-experts 8"), CommandLine { experts: true, ..command(8, &[]) }),
    ] {
        read_with(Target::Megatron, &text, command, &none).unwrap();
    }
    // Settings with small effects are listed apart from those without any effect.
    let text = deepspeed("\"stage3_prefetch_bucket_size\": 5e7").replace("}}", "}, \"steps_per_print\": 10}");
    let imported = read(Target::DeepSpeed, &text, 8, &[]).unwrap();
    assert_eq!(imported.approximated, ["zero_optimization.stage3_prefetch_bucket_size"]);
    assert_eq!(imported.unread, ["steps_per_print"]);
}

#[test]
fn torchtitans_older_form_is_refused_with_the_form_that_is_read() {
    let toml =
        "[training]\nlocal_batch_size = 2\nseq_len = 8192\n[parallelism]\ntensor_parallel_degree = 8\n";
    let error = read(Target::Torchtitan, toml, 8, &[]).unwrap_err().to_string();
    for expected in ["TOML", "torchtitan 0.3", "--training.seq_len 8192"] {
        assert!(error.contains(expected), "{error}");
    }
    let mode = "--training.seq_len=64 --activation_checkpoint.mode=selective";
    let settings = read(Target::Torchtitan, mode, 8, &[]).unwrap().settings;
    assert!(settings.recompute.iter().all(|mode| *mode == Recompute::Selective));
}

#[test]
fn a_file_whose_layout_is_searched_gives_the_job_alone() {
    // Its layout need not be one of the cluster.
    let galvatron = r#"{"pp_deg": 1, "tp_sizes_enc": "1,1,1,1", "global_bsz": 64, "chunks": 2}"#;
    for (target, text, batch) in [
        (Target::Galvatron, galvatron, Some(64)),
        (Target::DeepSpeed, ZERO3, Some(128)),
        (Target::MaxText, "{per_device_batch_size: 4, ici_data_parallelism: 5}", Some(48)),
        // It follows from the layout.
        (Target::Transformers, r#"{"per_device_train_batch_size": 2, "bf16": true}"#, None),
    ] {
        let command = CommandLine { search: true, ..command(12, &[]) };
        let imported = read_with(target, text, command, &none).unwrap_or_else(|e| panic!("{text}: {e}"));
        let known = imported.known.contains(&Field::GlobalBatch);
        assert_eq!(known.then_some(imported.settings.global_batch), batch, "{text}");
    }
}

/// Every configuration file of every export, read with the plan's cluster.
#[test]
fn every_exported_configuration_is_read_back() {
    const OPTIONS: Options = Options { checkpoint_interval: Some(500), script: None, image: String::new() };
    let mut model = catalog::model("tiny-llama").unwrap();
    model.layers = 8;
    let plans: [(ParallelStrategy, &[u32]); 7] = [
        (split(4, 1, 1), &[8]),
        (zero(1, split(4, 1, 1)), &[8]),
        (zero(2, split(4, 1, 1)), &[8]),
        (zero(3, split(8, 1, 1)), &[8]),
        (zero(3, split(2, 2, 1)), &[8]),
        (split(2, 1, 2), &[4, 4]),
        (zero(1, split(2, 2, 2)), &[4, 4]),
    ];
    let mut tried = 0;
    for (strategy, blocks) in plans {
        let given = Some(Hyperparameter::ALL.into_iter().collect());
        let job = Job { precision: Precision::Bf16, given, ..Job::new(64, 64) };
        let stages = common::stages(&model, blocks, &[Recompute::None; 8]);
        let devices = strategy.devices() as u32;
        let plan = common::plan(model.clone(), &format!("1x{devices}xa100-80gb-sxm"), job, strategy, stages);
        let written = Settings::of(&plan, None);
        for target in Target::ALL.into_iter().filter(|target| target.is_trainer()) {
            let Ok(exported) = export(&plan, target, &OPTIONS) else { continue };
            for file in exported.files {
                let reader = match (target, file.name.as_str()) {
                    (_, "accelerate.yaml") => Target::Accelerate,
                    (Target::Megatron | Target::Torchtitan, name) if name.ends_with(".sh") => target,
                    (_, name) if name.ends_with(".sh") || name.ends_with(".py") => continue,
                    _ => target,
                };
                // Transformers has these in the second file, to which its own file does not refer.
                if reader == Target::Transformers && written.tensor > 1 {
                    continue;
                }
                let read =
                    import_beside(reader, &file.content, Some(model.clone()), command(devices, &[]), &none)
                        .unwrap_or_else(|error| panic!("{} of {}: {error}", file.name, target.name()));
                let mut settings = read.settings;
                if !read.known.contains(&Field::Shard) && settings.zero_stage > 0 {
                    settings.shard = settings.data;
                }
                let degrees = |settings: &Settings| (settings.degrees(), settings.zero_stage, settings.shard);
                let place = format!("{} of {}:\n{}", file.name, target.name(), file.content);
                assert_eq!(degrees(&settings), degrees(&written), "{place}");
                if reader != Target::Accelerate {
                    assert!(
                        read.known.contains(&Field::GlobalBatch) && read.known.contains(&Field::MicroBatch)
                    );
                    assert_eq!(split_of(&settings), split_of(&written), "{place}");
                }
                tried += 1;
            }
        }
    }
    assert!(tried > 35, "only {tried} files were read");
}
