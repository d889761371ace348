//! The search space: every combination that the job allows, legal or not; the compiler's rules check
//! legality.

use autodist_spec::{Job, ModelSpec, ParallelStrategy, Recompute, ScheduleKind};

/// A strategy, except for the size of its gradient buckets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Has the first of the job's bucket sizes.
    pub strategy: ParallelStrategy,
    /// Whether to recompute only as many blocks as needed to fit, the first ones of every chunk; otherwise
    /// all of them.
    pub least_recompute: bool,
}

/// All candidates, in an order that depends only on the job.
pub(crate) fn candidates(model: &ModelSpec, job: &Job, devices: u32) -> Vec<Candidate> {
    let mut list = Vec::new();
    for Degrees { data, tensor, pipeline, context } in degrees(job, devices) {
        for (schedule, virtual_stages) in schedules(model, job, pipeline) {
            for micro_batch in micro_batches(job, data) {
                for (expert, (zero_stage, shard)) in
                    experts(model, job, data * context).into_iter().flat_map(|expert| {
                        shards(job, data, context).into_iter().map(move |shard| (expert, shard))
                    })
                {
                    for sequence_parallel in unique(&job.allow.sequence_parallel) {
                        if sequence_parallel && tensor == 1 {
                            continue;
                        }
                        let strategy = ParallelStrategy {
                            tensor,
                            pipeline,
                            context,
                            expert,
                            zero_stage,
                            shard,
                            virtual_stages,
                            sequence_parallel,
                            schedule,
                            bucket_bytes: job.allow.bucket_bytes[0],
                            ..ParallelStrategy::data_parallel(data, micro_batch)
                        };
                        recomputations(job, &strategy, &mut list);
                    }
                }
            }
        }
    }
    list
}

/// Every uniform policy, and, if the job allows no recomputation, mixtures of it with the others.
fn recomputations(job: &Job, strategy: &ParallelStrategy, list: &mut Vec<Candidate>) {
    let policies = unique(&job.allow.recompute);
    for recompute in &policies {
        let strategy = ParallelStrategy { recompute: *recompute, ..strategy.clone() };
        list.push(Candidate { strategy: strategy.clone(), least_recompute: false });
        let some = job.allow.partial_recompute && policies.contains(&Recompute::None);
        if *recompute != Recompute::None && some {
            list.push(Candidate { strategy, least_recompute: true });
        }
    }
}

struct Degrees {
    data: u32,
    tensor: u32,
    pipeline: u32,
    context: u32,
}

/// Factorisations of the device count. Sequences are split only over the degrees that the job lists.
fn degrees(job: &Job, devices: u32) -> Vec<Degrees> {
    let allow = &job.allow;
    let mut list = Vec::new();
    for tensor in divisors(devices).filter(|n| allowed(&allow.tensor, *n)) {
        for pipeline in divisors(devices / tensor).filter(|n| allowed(&allow.pipeline, *n)) {
            let rest = devices / tensor / pipeline;
            let contexts = unique(allow.context.as_deref().unwrap_or(&[1]));
            for context in contexts.into_iter().filter(|n| *n > 0 && rest.is_multiple_of(*n)) {
                let data = rest / context;
                if allowed(&allow.data, data) {
                    list.push(Degrees { data, tensor, pipeline, context });
                }
            }
        }
    }
    list
}

/// Without a pipeline there is only one order, which is called 1F1B.
fn schedules(model: &ModelSpec, job: &Job, pipeline: u32) -> Vec<(ScheduleKind, u32)> {
    let allow = &job.allow;
    // Who lists only several chunks per rank, or only their schedule, wants no other plan.
    let one_chunk = allowed(&allow.virtual_stages, 1);
    if pipeline == 1 {
        let other = allow.schedule.iter().any(|schedule| *schedule != ScheduleKind::Interleaved);
        return if one_chunk && other { vec![(ScheduleKind::OneFOneB, 1)] } else { Vec::new() };
    }
    let mut list = Vec::new();
    for schedule in unique(&allow.schedule) {
        if schedule != ScheduleKind::Interleaved {
            list.extend(one_chunk.then_some((schedule, 1)));
            continue;
        }
        let depths = job.allow.virtual_stages.clone().unwrap_or_else(|| depths(model, pipeline));
        list.extend(unique(&depths).into_iter().filter(|depth| *depth > 1).map(|depth| (schedule, depth)));
    }
    list
}

/// Chunks per pipeline rank: up to four of nearly equal numbers of layers, and more if these are equal.
fn depths(model: &ModelSpec, pipeline: u32) -> Vec<u32> {
    let few = (model.chain_len() as u32 / pipeline).min(4);
    let blocks = if model.layers.is_multiple_of(pipeline) { model.layers / pipeline } else { 0 };
    (2..=few).chain(divisors(blocks).filter(|depth| *depth > 4)).collect()
}

/// The job's list, or every divisor of a data rank's batch; 1 if the batch does not divide, which the rules
/// then reject.
fn micro_batches(job: &Job, data: u32) -> Vec<u32> {
    match &job.allow.micro_batch {
        Some(list) => unique(list),
        None if job.global_batch.is_multiple_of(data) => divisors(job.global_batch / data).collect(),
        None => vec![1],
    }
}

/// Expert-parallel degrees where `replicas` ranks hold the same parameters.
fn experts(model: &ModelSpec, job: &Job, replicas: u32) -> Vec<u32> {
    let counts: Vec<u32> = model.block_kinds().filter_map(|block| Some(block.experts?.count)).collect();
    match (&job.allow.expert, counts.first()) {
        (Some(list), _) => unique(list),
        (None, Some(count)) => {
            let divides_all = |n: &u32| counts.iter().all(|count| count.is_multiple_of(*n));
            divisors(*count).filter(|n| replicas.is_multiple_of(*n) && divides_all(n)).collect()
        }
        (None, None) => vec![1],
    }
}

/// Groups of one rank shard over the ranks that split a sequence.
fn shards(job: &Job, data: u32, context: u32) -> Vec<(u8, u32)> {
    let mut list = Vec::new();
    for zero_stage in unique(&job.allow.zero_stage) {
        if zero_stage == 0 {
            list.push((0, 1));
        } else {
            let groups =
                divisors(data).filter(|shard| *shard * context > 1 && allowed(&job.allow.shard, *shard));
            list.extend(groups.map(|shard| (zero_stage, shard)));
        }
    }
    list
}

fn divisors(n: u32) -> impl Iterator<Item = u32> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

fn allowed(list: &Option<Vec<u32>>, value: u32) -> bool {
    list.as_ref().is_none_or(|list| list.contains(&value))
}

/// Removes duplicates, and keeps the order.
fn unique<T: Copy + PartialEq>(list: &[T]) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for value in list {
        if !kept.contains(value) {
            kept.push(*value);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::catalog;

    #[test]
    fn the_space_holds_every_split_once() {
        let model = catalog::model("tiny-llama").unwrap();
        let list = candidates(&model, &Job::new(8, 128), 4);
        let mut labels: Vec<_> = list.iter().map(|c| (&c.strategy, c.least_recompute)).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), list.len());
        for expected in ["dp4 tp1 pp1 mb2 zero3/2", "dp1 tp4 pp1 mb8 sp", "dp1 tp1 pp2 mb1 1f1b"] {
            let found = list.iter().any(|c| c.strategy.label() == expected);
            assert_eq!(found, c_devices(expected) == 4, "{expected}");
        }
    }

    fn c_devices(label: &str) -> u32 {
        label.split(' ').take(3).map(|part| part[2..].parse::<u32>().unwrap()).product()
    }

    #[test]
    fn what_the_job_forbids_is_not_there() {
        let model = catalog::model("tiny-llama").unwrap();
        let mut job = Job::new(8, 128);
        job.allow.tensor = Some(vec![2]);
        job.allow.zero_stage = vec![0];
        job.allow.recompute = vec![Recompute::Full];
        let list = candidates(&model, &job, 4);
        assert!(!list.is_empty());
        let only = |c: &Candidate| {
            (c.strategy.tensor, c.strategy.zero_stage, c.strategy.recompute) == (2, 0, Recompute::Full)
        };
        assert!(list.iter().all(|c| only(c) && !c.least_recompute));
    }
}
