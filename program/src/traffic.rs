//! Bytes that the ranks of a program send each other in a step, if all collectives use rings.

use crate::mesh::{Axis, DATA, View};
use crate::program::{Instruction, Message, Op, Program, Transfer};
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
        let stride = self.mesh.stage();
        let rings = |view: View| rings(&view.groups(0..self.mesh.world()));
        let residence = self.residence();
        let reduces = if residence.shards_state() { residence.shard_axes() } else { &DATA[..] };
        let between = |(from, to): &(usize, usize)| {
            let (from, to) = (from * stride, to * stride);
            (0..stride).map(move |inner| (from + inner, to + inner)).collect::<Vec<_>>()
        };
        [
            Flows { edges: rings(self.mesh.view(&[Axis::Tensor])), bytes: tensor },
            Flows { edges: rings(self.mesh.view(reduces)), bytes: shards },
            Flows { edges: rings(self.mesh.view(residence.replica_axes())), bytes: replicas },
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
                sent[0] += around(collective.kind(), self.mesh.tensor, bytes);
            }
            Instruction::Start { transfer, bucket } => {
                let bucket = &self.ranks[rank].buckets()[bucket];
                let (kind, _) = self.transfer_work(transfer, bucket);
                let group = self.transfer_view(transfer, bucket).size();
                let bytes = self.transfer_bytes(transfer, bucket).as_f64();
                let place = if transfer == Transfer::ReduceReplicas { 2 } else { 1 };
                sent[place] += around(kind, group, bytes);
            }
            _ => {}
        }
    }
}

/// Ring edges of groups.
fn rings(groups: &[Vec<usize>]) -> Vec<(usize, usize)> {
    let mut groups: Vec<&Vec<usize>> = groups.iter().filter(|group| group.len() > 1).collect();
    groups.sort_unstable();
    let ring = |group: &Vec<usize>| {
        (0..group.len()).map(|place| (group[place], group[(place + 1) % group.len()])).collect::<Vec<_>>()
    };
    groups.into_iter().flat_map(ring).collect()
}
