//! The algorithm of every collective of a program: the one that is fastest alone. This is optimal, because a
//! step never gets longer when one of its collectives gets shorter.

use crate::measured::Unpriced;
use crate::prices::{CollectiveQuery, Purpose};
use crate::routes::pattern;
use crate::{CostModel, coding};
use autodist_collectives::{candidates, suits};
use autodist_program::{Program, Transfer};
use autodist_spec::{
    Algorithm, BucketReduction, Bytes, Codec, Collective, CollectiveShare, Communication, Pattern, Reduction,
    Seconds,
};

impl CostModel {
    /// The node of every device, if links differ.
    pub fn nodes(&self) -> Option<&[u32]> {
        self.routes.as_ref().map(|routes| routes.nodes())
    }

    /// Whether tensor collectives and transfers of a pipeline rank share a link.
    pub(crate) fn shares_links(&self, program: &Program, pipeline_rank: usize) -> bool {
        let Some(routes) = &self.routes else { return false };
        let tensor = routes.links(&program.tensor_groups(pipeline_rank));
        let transfers = [Transfer::Reduce, Transfer::Gather];
        transfers.iter().any(|transfer| {
            routes
                .links(&program.transfer_groups(pipeline_rank, *transfer))
                .iter()
                .any(|link| tensor.contains(link))
        })
    }

    /// Sets the fastest algorithm for each group and size in `program`'s communication; rings if all links
    /// are alike.
    ///
    /// # Errors
    /// The profile lacks a cost.
    pub fn fastest_algorithms(&self, program: &Program) -> Result<Communication, Unpriced> {
        let mut communication = program.strategy.communication.clone();
        if self.nodes().is_none() {
            return Ok(communication);
        }
        let strategy = &program.strategy;
        // Where links differ, only the devices of the groups matter.
        let query = |purpose, kind, algorithm, bytes| CollectiveQuery {
            purpose,
            kind,
            algorithm,
            group: strategy.devices() as usize,
            stride: 1,
            bytes,
            strategy,
        };
        let tensor = program.tensor_groups(0);
        let tokens = program.local_tokens() as u64;
        let activation = program.precision.working(tokens * u64::from(program.model.hidden));
        let kinds: &[Collective] = match strategy.sequence_parallel {
            true => &[Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather],
            false => &[Collective::AllReduce],
        };
        let of_tensor = |algorithm| {
            kinds.iter().try_fold(0.0, |sum, kind| {
                let query = query(Purpose::Tensor(program.model.block(1)), *kind, algorithm, activation);
                Ok(sum + self.over(&query, &tensor)?.seconds)
            })
        };
        communication.tensor = self.fastest(&tensor, kinds, of_tensor)?;
        let reduce = Purpose::Bucket(Transfer::Reduce);
        let mut reductions = Vec::new();
        for rank in &program.ranks {
            let groups = program.transfer_groups(rank.pipeline_rank, Transfer::Reduce);
            let kind = match strategy.zero_stage {
                0 => Collective::AllReduce,
                _ => Collective::ReduceScatter,
            };
            for (index, bucket) in rank.buckets().iter().enumerate() {
                let codec = program.reduction(rank.pipeline_rank, Transfer::Reduce, index).codec;
                let bytes = program.transfer_bytes(Transfer::Reduce, bucket);
                let time = |algorithm| {
                    Ok(match codec {
                        Codec::None => self.over(&query(reduce, kind, algorithm, bytes), &groups)?.seconds,
                        _ => {
                            let reduction = Reduction { algorithm, codec };
                            coding::reduction(self, program, Transfer::Reduce, bucket, reduction, &groups, 1)?
                                .seconds
                        }
                    })
                };
                let algorithm = self.fastest(&groups, &[kind], time)?;
                reductions.push((rank.pipeline_rank, index, Reduction { algorithm, codec }));
            }
        }
        if strategy.zero_stage > 0 {
            let groups = program.transfer_groups(0, Transfer::Gather);
            let largest = program.ranks.iter().flat_map(|rank| rank.buckets());
            let bytes = largest
                .map(|bucket| program.transfer_bytes(Transfer::Gather, bucket))
                .max()
                .unwrap_or(Bytes(0));
            let kind = Collective::AllGather;
            let gather = Purpose::Bucket(Transfer::Gather);
            let time = |algorithm| Ok(self.over(&query(gather, kind, algorithm, bytes), &groups)?.seconds);
            // Parameters in a codec support only the ring.
            if communication.parameters == Codec::None {
                communication.gather = self.fastest(&groups, &[kind], time)?;
            }
        }
        set_reductions(&mut communication, &reductions);
        Ok(communication)
    }

    /// The collectives of a program compared with their lower bounds; empty if links were not measured one by
    /// one.
    pub fn shares(&self, program: &Program) -> Vec<CollectiveShare> {
        let Some(routes) = &self.routes else { return Vec::new() };
        let strategy = &program.strategy;
        let mut shares = Vec::new();
        let mut add = |what: &str, pattern: Pattern, groups: &[Vec<usize>], bytes: Bytes| {
            let Some(group) = groups.iter().find(|group| group.len() > 1) else { return };
            shares.push(CollectiveShare {
                what: what.to_owned(),
                pattern,
                group: group.len() as u32,
                bytes,
                time_s: Seconds(routes.collective(pattern, groups, bytes).seconds),
                lower_bound_s: Seconds(routes.lower_bound(pattern, groups, bytes)),
            });
        };
        let tokens = program.local_tokens() as u64;
        let activation = program.precision.working(tokens * u64::from(program.model.hidden));
        let tensor = strategy.communication.tensor;
        let all = Pattern::AllReduce(tensor);
        add("activations, tensor groups", all, &program.tensor_groups(0), activation);
        let buckets = program.ranks.iter().flat_map(|rank| {
            (0..rank.buckets().len()).map(|index| (rank.pipeline_rank, index, &rank.buckets()[index]))
        });
        let Some((rank, index, bucket)) = buckets.max_by_key(|(_, _, bucket)| bucket.padded) else {
            return shares;
        };
        for (what, transfer) in [
            ("gradients, largest bucket", Transfer::Reduce),
            ("gradients of replicas", Transfer::ReduceReplicas),
            ("parameters, largest bucket", Transfer::Gather),
        ] {
            if transfer != Transfer::Reduce && strategy.zero_stage == 0 {
                continue;
            }
            let reduction = program.reduction(rank, transfer, index);
            let groups = program.transfer_groups(rank, transfer);
            if reduction.codec == Codec::None {
                let (kind, _) = program.transfer_work(transfer, bucket);
                let bytes = program.transfer_bytes(transfer, bucket);
                if let Some(pattern) = pattern(kind, reduction.algorithm) {
                    add(what, pattern, &groups, bytes);
                }
                continue;
            }
            let what = format!("{what}, {}", reduction.codec.name());
            for (pattern, bytes) in coding::exchanges(program, transfer, bucket, reduction) {
                add(&what, pattern, &groups, bytes);
            }
        }
        shares
    }

    /// The fastest algorithm that supports the groups for all these kinds; a ring if none is faster.
    fn fastest(
        &self,
        groups: &[Vec<usize>],
        kinds: &[Collective],
        time: impl Fn(Algorithm) -> Result<f64, Unpriced>,
    ) -> Result<Algorithm, Unpriced> {
        let Some((group, nodes)) = groups.iter().find(|group| group.len() > 1).zip(self.nodes()) else {
            return Ok(Algorithm::Ring);
        };
        let nodes: Vec<usize> = group.iter().map(|device| nodes[*device] as usize).collect();
        let mut best = (time(Algorithm::Ring)?, Algorithm::Ring);
        for algorithm in candidates(group.len(), &nodes) {
            let size = group.len();
            let fits = kinds.iter().all(|kind| suits(algorithm, *kind, size).is_ok());
            if fits && algorithm != Algorithm::Ring {
                let seconds = time(algorithm)?;
                // Ignore differences below the accuracy of measurements.
                if seconds < 0.98 * best.0 {
                    best = (seconds, algorithm);
                }
            }
        }
        Ok(best.1)
    }
}

/// The reduction of most buckets becomes the default, the others are exceptions.
pub fn set_reductions(communication: &mut Communication, reductions: &[(usize, usize, Reduction)]) {
    let count = |wanted: &Reduction| reductions.iter().filter(|(_, _, r)| r == wanted).count();
    let rule = reductions.iter().map(|(_, _, r)| *r).max_by_key(|r| (count(r), std::cmp::Reverse(*r)));
    communication.reduce = rule.unwrap_or_default();
    communication.buckets = reductions
        .iter()
        .filter(|(_, _, reduction)| *reduction != communication.reduce)
        .map(|(pipeline_rank, bucket, reduction)| BucketReduction {
            pipeline_rank: *pipeline_rank as u32,
            bucket: *bucket as u32,
            reduction: *reduction,
        })
        .collect();
}
