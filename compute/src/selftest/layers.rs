//! Whole layers of two small models; both sides run the training code.

use super::lab::{BufferPrecision, Lab, Side, both, host};
use super::{Outcome, UnitRoundoff};
use crate::backend::{Backend, RegionMut};
use crate::layers::{LayerShape, TensorShard};
use autodist_spec::model::{self, Activation, LayerKind, ModelSpec, Positions};

/// Layers in the styles of GPT-2 and Llama, each with odd widths and with typical ones.
fn models() -> [ModelSpec; 4] {
    let gpt2 = ModelSpec {
        name: "GPT-2's kind, odd".into(),
        layers: 1,
        hidden: 18,
        heads: 4,
        kv_heads: 4,
        head_dim: 5,
        ffn: 22,
        vocab: 37,
        max_seq_len: 16,
        positions: Positions::Learned,
        norm: model::Norm::LayerNorm,
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
        name: "Llama's kind, odd".into(),
        heads: 12,
        kv_heads: 4,
        head_dim: 6,
        positions: Positions::Rotary { theta: 1e4 },
        norm: model::Norm::RmsNorm,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
        ..gpt2.clone()
    };
    let ordinary = |model: &ModelSpec| ModelSpec {
        name: model.name.replace("odd", "ordinary"),
        hidden: 64,
        heads: 4,
        kv_heads: if model.heads == model.kv_heads { 4 } else { 2 },
        head_dim: 16,
        ffn: 128,
        vocab: 128,
        ..model.clone()
    };
    let (large_gpt2, large_llama) = (ordinary(&gpt2), ordinary(&llama));
    [gpt2, llama, large_gpt2, large_llama]
}

/// A rank's part of a model, for micro-batches of one shape.
struct Case {
    shape: LayerShape,
    name: String,
    keep_probabilities: bool,
    /// This rank's part of the token table.
    table_len: usize,
    tied: bool,
    vocab: u32,
}

/// Named results, in the order in which both sides compute them.
type Results = Vec<(&'static str, Vec<f64>)>;

pub fn run<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>) -> Outcome {
    let half = TensorShard { rank: 1, degree: 2, sequence_parallel: false };
    for model in models() {
        for (shard, of) in [(TensorShard::WHOLE, "whole"), (half, "rank 1 of 2")] {
            let case = Case::new(&model, shard, of);
            embedding(lab, &case)?;
            head(lab, &case)?;
            block(lab, &case)?;
        }
        // Fused attention never keeps probabilities.
        if lab.device.fused_attention().is_none() {
            let case = Case::new(&model, TensorShard::WHOLE, "probabilities computed again");
            block(lab, &Case { keep_probabilities: false, ..case })?;
        }
    }
    Ok(())
}

impl Case {
    fn new(model: &ModelSpec, shard: TensorShard, of: &str) -> Self {
        let (micro_batch, seq_len) = if model.hidden == 64 { (2, 16) } else { (3, 7) };
        let shape = LayerShape::new(model, micro_batch, seq_len, shard);
        let table = shape.layout(LayerKind::Embedding).range("embedding.weight");
        Self {
            shape,
            name: format!("{}, {of}", model.name),
            keep_probabilities: true,
            table_len: table.map_or(0, |range| range.len()),
            tied: model.tied_embeddings,
            vocab: model.vocab,
        }
    }

    /// Random parameters: matrices that preserve the magnitude of their inputs, and norm weights around 1.
    fn parameters<B: Backend<Element = f32>>(&self, lab: &mut Lab<'_, B>, kind: LayerKind) -> Vec<f64> {
        let mut parameters = Vec::new();
        for entry in self.shape.layout(kind).entries() {
            let (centre, spread) = match entry.parameter.columns {
                1 if entry.parameter.name.ends_with("norm.weight") => (1.0, 0.5),
                1 => (0.0, 0.5),
                columns => (0.0, (3.0 / columns as f64).sqrt()),
            };
            parameters.extend(lab.around(centre, spread, entry.range.len()));
        }
        parameters
    }

    fn activation_len(&self) -> usize {
        self.shape.tokens * self.shape.hidden
    }

    /// Each parameter's part of a layer's gradients.
    fn gradients<B: Backend>(&self, device: &B, kind: LayerKind, gradients: &B::Buffer) -> Results {
        let all = host(device, gradients);
        let entries = self.shape.layout(kind).entries().iter();
        entries.map(|entry| (entry.parameter.name, all[entry.range.clone()].to_vec())).collect()
    }
}

/// Compares results and gradients, of both sides.
fn check<B: Backend<Element = f32>>(
    lab: &mut Lab<'_, B>,
    what: &'static str,
    case: &Case,
    tolerance: f64,
    sides: [(Results, Results); 2],
) -> Outcome {
    let [(found, found_gradients), (expected, expected_gradients)] = sides;
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        lab.check_values(what, &format!("{}, {name}", case.name), tolerance, (found, expected), 0.0)?;
    }
    // A key's bias shifts all scores of a query equally, so its gradient is zero except for rounding: errors
    // are relative to at least a typical gradient of the layer.
    let all: Vec<f64> = expected_gradients.iter().flat_map(|(_, values)| values.iter().copied()).collect();
    let typical = (all.iter().map(|x| x * x).sum::<f64>() / all.len() as f64).sqrt();
    for ((name, found), (_, expected)) in found_gradients.iter().zip(&expected_gradients) {
        let case = format!("{}, gradient of {name}", case.name);
        lab.check_values(what, &case, tolerance, (found, expected), typical)?;
    }
    Ok(())
}

impl UnitRoundoff {
    /// For a chain of operations, each of which rounds its inputs or outputs, including GEMMs with sums of up
    /// to a few hundred terms.
    fn chain(self, operations: usize) -> f64 {
        operations as f64 * (self.working.max(self.operand()) + 8.0 * self.full()) + self.sum(256)
    }
}

/// Norm, attention, norm, MLP, forward and backward.
fn block<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, case: &Case) -> Outcome {
    let parameters = case.parameters(lab, LayerKind::Block);
    let parameters = lab.upload(BufferPrecision::Working, &parameters);
    let [x, dy] = [(); 2].map(|()| lab.random(BufferPrecision::Working, case.activation_len()));
    let sides =
        both!(lab, on, [parameters, x, dy], [], block_on(on, case, parameters, &x.buffer, &dy.buffer));
    check(lab, "block", case, lab.rounding.chain(16), sides.into())
}

fn block_on<B: Backend>(
    device: &B,
    case: &Case,
    parameters: &Side<B>,
    x: &B::Buffer,
    dy: &B::Buffer,
) -> (Results, Results) {
    let (shape, parameters) = (&case.shape, parameters.region());
    let mut gradients = device.zeros_full(shape.layout(LayerKind::Block).len());
    let (h, attention_statistics) = shape.attention_norm.forward(device, parameters, x);
    let (middle, attention) = shape.attention.forward(device, parameters, &h, x, case.keep_probabilities);
    let (normed, mlp_statistics) = shape.mlp_norm.forward(device, parameters, &middle);
    let (y, mlp) = shape.mlp.forward(device, parameters, &normed, &middle);

    let to = RegionMut::start(&mut gradients);
    let dh = shape.mlp.backward(device, parameters, to, &normed, mlp, dy);
    let to = RegionMut::start(&mut gradients);
    let d_middle = shape.mlp_norm.backward(device, parameters, to, &middle, mlp_statistics, dh, Some(dy));
    let to = RegionMut::start(&mut gradients);
    let dh = shape.attention.backward(device, parameters, to, &h, attention, &d_middle);
    let to = RegionMut::start(&mut gradients);
    let dx =
        shape.attention_norm.backward(device, parameters, to, x, attention_statistics, dh, Some(&d_middle));
    let named = [("attention's output", &middle), ("output", &y), ("MLP's input gradient", &d_middle)];
    let results = named.into_iter().chain([("input gradient", &dx)]);
    let results = results.map(|(name, buffer)| (name, host(device, buffer))).collect();
    (results, case.gradients(device, LayerKind::Block, &gradients))
}

fn embedding<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, case: &Case) -> Outcome {
    let parameters = case.parameters(lab, LayerKind::Embedding);
    let parameters = lab.upload(BufferPrecision::Working, &parameters);
    let tokens = lab.ids(case.shape.tokens, case.vocab);
    let dy = lab.random(BufferPrecision::Working, case.activation_len());
    let sides = both!(lab, on, [parameters, tokens, dy], [], {
        let out = case.shape.embedding.forward(on, parameters.region(), tokens);
        let mut gradients = on.zeros_full(case.shape.layout(LayerKind::Embedding).len());
        case.shape.embedding.backward(on, RegionMut::start(&mut gradients), tokens, &dy.buffer);
        (vec![("output", host(on, &out))], case.gradients(on, LayerKind::Embedding, &gradients))
    });
    check(lab, "embedding", case, lab.rounding.chain(1), sides.into())
}

/// Final norm, logits and loss, forward and backward.
fn head<B: Backend<Element = f32>>(lab: &mut Lab<'_, B>, case: &Case) -> Outcome {
    let parameters = case.parameters(lab, LayerKind::Head);
    let parameters = lab.upload(BufferPrecision::Working, &parameters);
    let tied = lab.around(0.0, 0.5, if case.tied { case.table_len } else { 0 });
    let tied = lab.upload(BufferPrecision::Working, &tied);
    let targets = lab.ids(case.shape.tokens, case.vocab);
    let x = lab.random(BufferPrecision::Working, case.activation_len());
    let sides = both!(lab, on, [parameters, tied, targets, x], [], {
        head_on(on, case, parameters, tied, targets, &x.buffer)
    });
    check(lab, "head", case, lab.rounding.chain(8), sides.into())
}

fn head_on<B: Backend>(
    device: &B,
    case: &Case,
    parameters: &Side<B>,
    tied: &Side<B>,
    targets: &B::Indices,
    x: &B::Buffer,
) -> (Results, Results) {
    let (shape, parameters) = (&case.shape, parameters.region());
    let mut gradients = device.zeros_full(shape.layout(LayerKind::Head).len());
    let mut tied_gradient = device.zeros_full(case.table_len);
    let own = shape.head.table_offset;
    let table = own.map_or(tied.region(), |offset| parameters.skip(offset));
    let (h, statistics) = shape.final_norm.forward(device, parameters, x);
    let (mut logits, max) = shape.head.logits(device, table, &h);
    let found_logits = host(device, &logits);
    let sums = shape.head.exponentials(device, &mut logits, max, targets);
    let loss = device.read(&shape.head.loss(device, &sums));
    let scale = (shape.tokens as f64).recip();
    let to = match own {
        Some(offset) => RegionMut::new(&mut gradients, offset),
        None => RegionMut::start(&mut tied_gradient),
    };
    let dh = shape.head.backward(device, table, to, &h, logits, sums, targets, scale);
    let to = RegionMut::start(&mut gradients);
    let dx = shape.final_norm.backward(device, parameters, to, x, statistics, dh, None);
    let results = vec![("logits", found_logits), ("loss", vec![loss]), ("input gradient", host(device, &dx))];
    let mut of_parameters = case.gradients(device, LayerKind::Head, &gradients);
    if own.is_none() {
        of_parameters.push(("embedding.weight", host(device, &tied_gradient)));
    }
    (results, of_parameters)
}
