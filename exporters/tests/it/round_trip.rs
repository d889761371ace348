//! Written configurations are read back, field by field, for every trainer.

use crate::common;
use crate::common::{split, zero};

use autodist_exporters::{
    CommandLine, Exported, Field, Note, Options, Settings, Target, export, import_with, unsupported_fields,
};
use autodist_spec::{
    Bytes, Codec, Hyperparameter, InputError, Job, LearningRate, MemoryTier, Optimizer, ParallelStrategy,
    Plan, Precision, Recompute, ScheduleKind, StateStorage, catalog,
};
use proptest::prelude::*;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

const OPTIONS: Options = Options { checkpoint_interval: Some(500), script: None, image: String::new() };

fn trainers() -> impl Iterator<Item = Target> {
    Target::ALL.iter().copied().filter(|target| target.is_trainer())
}

#[test]
fn every_trainer_has_a_word_on_every_field() {
    for target in trainers() {
        let mut times: BTreeMap<Field, usize> = BTreeMap::new();
        for row in target.exporter().rows() {
            *times.entry(row.field).or_default() += 1;
        }
        for unsupported in unsupported_fields(target) {
            *times.entry(unsupported.field).or_default() += 1;
        }
        for &field in Field::ALL {
            assert_eq!(times.get(&field), Some(&1), "{} and {}", target.name(), field.name());
        }
    }
}

/// Fields that a trainer's file does not determine alone.
fn untold(target: Target, field: Field, settings: &Settings) -> bool {
    match (target, field) {
        // All ranks share.
        (Target::Galvatron, Field::Shard) => true,
        (Target::Torchtitan, Field::Stages) => settings.pipeline == 1,
        (Target::DeepSpeed | Target::Accelerate, Field::Recompute) => {
            settings.recompute.iter().all(|r| *r == Recompute::None) || settings.zero_stage == 0
        }
        // The same setting as a codec of parameters.
        (Target::DeepSpeed, Field::Parameters) => settings.states.gather_bits.is_some(),
        // What is usual is in no file.
        (_, Field::States) => settings.states.is_usual(),
        (Target::Megatron | Target::MegatronBridge, Field::Stages) => settings.equal_stages().is_none(),
        _ => false,
    }
}

fn close(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (a, b) {
        (Number(a), Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
        }
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| close(a, b)),
        (Object(a), Object(b)) => {
            a.len() == b.len()
                && a.iter().all(|(key, value)| b.get(key).is_some_and(|other| close(value, other)))
        }
        (a, b) => a == b,
    }
}

/// The hyperparameters of a field.
fn hyperparameters(field: Field) -> Vec<Hyperparameter> {
    use Hyperparameter as H;
    match field {
        Field::Optimizer => vec![H::Betas, H::Epsilon, H::Momentum, H::WeightDecay],
        Field::LearningRate => vec![H::PeakLearningRate, H::WarmupSteps, H::TotalSteps, H::FinalFraction],
        Field::GradientClip => vec![H::GradientClip],
        Field::Seed => vec![H::Seed],
        _ => Vec::new(),
    }
}

/// The given values are read back, and no others.
fn same_hyperparameters(target: Target, field: Field, read: &Settings, written: &Settings, text: &str) {
    let value = |settings: &Settings, one: Hyperparameter| -> serde_json::Value {
        use Hyperparameter as H;
        let (rate, optimizer) = (&settings.learning_rate, settings.value(Field::Optimizer));
        match one {
            H::PeakLearningRate => json!(rate.peak),
            H::WarmupSteps => json!(rate.warmup_steps),
            H::TotalSteps => json!(rate.total_steps),
            H::FinalFraction => json!(rate.final_fraction),
            H::Betas => json!([optimizer["beta1"], optimizer["beta2"]]),
            H::Epsilon => optimizer["epsilon"].clone(),
            H::Momentum => optimizer["momentum"].clone(),
            H::WeightDecay => optimizer["weight_decay"].clone(),
            H::GradientClip => json!(settings.gradient_clip),
            H::Seed => json!(settings.seed),
        }
    };
    for one in hyperparameters(field) {
        let told = written.gives(one);
        assert_eq!(read.gives(one), told, "{}: {} in\n{text}", target.name(), one.name());
        if told {
            let (read, written) = (value(read, one), value(written, one));
            let name = target.name();
            assert!(close(&read, &written), "{name}: {} is {written}, read {read} from\n{text}", one.name());
        }
    }
}

/// Checks one plan with one trainer; returns whether the trainer supports it.
fn goes_round(plan: &Plan, target: Target) -> bool {
    let Ok(Exported { files, notes, .. }) = export(plan, target, &OPTIONS) else { return false };
    // A trainer's configuration is its first file; for torchtitan it is the script and the module of its
    // stages.
    let text = match target {
        Target::Torchtitan => files.iter().map(|file| file.content.as_str()).collect::<Vec<_>>().join("\n"),
        _ => files[0].content.clone(),
    };
    let says_model = target.exporter().rows().iter().any(|row| row.field == Field::Model);
    let written = Settings::of(plan, OPTIONS.checkpoint_interval);
    // What no file says: the model, if the training script builds it, and the devices.
    let command = CommandLine { devices: Some(written.devices()), ..CommandLine::default() };
    let open = |_: &str| Err(InputError::new("", "", "is another file"));
    let model = (!says_model).then(|| plan.model.clone());
    let imported = import_with(target, &text, model, command, &open).unwrap();
    for row in target.exporter().rows() {
        let field = row.field;
        // A schedule with another start of its warm-up is the same schedule.
        let differs = |note: &Note| note.field == field && !note.instead.contains("warm-up starts at 0");
        if notes.iter().any(differs) || untold(target, field, &written) {
            continue;
        }
        let mut read = imported.settings.clone();
        if let Some(model) = &mut read.model {
            model.name.clone_from(&plan.model.name);
            if target == Target::MaxText {
                // The file contains the sequence length, not the maximum sequence length.
                model.max_seq_len = plan.model.max_seq_len;
            }
        }
        if !hyperparameters(field).is_empty() {
            same_hyperparameters(target, field, &read, &written, &text);
            continue;
        }
        let (read, written) = (read.value(field), written.value(field));
        assert!(
            close(&read, &written),
            "{}: {} is {written}, read {read} from\n{text}",
            target.name(),
            field.name()
        );
        // The degree is what the devices leave.
        let told = imported.known.contains(&field) || field == Field::Data;
        assert!(told, "{} does not tell {}:\n{text}", target.name(), field.name());
    }
    true
}

/// Bits and places of the state that at least one trainer has.
fn states() -> Vec<StateStorage> {
    let usual = StateStorage::default;
    let host = MemoryTier::Host;
    vec![
        StateStorage { moment_bits: Some([8, 8]), ..usual() },
        StateStorage { moment_bits: Some([16, 32]), ..usual() },
        StateStorage {
            moment_bits: Some([16, 16]),
            master_bits: Some(16),
            gradient_bits: Some(16),
            ..usual()
        },
        StateStorage { master_bits: Some(0), ..usual() },
        StateStorage { master_bits: Some(0), moment_bits: Some([32, 32]), ..usual() },
        StateStorage { gradient_bits: Some(32), ..usual() },
        StateStorage { optimizer: host, ..usual() },
        StateStorage { optimizer: host, optimizer_part: 0.25, ..usual() },
        StateStorage { optimizer: host, parameters: host, ..usual() },
        StateStorage { optimizer: host, activations: host, ..usual() },
        StateStorage {
            live_parameters: Some(200_000_000),
            second_shard: Some(2),
            gather_bits: Some(8),
            ..usual()
        },
        StateStorage { optimizer: MemoryTier::Nvme, parameters: MemoryTier::Nvme, ..usual() },
    ]
}

prop_compose! {
    fn job(data: u32, micro_batch: u32)(
        rounds in prop::sample::select(vec![4_u32, 8]),
        precision in prop::sample::select(vec![Precision::Fp32, Precision::Bf16]),
        adam in prop::bool::weighted(0.8),
        peak in 1e-5..1e-2_f64,
        warmup_steps in 1..100_u32,
        clip in prop::sample::select(vec![0.0, 1.0]),
        seed in 0..1000_u64,
        all in prop::bool::weighted(0.5),
        some in prop::collection::btree_set(prop::sample::select(Hyperparameter::ALL.to_vec()), 0..8),
        states in prop::option::weighted(0.5, prop::sample::select(states())),
    ) -> Job {
        let given = if all { Hyperparameter::ALL.iter().copied().collect() } else { some };
        let optimizer = if adam {
            Optimizer::AdamW { beta1: 0.9, beta2: 0.97, epsilon: 1e-8, weight_decay: 0.1 }
        } else {
            Optimizer::Sgd { momentum: 0.9, weight_decay: 0.01 }
        };
        let states = states.filter(|states| {
            precision == Precision::Bf16 || (states.master_bits.or(states.gradient_bits)).is_none()
        });
        Job {
            precision,
            optimizer,
            states: states.unwrap_or_default(),
            learning_rate: LearningRate { peak, warmup_steps, total_steps: 400, final_fraction: 0.1 },
            gradient_clip: clip,
            seed,
            given: Some(given),
            ..Job::new(data * micro_batch * rounds, 64)
        }
    }
}

prop_compose! {
    fn strategy()(
        data in prop::sample::select(vec![1_u32, 2, 4]),
        tensor in prop::sample::select(vec![1_u32, 2]),
        pipeline in prop::sample::select(vec![1_u32, 2, 4]),
        zero in 0..=3_u8,
        half in prop::bool::weighted(0.2),
        micro_batch in prop::sample::select(vec![1_u32, 2]),
        interleaved in prop::bool::weighted(0.3),
        gpipe in prop::bool::weighted(0.2),
        sequence in any::<bool>(),
        bf16 in prop::bool::weighted(0.2),
        bucket in 1..40_u64,
    ) -> ParallelStrategy {
        let zero_stage = if data > 1 { zero } else { 0 };
        let shard = match (zero_stage, half && data == 4) { (0, _) => 1, (_, true) => 2, (_, false) => data };
        let virtual_stages = if pipeline > 1 && interleaved { 2 } else { 1 };
        let schedule = match (pipeline, virtual_stages, gpipe) {
            (1, ..) => ScheduleKind::OneFOneB,
            (_, 2, _) => ScheduleKind::Interleaved,
            (_, _, true) => ScheduleKind::GPipe,
            _ => ScheduleKind::OneFOneB,
        };
        let mut strategy = ParallelStrategy {
            tensor,
            pipeline,
            zero_stage,
            shard,
            virtual_stages,
            schedule,
            sequence_parallel: tensor > 1 && sequence,
            bucket_bytes: Bytes(bucket << 20),
            ..ParallelStrategy::data_parallel(data, micro_batch)
        };
        if bf16 && data > 1 {
            strategy.communication.reduce.codec = Codec::Bf16;
        }
        strategy
    }
}

prop_compose! {
    fn any_plan()(strategy in strategy())(
        job in job(strategy.data, strategy.micro_batch),
        cuts in prop::collection::vec(0..=8_u32, (strategy.chunks() - 1) as usize),
        even in any::<bool>(),
        modes in prop::collection::vec(0..3_usize, 8),
        uniform in prop::option::weighted(0.7, 0..3_usize),
        strategy in Just(strategy),
        gpt in prop::bool::weighted(0.3),
    ) -> Plan {
        let mut model = catalog::model(if gpt { "gpt2" } else { "tiny-llama" }).unwrap();
        model.layers = 8;
        let chunks = strategy.chunks();
        let blocks = if even {
            vec![8 / chunks; chunks as usize]
        } else {
            let mut cuts = cuts;
            cuts.extend([0, 8]);
            cuts.sort_unstable();
            // An inner stage has at least one block.
            let sizes: Vec<u32> = cuts.windows(2).map(|pair| pair[1] - pair[0]).collect();
            if sizes.contains(&0) { vec![8 / chunks; chunks as usize] } else { sizes }
        };
        let modes: Vec<_> = modes
            .iter()
            .map(|mode| [Recompute::None, Recompute::Selective, Recompute::Full][uniform.unwrap_or(*mode)])
            .collect();
        let stages = common::stages(&model, &blocks, &modes);
        let cluster = match strategy.devices() {
            devices @ 1..=4 => format!("1x{devices}xa100-80gb-sxm"),
            devices => format!("{}x4xa100-80gb-sxm@1x200gbps", devices / 4),
        };
        common::plan(model, &cluster, job, strategy, stages)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_written_is_read(plan in any_plan()) {
        for target in trainers() {
            goes_round(&plan, target);
        }
    }
}

/// Plans that cover the differences between trainers, by name.
fn variety() -> Vec<(&'static str, Plan)> {
    let mut model = catalog::model("tiny-llama").unwrap();
    model.layers = 8;
    let make = |name, strategy: ParallelStrategy, blocks: &[u32], mode: Recompute| {
        let devices = strategy.devices();
        let given = Some(Hyperparameter::ALL.iter().copied().collect());
        let job = Job { precision: Precision::Bf16, given, ..Job::new(32, 64) };
        let stages = common::stages(&model, blocks, &[mode; 8]);
        (name, common::plan(model.clone(), &format!("1x{devices}xa100-80gb-sxm"), job, strategy, stages))
    };
    vec![
        make("ddp", split(4, 1, 1), &[8], Recompute::None),
        make("zero1", zero(1, split(4, 1, 1)), &[8], Recompute::Full),
        make("zero2", zero(2, split(4, 1, 1)), &[8], Recompute::None),
        make("zero3", zero(3, split(4, 1, 1)), &[8], Recompute::Full),
        make("hsdp", ParallelStrategy { shard: 2, ..zero(3, split(4, 1, 1)) }, &[8], Recompute::None),
        make("hsdp zero2", ParallelStrategy { shard: 2, ..zero(2, split(4, 1, 1)) }, &[8], Recompute::Full),
        make("ddp full", split(4, 1, 1), &[8], Recompute::Full),
        make("tensor", split(1, 2, 1), &[8], Recompute::None),
        make("tensor x zero3", zero(3, split(2, 2, 1)), &[8], Recompute::Full),
        make("tensor x zero2", zero(2, split(2, 2, 1)), &[8], Recompute::None),
        make("tensor x zero1", zero(1, split(2, 2, 1)), &[8], Recompute::None),
        make("pipeline", split(1, 1, 4), &[2, 2, 2, 2], Recompute::None),
        make("uneven pipeline", split(2, 1, 2), &[5, 3], Recompute::Full),
        make(
            "gpipe",
            ParallelStrategy { schedule: ScheduleKind::GPipe, ..split(2, 1, 2) },
            &[4, 4],
            Recompute::None,
        ),
        make(
            "3d",
            ParallelStrategy { sequence_parallel: true, ..split(2, 2, 2) },
            &[4, 4],
            Recompute::Selective,
        ),
    ]
}

/// Unique values, with `given` as the hyperparameters that were given.
fn with_odd_values(plan: &Plan, given: BTreeSet<Hyperparameter>) -> Plan {
    let mut plan = plan.clone();
    plan.job.learning_rate =
        LearningRate { peak: 0.00717, warmup_steps: 1717, total_steps: 71717, final_fraction: 0.717 };
    plan.job.optimizer =
        Optimizer::AdamW { beta1: 0.7171, beta2: 0.7172, epsilon: 7.17e-7, weight_decay: 0.0717 };
    plan.job.gradient_clip = 7.17;
    plan.job.seed = 717_717;
    plan.job.given = Some(given);
    plan
}

#[test]
fn files_hold_no_value_that_nobody_gave() {
    const NO_OPTIONS: Options = Options { checkpoint_interval: None, script: None, image: String::new() };
    for target in trainers() {
        let mut taken = 0;
        for (name, plan) in variety() {
            let Ok(exported) = export(&with_odd_values(&plan, BTreeSet::new()), target, &NO_OPTIONS) else {
                continue;
            };
            taken += 1;
            for file in &exported.files {
                for built_in in ["717", "cosine", "warmup", "betas", "save", "enable_checkpointing"] {
                    let at = file.content.find(built_in);
                    let line = at.map(|at| file.content[..at].lines().count());
                    assert_eq!(
                        line,
                        None,
                        "{} {name}: {built_in} in {}\n{}",
                        target.name(),
                        file.name,
                        file.content
                    );
                }
            }
            assert!(
                !exported.notes.iter().any(|note| note.to_string().contains("717")),
                "{:?}",
                exported.notes
            );
            // All are listed, whether the script reads them from the environment or not.
            let adamw = Hyperparameter::ALL.iter().filter(|one| **one != Hyperparameter::Momentum);
            let listed: Vec<_> = exported.not_given.iter().map(|one| one.what).collect();
            assert_eq!(listed, adamw.copied().collect::<Vec<_>>(), "{} {name}", target.name());
            for variable in exported.not_given.iter().flat_map(|one| &one.asked_as) {
                let asks = format!("${{{variable}:?");
                assert!(exported.files.iter().any(|file| file.content.contains(&asks)), "{asks}");
            }
        }
        assert!(taken > 0, "{}", target.name());
    }
}

/// An apostrophe in the message for a missing variable would open a quote.
#[test]
fn scripts_are_bash_whatever_was_given() {
    let folder = tempfile::tempdir().unwrap();
    for &target in Target::ALL {
        for given in [BTreeSet::new(), Hyperparameter::ALL.iter().copied().collect()] {
            let exported = export(&with_odd_values(&variety()[0].1, given), target, &OPTIONS).unwrap();
            for file in exported.files.iter().filter(|file| file.executable) {
                let path = folder.path().join(&file.name);
                std::fs::write(&path, &file.content).unwrap();
                let checked = std::process::Command::new("bash").arg("-n").arg(&path).status().unwrap();
                assert!(checked.success(), "{}", file.content);
            }
        }
    }
}

#[test]
fn what_a_trainer_needs_and_nobody_gave_is_asked_for_by_name() {
    let plan = &variety()[0].1;
    let asked = |target, given: &[Hyperparameter]| -> Vec<&str> {
        let plan = with_odd_values(plan, given.iter().copied().collect());
        let exported = export(&plan, target, &OPTIONS).unwrap();
        exported.not_given.iter().flat_map(|one| one.asked_as.clone()).collect()
    };
    assert_eq!(asked(Target::Megatron, &[]), ["LR", "TRAIN_ITERS"]);
    assert_eq!(asked(Target::Megatron, &[Hyperparameter::PeakLearningRate]), ["TRAIN_ITERS"]);
    assert_eq!(asked(Target::Megatron, Hyperparameter::ALL), [""; 0]);
    assert_eq!(
        asked(Target::Nanotron, &[Hyperparameter::Epsilon]),
        ["LR", "TRAIN_STEPS", "ADAM_BETA1", "ADAM_BETA2", "WEIGHT_DECAY"]
    );
    assert_eq!(asked(Target::Slurm, &[]), ["TRAIN_STEPS"]);
    assert_eq!(asked(Target::Kubernetes, &[Hyperparameter::TotalSteps]), [""; 0]);
    assert_eq!(asked(Target::Torchtitan, &[]), [""; 0]);
}

#[test]
fn torchtitan_is_told_a_configuration_of_that_very_model_or_asks_for_it() {
    let script = |model: &str, change: &dyn Fn(&mut Plan)| {
        let mut plan = variety()[0].1.clone();
        plan.model = catalog::model(model).unwrap();
        change(&mut plan);
        plan.stages = common::stages(&plan.model, &[plan.model.layers], &[Recompute::None; 200]);
        let files = export(&plan, Target::Torchtitan, &OPTIONS).unwrap().files;
        files.into_iter().map(|file| file.content).collect::<String>()
    };
    for (model, config) in
        [("llama3-8b", "llama3_8b"), ("llama3-70b", "llama3_70b"), ("llama3-405b", "llama3_405b")]
    {
        let text = script(model, &|_| {});
        assert!(text.contains(&format!("CONFIG=${{CONFIG:-{config}}}")), "{text}");
    }
    // Another model, and another one of the same name.
    for text in [script("tiny-llama", &|_| {}), script("llama3-8b", &|plan| plan.model.layers = 8)] {
        assert!(text.contains("${MODULE:?") && text.contains("${CONFIG:?"), "{text}");
        assert!(!text.contains("llama3_"), "{text}");
    }
}

/// Guards against passing by refusing every plan.
#[test]
fn every_trainer_takes_at_least_six_different_plans() {
    for target in trainers() {
        let taken: Vec<_> = variety()
            .into_iter()
            .filter(|(_, plan)| goes_round(plan, target))
            .map(|(name, _)| name)
            .collect();
        assert!(taken.len() >= 6, "{} takes {taken:?}", target.name());
    }
}

#[test]
fn what_cannot_be_said_is_refused_with_its_way_out() {
    let plans: BTreeMap<_, _> = variety().into_iter().collect();
    let refusal = |target, name: &str| {
        let errors = export(&plans[name], target, &OPTIONS).unwrap_err();
        errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(refusal(Target::Accelerate, "pipeline").contains("plan with --pp 1"));
    assert!(refusal(Target::Torchtitan, "zero1").contains("plan with --zero 2 or 3"));
    assert!(refusal(Target::Megatron, "gpipe").contains("--schedule 1f1b"));
    let mut placed = plans["ddp"].clone();
    placed.strategy.communication.placement = vec![1, 0, 2, 3];
    let errors = export(&placed, Target::Megatron, &OPTIONS).unwrap_err();
    assert!(errors[0].hint.contains("order the hosts"), "{}", errors[0]);
}

#[test]
fn what_is_used_instead_is_listed() {
    let plans: BTreeMap<_, _> = variety().into_iter().collect();
    let notes = |target, name: &str| {
        let exported = export(&plans[name], target, &OPTIONS).unwrap();
        exported.notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    assert!(
        notes(Target::Torchtitan, "3d").contains("recompute selective on 8 of 8 blocks: its own selection")
    );
    assert!(notes(Target::MaxText, "pipeline").contains("schedule 1f1b: it runs all forward passes"));
    assert_eq!(notes(Target::Megatron, "uneven pipeline"), "");
}
