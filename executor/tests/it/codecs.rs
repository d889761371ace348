//! Compares trainings with gradients in fewer bytes: the same plan, the same data, and the final loss.

use crate::common;

use autodist_codecs::{Phase, Tensor, phases};
use autodist_compute::Cpu;
use autodist_executor::{CodecOptions, DataSource, Guard, Task, local};
use autodist_program::{buckets, stages};
use autodist_spec::run::FallbackReason;
use autodist_spec::{
    Codec, Coded, Communication, Job, LayerTraining, LearningRate, Optimizer, ParallelStrategy, Reduction,
    RunRecord,
};
use common::learner;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const STEPS: u32 = 200;

/// The data of a step. What a codec saves and how it is corrected do not depend on it: a push trains on less.
#[derive(Clone, Copy, PartialEq)]
struct Batch {
    sequences: u32,
    tokens: u32,
}

const BATCH: Batch = Batch { sequences: 16, tokens: 32 };
/// The batch of docs/validation.md.
const BATCH_AT_LENGTH: Batch = Batch { sequences: 16, tokens: 64 };

/// How a model is trained, except for the codec.
#[derive(Clone, Copy, PartialEq)]
struct Setting {
    batch: Batch,
    optimizer: Optimizer,
    peak: f64,
    gradient_clip: f64,
    steps: u32,
}

const SGD: Optimizer = Optimizer::Sgd { momentum: 0.9, weight_decay: 0.0 };

impl Setting {
    /// The setting in which a codec is tested: AdamW with clipping, except for codecs that require another
    /// optimizer or no clipping.
    fn of(codec: Codec, batch: Batch) -> Self {
        let gradient_clip = if matches!(codec, Codec::OneBitAdam { .. }) { 0.0 } else { 1.0 };
        match codec {
            Codec::Dgc { .. } => Self::sgd(0.05, STEPS, batch),
            _ => Self { batch, optimizer: Optimizer::default(), peak: 5e-3, gradient_clip, steps: STEPS },
        }
    }

    const fn sgd(peak: f64, steps: u32, batch: Batch) -> Self {
        Self { batch, optimizer: SGD, peak, gradient_clip: 0.0, steps }
    }
}

fn strategy(codec: Codec, batch: Batch) -> ParallelStrategy {
    let communication =
        Communication { reduce: Reduction { codec, ..Reduction::default() }, ..Communication::default() };
    ParallelStrategy { communication, ..ParallelStrategy::data_parallel(2, batch.sequences / 2) }
}

fn train(codec: Codec, setting: Setting, coding: CodecOptions) -> RunRecord {
    let model = learner();
    let Setting { batch, optimizer, peak, gradient_clip, steps } = setting;
    let learning_rate = LearningRate { peak, total_steps: steps, ..LearningRate::default() };
    let job = Job { optimizer, learning_rate, gradient_clip, ..Job::new(batch.sequences, batch.tokens) };
    let strategy = strategy(codec, batch);
    let stages = stages::even(&model, &strategy);
    let task = Task {
        model,
        job,
        strategy,
        stages,
        data: DataSource::Synthetic,
        start_step: 0,
        steps,
        warmup_steps: 0,
        detail: false,
        count_memory: false,
        emulated_flops_per_s: None,
        coding,
    };
    let trained = local::train(&Cpu::<f32>::new(), &task, Duration::from_secs(60));
    trained.unwrap_or_else(|error| panic!("{}: {error}", codec.name())).0
}

/// The training with uncompressed gradients, run once for each setting.
fn dense(setting: Setting) -> Arc<RunRecord> {
    static RECORDS: Mutex<Vec<(Setting, Arc<RunRecord>)>> = Mutex::new(Vec::new());
    let mut records = RECORDS.lock().expect("no training panics while it is recorded");
    if let Some((_, record)) = records.iter().find(|(of, _)| *of == setting) {
        return Arc::clone(record);
    }
    let record = Arc::new(train(Codec::None, setting, CodecOptions::default()));
    records.push((setting, Arc::clone(&record)));
    record
}

/// Tolerance of the loss, relative.
const TOLERANCE: f64 = 0.02;

/// Mean of the last ten steps.
fn loss(record: &RunRecord) -> f64 {
    let last = &record.steps[record.steps.len() - 10..];
    last.iter().map(|s| s.loss).sum::<f64>() / last.len() as f64
}

/// Bytes that both ranks send per step.
fn sent(record: &RunRecord) -> f64 {
    record.ranks.iter().map(|rank| rank.bytes_sent_per_step.0 as f64).sum()
}

/// Bytes that both ranks send for the gradients in all steps, by the formulas; `votes` is whether the guard
/// votes.
fn announced(codec: Codec, votes: bool) -> f64 {
    let (model, strategy) = (learner(), strategy(codec, BATCH));
    let stages = stages::even(&model, &strategy);
    let of = |codec: Codec| -> f64 {
        let all = buckets(&model, &vec![LayerTraining::WHOLE; model.chain_len()], &strategy, &stages, 0, 0);
        let bytes = all.iter().flat_map(|bucket| {
            let parameters = bucket.parameters(&model, 0, 1);
            let tensors: Vec<Tensor> = parameters
                .iter()
                .map(|p| Tensor { offset: p.offset, rows: p.rows, columns: p.columns })
                .collect();
            phases(codec, Coded::Gradients, &tensors, bucket.padded, 2)
        });
        bytes.map(|phase| both_send(&phase)).sum()
    };
    let steps = f64::from(STEPS);
    let warmup = f64::from(strategy.communication.warmup_steps());
    let vote = if votes {
        (steps / f64::from(Guard::default().every)).floor() * both_send(&Phase::Max)
    } else {
        0.0
    };
    warmup * of(Codec::None) + (steps - warmup) * of(codec) + vote
}

/// Bytes that both members of a group of two send: in an all-reduce each sends half of the buffer twice, in
/// an all-gather its own part.
fn both_send(phase: &Phase) -> f64 {
    match phase {
        Phase::Sum { elements } => 2.0 * 4.0 * *elements as f64,
        Phase::Max => 2.0 * 4.0,
        Phase::AllGather { bytes } => bytes.iter().sum::<usize>() as f64,
        Phase::AllToAll { bytes } => (bytes[0][1] + bytes[1][0]) as f64,
    }
}

/// One codec of each kind: all-reduced, sent as factors, as entries, as signs.
fn is_first_of_its_kind(codec: &Codec) -> bool {
    matches!(codec, Codec::Fp16 | Codec::PowerSgd { .. } | Codec::TopK { .. } | Codec::OneBit)
}

#[test]
fn a_codec_of_each_kind_trains_to_the_dense_loss_in_the_bytes_that_it_announced() {
    train_to_the_dense_loss(Codec::DEFAULTS.into_iter().filter(is_first_of_its_kind), BATCH);
}

#[test]
fn every_codec_does_at_length() {
    train_to_the_dense_loss(Codec::DEFAULTS.into_iter().skip(1), BATCH_AT_LENGTH);
}

fn train_to_the_dense_loss(codecs: impl Iterator<Item = Codec>, batch: Batch) {
    let mut failures = Vec::new();
    for codec in codecs {
        let setting = Setting::of(codec, batch);
        let dense = dense(setting);
        let (whole, dense) = (sent(&dense), loss(&dense));
        let record = train(codec, setting, CodecOptions::default());
        let (loss, sent) = (loss(&record), sent(&record));
        let [bucket] = record.compression[..] else { panic!("one bucket is compressed") };
        println!(
            "| {} | {loss:.4} | {dense:.4} | {:+.2} % | {:.1} | {:.3} | {:.3} | {:.2} |",
            codec.name(),
            100.0 * (loss / dense - 1.0),
            whole / sent,
            bucket.contraction_median,
            bucket.contraction_lowest,
            bucket.error_growth
        );
        assert_eq!(bucket.fallback, None, "{}: the guard is for codecs that fail", codec.name());
        if loss / dense - 1.0 >= TOLERANCE {
            failures.push(format!("{}: {loss} against {dense}", codec.name()));
        }
        // Left and right factors differ in size and take turns.
        if let Codec::PowerSgdHalf { start_step, .. } = codec {
            let compressed = 1.0 - f64::from(start_step) / f64::from(STEPS);
            assert!(sent < whole * (1.0 - 0.5 * compressed));
            continue;
        }
        let keeps = bucket.error_growth > 0.0;
        let saved = (announced(Codec::None, false) - announced(codec, keeps)) / f64::from(STEPS);
        // Ranks report whole bytes per step.
        assert!((whole - sent - saved).abs() <= 2.0, "{}: {} saved, not {saved}", codec.name(), whole - sent);
    }
    assert!(failures.is_empty(), "{failures:?}");
}

/// These codecs train only because of error feedback: so the test above can fail. The effect is largest with
/// SGD, whose steps are proportional to the gradients; codecs with a late start step get an early one.
#[test]
fn without_error_feedback_factors_and_entries_do_not_train_to_the_dense_loss() {
    let short = Setting::sgd(0.02, 100, BATCH);
    need_error_feedback(&[
        (Codec::PowerSgd { rank: 4, start_step: 10 }, short),
        (Codec::TopK { per_mille: 10 }, short),
    ]);
}

#[test]
fn without_error_feedback_no_codec_does_at_length() {
    let long = |peak| Setting::sgd(peak, STEPS, BATCH_AT_LENGTH);
    let short = Setting::sgd(0.02, 100, BATCH_AT_LENGTH);
    need_error_feedback(&[
        (Codec::PowerSgd { rank: 4, start_step: 10 }, short),
        (Codec::TopK { per_mille: 10 }, short),
        (Codec::PowerSgdHalf { rank: 4, start_step: 10 }, long(0.05)),
        (Codec::Dgc { per_mille: 10, start_step: 10 }, long(0.1)),
        (Codec::OneBit, short),
    ]);
}

fn need_error_feedback(cases: &[(Codec, Setting)]) {
    let mut failures = Vec::new();
    for &(codec, setting) in cases {
        let dense = loss(&dense(setting));
        let above = |error_feedback: bool| {
            loss(&train(codec, setting, CodecOptions { error_feedback, ..CodecOptions::default() })) / dense
                - 1.0
        };
        let (with, without) = (above(true), above(false));
        println!("| {} | {dense:.4} | {:+.2} % | {:+.2} % |", codec.name(), 100.0 * with, 100.0 * without);
        if with >= TOLERANCE || without <= 2.0 * TOLERANCE {
            failures.push(format!("{}: {with} with error feedback, {without} without", codec.name()));
        }
    }
    assert!(failures.is_empty(), "{failures:?}");
}

/// The codec keeps the momentum instead of the optimizer: while it sends everything, the training is the same
/// as without it.
#[test]
fn momentum_correction_that_sends_everything_is_momentum() {
    let setting = Setting::sgd(0.05, 30, BATCH);
    let dense = loss(&dense(setting));
    let of = |codec| (loss(&train(codec, setting, CodecOptions::default())) / dense - 1.0).abs();
    let started = of(Codec::Dgc { per_mille: 10, start_step: 30 });
    assert!(started < 1e-4, "{started}");
    // Sent entries are masked, so without a dense start there would be no momentum at all.
    let masked = of(Codec::Dgc { per_mille: 1000, start_step: 0 });
    assert!(masked > 0.1, "{masked}");
}

/// A floor that top-k cannot reach: both members stop in the same step, and the rest of the training is
/// dense.
#[test]
fn a_bucket_whose_contraction_stays_below_the_floor_falls_back_to_dense() {
    let guard = Guard { every: 10, patience: 2, floor: 0.99 };
    let record = train(
        Codec::TopK { per_mille: 10 },
        Setting::of(Codec::None, BATCH),
        CodecOptions { guard, ..CodecOptions::default() },
    );
    let fallback = record.compression[0].fallback.expect("the floor is out of reach");
    assert_eq!((fallback.step, fallback.reason), (19, FallbackReason::Contraction));
    // Twenty steps of top-k with two votes, then 180 without compression.
    let codec = Codec::TopK { per_mille: 10 };
    let per_step = |codec| announced(codec, false) / f64::from(STEPS);
    let expected = 20.0 * per_step(codec) + 2.0 * both_send(&Phase::Max) + 180.0 * per_step(Codec::None);
    let others = sent(&dense(Setting::of(Codec::None, BATCH))) - per_step(Codec::None);
    let gradients = sent(&record) - others;
    assert!((gradients - expected / f64::from(STEPS)).abs() <= 2.0, "{gradients}, not {expected} / 200");
}
