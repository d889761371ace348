//! Runs schedules in random orders that their dependencies allow.

use std::collections::{BTreeSet, VecDeque};

use autodist_spec::{Algorithm, Collective};
use proptest::prelude::*;

use crate::algorithms::build_chunked;
use crate::{Schedule, candidates, peers, sent_elements, shard_range, suits};

const ALL: [Collective; 3] = [Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather];

/// All algorithms, including those that do not suit the group.
fn algorithms(size: usize) -> Vec<Algorithm> {
    let parts = (1..=size as u32)
        .flat_map(|part| [Algorithm::Hierarchical { inner: part }, Algorithm::Torus { columns: part }]);
    [Algorithm::Ring, Algorithm::DoubleBinaryTree, Algorithm::HalvingDoubling]
        .into_iter()
        .chain(parts)
        .collect()
}

fn fitting(size: usize) -> impl Iterator<Item = (Algorithm, Collective)> {
    let all =
        algorithms(size).into_iter().flat_map(|algorithm| ALL.map(|collective| (algorithm, collective)));
    all.filter(move |&(algorithm, collective)| suits(algorithm, collective, size).is_ok())
}

/// A small pseudo-random generator, for choices.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % bound
    }
}

/// Runs all members, one event at a time, picked at random from those that are ready.
fn interpret(schedule: &Schedule, buffers: &mut [Vec<f32>], seed: u64) {
    let size = buffers.len();
    let mut dice = Dice(seed);
    // By sender, then by receiver.
    let mut wires: Vec<Vec<VecDeque<Vec<f32>>>> = vec![vec![VecDeque::new(); size]; size];
    // Whether an earlier message to or from a member is still to come.
    let mut heads = vec![false; size];
    let mut sent: Vec<Vec<bool>> = schedule.sends.iter().map(|sends| vec![false; sends.len()]).collect();
    let mut received: Vec<Vec<bool>> =
        schedule.receives.iter().map(|receives| vec![false; receives.len()]).collect();
    loop {
        let mut possible = Vec::new();
        for member in 0..size {
            heads.fill(false);
            for (index, send) in schedule.sends[member].iter().enumerate() {
                let next = !sent[member][index] && !std::mem::replace(&mut heads[send.to], true);
                if next && send.after.iter().all(|&before| received[member][before]) {
                    possible.push((member, index, true));
                }
            }
            heads.fill(false);
            for (index, receive) in schedule.receives[member].iter().enumerate() {
                let next = !received[member][index] && !std::mem::replace(&mut heads[receive.from], true);
                let arrived = !wires[receive.from][member].is_empty();
                if next
                    && arrived
                    && receive.after.iter().all(|&before| received[member][before])
                    && receive.after_sends.iter().all(|&before| sent[member][before])
                {
                    possible.push((member, index, false));
                }
            }
        }
        if possible.is_empty() {
            break;
        }
        let (member, index, sends) = possible[dice.below(possible.len())];
        if sends {
            let send = &schedule.sends[member][index];
            let values = buffers[member][send.elements.clone()].to_vec();
            wires[member][send.to].push_back(values);
            sent[member][index] = true;
        } else {
            let receive = &schedule.receives[member][index];
            let values = wires[receive.from][member].pop_front().unwrap();
            let own = &mut buffers[member][receive.elements.clone()];
            assert_eq!(own.len(), values.len(), "a message arrives as another one");
            for (own, arrived) in own.iter_mut().zip(values) {
                *own = if receive.combine { *own + arrived } else { arrived };
            }
            received[member][index] = true;
        }
    }
    assert!(sent.iter().flatten().chain(received.iter().flatten()).all(|done| *done), "nobody can go on");
    assert!(wires.iter().flatten().all(VecDeque::is_empty), "a message that nobody receives");
}

/// Two operations that touch the same elements of a member, at least one of them writing, are ordered by
/// dependencies.
fn assert_ordered(schedule: &Schedule) {
    for (sends, receives) in schedule.sends.iter().zip(&schedule.receives) {
        // Sends first, then receives.
        let count = sends.len() + receives.len();
        let mut before = vec![vec![false; count]; count];
        for (index, send) in sends.iter().enumerate() {
            send.after.iter().for_each(|&receive| before[index][sends.len() + receive] = true);
            (0..index).filter(|&i| sends[i].to == send.to).for_each(|i| before[index][i] = true);
        }
        for (index, receive) in receives.iter().enumerate() {
            let at = sends.len() + index;
            receive.after.iter().for_each(|&other| before[at][sends.len() + other] = true);
            receive.after_sends.iter().for_each(|&send| before[at][send] = true);
            (0..index).filter(|&i| receives[i].from == receive.from).for_each(|i| {
                before[at][sends.len() + i] = true;
            });
        }
        for middle in 0..count {
            for later in 0..count {
                if before[later][middle] {
                    for first in 0..count {
                        before[later][first] |= before[middle][first];
                    }
                }
            }
        }
        let elements = |index: usize| match index.checked_sub(sends.len()) {
            None => &sends[index].elements,
            Some(receive) => &receives[receive].elements,
        };
        for one in sends.len()..count {
            assert!(!before[one][one]);
            for other in (0..count).filter(|&other| other != one) {
                let (a, b) = (elements(one), elements(other));
                let apart = a.end <= b.start || b.end <= a.start;
                assert!(apart || before[one][other] || before[other][one], "{one} and {other} race");
            }
        }
    }
}

fn begin(
    collective: Collective,
    length: usize,
    size: usize,
    value: impl Fn(usize, usize) -> f32,
) -> Vec<Vec<f32>> {
    let member = |member: usize| {
        let own = shard_range(length, size, member);
        let knows = |place: usize| collective != Collective::AllGather || own.contains(&place);
        (0..length).map(|place| if knows(place) { value(member, place) } else { f32::NAN }).collect()
    };
    (0..size).map(member).collect()
}

fn check(algorithm: Algorithm, collective: Collective, length: usize, size: usize, chunk: usize, seed: u64) {
    let schedule = build_chunked(algorithm, collective, length, size, chunk).unwrap();
    assert_ordered(&schedule);
    let integer = |member: usize, place: usize| ((member * 37 + place * 11) % 1000) as f32;
    let mut buffers = begin(collective, length, size, integer);
    interpret(&schedule, &mut buffers, seed);
    for member in 0..size {
        let own = shard_range(length, size, member);
        for place in 0..length {
            let expected = match collective {
                Collective::AllGather => {
                    let owner = (0..size).find(|&owner| shard_range(length, size, owner).contains(&place));
                    integer(owner.unwrap(), place)
                }
                Collective::ReduceScatter if !own.contains(&place) => continue,
                _ => (0..size).map(|member| integer(member, place)).sum(),
            };
            assert_eq!(buffers[member][place], expected, "element {place} of member {member}");
        }
        assert_eq!(
            schedule.sent(member),
            sent_elements(algorithm, collective, length, size, member),
            "elements that member {member} sends"
        );
    }
    // Fractions, whose sum depends on the order.
    let fraction = |member: usize, place: usize| 1.0 / (1 + member * 31 + place * 7) as f32;
    let bits = |buffers: &[Vec<f32>]| -> Vec<Vec<u32>> {
        buffers.iter().map(|buffer| buffer.iter().map(|value| value.to_bits()).collect()).collect()
    };
    let [mut once, mut again] = [(); 2].map(|()| begin(collective, length, size, fraction));
    interpret(&schedule, &mut once, seed);
    interpret(&schedule, &mut again, seed.wrapping_add(1));
    assert_eq!(bits(&once), bits(&again), "the result depends on who is first");
    if collective != Collective::ReduceScatter {
        assert!(bits(&once).iter().all(|buffer| *buffer == bits(&once)[0]), "members differ");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn any_order_gives_the_same(size in 1usize..=12, length in 0usize..=100, chunk in 1usize..40, seed in any::<u64>()) {
        for (algorithm, collective) in fitting(size) {
            check(algorithm, collective, length, size, chunk, seed);
        }
    }

    #[test]
    fn peers_are_who_gets_messages(size in 1usize..=40) {
        for algorithm in algorithms(size) {
            let mut met = vec![BTreeSet::new(); size];
            for collective in ALL {
                let Ok(schedule) = Schedule::build(algorithm, collective, 2 * size, size) else { continue };
                for member in 0..size {
                    met[member].extend(schedule.sends[member].iter().map(|send| send.to));
                    met[member].extend(schedule.receives[member].iter().map(|receive| receive.from));
                }
            }
            for member in 0..size {
                prop_assert_eq!(&peers(algorithm, size, member), &met[member], "{} {}", algorithm.name(), size);
            }
        }
    }

    #[test]
    fn bytes_are_those_of_the_formula(size in 1usize..=40, length in 0usize..=3000) {
        for (algorithm, collective) in fitting(size) {
            let schedule = Schedule::build(algorithm, collective, length, size).unwrap();
            for member in 0..size {
                let formula = sent_elements(algorithm, collective, length, size, member);
                prop_assert_eq!(schedule.sent(member), formula, "{}", algorithm.name());
            }
        }
    }
}

#[test]
fn every_small_group_works() {
    for size in 1..=12 {
        for (algorithm, collective) in fitting(size) {
            for length in [0, 1, size - 1, size, 5 * size + 3] {
                check(algorithm, collective, length, size, 3, 7);
            }
        }
    }
}

#[test]
fn rings_send_the_least() {
    for (size, length) in [(2, 8), (4, 16), (8, 64)] {
        for algorithm in [Algorithm::Ring, Algorithm::HalvingDoubling] {
            let sent = |collective| sent_elements(algorithm, collective, length, size, size - 1);
            assert_eq!(sent(Collective::AllReduce), 2 * length * (size - 1) / size);
            assert_eq!(sent(Collective::ReduceScatter), length * (size - 1) / size);
        }
    }
}

#[test]
fn what_does_not_fit_says_why() {
    let reason = |algorithm, collective, size| suits(algorithm, collective, size).unwrap_err().to_string();
    assert_eq!(
        reason(Algorithm::Hierarchical { inner: 3 }, Collective::AllReduce, 4),
        "hierarchical/3 needs a group that 3 divides, not 4"
    );
    assert_eq!(
        reason(Algorithm::Torus { columns: 0 }, Collective::AllReduce, 4),
        "torus/0 needs a number that is not 0"
    );
    assert_eq!(
        reason(Algorithm::DoubleBinaryTree, Collective::AllGather, 4),
        "double-binary-tree brings everything to a root, so it is an all-reduce only"
    );
    assert!(Schedule::build(Algorithm::Ring, Collective::AllReduce, 4, 0).is_err());
    assert!(peers(Algorithm::Torus { columns: 3 }, 4, 0).is_empty());
}

#[test]
fn what_neither_reduces_nor_gathers_has_no_schedule() {
    for collective in [Collective::AllToAll, Collective::Broadcast, Collective::SendRecv] {
        for algorithm in algorithms(4) {
            let reason = suits(algorithm, collective, 4).unwrap_err().to_string();
            assert_eq!(
                reason,
                format!("{} reduces and gathers, so it does no {}", algorithm.name(), collective.name())
            );
            assert!(Schedule::build(algorithm, collective, 16, 4).is_err());
            assert_eq!(sent_elements(algorithm, collective, 16, 4, 0), 0);
        }
    }
}

#[test]
fn candidates_follow_the_machines() {
    let names = |nodes: &[usize]| -> Vec<String> {
        candidates(nodes.len(), nodes).into_iter().map(Algorithm::name).collect()
    };
    assert_eq!(names(&[0, 1]), ["ring"]);
    let any = ["ring", "double-binary-tree", "halving-doubling"];
    assert_eq!(names(&[0, 1, 2]), any);
    assert_eq!(names(&[0; 4]), [&any[..], &["torus/2"]].concat());
    assert_eq!(names(&[0, 0, 1, 1]), [&any[..], &["hierarchical/2"]].concat());
    assert_eq!(names(&[0, 1, 0, 1]), [&any[..], &["torus/2"]].concat(), "members of a node are apart");
    assert_eq!(names(&[0, 0, 0, 1]), [&any[..], &["torus/2"]].concat(), "nodes differ");
    assert_eq!(
        names(&[3, 3, 3, 3, 3, 3, 0, 0, 0, 0, 0, 0]),
        [&any[..], &["hierarchical/6", "torus/3", "torus/4"]].concat()
    );
    for size in 0..=40 {
        for algorithm in candidates(size, &vec![0; size]) {
            assert!(suits(algorithm, Collective::AllReduce, size.max(1)).is_ok());
        }
    }
    // Without known nodes, there is no hierarchy.
    assert_eq!(candidates(4, &[]).len(), 4);
}

#[test]
fn trees_are_two_and_share_the_work() {
    use crate::algorithms::parent;
    for size in 2..=100 {
        for member in 0..size {
            let forwards =
                |tree| (0..size).filter(|&other| parent(tree, size, other) == Some(member)).count();
            assert!(forwards(0) <= 2 && forwards(1) <= 2);
            let sent = sent_elements(Algorithm::DoubleBinaryTree, Collective::AllReduce, 2, size, member);
            assert!(sent <= 4, "member {member} of {size} sends {sent} halves");
        }
        let roots = (0..2).map(|tree| (0..size).filter(|&m| parent(tree, size, m).is_none()).count());
        assert!(roots.eq([1, 1]));
    }
}

#[test]
fn chunks_follow_each_other_up_and_down() {
    let schedule = build_chunked(Algorithm::DoubleBinaryTree, Collective::AllReduce, 400, 8, 10).unwrap();
    let longest = schedule.sends.iter().flatten().map(|send| send.elements.len()).max();
    assert_eq!(longest, Some(10));
    // A link that is part of both trees carries 2 x 20 messages per direction; the depth of the trees is
    // added to that, not multiplied.
    assert!(steps(&schedule) <= 40 + 2 * 4, "{} steps", steps(&schedule));
}

/// The number of rounds of a schedule if every link delivers one message per round.
fn steps(schedule: &Schedule) -> usize {
    let size = schedule.sends.len();
    let mut sent: Vec<Vec<bool>> = schedule.sends.iter().map(|sends| vec![false; sends.len()]).collect();
    let mut received: Vec<Vec<bool>> =
        schedule.receives.iter().map(|receives| vec![false; receives.len()]).collect();
    for step in 0.. {
        let mut moving = Vec::new();
        for member in 0..size {
            let mut heads = BTreeSet::new();
            for (index, send) in schedule.sends[member].iter().enumerate() {
                let ready = send.after.iter().all(|&before| received[member][before]);
                if !sent[member][index] && heads.insert(send.to) && ready {
                    let mut from_here = schedule.receives[send.to].iter().enumerate();
                    let receive = from_here
                        .find(|(i, receive)| receive.from == member && !received[send.to][*i])
                        .unwrap()
                        .0;
                    moving.push((member, index, send.to, receive));
                }
            }
        }
        if moving.is_empty() {
            return step;
        }
        for (member, index, to, receive) in moving {
            sent[member][index] = true;
            received[to][receive] = true;
        }
    }
    unreachable!()
}
