//! Times GEMMs and one transformer block, forward and backward, on GPU 0: `cargo run --release -p
//! autodist-cuda --example gpu_block`. `compute/examples/block_torch.py --device cuda` times the same in
//! PyTorch.
#![expect(clippy::print_stdout, reason = "the times are the result")]

use autodist_compute::layers::{LayerShape, TensorShard};
use autodist_compute::{Backend, GemmShape, Region, RegionMut};
use autodist_cuda::{Cuda, CudaError, Libraries, Search};
use autodist_spec::Precision;
use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions};
use std::error::Error;

const SEQ_LEN: usize = 1024;
const MICRO_BATCH: usize = 8;
const WARM_UP: usize = 5;
const REPEATS: usize = 31;
const SIDE: usize = 4096;

fn main() -> Result<(), Box<dyn Error>> {
    let libraries = Libraries::load(&Search::from_environment())?;
    let open = |precision| Cuda::open(libraries.clone(), 0, precision);
    println!("{}", open(Precision::Fp32)?.gpu().name);
    for precision in Precision::OWN {
        let device = open(precision)?;
        let seconds = product(&device);
        let rate = 2.0 * (SIDE as f64).powi(3) / seconds / 1e12;
        println!("{:5} product of {SIDE}^3: {:8.3} ms, {rate:6.1} TFLOP/s", precision.name(), seconds * 1e3);
        for model in models() {
            let seconds = block(&device, &model)?;
            println!("{:5} {}: {:8.3} ms", precision.name(), model.name, seconds * 1e3);
        }
    }
    Ok(())
}

/// GPT-2 small's block, and one of the same width in Llama's style.
fn models() -> [ModelSpec; 2] {
    let gpt2 = ModelSpec {
        name: "gpt2-style".into(),
        layers: 1,
        hidden: 768,
        heads: 12,
        kv_heads: 12,
        head_dim: 64,
        ffn: 3072,
        vocab: 1,
        max_seq_len: SEQ_LEN as u32,
        positions: Positions::Learned,
        norm: Norm::LayerNorm,
        norm_epsilon: 1e-5,
        activation: Activation::Gelu,
        bias: true,
        tied_embeddings: true,
        window: None,
        latent: None,
        experts: None,
        blocks: Vec::new(),
        additions: Vec::new(),
    };
    let llama = ModelSpec {
        name: "llama-style".into(),
        kv_heads: 4,
        positions: Positions::Rotary { theta: 10_000.0 },
        norm: Norm::RmsNorm,
        activation: Activation::SwiGlu,
        bias: false,
        ..gpt2.clone()
    };
    [gpt2, llama]
}

/// Median seconds of `work`, by the device's clock.
fn time(device: &Cuda, mut work: impl FnMut()) -> f64 {
    let mut seconds = Vec::with_capacity(REPEATS);
    for repeat in 0..WARM_UP + REPEATS {
        let start = device.record();
        work();
        let end = device.record();
        if repeat >= WARM_UP {
            seconds.push((start, end));
        }
    }
    // Times are read at the end, so that the queue never becomes empty.
    let mut seconds: Vec<f64> =
        seconds.iter().map(|(start, end)| device.seconds_between(start, end)).collect();
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}

fn product(device: &Cuda) -> f64 {
    let [a, b] = [0.3, 0.7].map(|value| device.upload(&vec![value; SIDE * SIDE]));
    let mut c = device.uninitialised(SIDE * SIDE);
    time(device, || {
        let (a, b) = (Region::start(&a).rows(SIDE), Region::start(&b).rows(SIDE).transposed());
        device.matmul(GemmShape::new(SIDE, SIDE, SIDE), 1.0, a, b, 0.0, RegionMut::start(&mut c).rows(SIDE));
    })
}

fn block(device: &Cuda, model: &ModelSpec) -> Result<f64, CudaError> {
    let shape = LayerShape::new(model, MICRO_BATCH, SEQ_LEN, TensorShard::WHOLE);
    let len = shape.layout(LayerKind::Block).len();
    let parameters = device.upload(&wave(len, 0.02));
    let [x, dy] = [1.0, 1e-3].map(|size| device.upload(&wave(shape.tokens * shape.hidden, size)));
    let mut gradients = device.zeros_full(len);
    let p = Region::start(&parameters);
    let seconds = time(device, || {
        let (attention_h, attention_statistics) = shape.attention_norm.forward(device, p, &x);
        let (middle, attention) = shape.attention.forward(device, p, &attention_h, &x, true);
        let (mlp_h, mlp_statistics) = shape.mlp_norm.forward(device, p, &middle);
        let (_y, mlp) = shape.mlp.forward(device, p, &mlp_h, &middle);
        let mut g = RegionMut::start(&mut gradients);
        let dh = shape.mlp.backward(device, p, g.skip(0), &mlp_h, mlp, &dy);
        let d_middle = shape.mlp_norm.backward(device, p, g.skip(0), &middle, mlp_statistics, dh, Some(&dy));
        let dh = shape.attention.backward(device, p, g.skip(0), &attention_h, attention, &d_middle);
        shape.attention_norm.backward(device, p, g, &x, attention_statistics, dh, Some(&d_middle));
    });
    match device.synchronise() {
        Ok(()) => Ok(seconds),
        Err(failure) => Err(CudaError::Library { operation: "the block", text: failure.to_string() }),
    }
}

/// Numbers between `-size` and `size`.
fn wave(len: usize, size: f32) -> Vec<f32> {
    (0..len).map(|i| size * (i as f32 * 0.7311).sin()).collect()
}
