//! The profile's cells, indexed: the cost of segments, collectives, send/recv and optimizer updates.

use crate::curve::{Curve, Price, linear_weight};
use crate::prices::{CollectiveQuery, MessageQuery, Prices, SegmentQuery};
use autodist_spec::profile::{CollectiveCost, LinkFit, MessageCost};
use autodist_spec::{
    Algorithm, Bytes, Collective, DoubtedCell, Pass, Profile, Provenance, Recompute, Seconds, Segment,
    SegmentCost,
};
use std::collections::BTreeMap;

/// A cost that the profile lacks, and that cannot be derived from its other cells.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}\nhint: {hint}")]
pub struct Unpriced {
    /// The missing cell, in words.
    pub what: String,
    /// How the user can fix it.
    pub hint: String,
    /// Whether the cell exists, but is doubtful.
    pub doubted: bool,
}

/// The prices of a profile.
#[derive(Debug)]
pub struct ProfilePrices {
    segments: Segments,
    pub(crate) links: LinkCurves,
    optimizer: OptimizerCurves,
}

impl ProfilePrices {
    pub fn new(profile: &Profile) -> Self {
        Self {
            segments: Segments::new(profile),
            links: LinkCurves::of(profile),
            optimizer: OptimizerCurves::new(profile),
        }
    }
}

impl Prices for ProfilePrices {
    fn segment(&self, query: &SegmentQuery) -> Result<SegmentPrice, Unpriced> {
        let SegmentQuery { segment, pass, recompute, strategy, .. } = *query;
        let key = SegmentKey {
            segment,
            pass,
            tensor: strategy.tensor,
            sequence_parallel: strategy.sequence_parallel,
            recompute,
        };
        self.segments.price(key, strategy.micro_batch)
    }

    fn collective(&self, query: &CollectiveQuery) -> Result<Price, Unpriced> {
        let CollectiveQuery { kind, algorithm, group, stride, bytes, .. } = *query;
        if algorithm != Algorithm::Ring {
            return Err(Unpriced {
                what: format!("the profile measured only ring collectives, not {}", algorithm.name()),
                hint: "describe the links with `profile --emulate`, or remove the algorithm from `allow.algorithms`"
                    .to_owned(),
                doubted: false,
            });
        }
        self.links.collective(kind, group, stride, bytes)
    }

    fn message(&self, query: &MessageQuery) -> Result<Price, Unpriced> {
        self.links.message(query.stride, query.bytes)
    }

    fn update(&self, elements: usize) -> Result<Price, Unpriced> {
        self.optimizer.update(elements)
    }

    fn norm(&self, elements: usize) -> Result<Price, Unpriced> {
        self.optimizer.norm(elements)
    }
}

/// Cells that differ only in the micro-batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct SegmentKey {
    segment: Segment,
    pass: Pass,
    tensor: u32,
    sequence_parallel: bool,
    recompute: Recompute,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct SegmentPrice {
    /// On the device.
    pub time: Price,
    /// Time that the host takes to launch it.
    pub launch_s: Seconds,
    /// Live memory after minus before, in bytes.
    pub growth_bytes: i64,
    /// Highest live memory above the start, in bytes.
    pub peak_bytes: i64,
}

#[derive(Debug, Clone, Default)]
struct SegmentCurve {
    time: Curve,
    /// Micro-batch, and seconds of the host.
    launches: Vec<(u32, f64)>,
    /// Micro-batch, growth and peak in bytes.
    memory: Vec<(u32, i64, i64)>,
}

#[derive(Debug, Clone, Default)]
struct Segments {
    cells: BTreeMap<SegmentKey, SegmentCurve>,
    /// Doubtful cells, which are not used for prices, by micro-batch, with the reason.
    doubted: BTreeMap<(SegmentKey, u32), String>,
}

impl Segments {
    fn new(profile: &Profile) -> Self {
        let mut cells: BTreeMap<SegmentKey, SegmentCurve> = BTreeMap::new();
        let mut doubted = BTreeMap::new();
        for cost in &profile.segments {
            let SegmentCost { segment, pass, tensor, sequence_parallel, recompute, .. } = *cost;
            let key = SegmentKey { segment, pass, tensor, sequence_parallel, recompute };
            let cell = cells.entry(key).or_default();
            match profile.distrusts(&DoubtedCell::from(cost)) {
                None => cell.time.insert(f64::from(cost.micro_batch), Price::cautious(&cost.time)),
                Some(doubt) => {
                    let why = format!("the measurement of {} is doubtful: {}", doubt.cell, doubt.reason);
                    doubted.insert((key, cost.micro_batch), why);
                }
            }
            cell.launches.push((cost.micro_batch, cost.launch_s.0));
            let point = (cost.micro_batch, cost.growth_bytes, cost.peak_bytes.0 as i64);
            match cell.memory.binary_search_by_key(&cost.micro_batch, |p| p.0) {
                Ok(at) => cell.memory[at] = point,
                Err(at) => cell.memory.insert(at, point),
            }
        }
        Self { cells, doubted }
    }

    /// One pass of a segment over one micro-batch: measured, interpolated between two measured micro-batches
    /// (log-log in time, affine in memory), or proportional to the nearest one.
    fn price(&self, key: SegmentKey, micro_batch: u32) -> Result<SegmentPrice, Unpriced> {
        if let Some(why) = self.doubted.get(&(key, micro_batch)) {
            return Err(in_doubt(why));
        }
        let (cell, provenance) =
            match (self.cells.get(&key), stand_in(key).and_then(|other| self.cells.get(&other))) {
                (Some(cell), _) => (cell, Provenance::Measured),
                (None, Some(cell)) => (cell, Provenance::Modelled),
                (None, None) => return Err(self.missing(key)),
            };
        let nearest = || {
            let mut of_key = self.doubted.range((key, 0)..=(key, u32::MAX));
            of_key.next().map_or_else(|| self.missing(key), |(_, why)| in_doubt(why))
        };
        let mut time = cell.time.proportional(f64::from(micro_batch)).ok_or_else(nearest)?;
        time.provenance = time.provenance.max(provenance);
        let bytes = |of: fn(&(u32, i64, i64)) -> i64| affine(&cell.memory, micro_batch, of);
        // A kernel is launched once for all rows, so that the nearest micro-batch has as many launches.
        let nearest = cell.launches.iter().min_by_key(|launch| launch.0.abs_diff(micro_batch));
        let launch_s = Seconds(nearest.map_or(0.0, |launch| launch.1));
        Ok(SegmentPrice { time, launch_s, growth_bytes: bytes(|p| p.1), peak_bytes: bytes(|p| p.2).max(0) })
    }

    fn missing(&self, key: SegmentKey) -> Unpriced {
        let SegmentKey { segment, pass, tensor, sequence_parallel, recompute } = key;
        let parallel = if sequence_parallel { " with sequence parallelism" } else { "" };
        let known = |k: &&SegmentKey| k.tensor == tensor && k.sequence_parallel == sequence_parallel;
        let hint = if self.cells.keys().any(|k| known(&k)) {
            format!(
                "profile again with recompute={} among the policies, or remove it from `allow.recompute`",
                recompute.name()
            )
        } else {
            format!(
                "profile again with --ranks {tensor} or more, or remove tensor={tensor}{parallel} from `allow`"
            )
        };
        let what = format!(
            "the profile has no {pass:?} of {segment:?} at tensor={tensor}{parallel}, recompute={}",
            recompute.name()
        );
        Unpriced { what, hint, doubted: false }
    }
}

fn in_doubt(why: &str) -> Unpriced {
    Unpriced {
        what: why.to_owned(),
        hint: "measure again with `autodist profile`: it repeats only the doubtful measurements".to_owned(),
        doubted: true,
    }
}

/// A cell with the same cost. Selective recomputation affects only the attention segment; a forward pass
/// computes the same for every policy, and its memory is then overestimated, never underestimated.
fn stand_in(key: SegmentKey) -> Option<SegmentKey> {
    let sound = match key.recompute {
        Recompute::None => false,
        Recompute::Selective => key.segment != Segment::Attention || key.pass == Pass::Forward,
        Recompute::Full => key.pass == Pass::Forward,
    };
    sound.then_some(SegmentKey { recompute: Recompute::None, ..key })
}

/// Affine through the two nearest points; proportional if there is only one.
fn affine(points: &[(u32, i64, i64)], micro_batch: u32, of: fn(&(u32, i64, i64)) -> i64) -> i64 {
    let at = points.partition_point(|p| p.0 < micro_batch);
    if let Some(point) = points.get(at).filter(|p| p.0 == micro_batch) {
        return of(point);
    }
    if points.len() < 2 {
        return points
            .first()
            .map_or(0, |p| (of(p) as f64 * f64::from(micro_batch) / f64::from(p.0)).round() as i64);
    }
    let low = at.clamp(1, points.len() - 1) - 1;
    let (a, b) = (&points[low], &points[low + 1]);
    let weight = linear_weight(f64::from(a.0), f64::from(b.0), f64::from(micro_batch));
    (of(a) as f64 + weight * (of(b) - of(a)) as f64).round() as i64
}

/// Collectives and send/recv.
#[derive(Debug, Clone, Default)]
pub struct LinkCurves {
    /// By kind and group size, then by stride.
    collectives: BTreeMap<(Collective, u32), BTreeMap<u32, Curve>>,
    /// By stride.
    messages: BTreeMap<u32, Curve>,
}

impl LinkCurves {
    /// Costs from the measurements of the profile that are not doubtful.
    pub fn of(profile: &Profile) -> Self {
        let collectives = profile.collectives.iter().filter(|c| {
            let CollectiveCost { kind, group, stride, bytes, .. } = **c;
            profile.distrusts(&DoubtedCell::Collective { kind, group, stride, bytes }).is_none()
        });
        let messages = profile.messages.iter().filter(|m| {
            profile.distrusts(&DoubtedCell::Message { stride: m.stride, bytes: m.bytes }).is_none()
        });
        // A fit uses all points: it would extrapolate from the doubtful one, too.
        let believed = |fit: &&LinkFit| {
            let kind = fit.what.parse::<Collective>().ok();
            !profile.doubts.iter().filter(|doubt| !doubt.used).any(|doubt| match doubt.cell {
                DoubtedCell::Collective { kind: of, group, stride, .. } => {
                    (kind, fit.group, fit.stride) == (Some(of), group, stride)
                }
                DoubtedCell::Message { stride, .. } => fit.what == "message" && fit.stride == stride,
                DoubtedCell::Segment { .. } | DoubtedCell::Update { .. } => false,
            })
        };
        let fits: Vec<LinkFit> = profile.fits.iter().filter(believed).cloned().collect();
        Self::new(collectives, messages, &fits)
    }

    pub fn new<'a>(
        collectives: impl IntoIterator<Item = &'a CollectiveCost>,
        messages: impl IntoIterator<Item = &'a MessageCost>,
        fits: &[LinkFit],
    ) -> Self {
        let mut links = Self::default();
        for cost in collectives {
            let strides = links.collectives.entry((cost.kind, cost.group)).or_default();
            strides.entry(cost.stride).or_default().insert(cost.bytes.as_f64(), Price::from(&cost.time));
        }
        for cost in messages {
            links
                .messages
                .entry(cost.stride)
                .or_default()
                .insert(cost.bytes.as_f64(), Price::from(&cost.time));
        }
        for fit in fits {
            let curve = match fit.what.parse::<Collective>() {
                Ok(kind) => {
                    links.collectives.get_mut(&(kind, fit.group)).and_then(|s| s.get_mut(&fit.stride))
                }
                Err(_) if fit.what == "message" => links.messages.get_mut(&fit.stride),
                Err(_) => None,
            };
            if let Some(curve) = curve {
                curve.set_fit(fit.alpha_s.0, fit.beta_s_per_byte);
            }
        }
        links
    }

    /// A collective over `group` ranks, `stride` apart, on a tensor of `bytes` (the whole of it).
    pub fn collective(
        &self,
        kind: Collective,
        group: usize,
        stride: usize,
        bytes: Bytes,
    ) -> Result<Price, Unpriced> {
        if group <= 1 {
            return Ok(Price::ZERO);
        }
        let missing = || Unpriced {
            what: format!("the profile has no {kind:?} over {group} ranks"),
            hint: format!("profile again with --ranks {group} or a multiple of it"),
            doubted: false,
        };
        let strides = self.collectives.get(&(kind, group as u32)).ok_or_else(missing)?;
        nearest(strides, stride, bytes).ok_or_else(missing)
    }

    /// The largest measured group of fewer than `group` ranks.
    pub fn largest_group_below(&self, kind: Collective, group: usize) -> Option<usize> {
        let smaller = self.collectives.range((kind, 2)..(kind, group as u32)).next_back()?;
        Some(smaller.0.1 as usize)
    }

    /// A send/recv between pipeline stages at a distance of `stride` ranks.
    pub fn message(&self, stride: usize, bytes: Bytes) -> Result<Price, Unpriced> {
        nearest(&self.messages, stride, bytes).ok_or_else(|| Unpriced {
            what: "the profile has no send/recv between ranks".to_owned(),
            hint: "profile again with --ranks 2 or more".to_owned(),
            doubted: false,
        })
    }
}

/// From the curve of that stride, or else of the nearest stride by ratio.
fn nearest(strides: &BTreeMap<u32, Curve>, stride: usize, bytes: Bytes) -> Option<Price> {
    if let Some(curve) = strides.get(&(stride as u32)) {
        return curve.log_log(bytes.as_f64());
    }
    let distance = |other: u32| (f64::from(other.max(1)) / stride.max(1) as f64).ln().abs();
    let (_, curve) = strides.iter().min_by(|a, b| distance(*a.0).total_cmp(&distance(*b.0)))?;
    let price = curve.log_log(bytes.as_f64())?;
    Some(Price { provenance: price.provenance.max(Provenance::Interpolated), ..price })
}

/// Time of optimizer updates over flat buffers, piecewise linear in elements.
#[derive(Debug, Clone, Default)]
struct OptimizerCurves {
    update: Curve,
    norm: Curve,
}

impl OptimizerCurves {
    pub fn new(profile: &Profile) -> Self {
        let mut curves = Self::default();
        for cost in &profile.optimizer {
            if profile.distrusts(&DoubtedCell::Update { elements: cost.elements }).is_none() {
                curves.update.insert(cost.elements as f64, Price::cautious(&cost.update));
            }
            curves.norm.insert(cost.elements as f64, Price::cautious(&cost.norm));
        }
        curves
    }

    pub fn update(&self, elements: usize) -> Result<Price, Unpriced> {
        Self::at(&self.update, elements)
    }

    pub fn norm(&self, elements: usize) -> Result<Price, Unpriced> {
        Self::at(&self.norm, elements)
    }

    fn at(curve: &Curve, elements: usize) -> Result<Price, Unpriced> {
        if elements == 0 {
            return Ok(Price::ZERO);
        }
        curve.linear(elements as f64).ok_or_else(|| Unpriced {
            what: "the profile has no optimizer step".to_owned(),
            hint: "profile again until the profile is complete".to_owned(),
            doubted: false,
        })
    }
}
