//! Trainers' files that are read with a command line: it overrides the file, and provides the fields that the
//! file does not set; settings that change time or memory are read, or refused by name.

use crate::common;
use crate::common::{split, zero};

use autodist_exporters::{
    CommandLine, Field, Imported, Options, Settings, Target, export, import, import_with,
};
use autodist_spec::{
    Hyperparameter, InputError, Job, MemoryTier, ParallelStrategy, Precision, Recompute, catalog,
};

fn read_with(
    target: Target,
    text: &str,
    command: CommandLine,
    open: &dyn Fn(&str) -> Result<String, InputError>,
) -> Result<Imported, InputError> {
    import_with(target, text, Some(catalog::model("tiny-llama").unwrap()), command, open)
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
    // The cluster has another number of processes than the script, which leaves the nodes to the user.
    assert_eq!(read(Target::Megatron, megatron, 128, &[]).unwrap().settings.data, 1);
    let error = read(Target::Megatron, megatron, 8, &[]).unwrap_err();
    assert!(error.hint.contains("or give `--dp`: flags override the file"), "{error}");
    assert_eq!(read(Target::Megatron, megatron, 128, &[(Field::Data, 1)]).unwrap().settings.data, 1);
    let fp16 = r#"{"train_batch_size": 8, "fp16": {"enabled": true}}"#;
    assert_eq!(read(Target::DeepSpeed, fp16, 8, &[]).unwrap().settings.precision, Precision::Fp16);
    // The switch of the library, which exported scripts set, is no flag.
    let script =
        "export NVIDIA_TF32_OVERRIDE=1\ntorchrun --nproc-per-node 8 pretrain_gpt.py --micro-batch-size 1";
    assert_eq!(read(Target::Megatron, script, 8, &[]).unwrap().settings.precision, Precision::Tf32);
    // Experts over the tensor-parallel ranks are those that are priced.
    let split = |tensor: u32, experts: u32| {
        let flags = "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --vocab-size 64 --num-experts 8";
        let text = format!(
            "torchrun --nproc-per-node 8 pretrain_gpt.py {flags} --tensor-model-parallel-size {tensor} \
             --expert-tensor-parallel-size {experts}"
        );
        read(Target::Megatron, &text, 8, &[]).map(|imported| imported.settings.model.unwrap().experts)
    };
    assert_eq!(split(1, 1).unwrap().unwrap().count, 8);
    assert_eq!(split(2, 1).unwrap_err().field, "expert-tensor-parallel-size");
    let both = r#"{"train_batch_size": 8, "fp16": {"enabled": true}, "bf16": {"enabled": true}}"#;
    assert_eq!(read(Target::DeepSpeed, both, 8, &[]).unwrap_err().field, "fp16.enabled");
    assert!(read(Target::DeepSpeed, both, 8, &[(Field::Precision, 0)]).is_ok());
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
    assert!(
        !imported.known.contains(&Field::Precision) && imported.others.irrelevant.is_empty(),
        "{imported:?}"
    );
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
        let imported = read_with(target, text, command(8, &[]), &open).unwrap();
        let Settings { zero_stage, data, shard, .. } = imported.settings;
        let shard = if imported.known.contains(&Field::Shard) { shard } else { data };
        assert_eq!((zero_stage, data, shard), (3, 8, 8), "{text}");
        assert!(imported.deepspeed);
        let states = read_with(target, text, command(8, &[]), &offload).unwrap().settings.states;
        assert_eq!((states.optimizer, states.parameters), (MemoryTier::Host, MemoryTier::Device));
        let error = read_with(target, text, command(8, &[]), &none).unwrap_err();
        assert_eq!((error.field.as_str(), error.value.as_str()), (key, "ds_z3.json"));
        assert!(error.hint.contains("--from deepspeed FILE") && error.hint.contains("`--zero`"), "{error}");
        let without = read_with(target, text, command(8, &[(Field::ZeroStage, 2)]), &none).unwrap();
        assert_eq!((without.settings.zero_stage, without.deepspeed), (2, true));
        let note = format!("{key} (a file that is not there)");
        assert!(without.others.approximated.contains(&note), "{:?}", without.others);
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
            deepspeed("\"mics_shard_size\": 4"),
            deepspeed("\"mics_shard_size\": -1"),
            "zero_optimization.mics_shard_size",
        ),
        (
            Target::Accelerate,
            "{distributed_type: MEGATRON_LM}".to_owned(),
            accelerate("num_processes: 8"),
            "distributed_type",
        ),
        (
            Target::Transformers,
            arguments("\"auto_find_batch_size\": true"),
            arguments("\"auto_find_batch_size\": false"),
            "auto_find_batch_size",
        ),
        (
            Target::Megatron,
            megatron("--fp8-format hybrid"),
            megatron("--bf16 --fp8-format hybrid --fp8-recipe delayed"),
            "fp8-format",
        ),
        (
            Target::Megatron,
            megatron("--fp8-amax-history-len 16"),
            megatron("--fp8-margin 0"),
            "fp8-amax-history-len",
        ),
        (
            Target::Megatron,
            megatron("--num-experts 8 --moe-latent-size 64"),
            megatron("--num-experts 8 --moe-layer-freq 1"),
            "moe-latent-size",
        ),
        (
            Target::MegatronBridge,
            "{train: {micro_batch_size: 1}, mixed_precision: bf16_with_nvfp4_mixed}".to_owned(),
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
        (megatron("--fp8-amax-history-len 16"), CommandLine { fp8: true, ..command(8, &[]) }),
        (megatron("--num-experts 8"), CommandLine { experts: true, ..command(8, &[]) }),
    ] {
        read_with(Target::Megatron, &text, command, &none).unwrap();
    }
    // Settings with small effects are listed apart from those without any effect.
    let text = deepspeed("\"stage3_prefetch_bucket_size\": 5e7").replace("}}", "}, \"steps_per_print\": 10}");
    let imported = read(Target::DeepSpeed, &text, 8, &[]).unwrap();
    assert_eq!(imported.others.approximated, ["zero_optimization.stage3_prefetch_bucket_size"]);
    assert_eq!(imported.others.irrelevant, ["steps_per_print"]);
}

/// Every reader sorts the keys that it does not read in the same way.
#[test]
fn keys_that_no_list_has_are_named_or_refused() {
    // A key that the trainer itself does not have, in the notation of each format.
    let json = |start: &str, key: &str| format!("{{{start}, \"{key}\": 7}}");
    let yaml = |start: &str, key: &str| format!("{{{start}, {key}: 7}}");
    type Form<'a> = (Target, &'a dyn Fn(&str) -> String);
    let forms: [Form<'_>; 9] = [
        (Target::Megatron, &|key| format!("--micro-batch-size 1 --{key} 7")),
        (Target::MegatronBridge, &|key| yaml("train: {micro_batch_size: 1}", key)),
        (Target::Torchtitan, &|key| format!("--training.seq_len 64 --{key} 7")),
        (Target::DeepSpeed, &|key| json("\"train_batch_size\": 8", key)),
        (Target::Accelerate, &|key| yaml("distributed_type: FSDP", key)),
        (Target::Transformers, &|key| json("\"bf16\": true", key)),
        (Target::Nanotron, &|key| yaml("parallelism: {dp: 8}", key)),
        (Target::Galvatron, &|key| json("\"pp_deg\": 1", key)),
        (Target::MaxText, &|key| yaml("per_device_batch_size: 1", key)),
    ];
    for (target, form) in forms {
        let unheard = form("colour_of_logs");
        let imported = read(target, &unheard, 8, &[]).unwrap_or_else(|error| panic!("{unheard}: {error}"));
        assert_eq!(imported.others.unknown, ["colour_of_logs"], "{}", target.name());
        for telling in
            ["ring_parallel_degree", "my_batch", "seq_chunks", "lora_blocks", "state_dtype", "cp_size"]
        {
            let error = read(target, &form(telling), 8, &[])
                .err()
                .unwrap_or_else(|| panic!("{}: {telling} was ignored", target.name()));
            assert_eq!((error.field.as_str(), error.value.as_str()), (telling, "7"), "{error}");
            assert!(error.problem.contains("not known to autodist") && !error.hint.is_empty(), "{error}");
            // Switched off, it does not matter.
            let off = form(telling).replace('7', "false");
            assert_eq!(read(target, &off, 8, &[]).unwrap().others.irrelevant, [telling]);
        }
    }
}

/// Whole configurations as users write them: nothing in them is refused for its name alone.
#[test]
fn usual_configurations_are_read() {
    let megatron = "torchrun --nproc_per_node 8 --nnodes 1 --node_rank 0 --master_addr localhost --master_port 6000 pretrain_gpt.py \
        --use-mcore-models --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 \
        --max-position-embeddings 64 --attention-dropout 0 --hidden-dropout 0 --attention-softmax-in-fp32 \
        --attention-backend auto --no-masked-softmax-fusion --init-method-std 0.02 --micro-batch-size 1 \
        --global-batch-size 8 --train-iters 500 --lr 6e-5 --lr-warmup-fraction 0.001 --clip-grad 1 --bf16 \
        --tensor-model-parallel-size 1 --use-distributed-optimizer --overlap-grad-reduce --data-path d \
        --vocab-size 64 --vocab-file v --merge-file m --split 949,50,1 --log-interval 100 --save-interval 10000 \
        --eval-interval 1000 --save c --load c --eval-iters 10 --tensorboard-dir t --ckpt-fully-parallel-load \
        --no-create-attention-mask-in-dataloader --distributed-backend nccl --eod-mask-loss --use-flash-attn";
    let deepspeed = r#"{"bf16": {"enabled": true}, "fp16": {"enabled": false, "loss_scale": 0, "loss_scale_window": 1000,
        "initial_scale_power": 16, "hysteresis": 2, "min_loss_scale": 1}, "train_batch_size": 64,
        "zero_optimization": {"stage": 3, "overlap_comm": true, "contiguous_gradients": true, "sub_group_size": 1e9,
        "reduce_bucket_size": 500000, "stage3_prefetch_bucket_size": 5e7, "stage3_max_live_parameters": 1e9,
        "stage3_gather_16bit_weights_on_model_save": true}, "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 1.0, "steps_per_print": 2000, "wall_clock_breakdown": false,
        "scheduler": {"type": "WarmupLR", "params": {"warmup_min_lr": 0, "warmup_max_lr": 1e-4, "warmup_num_steps": 10}}}"#;
    let accelerate = "{compute_environment: LOCAL_MACHINE, debug: false, distributed_type: FSDP, downcast_bf16: 'no', \
        fsdp_config: {fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP, fsdp_backward_prefetch: BACKWARD_PRE, \
        fsdp_cpu_ram_efficient_loading: true, fsdp_forward_prefetch: false, fsdp_offload_params: false, \
        fsdp_sharding_strategy: FULL_SHARD, fsdp_state_dict_type: SHARDED_STATE_DICT, fsdp_sync_module_states: true, \
        fsdp_use_orig_params: true}, machine_rank: 0, main_training_function: main, mixed_precision: bf16, \
        num_machines: 1, num_processes: 8, rdzv_backend: static, same_network: true, tpu_env: [], use_cpu: false}";
    let arguments = r#"{"output_dir": "o", "per_device_train_batch_size": 2, "per_device_eval_batch_size": 8, "bf16": true,
        "gradient_accumulation_steps": 4, "gradient_checkpointing": true, "gradient_checkpointing_kwargs":
        {"use_reentrant": false}, "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1,
        "num_train_epochs": 1, "logging_steps": 10, "save_steps": 100, "save_strategy": "steps", "eval_strategy": "no",
        "report_to": "none", "dataloader_num_workers": 4, "remove_unused_columns": false, "ddp_timeout": 1800,
        "fsdp": "full_shard auto_wrap", "fsdp_config": {"backward_prefetch": "backward_pre", "use_orig_params": true},
        "torch_compile": false, "group_by_length": true, "fp16_full_eval": false}"#;
    let titan = "torchrun --nproc_per_node=8 --rdzv_backend c10d --rdzv_endpoint=localhost:0 --local-ranks-filter 0 --role rank \
        --tee 3 -m torchtitan.train --module llama3 --config llama3_8b --training.seq_len 64 --training.local_batch_size 1 \
        --compile.enable --metrics.log_freq 10 --checkpoint.enable --checkpoint.interval 500 --profiling.enable_profiling \
        --parallelism.enable_async_tensor_parallel --training.dataset c4 --validation.local_batch_size 8 --training.steps 10";
    let galvatron = r#"{"pp_deg": 1, "tp_sizes_enc": "1,1,1,1", "tp_consecutive_flags": "1,1,1,1", "dp_types_enc": "1,1,1,1",
        "cp_sizes_enc": "1,1,1,1", "use_sp": "0,0,0,0", "checkpoint": "1,1,0,0", "global_bsz": 16, "chunks": 1,
        "pp_division": "4", "pipeline_type": "pipedream_flush", "default_dp_type": "zero2", "vtp": 1, "vsp": 0, "vcp": 1,
        "embed_sdp": 1}"#;
    let maxtext = "{base_config: base.yml, run_name: r, per_device_batch_size: 1, max_target_length: 64, remat_policy: full, \
        attention: flash, quantization: '', dataset_type: synthetic, steps: 10, enable_checkpointing: false, \
        async_checkpointing: true, checkpoint_period: 100, profiler: xplane, logits_via_embedding: false, \
        ici_fsdp_parallelism: -1, ici_tensor_parallelism: 1, dcn_data_parallelism: 1, num_experts: 1, q_lora_rank: 0, \
        kv_lora_rank: 512, load_parameters_path: '', eval_per_device_batch_size: 0.0, shard_mode: auto}";
    let nanotron = "{checkpoints: {checkpoint_interval: 10, checkpoints_path: c, save_initial_state: false, resume_checkpoint_path: null}, \
        data_stages: [{name: a, start_training_step: 1, data: {seed: 42, dataset: {hf_dataset_or_datasets: x}}}], \
        general: {project: debug, run: r, seed: 42, step: null}, lighteval: null, logging: {log_level: info}, \
        model: {ddp_bucket_cap_mb: 25, dtype: bfloat16, init_method: {std: 0.025}, make_vocab_size_divisible_by: 1}, \
        optimizer: {accumulate_grad_in_fp32: true, clip_grad: 1.0, zero_stage: 0}, parallelism: {dp: 8, pp: 1, tp: 1, \
        expert_parallel_size: 1, pp_engine: 1f1b, tp_linear_async_communication: true, tp_mode: REDUCE_SCATTER}, \
        profiler: null, tokenizer: {tokenizer_name_or_path: x}, tokens: {batch_accumulation_per_replica: 1, \
        limit_test_batches: 0, limit_val_batches: 0, micro_batch_size: 2, sequence_length: 64, train_steps: 15, val_check_interval: -1}}";
    let bridge = "{model: {tensor_model_parallel_size: 1, num_layers: 4, hidden_size: 64, num_attention_heads: 4, apply_rope_fusion: true, \
        attention_dropout: 0.0}, train: {micro_batch_size: 1, global_batch_size: 8, train_iters: 10, eval_iters: 2}, \
        ddp: {use_distributed_optimizer: true, average_in_collective: true}, optimizer: {bf16: true, use_distributed_optimizer: true}, \
        checkpoint: {save: c, fully_parallel_save: true}, logger: {log_interval: 10}, comm_overlap: {tp_comm_overlap: true}, \
        dataset: {sequence_length: 64}, mixed_precision: bf16_mixed, peft: null}";
    for (target, text) in [
        (Target::Megatron, megatron),
        (Target::DeepSpeed, deepspeed),
        (Target::Accelerate, accelerate),
        (Target::Transformers, arguments),
        (Target::Torchtitan, titan),
        (Target::Galvatron, galvatron),
        (Target::MaxText, maxtext),
        (Target::Nanotron, nanotron),
        (Target::MegatronBridge, bridge),
    ] {
        let imported =
            read(target, text, 8, &[]).unwrap_or_else(|error| panic!("{}: {error}", target.name()));
        let unknown = imported.others.unknown;
        assert!(unknown.len() <= 1, "{}: {unknown:?}", target.name());
    }
}

#[test]
fn galvatron_splits_of_sequences_are_refused_by_name() {
    let file = |more: &str| format!("{{\"pp_deg\": 1, \"tp_sizes_enc\": \"2,2,2,2\", \"vtp\": 2, {more}}}");
    for (on, off, key) in [
        ("\"vsp\": 1", "\"vsp\": 0", "vsp"),
        ("\"vcp\": 2", "\"vcp\": 1", "vcp"),
        ("\"cp_sizes_enc\": \"1,2,1,1\"", "\"cp_sizes_enc\": \"1,1,1,1\"", "cp_sizes_enc"),
    ] {
        assert_eq!(read(Target::Galvatron, &file(on), 8, &[]).unwrap_err().field, key);
        read(Target::Galvatron, &file(off), 8, &[]).unwrap();
    }
}

#[test]
fn deepspeeds_rules_hold_for_its_settings_in_other_files() {
    let arguments = r#"{"per_device_train_batch_size": 2, "bf16": true, "deepspeed": "ds.json"}"#;
    let config = "{distributed_type: DEEPSPEED, deepspeed_config: {deepspeed_config_file: ds.json}}";
    let read_both = |target: Target, text: &str, ds: &str, fields: &[(Field, u32)]| {
        let open = |_: &str| Ok(ds.to_owned());
        read_with(target, text, command(8, fields), &open)
    };
    for (target, text) in [(Target::Transformers, arguments), (Target::Accelerate, config)] {
        let read = |ds: &str| read_both(target, text, ds, &[]);
        for (ds, key) in [
            (r#"{"optimizer": {"type": "Lion"}}"#, "optimizer.type"),
            (r#"{"communication_data_type": "int3"}"#, "communication_data_type"),
            (r#"{"bf16": {"enabled": true}, "ring_parallel_size": 4}"#, "ring_parallel_size"),
            (r#"{"zero_optimization": {"stage": 7}}"#, "zero_optimization.stage"),
            (r#"{"tensor_parallel": {"autotp_size": 2}}"#, "tensor_parallel.autotp_size"),
        ] {
            let error = read(ds).err().unwrap_or_else(|| panic!("{ds} was taken"));
            assert_eq!((error.source_name.as_str(), error.field.as_str()), ("ds.json", key), "{error}");
        }
        let ds = r#"{"zero_optimization": {"stage": 3, "reduce_bucket_size": 1000, "zero_quantized_weights": true},
            "steps_per_print": 9, "colour": "red", "train_micro_batch_size_per_gpu": 2, "bf16": {"enabled": true}}"#;
        let imported = read(ds).unwrap();
        let settings = &imported.settings;
        assert_eq!((settings.zero_stage, settings.bucket_bytes, settings.micro_batch), (3, 4000, 2));
        assert_eq!(settings.parameters.name(), "int8/256");
        assert!(imported.known.contains(&Field::Parameters) && imported.known.contains(&Field::Precision));
        assert_eq!(imported.others.irrelevant, ["steps_per_print"]);
        assert_eq!(imported.others.unknown, ["colour"]);
    }
    // What both say must agree.
    let error =
        read_both(Target::Transformers, arguments, r#"{"fp16": {"enabled": true}}"#, &[]).unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("fp16.enabled", "fp16"));
    assert!(error.problem.contains("contradicts bf16"), "{error}");
    let other = r#"{"train_micro_batch_size_per_gpu": 4}"#;
    let error = read_both(Target::Transformers, arguments, other, &[]).unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("train_micro_batch_size_per_gpu", "4"));
    assert!(error.problem.contains("per_device_train_batch_size, 2"), "{error}");
    read_both(Target::Transformers, arguments, other, &[(Field::MicroBatch, 4)]).unwrap();
    // Also in the section of a file, with the section in its keys.
    let inline =
        r#"{"bf16": true, "deepspeed": {"zero_optimization": {"stage": 2}, "optimizer": {"type": "Lion"}}}"#;
    let error = read(Target::Transformers, inline, 8, &[]).unwrap_err();
    assert_eq!(error.field, "deepspeed.optimizer.type");
    let hidden = "{\"bf16\": true, \"deepspeed\": \"a\\u001b.json\"}";
    assert_eq!(read(Target::Transformers, hidden, 8, &[]).unwrap_err().field, "deepspeed");
}

#[test]
fn the_start_of_a_flag_is_the_flag_if_it_is_the_only_one() {
    let file = |more: &str| format!("--micro-batch-size 1 {more}");
    let settings =
        read(Target::Megatron, &file("--tensor-model-par 4 --pipeline_model_parallel_s 2"), 8, &[]);
    let settings = settings.unwrap().settings;
    assert_eq!((settings.tensor, settings.pipeline), (4, 2));
    for several in ["--recompute-g full --recomp full", "--pipeline-model 2", "--seq 8", "--overlap true"] {
        let error = read(Target::Megatron, &file(several), 8, &[]).unwrap_err();
        assert!(error.problem.contains("start of several flags: --"), "{error}");
        assert!(several.contains(&format!("--{}", error.field)), "{error}");
    }
    // Flags that change the model have a reason of their own.
    let error = read(Target::Megatron, &file("--no-position-embedding"), 8, &[]).unwrap_err();
    assert!(error.problem.contains("changes the model"), "{error}");
}

#[test]
fn torchtitans_older_mode_is_read() {
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
        // Errors of the layout do not matter.
        (
            Target::Galvatron,
            r#"{"pp_deg": "many", "tp_sizes_enc": "1,2,1", "global_bsz": 64, "chunks": 7}"#,
            Some(64),
        ),
        (
            Target::Megatron,
            "--tensor-model-parallel-size 0 --recompute-granularity some --global-batch-size 64",
            Some(64),
        ),
        (
            Target::DeepSpeed,
            r#"{"train_batch_size": 64, "zero_optimization": {"stage": 9, "reduce_bucket_size": -1}}"#,
            Some(64),
        ),
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
        let given = Some(Hyperparameter::ALL.iter().copied().collect());
        let job = Job { precision: Precision::Bf16, given, ..Job::new(64, 64) };
        let stages = common::stages(&model, blocks, &[Recompute::None; 8]);
        let devices = strategy.devices() as u32;
        let plan = common::plan(model.clone(), &format!("1x{devices}xa100-80gb-sxm"), job, strategy, stages);
        let written = Settings::of(&plan, None);
        for &target in Target::ALL.iter().filter(|target| target.is_trainer()) {
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
                    import_with(reader, &file.content, Some(model.clone()), command(devices, &[]), &none)
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
