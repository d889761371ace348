//! Transfers of one kind between two pipeline ranks are received in the order in which they are sent: a
//! transport without tags (NCCL's send and receive) carries them.

use autodist_program::{MessageKind, Op, Program, stages};
use autodist_spec::{Job, ModelSpec, ParallelStrategy, ScheduleKind, catalog};

fn model(layers: u32) -> ModelSpec {
    ModelSpec { layers, ..catalog::model("tiny-llama").expect("a built-in model") }
}

/// Chunk and micro-batch of the transfers that `rank` sends to `peer`, or receives from it, in order.
fn order(program: &Program, rank: usize, peer: usize, kind: MessageKind, sends: bool) -> Vec<(usize, usize)> {
    let of = |op: &Op| match op {
        Op::Send(message) if sends => Some(*message),
        Op::Receive(message) if !sends => Some(*message),
        _ => None,
    };
    let ops = program.ranks[rank].ops.iter().filter_map(of);
    ops.filter(|m| m.peer == peer && m.kind == kind).map(|m| (m.chunk, m.micro_batch)).collect()
}

#[test]
fn messages_arrive_in_the_order_in_which_they_are_sent() {
    let mut compared = 0;
    for (pipeline, virtual_stages, schedule) in [
        (2, 1, ScheduleKind::GPipe),
        (4, 1, ScheduleKind::GPipe),
        (2, 1, ScheduleKind::OneFOneB),
        (3, 1, ScheduleKind::OneFOneB),
        (4, 1, ScheduleKind::OneFOneB),
        (2, 2, ScheduleKind::Interleaved),
        (2, 3, ScheduleKind::Interleaved),
        (4, 2, ScheduleKind::Interleaved),
        (3, 3, ScheduleKind::Interleaved),
    ] {
        let model = model(pipeline * virtual_stages * 2);
        let strategy =
            ParallelStrategy { pipeline, virtual_stages, schedule, ..ParallelStrategy::data_parallel(1, 1) };
        let stages = stages::even(&model, &strategy);
        let program = Program::compile(&model, &Job::new(pipeline * 3, 16), pipeline, &strategy, &stages)
            .expect("a legal plan");
        let ranks = 0..pipeline as usize;
        for (from, to) in ranks.clone().flat_map(|from| ranks.clone().map(move |to| (from, to))) {
            for kind in [MessageKind::Activation, MessageKind::Gradient] {
                let sent = order(&program, from, to, kind, true);
                let received = order(&program, to, from, kind, false);
                assert_eq!(sent, received, "{} from {from} to {to}: {kind:?}", strategy.label());
                compared += sent.len();
            }
        }
    }
    assert!(compared > 500, "{compared} messages");
}
