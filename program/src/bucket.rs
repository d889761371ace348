//! Buckets: the flat buffers in which a rank keeps its parameters and gradients.

use crate::residence::{LayerStrategy, Residence};
use autodist_spec::{
    BlockSpec, LayerKind, LayerTraining, ModelSpec, ParallelStrategy, Parameter, Stage, TensorSplit,
};
use std::ops::Add;

/// A layer's region in a bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BucketLayer {
    /// Index in the model's chain.
    pub layer: usize,
    /// First element of the layer's region.
    pub offset: usize,
    pub elements: usize,
    /// The region's last elements belong to parameters that every tensor rank holds in full; of a layer with
    /// frozen weights only adapters count.
    pub replicated: usize,
}

/// Consecutive layers of one chunk in one flat buffer, which one collective reduces, shards or gathers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    pub chunk: usize,
    /// In the order of the buffer: the layer whose backward comes last is first.
    pub layers: Vec<BucketLayer>,
    /// Elements in use.
    pub elements: usize,
    /// Elements with padding to a multiple of the shard group.
    pub padded: usize,
    /// Elements that are trained: they have gradients and optimizer state.
    pub trained: usize,
    /// Frozen elements that are held in fewer bits than the training precision.
    pub quantised: usize,
    /// A tied table that both ends of the pipeline hold: its gradients are all-reduced over the two.
    pub tied: bool,
    /// A copy whose owner is the first pipeline rank: no norm includes it.
    pub copy: bool,
    /// Data-parallel ranks over which its parameters, those of experts, are distributed; 1 for all others.
    /// Only every so many-th rank holds the same ones.
    pub expert: usize,
    pub residence: Residence,
    /// Ranks that shard what its residence shards; 1 if that is nothing.
    pub shard: usize,
}

impl Bucket {
    /// Elements of one rank's shard.
    pub fn shard_elements(&self) -> usize {
        self.padded / self.shard
    }

    /// Elements of the gradients, with padding to a multiple of the shard group.
    pub fn gradients(&self) -> usize {
        self.trained.div_ceil(self.shard) * self.shard
    }

    /// Elements of one rank's shard of the gradients.
    pub fn shard_gradients(&self) -> usize {
        self.gradients() / self.shard
    }

    /// Its elements without padding.
    pub fn unpadded(&self) -> Held {
        Held { elements: self.elements, trained: self.trained, quantised: self.quantised }
    }

    /// What a rank holds of its parameters, gradients and optimizer state: all, or its shard.
    pub fn held(&self, shard: bool) -> Held {
        if !shard {
            return Held { elements: self.padded, trained: self.gradients(), quantised: self.quantised };
        }
        Held {
            elements: self.shard_elements(),
            trained: self.shard_gradients(),
            quantised: self.quantised / self.shard,
        }
    }

    /// Trained elements that every tensor rank holds in full.
    pub fn replicated(&self) -> usize {
        self.layers.iter().map(|l| l.replicated).sum()
    }
}

/// Elements of parameters that a rank holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    pub elements: usize,
    pub trained: usize,
    pub quantised: usize,
}

impl Add for Held {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            elements: self.elements + other.elements,
            trained: self.trained + other.trained,
            quantised: self.quantised + other.quantised,
        }
    }
}

impl Held {
    /// Of one layer, on the first rank of `tensor` tensor-parallel and `expert` expert-parallel ones.
    pub fn of(model: &ModelSpec, layer: (usize, &LayerTraining), tensor: u32, expert: u32) -> Self {
        let [experts, others] = regions(model, layer, (0, tensor as usize), expert as usize);
        experts.held + others.held
    }
}

/// A layer's region of a bucket.
#[derive(Debug, Clone, Copy, Default)]
struct Region {
    held: Held,
    /// As in [`BucketLayer`].
    replicated: usize,
}

/// The regions of a layer on tensor rank `tensor_rank`: that of its experts' parameters, if they are distributed
/// over more than one rank, and that of all others.
fn regions(
    model: &ModelSpec,
    (layer, training): (usize, &LayerTraining),
    (tensor_rank, degree): (usize, usize),
    expert: usize,
) -> [Region; 2] {
    let mut regions = [Region::default(); 2];
    let weights = model.parameters(layer).into_iter().map(|one| (one, training.weights));
    let adapters = training.adapters(model, layer).into_iter().map(|one| (one, true));
    for (parameter, trained) in weights.chain(adapters) {
        let region = &mut regions[usize::from(!(expert > 1 && parameter.routed))];
        let replicated = parameter.split == TensorSplit::Replicated;
        let quantised = !trained && training.quantises(&parameter);
        let local =
            parameter.distributed(expert as u32).local_elements(tensor_rank as u32, degree as u32) as usize;
        let counted = |counts: bool| if counts { local } else { 0 };
        region.replicated += counted(replicated && trained);
        let (trained, quantised) = (counted(trained), counted(quantised));
        region.held = region.held + Held { elements: local, trained, quantised };
    }
    regions
}

/// Parameters of a layer that share a bucket: those of experts have their own where they are distributed over
/// `expert` ranks.
fn parameters(
    model: &ModelSpec,
    layer: usize,
    expert: usize,
    distributed: bool,
) -> impl Iterator<Item = Parameter> {
    let apart = expert > 1;
    let list = model.parameters(layer).into_iter();
    list.filter(move |one| (apart && one.routed) == distributed)
        .map(move |one| one.distributed(expert as u32))
}

/// A parameter in a bucket: its first element and its shape on one tensor rank. Vectors have one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BucketParameter {
    pub offset: usize,
    pub rows: usize,
    pub columns: usize,
}

impl Bucket {
    /// The parameters of a bucket in the order of its buffer.
    pub fn parameters(&self, model: &ModelSpec, tensor_rank: usize, degree: usize) -> Vec<BucketParameter> {
        let mut list = Vec::new();
        for layer in &self.layers {
            let mut offset = layer.offset;
            for parameter in parameters(model, layer.layer, self.expert, self.expert > 1) {
                let (rows, columns) = parameter.local_shape(tensor_rank as u32, degree as u32);
                let (rows, columns) = (rows as usize, columns as usize);
                let (rows, columns) = if columns == 1 { (1, rows) } else { (rows, columns) };
                list.push(BucketParameter { offset, rows, columns });
                offset += rows * columns;
            }
        }
        list
    }
}

/// The buckets of pipeline rank `pipeline_rank`, in the order in which their gradients become complete.
/// Sizes are those of `tensor_rank`; they differ between tensor ranks only where the vocabulary does not
/// divide. `training` has the layers of the model's chain.
pub fn buckets(
    model: &ModelSpec,
    training: &[LayerTraining],
    strategy: &ParallelStrategy,
    stages: &[Stage],
    pipeline_rank: usize,
    tensor_rank: usize,
) -> Vec<Bucket> {
    let (tensor, expert) = (strategy.tensor as usize, strategy.expert as usize);
    let shard = strategy.shards() as usize;
    let limit = strategy.bucket_bytes.0 as usize / 4;
    let tied_apart = model.tied_embeddings && strategy.pipeline > 1;
    let last_chunk = stages.len() - 1;
    let mut buckets: Vec<Bucket> = Vec::new();
    // Most layers are blocks like the one before.
    let mut known: Option<((BlockSpec, LayerTraining), [Region; 2])> = None;
    let mut regions_of = |layer: usize| {
        let of = || regions(model, (layer, &training[layer]), (tensor_rank, tensor), expert);
        if model.kind(layer) != LayerKind::Block {
            return of();
        }
        let block = (model.block(layer), training[layer]);
        match known {
            Some((other, regions)) if other == block => regions,
            _ => known.insert((block, of())).1,
        }
    };
    let chunks: Vec<usize> = strategy.chunks_of(pipeline_rank).collect();
    for chunk in chunks.into_iter().rev() {
        // The last stage's copy of the embedding's region: its position table has no gradient there.
        let copy = (tied_apart && chunk == last_chunk).then_some((0, true));
        let layers = stages[chunk].layers().rev().map(|layer| (layer, false));
        // The buckets to which the next layer is added: of experts, and of everything else.
        let mut open: [Option<usize>; 2] = [None; 2];
        for (layer, is_copy) in copy.into_iter().chain(layers) {
            let tied = tied_apart && layer == 0;
            // The copy of a table is held as its owner holds it.
            let stage = if is_copy { &stages[0] } else { &stages[chunk] };
            let residence = LayerStrategy::of(strategy, stage, layer).residence;
            // Sharded gradients are reduced layer by layer, as FSDP does, to save memory.
            let limit = if residence.shards_gradients() { 0 } else { limit };
            for (distributed, region) in [true, false].into_iter().zip(regions_of(layer)) {
                let Region { held: Held { elements, trained, quantised }, replicated } = region;
                if distributed && elements == 0 {
                    continue;
                }
                let open = &mut open[usize::from(distributed)];
                let alike = |open: &usize| !tied && buckets[*open].residence == residence;
                let index = open.filter(alike).unwrap_or_else(|| {
                    let expert = if distributed { expert } else { 1 };
                    buckets.push(Bucket {
                        chunk,
                        layers: Vec::new(),
                        elements: 0,
                        padded: 0,
                        trained: 0,
                        quantised: 0,
                        tied,
                        copy: is_copy,
                        expert,
                        residence,
                        shard: (shard / expert).max(1),
                    });
                    buckets.len() - 1
                });
                let bucket = &mut buckets[index];
                bucket.layers.push(BucketLayer { layer, offset: 0, elements, replicated });
                bucket.elements += elements;
                bucket.trained += trained;
                bucket.quantised += quantised;
                *open = (!tied && bucket.trained < limit).then_some(index);
            }
        }
    }
    for bucket in &mut buckets {
        bucket.layers.reverse();
        let mut offset = 0;
        for layer in &mut bucket.layers {
            layer.offset = offset;
            offset += layer.elements;
        }
        bucket.padded = bucket.elements.div_ceil(bucket.shard) * bucket.shard;
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages;
    use autodist_spec::{Bytes, catalog};

    fn whole(model: &ModelSpec) -> Vec<LayerTraining> {
        vec![LayerTraining::WHOLE; model.chain_len()]
    }

    #[test]
    fn buckets_hold_every_parameter_once() {
        let model = catalog::model("tiny-llama").unwrap();
        for (pipeline, bucket_bytes) in [(1, 1), (1, 1 << 20), (1, 1 << 30), (2, 1 << 20), (3, 1)] {
            let strategy = ParallelStrategy {
                pipeline,
                bucket_bytes: Bytes(bucket_bytes),
                ..ParallelStrategy::data_parallel(1, 1)
            };
            let stages = stages::even(&model, &strategy);
            let mut layers = Vec::new();
            let mut elements = 0;
            for rank in 0..pipeline as usize {
                for bucket in buckets(&model, &whole(&model), &strategy, &stages, rank, 0) {
                    elements += bucket.elements;
                    layers.extend(bucket.layers.iter().map(|l| l.layer));
                }
            }
            layers.sort_unstable();
            assert_eq!(layers, (0..model.chain_len()).collect::<Vec<_>>());
            assert_eq!(elements as u64, model.total_parameters());
        }
    }

    #[test]
    fn a_tied_table_stands_alone_on_both_ends_of_a_pipeline() {
        let model = catalog::model("tiny-gpt").unwrap();
        let strategy = ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 1) };
        let stages = stages::even(&model, &strategy);
        let first = buckets(&model, &whole(&model), &strategy, &stages, 0, 0);
        let last = buckets(&model, &whole(&model), &strategy, &stages, 1, 0);
        let owner = first.iter().find(|b| b.tied).unwrap();
        let copy = last.iter().find(|b| b.tied).unwrap();
        assert_eq!(owner.elements, copy.elements);
        assert!(copy.copy && !owner.copy);
        assert_eq!(owner.layers.len(), 1);
    }
}
