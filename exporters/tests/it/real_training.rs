//! Exported scripts, started on CPUs: what the trainers train must be the plan.
//!
//! `.ci/trainers-train` installs the trainers and runs this with `AUTODIST_TRAINERS_TRAIN`.

use crate::common;
use crate::common::{split, zero};

use crate::real_trainers::expected;
use autodist_exporters::{Options, Target, export};
use autodist_spec::{
    CostSource, DeviceKind, Hyperparameter, Job, LearningRate, Optimizer, ParallelStrategy, Plan, Precision,
    Recompute, ScheduleKind, catalog,
};
use serde_json::json;
use std::fs;
use std::path::Path;
use std::process::Command;

const OPTIONS: Options = Options { checkpoint_interval: None, script: None, image: String::new() };

const ADAM: Optimizer = Optimizer::AdamW { beta1: 0.8, beta2: 0.99, epsilon: 1e-6, weight_decay: 0.01 };
const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };

/// A plan of a small model, whose values differ from the trainers' defaults.
struct Small {
    name: &'static str,
    strategy: ParallelStrategy,
    blocks: &'static [u32],
    mode: Recompute,
    precision: Precision,
    optimizer: Optimizer,
    clip: f64,
    devices: DeviceKind,
}

impl Small {
    fn new(name: &'static str, strategy: ParallelStrategy) -> Self {
        let (blocks, mode) = (&[2][..], Recompute::None);
        let (precision, optimizer) = (Precision::Fp32, ADAM);
        Self { name, strategy, blocks, mode, precision, optimizer, clip: 0.5, devices: DeviceKind::Cuda }
    }

    fn plan(&self) -> Plan {
        let mut model = catalog::model("tiny-llama").unwrap();
        model.layers = self.blocks.iter().sum();
        let given = Some(Hyperparameter::ALL.iter().copied().collect());
        let peak = if self.optimizer == SGD { 0.1 } else { 0.01 };
        let job = Job {
            precision: self.precision,
            optimizer: self.optimizer,
            learning_rate: LearningRate { peak, warmup_steps: 1, total_steps: 10, final_fraction: 0.1 },
            gradient_clip: self.clip,
            given,
            ..Job::new(8, 16)
        };
        let stages = common::stages(&model, self.blocks, &vec![self.mode; model.layers as usize]);
        let cluster = format!("1x{}xa100-80gb-sxm", self.strategy.devices());
        let mut plan = common::plan(model, &cluster, job, self.strategy.clone(), stages);
        if let CostSource::Profile(profile) = &mut plan.cost_source {
            profile.devices = self.devices;
        }
        plan
    }
}

/// Each kind of plan once.
fn plans() -> Vec<Small> {
    let full = Recompute::Full;
    let new = Small::new;
    let one_f_one_b = split(1, 1, 2);
    let virtual_stages =
        ParallelStrategy { virtual_stages: 2, schedule: ScheduleKind::Interleaved, ..split(1, 1, 2) };
    let sequence = ParallelStrategy { sequence_parallel: true, ..split(1, 2, 1) };
    let hybrid = ParallelStrategy { shard: 2, ..zero(3, split(4, 1, 1)) };
    vec![
        new("ddp", split(2, 1, 1)),
        Small { mode: full, clip: 0.0, ..new("ddp-full-unclipped", split(2, 1, 1)) },
        Small { mode: full, devices: DeviceKind::Cpu, ..new("ddp-on-cpus", split(2, 1, 1)) },
        Small { precision: Precision::Bf16, ..new("zero1-bf16", zero(1, split(2, 1, 1))) },
        Small { mode: full, clip: 0.0, ..new("zero2-full-unclipped", zero(2, split(2, 1, 1))) },
        Small { mode: full, ..new("zero3-full", zero(3, split(2, 1, 1))) },
        Small { optimizer: SGD, ..new("zero3-sgd", zero(3, split(2, 1, 1))) },
        Small { optimizer: SGD, ..new("zero1-sgd", zero(1, split(2, 1, 1))) },
        Small { optimizer: SGD, ..new("ddp-sgd", split(2, 1, 1)) },
        new("hsdp", hybrid),
        new("tensor", split(1, 2, 1)),
        Small { mode: full, ..new("sequence-full", sequence) },
        Small { mode: full, ..new("tensor-zero3-full", zero(3, split(2, 2, 1))) },
        Small { blocks: &[2, 2], ..new("pipeline", one_f_one_b.clone()) },
        Small { blocks: &[1, 3], mode: full, ..new("uneven-pipeline-full", one_f_one_b) },
        Small { blocks: &[1, 1, 1, 1], ..new("interleaved", virtual_stages) },
    ]
}

fn train(target: Target, at_least: usize) {
    let Some(python) = std::env::var_os("AUTODIST_TRAINERS_TRAIN") else {
        eprintln!(
            "skipped: {} trains nothing, as AUTODIST_TRAINERS_TRAIN names no Python that has it (.ci/trainers-train)",
            target.name()
        );
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut taken = Vec::new();
    for small in plans() {
        let plan = small.plan();
        let Ok(exported) = export(&plan, target, &OPTIONS) else { continue };
        let place = folder.path().join(small.name);
        fs::create_dir(&place).unwrap();
        for file in exported.files {
            fs::write(place.join(file.name), file.content).unwrap();
        }
        let mut all = expected(&plan);
        all["optimizer"] = json!(plan.job.optimizer);
        fs::write(place.join("expected.json"), all.to_string()).unwrap();
        taken.push(small.name);
    }
    assert!(taken.len() >= at_least, "{} takes {taken:?} alone", target.name());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/trainers/training/run.py");
    let output = Command::new(python).arg(script).arg(target.name()).arg(folder.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    eprintln!("{}:\n{said}", target.name());
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().filter(|line| line.starts_with("ok ")).count(), taken.len(), "{said}");
}

#[test]
fn deepspeed_trains_what_was_planned() {
    train(Target::DeepSpeed, 8);
}

#[test]
fn accelerate_trains_what_was_planned() {
    train(Target::Accelerate, 6);
}

#[test]
fn transformers_trains_what_was_planned() {
    train(Target::Transformers, 6);
}

#[test]
fn torchtitan_trains_what_was_planned() {
    train(Target::Torchtitan, 8);
}
