//! The costs of a cluster from a profile of fewer devices.

use crate::CostModel;
use crate::curve::Price;
use crate::extended::{ExtendedPrices, Links, SHARING};
use crate::measured::{LinkCurves, Unpriced};
use crate::peak::PeakError;
use crate::prices::Prices;
use crate::routes::Routes;
use autodist_spec::{Bytes, BytesPerSecond, Cluster, Link, Network, ParallelStrategy, Profile, Seconds};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Devices up to which links that differ are simulated one by one.
const SIMULATED_LINKS: u32 = 32;

impl CostModel {
    /// The costs of a cluster from a profile of fewer devices. What was not measured is extrapolated: times of
    /// segments by the ratios of those in `catalogue`, or without it by FLOPs; collectives as larger rings of the
    /// measured links, on the links that the cluster describes, or by the catalogue.
    ///
    /// # Errors
    /// Links of the cluster are neither measured, nor described, nor in the catalogue.
    pub fn of_cluster(
        profile: &Profile,
        cluster: &Cluster,
        catalogue: Option<Arc<dyn Prices>>,
    ) -> Result<Self, Unpriced> {
        let profile = &*profile.corrected();
        let own = Self::of_times(profile);
        let measured = &profile.cluster;
        let same = (cluster.device_count(), cluster.node_count())
            == (measured.device_count(), measured.node_count());
        let known = catalogue.is_some();
        let simulated = cluster.device_count() <= SIMULATED_LINKS && (profile.network.is_some() || !known);
        let cluster = &with_measured_links(cluster, profile);
        let network = if simulated { Network::of(cluster) } else { None };
        let links = match &network {
            _ if same => Links::Measured,
            _ if profile.network.is_none() && cluster.node_count() == 1 => Links::OneMachine,
            Some(_) => Links::Described,
            None if known => Links::Catalogue,
            None if !simulated && described(cluster) => Links::Described,
            None => {
                return Err(Unpriced {
                    what: format!(
                        "the links of `{}` were not measured, and neither its description nor the catalogue has them",
                        cluster.name
                    ),
                    hint: "give the links in the cluster file: `link` in every node group, and `[network]` between nodes"
                        .to_owned(),
                    doubted: false,
                });
            }
        };
        let prices = Arc::new(ExtendedPrices::new(profile, cluster, links, catalogue));
        let mut costs = Self { prices: vec![prices.clone()], extended: Some(prices.clone()), ..own };
        if costs.peak_error == PeakError::NATIVE && !same {
            costs.peak_error = PeakError::EXTENDED;
        }
        if prices.measured_one_rank() {
            costs.repeatability = Some(costs.repeatability.unwrap_or(0.0).hypot(SHARING));
        }
        if matches!(links, Links::Described | Links::Catalogue) {
            costs.synchronisation = Price::ZERO;
            costs.within_steps = longer_waits(&costs.within_steps, profile, cluster);
            costs.extrapolates_waits = true;
            costs.routes = network.map(|network| Arc::new(Routes::described(&network)));
        }
        Ok(costs)
    }

    /// What is extrapolated or assumed in the costs of a strategy, one sentence each; empty if all was measured.
    #[must_use]
    pub fn extensions(&self, strategy: &ParallelStrategy) -> Vec<String> {
        self.extended.as_ref().map_or_else(Vec::new, |extended| extended.extensions(strategy))
    }
}

/// The waiting times inside tensor collectives of emulated devices, extrapolated to more devices: proportional to
/// the hops of the ring and to the ranks per core.
fn longer_waits(measured: &BTreeMap<u32, f64>, profile: &Profile, cluster: &Cluster) -> BTreeMap<u32, f64> {
    let cores = f64::from(profile.environment.cores.max(1));
    let sharing = |cluster: &Cluster| (f64::from(cluster.device_count()) / cores).max(1.0);
    let longer = sharing(cluster) / sharing(&profile.cluster);
    let devices = cluster.device_count();
    let degrees = (2..=devices).filter(|degree| devices.is_multiple_of(*degree));
    let waits = degrees.filter_map(|degree| {
        let (smaller, seconds) = measured.range(..=degree).next_back()?;
        Some((degree, longer * seconds * f64::from(degree - 1) / f64::from(smaller - 1)))
    });
    waits.collect()
}

/// Whether all links are described.
fn described(cluster: &Cluster) -> bool {
    cluster.nodes.iter().all(|group| {
        let outside = cluster.node_count() == 1 || group.uplink.is_some() || cluster.network.is_some();
        outside && (group.devices == 1 || group.link.is_some())
    })
}

/// The cluster, in which node groups without a `link` have the measured one of the profile's machine.
fn with_measured_links(cluster: &Cluster, profile: &Profile) -> Cluster {
    let mut cluster = cluster.clone();
    let large = Bytes(1 << 24);
    let links = LinkCurves::of(profile);
    let measured = links.message(1, Bytes::ZERO).ok().zip(links.message(1, large).ok());
    let Some((none, all)) = measured.filter(|_| profile.network.is_none()) else { return cluster };
    let seconds = all.seconds - none.seconds;
    if seconds > 0.0 {
        let bytes_per_s = BytesPerSecond(large.as_f64() / seconds);
        let link = Link { bytes_per_s, latency_s: Seconds(none.seconds.max(0.0)) };
        for group in cluster.nodes.iter_mut().filter(|group| group.link.is_none()) {
            group.link = Some(link.clone());
        }
    }
    cluster
}
