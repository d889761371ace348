//! The plan document of a layout that was priced from published figures, for `autodist export`.

use super::estimate_unmeasured::{Asked, utilisation};
use crate::cli::{RecomputeArg, StrategyArgs};
use crate::failure::Failure;
use crate::input;
use autodist_analytic::{StepEstimate, TrainingRun, even_blocks};
use autodist_hardware::Dtype;
use autodist_program::{rules, stages};
use autodist_spec::{
    Bytes, Check, Cluster, CostBreakdown, DeviceKind, Engine, InputError, MemoryBreakdown, ParallelStrategy,
    Plan, ProfileReference, Recompute, SearchReport, Seconds, StopReason,
};

/// # Errors
/// The layout cannot be expressed as a plan, or the executor does not support it. The caller must ensure that
/// it fits.
pub fn of(
    run: &TrainingRun,
    estimate: &StepEstimate,
    asked: &Asked,
    cluster: &Cluster,
) -> Result<Plan, Failure> {
    let refuse = |field: &str, value: String, problem: &str, hint: &str| -> Failure {
        InputError::new(field, value, problem).hint(hint).into()
    };
    let job = &asked.job;
    let model = asked.model.as_ref().ok_or_else(|| {
        refuse(
            "--output",
            String::new(),
            "is not supported for mixture-of-experts models: plan documents describe dense models only",
            "remove `--output`",
        )
    })?;
    if run.dtype == Dtype::Fp8 {
        return Err(refuse(
            "--fp8",
            String::new(),
            "cannot be written to a plan document: plans support fp32, tf32 and bf16",
            "remove `--fp8` or `--output`",
        ));
    }
    let strategy = strategy(run, &asked.flags)?;
    let ends = ends(model.layers, strategy.chunks()).ok_or_else(|| {
        let problem = format!("must divide the {} blocks into equal chunks", model.layers);
        refuse(
            "--pp x --vpp",
            strategy.chunks().to_string(),
            &problem,
            "choose `--pp` and `--vpp` so that their product divides the number of blocks",
        )
    })?;
    let stages = stages::from_ends(model, &ends, strategy.recompute);
    rules::check(model, job, cluster.device_count(), &strategy, &stages).map_err(|broken| {
        let hint = "choose other flags, or remove `--output`";
        refuse("layout", strategy.label(), &format!("cannot be written as a plan: {}", broken.reason), hint)
    })?;
    let step = estimate.step;
    let cost = cost(estimate);
    let memory = memory(estimate);
    let bound = cost.compute_s + cost.recompute_s;
    let plan = Plan {
        schema_version: autodist_spec::SCHEMA_VERSION,
        model: model.clone(),
        cluster: cluster.clone(),
        job: job.clone(),
        micro_batches: strategy.micro_batches(job.global_batch),
        stages,
        strategy,
        estimate: autodist_spec::Estimate {
            step_time_s: step,
            step_time_spread_s: step * estimate.error_bar,
            caution_s: Seconds::ZERO,
            tokens_per_s: f64::from(run.global_batch) * f64::from(run.seq_len) / step.0,
            mfu: utilisation(run, estimate).mfu(),
            peak_memory_bytes: memory.total(),
            lower_bound_s: bound,
            cost,
            memory,
            // Only the fullest and the busiest device were priced.
            stages: Vec::new(),
            provenance: estimate.provenance,
            slowdown: None,
            time_to_loss_s: None,
        },
        search: SearchReport {
            explored: 1,
            pruned: 0,
            simulated: 0,
            lower_bound_s: bound,
            gap: step / bound - 1.0,
            stop_reason: StopReason::Given,
        },
        alternatives: Vec::new(),
        rejected: Vec::new(),
        collectives: Vec::new(),
        placement: None,
        codecs: Vec::new(),
        profile: ProfileReference {
            fingerprint: String::new(),
            path: String::new(),
            reference_s: Seconds(0.0),
            devices: DeviceKind::Cuda,
            engine: Engine::default(),
            emulated: false,
            catalogue: None,
        },
        measured: None,
    };
    // Ensures that the file can be read again.
    plan.check().map_err(|error| error.hint("remove `--output`"))?;
    Ok(plan)
}

/// The strategy of the layout's flags; schedule and buckets, which do not affect this estimate, as given.
fn strategy(run: &TrainingRun, given: &StrategyArgs) -> Result<ParallelStrategy, Failure> {
    let layout = &run.layout;
    // With one rank there is nothing to shard.
    let zero_stage = if layout.data > 1 { layout.zero_stage } else { 0 };
    let flags = StrategyArgs {
        tp: Some(layout.tensor),
        pp: Some(layout.pipeline),
        dp: Some(layout.data),
        cp: Some(layout.context),
        ep: Some(layout.expert),
        vpp: Some(layout.virtual_stages),
        zero: Some(zero_stage),
        shard: Some(if zero_stage > 0 { layout.shard.min(layout.data) } else { 1 }),
        sp: layout.sequence_parallel,
        recompute: Some(match run.recompute {
            Recompute::None => RecomputeArg::None,
            Recompute::Selective => RecomputeArg::Selective,
            Recompute::Full => RecomputeArg::Full,
        }),
        micro_batch: Some(run.micro_batch),
        ..given.clone()
    };
    input::strategy(&flags, layout.devices())
}

/// The end of each chunk in the chain, with equal numbers of blocks, or one less in the first and last chunk.
fn ends(blocks: u32, chunks: u32) -> Option<Vec<usize>> {
    let (each, missing_at_ends) = even_blocks(blocks, chunks)?;
    let inner = (1..chunks).map(|chunk| (1 + chunk * each - missing_at_ends) as usize);
    Some([0].into_iter().chain(inner).chain([blocks as usize + 2]).collect())
}

fn cost(estimate: &StepEstimate) -> CostBreakdown {
    let parts = &estimate.breakdown;
    CostBreakdown {
        compute_s: Seconds(parts.linear_s + parts.attention_s + parts.elementwise_s + parts.head_s),
        recompute_s: Seconds(parts.recompute_s),
        tensor_communication_s: Seconds(parts.tensor_s + parts.context_s + parts.expert_s),
        data_communication_s: Seconds(parts.data_s + parts.gather_s),
        pipeline_communication_s: Seconds(parts.message_s),
        bubble_s: Seconds(parts.bubble_s),
        interference_s: Seconds(0.0),
        optimizer_s: Seconds(parts.optimizer_s),
        overhead_s: Seconds(parts.host_s + parts.jitter_s + parts.other_s),
    }
}

fn memory(estimate: &StepEstimate) -> MemoryBreakdown {
    let parts = &estimate.memory;
    let bytes = |value: f64| Bytes(value as u64);
    MemoryBreakdown {
        weights_bytes: bytes(parts.weights),
        gradients_bytes: bytes(parts.gradients),
        optimizer_state_bytes: bytes(parts.optimizer),
        activations_bytes: bytes(parts.activations),
        communication_buffers_bytes: bytes(parts.buffers),
        temporary_bytes: bytes(parts.logits),
        reserve_bytes: bytes(parts.fragmentation + parts.context),
    }
}

#[cfg(test)]
mod tests {
    use super::ends;

    #[test]
    fn chunks_hold_equally_many_blocks_or_one_less_at_both_ends() {
        assert_eq!(ends(4, 1), Some(vec![0, 6]));
        assert_eq!(ends(4, 2), Some(vec![0, 3, 6]));
        // 6 blocks in 4 chunks: 1, 2, 2, 1, plus the embedding at the start and the head at the end.
        assert_eq!(ends(6, 4), Some(vec![0, 2, 4, 6, 8]));
        assert_eq!(ends(5, 3), None);
    }
}
