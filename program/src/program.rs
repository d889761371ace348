//! The operations of every rank in one training step, as data.

use crate::bucket::Bucket;
use crate::mesh::{Axis, DATA, Mesh, View};
use crate::residence::Residence;
use autodist_spec::{
    BaseBits, Bytes, Coded, Collective, LayerTraining, ModelSpec, ParallelStrategy, Pass, Precision,
    Recompute, Reduction, Segment, Stage,
};
use std::ops::Range;

/// The operations of every rank in one training step.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    pub model: ModelSpec,
    /// By layer of the model's chain.
    pub training: Vec<LayerTraining>,
    /// Bits of the frozen weights that a bucket counts as quantised.
    pub base_bits: BaseBits,
    pub strategy: ParallelStrategy,
    pub stages: Vec<Stage>,
    pub mesh: Mesh,
    pub seq_len: usize,
    pub micro_batches: usize,
    pub precision: Precision,
    /// One per pipeline rank: all ranks of its data and tensor axes run the same operations.
    pub ranks: Vec<RankProgram>,
}

/// Ranks of a pipeline rank that hold as much and compute as much as each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankClass {
    /// Their tensor ranks, on every coordinate of the data axes.
    pub tensor: Range<usize>,
    pub buckets: Vec<Bucket>,
}

/// The step of one pipeline rank.
#[derive(Debug, Clone, PartialEq)]
pub struct RankProgram {
    pub pipeline_rank: usize,
    /// Chunks that this rank holds, in the order of the chain.
    pub chunks: Vec<usize>,
    /// By tensor rank. The first class holds the most: tensor ranks differ where the vocabulary does not
    /// divide, and the first ones have the larger part.
    pub classes: Vec<RankClass>,
    /// Each body runs many times: once for every micro-batch.
    pub bodies: Vec<Body>,
    /// The step on the compute stream, in order.
    pub ops: Vec<Op>,
}

impl RankProgram {
    /// The buckets of the ranks that hold the most.
    pub fn buckets(&self) -> &[Bucket] {
        &self.classes[0].buckets
    }

    /// The class of the ranks with this tensor rank.
    pub fn class(&self, tensor_rank: usize) -> &RankClass {
        let holds = |class: &&RankClass| class.tensor.contains(&tensor_rank);
        self.classes.iter().find(holds).unwrap_or(&self.classes[0])
    }
}

/// One entry of the compute stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Blocks until the transfer has arrived.
    Receive(Message),
    Run {
        body: usize,
        micro_batch: usize,
    },
    /// Starts to send the chunk's result, without blocking.
    Send(Message),
}

/// A send/recv from one pipeline rank to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Message {
    pub kind: MessageKind,
    /// The other pipeline rank.
    pub peer: usize,
    /// The chunk that receives it.
    pub chunk: usize,
    pub micro_batch: usize,
    pub elements: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MessageKind {
    Activation,
    Gradient,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Body {
    pub kind: BodyKind,
    pub instructions: Vec<Instruction>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyKind {
    Forward {
        chunk: usize,
    },
    /// A chunk has two: the second is that of its last micro-batch, after which its gradients are complete.
    Backward {
        chunk: usize,
    },
    Optimizer,
}

/// The instructions of a body, in order, on the compute stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instruction {
    /// Runs a segment of a layer.
    Segment { layer: usize, segment: Segment, pass: Pass, recompute: Recompute },
    /// A collective over the tensor group without overlap, for the input or output of `segment`. `elements`
    /// counts the whole tensor.
    Tensor { layer: usize, segment: Segment, collective: TensorCollective, operand: Operand, elements: usize },
    /// Exchanges keys and values over the context group, for the attention of `layer`; in the backward pass
    /// also their gradients (Liu et al., 2310.01889, section 3). `elements` counts all that a group exchanges.
    Context { layer: usize, pass: Pass, elements: usize },
    /// All-to-all of the tokens of `layer` to the ranks that hold their experts, or back (Lepikhin et al.,
    /// 2006.16668). `elements` counts what one rank sends.
    Experts { layer: usize, pass: Pass, elements: usize },
    /// All-reduces, over the tensor group, the partial gradients that sequence parallelism leaves for
    /// replicated parameters.
    SumReplicated { bucket: usize, elements: usize },
    /// Queues a transfer on the communication stream.
    Start { transfer: Transfer, bucket: usize },
    /// Blocks until that transfer is done.
    Wait { transfer: Transfer, bucket: usize },
    /// Frees gathered parameters.
    Release { bucket: usize },
    /// All-reduces a tied table's gradients over both ends of the pipeline.
    SumTied { bucket: usize, elements: usize },
    /// L2 norm of the whole gradient, over the ranks that together hold the model. `elements` counts this
    /// rank's part.
    GradientNorm { elements: usize },
    /// Optimizer update of this rank's part of a bucket, and zeroing of its gradients.
    Update { bucket: usize, elements: usize },
}

impl Instruction {
    /// The layer to which it belongs.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Self::Segment { layer, .. }
            | Self::Tensor { layer, .. }
            | Self::Context { layer, .. }
            | Self::Experts { layer, .. } => Some(*layer),
            Self::SumReplicated { .. }
            | Self::Start { .. }
            | Self::Wait { .. }
            | Self::Release { .. }
            | Self::SumTied { .. }
            | Self::GradientNorm { .. }
            | Self::Update { .. } => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TensorCollective {
    SumAll,
    MaxAll,
    /// Reduces, and leaves each rank its rows.
    ReduceScatter,
    /// Gathers the rows of all ranks.
    AllGather,
}

impl TensorCollective {
    pub fn kind(self) -> Collective {
        match self {
            Self::SumAll | Self::MaxAll => Collective::AllReduce,
            Self::ReduceScatter => Collective::ReduceScatter,
            Self::AllGather => Collective::AllGather,
        }
    }
}

/// Which tensor a collective works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// The output of the last segment: an activation or its gradient.
    Flow,
    /// The saved input of the segment whose backward is next.
    SavedInput,
}

/// Work of the communication stream on one bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Transfer {
    /// Gradients: all-reduce over the replicas, or reduce-scatter over the shard group.
    Reduce,
    /// All-reduce of the reduced shard over the replicas (HSDP).
    ReduceReplicas,
    /// All-gather of parameters over the shard group.
    Gather,
}

impl Transfer {
    /// The axes over which it runs, for a bucket with this residence.
    fn axes(self, residence: Residence) -> &'static [Axis] {
        match self {
            Self::Reduce if !residence.shards_state() => residence.replica_axes(),
            Self::Reduce | Self::Gather => residence.shard_axes(),
            Self::ReduceReplicas => residence.replica_axes(),
        }
    }
}

impl Program {
    /// Rows (tokens) of an activation on one rank, outside the tensor-parallel parts.
    pub fn local_tokens(&self) -> usize {
        let tokens = self.seq_len * self.strategy.micro_batch as usize / self.strategy.context as usize;
        if self.strategy.sequence_parallel { tokens / self.strategy.tensor as usize } else { tokens }
    }

    /// The groups over which `transfer` of a bucket runs.
    pub fn transfer_view(&self, transfer: Transfer, bucket: &Bucket) -> View {
        let Bucket { residence, expert, .. } = *bucket;
        let view = self.mesh.view(transfer.axes(residence));
        match transfer {
            Transfer::Reduce | Transfer::Gather if expert > 1 => view.beyond(expert),
            _ => view,
        }
    }

    /// Algorithm and codec of `transfer` on a bucket of a pipeline rank. Replicas of a shard always use a
    /// ring.
    pub fn reduction(&self, pipeline_rank: usize, transfer: Transfer, bucket: usize) -> Reduction {
        let communication = &self.strategy.communication;
        match transfer {
            Transfer::Reduce => communication.reduction(pipeline_rank, bucket),
            Transfer::ReduceReplicas => Reduction::default(),
            Transfer::Gather => {
                Reduction { algorithm: communication.gather, codec: communication.parameters }
            }
        }
    }

    /// The payload of `transfer`, for codecs.
    pub fn coded(&self, transfer: Transfer) -> Coded {
        match transfer {
            Transfer::Gather => Coded::Parameters,
            _ if self.residence().shards_state() => Coded::GradientShards,
            _ => Coded::Gradients,
        }
    }

    /// The devices of all groups that run `transfer` on pipeline rank `pipeline_rank`, each in the order of
    /// its ring.
    pub fn transfer_groups(&self, pipeline_rank: usize, transfer: Transfer) -> Vec<Vec<usize>> {
        self.groups(pipeline_rank, self.mesh.view(transfer.axes(self.residence())))
    }

    /// The residence of all layers.
    pub fn residence(&self) -> Residence {
        Residence::of(&self.strategy)
    }

    /// The ranks that together hold one whole model: the gradient norm is all-reduced over them.
    pub fn model_view(&self) -> View {
        let axes = [&[Axis::Pipeline, Axis::Tensor], self.residence().shard_axes()].concat();
        self.mesh.view(&axes)
    }

    /// The ranks that split one sequence.
    pub fn context_view(&self) -> View {
        self.mesh.view(&[Axis::Context])
    }

    /// The ranks over which experts are distributed: neighbours on the data axes.
    pub fn expert_view(&self) -> View {
        self.mesh.view(&DATA).within(self.strategy.expert as usize)
    }

    /// Like `transfer_groups`, for the tensor groups.
    pub fn tensor_groups(&self, pipeline_rank: usize) -> Vec<Vec<usize>> {
        self.groups(pipeline_rank, self.mesh.view(&[Axis::Tensor]))
    }

    fn groups(&self, pipeline_rank: usize, view: View) -> Vec<Vec<usize>> {
        let stage = self.mesh.stage();
        let ranks = pipeline_rank * stage..(pipeline_rank + 1) * stage;
        let mut groups: Vec<_> = view.groups(ranks).iter().map(|group| self.devices(group)).collect();
        groups.sort_unstable();
        groups
    }

    /// The devices of these ranks.
    pub fn devices(&self, ranks: &[usize]) -> Vec<usize> {
        ranks.iter().map(|rank| self.strategy.communication.device(*rank)).collect()
    }

    /// Bytes of a tensor collective: activations, except for the statistics of the head's rows.
    pub fn tensor_bytes(&self, segment: Segment, collective: TensorCollective, elements: usize) -> Bytes {
        let statistics = collective == TensorCollective::MaxAll || segment == Segment::Normalizer;
        let elements = elements as u64;
        if statistics { Bytes::of_f32(elements) } else { self.precision.working(elements) }
    }

    /// Bytes of `transfer` on a bucket: gradients are reduced in full precision, parameters gathered in the
    /// compute precision.
    pub fn transfer_bytes(&self, transfer: Transfer, bucket: &Bucket) -> Bytes {
        let (_, elements) = self.transfer_work(transfer, bucket);
        match transfer {
            Transfer::Gather if bucket.residence.shards_parameters() => self.gathered_bytes(bucket),
            Transfer::Gather => self.precision.working(elements as u64),
            Transfer::Reduce | Transfer::ReduceReplicas => Bytes::of_f32(elements as u64),
        }
    }

    /// By layer of the chain: the first layer that is like it and is trained as it is.
    pub fn alike(&self) -> Vec<usize> {
        LayerTraining::alike(&self.training, &self.model)
    }

    /// Bytes of all parameters of a bucket: in the compute precision, and those that are quantised in fewer bits.
    pub fn gathered_bytes(&self, bucket: &Bucket) -> Bytes {
        let whole = self.precision.working((bucket.padded - bucket.quantised) as u64);
        let each = self.base_bits.bytes(self.precision.working(1).as_f64());
        whole + Bytes((bucket.quantised as f64 * each).round() as u64)
    }

    /// Collective and element count of `transfer` on `bucket`.
    pub fn transfer_work(&self, transfer: Transfer, bucket: &Bucket) -> (Collective, usize) {
        match transfer {
            Transfer::Reduce if bucket.residence.shards_state() => {
                (Collective::ReduceScatter, bucket.gradients())
            }
            Transfer::Reduce => (Collective::AllReduce, bucket.gradients()),
            Transfer::ReduceReplicas => (Collective::AllReduce, bucket.shard_gradients()),
            Transfer::Gather if bucket.residence.shards_parameters() => {
                (Collective::AllGather, bucket.padded)
            }
            // After an update, what was trained.
            Transfer::Gather => (Collective::AllGather, bucket.gradients()),
        }
    }
}
