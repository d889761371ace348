//! Finds doubtful cells of a profile: measurements that contradict the device's fastest GEMM, or the time of
//! the same kernel in other cells.
//!
//! Two cells that run the same kernel bound each other: under another recompute policy the time is the same;
//! with a larger micro-batch or a larger shard it is at least as long, and at most longer in proportion to
//! the work. If two cells contradict each other, this shows only that one of them is wrong. So cells vote: a
//! cell is doubtful if more than half of its peers contradict it, and the cell with the largest majority is
//! removed first and loses its vote.

use autodist_spec::profile::{OptimizerCost, Sample};
use autodist_spec::{
    Collective, Doubt, DoubtKind, DoubtedCell, FlopsPerSecond, Pass, Profile, Recompute, Seconds, Segment,
    SegmentCost, Shard,
};
use std::collections::{BTreeMap, BTreeSet};

/// A cell may exceed the fastest GEMM by this factor: GEMMs are timed once, segments are normalised to the
/// machine's usual speed, and a core's clock varies by less than this factor between the two.
const RATE_MARGIN: f64 = 1.5;
/// If a GEMM of the model's shapes is dominated by its launch, cells with more work have more FLOP/s. So
/// FLOP/s that at least one in ten cells of the other probes exceeds are plausible.
const USUAL_RATE: f64 = 0.9;
/// Number of cells of other probes that this needs.
const USUAL_CELLS: usize = 10;
/// The same shape under another policy differs by up to this factor, beyond both intervals: caches are warm
/// or cold.
const SAME_SHAPE: f64 = 1.5;
/// Utilisation differs between shapes.
const OTHER_SHAPE: f64 = 2.0;
/// Segments without a GEMM are memory-bound, and vary by another factor of this size with the caches.
const MEMORY_BOUND: f64 = 2.0;
/// Links vary more: few repetitions, and algorithms that change with the size.
const OTHER_SIZE: f64 = 3.0;
const OTHER_COLLECTIVE: f64 = 2.0;
const UPDATE: f64 = 1.5;
/// Sizes, and micro-batches, are compared up to these ratios: beyond, the bounds are too loose.
const NEAR_SIZE: f64 = 16.0;
const NEAR_BATCH: f64 = 4.0;
/// Difference in seconds that launches, clocks and a cold cache can make to any cell.
const SLACK_S: f64 = 5e-5;

/// The doubts about cells of the profile; empty for a consistent profile.
pub fn doubts(profile: &Profile) -> Vec<Doubt> {
    let mut doubts = segments(profile);
    doubts.extend(collectives(profile));
    doubts.extend(messages(profile));
    doubts.extend(updates(&profile.optimizer));
    doubts
}

/// Replaces the profile's doubts about its cells; doubts about how it was measured, which the cells do not
/// show, stay.
pub fn judge(profile: &mut Profile) {
    let kept = std::mem::take(&mut profile.doubts);
    let mut doubts = doubts(profile);
    let known: BTreeSet<DoubtedCell> = doubts.iter().map(|doubt| doubt.cell).collect();
    let of_measuring = |doubt: &Doubt| doubt.kind == DoubtKind::Correction && !known.contains(&doubt.cell);
    doubts.extend(kept.into_iter().filter(of_measuring));
    for doubt in &mut doubts {
        doubt.used = false;
    }
    keep_something(profile, &mut doubts);
    profile.doubts = doubts;
}

/// Marks doubtful cells as used if there is no alternative: all segments, if no probe is without doubt; all
/// points of a curve.
fn keep_something(profile: &Profile, doubts: &mut [Doubt]) {
    let cells: BTreeSet<DoubtedCell> = doubts.iter().map(|doubt| doubt.cell).collect();
    let place = |cell: &SegmentCost| (cell.tensor, cell.sequence_parallel, cell.micro_batch);
    let whole = |probe: &SegmentCost| {
        let part = |cell: &&SegmentCost| {
            place(cell) == place(probe)
                && (cell.recompute == probe.recompute || !crate::assemble::in_block(cell.segment))
        };
        !profile.segments.iter().filter(part).any(|cell| cells.contains(&DoubtedCell::from(cell)))
    };
    let probes = |cell: &&SegmentCost| (cell.segment, cell.pass) == (Segment::Attention, Pass::Backward);
    let any_segment = profile.segments.iter().filter(probes).any(whole);
    let any_left = |doubted: &DoubtedCell| match *doubted {
        DoubtedCell::Segment { .. } => any_segment,
        DoubtedCell::Collective { kind, group, stride, .. } => {
            let mut curve = profile
                .collectives
                .iter()
                .filter(|c| (c.kind, c.group, c.stride) == (kind, group, stride))
                .map(|c| DoubtedCell::Collective { kind, group, stride, bytes: c.bytes });
            curve.any(|cell| !cells.contains(&cell))
        }
        DoubtedCell::Message { stride, .. } => {
            let mut curve = profile
                .messages
                .iter()
                .filter(|m| m.stride == stride)
                .map(|m| DoubtedCell::Message { stride, bytes: m.bytes });
            curve.any(|cell| !cells.contains(&cell))
        }
        DoubtedCell::Update { .. } => {
            let mut curve = profile.optimizer.iter().map(|o| DoubtedCell::Update { elements: o.elements });
            curve.any(|cell| !cells.contains(&cell))
        }
    };
    let used: Vec<bool> = doubts.iter().map(|doubt| !any_left(&doubt.cell)).collect();
    for (doubt, used) in doubts.iter_mut().zip(used) {
        doubt.used = used;
    }
}

/// Whether at least two peers of a cell agree with it. Such a cell is accepted, however it was measured.
pub(crate) fn vouched(profile: &Profile, doubts: &[Doubt]) -> BTreeSet<DoubtedCell> {
    let ballot = ballot(profile);
    let doubted: BTreeSet<DoubtedCell> = doubts.iter().map(|doubt| doubt.cell).collect();
    let is_doubted = |index: usize| doubted.contains(&ballot.voters[index].cell);
    let agrees = |index: &usize| {
        let peers = ballot.peers[*index].iter().filter(|peer| !is_doubted(peer.with));
        let (all, against) = peers.fold((0, 0), |(all, against), peer| {
            (all + 1, against + usize::from(ballot.contradicts(*index, peer)))
        });
        all >= 2 && 2 * against < all && !is_doubted(*index)
    };
    (0..ballot.voters.len()).filter(agrees).map(|index| ballot.voters[index].cell).collect()
}

/// A measurement that others can be compared with.
struct Voter {
    cell: DoubtedCell,
    time: Sample,
}

/// A measurement of the same kernel, and the expected relation.
struct Peer {
    with: usize,
    kind: DoubtKind,
    /// Time of the cell / time of the peer: minimum and maximum.
    least: f64,
    most: f64,
    /// Factor by which either may be exceeded.
    margin: f64,
}

/// Maximum number of votes on a cell; profiles of autodist have fewer.
const MOST_PEERS: usize = 64;

/// Which cells are compared.
struct Ballot {
    voters: Vec<Voter>,
    peers: Vec<Vec<Peer>>,
}

impl Ballot {
    /// The pairs of `voters` that are peers according to `relate`.
    fn of(voters: Vec<Voter>, relate: impl Fn(usize, usize) -> Option<Peer>) -> Self {
        let count = voters.len();
        let of_one =
            |a: usize| (0..count).filter(|b| *b != a).filter_map(|b| relate(a, b)).take(MOST_PEERS).collect();
        Self { peers: (0..count).map(of_one).collect(), voters }
    }

    /// Whether no two times within both intervals have the expected relation.
    fn contradicts(&self, index: usize, peer: &Peer) -> bool {
        let (mine, theirs) = (&self.voters[index].time, &self.voters[peer.with].time);
        let too_fast = mine.high_s.0 * peer.margin < peer.least * theirs.low_s.0
            && peer.least * theirs.low_s.0 - mine.high_s.0 > SLACK_S;
        let too_slow = mine.low_s.0 > peer.margin * peer.most * theirs.high_s.0
            && mine.low_s.0 - peer.most * theirs.high_s.0 > SLACK_S;
        too_fast || too_slow
    }

    /// The cells that lose the vote; `convicted` cells do not vote.
    fn hold(&self, convicted: BTreeSet<usize>) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        let mut out = convicted;
        let against: Vec<Vec<bool>> = (0..self.voters.len())
            .map(|index| self.peers[index].iter().map(|peer| self.contradicts(index, peer)).collect())
            .collect();
        loop {
            let mut worst: Option<(f64, usize)> = None;
            let mut tied: Vec<(usize, DoubtKind)> = Vec::new();
            for index in (0..self.voters.len()).filter(|index| !out.contains(index)) {
                let Some((share, kind, contradictions)) = self.tally(index, &against[index], &out) else {
                    continue;
                };
                let score = (share, contradictions);
                match worst {
                    Some(worst) if score < worst => {}
                    Some(worst) if score == worst => tied.push((index, kind)),
                    _ => {
                        worst = Some(score);
                        tied = vec![(index, kind)];
                    }
                }
            }
            if tied.is_empty() {
                return doubts;
            }
            doubts.extend(tied.iter().map(|(index, kind)| self.doubt(*index, *kind, &out)));
            out.extend(tied.iter().map(|(index, _)| *index));
        }
    }

    /// The kind of peers that contradict the cell by the largest majority: their fraction, and the number of
    /// contradictions of all kinds.
    fn tally(
        &self,
        index: usize,
        against: &[bool],
        out: &BTreeSet<usize>,
    ) -> Option<(f64, DoubtKind, usize)> {
        let mut kinds: BTreeMap<DoubtKind, (usize, usize)> = BTreeMap::new();
        for (peer, against) in self.peers[index].iter().zip(against).filter(|(p, _)| !out.contains(&p.with)) {
            let (all, contradicting) = kinds.entry(peer.kind).or_default();
            *all += 1;
            *contradicting += usize::from(*against);
        }
        let contradictions = kinds.values().map(|(_, contradicting)| contradicting).sum();
        let share = |(kind, (all, contradicting)): (&DoubtKind, &(usize, usize))| {
            (2 * contradicting > *all).then(|| (*contradicting as f64 / *all as f64, *kind))
        };
        let (share, kind) =
            kinds.iter().filter_map(share).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(&a.1)))?;
        Some((share, kind, contradictions))
    }

    fn doubt(&self, index: usize, kind: DoubtKind, out: &BTreeSet<usize>) -> Doubt {
        let Voter { cell, time } = &self.voters[index];
        let peers = self.peers[index].iter().filter(|peer| peer.kind == kind && !out.contains(&peer.with));
        let peers: Vec<&Peer> = peers.filter(|peer| self.contradicts(index, peer)).collect();
        let times = |bound: fn(&Peer) -> f64| {
            let mut times: Vec<f64> =
                peers.iter().map(|peer| bound(peer) * self.voters[peer.with].time.median_s.0).collect();
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        };
        let (least, most) = (times(|peer| peer.least), times(|peer| peer.most));
        let (limit, word) = if time.median_s.0 < least { (least, "at least") } else { (most, "at most") };
        let elsewhere = match kind {
            DoubtKind::Policy => "the same kernel under other recompute policies takes",
            DoubtKind::MicroBatch => "by the same kernel at other micro-batches it takes",
            DoubtKind::Sharding => {
                "by the same kernel at other tensor degrees or sequence parallelism it takes"
            }
            DoubtKind::Collective => "by other collectives of this size it takes",
            DoubtKind::Size | DoubtKind::Rate | DoubtKind::Correction => "by other sizes it takes",
        };
        let word = if kind == DoubtKind::Policy { String::new() } else { format!("{word} ") };
        let reason = format!("{}, but {elsewhere} {word}{}", time.median_s, Seconds(limit));
        Doubt { cell: *cell, kind, figure: time.median_s.0, limit, reason, used: false }
    }
}

/// Whether the segment is dominated by GEMMs.
fn has_gemm(segment: Segment) -> bool {
    matches!(segment, Segment::Attention | Segment::Mlp | Segment::Logits | Segment::Loss)
}

fn ballot(profile: &Profile) -> Ballot {
    // Emulation slows down an emulated device according to FLOPs only.
    let counts = |cell: &&SegmentCost| {
        cell.time.count > 0 && (!profile.environment.emulated || has_gemm(cell.segment))
    };
    let cells: Vec<&SegmentCost> = profile.segments.iter().filter(counts).collect();
    let voters = cells.iter().map(|cell| Voter { cell: DoubtedCell::from(*cell), time: cell.time }).collect();
    Ballot::of(voters, |a, b| relation(cells[a], cells[b]).map(|peer| Peer { with: b, ..peer }))
}

/// The expected relation of the times of two cells of one kernel; `None` if kernels differ, or shapes in more
/// than one dimension.
fn relation(a: &SegmentCost, b: &SegmentCost) -> Option<Peer> {
    let backward = |cell: &SegmentCost| cell.pass == Pass::Backward;
    if a.segment != b.segment || backward(a) != backward(b) {
        return None;
    }
    let gemm = has_gemm(a.segment);
    let memory_bound = if gemm { 1.0 } else { MEMORY_BOUND };
    let sharding = |cell: &SegmentCost| (cell.tensor, cell.sequence_parallel);
    let same_sharding = sharding(a) == sharding(b);
    let same_policy = (a.pass, a.recompute) == (b.pass, b.recompute);
    let same_batch = a.micro_batch == b.micro_batch;
    match (same_sharding, same_batch, same_policy) {
        (true, true, false) => {
            // The backward pass of selectively recomputed attention repeats its core.
            let again = |cell: &SegmentCost| cell.recompute == Recompute::Selective;
            let differ = a.segment == Segment::Attention && backward(a) && again(a) != again(b);
            // A probe has one vote: its forward pass votes for its recomputation, too.
            let votes = a.recompute != b.recompute && b.pass != Pass::Recompute;
            let margin = SAME_SHAPE * memory_bound;
            (votes && !differ).then_some(Peer {
                with: 0,
                kind: DoubtKind::Policy,
                least: 1.0,
                most: 1.0,
                margin,
            })
        }
        (true, false, true) => {
            let (mine, theirs) = (f64::from(a.micro_batch), f64::from(b.micro_batch));
            let (least, most) = by_size(mine, theirs);
            let margin = OTHER_SHAPE * memory_bound;
            let peer = Peer { with: 0, kind: DoubtKind::MicroBatch, least, most, margin };
            near(mine, theirs, NEAR_BATCH).then_some(peer)
        }
        (false, true, true) => {
            let (mine, theirs) = (f64::from(a.tensor), f64::from(b.tensor));
            let (least, most) = match gemm {
                true => ((theirs / mine).min(1.0), (theirs / mine).max(1.0)),
                // Rows are sharded or not, depending on sequence parallelism.
                false => (1.0 / mine, theirs),
            };
            let margin = OTHER_SHAPE * memory_bound;
            Some(Peer { with: 0, kind: DoubtKind::Sharding, least, most, margin })
        }
        _ => None,
    }
}

fn segments(profile: &Profile) -> Vec<Doubt> {
    let mut doubts = rates(profile);
    let ballot = ballot(profile);
    let impossible: BTreeSet<DoubtedCell> = doubts.iter().map(|doubt| doubt.cell).collect();
    let convicted =
        (0..ballot.voters.len()).filter(|i| impossible.contains(&ballot.voters[*i].cell)).collect();
    doubts.extend(ballot.hold(convicted));
    doubts
}

/// Minimum FLOPs of a cell on one rank; 0 without a GEMM.
fn least_flops(profile: &Profile, cell: &SegmentCost) -> f64 {
    let tokens = u64::from(profile.seq_len) * u64::from(cell.micro_batch);
    let (block, whole) = (profile.model.block(1), Shard::whole(tokens, profile.seq_len.into()));
    let shard = Shard { tensor: cell.tensor, ..whole };
    let forward = |segment| profile.model.kernels(&block, segment, &shard).least_flops();
    match (cell.segment, cell.pass) {
        // The head's backward is one segment.
        (Segment::Loss, Pass::Backward) => 2.0 * forward(Segment::Logits),
        (segment, Pass::Backward) => 2.0 * forward(segment),
        (segment, _) => forward(segment),
    }
}

/// Cells with more FLOP/s than the device can reach.
fn rates(profile: &Profile) -> Vec<Doubt> {
    if profile.environment.emulated {
        return Vec::new();
    }
    let gemms = profile.hardware.products.iter().filter(|product| product.time.count > 0).map(|product| {
        let fastest = product.time.low_s.0.max(f64::MIN_POSITIVE);
        2.0 * product.m as f64 * product.n as f64 * product.k as f64 / fastest
    });
    let fastest = gemms.chain(profile.fastest_gemm().map(|rate| rate.0)).fold(0.0, f64::max);
    if fastest <= 0.0 {
        return Vec::new();
    }
    let probe = |cell: &SegmentCost| (cell.tensor, cell.sequence_parallel, cell.micro_batch, cell.recompute);
    let rated: Vec<(&SegmentCost, f64)> = profile
        .segments
        .iter()
        .map(|cell| (cell, least_flops(profile, cell) / cell.time.high_s.0.max(f64::MIN_POSITIVE)))
        .filter(|(cell, rate)| *rate > 0.0 && cell.time.count > 0)
        .collect();
    let doubt = |(cell, rate): &(&SegmentCost, f64)| {
        if *rate <= RATE_MARGIN * fastest {
            return None;
        }
        let mut others: Vec<f64> =
            rated.iter().filter(|(other, _)| probe(other) != probe(cell)).map(|(_, rate)| *rate).collect();
        others.sort_by(f64::total_cmp);
        let usual = match others.len() {
            USUAL_CELLS.. => others[((others.len() - 1) as f64 * USUAL_RATE) as usize],
            _ => 0.0,
        };
        let limit = RATE_MARGIN * fastest.max(usual);
        (*rate > limit).then(|| {
            let whose = if usual > fastest {
                "nine of ten segments of other probes do at most"
            } else {
                "the fastest GEMM measured here does"
            };
            let reason = format!(
                "{} would be {} even at the top of its interval, but {whose} {}, and {RATE_MARGIN} times that is the limit",
                cell.time.median_s,
                FlopsPerSecond(*rate),
                FlopsPerSecond(limit / RATE_MARGIN)
            );
            let (kind, cell) = (DoubtKind::Rate, DoubtedCell::from(*cell));
            Doubt { cell, kind, figure: *rate, limit, reason, used: false }
        })
    };
    rated.iter().filter_map(doubt).collect()
}

/// Bounds of the time of more work relative to less: at least equal, at most proportional.
fn by_size(a: f64, b: f64) -> (f64, f64) {
    ((a / b).min(1.0), (a / b).max(1.0))
}

fn near(a: f64, b: f64, ratio: f64) -> bool {
    a <= b * ratio && b <= a * ratio
}

fn collectives(profile: &Profile) -> Vec<Doubt> {
    let cells = &profile.collectives;
    let voters = cells
        .iter()
        .map(|c| {
            let (kind, group, stride, bytes) = (c.kind, c.group, c.stride, c.bytes);
            Voter { cell: DoubtedCell::Collective { kind, group, stride, bytes }, time: c.time }
        })
        .collect();
    // An all-reduce is a reduce-scatter and an all-gather.
    let rounds = |kind: Collective| if kind == Collective::AllReduce { (1.0, 2.0) } else { (1.0, 1.0) };
    let ballot = Ballot::of(voters, |a, b| {
        let (mine, theirs) = (&cells[a], &cells[b]);
        let (x, y) = (mine.bytes.as_f64(), theirs.bytes.as_f64());
        if (mine.group, mine.stride) != (theirs.group, theirs.stride) {
            return None;
        }
        let (kind, (least, most), margin) = match (mine.kind == theirs.kind, mine.bytes == theirs.bytes) {
            (true, false) if near(x, y, NEAR_SIZE) => (DoubtKind::Size, by_size(x, y), OTHER_SIZE),
            (false, true) => {
                let (mine, theirs) = (rounds(mine.kind), rounds(theirs.kind));
                (DoubtKind::Collective, (mine.0 / theirs.1, mine.1 / theirs.0), OTHER_COLLECTIVE)
            }
            _ => return None,
        };
        Some(Peer { with: b, kind, least, most, margin })
    });
    ballot.hold(BTreeSet::new())
}

fn messages(profile: &Profile) -> Vec<Doubt> {
    let cells = &profile.messages;
    let voter = |m: &autodist_spec::profile::MessageCost| Voter {
        cell: DoubtedCell::Message { stride: m.stride, bytes: m.bytes },
        time: m.time,
    };
    let ballot = Ballot::of(cells.iter().map(voter).collect(), |a, b| {
        let (mine, theirs) = (&cells[a], &cells[b]);
        let (x, y) = (mine.bytes.as_f64(), theirs.bytes.as_f64());
        let (least, most) = by_size(x, y);
        let comparable = mine.stride == theirs.stride && near(x, y, NEAR_SIZE) || mine.bytes == theirs.bytes;
        comparable.then_some(Peer { with: b, kind: DoubtKind::Size, least, most, margin: OTHER_SIZE })
    });
    ballot.hold(BTreeSet::new())
}

/// An update of more elements takes at least as long. One of fewer may be much faster, because they fit into
/// a cache.
fn updates(costs: &[OptimizerCost]) -> Vec<Doubt> {
    let voter =
        |o: &OptimizerCost| Voter { cell: DoubtedCell::Update { elements: o.elements }, time: o.update };
    let ballot = Ballot::of(costs.iter().map(voter).collect(), |a, b| {
        let (x, y) = (costs[a].elements, costs[b].elements);
        let (least, most) = if x > y { (1.0, f64::INFINITY) } else { (0.0, 1.0) };
        Some(Peer { with: b, kind: DoubtKind::Size, least, most, margin: UPDATE })
    });
    ballot.hold(BTreeSet::new())
}
