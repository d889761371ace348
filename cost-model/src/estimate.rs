//! The estimate of a plan: step time, memory and uncertainty.

use crate::curve::Price;
use crate::priced::Priced;
use crate::statistics;
use autodist_program::Op;
use autodist_spec::{
    Bytes, Cluster, Estimate, Job, MemoryBreakdown, NodeGroup, Seconds, StageEstimate, Utilisation,
};

impl Priced<'_> {
    pub fn estimate(&self, job: &Job, cluster: &Cluster) -> Estimate {
        let simulation = self.simulate();
        let memory = self.memory();
        let step = simulation.step_time_s;
        let busiest = simulation.busiest();
        let fullest = (0..memory.len()).rev().max_by_key(|rank| memory[*rank].total()).unwrap_or(0);
        let mfu = Utilisation::of(&self.program.model, job, cluster, step).mfu();
        let totals: Vec<Price> = (0..self.ranks.len()).map(|rank| self.rank_total(rank)).collect();
        let risk = self.memory_risk(cluster, &memory);
        let slowdown = statistics::slowdown(self.program, job, &self.costs.probes);
        Estimate {
            slowdown,
            time_to_loss_s: statistics::time_to_loss(job, slowdown, step.0),
            step_time_s: step,
            step_time_spread_s: self.spread(totals[busiest], step),
            caution_s: Seconds(totals[busiest].caution),
            tokens_per_s: job.tokens() as f64 / step.0,
            mfu,
            peak_memory_bytes: memory[fullest].total(),
            peak_memory_spread_bytes: Some(Bytes(
                (self.costs.peak_error.bar() * memory[fullest].total().as_f64()).ceil() as u64,
            )),
            memory_risk: Some(risk),
            memory_limit_bytes: Some(job.usable(Bytes(self.capacity(cluster, fullest) as u64))),
            cost: simulation.ranks[busiest].clone(),
            memory: memory[fullest].clone(),
            host_memory_bytes: self.host_of_node(cluster),
            lower_bound_s: self.lower_bound(),
            provenance: totals.iter().map(|total| total.provenance).max().unwrap_or_default(),
            stages: simulation
                .ranks
                .into_iter()
                .zip(memory)
                .map(|(cost, memory)| StageEstimate { cost, memory })
                .collect(),
        }
    }

    /// Chance that the device of a rank is too small for it: of the rank for which that is most likely, because
    /// ranks are predicted alike and err alike.
    fn memory_risk(&self, cluster: &Cluster, memory: &[MemoryBreakdown]) -> f64 {
        let ratio = |(rank, memory): (usize, &MemoryBreakdown)| {
            self.capacity(cluster, rank) / memory.total().as_f64().max(1.0)
        };
        let tightest = memory.iter().enumerate().map(ratio).fold(f64::INFINITY, f64::min);
        // More digits would be of the formula, not of the measured errors.
        (1e4 * self.costs.peak_error.chance_above(tightest)).round() / 1e4
    }

    /// Bytes of the smallest device of a pipeline rank.
    fn capacity(&self, cluster: &Cluster, rank: usize) -> f64 {
        let kinds = cluster.node_kinds();
        let sizes: Vec<f64> = kinds.iter().map(|kind| kind.group.device.memory_bytes.as_f64()).collect();
        let classes = self.costs.classes.of_stage(&self.program.strategy, rank);
        let own = sizes.get(classes.iter()).filter(|_| self.costs.classes.count() > 1);
        own.unwrap_or(&sizes).iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// Bytes that the fullest node keeps in its host's memory; `None` if nothing is kept there.
    pub fn host_of_node(&self, cluster: &Cluster) -> Option<Bytes> {
        self.hosts(cluster).into_iter().max().filter(|bytes| *bytes > Bytes::ZERO)
    }

    /// What a node keeps in its host's memory and the size of that memory, of the first node where it is too small.
    pub fn host_shortfall(&self, cluster: &Cluster) -> Option<(Bytes, Bytes)> {
        let memory = |group: &NodeGroup| group.host.as_ref()?.memory_bytes;
        if cluster.nodes.iter().all(|group| memory(group).is_none()) {
            return None;
        }
        let each = cluster.nodes.iter().flat_map(|group| std::iter::repeat_n(group, group.count as usize));
        let has = each.map(memory);
        self.hosts(cluster).into_iter().zip(has).find_map(|(needs, has)| {
            let has = has?;
            (needs > has).then_some((needs, has))
        })
    }

    /// By node, what its devices keep in the host's memory.
    fn hosts(&self, cluster: &Cluster) -> Vec<Bytes> {
        let per_rank = self.host_memory();
        let stage = self.program.mesh.stage();
        let bytes = |device: usize| per_rank.get(device / stage).map_or(0, |bytes| bytes.0);
        let mut first = 0;
        let mut all = Vec::new();
        for devices in cluster.devices_per_node() {
            all.push(Bytes((first..first + devices as usize).map(bytes).sum()));
            first += devices as usize;
        }
        all
    }

    /// Total work of a rank in a step, exposed or overlapped.
    fn rank_total(&self, rank: usize) -> Price {
        let ops = &self.program.ranks[rank].ops;
        let price = |op: &Op| match op {
            Op::Run { body, .. } => self.ranks[rank][*body].total,
            Op::Receive(message) => self.messages[message.peer][rank] + self.message_coding,
            Op::Send(_) => Price::ZERO,
        };
        ops.iter().map(price).sum::<Price>() + self.costs.step_overhead
    }

    /// Half-width of the interval that should contain a measured median: the intervals of all cells that the
    /// busiest rank uses, as if all had the same sign of error, and the difference between two runs of one
    /// plan, if it is known; these are independent, so they add in quadrature.
    fn spread(&self, busiest: Price, step: Seconds) -> Seconds {
        Seconds(busiest.half_width.hypot(self.costs.repeatability.unwrap_or(0.0) * step.0))
    }
}
