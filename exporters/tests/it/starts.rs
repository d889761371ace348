//! What trainers would stop at, or train otherwise, although their parsers take it.

use crate::common;
use crate::common::{split, zero};

use autodist_exporters::{Exported, Options, Target, export, import};
use autodist_spec::{
    CostSource, DeviceKind, Hyperparameter, InputError, Job, Optimizer, ParallelStrategy, Plan, Recompute,
    ScheduleKind, catalog,
};

const OPTIONS: Options = Options { checkpoint_interval: Some(100), script: None, image: String::new() };

fn plan(strategy: ParallelStrategy, blocks: &[u32], mode: Recompute) -> Plan {
    let mut model = catalog::model("tiny-llama").unwrap();
    model.layers = blocks.iter().sum();
    let given = Some(Hyperparameter::ALL.iter().copied().collect());
    let job = Job { given, ..Job::new(8, 64) };
    let stages = common::stages(&model, blocks, &vec![mode; model.layers as usize]);
    let cluster = format!("1x{}xa100-80gb-sxm", strategy.devices());
    common::plan(model, &cluster, job, strategy, stages)
}

fn simple() -> Plan {
    plan(split(2, 1, 1), &[4], Recompute::None)
}

/// The content of all files.
fn text(plan: &Plan, target: Target) -> String {
    let Exported { files, .. } = export(plan, target, &OPTIONS).unwrap();
    files.into_iter().map(|file| file.content).collect()
}

#[track_caller]
fn refused(plan: &Plan, target: Target, field: &str, word: &str) {
    let refusals = export(plan, target, &OPTIONS).unwrap_err();
    let found = refusals.iter().any(|error: &InputError| {
        error.field == field && error.problem.contains(word) && !error.hint.is_empty()
    });
    assert!(found, "{}: {refusals:?}", target.name());
}

#[test]
fn no_clipping_is_written_in_each_trainers_own_word() {
    let mut plan = simple();
    plan.job.gradient_clip = 0.0;
    for (target, words) in [
        (Target::Torchtitan, "--training.max_norm inf"),
        (Target::Nanotron, "clip_grad: null"),
        (Target::Megatron, "--clip-grad 0.0"),
        (Target::MegatronBridge, "clip_grad: 0.0"),
        (Target::DeepSpeed, "\"gradient_clipping\": 0.0"),
        (Target::Transformers, "\"max_grad_norm\": 0.0"),
        (Target::MaxText, "gradient_clipping_threshold: 0.0"),
    ] {
        let text = text(&plan, target);
        assert!(text.contains(words), "{}:\n{text}", target.name());
    }
    let script = "torchrun --nproc-per-node 2 -m torchtitan.train --training.max_norm 0.0";
    let error = import(Target::Torchtitan, script, None).unwrap_err();
    assert!(error.problem.contains("nothing is learned") && error.hint.contains("inf"), "{error}");
}

#[test]
fn schedules_have_the_micro_batches_that_they_need() {
    let few = ParallelStrategy { micro_batch: 8, ..split(1, 1, 4) };
    refused(&plan(few.clone(), &[1; 4], Recompute::None), Target::Torchtitan, "pipeline", "1F1B");
    let gpipe = ParallelStrategy { schedule: ScheduleKind::GPipe, ..few };
    text(&plan(gpipe, &[1; 4], Recompute::None), Target::Torchtitan);
    // Four micro-batches on three stages.
    let rest = ParallelStrategy { virtual_stages: 2, schedule: ScheduleKind::Interleaved, ..split(1, 1, 3) };
    // A round larger than the stages is Megatron's own setting.
    let megatron = text(&plan(rest.clone(), &[1; 6], Recompute::None), Target::Megatron);
    assert!(megatron.contains("--microbatch-group-size-per-virtual-pipeline-stage 4"), "{megatron}");
    text(&plan(rest, &[1; 6], Recompute::None), Target::Torchtitan);
}

#[test]
fn tied_embeddings_have_no_pipeline_in_torchtitan() {
    let mut tied = plan(split(1, 1, 2), &[2, 2], Recompute::None);
    tied.model.tied_embeddings = true;
    refused(&tied, Target::Torchtitan, "pipeline", "tied embedding");
    let mut tied = simple();
    tied.model.tied_embeddings = true;
    text(&tied, Target::Torchtitan);
}

#[test]
fn sgd_with_sharded_state_is_allowed_or_refused() {
    for stage in 1..=3 {
        let mut sgd = plan(zero(stage, split(2, 1, 1)), &[4], Recompute::None);
        sgd.job.optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };
        assert!(text(&sgd, Target::DeepSpeed).contains("\"zero_allow_untested_optimizer\": true"));
        refused(&sgd, Target::Megatron, "optimizer", "SGD");
        refused(&sgd, Target::MegatronBridge, "optimizer", "SGD");
    }
}

#[test]
fn recomputation_is_switched_on_once_and_where_it_works() {
    let full = plan(zero(3, split(2, 1, 1)), &[4], Recompute::Full);
    let transformers = text(&full, Target::Transformers);
    assert!(transformers.contains("\"gradient_checkpointing\": false"), "{transformers}");
    assert!(transformers.contains("\"activation_checkpointing\": true"), "{transformers}");
    let deepspeed = text(&full, Target::DeepSpeed);
    assert!(deepspeed.contains("deepspeed.initialize = with_recomputation"), "{deepspeed}");
    assert!(deepspeed.contains("/autodist_recompute.py\" \"$TRAIN_SCRIPT\""), "{deepspeed}");
    let full = plan(split(2, 1, 1), &[4], Recompute::Full);
    assert!(text(&full, Target::Accelerate).contains("accelerate.Accelerator.prepare = with_recomputation"));
    assert!(text(&full, Target::Transformers).contains("\"gradient_checkpointing\": true"));
    for target in [Target::DeepSpeed, Target::Accelerate] {
        assert!(!text(&simple(), target).contains("autodist_recompute"));
    }
}

#[test]
fn ranks_on_cpus_are_all_started() {
    let on_cpus = |mut plan: Plan| {
        let CostSource::Profile(profile) = &mut plan.cost_source else { panic!("no profile") };
        profile.devices = DeviceKind::Cpu;
        plan
    };
    for target in [Target::Accelerate, Target::Transformers] {
        let text = text(&on_cpus(simple()), target);
        assert!(text.contains("exec torchrun --nnodes 1 --nproc-per-node 2"), "{text}");
        assert!(text.contains("ACCELERATE_USE_CPU=true"), "{text}");
        let sharded = on_cpus(plan(zero(3, split(2, 1, 1)), &[4], Recompute::None));
        refused(&sharded, target, "zero_stage", "GPUs");
    }
    let maxtext = text(&on_cpus(simple()), Target::MaxText);
    assert!(maxtext.contains("--xla_force_host_platform_device_count=2"), "{maxtext}");
}

#[test]
fn a_model_is_split_only_where_files_can_split_it() {
    for strategy in [split(1, 2, 1), zero(3, split(2, 2, 1))] {
        let tensor = plan(strategy, &[4], Recompute::None);
        refused(&tensor, Target::Accelerate, "tensor", "split");
        refused(&tensor, Target::Transformers, "tensor", "split");
        assert!(!text(&tensor, Target::DeepSpeed).contains("train_batch_size"));
    }
    assert!(text(&simple(), Target::DeepSpeed).contains("\"train_batch_size\": 8"));
}

#[test]
fn scripts_ask_for_what_plans_do_not_have() {
    let megatron = text(&simple(), Target::Megatron);
    for part in ["${SAVE:?", "--save \"$SAVE\"", "--attention-dropout 0.0", "--hidden-dropout 0.0"] {
        assert!(megatron.contains(part), "{part}:\n{megatron}");
    }
    let nanotron = text(&simple(), Target::Nanotron);
    for part in ["${DATASET:?", "${TOKENIZER:?", "data_stages:", "logging:", "checkpoints:"] {
        assert!(nanotron.contains(part), "{part}:\n{nanotron}");
    }
    let torchtitan = text(&simple(), Target::Torchtitan);
    assert!(torchtitan.ends_with("\"$@\" \\\n    activation_checkpoint:none\n"), "{torchtitan}");
}

#[test]
fn nodes_of_maxtext_join() {
    let mut plan = plan(split(4, 1, 1), &[4], Recompute::None);
    plan.cluster = autodist_spec::Cluster::from_short_form("2x2xa100-80gb-sxm@1x200gbps").unwrap();
    let script = text(&plan, Target::MaxText);
    for part in ["JAX_COORDINATOR_IP=\"$MASTER_ADDR\"", "JAX_COORDINATOR_PORT", "NNODES=2 NODE_RANK"] {
        assert!(script.contains(part), "{part}:\n{script}");
    }
}

#[test]
fn a_recipe_of_megatron_bridge_keeps_nothing_that_the_plan_leaves_off() {
    let bridge = text(&plan(split(2, 1, 2), &[2, 2], Recompute::None), Target::MegatronBridge);
    for part in [
        "virtual_pipeline_model_parallel_size: null",
        "recompute_granularity: null",
        "comm_overlap: null",
        "account_for_embedding_in_pipeline_split: false",
        "hidden_dropout: 0.0",
        "mixed_precision:\n",
        "bf16: false",
        "use_distributed_optimizer: false",
    ] {
        assert!(bridge.contains(part), "{part}:\n{bridge}");
    }
    assert!(!bridge.contains("use_distributed_optimizer: true"), "{bridge}");
}

#[test]
fn arguments_of_a_job_go_on_to_its_script() {
    let options = Options { script: Some("megatron.sh".to_owned()), ..OPTIONS };
    let content = |target| -> String {
        let Exported { files, .. } = export(&simple(), target, &options).unwrap();
        files.into_iter().map(|file| file.content).collect()
    };
    assert!(content(Target::Slurm).contains("exec bash \"$SCRIPT\" \"$@\"' bash \"$@\""));
    let manifests = content(Target::Kubernetes);
    assert_eq!(manifests.matches("args: []").count(), 2, "{manifests}");
    assert!(manifests.contains("megatron.sh \\\"$@\\\""), "{manifests}");
}
