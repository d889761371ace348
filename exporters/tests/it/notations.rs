//! The notations that trainers' files have: what each means is what its trainer makes of it.

use autodist_exporters::{CommandLine, Field, Imported, Target, import, import_with};
use autodist_spec::{InputError, ModelSpec, Precision, Recompute, catalog};

const GPT: &str = "--num-layers 24 --hidden-size 2048 --num-attention-heads 16 --seq-length 2048 \
                   --max-position-embeddings 2048 --vocab-size 50304 --bf16 --micro-batch-size 4 --global-batch-size 64";

fn small() -> Option<ModelSpec> {
    Some(catalog::model("tiny-llama").unwrap())
}

/// With files in the same folder, on 8 devices.
fn with_files(target: Target, text: &str, files: &[(&str, &str)]) -> Result<Imported, InputError> {
    let open = |name: &str| {
        let found = files.iter().find(|(other, _)| *other == name);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| InputError::new("", name, "is not there"))
    };
    let command = CommandLine { devices: Some(8), ..CommandLine::default() };
    import_with(target, text, None, command, &open)
}

fn degrees(imported: &Imported) -> [u32; 3] {
    let settings = &imported.settings;
    [settings.tensor, settings.pipeline, settings.data]
}

#[test]
fn scripts_are_read_as_bash_would_run_them() {
    for script in [
        format!(
            "TP=${{TP:-2}}\nPP=${{PP-2}}\npretrain.py {GPT} --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP"
        ),
        format!(
            "pretrain.py {GPT} --tensor-model-parallel-size ${{TP:=2}} --pipeline-model-parallel-size $TP"
        ),
        format!(
            "A=1; pretrain.py {GPT} --tensor-model-parallel-size $((A * 2)) --pipeline-model-parallel-size $(( ($A + 3) / 2 ))"
        ),
        format!(
            "ARGS=()\nARGS+=(--tensor-model-parallel-size 2)\nARGS+=(\"--pipeline-model-parallel-size 2\")\npretrain.py {GPT} ${{ARGS[@]}}"
        ),
        format!(
            "ARGS=\"\n --tensor-model-parallel-size 2 \\\n --pipeline-model-parallel-size 2\n\"\nrun_cmd=\"pretrain.py {GPT} $ARGS\"\neval $run_cmd"
        ),
        format!(
            "export TP=${{1:-2}}\npretrain.py {GPT} --tensor-model-parallel-size $TP --pipeline-model-parallel-size ${{2:-${{TP}}}}"
        ),
        format!(
            "SIZE=7B\ncase $SIZE in\n 1B) TP=1;;\n 7B) TP=2;;\nesac\npretrain.py {GPT} --tensor-model-parallel-size $TP ${{PP:+--pipeline-model-parallel-size 4}} --pipeline-model-parallel-size 2"
        ),
    ] {
        let imported =
            with_files(Target::Megatron, &script, &[]).unwrap_or_else(|error| panic!("{script}\n{error}"));
        assert_eq!(degrees(&imported), [2, 2, 2], "{script}");
    }
}

#[test]
fn scripts_that_are_read_in_or_started_count() {
    let train = format!(
        "TP=$1\n. $(dirname $0)/sizes.sh\npretrain.py {GPT} --tensor-model-parallel-size $TP --pipeline-model-parallel-size $PP"
    );
    let files = [
        ("train.sh", train.as_str()),
        ("sizes.sh", "PP=${STAGES:-1}"),
        ("loop.sh", "source loop.sh; bash loop.sh"),
    ];
    let imported = with_files(Target::Megatron, "export STAGES=2\nbash train.sh 2", &files).unwrap();
    assert_eq!(degrees(&imported), [2, 2, 2]);
    // Without the argument, its flag is asked for by name.
    let error = with_files(Target::Megatron, "STAGES=2 ./train.sh", &files).unwrap_err();
    assert_eq!(error.field, "tensor-model-parallel-size", "{error}");
    assert!(error.hint.contains("--tp"), "{error}");
    // Scripts that read themselves end.
    with_files(Target::Megatron, "source loop.sh", &files).unwrap_err();
}

#[test]
fn a_configuration_that_the_script_writes_is_read() {
    let script = format!(
        "ZERO=2\ncat <<EOT > ds.json\n{{\"zero_optimization\": {{\"stage\": $ZERO}}, \"train_micro_batch_size_per_gpu\": 4, \"steps_per_print\": $STEPS}}\nEOT\n\
         deepspeed pretrain.py {GPT} --deepspeed --deepspeed_config ds.json --num-key-value-heads 4 --normalization rmsnorm"
    );
    let imported = with_files(Target::Megatron, &script, &[]).unwrap();
    assert_eq!((imported.settings.zero_stage, imported.deepspeed), (2, true));
    let model = imported.settings.model.unwrap();
    assert_eq!(model.kv_heads, 4);
    let other = script.replace("per_gpu\": 4", "per_gpu\": 2");
    assert!(with_files(Target::Megatron, &other, &[]).unwrap_err().problem.contains("must agree"));
}

#[test]
fn a_variable_whose_flags_are_not_known_asks_for_those_that_matter() {
    let script = format!(
        "if [ -f x ]; then MORE=\"--recompute-activations --log-interval 1\"; fi\npretrain.py {GPT} $MORE"
    );
    let error = with_files(Target::Megatron, &script, &[]).unwrap_err();
    assert_eq!(error.field, "recompute-activations", "{error}");
    assert!(error.hint.contains("--recompute"), "{error}");
    // A variable that only a branch assigns which does not run is empty.
    let skipped = script.replace("[ -f x ]", "[ 1 = 2 ]");
    with_files(Target::Megatron, &skipped, &[]).unwrap();
    let harmless = script.replace("--recompute-activations ", "");
    with_files(Target::Megatron, &harmless, &[]).unwrap();
}

#[test]
fn toml_of_torchtitan_is_read_with_its_older_keys() {
    let new = "[model]\nname = \"llama3\"\nflavor = \"8B\"\n[training]\nlocal_batch_size = 2\nseq_len = 8192\n[parallelism]\n\
               data_parallel_shard_degree = -1\ntensor_parallel_degree = 2\n[activation_checkpoint]\nmode = \"full\"\n\
               [float8]\nenable_fsdp_float8_all_gather = true\n[optimizer]\nlr = 3e-4\n";
    let old = "[model]\nname = \"llama3\"\nflavor = \"8B\"\n[training]\nbatch_size = 2\nseq_len = 8192\n\
               data_parallel_degree = -1\ntensor_parallel_degree = 2\n[experimental]\npipeline_parallel_degree = 1\n\
               [activation_checkpoint]\nmode = \"full\"\n";
    for text in [new, old] {
        let imported =
            with_files(Target::Torchtitan, text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let settings = &imported.settings;
        assert_eq!(degrees(&imported), [2, 1, 4], "{text}");
        assert_eq!(
            (settings.micro_batch, settings.seq_len, settings.shard, settings.zero_stage),
            (2, 8192, 4, 3)
        );
        assert_eq!(settings.model.as_ref().map(|model| model.name.as_str()), Some("llama3-8b"));
        assert!(settings.recompute.iter().all(|one| *one == Recompute::Full));
        assert_eq!(settings.precision, Precision::Bf16);
    }
    let fp8 = new.replace("flavor = \"8B\"", "flavor = \"8B\"\nconverters = [\"float8\"]");
    assert_eq!(with_files(Target::Torchtitan, &fp8, &[]).unwrap().settings.precision, Precision::Fp8);
    // Without the section, its default is selective.
    let without = old.replace("[activation_checkpoint]\nmode = \"full\"\n", "");
    let imported = with_files(Target::Torchtitan, &without, &[]).unwrap();
    assert!(imported.settings.recompute.iter().all(|one| *one == Recompute::Selective));
    // A command line that names the file changes it.
    let script = "CONFIG_FILE=./llama.toml ./run_train.sh --training.local_batch_size=1";
    let imported = with_files(Target::Torchtitan, script, &[("./llama.toml", new)]).unwrap();
    assert_eq!((imported.settings.micro_batch, imported.settings.tensor), (1, 2));
}

#[test]
fn maxtext_is_read_by_its_names_its_command_lines_and_its_defaults() {
    let named = "base_config: base.yml\nmodel_name: llama3.1-8b\nper_device_batch_size: 4\nmax_target_length: 8_192\n";
    let imported = with_files(Target::MaxText, named, &[]).unwrap();
    let settings = &imported.settings;
    assert_eq!(settings.model.as_ref().map(|model| model.name.as_str()), Some("llama3.1-8b"));
    assert_eq!(
        (settings.seq_len, settings.micro_batch, settings.global_batch, settings.shard),
        (8192, 4, 32, 8)
    );
    let script = "#!/bin/bash\npython3 -m MaxText.train MaxText/configs/base.yml model_name=llama2-7b per_device_batch_size=2 \\\n  \
                  ici_tensor_parallelism=2 ici_fsdp_parallelism=-1 max_target_length=2048 run_name=$1";
    let imported = with_files(Target::MaxText, script, &[]).unwrap();
    assert_eq!(degrees(&imported), [2, 1, 4]);
    assert_eq!(imported.settings.global_batch, 16);
    // base.yml: 12 sequences a device.
    let imported = with_files(Target::MaxText, "model_name: llama2-7b", &[]).unwrap();
    assert_eq!(imported.settings.global_batch, 96);
    let extended = "base_config: fleet.yml\nmodel_name: llama2-7b\n";
    let fleet = [("fleet.yml", "base_config: base.yml\nici_tensor_parallelism: 4\nmodel_name: gpt3-175b\n")];
    let imported = with_files(Target::MaxText, extended, &fleet).unwrap();
    assert_eq!((imported.settings.tensor, imported.settings.model.unwrap().name.as_str()), (4, "llama2-7b"));
}

#[test]
fn recipes_of_mixed_precision_are_read_and_experts_of_nanotron() {
    for (name, precision) in [
        ("bf16_mixed", Precision::Bf16),
        ("bf16-mixed", Precision::Bf16),
        ("fp16_mixed", Precision::Fp16),
        ("bf16_with_fp8_current_scaling_mixed", Precision::Fp8),
        ("bf16_with_mxfp8_mixed", Precision::Fp8),
    ] {
        let text = format!("{{model: {{tensor_model_parallel_size: 2}}, mixed_precision: {name}}}");
        assert_eq!(
            import(Target::MegatronBridge, &text, small()).unwrap().settings.precision,
            precision,
            "{name}"
        );
    }
    let four = "{model: {tensor_model_parallel_size: 2}, mixed_precision: bf16_with_nvfp4_mixed}";
    assert_eq!(import(Target::MegatronBridge, four, small()).unwrap_err().field, "mixed_precision");
    let text = "model: {model_config: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, intermediate_size: 128, \
                vocab_size: 64, moe_config: {num_experts: 8, top_k: 2}}}\nparallelism: {dp: 8}";
    let experts =
        import(Target::Nanotron, text, None).unwrap().settings.model.unwrap().block(1).experts.unwrap();
    assert_eq!((experts.count, experts.active, experts.shared_ffn), (8, 2, 0));
}

#[test]
fn arguments_of_transformers_are_read_as_yaml_and_from_a_command_line() {
    let yaml = "model_name_or_path: Qwen/Qwen2.5-7B\nper_device_train_batch_size: 2\ngradient_accumulation_steps: 4\nbf16: yes\n\
                gradient_checkpointing: true\nlearning_rate: 1.0e-5\n";
    let shell = "accelerate launch train.py --model_name_or_path Qwen/Qwen2.5-7B --per_device_train_batch_size 2 \\\n \
                 --gradient_accumulation_steps 4 --bf16 True --gradient_checkpointing --learning_rate 1e-5";
    for text in [yaml, shell] {
        let imported =
            with_files(Target::Transformers, text, &[]).unwrap_or_else(|error| panic!("{text}\n{error}"));
        let settings = &imported.settings;
        assert_eq!(
            (settings.micro_batch, settings.global_batch, settings.precision),
            (2, 64, Precision::Bf16)
        );
        assert_eq!(settings.model.as_ref().map(|model| model.name.as_str()), Some("qwen2.5-7b"));
        assert!(imported.known.contains(&Field::Model));
    }
}
