//! Every parallel strategy trains the same model on a GPU, too, and the same as on the CPU. The GPU is the
//! software GPU of the tests; ranks are threads that communicate through the host (NCCL between processes:
//! `tests/it/gpu.rs` of the binary).

use crate::common;

use autodist_compute::Cpu;
use autodist_cuda::{Cuda, Libraries, Search};
use autodist_executor::{Task, TrainingDevice, local};
use autodist_program::stages;
use autodist_spec::{Codec, Communication, Job, Optimizer, ParallelStrategy, Precision, Reduction, Stage};
use common::{Difference, Trained, any_way, model, task, ways};
use proptest::prelude::*;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

static LIBRARIES: LazyLock<Arc<Libraries>> = LazyLock::new(|| {
    let search = Search::only(autodist_software_gpu::libraries());
    Libraries::load(&search).unwrap_or_else(|error| panic!("the software GPU: {error}"))
});

fn gpu(precision: Precision) -> Cuda {
    match Cuda::open(LIBRARIES.clone(), 0, precision) {
        Ok(gpu) => gpu,
        Err(error) => panic!("the software GPU: {error}"),
    }
}

fn train<D: TrainingDevice>(device: &D, task: &Task) -> Trained {
    match local::train(device, task, Duration::from_secs(60)) {
        Ok(trained) => trained,
        Err(error) => panic!("{}: {error}", task.strategy.label()),
    }
}

fn whole(llama: bool) -> Task {
    let (model, strategy) = (model(llama), ParallelStrategy::data_parallel(1, 8));
    let stages = stages::even(&model, &strategy);
    task(&model, strategy, stages)
}

fn in_bf16(task: Task) -> Task {
    Task { job: Job { precision: Precision::Bf16, ..task.job }, ..task }
}

/// The models as trained on the CPU in fp32: one device, whole batch at once.
static CPU: LazyLock<[Trained; 2]> =
    LazyLock::new(|| [false, true].map(|llama| train(&Cpu::<f32>::new(), &whole(llama))));

/// The models as trained on one GPU in bf16.
static BF16: LazyLock<[Trained; 2]> =
    LazyLock::new(|| [false, true].map(|llama| train(&gpu(Precision::Bf16), &in_bf16(whole(llama)))));

const FP32: f64 = 1e-4;
/// A sum in another order may be rounded to the neighbouring number, 2^-8 apart; over three steps, thousands
/// of such differences do not add up to more.
const ROUNDING: f64 = 1.0 / 256.0;

/// Every third strategy, alternating between the families; `first` differs between the precisions.
fn share(first: usize) -> impl Iterator<Item = (ParallelStrategy, bool)> {
    let some = ways().into_iter().skip(first).step_by(3).enumerate();
    some.map(|(index, (_, strategy))| (strategy, index % 2 == 1))
}

fn all() -> impl Iterator<Item = (ParallelStrategy, bool)> {
    ways().into_iter().flat_map(|(_, strategy)| [false, true].map(|llama| (strategy.clone(), llama)))
}

#[test]
fn in_fp32_splits_train_what_the_cpu_trains() {
    train_in_fp32(share(0));
}

#[test]
fn in_fp32_every_split_trains_what_the_cpu_trains_at_length() {
    train_in_fp32(all());
}

fn train_in_fp32(cases: impl Iterator<Item = (ParallelStrategy, bool)>) {
    let device = gpu(Precision::Fp32);
    for (strategy, llama) in cases {
        let stages = stages::even(&model(llama), &strategy);
        let trained = train(&device, &task(&model(llama), strategy.clone(), stages));
        let difference = Difference::of(&trained, &CPU[usize::from(llama)]);
        assert!(difference.largest() <= FP32, "{}: {difference:?}", strategy.label());
    }
}

#[test]
fn in_bf16_one_gpu_trains_what_the_cpu_trains_but_for_rounding() {
    for llama in [0, 1] {
        let difference = Difference::of(&BF16[llama], &CPU[llama]);
        assert!(difference.loss <= ROUNDING, "{difference:?}");
        assert!(difference.norm <= 4.0 * ROUNDING, "{difference:?}");
        assert!(difference.parameters <= 4.0 * ROUNDING, "{difference:?}");
        // The test would fail if nothing were rounded.
        assert!(difference.loss > 1e-6, "{difference:?}");
    }
}

#[test]
fn in_bf16_splits_train_what_one_gpu_trains_but_for_rounding() {
    train_in_bf16(share(1));
}

#[test]
fn in_bf16_every_split_trains_what_one_gpu_trains_but_for_rounding_at_length() {
    train_in_bf16(all());
}

fn train_in_bf16(cases: impl Iterator<Item = (ParallelStrategy, bool)>) {
    let device = gpu(Precision::Bf16);
    for (strategy, llama) in cases {
        let stages = stages::even(&model(llama), &strategy);
        let trained = train(&device, &in_bf16(task(&model(llama), strategy.clone(), stages)));
        let difference = Difference::of(&trained, &BF16[usize::from(llama)]);
        assert!(difference.loss <= ROUNDING, "{}: {difference:?}", strategy.label());
        assert!(difference.parameters <= 4.0 * ROUNDING, "{}: {difference:?}", strategy.label());
    }
}

/// The maximum difference of two trainings whose gradients differ in their last bits: the same order for
/// codecs that encode every number separately; more for codecs with a threshold, because a number near it may
/// fall on either side, which changes a part of the step.
fn apart(codec: Codec) -> f64 {
    match codec {
        Codec::None | Codec::PowerSgd { .. } | Codec::PowerSgdHalf { .. } => FP32,
        Codec::Fp16 | Codec::Bf16 | Codec::Int8 { .. } => 5.0 * FP32,
        Codec::TopK { .. } | Codec::Dgc { .. } | Codec::OneBit | Codec::OneBitAdam { .. } => 20.0 * FP32,
        Codec::Qsgd { .. } | Codec::TernGrad => 20.0 * FP32,
    }
}

#[test]
fn in_fp32_every_codec_trains_what_it_trains_on_the_cpu() {
    train_with_codecs(&[true]);
}

#[test]
fn in_fp32_every_codec_trains_the_other_family_at_length() {
    train_with_codecs(&[false]);
}

fn train_with_codecs(families: &[bool]) {
    let device = gpu(Precision::Fp32);
    // 1-bit Adam divides by the second moments of its warm-up. If a gradient is zero except for rounding, as
    // that of a key's bias, they differ between devices, and so do all later steps; the self-test checks the
    // codec alone.
    let alike = Codec::DEFAULTS.into_iter().filter(|codec| !matches!(codec, Codec::OneBitAdam { .. }));
    for codec in alike.map(Codec::at_once) {
        for &llama in families {
            let reduce = Reduction { codec, ..Reduction::default() };
            let communication = Communication { reduce, ..Communication::default() };
            let strategy = ParallelStrategy { communication, ..ParallelStrategy::data_parallel(2, 2) };
            let stages = stages::even(&model(llama), &strategy);
            let mut task = task(&model(llama), strategy, stages);
            if matches!(codec, Codec::Dgc { .. }) {
                task.job.optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.1 };
                task.job.gradient_clip = 0.0;
            }
            let (gpu, cpu) = (train(&device, &task), train(&Cpu::<f32>::new(), &task));
            let difference = Difference::of(&gpu, &cpu);
            println!("{}: {difference:?}", codec.name());
            assert!(difference.largest() <= apart(codec), "{}: {difference:?}", codec.name());
            let sent = |trained: &Trained| trained.0.ranks[0].bytes_sent_per_step;
            assert_eq!(sent(&gpu), sent(&cpu), "{}", codec.name());
            // `none` changes nothing, so there is no difference to check.
            if codec != Codec::None {
                let exact = Difference::of(&cpu, &CPU[usize::from(llama)]);
                assert!(exact.parameters > 1e-6, "{}: {exact:?}", codec.name());
            }
        }
    }
}

#[test]
fn in_fp32_rounded_shards_parameters_and_activations_are_the_cpus() {
    let device = gpu(Precision::Fp32);
    let zero =
        |stage| ParallelStrategy { zero_stage: stage, shard: 2, ..ParallelStrategy::data_parallel(2, 2) };
    let (mut shards, mut parameters) = (zero(2), zero(3));
    shards.communication.reduce.codec = Codec::Int8 { block: 16 };
    parameters.communication.parameters = Codec::Bf16;
    let mut activations = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 2) };
    activations.communication.activations = Codec::Fp16;
    for strategy in [shards, parameters, activations] {
        let stages = stages::even(&model(true), &strategy);
        let task = task(&model(true), strategy, stages);
        let (gpu, cpu) = (train(&device, &task), train(&Cpu::<f32>::new(), &task));
        let difference = Difference::of(&gpu, &cpu);
        // A number halfway between two representable ones may be rounded either up or down.
        assert!(difference.largest() <= 20.0 * FP32, "{}: {difference:?}", task.strategy.label());
        let sent = |trained: &Trained| trained.0.ranks[0].bytes_sent_per_step;
        assert_eq!(sent(&gpu), sent(&cpu), "{}", task.strategy.label());
        assert!(Difference::of(&cpu, &CPU[1]).parameters > 1e-6, "{}", task.strategy.label());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn in_fp32_any_legal_way_trains_what_the_cpu_trains_at_length((llama, strategy, stages) in any_way()) {
        train_in_fp32_by(llama, strategy, stages);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, max_global_rejects: 100_000, ..ProptestConfig::default() })]
    #[test]
    fn in_fp32_some_legal_way_trains_what_the_cpu_trains((llama, strategy, stages) in any_way()) {
        train_in_fp32_by(llama, strategy, stages);
    }
}

fn train_in_fp32_by(llama: bool, strategy: ParallelStrategy, stages: Vec<Stage>) {
    let trained = train(&gpu(Precision::Fp32), &task(&model(llama), strategy.clone(), stages));
    let difference = Difference::of(&trained, &CPU[usize::from(llama)]);
    assert!(difference.largest() <= FP32, "{}: {difference:?}", strategy.label());
}
