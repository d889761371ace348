//! Collectives give the right values, the same bits on all members, and move exactly the bytes of the
//! formula.

use crate::common;

use autodist_communication::{Communicator, Counters, Endpoint, ReduceOp, shard_range};
use common::{TIMEOUT, any_transport, bits, digest, job, now, transports, value, values};
use proptest::prelude::*;

const LENGTHS: [usize; 8] = [0, 1, 2, 3, 7, 1009, 65_537, 1_000_000];

fn whole_world(endpoint: &mut Endpoint) -> Box<dyn Communicator> {
    let members: Vec<_> = (0..endpoint.world()).collect();
    endpoint.group("data", &members).unwrap()
}

/// The sum or maximum of `values(rank, …)` over `members`, in f64.
fn reference(members: &[usize], place: usize, reduction: ReduceOp) -> f64 {
    let terms = members.iter().map(|&rank| f64::from(value(rank, place)));
    match reduction {
        ReduceOp::Sum => terms.sum(),
        ReduceOp::Max => terms.fold(f64::NEG_INFINITY, f64::max),
    }
}

/// Terms are at most 1, so every partial sum is at most their number and every addition rounds by at most
/// half a unit in the last place of that.
fn assert_reduced(got: f32, members: &[usize], place: usize, reduction: ReduceOp) {
    let size = members.len() as f64;
    let tolerance = match reduction {
        ReduceOp::Sum => size * size * f64::from(f32::EPSILON) / 2.0,
        ReduceOp::Max => 0.0,
    };
    let expected = reference(members, place, reduction);
    assert!((f64::from(got) - expected).abs() <= tolerance, "place {place}: {got} for {expected}");
}

/// Bytes of the shards of all members but `without`.
fn all_but(length: usize, size: usize, without: usize) -> u64 {
    4 * (length - shard_range(length, size, without % size).len()) as u64
}

#[test]
fn all_reduce_is_right_everywhere() {
    for over in transports() {
        for world in 1..=5 {
            let members: Vec<_> = (0..world).collect();
            let results = job(over, world, TIMEOUT, |mut endpoint| {
                let mut group = whole_world(&mut endpoint);
                let rank = group.rank();
                let mut results = Vec::new();
                for length in LENGTHS {
                    for reduction in [ReduceOp::Sum, ReduceOp::Max] {
                        let before = group.counters();
                        let mut got = values(rank, length);
                        group.all_reduce(&mut got, reduction).unwrap();
                        let counters = group.counters() - before;
                        for place in (0..length).step_by(1 + length / 1000) {
                            assert_reduced(got[place], &members, place, reduction);
                        }
                        if length % world == 0 {
                            let formula = 2 * (world - 1) * (4 * length) / world;
                            assert_eq!(counters, Counters { sent: formula as u64, received: formula as u64 });
                        }
                        let sent = all_but(length, world, rank) + all_but(length, world, rank + 1);
                        let received =
                            all_but(length, world, rank + world - 1) + all_but(length, world, rank);
                        let expected =
                            if world == 1 { Counters::default() } else { Counters { sent, received } };
                        assert_eq!(counters, expected, "{over:?}, rank {rank} of {world}, {length}");
                        results.push(digest(&got));
                    }
                }
                results
            });
            for (rank, of_rank) in results.iter().enumerate() {
                assert_eq!(of_rank, &results[0], "{over:?}, rank {rank} of {world}: other bits");
            }
        }
    }
}

#[test]
fn reduce_scatter_then_all_gather_is_all_reduce() {
    for over in transports() {
        for world in 1..=5 {
            job(over, world, TIMEOUT, |mut endpoint| {
                let mut group = whole_world(&mut endpoint);
                let rank = group.rank();
                for length in LENGTHS {
                    let mut together = values(rank, length);
                    group.all_reduce(&mut together, ReduceOp::Sum).unwrap();

                    let mut apart = values(rank, length);
                    let start = group.counters();
                    let own = group.reduce_scatter(&mut apart, ReduceOp::Sum).unwrap();
                    let middle = group.counters();
                    assert_eq!(own, shard_range(length, world, rank));
                    assert_eq!(bits(&apart[own.clone()]), bits(&together[own.clone()]));
                    let shard = apart[own.clone()].to_vec();
                    apart.fill(f32::NAN);
                    apart[own].copy_from_slice(&shard);
                    group.all_gather(&mut apart).unwrap();
                    let end = group.counters();
                    assert_eq!(bits(&apart), bits(&together), "{over:?}, {rank} of {world}, {length}");
                    if world > 1 {
                        assert_eq!((middle - start).sent, all_but(length, world, rank));
                        assert_eq!((middle - start).received, all_but(length, world, rank + world - 1));
                        assert_eq!((end - middle).sent, all_but(length, world, rank + 1));
                        assert_eq!((end - middle).received, all_but(length, world, rank));
                    }
                }
            });
        }
    }
}

#[test]
fn broadcast_reaches_all_from_any_root() {
    for over in transports() {
        for world in 1..=5 {
            job(over, world, TIMEOUT, |mut endpoint| {
                let mut group = whole_world(&mut endpoint);
                let rank = group.rank();
                for length in [0, 1, 1009, 300_000] {
                    for root in 0..world {
                        let before = group.counters();
                        let mut own = values(rank, length);
                        group.broadcast(&mut own, root).unwrap();
                        assert_eq!(bits(&own), bits(&values(root, length)));
                        let moved = group.counters() - before;
                        let bytes = 4 * length as u64;
                        let last = (rank + 1) % world == root;
                        assert_eq!(moved.sent, if last { 0 } else { bytes });
                        assert_eq!(moved.received, if rank == root { 0 } else { bytes });
                    }
                    group.barrier().unwrap();
                }
                assert!(group.broadcast(&mut [], world).is_err());
            });
        }
    }
}

#[test]
fn nan_is_not_hidden() {
    let results = job(any_transport(), 3, TIMEOUT, |mut endpoint| {
        let mut group = whole_world(&mut endpoint);
        let mut own = [if group.rank() == 1 { f32::NAN } else { 1.0 }; 5];
        group.all_reduce(&mut own, ReduceOp::Max).unwrap();
        own.iter().all(|value| value.is_nan())
    });
    assert_eq!(results, [true; 3]);
}

#[test]
fn nobody_leaves_a_barrier_before_all_came() {
    for over in transports() {
        let passages = job(over, 4, TIMEOUT, |mut endpoint| {
            let mut group = whole_world(&mut endpoint);
            let passages: Vec<(u64, u64)> = (1..=20)
                .map(|round| {
                    if (round + group.rank()).is_multiple_of(4) {
                        std::thread::sleep(std::time::Duration::from_millis(1));
                    }
                    let came = now();
                    group.barrier().unwrap();
                    (came, now())
                })
                .collect();
            assert_eq!(group.counters(), Counters::default());
            passages
        });
        for round in 0..20 {
            let last_came = passages.iter().map(|passages| passages[round].0).max();
            let first_left = passages.iter().map(|passages| passages[round].1).min();
            assert!(last_came <= first_left, "{over:?}, round {round}");
        }
    }
}

/// A mesh of 2 x 2: one thread of each rank reduces along one axis while another does along the other.
#[test]
fn groups_of_two_axes_run_side_by_side() {
    for over in transports() {
        job(over, 4, TIMEOUT, |mut endpoint| {
            let rank = endpoint.rank();
            let (row, column) = ([rank / 2 * 2, rank / 2 * 2 + 1], [rank % 2, rank % 2 + 2]);
            let mut tensor = endpoint.group("tensor", &row).unwrap();
            let mut data = endpoint.group("data", &column).unwrap();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    for length in 0..300 {
                        let mut own = values(rank, length);
                        tensor.all_reduce(&mut own, ReduceOp::Sum).unwrap();
                        for place in 0..length {
                            assert_reduced(own[place], &row, place, ReduceOp::Sum);
                        }
                    }
                });
                scope.spawn(|| {
                    let mut own = values(rank, 1_000_003);
                    data.all_reduce(&mut own, ReduceOp::Sum).unwrap();
                    for place in (0..own.len()).step_by(1009) {
                        assert_reduced(own[place], &column, place, ReduceOp::Sum);
                    }
                });
            });
        });
    }
}

/// Assigns every rank to one of several groups, in random order.
fn partition() -> impl Strategy<Value = Vec<Vec<usize>>> {
    (1usize..=6, 1usize..=3)
        .prop_flat_map(|(world, groups)| {
            (
                Just((0..world).collect::<Vec<_>>()).prop_shuffle(),
                proptest::collection::vec(0..groups, world),
                Just(groups),
            )
        })
        .prop_map(|(order, assigned, groups)| {
            (0..groups)
                .map(|group| {
                    order.iter().copied().filter(|&rank| assigned[rank] == group).collect::<Vec<_>>()
                })
                .filter(|members| !members.is_empty())
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Any subsets, in any order of the ring, of any length, all at once under one name.
    #[test]
    fn random_groups_reduce_apart(groups in partition(), length in 0usize..3000, sum in any::<bool>()) {
        let world = groups.iter().map(Vec::len).sum();
        let reduction = if sum { ReduceOp::Sum } else { ReduceOp::Max };
        let results = job(any_transport(), world, TIMEOUT, |mut endpoint| {
            let rank = endpoint.rank();
            let members = groups.iter().find(|members| members.contains(&rank)).unwrap();
            let mut group = endpoint.group("axis", members).unwrap();
            assert_eq!(group.members(), members);
            let mut own = values(rank, length);
            group.all_reduce(&mut own, reduction).unwrap();
            group.barrier().unwrap();
            for place in 0..length {
                assert_reduced(own[place], members, place, reduction);
            }
            digest(&own)
        });
        for members in &groups {
            for &rank in members {
                prop_assert_eq!(results[rank], results[members[0]]);
            }
        }
    }
}

#[cfg(feature = "mpi")]
#[test]
fn over_mpi() {
    common::mpi::again(6, "collectives::");
}
