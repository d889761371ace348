//! Orders of micro-batches through a pipeline.

use autodist_spec::ScheduleKind;

/// One forward or backward pass in the order of a pipeline rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Model chunk, counted over the whole pipeline.
    pub chunk: usize,
    pub micro_batch: usize,
    pub backward: bool,
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

/// The passes of `rank`, in order.
pub fn order(
    extent: Extent,
    kind: ScheduleKind,
    rank: usize,
    pipeline: usize,
    virtual_stages: usize,
    micro_batches: usize,
) -> Vec<Slot> {
    let period = extent == Extent::Period;
    match kind {
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
    let pass =
        |backward| (0..micro_batches).map(move |micro_batch| Slot { chunk: rank, micro_batch, backward });
    pass(false).chain(pass(true)).collect()
}

/// Warm-up forwards, then one forward and one backward in turn, then the remaining backwards
/// (Narayanan et al., SC'21, section 2.2.1).
fn one_f_one_b(rank: usize, pipeline: usize, micro_batches: usize) -> Vec<Slot> {
    let warmup = (pipeline - 1 - rank).min(micro_batches);
    pair_up(warmup, micro_batches, |micro_batch, backward| Slot { chunk: rank, micro_batch, backward })
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
    pair_up(warmup, total, |turn, backward| {
        let local = turn / per_round % virtual_stages;
        let local = if backward { virtual_stages - 1 - local } else { local };
        let round = turn / (per_round * virtual_stages);
        Slot { chunk: local * pipeline + rank, micro_batch: round * per_round + turn % per_round, backward }
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

fn pair_up(warmup: usize, total: usize, slot: impl Fn(usize, bool) -> Slot) -> Vec<Slot> {
    let mut order: Vec<Slot> = (0..warmup).map(|turn| slot(turn, false)).collect();
    for turn in warmup..total {
        order.push(slot(turn, false));
        order.push(slot(turn - warmup, true));
    }
    order.extend((total - warmup..total).map(|turn| slot(turn, true)));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A schedule in PyTorch's CSV form: one row per rank, cells chunk-operation-micro-batch, empty cells
    /// idle.
    fn check(kind: ScheduleKind, virtual_stages: usize, csv: &str) {
        let rows: Vec<&str> = csv.lines().collect();
        for (rank, row) in rows.iter().enumerate() {
            let expected: Vec<&str> = row.split(',').filter(|cell| !cell.is_empty()).collect();
            let micro_batches = expected.len() / (2 * virtual_stages);
            let ours: Vec<String> =
                order(Extent::Step, kind, rank, rows.len(), virtual_stages, micro_batches)
                    .iter()
                    .map(|s| format!("{}{}{}", s.chunk, if s.backward { 'B' } else { 'F' }, s.micro_batch))
                    .collect();
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
        let orders: Vec<Vec<Slot>> = (0..pipeline)
            .map(|rank| order(Extent::Step, kind, rank, pipeline, virtual_stages, micro_batches))
            .collect();
        let chunks = pipeline * virtual_stages;
        let mut done = std::collections::BTreeSet::new();
        let mut next = vec![0; pipeline];
        loop {
            let before = done.len();
            for rank in 0..pipeline {
                while let Some(slot) = orders[rank].get(next[rank]) {
                    let Slot { chunk, micro_batch, backward } = *slot;
                    let ready = match backward {
                        false => chunk == 0 || done.contains(&(chunk - 1, micro_batch, false)),
                        true if chunk + 1 == chunks => done.contains(&(chunk, micro_batch, false)),
                        true => done.contains(&(chunk + 1, micro_batch, true)),
                    };
                    if !ready {
                        break;
                    }
                    assert!(done.insert((chunk, micro_batch, backward)), "twice: {slot:?}");
                    next[rank] += 1;
                }
            }
            if done.len() == before {
                break;
            }
        }
        assert_eq!(
            done.len(),
            2 * chunks * micro_batches,
            "{kind:?} pp{pipeline} v{virtual_stages} m{micro_batches}"
        );
    }
}
