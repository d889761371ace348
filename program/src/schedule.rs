//! Orders of micro-batches through a pipeline.

use autodist_spec::{ParallelStrategy, ScheduleKind};
use std::fmt;

/// What a pass of a chunk computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SlotKind {
    Forward,
    /// Gradients of the chunk's input (Qi et al., 2401.10241, section 2).
    BackwardInput,
    /// Gradients of the chunk's parameters.
    BackwardWeight,
    /// Both.
    Backward,
}

/// One pass in the order of a pipeline rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub kind: SlotKind,
    /// Model chunk, counted over the whole pipeline.
    pub chunk: usize,
    pub micro_batch: usize,
}

/// Chunk, kind and micro-batch, as in the tables of PyTorch's pipeline schedules: `2F0` is the forward pass of
/// chunk 2 on micro-batch 0.
impl fmt::Display for Slot {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SlotKind::Forward => 'F',
            SlotKind::BackwardInput => 'I',
            SlotKind::BackwardWeight => 'W',
            SlotKind::Backward => 'B',
        };
        write!(out, "{}{kind}{}", self.chunk, self.micro_batch)
    }
}

/// How much of a step an order holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All micro-batches.
    Step,
    /// At most as many micro-batches as it takes for every state of the pipeline to occur once: warm-up, a
    /// period of one forward and one backward in turn, and drain. Live memory has the same peak as in a step.
    Period,
}

/// The passes of pipeline rank `rank`, in order. [`ParallelStrategy::rank_of`] has the rank of each chunk.
pub fn order(extent: Extent, strategy: &ParallelStrategy, rank: usize, micro_batches: usize) -> Vec<Slot> {
    let (pipeline, virtual_stages) = (strategy.pipeline as usize, strategy.virtual_stages as usize);
    let period = extent == Extent::Period;
    match strategy.schedule {
        ScheduleKind::GPipe => gpipe(rank, micro_batches),
        ScheduleKind::OneFOneB => {
            let most = if period { pipeline + 1 } else { usize::MAX };
            one_f_one_b(rank, pipeline, micro_batches.min(most))
        }
        ScheduleKind::Interleaved => {
            // A warm-up takes less than one and a half rounds of all chunks, a period one.
            let most_rounds = if period { 3 } else { usize::MAX };
            interleaved(rank, pipeline, virtual_stages, micro_batches, most_rounds)
        }
    }
}

/// All forwards, then all backwards (Huang et al., 1811.06965).
fn gpipe(rank: usize, micro_batches: usize) -> Vec<Slot> {
    let pass = |kind| (0..micro_batches).map(move |micro_batch| Slot { kind, chunk: rank, micro_batch });
    pass(SlotKind::Forward).chain(pass(SlotKind::Backward)).collect()
}

/// Warm-up forwards, then one forward and one backward in turn, then the remaining backwards
/// (Narayanan et al., SC'21, section 2.2.1).
fn one_f_one_b(rank: usize, pipeline: usize, micro_batches: usize) -> Vec<Slot> {
    let warmup = (pipeline - 1 - rank).min(micro_batches);
    pair_up(warmup, micro_batches, |micro_batch, kind| Slot { kind, chunk: rank, micro_batch })
}

/// 1F1B over several chunks per rank, in rounds of micro-batches (SC'21, section 2.2.2; the order is
/// PyTorch's Interleaved1F1B, whose rounds also support counts that are not a multiple of the pipeline's
/// ranks). At most `most_rounds` of them.
fn interleaved(
    rank: usize,
    pipeline: usize,
    virtual_stages: usize,
    micro_batches: usize,
    most_rounds: usize,
) -> Vec<Slot> {
    let per_round = micro_batches_per_round(pipeline, micro_batches);
    let total = rounds(pipeline, micro_batches).min(most_rounds) * per_round * virtual_stages;
    let warmup = ((virtual_stages - 1) * per_round + 2 * (pipeline - 1 - rank)).min(total);
    pair_up(warmup, total, |turn, kind| {
        let local = turn / per_round % virtual_stages;
        let local = if kind == SlotKind::Forward { local } else { virtual_stages - 1 - local };
        let round = turn / (per_round * virtual_stages);
        Slot { kind, chunk: local * pipeline + rank, micro_batch: round * per_round + turn % per_round }
    })
}

/// Micro-batches that pass through one chunk before the next chunk runs.
pub fn micro_batches_per_round(pipeline: usize, micro_batches: usize) -> usize {
    micro_batches / rounds(pipeline, micro_batches)
}

/// Rounds of the interleaved schedule; the micro-batches must be a multiple of them.
pub fn rounds(pipeline: usize, micro_batches: usize) -> usize {
    (micro_batches / pipeline).max(1)
}

/// Micro-batches of a round of the interleaved schedule: as many as stages, or more.
pub fn round_of(pipeline: u32, micro_batches: u32) -> u32 {
    micro_batches / rounds(pipeline as usize, micro_batches as usize) as u32
}

fn pair_up(warmup: usize, total: usize, slot: impl Fn(usize, SlotKind) -> Slot) -> Vec<Slot> {
    use SlotKind::{Backward, Forward};
    let mut order: Vec<Slot> = (0..warmup).map(|turn| slot(turn, Forward)).collect();
    for turn in warmup..total {
        order.push(slot(turn, Forward));
        order.push(slot(turn - warmup, Backward));
    }
    order.extend((total - warmup..total).map(|turn| slot(turn, Backward)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strategy(schedule: ScheduleKind, pipeline: usize, virtual_stages: usize) -> ParallelStrategy {
        ParallelStrategy {
            schedule,
            pipeline: pipeline as u32,
            virtual_stages: virtual_stages as u32,
            ..ParallelStrategy::data_parallel(1, 1)
        }
    }

    /// A schedule in PyTorch's CSV form: one row per rank, empty cells idle.
    fn check(kind: ScheduleKind, virtual_stages: usize, csv: &str) {
        let rows: Vec<&str> = csv.lines().collect();
        let strategy = strategy(kind, rows.len(), virtual_stages);
        for (rank, row) in rows.iter().enumerate() {
            let expected: Vec<&str> = row.split(',').filter(|cell| !cell.is_empty()).collect();
            let micro_batches = expected.len() / (2 * virtual_stages);
            let ours = order(Extent::Step, &strategy, rank, micro_batches);
            let ours: Vec<String> = ours.iter().map(Slot::to_string).collect();
            assert_eq!(ours, expected, "rank {rank}");
        }
    }

    #[test]
    fn the_interleaved_order_is_pytorchs() {
        check(
            ScheduleKind::Interleaved,
            2,
            include_str!("../../tests/golden/schedules/Interleaved1F1B-pp2-v2-mb4.csv"),
        );
        check(
            ScheduleKind::Interleaved,
            2,
            include_str!("../../tests/golden/schedules/Interleaved1F1B-pp4-v2-mb8.csv"),
        );
        check(
            ScheduleKind::Interleaved,
            3,
            include_str!("../../tests/golden/schedules/Interleaved1F1B-pp4-v3-mb12.csv"),
        );
    }

    #[test]
    fn one_f_one_b_and_gpipe_order_by_hand() {
        check(ScheduleKind::OneFOneB, 1, "0F0,0F1,0B0,0F2,0B1,0F3,0B2,0B3\n1F0,1B0,1F1,1B1,1F2,1B2,1F3,1B3");
        check(ScheduleKind::GPipe, 1, "0F0,0F1,0F2,0B0,0B1,0B2\n1F0,1F1,1F2,1B0,1B1,1B2");
    }

    #[test]
    fn every_order_runs_to_its_end_without_a_deadlock() {
        for pipeline in 2..5 {
            for virtual_stages in 1..4 {
                for micro_batches in 1..13 {
                    for kind in [ScheduleKind::GPipe, ScheduleKind::OneFOneB, ScheduleKind::Interleaved] {
                        let interleaved = kind == ScheduleKind::Interleaved;
                        if interleaved != (virtual_stages > 1)
                            || interleaved && micro_batches % rounds(pipeline, micro_batches) != 0
                        {
                            continue;
                        }
                        run(kind, pipeline, virtual_stages, micro_batches);
                    }
                }
            }
        }
    }

    fn run(kind: ScheduleKind, pipeline: usize, virtual_stages: usize, micro_batches: usize) {
        let strategy = strategy(kind, pipeline, virtual_stages);
        let of_rank = |rank| order(Extent::Step, &strategy, rank, micro_batches);
        let orders: Vec<Vec<Slot>> = (0..pipeline).map(of_rank).collect();
        let chunks = pipeline * virtual_stages;
        let mut done = std::collections::BTreeSet::new();
        let mut next = vec![0; pipeline];
        loop {
            let before = done.len();
            for rank in 0..pipeline {
                while let Some(slot) = orders[rank].get(next[rank]) {
                    let Slot { kind, chunk, micro_batch } = *slot;
                    assert_eq!(strategy.rank_of(chunk), rank, "{slot}");
                    let ready = match kind {
                        SlotKind::Forward => chunk == 0 || done.contains(&(chunk - 1, micro_batch, kind)),
                        _ if chunk + 1 == chunks => done.contains(&(chunk, micro_batch, SlotKind::Forward)),
                        _ => done.contains(&(chunk + 1, micro_batch, kind)),
                    };
                    if !ready {
                        break;
                    }
                    assert!(done.insert((chunk, micro_batch, kind)), "twice: {slot}");
                    next[rank] += 1;
                }
            }
            if done.len() == before {
                break;
            }
        }
        let name = format!("{kind:?} pp{pipeline} v{virtual_stages} m{micro_batches}");
        assert_eq!(done.len(), 2 * chunks * micro_batches, "{name}");
    }
}
