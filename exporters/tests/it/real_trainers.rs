//! Exported files, parsed by the trainers' own libraries: the result must match the plan.
//!
//! The libraries are large: `.ci/trainers` installs them and runs this with `AUTODIST_TRAINERS_PYTHON`.

use crate::common;
use crate::common::{split, zero};

use autodist_exporters::{Options, Settings, Target, export};
use autodist_spec::{
    Hyperparameter, Job, ParallelStrategy, Plan, Precision, Recompute, ScheduleKind, catalog,
};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

const OPTIONS: Options = Options { checkpoint_interval: Some(500), script: None, image: String::new() };

/// Plans for Llama 3 8B that cover the differences between trainers, and some fifty others.
fn plans() -> Vec<(String, Plan)> {
    let model = catalog::model("llama3-8b").unwrap();
    let mut plans = Vec::new();
    let mut add = |name: &str, strategy: ParallelStrategy, blocks: &[u32], mode: Recompute| {
        let given = Some(Hyperparameter::ALL.iter().copied().collect());
        // Half of them do not clip.
        let gradient_clip = if plans.len().is_multiple_of(2) { 1.0 } else { 0.0 };
        let job = Job { precision: Precision::Bf16, gradient_clip, given, ..Job::new(64, 4096) };
        let stages = common::stages(&model, blocks, &[mode; 32]);
        let cluster = match strategy.devices() {
            devices @ 1..=8 => format!("1x{devices}xh100-80gb-sxm"),
            devices => format!("{}x8xh100-80gb-sxm@8x400gbps", devices / 8),
        };
        plans.push((name.to_owned(), common::plan(model.clone(), &cluster, job, strategy, stages)));
    };
    let (none, full) = (Recompute::None, Recompute::Full);
    add("ddp", split(8, 1, 1), &[32], none);
    add("zero1", zero(1, split(8, 1, 1)), &[32], none);
    add("zero2", zero(2, split(8, 1, 1)), &[32], none);
    add("zero3", zero(3, split(16, 1, 1)), &[32], full);
    add("hsdp", ParallelStrategy { shard: 8, ..zero(3, split(16, 1, 1)) }, &[32], none);
    add("tensor", split(1, 8, 1), &[32], full);
    add("tensor-zero3", zero(3, split(4, 4, 1)), &[32], full);
    add("tensor-zero2", zero(2, split(4, 2, 1)), &[32], none);
    add(
        "sequence-zero3",
        ParallelStrategy { sequence_parallel: true, ..zero(3, split(2, 4, 1)) },
        &[32],
        full,
    );
    add("pipeline", split(2, 1, 4), &[8, 8, 8, 8], none);
    add("gpipe", ParallelStrategy { schedule: ScheduleKind::GPipe, ..split(2, 1, 4) }, &[8, 8, 8, 8], full);
    add("uneven", split(2, 2, 4), &[7, 9, 9, 7], none);
    add(
        "interleaved",
        ParallelStrategy {
            virtual_stages: 2,
            schedule: ScheduleKind::Interleaved,
            ..zero(2, split(2, 1, 4))
        },
        &[4; 8],
        none,
    );
    for (data, tensor, pipeline) in
        [(2, 1, 1), (4, 2, 1), (16, 1, 1), (2, 8, 1), (1, 4, 2), (4, 1, 2), (2, 2, 2)]
    {
        for stage in 0..=3 {
            for mode in [none, Recompute::Selective, full] {
                if data == 1 && stage > 0 {
                    continue;
                }
                let strategy = ParallelStrategy {
                    sequence_parallel: tensor > 1 && stage == 3,
                    micro_batch: 1 + u32::from(stage % 2),
                    ..zero(stage, split(data, tensor, pipeline))
                };
                let strategy = if stage == 0 { ParallelStrategy { shard: 1, ..strategy } } else { strategy };
                let name = format!("dp{data}-tp{tensor}-pp{pipeline}-zero{stage}-{}", mode.name());
                add(&name, strategy, &vec![32 / pipeline; pipeline as usize], mode);
            }
        }
    }
    assert!(plans.len() >= 60, "{} plans", plans.len());
    plans
}

pub fn expected(plan: &Plan) -> serde_json::Value {
    let settings = Settings::of(plan, None);
    let mode = settings.recompute[0];
    json!({
        "devices": settings.devices(),
        "data": settings.data,
        "shard": settings.shard,
        "zero_stage": settings.zero_stage,
        "tensor": settings.tensor,
        "pipeline": settings.pipeline,
        "context": settings.context,
        "sequence_parallel": settings.sequence_parallel,
        "micro_batch": settings.micro_batch,
        "global_batch": settings.global_batch,
        "seq_len": settings.seq_len,
        "bf16": settings.precision == Precision::Bf16,
        "recompute": mode.name(),
        "full_recompute": mode == Recompute::Full,
        "schedule": settings.schedule.name(),
        "stages": settings.stages,
        "gradient_clip": settings.gradient_clip,
        "virtual_stages": settings.virtual_stages,
        "distributed_optimizer": settings.zero_stage > 0,
    })
}

fn ask(target: Target) {
    let variable = match target {
        // They need a newer Python.
        Target::Megatron | Target::MaxText => "AUTODIST_TRAINERS_PYTHON312",
        _ => "AUTODIST_TRAINERS_PYTHON",
    };
    let Some(python) = std::env::var_os(variable) else {
        eprintln!(
            "skipped: {} is not asked, as {variable} names no Python that has it (.ci/trainers)",
            target.name()
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut taken = Vec::new();
    for (name, plan) in plans() {
        let Ok(exported) = export(&plan, target, &OPTIONS) else { continue };
        let place = folder.path().join(&name);
        fs::create_dir(&place).unwrap();
        for file in exported.files {
            fs::write(place.join(file.name), file.content).unwrap();
        }
        let mut all = expected(&plan);
        if matches!(target, Target::Accelerate | Target::Transformers | Target::Galvatron) {
            // They recompute whole blocks, as the notes of the export say.
            all["full_recompute"] = json!(all["recompute"] != "none");
        }
        fs::write(place.join("expected.json"), all.to_string()).unwrap();
        taken.push(name);
    }
    assert!(taken.len() >= 6, "{} takes {taken:?} alone", target.name());
    let script = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/trainers")
        .join(format!("{}_check.py", target.name()));
    let output = Command::new(python).arg(script).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    eprintln!("{}:\n{said}", target.name());
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let agreed = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(agreed, taken.len(), "{said}");
}

#[test]
fn torchtitan_understands_what_was_planned() {
    ask(Target::Torchtitan);
}

#[test]
fn deepspeed_understands_what_was_planned() {
    ask(Target::DeepSpeed);
}

#[test]
fn accelerate_understands_what_was_planned() {
    ask(Target::Accelerate);
}

#[test]
fn transformers_understands_what_was_planned() {
    ask(Target::Transformers);
}

#[test]
fn kubernetes_understands_what_was_planned() {
    ask(Target::Kubernetes);
}

#[test]
fn galvatron_understands_what_was_planned() {
    ask(Target::Galvatron);
}

#[test]
fn maxtext_understands_what_was_planned() {
    ask(Target::MaxText);
}

#[test]
fn megatron_understands_what_was_planned() {
    ask(Target::Megatron);
}
