//! Models whose blocks differ, in trainers' files.

use crate::common;
use crate::common::split;
use autodist_exporters::{Exported, Options, Target, export, import};
use autodist_spec::{Addition, Check, InputError, Job, ModelSpec, ParallelStrategy, Recompute, catalog};

fn exported(model: &ModelSpec, target: Target) -> Result<Exported, Vec<InputError>> {
    let strategy = ParallelStrategy { sequence_parallel: true, ..split(4, 2, 1) };
    let recompute = vec![Recompute::None; model.layers as usize];
    let stages = common::stages(model, &[model.layers], &recompute);
    let plan = common::plan(model.clone(), "1x8xh100-80gb-sxm", Job::new(32, 8192), strategy, stages);
    export(&plan, target, &Options { checkpoint_interval: None, script: None, image: String::new() })
}

fn megatron(flags: &str) -> Result<ModelSpec, InputError> {
    let text = format!(
        "torchrun --nproc-per-node 8 pretrain_gpt.py --num-layers 6 --hidden-size 64 --num-attention-heads 4 \
         --ffn-hidden-size 96 --vocab-size 128 --max-position-embeddings 512 --seq-length 512 --swiglu \
         --normalization RMSNorm --position-embedding-type rope --disable-bias-linear --micro-batch-size 1 {flags}"
    );
    Ok(import(Target::Megatron, &text, None)?.settings.model.unwrap())
}

#[test]
fn megatron_files_describe_the_blocks_of_models() {
    for name in [
        "mistral-7b",
        "mixtral-8x7b",
        "qwen3-30b-a3b",
        "deepseek-moe-16b",
        "deepseek-v2-lite",
        "deepseek-v3",
        "llama4-maverick",
    ] {
        let model = catalog::model(name).unwrap();
        let exported = exported(&model, Target::Megatron).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        let read = import(Target::Megatron, &exported.files[0].content, None).unwrap();
        let read = ModelSpec { name: name.to_owned(), ..read.settings.model.unwrap() };
        read.check().unwrap();
        let blocks =
            |model: &ModelSpec| -> Vec<_> { (1..=model.layers as usize).map(|l| model.block(l)).collect() };
        assert_eq!(blocks(&read), blocks(&model), "{name}: {}", exported.files[0].content);
        assert_eq!(read.additions, model.additions);
        assert_eq!(read.total_parameters(), model.total_parameters(), "{name}");
    }
}

#[test]
fn lists_and_integers_of_megatron_say_which_blocks_are_meant() {
    let experts = "--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 32";
    let sparse = |flags: &str| -> Vec<bool> {
        let model = megatron(&format!("{experts} {flags}")).unwrap();
        (1..=6).map(|layer| model.block(layer).experts.is_some()).collect()
    };
    assert_eq!(sparse(""), [true; 6]);
    assert_eq!(sparse("--moe-layer-freq 1"), [true; 6]);
    // The first of every two blocks.
    assert_eq!(sparse("--moe-layer-freq 2"), [true, false, true, false, true, false]);
    assert_eq!(sparse("--moe-layer-freq '([0]*2+[1]*4)'"), [false, false, true, true, true, true]);
    let windows = |flags: &str| -> Vec<Option<u32>> {
        let model = megatron(&format!("--window-size 63,0 {flags}")).unwrap();
        (1..=6).map(|layer| model.block(layer).window).collect()
    };
    let (local, global) = (Some(64), None);
    assert_eq!(windows(""), [local; 6]);
    // The last of every three blocks has full attention.
    assert_eq!(windows("--window-attn-skip-freq 3"), [local, local, global, local, local, global]);
    assert_eq!(windows("--window-attn-skip-freq '[1,0]*3'"), [local, global, local, global, local, global]);
    for (flags, field) in [
        (format!("{experts} --moe-layer-freq '[0]*3'"), "moe-layer-freq"),
        (format!("{experts} --moe-layer-freq '[2]*6'"), "moe-layer-freq"),
        (format!("{experts} --moe-layer-freq '[1]*6+x'"), "moe-layer-freq"),
        ("--window-size 63,1".to_owned(), "window-size"),
        ("--window-size x".to_owned(), "window-size"),
        ("--multi-latent-attention --rope-type other".to_owned(), "rope-type"),
    ] {
        let error = megatron(&flags).unwrap_err();
        assert!(error.field == field && !error.hint.is_empty(), "{flags}: {error}");
    }
}

#[test]
fn what_a_file_does_not_describe_is_refused_by_name() {
    for (name, field) in [("gemma2-9b", "post_norm"), ("gpt-oss-20b", "output_bias")] {
        let refusals = exported(&catalog::model(name).unwrap(), Target::Megatron).unwrap_err();
        let refusal = refusals.iter().find(|error| error.value == field);
        let refusal = refusal.unwrap_or_else(|| panic!("{name}: {refusals:?}"));
        assert!(refusal.field == "model.additions" && !refusal.hint.is_empty(), "{refusal}");
    }
    // Two widths of MLPs, and two numbers of heads.
    let model = catalog::model("llama3-8b").unwrap();
    let usual = model.block(1);
    for other in
        [autodist_spec::BlockSpec { ffn: 1024, ..usual }, autodist_spec::BlockSpec { heads: 16, ..usual }]
    {
        let model = model.clone().with_blocks(&[usual, other]);
        let refusals = exported(&model, Target::Megatron).unwrap_err();
        assert!(refusals.iter().any(|error| error.field == "model.blocks"), "{refusals:?}");
    }
    let [short, shorter] =
        [2048, 1024].map(|window| autodist_spec::BlockSpec { window: Some(window), ..usual });
    let windows = model.clone().with_blocks(&[short, shorter]);
    let refusals = exported(&windows, Target::Megatron).unwrap_err();
    let [InputError { field, problem, .. }] = refusals.as_slice() else { panic!("{refusals:?}") };
    assert!(field == "model.blocks" && problem.contains("different windows"), "{refusals:?}");
    let scaled = ModelSpec { additions: vec![Addition::ScaledPositions], ..model.clone() };
    for target in Target::ALL.iter().copied().filter(|target| target.is_trainer()) {
        let refusals = exported(&scaled, target).err().unwrap_or_default();
        let refusal = refusals.iter().find(|error| error.field == "model.additions");
        // The others leave the model to the script.
        let describes = matches!(target, Target::Megatron | Target::Nanotron | Target::MaxText);
        assert_eq!(refusal.is_some(), describes, "{}: {refusals:?}", target.name());
        assert!(refusal.is_none_or(|error| error.hint.contains("rope_type")), "{refusals:?}");
        assert!(!refusals.iter().any(|error| error.problem.contains("has additions")), "{refusals:?}");
        if !describes || target == Target::Megatron {
            // Megatron has a setting; where the training script builds the model, it may be any.
            continue;
        }
        let what =
            [("gemma2-9b", "blocks that differ"), ("mistral-7b", "window"), ("deepseek-v3", "experts")];
        for (name, what) in what {
            let refusals = exported(&catalog::model(name).unwrap(), target).unwrap_err();
            assert!(
                refusals.iter().any(|error| error.problem.contains(what)),
                "{}: {refusals:?}",
                target.name()
            );
        }
    }
}
