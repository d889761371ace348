//! Bytes that the ranks of a program send each other in a step, if all collectives use rings.

use crate::compile::{Instruction, Message, Op, Program, Transfer};
use autodist_spec::Collective;
use std::collections::BTreeSet;

/// Edges with the same number of bytes in a step.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Flows {
    /// Sender and receiver ranks.
    pub edges: Vec<(usize, usize)>,
    /// Bytes of each edge in a step, for the pipeline rank that sends the most.
    pub bytes: f64,
}

impl Program {
    /// By purpose: tensor groups, gradients and parameters of the shard groups, gradients of replicas,
    /// activations and their gradients.
    pub fn traffic(&self) -> [Flows; 4] {
        let layout = self.layout;
        let (mut tensor, mut shards, mut replicas, mut messages) = (0.0_f64, 0.0_f64, 0.0_f64, 0.0_f64);
        let mut pairs = BTreeSet::new();
        for rank in &self.ranks {
            let mut sent = [0.0; 4];
            for op in &rank.ops {
                match *op {
                    Op::Receive(_) => {}
                    Op::Send(Message { peer, elements, .. }) => {
                        pairs.insert((rank.pipeline_rank, peer));
                        sent[3] += self.precision.working(elements as u64).as_f64();
                    }
                    Op::Run { body, .. } => {
                        for instruction in &rank.bodies[body].instructions {
                            self.count(instruction, rank.pipeline_rank, &mut sent);
                        }
                    }
                }
            }
            tensor = tensor.max(sent[0]);
            shards = shards.max(sent[1]);
            replicas = replicas.max(sent[2]);
            messages = messages.max(sent[3]);
        }
        let stride = layout.data * layout.tensor;
        let everyone = || (0..layout.world()).map(|rank| layout.coordinates(rank));
        let reduces = |at| {
            if self.strategy.zero_stage == 0 { layout.data_group(at) } else { layout.shard_group(at) }
        };
        let between = |(from, to): &(usize, usize)| {
            let (from, to) = (from * stride, to * stride);
            (0..stride).map(move |inner| (from + inner, to + inner)).collect::<Vec<_>>()
        };
        [
            Flows { edges: rings(everyone().map(|at| layout.tensor_group(at))), bytes: tensor },
            Flows { edges: rings(everyone().map(reduces)), bytes: shards },
            Flows { edges: rings(everyone().map(|at| layout.replica_group(at))), bytes: replicas },
            Flows { edges: pairs.iter().flat_map(between).collect(), bytes: messages },
        ]
    }

    /// Adds the bytes that a member of the instruction's group sends to its neighbour.
    fn count(&self, instruction: &Instruction, rank: usize, sent: &mut [f64; 4]) {
        let around = |kind: Collective, group: usize, bytes: f64| {
            let passes = if kind == Collective::AllReduce { 2.0 } else { 1.0 };
            passes * (group as f64 - 1.0) / group.max(1) as f64 * bytes
        };
        match *instruction {
            Instruction::Tensor { segment, collective, elements, .. } => {
                let bytes = self.tensor_bytes(segment, collective, elements).as_f64();
                sent[0] += around(collective.kind(), self.layout.tensor, bytes);
            }
            Instruction::Start { transfer, bucket } => {
                let bucket = &self.ranks[rank].buckets[bucket];
                let (kind, _) = self.transfer_work(transfer, bucket);
                let (group, _) = self.transfer_group(transfer, bucket);
                let bytes = self.transfer_bytes(transfer, bucket).as_f64();
                let place = if transfer == Transfer::ReduceReplicas { 2 } else { 1 };
                sent[place] += around(kind, group, bytes);
            }
            _ => {}
        }
    }
}

/// Ring edges of groups, each of which is listed once per member.
fn rings(groups: impl Iterator<Item = Vec<usize>>) -> Vec<(usize, usize)> {
    let distinct: BTreeSet<Vec<usize>> = groups.filter(|group| group.len() > 1).collect();
    let ring = |group: &Vec<usize>| {
        (0..group.len()).map(|place| (group[place], group[(place + 1) % group.len()])).collect::<Vec<_>>()
    };
    distinct.iter().flat_map(ring).collect()
}
