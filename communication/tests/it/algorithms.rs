//! Every algorithm gives the same sums, the same bits on all members, and moves exactly the bytes of its
//! schedule.

use crate::common;

use std::time::{Duration, Instant};

use autodist_collectives::{Schedule, candidates, suits};
use autodist_communication::{
    CommunicationError, Communicator, Counters, Endpoint, GroupOptions, ReduceOp, shard_range,
};
use autodist_spec::{Algorithm, Collective};
use common::{Gate, TIMEOUT, any_transport, digest, job, transports, values};
use proptest::prelude::*;

const ALGORITHMS: [Algorithm; 11] = [
    Algorithm::Ring,
    Algorithm::DoubleBinaryTree,
    Algorithm::HalvingDoubling,
    Algorithm::Hierarchical { inner: 1 },
    Algorithm::Hierarchical { inner: 2 },
    Algorithm::Hierarchical { inner: 3 },
    Algorithm::Hierarchical { inner: 4 },
    Algorithm::Hierarchical { inner: 8 },
    Algorithm::Torus { columns: 2 },
    Algorithm::Torus { columns: 3 },
    Algorithm::Torus { columns: 4 },
];

fn fitting(size: usize) -> Vec<Algorithm> {
    let suitable = |algorithm: &Algorithm| suits(*algorithm, Collective::AllReduce, size).is_ok();
    ALGORITHMS.into_iter().filter(suitable).collect()
}

fn group_for(endpoint: &mut Endpoint, options: &GroupOptions) -> Box<dyn Communicator> {
    let members: Vec<_> = (0..endpoint.world()).collect();
    endpoint.group_for("data", &members, options).unwrap()
}

/// Whole numbers, whose sum is exact in any order.
fn whole(rank: usize, length: usize) -> Vec<f32> {
    (0..length).map(|place| ((rank * 37 + place * 11) % 1000) as f32).collect()
}

fn schedule_bytes(schedule: &Schedule, rank: usize) -> Counters {
    let received: usize = schedule.receives[rank].iter().map(|receive| receive.elements.len()).sum();
    Counters { sent: 4 * schedule.sent(rank) as u64, received: 4 * received as u64 }
}

#[test]
fn every_algorithm_reduces_alike() {
    for over in transports() {
        for world in 2..=8 {
            let options = GroupOptions { algorithms: fitting(world), all_to_all: false };
            let results = job(over, world, TIMEOUT, |mut endpoint| {
                let mut group = group_for(&mut endpoint, &options);
                let rank = group.rank();
                let mut fractions = Vec::new();
                for &algorithm in &options.algorithms {
                    for length in [0, 1, world - 1, 1009, 200_003] {
                        let what = format!("{over:?}, {} of {world}, {length}", algorithm.name());
                        let moved = |collective| {
                            let schedule = Schedule::build(algorithm, collective, length, world).unwrap();
                            schedule_bytes(&schedule, rank)
                        };
                        let start = group.counters();
                        let mut own = whole(rank, length);
                        group.all_reduce_by(algorithm, &mut own, ReduceOp::Sum).unwrap();
                        assert_eq!(group.counters() - start, moved(Collective::AllReduce), "{what}");
                        let mut sum = vec![0.0; length];
                        for rank in 0..world {
                            sum.iter_mut().zip(whole(rank, length)).for_each(|(sum, value)| *sum += value);
                        }
                        assert_eq!(own, sum, "{what}");
                        let mut greatest = whole(rank, length);
                        group.all_reduce_by(algorithm, &mut greatest, ReduceOp::Max).unwrap();
                        for place in 0..length {
                            let all = (0..world).map(|rank| (rank * 37 + place * 11) % 1000);
                            assert_eq!(greatest[place], all.max().unwrap() as f32, "{what}");
                        }
                        let mut own = values(rank, length);
                        group.all_reduce_by(algorithm, &mut own, ReduceOp::Sum).unwrap();
                        fractions.push((what.clone(), digest(&own)));

                        if suits(algorithm, Collective::ReduceScatter, world).is_err() {
                            continue;
                        }
                        let start = group.counters();
                        let mut apart = whole(rank, length);
                        let shard = group.reduce_scatter_by(algorithm, &mut apart, ReduceOp::Sum).unwrap();
                        assert_eq!(shard, shard_range(length, world, rank));
                        assert_eq!(apart[shard.clone()], sum[shard.clone()], "{what}");
                        assert_eq!(group.counters() - start, moved(Collective::ReduceScatter), "{what}");
                        let start = group.counters();
                        let mut whole = vec![f32::NAN; length];
                        whole[shard.clone()].copy_from_slice(&sum[shard]);
                        group.all_gather_by(algorithm, &mut whole).unwrap();
                        assert_eq!(whole, sum, "{what}");
                        assert_eq!(group.counters() - start, moved(Collective::AllGather), "{what}");
                    }
                    group.barrier().unwrap();
                }
                fractions
            });
            for of_rank in &results {
                for ((what, got), (_, first)) in of_rank.iter().zip(&results[0]) {
                    assert!(got == first, "{what}");
                }
            }
        }
    }
}

/// Bytes that member `from` sends to member `to`; some are empty.
fn part(from: usize, to: usize, scale: usize) -> Vec<u8> {
    let length = (from * 5 + to * 3) % 7 * scale;
    (0..length).map(|place| (from * 31 + to * 17 + place) as u8).collect()
}

#[test]
fn bytes_of_any_length_reach_everybody() {
    for over in transports() {
        for world in 1..=8 {
            let options = GroupOptions { algorithms: Vec::new(), all_to_all: true };
            job(over, world, TIMEOUT, |mut endpoint| {
                let mut group = group_for(&mut endpoint, &options);
                let rank = group.rank();
                for scale in [0, 1, 1000, 50_001] {
                    let start = group.counters();
                    let parts: Vec<_> = (0..world).map(|to| part(rank, to, scale)).collect();
                    let got = group.all_to_all_bytes(&parts).unwrap();
                    let expected: Vec<_> = (0..world).map(|from| part(from, rank, scale)).collect();
                    assert!(got == expected, "{over:?}, {rank} of {world}, {scale}");
                    let but_own = |parts: &[Vec<u8>]| -> u64 {
                        let all: usize = parts.iter().map(Vec::len).sum();
                        (all - parts[rank].len()) as u64
                    };
                    let moved = Counters { sent: but_own(&parts), received: but_own(&expected) };
                    assert_eq!(group.counters() - start, moved);

                    let start = group.counters();
                    let got = group.all_gather_bytes(&part(rank, 1, scale)).unwrap();
                    let expected: Vec<_> = (0..world).map(|from| part(from, 1, scale)).collect();
                    assert!(got == expected, "{over:?}, {rank} of {world}, {scale}");
                    let all: usize = expected.iter().map(Vec::len).sum();
                    let next = &expected[(rank + 1) % world];
                    let moved = Counters {
                        sent: if world > 1 { (all - next.len()) as u64 } else { 0 },
                        received: (all - expected[rank].len()) as u64,
                    };
                    assert_eq!(group.counters() - start, moved);
                }
                // Collectives of all kinds share connections.
                let mut own = whole(rank, 1000);
                group.all_reduce(&mut own, ReduceOp::Max).unwrap();
            });
        }
    }
}

#[test]
fn what_a_group_was_not_opened_for_is_refused_and_named() {
    for over in transports() {
        job(over, 4, TIMEOUT, |mut endpoint| {
            let members = [0, 1, 2, 3];
            let misfit =
                GroupOptions { algorithms: vec![Algorithm::Hierarchical { inner: 3 }], all_to_all: false };
            let error = endpoint.group_for("data", &members, &misfit).err().unwrap();
            assert_eq!(
                error.to_string(),
                "opening a group on `data` by hierarchical/3: hierarchical/3 needs a group that 3 divides, not 4"
            );
            // The name is still free.
            let options = GroupOptions { algorithms: vec![Algorithm::DoubleBinaryTree], all_to_all: false };
            let mut group = endpoint.group_for("data", &members, &options).unwrap();
            let mut own = [1.0; 5];
            let error = group.all_reduce_by(Algorithm::HalvingDoubling, &mut own, ReduceOp::Sum).unwrap_err();
            assert!(
                matches!(&error, CommunicationError::Unsuitable { way, .. } if &**way == "halving-doubling")
            );
            assert_eq!(
                error.to_string(),
                "all-reduce on `data` by halving-doubling: the group was not opened for it"
            );
            let error = group.all_gather_by(Algorithm::DoubleBinaryTree, &mut own).unwrap_err();
            assert!(error.to_string().ends_with("so it is an all-reduce only"), "{error}");
            let error = group.all_to_all_bytes(&vec![Vec::new(); 4]).unwrap_err();
            assert!(matches!(error, CommunicationError::Unsuitable { .. }), "{error}");
            let error = group.all_to_all_bytes(&[]).unwrap_err();
            assert!(error.to_string().ends_with("0 parts are not one for each of 4 members"), "{error}");
            // The group is still usable after these errors.
            group.all_reduce_by(Algorithm::DoubleBinaryTree, &mut own, ReduceOp::Sum).unwrap();
            group.all_reduce_by(Algorithm::Ring, &mut own, ReduceOp::Sum).unwrap();
            assert_eq!(own, [16.0; 5]);
        });
    }
}

#[test]
fn a_peer_that_ends_is_noticed_by_all_whatever_the_algorithm() {
    const WORLD: usize = 6;
    for over in transports() {
        for algorithm in candidates(WORLD, &[0, 0, 0, 1, 1, 1]) {
            for gone in [0, 3, 5] {
                let options = GroupOptions { algorithms: vec![algorithm], all_to_all: false };
                job(over, WORLD, TIMEOUT, |mut endpoint| {
                    let rank = endpoint.rank();
                    let mut group = group_for(&mut endpoint, &options);
                    let start = Instant::now();
                    if rank == gone {
                        return;
                    }
                    let mut own = vec![1.0; 1_000_000];
                    let error = group.all_reduce_by(algorithm, &mut own, ReduceOp::Sum).unwrap_err();
                    let what = format!("{over:?}, {}: {error} at {rank}", algorithm.name());
                    assert!(start.elapsed() < Duration::from_secs(5), "{what}");
                    assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{what}");
                    let again = group.all_reduce_by(algorithm, &mut own, ReduceOp::Sum).unwrap_err();
                    assert!(matches!(again, CommunicationError::Broken { .. }), "{again}");
                });
            }
        }
    }
}

#[test]
fn a_peer_that_ends_is_noticed_when_bytes_are_exchanged() {
    for over in transports() {
        for gathers in [false, true] {
            let options = GroupOptions { algorithms: Vec::new(), all_to_all: true };
            job(over, 5, TIMEOUT, |mut endpoint| {
                let mut group = group_for(&mut endpoint, &options);
                if group.rank() == 2 {
                    return;
                }
                let parts = vec![vec![1; 1_000_000]; 5];
                let outcome =
                    if gathers { group.all_gather_bytes(&parts[0]) } else { group.all_to_all_bytes(&parts) };
                let error = outcome.unwrap_err();
                assert!(matches!(error, CommunicationError::PeerClosed { .. }), "{over:?}: {error}");
                assert!(matches!(group.barrier(), Err(CommunicationError::Broken { .. })));
            });
        }
    }
}

#[test]
fn a_silent_peer_is_named_after_the_timeout() {
    let patience = Duration::from_millis(300);
    for over in transports() {
        let algorithms = vec![Algorithm::DoubleBinaryTree, Algorithm::HalvingDoubling];
        for algorithm in algorithms.clone() {
            let options = GroupOptions { algorithms: algorithms.clone(), all_to_all: false };
            let finish = Gate::new(over, 2);
            job(over, 2, patience, |mut endpoint| {
                let mut group = group_for(&mut endpoint, &options);
                if group.rank() == 0 {
                    let error = group.all_reduce_by(algorithm, &mut [1.0; 9], ReduceOp::Sum).unwrap_err();
                    assert!(matches!(error, CommunicationError::TimedOut { .. }), "{error}");
                    assert_eq!(error.to_string(), "all-reduce on `data`: rank 1 was silent for 0.3 s");
                }
                finish.wait();
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// One collective after the other, without a pause between them, members in any order.
    #[test]
    fn collectives_follow_each_other(
        order in (2usize..=8).prop_flat_map(|world| Just((0..world).collect::<Vec<_>>()).prop_shuffle()),
        calls in proptest::collection::vec((0usize..ALGORITHMS.len(), 0usize..5000), 1..20),
    ) {
        let world = order.len();
        let options = GroupOptions { algorithms: fitting(world), all_to_all: true };
        job(any_transport(), world, TIMEOUT, |mut endpoint| {
            let mut group = endpoint.group_for("data", &order, &options).unwrap();
            for &(algorithm, length) in &calls {
                let algorithm = options.algorithms[algorithm % options.algorithms.len()];
                let mut own = vec![group.rank() as f32; length];
                group.all_reduce_by(algorithm, &mut own, ReduceOp::Sum).unwrap();
                assert!(own.iter().all(|value| *value == (world * (world - 1) / 2) as f32));
                let parts: Vec<_> = (0..world).map(|to| part(group.rank(), to, length % 10)).collect();
                group.all_to_all_bytes(&parts).unwrap();
            }
        });
    }
}

#[cfg(feature = "mpi")]
#[test]
fn over_mpi() {
    common::mpi::again(8, "algorithms::");
}
