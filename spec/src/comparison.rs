//! Clusters compared for one job: which is faster, which is cheaper, and how that changes with their size.

use crate::cluster::Cluster;
use crate::job::Job;
use crate::plan::Plan;
use crate::strategy::label;
use crate::training::Training;
use crate::units::{Bytes, Seconds};
use serde::Serialize;

/// The document of `compare`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClusterComparison {
    pub schema_version: u32,
    /// Name of the model.
    pub model: String,
    /// The job, with the precision that was used; the settings that it allows are those of the first cluster.
    pub job: Job,
    /// One for each cluster, in the given order; with `--scale`, one for each of its sizes.
    pub clusters: Vec<ComparedCluster>,
    /// The fastest cluster against each other, of those of the given sizes.
    pub faster: Vec<Difference>,
    /// The cheapest cluster against each other, if all have prices and the job gives its tokens.
    pub cheaper: Vec<Difference>,
}

/// The best plan on one cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedCluster {
    pub cluster: String,
    /// Name of its device; of several kinds, that of the first node.
    pub device: String,
    /// The network between its nodes, e.g. `8 NICs of 400 Gb/s in every node`; absent for one node, and for several kinds
    /// of nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    pub devices: u32,
    pub nodes: u32,
    /// Whether a plan fits into the memory of the devices, less the job's reserve.
    pub fits: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best: Option<BestOn>,
    /// Why there is no plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// A plan, in short.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BestOn {
    /// Label of the strategy.
    pub strategy: String,
    pub step_time_s: Seconds,
    pub step_time_spread_s: Seconds,
    pub tokens_per_s: f64,
    pub tokens_per_s_per_device: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    pub peak_memory_bytes: Bytes,
    /// Bytes that the plan may use of the device with the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit_bytes: Option<Bytes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub training: Option<Training>,
    /// The runs whose error the interval of the step time is.
    pub error_bar_of: String,
}

impl BestOn {
    pub fn of(plan: &Plan) -> Self {
        let estimate = &plan.estimate;
        Self {
            strategy: label(&plan.strategy, &plan.stages),
            step_time_s: estimate.step_time_s,
            step_time_spread_s: estimate.step_time_spread_s,
            tokens_per_s: estimate.tokens_per_s,
            tokens_per_s_per_device: estimate.tokens_per_s / f64::from(plan.cluster.device_count()),
            mfu: estimate.mfu,
            peak_memory_bytes: estimate.peak_memory_bytes,
            memory_limit_bytes: estimate.memory_limit_bytes,
            training: plan.training,
            error_bar_of: plan
                .cost_source
                .catalogue()
                .map_or_else(String::new, |one| one.error_bar_of.clone()),
        }
    }

    /// Relative half-width of the interval of the step time.
    fn bar(&self) -> f64 {
        self.step_time_spread_s / self.step_time_s
    }

    fn cost(&self) -> Option<f64> {
        self.training?.cost_usd
    }
}

impl ComparedCluster {
    pub fn of(cluster: &Cluster, plan: Result<&Plan, String>) -> Self {
        let (best, refused) = match plan {
            Ok(plan) => (Some(BestOn::of(plan)), None),
            Err(why) => (None, Some(why)),
        };
        let (devices, nodes) = (cluster.device_count(), cluster.node_count());
        let (name, device) = (cluster.name.clone(), cluster.device().name.clone());
        let fits = best.is_some();
        let network = network_of(cluster);
        Self { cluster: name, device, network, devices, nodes, fits, best, refused }
    }
}

/// The NICs of a node.
fn network_of(cluster: &Cluster) -> Option<String> {
    let ([group], Some(network), true) =
        (cluster.nodes.as_slice(), &cluster.network, cluster.node_count() > 1)
    else {
        return None;
    };
    let nics = group.nics?;
    let gigabits = network.bytes_per_s.0 * 8.0 / 1e9 / f64::from(nics);
    let plural = if nics == 1 { "NIC" } else { "NICs" };
    Some(format!("{nics} {plural} of {gigabits} Gb/s in every node"))
}

/// How much better one cluster is than another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The better one, and the other one.
    pub cluster: String,
    pub than: String,
    /// Time or cost of the other, divided by that of the better one.
    pub times: f64,
    /// The interval of `times`: the errors of both predictions, as if they were independent.
    pub times_low: f64,
    pub times_high: f64,
}

impl Difference {
    /// Whether the interval says which one is better.
    pub fn is_clear(&self) -> bool {
        self.times_low > 1.0
    }

    /// The fastest cluster against each other.
    pub fn of_time(clusters: &[ComparedCluster]) -> Vec<Self> {
        Self::of(clusters, |best| Some(best.step_time_s.0))
    }

    /// The cheapest cluster against each other; empty if one has no price.
    pub fn of_cost(clusters: &[ComparedCluster]) -> Vec<Self> {
        let all = clusters.iter().filter_map(|one| one.best.as_ref()).all(|best| best.cost().is_some());
        if all { Self::of(clusters, BestOn::cost) } else { Vec::new() }
    }

    fn of(clusters: &[ComparedCluster], value: impl Fn(&BestOn) -> Option<f64>) -> Vec<Self> {
        let ranked: Vec<_> = clusters
            .iter()
            .filter_map(|one| {
                let best = one.best.as_ref()?;
                Some((one, best, value(best)?))
            })
            .collect();
        let Some(first) = ranked.iter().min_by(|one, other| one.2.total_cmp(&other.2)) else {
            return Vec::new();
        };
        let others = ranked.iter().filter(|other| !std::ptr::eq(other.0, first.0));
        others
            .map(|other| {
                let times = other.2 / first.2;
                let bar = first.1.bar().hypot(other.1.bar());
                Self {
                    cluster: first.0.cluster.clone(),
                    than: other.0.cluster.clone(),
                    times,
                    times_low: times / (1.0 + bar),
                    times_high: times * (1.0 + bar),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(cluster: &str, step: f64, bar: f64) -> ComparedCluster {
        let best = BestOn {
            strategy: String::new(),
            step_time_s: Seconds(step),
            step_time_spread_s: Seconds(step * bar),
            tokens_per_s: 1.0,
            tokens_per_s_per_device: 1.0,
            mfu: None,
            peak_memory_bytes: Bytes(1),
            memory_limit_bytes: None,
            training: None,
            error_bar_of: String::new(),
        };
        let (cluster, device) = (cluster.to_owned(), cluster.to_owned());
        ComparedCluster {
            cluster,
            device,
            network: None,
            devices: 1,
            nodes: 1,
            fits: true,
            best: Some(best),
            refused: None,
        }
    }

    #[test]
    fn the_errors_of_both_decide_whether_one_is_faster() {
        let clusters = [one("slow", 12.0, 0.03), one("fast", 10.0, 0.04), one("slowest", 20.0, 0.0)];
        let faster = Difference::of_time(&clusters);
        let of: Vec<_> = faster.iter().map(|one| (one.than.as_str(), one.is_clear())).collect();
        assert_eq!(of, [("slow", true), ("slowest", true)]);
        assert!((faster[0].times_low - 1.2 / 1.05).abs() < 1e-9);
        let close = [one("slow", 10.4, 0.03), one("fast", 10.0, 0.04)];
        assert!(!Difference::of_time(&close)[0].is_clear());
        assert!(Difference::of_cost(&close).is_empty());
    }
}
