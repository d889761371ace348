//! No setting of a trainer's file is lost: a relevant setting that is not supported is refused by name.

use crate::common;
use crate::common::split;
use crate::counting::allocated;

use autodist_exporters::{Field, Imported, Options, Settings, Target, export, import};
use autodist_spec::{InputError, Job, Positions, Recompute, catalog};
use proptest::prelude::*;

fn megatron(text: &str) -> Result<Imported, InputError> {
    import(Target::Megatron, text, Some(catalog::model("tiny-llama").unwrap()))
}

/// Tensor degree, sequence parallelism and micro-batch.
fn layout(settings: &Settings) -> (u32, bool, u32) {
    (settings.tensor, settings.sequence_parallel, settings.micro_batch)
}

const RUN: &str = "torchrun --nproc-per-node 8 pretrain_gpt.py";

#[test]
fn flags_in_variables_are_those_of_the_command() {
    for script in [
        format!(
            "PAR=\"--tensor-model-parallel-size 8 --sequence-parallel\"\n{RUN} $PAR --micro-batch-size 2 --bf16"
        ),
        format!(
            "export PAR='--tensor-model-parallel-size 8\n --sequence-parallel'\n{RUN} ${{PAR}} --micro-batch-size 2"
        ),
        format!(
            "ARGS=(--tensor-model-parallel-size 8 --sequence-parallel)\n{RUN} \"${{ARGS[@]}}\" --micro-batch-size 2"
        ),
        format!(
            "ARGS=(--tensor-model-parallel-size 8 --sequence-parallel)\n{RUN} ${{ARGS[*]}} --micro-batch-size 2"
        ),
        format!(
            "TP=8\nARGS=(\n  --tensor-model-parallel-size \"$TP\" # as planned\n  --sequence-parallel\n)\n\
             {RUN} \\\n  \"${{ARGS[@]}}\" \\\n  --micro-batch-size 2 \"$@\"\n"
        ),
        format!(
            "A=--tensor-model-parallel-size\nA+=' 8'\nB=(--sequence-parallel)\nB+=(--micro-batch-size 2)\n{RUN} $A \"${{B[@]}}\""
        ),
        format!(
            "TP=2\nTP=8\nSP=\nSP=\"$SP --sequence-parallel\"\n{RUN} --tensor-model-parallel-size=$TP $SP --micro-batch-size 2"
        ),
        format!(
            "CMD=\"{RUN} --tensor-model-parallel-size 8 --sequence-parallel --micro-batch-size 2\"\necho $CMD\neval $CMD\n"
        ),
        format!(
            "ARGS='--tensor-model-parallel-size 8 --sequence-parallel'\nsrun --unbuffered -l bash -c \"{RUN} $ARGS --micro-batch-size 2\""
        ),
        "ARGS=(--tensor-model-parallel-size 8 --sequence-parallel)\nMORE=\"--micro-batch-size 2\"\n"
            .to_owned(),
        "--tensor-model-parallel-size 8\n--sequence-parallel\n--micro-batch-size\n2\n".to_owned(),
        "DIR=`pwd`\noptions=\" \\\n\t--tensor_model_parallel_size 8 \\\n  --sequence-parallel \\\n --rampup-batch-size 16 16 \\\n\
         \t--micro-batch-size 2 --data-path ${DATASET} \"\nrun_cmd=\"python -u ${DIR}/pretrain_gpt.py $@ ${options}\"\n\
         srun -l \\\n     --container-mounts \"<DIRECTORIES>\" \\\n     --output=$DIR/logs/%x.log sh -c \"${run_cmd}\"\nset +x\n".to_owned(),
        "DISTRIBUTED_ARGS=(\n    --nproc_per_node 8 \n    --master_addr $MASTER_ADDR\n)\nSCRIPT=pretrain_gpt.py\n\
         MORE=(\n  \"--micro-batch-size 2\"\n  # --bf16\n)\nMORE+=(\"--sequence-parallel\")\nSAVE=${1:-\"out\"}\n\
         if [ ! -f \"$SCRIPT\" ]; then\n  echo \"Error: no $SCRIPT --bf16\"\n  exit 1\nfi\n\
         torchrun ${DISTRIBUTED_ARGS[@]} \\\n  \"$SCRIPT\" ${MORE[@]} --save \"$SAVE\" --tensor-model-parallel-size 8\n".to_owned(),
        // Only one of them trains.
        format!(
            "mkdir --parents out\nif [ -z \"$X\" ]; then echo --tensor-model-parallel-size 4; fi\ncat <<EOF > notes\n\
             don't use --micro-batch-size 4\nEOF\nCUDA_DEVICE_MAX_CONNECTIONS=1 {RUN} --tensor-model-parallel-size 8 \
             --sequence-parallel --micro-batch-size 2 && echo \"$(date) done\" || exit 1"
        ),
    ] {
        let imported = megatron(&script).unwrap_or_else(|error| panic!("{script}\n{error}"));
        assert_eq!(layout(&imported.settings), (8, true, 2), "{script}");
    }
    let module =
        "SEQ=64\npython -m torchtitan.train --training.seq_len $SEQ activation_checkpoint:full | tee log";
    let settings =
        import(Target::Torchtitan, module, Some(catalog::model("tiny-llama").unwrap())).unwrap().settings;
    assert_eq!((settings.seq_len, settings.recompute[0]), (64, Recompute::Full));
    let hyphens = "--training.seq-len 64 --parallelism.no-enable-sequence-parallel \
                   --parallelism.tensor-parallel-degree 2 activation-checkpoint:full";
    let settings = import(Target::Torchtitan, hyphens, None).unwrap().settings;
    assert_eq!((settings.seq_len, settings.tensor, settings.sequence_parallel), (64, 2, false));
    assert_eq!(settings.recompute, [Recompute::Full]);
}

#[test]
fn variables_that_may_hold_flags_and_are_not_known_are_refused_with_their_line() {
    for (script, field, line) in [
        (format!("{RUN} $PAR --micro-batch-size 2"), "$PAR", "line 1"),
        (format!("{RUN} --bf16 \"${{ARGS[@]}}\" --micro-batch-size 2"), "${ARGS[@]}", "line 1"),
        (format!("for SP in --bf16 ''; do\n{RUN} --seed 1 $SP\ndone"), "$SP", "line 1"),
        (format!("PAR=$(cat flags)\n{RUN} --seed 1 $PAR"), "$(cat flags)", "line 2"),
        (format!("{RUN} --seed 1 `cat flags`"), "`cat flags`", "line 1"),
        (format!("PAR=\"--seed 1 $MORE\"\n{RUN} --seed 1 $PAR"), "$MORE", "line 2"),
        (format!("run() {{\n {RUN} --seed 1 \"$@\"\n}}\nrun --bf16"), "$@", "line 2"),
        (format!("set -- --sequence-parallel\n{RUN} --seed 1 \"$@\""), "$@", "line 1"),
        (format!("PAR='--seed 1 --bf16'\n{RUN} \"$PAR\""), "--seed 1 --bf16", "line 2"),
        (format!("{RUN} --$NAME 8 --seed 1"), "--$NAME", "line 1"),
        (
            format!("if nvidia-smi; then\n{RUN} --seed 1 --sequence-parallel\nelse\n{RUN} --seed 1\nfi"),
            "sequence-parallel",
            "line 4",
        ),
        (format!("{RUN} --load <PATH TO DATA> --bf16"), "", "line 1"),
        (format!("{RUN} --seed 1 --bf16\n{RUN} --seed 2 --bf16\n"), "seed", "line 2"),
    ] {
        let error = megatron(&script).err().unwrap_or_else(|| panic!("{script} was taken"));
        assert_eq!(error.field, field, "{script}\n{error}");
        assert!(error.problem.contains(line) && !error.hint.is_empty(), "{script}\n{error}");
    }
    // Flags that a variable may hold are asked for by their names.
    for script in [
        format!(
            "if [ $N = 2 ]; then\n PAR=--bf16\nelse\n PAR='--bf16 --sequence-parallel'\nfi\n{RUN} $PAR --seed 1"
        ),
        format!("SP=''\n[ -n \"$X\" ] && SP=--sequence-parallel\n{RUN} --bf16 $SP --seed 1"),
    ] {
        let error = megatron(&script).unwrap_err();
        assert_eq!(error.field, "sequence-parallel", "{script}\n{error}");
        assert!(error.hint.contains("--sp"), "{error}");
    }
    // A number that matters, with its key.
    let branch = format!("if nvidia-smi; then TP=8; else TP=4; fi\n{RUN} --tensor-model-parallel-size $TP");
    assert_eq!(megatron(&branch).unwrap_err().field, "tensor-model-parallel-size");
    // Settings of the launcher and irrelevant settings may have any value.
    let open = "DISTRIBUTED=\"--node_rank $RANK --master_addr $MASTER_ADDR\"\n\
                torchrun $LAUNCH $DISTRIBUTED --nnodes 1 pretrain_gpt.py --lr $LR --data-path $DATA --seed 1 $@";
    assert!(megatron(open).is_ok());
}

#[test]
fn operators_of_the_shell_end_the_command() {
    for end in [
        "2>&1 | tee log",
        "> log.txt 2> err",
        "&",
        "; echo done",
        "&& echo --tensor-model-parallel-size 4",
        ">>log",
        "&>log",
        "\necho ok",
        "| tee log --sequence-parallel",
        "<<< text",
    ] {
        let script = format!("{RUN} --tensor-model-parallel-size 8 --micro-batch-size 2 --bf16 {end}");
        let imported = megatron(&script).unwrap_or_else(|error| panic!("{script}: {error}"));
        assert_eq!(layout(&imported.settings), (8, false, 2), "{script}");
        assert!(imported.known.contains(&Field::Precision));
    }
    assert_eq!(megatron(&format!("{RUN} --seed 1 --bf16 log")).unwrap_err().field, "bf16");
}

#[test]
fn words_that_no_reader_knows_are_refused_by_their_key() {
    let megatron = |more: &str| {
        format!(
            "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --vocab-size 64 --seq-length 8 --micro-batch-size 1 {more}"
        )
    };
    let nanotron = |more: &str| {
        format!(
            "{{parallelism: {{dp: 8, {}}}, model: {{{}}}, optimizer: {{{}}}}}",
            more.strip_prefix("p ").unwrap_or_default(),
            more.strip_prefix("m ").unwrap_or_default(),
            more.strip_prefix("o ").unwrap_or_default()
        )
    };
    let maxtext = |more: &str| format!("{{per_device_batch_size: 1, {more}}}");
    let galvatron =
        |more: &str| format!("{{\"pp_deg\": 2, \"tp_sizes_enc\": \"2,2,2,2\", \"global_bsz\": 8, {more}}}");
    let titan = |more: &str| format!("--training.seq_len 64 {more}");
    let deepspeed = |more: &str| format!("{{\"train_batch_size\": 8, {more}}}");
    let bridge = |more: &str| format!("{{train: {{micro_batch_size: 1}}, {more}}}");
    let layout = |text: &str| {
        megatron(&format!("--pipeline-model-parallel-size 2 --pipeline-model-parallel-layout '{text}'"))
    };
    for (target, bad, good, key) in [
        (Target::Megatron, megatron("--optimizer muon"), megatron("--optimizer adam"), "optimizer"),
        (Target::Megatron, megatron("--optimizer sgdd"), megatron("--optimizer sgd"), "optimizer"),
        (Target::Megatron, megatron("--optimizer $OPT"), megatron("--optimizer sgd"), "optimizer"),
        (
            Target::Megatron,
            megatron("--normalization Foo"),
            megatron("--normalization RMSNorm"),
            "normalization",
        ),
        (
            Target::Megatron,
            megatron("--position-embedding-type none"),
            megatron("--position-embedding-type rope"),
            "position-embedding-type",
        ),
        (
            Target::Megatron,
            megatron("--recompute-granularity full --recompute-method blok --recompute-num-layers 1"),
            megatron("--recompute-granularity full --recompute-method block --recompute-num-layers 1"),
            "recompute-method",
        ),
        (
            Target::Megatron,
            megatron("--recompute-granularity full --recompute-method uniform --recompute-num-layers 4"),
            megatron("--recompute-granularity full --recompute-method uniform --recompute-num-layers 1"),
            "recompute-num-layers",
        ),
        (Target::Megatron, megatron("--squared-relu"), megatron("--swiglu"), "squared-relu"),
        (Target::Megatron, megatron("--fp16 --bf16"), megatron("--fp16"), "fp16"),
        (Target::Megatron, layout("Lt*2E|t*22LLLEEE"), layout("Et*4|t*4L"), "pipeline-model-parallel-layout"),
        (Target::Megatron, layout("Et*4L|t*4"), layout("Et*4|t*4,L"), "pipeline-model-parallel-layout"),
        (Target::Megatron, layout("t*4|t*4L"), layout("E,t*4|t*4,L"), "pipeline-model-parallel-layout"),
        (
            Target::MegatronBridge,
            bridge("optimizer: {optimizer: muon}"),
            bridge("optimizer: {optimizer: adam}"),
            "optimizer.optimizer",
        ),
        (
            Target::MegatronBridge,
            bridge("model: {fp16: true, bf16: true}"),
            bridge("model: {fp16: true}"),
            "model.fp16",
        ),
        (
            Target::MegatronBridge,
            bridge("ddp: {grad_reduce_in_fp32: maybe}"),
            bridge("ddp: {grad_reduce_in_fp32: false}"),
            "ddp.grad_reduce_in_fp32",
        ),
        (Target::Nanotron, nanotron("m dtype: float16"), nanotron("m dtype: bfloat16"), "model.dtype"),
        (Target::Nanotron, nanotron("m dtype: double"), nanotron("m dtype: float32"), "model.dtype"),
        (
            Target::Nanotron,
            nanotron("m model_config: {hidden_act: gelu}"),
            nanotron("m model_config: {hidden_act: silu}"),
            "model.model_config.hidden_act",
        ),
        (
            Target::Nanotron,
            nanotron("p pp_engine: zero_bubble"),
            nanotron("p pp_engine: afab"),
            "parallelism.pp_engine",
        ),
        (
            Target::Nanotron,
            nanotron("p tp_mode: REDUCE_SCATER"),
            nanotron("p tp_mode: REDUCE_SCATTER"),
            "parallelism.tp_mode",
        ),
        (
            Target::Nanotron,
            nanotron("o optimizer_factory: {name: lion}"),
            nanotron("o optimizer_factory: {name: adamW}"),
            "optimizer.optimizer_factory.name",
        ),
        (Target::MaxText, maxtext("dtype: float16"), maxtext("dtype: bfloat16"), "dtype"),
        (
            Target::MaxText,
            maxtext("weight_dtype: bfloat16"),
            maxtext("weight_dtype: float32"),
            "weight_dtype",
        ),
        (Target::MaxText, maxtext("mu_dtype: int8"), maxtext("mu_dtype: ''"), "mu_dtype"),
        (
            Target::MaxText,
            maxtext("matmul_precision: fast"),
            maxtext("matmul_precision: highest"),
            "matmul_precision",
        ),
        (
            Target::MaxText,
            maxtext("decoder_block: gemma2"),
            maxtext("decoder_block: llama2"),
            "decoder_block",
        ),
        (
            Target::MaxText,
            maxtext("mlp_activations: [gelu, linear]"),
            maxtext("mlp_activations: [silu, linear]"),
            "mlp_activations",
        ),
        (Target::MaxText, maxtext("opt_type: adam_pax"), maxtext("opt_type: adamw"), "opt_type"),
        (Target::MaxText, maxtext("remat_policy: custom"), maxtext("remat_policy: full"), "remat_policy"),
        (
            Target::Galvatron,
            galvatron("\"pipeline_type\": \"zb\""),
            galvatron("\"pipeline_type\": \"gpipe\""),
            "pipeline_type",
        ),
        (
            Target::Galvatron,
            galvatron("\"default_dp_type\": \"zero7\""),
            galvatron("\"default_dp_type\": \"zero2\""),
            "default_dp_type",
        ),
        (Target::Galvatron, galvatron("\"vtp\": 4"), galvatron("\"vtp\": 2"), "vtp"),
        (Target::Galvatron, galvatron("\"use_sp\": 1"), galvatron("\"use_sp\": 0"), "use_sp"),
        (
            Target::Galvatron,
            galvatron("\"tp_consecutive_flags\": \"1,0,1,1\""),
            galvatron("\"tp_consecutive_flags\": \"1,1,1,1\""),
            "tp_consecutive_flags",
        ),
        (
            Target::Torchtitan,
            titan("--training.mixed_precision_param float16"),
            titan("--training.mixed_precision_param float32"),
            "training.mixed_precision_param",
        ),
        (
            Target::Torchtitan,
            titan("--training.dtype float64"),
            titan("--training.dtype float32"),
            "training.dtype",
        ),
        (
            Target::Torchtitan,
            titan("--optimizer.name Muon"),
            titan("--optimizer.name AdamW"),
            "optimizer.name",
        ),
        (
            Target::Torchtitan,
            titan(
                "--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_schedule ZBVZeroBubble",
            ),
            titan("--parallelism.pipeline_parallel_degree 2 --parallelism.pipeline_parallel_schedule 1F1B"),
            "parallelism.pipeline_parallel_schedule",
        ),
        (
            Target::DeepSpeed,
            deepspeed("\"optimizer\": {\"type\": \"Lion\"}"),
            deepspeed("\"optimizer\": {\"type\": \"AdamW\"}"),
            "optimizer.type",
        ),
        (
            Target::DeepSpeed,
            deepspeed("\"amp\": {\"enabled\": true}"),
            deepspeed("\"amp\": {\"enabled\": false}"),
            "amp.enabled",
        ),
        (
            Target::DeepSpeed,
            deepspeed("\"data_types\": {\"grad_accum_dtype\": \"fp4\"}"),
            deepspeed("\"data_types\": {\"grad_accum_dtype\": \"fp32\"}"),
            "data_types.grad_accum_dtype",
        ),
        (
            Target::Accelerate,
            "{distributed_type: MULTI_FOO}".to_owned(),
            "{distributed_type: MULTI_GPU}".to_owned(),
            "distributed_type",
        ),
        (
            Target::Accelerate,
            "{distributed_type: FSDP, fsdp_config: {fsdp_version: 3}}".to_owned(),
            "{distributed_type: FSDP, fsdp_config: {fsdp_version: 2}}".to_owned(),
            "fsdp_config.fsdp_version",
        ),
        (
            Target::Transformers,
            "{\"bf16\": true, \"fsdp\": 5}".to_owned(),
            "{\"bf16\": true, \"fsdp\": true}".to_owned(),
            "fsdp",
        ),
    ] {
        let error = import(target, &bad, None).err().unwrap_or_else(|| panic!("{bad} was taken"));
        assert_eq!(error.field, key, "{bad}: {error}");
        assert!(!error.hint.is_empty() && !error.to_string().is_empty(), "{error}");
        import(target, &good, None).unwrap_or_else(|error| panic!("{good}: {error}"));
    }
    // One size per block, and one policy.
    let model = || Some(catalog::model("tiny-llama").unwrap());
    for list in ["tp_sizes_enc", "dp_types_enc"] {
        let text = format!("{{\"pp_deg\": 1, \"{list}\": \"1,1\"}}");
        assert_eq!(import(Target::Galvatron, &text, model()).unwrap_err().field, list);
        assert!(import(Target::Galvatron, &text.replace("1,1", "1,1,1,1"), model()).is_ok());
    }
    for (target, text) in [
        (Target::Galvatron, "{\"pp_deg\": 1, \"checkpoint\": \"1,1\"}"),
        (
            Target::DeepSpeed,
            "{\"train_batch_size\": 8, \"activation_checkpointing\": {\"number_checkpoints\": 1}}",
        ),
    ] {
        let error = import(target, text, model()).unwrap().check_stages(4).unwrap_err();
        assert!(
            error.field.starts_with("checkpoint") || error.field.ends_with("number_checkpoints"),
            "{error}"
        );
    }
    // The model of the command line replaces that of the file.
    assert!(import(Target::MaxText, &maxtext("decoder_block: gemma2"), model()).is_ok());
    let older = import(Target::Megatron, &megatron("--use-rotary-position-embeddings"), None).unwrap();
    assert!(matches!(older.settings.model.unwrap().positions, Positions::Rotary { .. }));
}

#[test]
fn blocks_per_stage_are_those_of_the_file() {
    let model = || Some(catalog::model("tiny-llama").unwrap());
    let titan = "--training.seq_len 64 --parallelism.pipeline_parallel_degree 2 \
                 --parallelism.pipeline_parallel_schedule Interleaved1F1B \
                 --parallelism.pipeline_parallel_first_stage_less_layers 0 \
                 --parallelism.pipeline_parallel_last_stage_less_layers 0 \
                 --parallelism.pipeline_parallel_layers_per_stage";
    let read = |text: &str| import(Target::Torchtitan, text, model()).map(|read| read.settings);
    let settings = read(&format!("{titan} 1")).unwrap();
    assert_eq!((settings.virtual_stages, settings.stages), (2, vec![1; 4]));
    // By default embedding and head each count as one block.
    let uneven = titan.replace("Interleaved1F1B", "1F1B").replace("less_layers 0", "less_layers 1");
    assert_eq!(read(&format!("{uneven} 3")).unwrap().stages, [2, 2]);
    assert!(read(&format!("{uneven} 2")).unwrap_err().field.contains("stages"));
    let maxtext = |more: &str| format!("{{per_device_batch_size: 1, ici_pipeline_parallelism: 2, {more}}}");
    let read = |more: &str| import(Target::MaxText, &maxtext(more), model()).map(|read| read.settings);
    assert_eq!(read("num_layers_per_pipeline_stage: 1").unwrap().virtual_stages, 2);
    assert_eq!(read("num_layers_per_pipeline_stage: 1, num_pipeline_repeats: 2").unwrap().virtual_stages, 2);
    assert!(read("num_layers_per_pipeline_stage: 1, num_pipeline_repeats: 1").is_err());
    assert!(read("num_layers_per_pipeline_stage: 3").is_err());
}

#[test]
fn recomputation_of_some_blocks_is_not_that_of_all() {
    let block =
        "--recompute-granularity full --recompute-method block --recompute-num-layers 1 --micro-batch-size 1";
    let galvatron = "{\"pp_deg\": 1, \"checkpoint\": \"0,0,0,1\", \"pp_division\": \"4\"}";
    for (target, text, full) in [(Target::Megatron, block, 0), (Target::Galvatron, galvatron, 3)] {
        let imported = import(target, text, Some(catalog::model("tiny-llama").unwrap())).unwrap();
        let expected: Vec<_> =
            (0..4).map(|block| if block == full { Recompute::Full } else { Recompute::None }).collect();
        assert_eq!(imported.settings.recompute, expected);
        assert_eq!(imported.settings.plan_stages()[0].recompute[1..5], expected);
        let error = imported.check_one_recompute().unwrap_err();
        assert!(
            error.value.contains("full on 1 of 4 blocks") && error.hint.contains("--recompute"),
            "{error}"
        );
    }
    // Also for a model of experts, whose blocks are not in the file.
    let experts = import(Target::Transformers, "{\"gradient_checkpointing\": true}", None).unwrap();
    assert!(experts.known.contains(&Field::Recompute));
    assert_eq!(experts.settings.recompute, [Recompute::Full]);
    let uniform = import(Target::Megatron, &block.replace("method block", "method uniform"), None).unwrap();
    assert!(uniform.check_one_recompute().is_ok());
}

#[test]
fn a_base_of_rotary_positions_is_written_exactly_or_refused() {
    const OPTIONS: Options = Options { checkpoint_interval: None, script: None, image: String::new() };
    let written = |target, theta: f64| {
        let mut model = catalog::model("tiny-llama").unwrap();
        model.positions = Positions::Rotary { theta };
        let stages = common::stages(&model, &[4], &[Recompute::None; 4]);
        export(
            &common::plan(model, "1x2xa100-80gb-sxm", Job::new(64, 64), split(2, 1, 1), stages),
            target,
            &OPTIONS,
        )
    };
    for target in [Target::Megatron, Target::MaxText] {
        for theta in [500_000.5, 1e20] {
            let errors = written(target, theta).unwrap_err();
            assert!(errors.iter().any(|error| error.field == "model.positions.theta"), "{errors:?}");
        }
        assert!(written(target, 500_000.0).unwrap().files[0].content.contains("500000"));
    }
    assert!(written(Target::Nanotron, 500_000.5).unwrap().files[0].content.contains("500000.5"));
}

#[test]
fn a_deepspeed_file_may_leave_out_the_whole_batch() {
    let text = "{\"train_micro_batch_size_per_gpu\": 4, \"gradient_accumulation_steps\": 2}";
    let imported = import(Target::DeepSpeed, text, None).unwrap();
    assert_eq!(imported.settings.micro_batch, 4);
    assert!(!imported.known.contains(&Field::GlobalBatch));
}

#[test]
fn arrays_do_not_nest() {
    for text in ["a=(b=(1))\n".to_owned(), "a=(".repeat(200_000)] {
        let error = megatron(&text).unwrap_err();
        assert!(error.problem.contains("an array inside an array on line 1"), "{error}");
    }
}

/// A script of twice the length costs about twice as much, not four times.
#[test]
fn a_strange_script_takes_little() {
    let scripts: [&dyn Fn(usize) -> String; 9] = [
        &|many| "(".repeat(many),
        &|many| format!("{} --seed 1", "then ".repeat(many)),
        &|many| format!("A=({})\n{}", "'' ".repeat(many), "x --seed $A \"${A[@]}\"\n".repeat(10)),
        &|many| format!("a{}", "-=".repeat(many)),
        &|many| format!("x --seed 1 {}", "'y --z' ".repeat(many)),
        &|many| "x.py --seed 1\n".repeat(many),
        &|many| (0..many).map(|index| format!("x{index}.py --seed 1\n")).collect(),
        &|many| "A=1 A+=2 A=$A$A\n".repeat(many),
        &|many| format!("{}1{}", "$((".repeat(many), "))".repeat(many)),
    ];
    const MIB: u64 = 1 << 20;
    for script in scripts {
        let [short, long] = [20_000, 40_000].map(script);
        let [little, more] = [&short, &long].map(|text| allocated(|| megatron(text)));
        let shown = &short[..40];
        assert!(more <= 3 * little + MIB, "{shown}…: {little} and {more} bytes");
        assert!(more <= 400 * MIB, "{shown}…: {more} bytes");
    }
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in "[-+a-c$\"'`\\\\{}()<>|&;=@*#!\\[\\]\n ]{0,80}") {
        let _ = megatron(&text);
        let _ = megatron(&format!("A=({text})\n{RUN} --seed 1 $A \"${{A[@]}}\""));
    }
}
