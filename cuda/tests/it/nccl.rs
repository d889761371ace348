//! Collectives and send/recv between GPUs: their results, and the errors of ranks after a failure.

use crate::common;

use autodist_compute::{Backend, Region, RegionMut};
use autodist_cuda::{Cuda, CudaError, NcclGroup, Reduce, Traffic};
use autodist_software_gpu::SoftwareGpus;
use autodist_spec::Precision::{self, Bf16, Fp32};
use common::{host, libraries, on, open};
use std::sync::Barrier;

const RANKS: usize = 3;

fn machine() -> SoftwareGpus {
    SoftwareGpus::new().devices(RANKS)
}

/// Runs `work` on `size` ranks, each a thread with a GPU of its own.
fn ranks(size: usize, precision: Precision, work: impl Fn(usize, &Cuda, NcclGroup) + Sync) {
    let libraries = libraries();
    let id = NcclGroup::unique_id(&libraries).unwrap();
    std::thread::scope(|scope| {
        for rank in 0..size {
            let (libraries, work) = (libraries.clone(), &work);
            scope.spawn(move || {
                let cuda = Cuda::open(libraries, rank, precision).unwrap();
                let group = NcclGroup::join(&cuda, &id, rank, size).unwrap();
                work(rank, &cuda, group);
            });
        }
    });
}

/// A number that identifies rank and position, small enough for bf16 even after a sum over ranks.
fn number(rank: usize, place: usize) -> f32 {
    (place * 7 % 31 * (rank + 1)) as f32 - 20.0
}

fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|place| number(rank, place)).collect()
}

fn sum_over_ranks(place: usize) -> f32 {
    (0..RANKS).map(|rank| number(rank, place)).sum()
}

fn in_both_precisions(work: impl Fn(usize, &Cuda, NcclGroup) + Sync) {
    ranks(RANKS, Fp32, &work);
    ranks(RANKS, Bf16, &work);
}

#[test]
fn all_ranks_get_the_sum_of_a_range_and_nothing_else_changes() {
    on(machine, || {
        for (len, range) in [(1, 0..1), (41, 3..40), (10_007, 1..10_007), (5, 2..2)] {
            in_both_precisions(|rank, cuda, mut group| {
                let mut buffer = cuda.upload(&numbers(rank, len));
                group.all_reduce(cuda, &mut buffer, range.clone(), Reduce::Sum).unwrap();
                let expected = |place| match range.contains(&place) {
                    true => sum_over_ranks(place),
                    false => number(rank, place),
                };
                assert_eq!(host(cuda, &buffer), (0..len).map(expected).collect::<Vec<_>>());
                cuda.synchronise().unwrap();
            });
        }
    });
}

#[test]
fn all_ranks_get_the_largest_number() {
    on(machine, || {
        in_both_precisions(|rank, cuda, mut group| {
            let mut buffer = cuda.upload(&numbers(rank, 41));
            group.all_reduce(cuda, &mut buffer, 0..41, Reduce::Max).unwrap();
            let largest = |place| (0..RANKS).map(|rank| number(rank, place)).fold(f32::MIN, f32::max);
            assert_eq!(host(cuda, &buffer), (0..41).map(largest).collect::<Vec<_>>());
        });
    });
}

#[test]
fn each_rank_gets_its_part_of_a_sum() {
    on(machine, || {
        in_both_precisions(|rank, cuda, mut group| {
            let (len, range, part) = (120, 5..116, 37);
            let mut buffer = cuda.upload(&numbers(rank, len));
            group.reduce_scatter(cuda, &mut buffer, range.clone()).unwrap();
            let (found, mine) =
                (host(cuda, &buffer), range.start + part * rank..range.start + part * (rank + 1));
            assert_eq!(found[mine.clone()], mine.map(sum_over_ranks).collect::<Vec<_>>());
            assert_eq!(found[..range.start], numbers(rank, len)[..range.start]);
            assert_eq!(found[range.end..], numbers(rank, len)[range.end..]);
        });
    });
}

#[test]
fn all_ranks_get_the_parts_of_all() {
    on(machine, || {
        in_both_precisions(|rank, cuda, mut group| {
            let (len, range, part) = (120, 5..116, 37);
            let mut buffer = cuda.upload(&numbers(rank, len));
            group.all_gather(cuda, &mut buffer, range.clone()).unwrap();
            let expected = |place| match range.contains(&place) {
                true => number((place - range.start) / part, place),
                false => number(rank, place),
            };
            assert_eq!(host(cuda, &buffer), (0..len).map(expected).collect::<Vec<_>>());
        });
    });
}

#[test]
fn messages_arrive_in_the_range_that_waits_for_them() {
    on(machine, || {
        in_both_precisions(|rank, cuda, mut group| {
            // Around a ring: the first rank sends before it receives.
            let (to, from) = ((rank + 1) % RANKS, (rank + RANKS - 1) % RANKS);
            let sent = cuda.upload(&numbers(rank, 103));
            let mut received = cuda.zeros(105);
            if rank == 0 {
                group.send(cuda, &sent, 2..103, to).unwrap();
                group.receive(cuda, &mut received, 1..102, from).unwrap();
            } else {
                group.receive(cuda, &mut received, 1..102, from).unwrap();
                group.send(cuda, &sent, 2..103, to).unwrap();
            }
            let mut expected = vec![0.0; 105];
            expected[1..102].copy_from_slice(&numbers(from, 103)[2..]);
            assert_eq!(host(cuda, &received), expected);
            assert_eq!(host(cuda, &sent), numbers(rank, 103));
        });
    });
}

#[test]
fn statistics_are_reduced_in_full_precision_on_a_gpu_that_works_in_bf16() {
    on(machine, || {
        ranks(RANKS, Bf16, |rank, cuda, mut group| {
            let mut buffer = cuda.upload_full(&[1000.0 + rank as f32 / 256.0]);
            group.all_reduce(cuda, &mut buffer, 0..1, Reduce::Sum).unwrap();
            assert_eq!(host(cuda, &buffer), [3000.0 + 3.0 / 256.0]);
        });
    });
}

/// Doubles numbers on one queue, all-reduces them on another, and doubles them again on the first.
fn double_sum_double(rank: usize, cuda: &Cuda, group: &mut NcclGroup) -> Vec<f32> {
    let (len, talk) = (1037, cuda.queue().unwrap());
    let mut buffer = cuda.upload(&numbers(rank, len));
    cuda.scale(len, 2.0, RegionMut::start(&mut buffer));
    talk.wait_for(&cuda.record());
    group.all_reduce(&talk, &mut buffer, 0..len, Reduce::Sum).unwrap();
    cuda.wait_for(&talk.record());
    cuda.scale(len, 2.0, RegionMut::start(&mut buffer));
    let mut doubled = vec![0.0; len];
    cuda.download(Region::start(&buffer), &mut doubled);
    doubled
}

#[test]
fn a_collective_on_another_queue_is_ordered_by_events() {
    on(machine, || {
        ranks(RANKS, Fp32, |rank, cuda, mut group| {
            let expected: Vec<f32> = (0..1037).map(|place| 4.0 * sum_over_ranks(place)).collect();
            let found = double_sum_double(rank, cuda, &mut group);
            cuda.synchronise().unwrap();
            assert_eq!(found, expected);
        });
    });
}

#[test]
fn without_its_events_a_collective_comes_at_the_wrong_time() {
    on(
        || machine().set("SOFTWARE_GPU_IGNORE_WAIT", "all"),
        || {
            ranks(RANKS, Fp32, |rank, cuda, mut group| {
                let expected: Vec<f32> = (0..1037).map(|place| 4.0 * sum_over_ranks(place)).collect();
                assert_ne!(double_sum_double(rank, cuda, &mut group), expected);
            });
        },
    );
}

#[test]
fn traffic_is_counted_as_a_ring_would_move_it() {
    on(machine, || {
        ranks(RANKS, Fp32, |rank, cuda, mut group| {
            let mut buffer = cuda.zeros(30);
            assert_eq!(group.traffic(), Traffic::default());
            group.all_reduce(cuda, &mut buffer, 0..30, Reduce::Sum).unwrap();
            assert_eq!(group.traffic(), Traffic { sent: 160, received: 160 });
            group.reduce_scatter(cuda, &mut buffer, 0..30).unwrap();
            assert_eq!(group.traffic(), Traffic { sent: 240, received: 240 });
            group.all_gather(cuda, &mut buffer, 0..30).unwrap();
            assert_eq!(group.traffic(), Traffic { sent: 320, received: 320 });
            match rank {
                0 => group.send(cuda, &buffer, 0..5, 1).unwrap(),
                1 => group.receive(cuda, &mut buffer, 0..5, 0).unwrap(),
                _ => (),
            }
            let (sent, received) = [(20, 0), (0, 20), (0, 0)][rank];
            assert_eq!(group.traffic(), Traffic { sent: 320 + sent, received: 320 + received });
            cuda.synchronise().unwrap();
        });
    });
}

#[test]
fn a_group_that_cannot_be_joined_is_told() {
    const SYSTEM_ERROR: i32 = 2;
    on(
        || SoftwareGpus::new().fault("ncclCommInitRank", 1, SYSTEM_ERROR),
        || {
            let cuda = open(Fp32);
            let id = NcclGroup::unique_id(cuda.libraries()).unwrap();
            let error = NcclGroup::join(&cuda, &id, 0, 1).err().unwrap();
            assert!(matches!(error, CudaError::Library { operation: "ncclCommInitRank", .. }));
            assert!(error.to_string().contains("unhandled system error"), "{error}");
        },
    );
}

#[test]
fn two_ranks_on_one_gpu_are_told() {
    on(SoftwareGpus::new, || {
        let libraries = libraries();
        let id = NcclGroup::unique_id(&libraries).unwrap();
        std::thread::scope(|scope| {
            for rank in 0..2 {
                let libraries = libraries.clone();
                scope.spawn(move || {
                    let cuda = Cuda::open(libraries, 0, Fp32).unwrap();
                    let error = NcclGroup::join(&cuda, &id, rank, 2).err().unwrap().to_string();
                    assert!(error.contains("invalid usage") && error.contains("duplicate GPU"), "{error}");
                });
            }
        });
    });
}

#[test]
fn a_collective_that_is_refused_is_told() {
    const INVALID_ARGUMENT: i32 = 4;
    on(
        || SoftwareGpus::new().fault("ncclAllReduce", 1, INVALID_ARGUMENT),
        || {
            ranks(1, Fp32, |_, cuda, mut group| {
                let mut buffer = cuda.zeros(4);
                let error = group.all_reduce(cuda, &mut buffer, 0..4, Reduce::Sum).unwrap_err().to_string();
                assert!(error.contains("ncclAllReduce failed: invalid argument"), "{error}");
            });
        },
    );
}

#[test]
fn ranks_that_call_different_things_hear_of_it_at_the_next_call_at_the_latest() {
    on(machine, || {
        ranks(RANKS, Fp32, |rank, cuda, mut group| {
            let mut buffer = cuda.zeros(40);
            let first = group.all_reduce(cuda, &mut buffer, 0..30 + rank, Reduce::Sum);
            cuda.synchronise().unwrap();
            // Other ranks may have detected the failure so fast that the first call already returns the
            // error.
            let next = first.and_then(|()| group.all_reduce(cuda, &mut buffer, 0..4, Reduce::Sum));
            let error = next.unwrap_err().to_string();
            assert!(error.contains("ncclAllReduce failed: "), "{error}");
        });
    });
}

#[test]
fn a_rank_that_is_lost_is_told_at_the_next_call_and_nobody_waits_for_it() {
    on(
        || machine().set("SOFTWARE_GPU_NCCL_STALL", "1"),
        || {
            let lost = Barrier::new(RANKS);
            ranks(RANKS, Fp32, |rank, cuda, mut group| {
                let mut buffer = cuda.zeros(4);
                if rank == 2 {
                    // The queue of another GPU is rejected; then the group is aborted.
                    let other = Cuda::open(cuda.libraries().clone(), 0, Fp32).unwrap();
                    group.all_reduce(&other, &mut buffer, 0..4, Reduce::Sum).unwrap_err();
                    drop(group);
                    lost.wait();
                    return;
                }
                lost.wait();
                let error = group.all_reduce(cuda, &mut buffer, 0..4, Reduce::Sum).unwrap_err().to_string();
                assert!(error.contains("remote process exited") && error.contains("is gone"), "{error}");
                drop(group);
                cuda.synchronise().unwrap();
            });
        },
    );
}

#[test]
fn an_operand_without_memory_is_told() {
    on(
        || SoftwareGpus::new().memory(1 << 20),
        || {
            ranks(1, Fp32, |_, cuda, mut group| {
                let mut lost = cuda.zeros(1 << 20);
                let error = group.all_reduce(cuda, &mut lost, 0..4, Reduce::Sum).unwrap_err().to_string();
                assert_eq!(error, "ncclAllReduce failed: an operand has no memory");
                assert!(cuda.synchronise().unwrap_err().to_string().contains("out of GPU memory"));
            });
        },
    );
}

#[test]
fn a_group_of_one_keeps_its_numbers() {
    on(SoftwareGpus::new, || {
        ranks(1, Bf16, |_, cuda, mut group| {
            let mut buffer = cuda.upload(&[1.0, 2.0, 3.0]);
            group.all_reduce(cuda, &mut buffer, 0..3, Reduce::Sum).unwrap();
            group.reduce_scatter(cuda, &mut buffer, 0..3).unwrap();
            group.all_gather(cuda, &mut buffer, 0..3).unwrap();
            assert_eq!(host(cuda, &buffer), [1.0, 2.0, 3.0]);
            assert_eq!(group.traffic(), Traffic::default());
        });
    });
}
