//! Plans for tests: only the fields that exporters read are meaningful.

use autodist_spec::{
    Bytes, Cluster, CostBreakdown, CostSource, DeviceKind, Engine, Estimate, Job, LayerKind, MemoryBreakdown,
    ModelSpec, ParallelStrategy, Plan, ProfileReference, Provenance, Recompute, SCHEMA_VERSION, SearchReport,
    Seconds, Stage, StopReason,
};

/// Stages with the given numbers of blocks; `recompute` for every block.
pub fn stages(model: &ModelSpec, blocks: &[u32], recompute: &[Recompute]) -> Vec<Stage> {
    let mut next = 0;
    let mut before = 0;
    blocks
        .iter()
        .enumerate()
        .map(|(index, count)| {
            let first_layer = next;
            before += count;
            next = if index + 1 == blocks.len() { model.layers + 2 } else { before + 1 };
            let of = |layer: u32| match model.kind(layer as usize) {
                LayerKind::Block => recompute[layer as usize - 1],
                _ => Recompute::None,
            };
            Stage { first_layer, end_layer: next, recompute: (first_layer..next).map(of).collect() }
        })
        .collect()
}

/// Micro-batches of two sequences with the given degrees.
pub fn split(data: u32, tensor: u32, pipeline: u32) -> ParallelStrategy {
    ParallelStrategy { tensor, pipeline, ..ParallelStrategy::data_parallel(data, 2) }
}

/// The same strategy with its state sharded over all data-parallel ranks.
pub fn zero(stage: u8, strategy: ParallelStrategy) -> ParallelStrategy {
    ParallelStrategy { zero_stage: stage, shard: strategy.data, ..strategy }
}

pub fn plan(
    model: ModelSpec,
    cluster: &str,
    job: Job,
    strategy: ParallelStrategy,
    stages: Vec<Stage>,
) -> Plan {
    let estimate = Estimate {
        peak_memory_spread_bytes: None,
        memory_risk: None,
        memory_limit_bytes: None,
        host_memory_bytes: None,
        step_time_s: Seconds(1.0),
        step_time_spread_s: Seconds(0.1),
        caution_s: Seconds::ZERO,
        tokens_per_s: 1.0,
        mfu: None,
        peak_memory_bytes: Bytes(1),
        cost: CostBreakdown { compute_s: Seconds(1.0), ..CostBreakdown::default() },
        memory: MemoryBreakdown { weights_bytes: Bytes(1), ..MemoryBreakdown::default() },
        stages: Vec::new(),
        lower_bound_s: Seconds(1.0),
        provenance: Provenance::Assumed,
        slowdown: None,
        time_to_loss_s: None,
    };
    let search = SearchReport {
        explored: 1,
        pruned: 0,
        simulated: 1,
        lower_bound_s: Seconds(1.0),
        gap: 0.0,
        stop_reason: StopReason::Given,
    };
    let cost_source = CostSource::Profile(ProfileReference {
        fingerprint: String::new(),
        path: String::new(),
        reference_s: Seconds(0.0),
        devices: DeviceKind::Cuda,
        emulated: false,
        correction: None,
        engine: Engine::Native,
    });
    Plan {
        training: None,
        fits: true,
        assumptions: Vec::new(),
        schema_version: SCHEMA_VERSION,
        micro_batches: strategy.micro_batches(job.global_batch),
        model,
        cluster: Cluster::from_short_form(cluster).unwrap(),
        job,
        strategy,
        stages,
        estimate,
        understood: Vec::new(),
        search,
        alternatives: Vec::new(),
        rejected: Vec::new(),
        priced: Vec::new(),
        collectives: Vec::new(),
        placement: None,
        codecs: Vec::new(),
        device_choice: None,
        cost_source,
        measured: None,
        given: None,
    }
}
