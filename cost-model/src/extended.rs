//! The prices of a profile, extrapolated to more tensor-parallel ranks, larger groups and more nodes.
//!
//! The time of a segment at a tensor-parallel degree that was not measured is extrapolated from the nearest
//! smaller degree, in the ratio of their times in the hardware catalogue, or of their FLOPs if the catalogue does
//! not have the device. A collective of more ranks than were measured is modelled as a larger ring.

use crate::curve::Price;
use crate::measured::{ProfilePrices, SegmentPrice, Unpriced};
use crate::prices::{CollectiveQuery, MessageQuery, Prices, SegmentQuery};
use autodist_program::residual_stream;
use autodist_spec::{
    Algorithm, Bytes, Cluster, Collective, LayerTraining, Link, ModelSpec, ParallelStrategy, Pass, Profile,
    Provenance, Segment, SegmentCost, Shard,
};
use std::sync::Arc;

/// Relative half-width of an extrapolated price without a check against measurements; assumed.
pub(crate) const UNCHECKED: f64 = 0.25;

/// Relative half-width of a step time for the slowdown of ranks that share the memory and the caches of a machine,
/// if only one rank was measured; assumed.
pub(crate) const SHARING: f64 = 0.15;

/// The prices of a profile, extended to a cluster.
#[derive(Debug)]
pub(crate) struct ExtendedPrices {
    measured: ProfilePrices,
    law: Law,
    /// Measured tensor degrees, each with and without sequence parallelism.
    degrees: Vec<(u32, bool)>,
    /// Devices of a node of the cluster, if it has more than one node.
    per_node: Option<usize>,
    /// Link between two devices of a node, and the slowest of a node to the others, if the cluster describes
    /// them.
    link: Option<Link>,
    uplink: Option<Link>,
    links: Links,
    error: Option<Error>,
}

/// Where the links of a cluster are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    Measured,
    /// Measured, but for fewer ranks of the machine.
    OneMachine,
    /// The description of the cluster.
    Described,
    Catalogue,
}

/// How a segment's time depends on its tensor degree.
#[derive(Debug)]
struct Law {
    model: ModelSpec,
    seq_len: u32,
    /// Bytes of an element of an activation.
    word: u64,
    /// The ratios of these prices, instead of FLOPs.
    catalogue: Option<Arc<dyn Prices>>,
}

/// The error of an extrapolation from one measured degree to another one.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Error {
    from: u32,
    to: u32,
    /// Relative error of the segments, exceeded by those with a tenth of the measured time.
    relative: f64,
}

impl ExtendedPrices {
    pub fn new(
        profile: &Profile,
        cluster: &Cluster,
        links: Links,
        catalogue: Option<Arc<dyn Prices>>,
    ) -> Self {
        let mut degrees: Vec<(u32, bool)> =
            profile.segments.iter().map(|cost| (cost.tensor, cost.sequence_parallel)).collect();
        degrees.sort_unstable();
        degrees.dedup();
        let nodes = cluster.node_count() > 1;
        let mut extended = Self {
            measured: ProfilePrices::new(profile),
            law: Law {
                model: profile.model.clone(),
                seq_len: profile.seq_len,
                word: profile.precision.working(1).0,
                catalogue,
            },
            degrees,
            per_node: nodes.then(|| cluster.nodes[0].devices as usize),
            link: cluster.nodes[0].link.clone(),
            uplink: slowest_uplink(cluster),
            links,
            error: None,
        };
        extended.error = extended.check(profile);
        extended
    }

    /// Whether several ranks of one machine are priced from a profile of one.
    pub fn measured_one_rank(&self) -> bool {
        let largest = self.measured.links.largest_group_below(Collective::AllReduce, usize::MAX);
        self.links == Links::OneMachine && largest.is_none()
    }

    fn knows(&self, strategy: &ParallelStrategy) -> bool {
        self.degrees.contains(&(strategy.tensor, strategy.sequence_parallel))
    }

    /// The nearest smaller measured degree, best with the same sequence parallelism.
    fn anchor(&self, strategy: &ParallelStrategy) -> Option<ParallelStrategy> {
        let smaller = self.degrees.iter().filter(|(tensor, _)| *tensor < strategy.tensor);
        let (tensor, sequence_parallel) =
            *smaller.max_by_key(|(tensor, parallel)| (*parallel == strategy.sequence_parallel, *tensor))?;
        Some(ParallelStrategy { tensor, sequence_parallel, ..strategy.clone() })
    }

    /// The price of a segment, extrapolated from that at another degree.
    fn scaled(&self, query: &SegmentQuery, anchor: &ParallelStrategy) -> Result<SegmentPrice, Unpriced> {
        let base = SegmentQuery { strategy: anchor, ..*query };
        let price = self.measured.segment(&base)?;
        let ratio = self.law.time(query)? / self.law.time(&base)?.max(f64::MIN_POSITIVE);
        let time = price.time * ratio;
        let beside = time.seconds * self.error.map_or(UNCHECKED, |error| error.relative);
        let half_width = time.half_width.hypot(beside);
        let time = Price { half_width, provenance: Provenance::Modelled.max(time.provenance), ..time };
        let (growth_bytes, peak_bytes) = self.law.memory(query, &base, &price);
        Ok(SegmentPrice { time, growth_bytes, peak_bytes, ..price })
    }

    /// Extrapolates from the smallest degree to the next one, and compares with the measurement.
    fn check(&self, profile: &Profile) -> Option<Error> {
        let mut plain = self.degrees.iter().filter(|(_, parallel)| !parallel);
        let (from, to) = (plain.next()?.0, plain.next()?.0);
        let mut errors: Vec<(f64, f64)> = Vec::new();
        for cost in &profile.segments {
            let SegmentCost { segment, pass, tensor, sequence_parallel, recompute, micro_batch, .. } = *cost;
            if (tensor, sequence_parallel) != (to, false) {
                continue;
            }
            let strategy =
                ParallelStrategy { tensor, recompute, ..ParallelStrategy::data_parallel(1, micro_batch) };
            let block = self.law.model.block(1);
            let training = LayerTraining::WHOLE;
            let query = SegmentQuery {
                block,
                training,
                segment,
                pass,
                recompute,
                strategy: &strategy,
                micro_batches: 1,
            };
            let anchor = ParallelStrategy { tensor: from, ..strategy.clone() };
            let Ok(extended) = self.scaled(&query, &anchor) else { continue };
            let seconds = cost.time.median_s.0;
            errors.push(((extended.time.seconds / seconds - 1.0).abs(), seconds));
        }
        errors.retain(|(error, _)| error.is_finite());
        errors.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all: f64 = errors.iter().map(|(_, seconds)| seconds).sum();
        let mut within = 0.0;
        let relative = errors.iter().find(|(_, seconds)| {
            within += seconds;
            within >= 0.9 * all
        });
        relative.map(|(relative, _)| Error { from, to, relative: *relative })
    }

    /// What is extrapolated or assumed in a strategy's price, one sentence each.
    pub fn extensions(&self, strategy: &ParallelStrategy) -> Vec<String> {
        let mut notes = Vec::new();
        if !self.knows(strategy)
            && let Some(anchor) = self.anchor(strategy)
        {
            let by = match &self.law.catalogue {
                Some(_) => "their times in the hardware catalogue",
                None => "their FLOPs",
            };
            let error = match self.error {
                Some(Error { from, to, relative }) => format!(
                    "the same extrapolation from {from} to {to} is within {:.1} % for 90 % of the measured time",
                    100.0 * relative
                ),
                None => format!("± {:.0} % is assumed", 100.0 * UNCHECKED),
            };
            notes.push(format!(
                "times of segments at tensor-parallel degree {} are extrapolated from degree {} by the ratio of {by}: {error}",
                strategy.tensor, anchor.tensor
            ));
        }
        let assumed = 100.0 * UNCHECKED;
        let largest = self.measured.links.largest_group_below(Collective::AllReduce, usize::MAX);
        let group = strategy.tensor.max(strategy.replicas()) as usize;
        notes.extend(match (self.links, largest) {
            (Links::Described, _) if strategy.devices() == 1 => None,
            (Links::Described, _) => {
                Some(format!("links have the bandwidth and latency given by `--cluster`: ± {assumed:.0} % is assumed"))
            }
            (Links::Catalogue, _) => {
                Some("communication between nodes is priced by the hardware catalogue".to_owned())
            }
            (Links::OneMachine, Some(measured)) if group > measured => Some(format!(
                "collectives of more than {measured} ranks are modelled as rings of the measured links: ± {assumed:.0} % is \
                 assumed"
            )),
            (Links::OneMachine, None) if group > 1 || strategy.pipeline > 1 => {
                let from = if self.law.catalogue.is_some() { "the hardware catalogue" } else { "`--cluster`" };
                let sharing = 100.0 * SHARING;
                Some(format!(
                    "links between devices are those of {from}; the profile has one rank, so ± {sharing:.0} % is assumed for \
                     the slowdown of ranks that share a machine"
                ))
            }
            (Links::OneMachine | Links::Measured, _) => None,
        });
        notes
    }

    fn unpriced(what: &str) -> Unpriced {
        Unpriced {
            what: format!("the profile has no {what}, and the catalogue does not have this device"),
            hint: "describe the links in the cluster file: `link` in every node group, and `[network]` between nodes"
                .to_owned(),
            doubted: false,
        }
    }

    /// A ring on a link of the cluster's description that `sharing` rings use at the same time.
    fn described(link: &Link, kind: Collective, group: usize, bytes: Bytes, sharing: usize) -> Option<Price> {
        let (hops, parts) = ring(kind, group)?;
        let rate = link.bytes_per_s.0 / sharing.max(1) as f64;
        Some(assumed(hops * link.latency_s.0 + parts * bytes.as_f64() / rate))
    }

    /// A collective over groups that are on more than one node: each node has `stride` of them, at most one for
    /// each of its devices.
    fn between_nodes(&self, query: &CollectiveQuery, per_node: usize) -> Result<Price, Unpriced> {
        let CollectiveQuery { kind, group, stride, bytes, .. } = *query;
        if let Some(catalogue) = &self.law.catalogue {
            return catalogue.collective(query);
        }
        let ring = |link| Self::described(link, kind, group, bytes, stride.min(per_node));
        self.uplink.as_ref().and_then(ring).ok_or_else(|| Self::unpriced("collective between nodes"))
    }

    /// The price extrapolated from a smaller group: latency by the hops of the ring, the rest by the bytes that
    /// each rank sends.
    fn larger_ring(&self, query: &CollectiveQuery) -> Option<Price> {
        let CollectiveQuery { kind, group, stride, bytes, .. } = *query;
        let smaller = self.measured.links.largest_group_below(kind, group)?;
        let price = self.measured.links.collective(kind, smaller, stride, bytes).ok()?;
        let none = self.measured.links.collective(kind, smaller, stride, Bytes::ZERO).ok()?;
        let ((hops, parts), (few, least)) = (ring(kind, group)?, ring(kind, smaller)?);
        let latency = none.seconds.clamp(0.0, price.seconds);
        let seconds = latency * hops / few + (price.seconds - latency) * parts / least;
        let half_width =
            (price.half_width * seconds / price.seconds.max(f64::MIN_POSITIVE)).hypot(UNCHECKED * seconds);
        Some(Price {
            seconds,
            half_width,
            provenance: Provenance::Modelled.max(price.provenance),
            ..Price::ZERO
        })
    }
}

/// A price from the description of a cluster.
fn assumed(seconds: f64) -> Price {
    Price { seconds, half_width: UNCHECKED * seconds, provenance: Provenance::Assumed, ..Price::ZERO }
}

/// The slowest link from a node to the others or back.
fn slowest_uplink(cluster: &Cluster) -> Option<Link> {
    let links = cluster.nodes.iter().flat_map(|group| {
        let up = group.uplink.as_ref().or(cluster.network.as_ref());
        [up, group.downlink.as_ref().or(up)]
    });
    links.flatten().min_by(|a, b| a.bytes_per_s.0.total_cmp(&b.bytes_per_s.0)).cloned()
}

/// Messages in a row of a ring, and the part of the tensor that a rank sends (Thakur et al. 2005, section 4).
fn ring(kind: Collective, group: usize) -> Option<(f64, f64)> {
    let ranks = group as f64;
    let (hops, part) = (ranks - 1.0, (ranks - 1.0) / ranks);
    match kind {
        Collective::AllReduce => Some((2.0 * hops, 2.0 * part)),
        Collective::ReduceScatter | Collective::AllGather => Some((hops, part)),
        Collective::AllToAll | Collective::Broadcast | Collective::SendRecv => None,
    }
}

impl Law {
    /// A time that is proportional to the segment's; only ratios of it count.
    fn time(&self, query: &SegmentQuery) -> Result<f64, Unpriced> {
        let SegmentQuery { block, segment, pass, recompute, strategy, .. } = *query;
        if let Some(catalogue) = &self.catalogue {
            let seconds = catalogue.segment(query)?.time.seconds;
            if seconds > 0.0 {
                return Ok(seconds);
            }
        }
        let shard = Shard::of(strategy, self.seq_len);
        Ok(self.model.segment_flops(&block, segment, (pass, recompute), &shard))
    }

    /// Growth and peak in bytes: what a segment keeps beside the residual stream is split over the tensor ranks.
    /// Peaks of backward passes are not split: an upper bound.
    fn memory(&self, query: &SegmentQuery, base: &SegmentQuery, measured: &SegmentPrice) -> (i64, i64) {
        let tokens = u64::from(query.strategy.micro_batch) * u64::from(self.seq_len);
        let stream = (tokens * u64::from(self.model.hidden) * self.word) as f64;
        let split = f64::from(base.strategy.tensor) / f64::from(query.strategy.tensor);
        let kept = |query: &SegmentQuery| {
            stream
                * residual_stream(
                    query.segment,
                    query.pass,
                    (query.recompute, query.training.backward),
                    query.strategy,
                )
        };
        let inside = measured.growth_bytes as f64 - kept(base);
        let growth = kept(query) + inside * split;
        let output = match (query.segment, query.pass) {
            (Segment::Attention | Segment::Mlp, Pass::Forward | Pass::Recompute) => stream,
            (Segment::Logits | Segment::Normalizer, Pass::Forward) => 0.0,
            _ => measured.peak_bytes as f64,
        };
        let peak = output + (measured.peak_bytes as f64 - output).max(0.0) * split;
        (growth.ceil() as i64, peak.max(growth).ceil() as i64)
    }
}

impl Prices for ExtendedPrices {
    fn segment(&self, query: &SegmentQuery) -> Result<SegmentPrice, Unpriced> {
        match self.anchor(query.strategy).filter(|_| !self.knows(query.strategy)) {
            Some(anchor) => self.scaled(query, &anchor),
            None => self.measured.segment(query),
        }
    }

    fn collective(&self, query: &CollectiveQuery) -> Result<Price, Unpriced> {
        let CollectiveQuery { kind, algorithm, group, stride, bytes, .. } = *query;
        if algorithm != Algorithm::Ring {
            return self.measured.collective(query);
        }
        if let Some(per_node) = self.per_node.filter(|per_node| group * stride > *per_node) {
            return self.between_nodes(query, per_node);
        }
        let unmeasured = |error: Unpriced| match self.larger_ring(query) {
            Some(price) => Ok(price),
            None => match (
                self.link.as_ref().and_then(|link| Self::described(link, kind, group, bytes, 1)),
                &self.law.catalogue,
            ) {
                (Some(price), None) => Ok(price),
                (_, Some(catalogue)) => catalogue.collective(query),
                (None, None) => Err(self.without_links(error)),
            },
        };
        self.measured.collective(query).or_else(unmeasured)
    }

    fn message(&self, query: &MessageQuery) -> Result<Price, Unpriced> {
        let MessageQuery { ends, stride, .. } = *query;
        let between = || match (&self.law.catalogue, &self.uplink, self.per_node) {
            (Some(catalogue), ..) => catalogue.message(query),
            (None, Some(link), Some(per_node)) => {
                let rate = link.bytes_per_s.0 / stride.min(per_node).max(1) as f64;
                Ok(assumed(link.latency_s.0 + query.bytes.as_f64() / rate))
            }
            _ => Err(Self::unpriced("send/recv between nodes")),
        };
        let (crosses, may_cross) = match (self.per_node, ends) {
            (None, _) => (false, false),
            (Some(per_node), Some((from, to))) => (from * stride / per_node != to * stride / per_node, false),
            (Some(per_node), None) => (stride >= per_node, true),
        };
        if crosses {
            return between();
        }
        let inside = self.inside(query)?;
        // The fastest of all neighbours: a lower bound.
        if may_cross {
            let other = between()?;
            return Ok(if other.seconds < inside.seconds { other } else { inside });
        }
        Ok(inside)
    }

    fn update(&self, elements: usize) -> Result<Price, Unpriced> {
        self.measured.update(elements)
    }

    fn norm(&self, elements: usize) -> Result<Price, Unpriced> {
        self.measured.norm(elements)
    }
}

impl ExtendedPrices {
    /// The error with a hint to describe the links, if only one device was measured.
    fn without_links(&self, error: Unpriced) -> Unpriced {
        if self.links != Links::OneMachine {
            return error;
        }
        let hint = format!("{}, or give the nodes a `link` in a cluster file", error.hint);
        Unpriced { hint, ..error }
    }

    /// A send/recv between two devices of a node.
    fn inside(&self, query: &MessageQuery) -> Result<Price, Unpriced> {
        self.measured.message(query).or_else(|error| match (&self.link, &self.law.catalogue) {
            (_, Some(catalogue)) => catalogue.message(query),
            (Some(link), None) => Ok(assumed(link.latency_s.0 + query.bytes.as_f64() / link.bytes_per_s.0)),
            (None, None) => Err(self.without_links(error)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_spec::{Recompute, catalog};

    /// Growth and peak of segments of `tiny-gpt` at tensor degrees 2 and 4, in activations of the residual
    /// stream, as the allocator of the native engine counted them.
    #[test]
    fn memory_at_a_larger_degree_is_what_an_allocator_counted() {
        use Pass::{Backward, Forward, Recompute as Again};
        use Segment::{Attention, Embedding, Logits, Loss, Mlp};
        let law = Law { model: catalog::model("tiny-gpt").unwrap(), seq_len: 128, word: 4, catalogue: None };
        let stream = 128.0 * f64::from(law.model.hidden) * 4.0;
        let (none, full) = (Recompute::None, Recompute::Full);
        for (segment, pass, recompute, parallel, [growth, peak], [more, high]) in [
            (Attention, Forward, none, false, [5.0, 5.5], [3.0, 3.25]),
            (Attention, Forward, none, true, [4.0, 5.5], [2.0, 3.25]),
            (Attention, Forward, Recompute::Selective, true, [2.0, 3.5], [1.0, 2.25]),
            (Attention, Forward, full, true, [-0.5, 3.5], [-0.25, 2.25]),
            (Attention, Backward, none, true, [-5.0, 2.0], [-3.0, 2.0]),
            (Mlp, Forward, none, false, [3.0, 7.0], [2.0, 4.0]),
            (Mlp, Forward, full, true, [-1.0, 7.0], [-0.5, 4.0]),
            (Mlp, Again, full, true, [1.0, 7.0], [0.0, 4.0]),
            (Mlp, Backward, full, false, [-2.0, 3.0], [-1.0, 3.0]),
            (Embedding, Backward, none, true, [-1.5, 0.0], [-1.25, 0.0]),
            (Logits, Forward, none, true, [0.0, 2.0], [-0.5, 1.0]),
            (Loss, Backward, none, false, [-1.0, 1.0], [-0.5, 1.0]),
        ] {
            let at = |tensor| ParallelStrategy {
                tensor,
                sequence_parallel: parallel,
                ..ParallelStrategy::data_parallel(1, 1)
            };
            let (two, four) = (at(2), at(4));
            let block = law.model.block(1);
            let training = LayerTraining::WHOLE;
            let query =
                SegmentQuery { block, training, segment, pass, recompute, strategy: &four, micro_batches: 1 };
            let base = SegmentQuery { strategy: &two, ..query };
            let bytes = |streams: f64| (streams * stream) as i64;
            let measured = SegmentPrice {
                growth_bytes: bytes(growth),
                peak_bytes: bytes(peak),
                ..SegmentPrice::default()
            };
            let expected = (bytes(more), bytes(high));
            assert_eq!(law.memory(&query, &base, &measured), expected, "{segment:?} {pass:?} {recompute:?}");
        }
    }
}
