//! Malicious or malformed files: nothing in them is truncated, guessed, executed or allocated.

use crate::common;

use autodist_exporters::{Document, Exported, Options, Target, export, import};
use autodist_spec::{Hyperparameter, Job, ParallelStrategy, Plan, Recompute, catalog};
use serde_json::{Value, json};

const OPTIONS: Options = Options { checkpoint_interval: Some(500), script: None, image: String::new() };

fn trainers() -> impl Iterator<Item = Target> {
    Target::ALL.iter().copied().filter(|target| target.is_trainer())
}

/// A plan that the trainer supports.
fn plan(target: Target) -> Plan {
    let model = catalog::model("tiny-llama").unwrap();
    let mut job = Job::new(16, 64);
    job.gradient_clip = 0.5;
    job.given = Some(Hyperparameter::ALL.iter().copied().collect());
    job.learning_rate.total_steps = 300;
    // All targets but one support this stage; that one shards only the optimizer state.
    let zero_stage = if target == Target::Nanotron { 1 } else { 3 };
    let strategy = ParallelStrategy { zero_stage, shard: 2, ..ParallelStrategy::data_parallel(2, 2) };
    let recompute = vec![Recompute::None; model.layers as usize];
    let stages = common::stages(&model, &[model.layers], &recompute);
    common::plan(model, "1x2xh100-80gb-sxm", job, strategy, stages)
}

fn exported(plan: &Plan, target: Target) -> Exported {
    export(plan, target, &OPTIONS).unwrap_or_else(|refusals| panic!("{}: {refusals:?}", target.name()))
}

/// A valid file of the trainer.
fn file(target: Target) -> String {
    exported(&plan(target), target).files.remove(0).content
}

#[test]
fn a_name_stays_within_its_line_in_every_file() {
    // Files can no longer contain such a name; scripts are quoted correctly nevertheless.
    for end in ["\n", "\r\n", "\r", "\u{b}", "\u{85}", "\u{2028}", "\n#SBATCH --wrap=touch\n", "\0"] {
        for &target in Target::ALL {
            let mut named = plan(target);
            named.model.name = format!("a{end}touch HARM");
            named.cluster.name.clone_from(&named.model.name);
            let (clean, hostile) = (exported(&plan(target), target), exported(&named, target));
            for (clean, hostile) in clean.files.iter().zip(&hostile.files) {
                // A plan in the export is JSON, which escapes its strings.
                if hostile.name == "plan.json" {
                    continue;
                }
                let (lines, content) = (clean.content.lines().count(), &hostile.content);
                assert_eq!(content.lines().count(), lines, "{}, {end:?}: {content}", hostile.name);
                let odd = |c: char| c.is_control() && c != '\n';
                assert!(!content.contains(odd), "{}, {end:?}: {content}", hostile.name);
            }
        }
    }
}

/// The file with `value` instead of `right` for the `key`: as text of a command line, or a string or number
/// of a document.
fn with(target: Target, text: &str, key: &str, right: &Value, value: &Value) -> String {
    match target {
        Target::Megatron | Target::Torchtitan => {
            let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let flag = format!("--{key} {}", right.as_str().unwrap());
            assert!(text.contains(&flag), "no {flag} in {text}");
            text.replacen(&flag, &format!("--{key} '{plain}'"), 1)
        }
        Target::DeepSpeed | Target::Transformers | Target::Galvatron => {
            changed(serde_json::from_str(text).unwrap(), key, value).to_string()
        }
        // JSON is YAML; comments, of which one is read, stay.
        _ => {
            let comments: String =
                text.lines().filter(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect();
            comments + &changed(Document::of_yaml(text).unwrap().tree(), key, value).to_string()
        }
    }
}

fn changed(mut document: Value, key: &str, value: &Value) -> Value {
    let mut at = &mut document;
    for part in key.split('.') {
        at = at.get_mut(part).unwrap();
    }
    *at = value.clone();
    document
}

/// Keys of the file that are read, with their values.
fn understood(target: Target, text: &str) -> Vec<(String, Value)> {
    let document = match target {
        Target::Megatron | Target::Torchtitan => Document::of_flags(text).unwrap(),
        Target::DeepSpeed | Target::Transformers | Target::Galvatron => Document::of_json(text).unwrap(),
        _ => Document::of_yaml(text).unwrap(),
    };
    let others = import(target, text, Some(plan(target).model)).unwrap().others;
    let unread = |key| others.irrelevant.contains(key) || others.unknown.contains(key);
    document.entries().iter().filter(|(key, _)| !unread(key)).cloned().collect()
}

/// Keys whose values may be fractions.
const REAL: [&str; 30] = [
    "rotary-base",
    "norm-epsilon",
    "lr",
    "min-lr",
    "clip-grad",
    "adam-beta1",
    "adam-beta2",
    "adam-eps",
    "weight-decay",
    "optimizer.min_lr",
    "model.model_config.rope_theta",
    "optimizer.clip_grad",
    "optimizer.weight_decay",
    "rope_max_timescale",
    "per_device_batch_size",
    "gradient_clipping_threshold",
    "gradient_clipping",
    "max_grad_norm",
    "training.max_norm",
    "weight_decay",
    "learning_rate",
    "adam_b1",
    "adam_b2",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "learning_rate_final_fraction",
    "warmup_steps_fraction",
    "lr_scheduler.min_lr_factor",
    "lr_scheduler_kwargs.min_lr_rate",
];

/// Keys of which only the presence matters.
const ANY: [&str; 26] = [
    "attention-dropout",
    "hidden-dropout",
    "machine_rank",
    "num_machines",
    "fsdp_config.fsdp_version",
    "fsdp_config.version",
    "data_shuffle_seed",
    "vtp",
    "tp_consecutive_flags",
    "use_sp",
    "num_slices",
    "num_layers_per_pipeline_stage",
    "model.model_config.bos_token_id",
    "model.model_config.eos_token_id",
    "model.model_config.pretraining_tp",
    "model.model_config.initializer_range",
    "model.init_method.std",
    "zero_optimization.overlap_comm",
    "optimizer.accumulate_grad_in_fp32",
    "parallelism.pipeline_parallel_first_stage_less_layers",
    "parallelism.pipeline_parallel_last_stage_less_layers",
    "checkpoints.checkpoints_path",
    "ckpt-format",
    "dataset.seq_length",
    "overlap-grad-reduce",
    "overlap-param-gather",
];

#[test]
fn a_number_is_a_count_as_it_stands_or_refused_by_its_key() {
    let texts = [
        "8.9",
        "-2",
        "inf",
        "nan",
        "1e308",
        "0x10",
        " 8 ",
        "8 ",
        "+8",
        "08",
        "1_0",
        "8e0",
        "٨",
        "",
        "99999999999999999999",
    ];
    let numbers =
        [json!(8.9), json!(-2), json!(1e308), json!(4_294_967_296_u64), json!(u64::MAX), json!([8])];
    let mut tried = 0;
    for target in trainers() {
        let text = file(target);
        let flags = matches!(target, Target::Megatron | Target::Torchtitan);
        for (key, said) in understood(target, &text) {
            let right = said.as_f64().or_else(|| said.as_str().filter(|_| flags)?.parse().ok());
            if right.is_none() || ANY.contains(&key.as_str()) {
                continue;
            }
            let real =
                right.unwrap().fract() != 0.0 || REAL.iter().any(|name| key == *name || key.ends_with(name));
            let all = texts.iter().map(|text| json!(text)).chain(numbers.iter().filter(|_| !flags).cloned());
            for value in all {
                // Floating-point values may be any of these.
                let plain = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                if real && plain.parse::<f64>().is_ok_and(|number| number.abs() <= 1e30) {
                    continue;
                }
                // Its word for no clipping.
                if key == "training.max_norm" && plain == "inf" {
                    continue;
                }
                // Seeds have 64 bits.
                if key.contains("seed") && value.as_u64().is_some() {
                    continue;
                }
                // Buckets are limited by the memory of a device.
                if key.ends_with("bucket_size") && value.as_u64().is_some_and(|number| number < 1 << 38) {
                    continue;
                }
                let hostile = with(target, &text, &key, &said, &value);
                let error = import(target, &hostile, Some(plan(target).model))
                    .err()
                    .unwrap_or_else(|| panic!("{}: {key} = {value} was taken", target.name()));
                let last = key.rsplit('.').next().unwrap();
                assert!(error.field.contains(last), "{}: {key} = {value}: {error}", target.name());
                assert!(!error.hint.is_empty(), "{error}");
                tried += 1;
            }
        }
    }
    assert!(tried > 500, "only {tried} were tried");
}

#[test]
fn what_yaml_calls_no_number_is_refused_and_not_left_out() {
    for value in [".inf", "-.inf", ".nan"] {
        let text = format!("parallelism:\n  tp: {value}\n  dp: 2\n");
        let error = import(Target::Nanotron, &text, None).unwrap_err();
        assert_eq!(error.field, "parallelism.tp", "{error}");
    }
}

#[test]
fn numbers_that_do_not_divide_each_other_are_refused_and_not_cut_off() {
    let megatron = "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --vocab-size 64 --seq-length 8 \
                    --max-position-embeddings 8 --micro-batch-size 1 --global-batch-size 8";
    for (target, text, expected) in [
        (Target::Megatron, format!("{megatron} --pipeline-model-parallel-size 2 --pipeline-model-parallel-layout 'Et*3|t*3|t*2,L'"), "pipeline-model-parallel-layout"),
        (Target::Megatron, format!("{megatron} --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3"), "num-layers"),
        (Target::Megatron, format!("{megatron} --nproc-per-node 8 --tensor-model-parallel-size 3"), "nproc-per-node"),
        (Target::Megatron, megatron.replace("heads 4", "heads 5"), "hidden-size"),
        (Target::Megatron, format!("{megatron} --nproc-per-node 8 --use-distributed-optimizer --num-distributed-optimizer-instances 3"), "data-parallel ranks"),
        (Target::Megatron, format!("{megatron} --nproc-per-node 67108864 --nnodes 67108864"), "nproc-per-node"),
        (Target::DeepSpeed, "{\"train_batch_size\": 8, \"train_micro_batch_size_per_gpu\": 1, \"gradient_accumulation_steps\": 3}".to_owned(), "train_batch_size"),
        (Target::DeepSpeed, "{\"train_batch_size\": 8, \"train_micro_batch_size_per_gpu\": 65536, \"gradient_accumulation_steps\": 65536}".to_owned(), "train_micro_batch_size_per_gpu"),
        (Target::MaxText, "{per_device_batch_size: 0.3, ici_data_parallelism: 2}".to_owned(), "per_device_batch_size"),
        (Target::MaxText, "{per_device_batch_size: 1, ici_data_parallelism: 2, gradient_accumulation_steps: 1, ici_pipeline_parallelism: 2, num_pipeline_microbatches: 3}".to_owned(), "per_device_batch_size"),
        (Target::MaxText, "{per_device_batch_size: 1e20, ici_data_parallelism: 2}".to_owned(), "per_device_batch_size"),
        (Target::Accelerate, "{distributed_type: FSDP, num_processes: 8, parallelism_config: {parallelism_config_tp_size: 3}}".to_owned(), "num_processes"),
        (Target::Nanotron, "{parallelism: {dp: 65536}, tokens: {micro_batch_size: 65536, batch_accumulation_per_replica: 65536}}".to_owned(), "batch_accumulation_per_replica"),
        (Target::Nanotron, "{parallelism: {dp: 2}, optimizer: {zero_stage: 7}}".to_owned(), "optimizer.zero_stage"),
        (Target::Galvatron, "{\"pp_deg\": 1, \"checkpoint\": \"1,2\"}".to_owned(), "checkpoint"),
        (Target::Torchtitan, "--parallelism.pipeline_parallel_degree 2\nPARTS = [[\"layers.0\"], [\"layers.1\"], [\"layers.2\"]]\n".to_owned(), "parts of the pipeline"),
        (Target::Transformers, "{\"optim\": \"sgd\", \"optim_args\": \"momentum=most\", \"bf16\": true}".to_owned(), "optim_args"),
    ] {
        let error = import(target, &text, None).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert!(error.field.contains(expected), "{text}: {error}");
        assert!(!error.hint.is_empty(), "{error}");
    }
}

#[test]
fn stages_that_are_not_those_of_the_model_are_refused() {
    let layers = plan(Target::Megatron).model.layers;
    let megatron = "--pipeline-model-parallel-size 2 --micro-batch-size 1 --global-batch-size 8";
    for (target, text, keys) in [
        (
            Target::Megatron,
            format!("{megatron} --pipeline-model-parallel-layout 'E,t|L'"),
            "pipeline-model-parallel-layout",
        ),
        (
            Target::MegatronBridge,
            "{model: {pipeline_model_parallel_size: 2, pipeline_model_parallel_layout: 'E,t|t*90,L'}}"
                .to_owned(),
            "model.pipeline_model_parallel_layout",
        ),
        (Target::Galvatron, "{\"pp_deg\": 2, \"pp_division\": \"1,90\"}".to_owned(), "pp_division"),
        (Target::Galvatron, format!("{{\"pp_deg\": 2, \"pp_division\": \"{layers}\"}}"), "pp_division"),
        (
            Target::Galvatron,
            format!("{{\"pp_deg\": 1, \"pp_division\": \"{layers}\", \"checkpoint\": \"1\"}}"),
            "checkpoint",
        ),
        (
            Target::Torchtitan,
            "--parallelism.pipeline_parallel_degree 2\nPARTS = [[\"layers.0\"], [\"layers.1\"]]\n".to_owned(),
            "module_fqns_per_model_part",
        ),
    ] {
        let imported = import(target, &text, Some(plan(target).model)).unwrap();
        let error = imported.check_stages(layers).err().unwrap_or_else(|| panic!("{text} was taken"));
        assert_eq!(error.field, keys, "{error}");
    }
}

#[test]
fn texts_that_hide_something_are_refused_by_their_key() {
    for hidden in ["\n", "\u{1b}[31m", "\u{202e}", "\u{2028}", "\u{85}", "\u{7f}"] {
        let quoted = json!(format!("adam{hidden}w"));
        let megatron = format!("--micro-batch-size 1 --optimizer 'adam{hidden}w'");
        let error = import(Target::Megatron, &megatron, None).unwrap_err();
        assert_eq!(error.field, "optimizer", "{error}");
        let key = format!("--micro-batch-size 1 '--colour{hidden}' 3");
        assert_eq!(import(Target::Megatron, &key, None).unwrap_err().field, "key");
        let json = format!("{{\"train_batch_size\": 8, \"optimizer\": {{\"type\": {quoted}}}}}");
        assert_eq!(import(Target::DeepSpeed, &json, None).unwrap_err().field, "optimizer.type");
    }
    // Also in a key that is never read, whose text may have several lines.
    let lines = "{distributed_type: FSDP, other: {list: [a, \"a\\nb\"]}}";
    assert_eq!(import(Target::Accelerate, lines, None).unwrap().others.unknown, ["other.list"]);
    for hidden in ["\u{1b}[31m", "\u{202e}"] {
        let quoted = json!(format!("a{hidden}b"));
        let yaml = format!("{{distributed_type: FSDP, other: {{list: [a, {quoted}]}}}}");
        let error = import(Target::Accelerate, &yaml, None).unwrap_err();
        assert_eq!(error.field, "other.list[1]", "{error}");
        assert!(!error.to_string().lines().next().unwrap().contains(char::is_control), "{error:?}");
    }
}

/// Small files must not cause large costs: each of these would be gigabytes or minutes.
#[test]
fn a_small_file_takes_little() {
    // Time is linear in the number of keys, not quadratic.
    let keys: String = (0..100_000).map(|index| format!("k{index}: {index}\n")).collect();
    let imported = import(Target::Nanotron, &format!("{keys}parallelism: {{dp: 2}}\n"), None).unwrap();
    assert_eq!((imported.settings.data, imported.others.unknown.len()), (2, 100_000));
    let flags: String = (0..50_000).map(|index| format!("--k{index} {index} ")).collect();
    assert_eq!(
        import(Target::Megatron, &format!("{flags} --seed 1"), None).unwrap().others.unknown.len(),
        50_000
    );
    // More values than real files have.
    let list = format!("{{train_batch_size: 8, x: [{}]}}", "1,".repeat(600_000));
    assert!(import(Target::Nanotron, &list, None).unwrap_err().problem.contains("values"));
    // Long paths, multiplied by the number of keys below them.
    let mut deep = format!(
        "{{{}}}",
        (0..20_000).map(|index| format!("\"k{index}\":1,")).collect::<String>() + "\"z\":1"
    );
    for _ in 0..100 {
        deep = format!("{{\"{}\": {deep}}}", "p".repeat(200));
    }
    assert!(import(Target::DeepSpeed, &deep, None).unwrap_err().problem.contains("bytes of keys"));
    // A variable of a script, in as many flags as fit.
    let long = "v".repeat(10_000);
    let flags: String = (0..20_000).map(|index| format!("--k{index} $V ")).collect();
    assert!(
        import(Target::Megatron, &format!("V={long}\n{flags}"), None).unwrap_err().problem.contains("bytes")
    );
    let long = "v".repeat(100_000);
    assert!(import(Target::Megatron, &format!("V={long}\n--k $V-$V --seed 1"), None).is_err());
    // Numbers of blocks that would become lists.
    for (target, text) in [
        (Target::Megatron, "--num-layers 4294967295 --hidden-size 64 --num-attention-heads 4"),
        (Target::Nanotron, "{model: {model_config: {num_hidden_layers: 4294967295, hidden_size: 64}}}"),
        (Target::MaxText, "{base_num_decoder_layers: 4294967295, base_emb_dim: 64}"),
        (Target::DeepSpeed, "{\"activation_checkpointing\": {\"number_checkpoints\": 4294967295}}"),
        (Target::Galvatron, "{\"pp_division\": \"4294967295,4294967295\"}"),
        (Target::Megatron, "--decoder-first-pipeline-num-layers 4294967295"),
    ] {
        let error = import(target, text, None).unwrap_err();
        assert!(error.problem.contains("10000"), "{text}: {error}");
    }
    // Numbers of chunks that would become lists.
    for pipeline in ["67108864", "4096"] {
        let text = format!(
            "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --pipeline-model-parallel-size {pipeline} \
             --decoder-first-pipeline-num-layers 1 --num-virtual-stages-per-pipeline-rank 1"
        );
        assert!(import(Target::Megatron, &text, None).is_err());
        let equal = text.replace("--decoder-first-pipeline-num-layers 1", "");
        assert!(import(Target::Megatron, &equal, None).unwrap().settings.stages.is_empty());
    }
}

#[test]
fn an_error_of_a_parser_is_cut_off() {
    let long = "x".repeat(200_000);
    for (target, text) in [
        (Target::Nanotron, format!("a: {long}: {long}")),
        (Target::Nanotron, long.clone()),
        (Target::DeepSpeed, format!("{{\"{}\"}}", &long[..100])),
        (Target::DeepSpeed, format!("\"{}\"", &long[..1000])),
        (Target::Nanotron, format!("parallelism: {{tp: {}}}", &long[..10_000])),
        (Target::Megatron, format!("--micro-batch-size {}", &long[..10_000])),
    ] {
        let error = import(target, &text, None).unwrap_err().to_string();
        assert!(error.len() < 1500, "{}", error.len());
    }
}
