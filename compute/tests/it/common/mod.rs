//! A whole model on a group of tensor-parallel ranks, one after the other, with the collectives done by hand:
//! a small version of the executor.

use autodist_compute::cpu::Real;
use autodist_compute::layers::{HeadStatistics, LayerShape, NormLayer, NormStatistics, TensorShard};
use autodist_compute::{Backend, Cpu, Region, RegionMut};
use autodist_spec::model::{self, Activation, ModelSpec, Positions, TensorSplit, share};

/// Widths that are not multiples of a vector register, and an odd vocabulary, which two ranks cannot halve.
pub fn gpt2_like() -> ModelSpec {
    ModelSpec {
        name: "gpt2-like".into(),
        layers: 2,
        hidden: 18,
        heads: 4,
        kv_heads: 4,
        head_dim: 5,
        ffn: 22,
        vocab: 13,
        max_seq_len: 8,
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
    }
}

/// Grouped queries, rotary positions, gated MLP.
pub fn llama_like() -> ModelSpec {
    ModelSpec {
        name: "llama-like".into(),
        heads: 12,
        kv_heads: 4,
        head_dim: 6,
        positions: Positions::Rotary { theta: 100.0 },
        norm: model::Norm::RmsNorm,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: false,
        ..gpt2_like()
    }
}

/// Llama's layers with biases and a tied table, as in Qwen.
pub fn qwen_like() -> ModelSpec {
    ModelSpec { name: "qwen-like".into(), bias: true, tied_embeddings: true, ..llama_like() }
}

/// Numbers in -1..1 that are the same in every run.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn bits(&mut self) -> u64 {
        // SplitMix64 (Steele et al., OOPSLA 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn number(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn numbers(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.number()).collect()
    }
}

/// Parameters, or gradients, of every layer of the chain, undivided.
pub type Chain = Vec<Vec<f64>>;

pub fn random_parameters(model: &ModelSpec, noise: &mut Noise) -> Chain {
    let layer = |layer| {
        let parameter = |parameter: &model::Parameter| {
            let centre = if parameter.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let numbers = noise.numbers(parameter.elements() as usize);
            numbers.into_iter().map(|x| centre + 0.5 * x).collect::<Vec<_>>()
        };
        model.parameters(layer).iter().flat_map(parameter).collect()
    };
    (0..model.chain_len()).map(layer).collect()
}

#[derive(Clone)]
pub struct Batch {
    pub micro_batch: usize,
    pub seq_len: usize,
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
}

impl Batch {
    pub fn random(model: &ModelSpec, micro_batch: usize, seq_len: usize, noise: &mut Noise) -> Self {
        let mut ids =
            || (0..micro_batch * seq_len).map(|_| (noise.bits() % u64::from(model.vocab)) as u32).collect();
        Self { micro_batch, seq_len, tokens: ids(), targets: ids() }
    }
}

#[derive(Clone, Copy)]
pub struct Way {
    pub degree: u32,
    pub sequence_parallel: bool,
    pub keep_probabilities: bool,
    pub heads_at_once: usize,
}

pub const ONE_RANK: Way =
    Way { degree: 1, sequence_parallel: false, keep_probabilities: true, heads_at_once: 1 };

/// Mean loss and its gradients.
pub fn train_step<T: Real>(model: &ModelSpec, parameters: &Chain, batch: &Batch, way: Way) -> (f64, Chain) {
    let mut group = Group::<T>::new(model, parameters, batch, way);
    let loss = group.step(batch);
    (loss, group.gradients(parameters))
}

type Buffer<T> = <Cpu<T> as Backend>::Buffer;

/// One buffer for each rank, or for each layer.
type Buffers<T> = Vec<Buffer<T>>;

/// The saved activations of half a block, on every rank.
struct Half<T: Real, S> {
    x: Buffers<T>,
    statistics: Vec<NormStatistics<Cpu<T>>>,
    h: Buffers<T>,
    saved: Vec<S>,
}

struct Rank<T: Real> {
    shape: LayerShape,
    parameters: Buffers<T>,
    gradients: Buffers<T>,
}

impl<T: Real> Rank<T> {
    fn parameters(&self, layer: usize) -> Region<'_, Cpu<T>> {
        Region::start(&self.parameters[layer])
    }

    fn parts(&mut self, layer: usize) -> (&LayerShape, Region<'_, Cpu<T>>, RegionMut<'_, Cpu<T>>) {
        let Self { shape, parameters, gradients } = self;
        (shape, Region::start(&parameters[layer]), RegionMut::start(&mut gradients[layer]))
    }
}

struct Group<'a, T: Real> {
    device: Cpu<T>,
    model: &'a ModelSpec,
    way: Way,
    ranks: Vec<Rank<T>>,
}

/// Visits a rank's part of a layer: index in the whole, index in the part, whether replicated.
fn cut(model: &ModelSpec, layer: usize, rank: u32, degree: u32, mut visit: impl FnMut(usize, usize, bool)) {
    let (mut whole, mut local) = (0, 0);
    for parameter in model.parameters(layer) {
        let range = |total| share(total, rank.into(), degree.into());
        let (rows, columns) = match parameter.split {
            TensorSplit::Rows => (range(parameter.rows), 0..parameter.columns),
            TensorSplit::Columns => (0..parameter.rows, range(parameter.columns)),
            TensorSplit::Replicated => (0..parameter.rows, 0..parameter.columns),
        };
        for row in rows {
            for column in columns.clone() {
                let index = whole + row * parameter.columns + column;
                visit(index as usize, local, parameter.split == TensorSplit::Replicated);
                local += 1;
            }
        }
        whole += parameter.elements();
    }
}

impl<'a, T: Real> Group<'a, T> {
    fn new(model: &'a ModelSpec, parameters: &Chain, batch: &Batch, way: Way) -> Self {
        let heads_at_once = way.heads_at_once.try_into().expect("at least one head");
        let device = Cpu::new().with_heads_at_once(heads_at_once);
        let rank = |rank| {
            let shard = TensorShard { rank, degree: way.degree, sequence_parallel: way.sequence_parallel };
            let shape = LayerShape::new(model, batch.micro_batch, batch.seq_len, shard);
            let local = |(layer, whole): (usize, &Vec<f64>)| {
                let mut local = vec![T::ZERO; shape.layout(model.kind(layer)).len()];
                cut(model, layer, rank, way.degree, |from, to, _| local[to] = T::from_f64(whole[from]));
                device.upload(&local)
            };
            let parameters: Buffers<T> = parameters.iter().enumerate().map(local).collect();
            let gradients = parameters.iter().map(|p| device.zeros(p.len())).collect();
            Rank { shape, parameters, gradients }
        };
        let ranks = (0..way.degree).map(rank).collect();
        Self { device, model, way, ranks }
    }

    /// Replicated gradients are all-reduced if the sequence is sharded, else equal on all ranks.
    fn gradients(&self, like: &Chain) -> Chain {
        let mut gradients: Chain = like.iter().map(|layer| vec![0.0; layer.len()]).collect();
        for (layer, whole) in gradients.iter_mut().enumerate() {
            for (index, rank) in self.ranks.iter().enumerate() {
                let local = &rank.gradients[layer];
                cut(self.model, layer, index as u32, self.way.degree, |to, from, replicated| {
                    let value = local[from].to_f64();
                    if replicated && !self.way.sequence_parallel && index > 0 {
                        assert!((whole[to] - value).abs() <= 1e-5 * (1.0 + value.abs()), "replicas differ");
                    } else {
                        whole[to] += value;
                    }
                });
            }
        }
        gradients
    }

    /// All-reduce.
    fn sum(&self, parts: Buffers<T>) -> Buffers<T> {
        let mut total = self.device.zeros(parts[0].len());
        for part in &parts {
            self.device.add(part.len(), Region::start(part), RegionMut::start(&mut total));
        }
        parts.iter().map(|_| self.device.upload(&total)).collect()
    }

    /// Reduces partial sums onto the residual stream: all-reduce, or reduce-scatter of rows.
    fn scatter(&self, parts: Buffers<T>) -> Buffers<T> {
        let whole = self.sum(parts);
        let rows = |(rank, whole): (&Rank<T>, &Buffer<T>)| {
            let width = rank.shape.hidden;
            self.device.upload(&whole[rank.shape.rows.start * width..rank.shape.rows.end * width])
        };
        self.ranks.iter().zip(&whole).map(rows).collect()
    }

    /// All-gather: all rows of the residual stream, on every rank.
    fn gather(&self, shards: &Buffers<T>) -> Buffers<T> {
        let whole = match self.way.sequence_parallel {
            true => shards.iter().flat_map(|shard| shard.iter().copied()).collect(),
            false => shards[0].to_vec(),
        };
        shards.iter().map(|_| self.device.upload(&whole)).collect()
    }

    fn each<R>(&self, f: impl Fn(usize, &Rank<T>) -> R) -> Vec<R> {
        self.ranks.iter().enumerate().map(|(index, rank)| f(index, rank)).collect()
    }

    fn step(&mut self, batch: &Batch) -> f64 {
        let device = self.device.clone();
        let tokens = device.upload_indices(&batch.tokens);
        let out = self.each(|_, r| r.shape.embedding.forward(&device, r.parameters(0), &tokens));
        let mut x = self.scatter(out);
        let mut saved = Vec::new();
        for layer in 1..=self.model.layers as usize {
            let (middle, attention) = self.forward_half(
                layer,
                x,
                |shape| &shape.attention_norm,
                |r, h, x| {
                    let keep = self.way.keep_probabilities;
                    r.shape.attention.forward(&device, r.parameters(layer), h, x, keep)
                },
            );
            let (y, mlp) = self.forward_half(
                layer,
                middle,
                |shape| &shape.mlp_norm,
                |r, h, x| r.shape.mlp.forward(&device, r.parameters(layer), h, x),
            );
            x = y;
            saved.push((layer, attention, mlp));
        }
        let (loss, mut dy) = self.head(x, batch);
        for (layer, attention, mlp) in saved.into_iter().rev() {
            dy = self.backward_half(
                layer,
                mlp,
                dy,
                |shape| &shape.mlp_norm,
                |r, h, saved, dy| {
                    let (shape, p, g) = r.parts(layer);
                    shape.mlp.backward(&device, p, g, h, saved, dy)
                },
            );
            dy = self.backward_half(
                layer,
                attention,
                dy,
                |shape| &shape.attention_norm,
                |r, h, saved, dy| {
                    let (shape, p, g) = r.parts(layer);
                    shape.attention.backward(&device, p, g, h, saved, dy)
                },
            );
        }
        let dy = self.gather(&dy);
        for (rank, dy) in self.ranks.iter_mut().zip(&dy) {
            let (shape, _, gradients) = rank.parts(0);
            shape.embedding.backward(&device, gradients, &tokens, dy);
        }
        loss
    }

    /// `x + segment(norm(x))`.
    fn forward_half<S>(
        &self,
        layer: usize,
        x: Buffers<T>,
        norm: impl Fn(&LayerShape) -> &NormLayer,
        segment: impl Fn(&Rank<T>, &Buffer<T>, &Buffer<T>) -> (Buffer<T>, S),
    ) -> (Buffers<T>, Half<T, S>) {
        let normed = self.each(|i, r| norm(&r.shape).forward(&self.device, r.parameters(layer), &x[i]));
        let (h, statistics): (Buffers<T>, _) = normed.into_iter().unzip();
        let h = self.gather(&h);
        let (out, saved) = self.each(|i, r| segment(r, &h[i], &x[i])).into_iter().unzip();
        (self.scatter(out), Half { x, statistics, h, saved })
    }

    fn backward_half<S>(
        &mut self,
        layer: usize,
        half: Half<T, S>,
        dy: Buffers<T>,
        norm: impl Fn(&LayerShape) -> &NormLayer,
        segment: impl Fn(&mut Rank<T>, &Buffer<T>, S, &Buffer<T>) -> Buffer<T>,
    ) -> Buffers<T> {
        let whole = self.gather(&dy);
        let saved = self.ranks.iter_mut().zip(half.saved).enumerate();
        let dh = saved.map(|(i, (rank, saved))| segment(rank, &half.h[i], saved, &whole[i])).collect();
        let dh = self.scatter(dh);
        self.backward_norm(layer, &half.x, half.statistics, dh, Some(&dy), norm)
    }

    fn backward_norm(
        &mut self,
        layer: usize,
        x: &Buffers<T>,
        statistics: Vec<NormStatistics<Cpu<T>>>,
        dh: Buffers<T>,
        residual: Option<&Buffers<T>>,
        norm: impl Fn(&LayerShape) -> &NormLayer,
    ) -> Buffers<T> {
        let device = &self.device;
        let each = self.ranks.iter_mut().zip(dh.into_iter().zip(statistics)).enumerate();
        each.map(|(i, (rank, (dh, statistics)))| {
            let (shape, p, g) = rank.parts(layer);
            norm(shape).backward(device, p, g, &x[i], statistics, dh, residual.map(|r| &r[i]))
        })
        .collect()
    }

    /// Mean loss, and the gradient of `x`.
    fn head(&mut self, x: Buffers<T>, batch: &Batch) -> (f64, Buffers<T>) {
        let device = self.device.clone();
        let targets = device.upload_indices(&batch.targets);
        let layer = self.model.chain_len() - 1;
        let normed = self.each(|i, r| r.shape.final_norm.forward(&device, r.parameters(layer), &x[i]));
        let (h, statistics): (Buffers<T>, _) = normed.into_iter().unzip();
        let h = self.gather(&h);
        let table = |shape: &LayerShape| shape.head.table_offset.map_or((0, 0), |offset| (layer, offset));

        let logits = self.each(|i, r| {
            let (layer, offset) = table(&r.shape);
            r.shape.head.logits(&device, r.parameters(layer).skip(offset), &h[i])
        });
        let (logits, max): (Buffers<T>, Buffers<T>) = logits.into_iter().unzip();
        let larger = |a: T, b: T| if b > a { b } else { a };
        let largest: Vec<T> =
            (0..max[0].len()).map(|row| max.iter().map(|m| m[row]).fold(T::LOWEST, larger)).collect();
        let exponentials = self.ranks.iter().zip(logits).map(|(r, mut logits)| {
            let max = device.upload(&largest);
            let statistics = r.shape.head.exponentials(&device, &mut logits, max, &targets);
            (logits, statistics.sums)
        });
        let (exponentials, sums): (Buffers<T>, Buffers<T>) = exponentials.unzip();
        let scale = 1.0 / batch.targets.len() as f64;
        let mut loss = 0.0;
        let mut dh = Vec::new();
        for (i, (exponentials, sums)) in exponentials.into_iter().zip(self.sum(sums)).enumerate() {
            let reduced = HeadStatistics { sums };
            let (layer, offset) = table(&self.ranks[i].shape);
            let (shape, p, mut g) = self.ranks[i].parts(layer);
            loss = device.read(&shape.head.loss(&device, &reduced)) * scale;
            let (p, g) = (p.skip(offset), g.skip(offset));
            dh.push(shape.head.backward(&device, p, g, &h[i], exponentials, reduced, &targets, scale));
        }
        let dh = self.scatter(dh);
        (loss, self.backward_norm(layer, &x, statistics, dh, None, |shape| &shape.final_norm))
    }
}

/// `|a - b| / |b|`, in the Euclidean norm.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}
