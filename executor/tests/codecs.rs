//! Training with gradients in fewer bytes: the same plan, the same data, and where the loss ends.

use autodist_compute::Cpu;
use autodist_executor::{DataSource, Task, local};
use autodist_program::stages;
use autodist_spec::{
    Activation, Codec, Communication, Job, ModelSpec, Norm, ParallelStrategy, Positions, Reduction,
};
use std::time::Duration;

fn model() -> ModelSpec {
    ModelSpec {
        name: "small".to_owned(),
        layers: 2,
        hidden: 64,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        ffn: 128,
        vocab: 64,
        max_seq_len: 64,
        positions: Positions::Rotary { theta: 10_000.0 },
        norm: Norm::RmsNorm,
        norm_epsilon: 1e-5,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
    }
}

/// Mean loss of the last ten of 200 steps, and bytes that a rank sent in a step.
fn train(codec: Codec) -> (f64, u64) {
    let model = model();
    let mut job = Job::new(16, 64);
    job.learning_rate.peak = 5e-3;
    let communication =
        Communication { reduce: Reduction { codec, ..Reduction::default() }, ..Communication::default() };
    let strategy = ParallelStrategy { communication, ..ParallelStrategy::data_parallel(2, 8) };
    let stages = stages::even(&model, &strategy);
    let task = Task {
        model,
        job,
        strategy,
        stages,
        data: DataSource::Synthetic,
        steps: 200,
        warmup_steps: 0,
        detail: false,
        emulated_flops_per_s: None,
    };
    let trained = local::train(&Cpu::<f32>::new(), &task, Duration::from_secs(60));
    let (record, _) = trained.unwrap_or_else(|error| panic!("{}: {error}", codec.name()));
    let last = &record.steps[190..];
    (last.iter().map(|s| s.loss).sum::<f64>() / last.len() as f64, record.ranks[0].bytes_sent_per_step.0)
}

#[test]
fn every_codec_trains_to_the_dense_loss_in_fewer_bytes() {
    let (dense, whole) = train(Codec::None);
    // 1-bit Adam wants an optimizer whose second moments stay after the warm-up.
    let trained = Codec::DEFAULTS.into_iter().filter(|codec| !matches!(codec, Codec::OneBitAdam { .. }));
    for codec in trained.skip(1) {
        let (loss, sent) = train(codec);
        println!(
            "{}: {loss:.4} against {dense:.4}, {:.1} times fewer bytes",
            codec.name(),
            whole as f64 / sent as f64
        );
        assert!(sent < whole, "{} sent {sent} bytes, as they are {whole}", codec.name());
        assert!(loss / dense - 1.0 < tolerance(codec), "{}: {loss} against {dense}", codec.name());
    }
}

/// Of the loss, relative.
fn tolerance(_: Codec) -> f64 {
    0.02
}
