//! Compares the memory of each segment, counted at the allocator, with the formulas of the memory model.
//!
//! Only buffers count. Their alignment distinguishes them from the scratch space of the gemm crate (bounded
//! by the last-level cache) and from the rotary angles of a single position.

use autodist_compute::cpu::ALIGNMENT;
use autodist_compute::layers::{LayerShape, TensorShard};
use autodist_compute::{Backend, Cpu, Region, RegionMut};
use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

fn count(layout: Layout, sign: isize) {
    if layout.align() == ALIGNMENT {
        LIVE.set(LIVE.get() + sign * layout.size() as isize);
    }
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: every call is forwarded to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout, 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(layout, -1);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Counts the elements in buffers allocated since it was created.
struct Meter {
    start: isize,
}

impl Meter {
    fn new() -> Self {
        Self { start: LIVE.get() }
    }

    /// Runs `work` and checks that it holds at most `peak` elements and leaves `left`.
    fn expect<R>(&self, what: &str, peak: usize, left: usize, work: impl FnOnce() -> R) -> R {
        PEAK.set(LIVE.get());
        let result = work();
        let measured = [PEAK.get(), LIVE.get()].map(|bytes| (bytes - self.start) as usize / size_of::<f32>());
        assert_eq!(measured, [peak, left], "{what}: elements at most, elements left");
        result
    }
}

/// Each meter starts before forward, so saved activations count in backward; inputs and gradients do not.
fn check(model: &ModelSpec, keep_probabilities: bool) {
    let (micro_batch, seq_len) = (3, 96);
    let device = Cpu::<f32>::new();
    let shape = LayerShape::new(model, micro_batch, seq_len, TensorShard::WHOLE);

    // Sizes per token and of one head.
    let (tokens, hidden, ffn, vocab) = (shape.tokens, shape.hidden, model.ffn as usize, model.vocab as usize);
    let query = (model.heads * model.head_dim) as usize;
    let qkv = query + 2 * (model.kv_heads * model.head_dim) as usize;
    let inner = if model.activation == Activation::SwiGlu { 2 * ffn } else { ffn };
    let statistics = if model.norm == Norm::LayerNorm { 2 } else { 1 };
    let (scores, head) = (seq_len * seq_len, seq_len * model.head_dim as usize);
    let residual = tokens * hidden;

    let len = shape.layout(LayerKind::Block).len();
    let (parameters, mut gradients) = (device.upload(&vec![0.01; len]), device.zeros(len));
    let (table, mut table_gradient) =
        (device.upload(&vec![0.1; vocab * hidden]), device.zeros(vocab * hidden));
    let (x, dy) = (device.upload(&vec![0.5; residual]), device.upload(&vec![0.1; residual]));
    let targets = device.upload_indices(&vec![1; tokens]);
    let (p, table) = (Region::start(&parameters), Region::start(&table));

    let meter = Meter::new();
    let held = residual + tokens * statistics;
    let (h, saved) =
        meter.expect("norm forward", held, held, || shape.attention_norm.forward(&device, p, &x));
    let g = RegionMut::start(&mut gradients);
    let dx = meter.expect("norm backward", held, residual, || {
        shape.attention_norm.backward(&device, p, g, &x, saved, h, Some(&dy))
    });
    drop(dx);

    let meter = Meter::new();
    let kept = if keep_probabilities { micro_batch * model.heads as usize * scores } else { 0 };
    let recomputed = if keep_probabilities { 0 } else { scores };
    let held = tokens * (qkv + query) + kept;
    let (y, saved) =
        meter.expect("attention forward", held + residual.max(recomputed), held + residual, || {
            shape.attention.forward(&device, p, &x, &x, keep_probabilities)
        });
    drop(y);
    let g = RegionMut::start(&mut gradients);
    let peak = (held + recomputed + scores + 3 * head).max(tokens * qkv + residual);
    let dx = meter.expect("attention backward", peak, residual, || {
        shape.attention.backward(&device, p, g, &x, saved, &dy)
    });
    drop(dx);

    let meter = Meter::new();
    let held = tokens * inner;
    let (y, saved) = meter.expect("MLP forward", held + tokens * ffn + residual, held + residual, || {
        shape.mlp.forward(&device, p, &x, &x)
    });
    drop(y);
    let g = RegionMut::start(&mut gradients);
    let dx = meter.expect("MLP backward", held + (tokens * ffn).max(residual), residual, || {
        shape.mlp.backward(&device, p, g, &x, saved, &dy)
    });
    drop(dx);

    let meter = Meter::new();
    let held = tokens * vocab;
    let (exponentials, statistics) =
        meter.expect("head forward", held + 3 * tokens, held + 2 * tokens, || {
            let (mut logits, max) = shape.head.logits(&device, table, &x);
            let statistics = shape.head.exponentials(&device, &mut logits, max, &targets);
            (logits, statistics)
        });
    let g = RegionMut::start(&mut table_gradient);
    let dx = meter.expect("head backward", held + residual, residual, || {
        shape.head.backward(&device, table, g, &x, exponentials, statistics, &targets, 1.0)
    });
    drop(dx);
}

#[test]
fn segments_hold_what_the_formulas_say() {
    let gpt2 = ModelSpec {
        name: "gpt2-like".into(),
        layers: 1,
        hidden: 64,
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
        ffn: 256,
        vocab: 500,
        max_seq_len: 96,
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
        kv_heads: 2,
        positions: Positions::Rotary { theta: 1e4 },
        norm: Norm::RmsNorm,
        activation: Activation::SwiGlu,
        bias: false,
        ..gpt2.clone()
    };
    for model in [gpt2, llama] {
        for keep_probabilities in [true, false] {
            check(&model, keep_probabilities);
        }
    }
}
