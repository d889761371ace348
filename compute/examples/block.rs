//! Times one transformer block, forward and backward, on one thread: `cargo run --release -p autodist-compute
//! --example block`. `block_torch.py` times the same in PyTorch.
#![expect(clippy::print_stdout, reason = "the times are the result")]

use autodist_compute::layers::{LayerShape, TensorShard};
use autodist_compute::{Backend, Cpu, Region, RegionMut};
use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions};
use std::time::{Duration, Instant};

const SEQ_LEN: usize = 256;
const MICRO_BATCH: usize = 4;
const WARM_UP: usize = 5;
const REPEATS: usize = 31;

fn main() {
    let gpt2 = ModelSpec {
        name: "gpt2-style".into(),
        layers: 1,
        hidden: 512,
        heads: 8,
        kv_heads: 8,
        head_dim: 64,
        ffn: 2048,
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
    println!("hidden 512, 8 heads, sequence 256, batch 4, fp32, one thread; forward + backward, medians");
    for model in [gpt2, llama] {
        for (keep_probabilities, name) in [(true, "probabilities kept"), (false, "selective recomputation")] {
            let (cpu, wall) = time(&model, keep_probabilities);
            println!(
                "{:12} {name:24} CPU {:7.2} ms  wall {:7.2} ms",
                model.name,
                milliseconds(cpu),
                milliseconds(wall)
            );
        }
    }
}

/// Median CPU and wall time.
fn time(model: &ModelSpec, keep_probabilities: bool) -> (Duration, Duration) {
    let mut block = Block::new(model);
    let (mut cpu, mut wall) = (Vec::new(), Vec::new());
    for repeat in 0..WARM_UP + REPEATS {
        let (wall_start, cpu_start) = (Instant::now(), cpu_time());
        block.forward_backward(keep_probabilities);
        if repeat >= WARM_UP {
            cpu.push(cpu_time() - cpu_start);
            wall.push(wall_start.elapsed());
        }
    }
    let median = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    (median(cpu), median(wall))
}

type Buffer = <Cpu<f32> as Backend>::Buffer;

struct Block {
    device: Cpu<f32>,
    shape: LayerShape,
    parameters: Buffer,
    gradients: Buffer,
    x: Buffer,
    dy: Buffer,
}

impl Block {
    fn new(model: &ModelSpec) -> Self {
        let device = Cpu::new();
        let shape = LayerShape::new(model, MICRO_BATCH, SEQ_LEN, TensorShard::WHOLE);
        let len = shape.layout(LayerKind::Block).len();
        let parameters = device.upload(&wave(len, 0.02));
        let [x, dy] = [1.0, 1e-3].map(|size| device.upload(&wave(shape.tokens * shape.hidden, size)));
        let gradients = device.zeros(len);
        Self { device, shape, parameters, gradients, x, dy }
    }

    fn forward_backward(&mut self, keep_probabilities: bool) -> Buffer {
        let Self { device, shape, parameters, gradients, x, dy } = self;
        let p = Region::start(parameters);
        let (attention_h, attention_statistics) = shape.attention_norm.forward(device, p, x);
        let (middle, attention) = shape.attention.forward(device, p, &attention_h, x, keep_probabilities);
        let (mlp_h, mlp_statistics) = shape.mlp_norm.forward(device, p, &middle);
        let (_y, mlp) = shape.mlp.forward(device, p, &mlp_h, &middle);

        let mut g = RegionMut::start(gradients);
        let dh = shape.mlp.backward(device, p, g.skip(0), &mlp_h, mlp, dy);
        let d_middle = shape.mlp_norm.backward(device, p, g.skip(0), &middle, mlp_statistics, dh, Some(dy));
        let dh = shape.attention.backward(device, p, g.skip(0), &attention_h, attention, &d_middle);
        shape.attention_norm.backward(device, p, g, x, attention_statistics, dh, Some(&d_middle))
    }
}

/// Numbers between `-size` and `size`.
fn wave(len: usize, size: f32) -> Vec<f32> {
    (0..len).map(|i| size * (i as f32 * 0.7311).sin()).collect()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// CPU time of this process, unaffected by other load.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
