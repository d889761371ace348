//! A whole model on a group of tensor-parallel ranks, one after the other, with the collectives done by hand:
//! what the executor does, in small.

use autodist_compute::cpu::Real;
use autodist_compute::layers::{LayerShape, TensorShard};
use autodist_compute::{Backend, Cpu, Region, RegionMut};
use autodist_spec::model::{Activation, LayerKind, ModelSpec, Norm, Positions, TensorSplit, share};

/// Widths that are no multiple of a vector register, a vocabulary that two ranks cannot halve.
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
        norm: Norm::LayerNorm,
        norm_epsilon: 1e-5,
        activation: Activation::Gelu,
        bias: true,
        tied_embeddings: true,
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
        norm: Norm::RmsNorm,
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
    let layer = |kind| {
        let parameter = |parameter: &autodist_spec::model::Parameter| {
            let centre = if parameter.name.ends_with("norm.weight") { 1.0 } else { 0.0 };
            let numbers = noise.numbers(parameter.elements() as usize);
            numbers.into_iter().map(|x| centre + 0.5 * x).collect::<Vec<_>>()
        };
        model.parameters(kind).iter().flat_map(parameter).collect()
    };
    model.chain().into_iter().map(layer).collect()
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
}

pub const ONE_RANK: Way = Way { degree: 1, sequence_parallel: false, keep_probabilities: true };

/// Mean loss and its gradients.
pub fn train_step<T: Real>(model: &ModelSpec, parameters: &Chain, batch: &Batch, way: Way) -> (f64, Chain) {
    let mut group = Group::<T>::new(model, parameters, batch, way);
    let loss = group.step(batch);
    (loss, group.gradients(parameters))
}

type Buffers<T> = Vec<<Cpu<T> as Backend>::Buffer>;

struct Rank<T: Real> {
    shape: LayerShape,
    parameters: Buffers<T>,
    gradients: Buffers<T>,
}

struct Group<'a, T: Real> {
    device: Cpu<T>,
    model: &'a ModelSpec,
    way: Way,
    ranks: Vec<Rank<T>>,
}

/// Visits a rank's part of a layer: index in the whole, index in the part, whether replicated.
fn cut(
    model: &ModelSpec,
    kind: LayerKind,
    rank: u32,
    degree: u32,
    mut visit: impl FnMut(usize, usize, bool),
) {
    let (mut whole, mut local) = (0, 0);
    for parameter in model.parameters(kind) {
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
        let device = Cpu::new();
        let rank = |rank| {
            let shard = TensorShard { rank, degree: way.degree, sequence_parallel: way.sequence_parallel };
            let shape = LayerShape::new(model, batch.micro_batch, batch.seq_len, shard);
            let local = |(layer, whole): (usize, &Vec<f64>)| {
                let kind = model.kind(layer);
                let mut local = vec![T::ZERO; shape.layout(kind).len()];
                cut(model, kind, rank, way.degree, |from, to, _| local[to] = T::from_f64(whole[from]));
                device.upload(&local)
            };
            let parameters: Buffers<T> = parameters.iter().enumerate().map(local).collect();
            let gradients = parameters.iter().map(|p| device.zeros(p.len())).collect();
            Rank { shape, parameters, gradients }
        };
        let ranks = (0..way.degree).map(rank).collect();
        Self { device, model, way, ranks }
    }

    /// Replicated gradients are sums over ranks if the sequence is sharded, else equal on all.
    fn gradients(&self, like: &Chain) -> Chain {
        let mut gradients: Chain = like.iter().map(|layer| vec![0.0; layer.len()]).collect();
        for (layer, whole) in gradients.iter_mut().enumerate() {
            for (index, rank) in self.ranks.iter().enumerate() {
                let local = &rank.gradients[layer];
                cut(
                    self.model,
                    self.model.kind(layer),
                    index as u32,
                    self.way.degree,
                    |to, from, replicated| {
                        let value = local[from].to_f64();
                        if replicated && !self.way.sequence_parallel && index > 0 {
                            assert!(
                                (whole[to] - value).abs() <= 1e-5 * (1.0 + value.abs()),
                                "replicas differ"
                            );
                        } else {
                            whole[to] += value;
                        }
                    },
                );
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

    /// Sums onto the residual stream: all-reduce, or reduce-scatter of rows.
    fn scatter(&self, parts: Buffers<T>) -> Buffers<T> {
        let whole = self.sum(parts);
        let rows = |(rank, whole): (&Rank<T>, &<Cpu<T> as Backend>::Buffer)| {
            let width = rank.shape.hidden;
            self.device.upload(&whole[rank.shape.rows.start * width..rank.shape.rows.end * width])
        };
        self.ranks.iter().zip(&whole).map(rows).collect()
    }

    /// All rows of the residual stream, on every rank.
    fn gather(&self, shards: &Buffers<T>) -> Buffers<T> {
        let whole = match self.way.sequence_parallel {
            true => shards.iter().flat_map(|shard| shard.iter().copied()).collect(),
            false => shards[0].to_vec(),
        };
        shards.iter().map(|_| self.device.upload(&whole)).collect()
    }

    fn step(&mut self, batch: &Batch) -> f64 {
        let device = self.device.clone();
        let (tokens, targets) = (device.upload_indices(&batch.tokens), device.upload_indices(&batch.targets));
        let blocks = self.model.layers as usize;
        let head = blocks + 1;
        let degree = self.ranks.len();

        let out = self
            .ranks
            .iter()
            .map(|r| r.shape.embedding.forward(&device, Region::start(&r.parameters[0]), &tokens));
        let mut x = self.scatter(out.collect());
        let mut saved = Vec::new();
        for layer in 1..=blocks {
            let (h, attention_statistics): (Buffers<T>, Vec<_>) = self
                .ranks
                .iter()
                .zip(&x)
                .map(|(r, x)| r.shape.attention_norm.forward(&device, Region::start(&r.parameters[layer]), x))
                .unzip();
            let attention_h = self.gather(&h);
            let (out, attention_saved): (Buffers<T>, Vec<_>) = (0..degree)
                .map(|i| {
                    let r = &self.ranks[i];
                    r.shape.attention.forward(
                        &device,
                        Region::start(&r.parameters[layer]),
                        &attention_h[i],
                        &x[i],
                        self.way.keep_probabilities,
                    )
                })
                .unzip();
            let middle = self.scatter(out);
            let (h, mlp_statistics): (Buffers<T>, Vec<_>) = self
                .ranks
                .iter()
                .zip(&middle)
                .map(|(r, x)| r.shape.mlp_norm.forward(&device, Region::start(&r.parameters[layer]), x))
                .unzip();
            let mlp_h = self.gather(&h);
            let (out, mlp_saved): (Buffers<T>, Vec<_>) = (0..degree)
                .map(|i| {
                    let r = &self.ranks[i];
                    r.shape.mlp.forward(&device, Region::start(&r.parameters[layer]), &mlp_h[i], &middle[i])
                })
                .unzip();
            let next = self.scatter(out);
            saved.push((
                x,
                attention_statistics,
                attention_h,
                attention_saved,
                middle,
                mlp_statistics,
                mlp_h,
                mlp_saved,
            ));
            x = next;
        }

        let (h, statistics): (Buffers<T>, Vec<_>) = self
            .ranks
            .iter()
            .zip(&x)
            .map(|(r, x)| r.shape.final_norm.forward(&device, Region::start(&r.parameters[head]), x))
            .unzip();
        let h = self.gather(&h);
        let table = |rank: &Rank<T>| rank.shape.head.table_offset.map_or((0, 0), |offset| (head, offset));
        let (mut logits, max): (Buffers<T>, Buffers<T>) = (0..degree)
            .map(|i| {
                let (rank, (layer, offset)) = (&self.ranks[i], table(&self.ranks[i]));
                rank.shape.head.logits(&device, Region::new(&rank.parameters[layer], offset), &h[i])
            })
            .unzip();
        let largest: Vec<T> = (0..max[0].len())
            .map(|row| max.iter().map(|m| m[row]).fold(T::LOWEST, |a, b| if b > a { b } else { a }))
            .collect();
        let mut head_statistics: Vec<_> = (0..degree)
            .map(|i| {
                self.ranks[i].shape.head.exponentials(
                    &device,
                    &mut logits[i],
                    device.upload(&largest),
                    &targets,
                )
            })
            .collect();
        let sums = self.sum(head_statistics.iter().map(|s| device.upload(&s.sums)).collect());
        for (statistics, sums) in head_statistics.iter_mut().zip(sums) {
            statistics.sums = sums;
        }
        let scale = 1.0 / batch.targets.len() as f64;
        let loss = self.ranks[0].shape.head.loss(&device, &head_statistics[0]) * scale;

        let mut dh = Vec::new();
        for (i, (exponentials, statistics)) in logits.into_iter().zip(head_statistics).enumerate() {
            let (layer, offset) = table(&self.ranks[i]);
            let rank = &mut self.ranks[i];
            dh.push(rank.shape.head.backward(
                &device,
                Region::new(&rank.parameters[layer], offset),
                RegionMut::new(&mut rank.gradients[layer], offset),
                &h[i],
                exponentials,
                statistics,
                &targets,
                scale,
            ));
        }
        let dh = self.scatter(dh);
        let mut dy: Buffers<T> = Vec::new();
        for (i, (dh, statistics)) in dh.into_iter().zip(statistics).enumerate() {
            let rank = &mut self.ranks[i];
            dy.push(rank.shape.final_norm.backward(
                &device,
                Region::start(&rank.parameters[head]),
                RegionMut::start(&mut rank.gradients[head]),
                &x[i],
                statistics,
                dh,
                None,
            ));
        }

        for layer in (1..=blocks).rev() {
            let (
                x,
                attention_statistics,
                attention_h,
                attention_saved,
                middle,
                mlp_statistics,
                mlp_h,
                mlp_saved,
            ) = saved.pop().expect("one entry per block");
            dy = self.backward_half(
                layer,
                &middle,
                dy,
                mlp_statistics,
                mlp_saved,
                |rank, saved, dy, i| {
                    rank.shape.mlp.backward(
                        &device,
                        Region::start(&rank.parameters[layer]),
                        RegionMut::start(&mut rank.gradients[layer]),
                        &mlp_h[i],
                        saved,
                        dy,
                    )
                },
                |rank| &rank.shape.mlp_norm,
            );
            dy = self.backward_half(
                layer,
                &x,
                dy,
                attention_statistics,
                attention_saved,
                |rank, saved, dy, i| {
                    rank.shape.attention.backward(
                        &device,
                        Region::start(&rank.parameters[layer]),
                        RegionMut::start(&mut rank.gradients[layer]),
                        &attention_h[i],
                        saved,
                        dy,
                    )
                },
                |rank| &rank.shape.attention_norm,
            );
        }
        let dy = self.gather(&dy);
        for (rank, dy) in self.ranks.iter_mut().zip(&dy) {
            rank.shape.embedding.backward(&device, RegionMut::start(&mut rank.gradients[0]), &tokens, dy);
        }
        loss
    }

    /// Backward of `x + segment(norm(x))`.
    fn backward_half<S>(
        &mut self,
        layer: usize,
        x: &Buffers<T>,
        dy: Buffers<T>,
        statistics: Vec<autodist_compute::layers::NormStatistics<Cpu<T>>>,
        saved: Vec<S>,
        segment: impl Fn(&mut Rank<T>, S, &<Cpu<T> as Backend>::Buffer, usize) -> <Cpu<T> as Backend>::Buffer,
        norm: impl Fn(&Rank<T>) -> &autodist_compute::layers::Norm,
    ) -> Buffers<T> {
        let device = self.device.clone();
        let full = self.gather(&dy);
        let dh =
            saved.into_iter().enumerate().map(|(i, s)| segment(&mut self.ranks[i], s, &full[i], i)).collect();
        let dh = self.scatter(dh);
        let mut dx = Vec::new();
        for (i, (dh, statistics)) in dh.into_iter().zip(statistics).enumerate() {
            let rank = &mut self.ranks[i];
            let norm = norm(rank).clone();
            dx.push(norm.backward(
                &device,
                Region::start(&rank.parameters[layer]),
                RegionMut::start(&mut rank.gradients[layer]),
                &x[i],
                statistics,
                dh,
                Some(&dy[i]),
            ));
        }
        dx
    }
}

/// `|a - b| / |b|`, in the Euclidean norm.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    if difference == 0.0 { 0.0 } else { (difference / size).sqrt() }
}
