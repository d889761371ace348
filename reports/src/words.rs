//! Words and number formats of all views.

use autodist_spec::estimate;
use autodist_spec::profile::CopyKind;
use autodist_spec::run::Agreement;
use autodist_spec::strategy::some_recompute;
use autodist_spec::{
    BlockSpec, CatalogueReference, ClassRange, CostSource, Device, DeviceChoice, DeviceClasses, Estimate,
    Experts, LayerKind, ModelSpec, Objective, OperationKind, Optimizer, ParallelStrategy, PlacementReport,
    Plan, Precision, Profile, ProfileCorrection, Provenance, Recompute, Rejection, ScheduleKind,
    SearchReport, Seconds, Slowdown, Stage, StopReason, Stream, Validation, text,
};

/// Text from other sources, without characters that are invalid in XML or interpreted by a terminal.
pub(crate) fn clean(foreign: &str) -> String {
    foreign
        .chars()
        .map(|c| if text::is_hidden(c) || ('\u{fffe}'..='\u{ffff}').contains(&c) { '\u{fffd}' } else { c })
        .collect()
}

/// `412 ms ± 9.30 ms`.
pub(crate) fn with_spread(value: Seconds, spread: Seconds) -> String {
    format!("{value} ± {spread}")
}

/// Ends a view that does not show everything.
pub(crate) const MORE: &str = "--verbose shows all tables";

/// `73.1 %`.
pub(crate) fn percent(fraction: f64) -> String {
    format!("{:.1} %", fraction * 100.0)
}

/// `+3.1 %`; the sign shows whether the prediction was too high.
pub(crate) fn signed_percent(fraction: f64) -> String {
    let percent = format!("{:+.1} %", fraction * 100.0);
    // Zero has no sign.
    if percent.trim_start_matches(['+', '-']) == "0.0 %" { "0.0 %".to_owned() } else { percent }
}

/// The fraction `part / whole`; 0 for an empty whole.
pub(crate) fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// `12 345` with thin groups that survive copying: `12,345`.
pub(crate) fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `124 M`, `175 B`.
pub(crate) fn parameters(value: u64) -> String {
    let value = value as f64;
    let (scaled, unit) = match value {
        v if v >= 1e9 => (v / 1e9, " B"),
        v if v >= 1e6 => (v / 1e6, " M"),
        v if v >= 1e3 => (v / 1e3, " k"),
        v => (v, ""),
    };
    if scaled >= 100.0 || unit.is_empty() {
        format!("{scaled:.0}{unit}")
    } else {
        format!("{scaled:.1}{unit}")
    }
}

/// Tokens per second, with one digit after the point only if it is significant.
pub fn tokens_per_second(value: f64) -> String {
    if value >= 100.0 {
        format!("{} tokens/s", count(value.round() as u64))
    } else {
        format!("{value:.1} tokens/s")
    }
}

/// `1 plan`, `1,024 plans`.
pub fn plural(number: u64, word: &str) -> String {
    let ending = match word {
        _ if number == 1 => "",
        word if ["ch", "sh", "s"].iter().any(|end| word.ends_with(end)) => "es",
        _ => "s",
    };
    match word.strip_suffix("gy").filter(|_| number != 1) {
        Some(stem) => format!("{} {stem}gies", count(number)),
        None => format!("{} {word}{ending}", count(number)),
    }
}

/// The blocks of a model whose blocks differ, by kind: `3 with an MLP of 18,432; 58 with …`.
pub(crate) fn kinds_of_blocks(model: &ModelSpec) -> Option<String> {
    if model.is_uniform() {
        return None;
    }
    let kinds: Vec<String> = model
        .distinct_blocks()
        .into_iter()
        .map(|(layer, count)| {
            let block = model.block(layer);
            // Heads are told where they differ.
            let unlike = model.block_kinds().any(|other| other.heads != block.heads);
            let heads = if unlike { format!(", {} heads", block.heads) } else { String::new() };
            let window =
                block.window.map(|window| format!(", window of {} tokens", self::count(window.into())));
            format!("{count} with {}{heads}{}", inner(&block), window.unwrap_or_default())
        })
        .collect();
    Some(kinds.join("; "))
}

/// The MLP or the experts of a block.
fn inner(block: &BlockSpec) -> String {
    let ffn = count(block.ffn.into());
    match block.experts {
        None => format!("an MLP of {ffn}"),
        Some(Experts { count: experts, active, shared_ffn }) => {
            let shared = match shared_ffn {
                0 => String::new(),
                width => format!(" and shared experts of width {}", count(width.into())),
            };
            format!("{experts} experts of {ffn}, {active} active{shared}")
        }
    }
}

/// `embedding, blocks 1-4`; blocks count from 1, as the chain's first layer is the embedding.
pub(crate) fn layers(model: &ModelSpec, stage: &Stage) -> String {
    let mut words = Vec::new();
    let mut blocks: Option<(usize, usize)> = None;
    let mut head = false;
    for layer in stage.layers().take(model.chain_len()) {
        match model.kind(layer) {
            LayerKind::Embedding => words.push("embedding".to_owned()),
            LayerKind::Block => blocks = Some(blocks.map_or((layer, layer), |(first, _)| (first, layer))),
            LayerKind::Head => head = true,
        }
    }
    words.extend(blocks.map(|(first, last)| block_range(first, last)));
    if head {
        words.push("head".to_owned());
    }
    if words.is_empty() { "none".to_owned() } else { words.join(", ") }
}

fn block_range(first: usize, last: usize) -> String {
    if first == last { format!("block {first}") } else { format!("blocks {first}-{last}") }
}

/// `none`, `selective`, or per range of blocks where they differ.
pub(crate) fn recompute(model: &ModelSpec, stage: &Stage) -> String {
    let mut runs: Vec<(usize, usize, Recompute)> = Vec::new();
    for (layer, policy) in stage.layers().zip(&stage.recompute) {
        if layer == 0 || layer + 1 >= model.chain_len() {
            continue;
        }
        match runs.last_mut() {
            Some((_, last, same)) if same == policy => *last = layer,
            _ => runs.push((layer, layer, *policy)),
        }
    }
    match runs.as_slice() {
        [] => "none".to_owned(),
        [(_, _, policy)] => policy.name().to_owned(),
        several => several
            .iter()
            .map(|(first, last, policy)| format!("{} {}", block_range(*first, *last), policy.name()))
            .collect::<Vec<_>>()
            .join(", "),
    }
}

pub(crate) fn schedule(kind: ScheduleKind) -> &'static str {
    match kind {
        ScheduleKind::GPipe => "GPipe",
        ScheduleKind::OneFOneB => "1F1B",
        ScheduleKind::Interleaved => "interleaved 1F1B",
    }
}

/// The plan's strategy as a sentence without its full stop.
pub(crate) fn strategy(strategy: &ParallelStrategy, stages: &[Stage], micro_batches: u32) -> String {
    let mut axes = Vec::new();
    if strategy.pipeline > 1 {
        let mut text = format!("a pipeline of {} stages ({}", strategy.pipeline, schedule(strategy.schedule));
        if strategy.virtual_stages > 1 {
            text += &format!(", {} model chunks per rank", strategy.virtual_stages);
        }
        axes.push(text + ")");
    }
    if strategy.tensor > 1 {
        let with = if strategy.sequence_parallel { " with sequence parallelism" } else { "" };
        axes.push(format!("{}-way tensor parallelism{with}", strategy.tensor));
    }
    if strategy.context > 1 {
        axes.push(format!("{}-way context parallelism", strategy.context));
    }
    if strategy.expert > 1 {
        axes.push(format!("{}-way expert parallelism", strategy.expert));
    }
    if strategy.data > 1 {
        axes.push(format!("{}-way data parallelism{}", strategy.data, sharding(strategy)));
    } else if let (true, Some(context)) = (strategy.context > 1, axes.last_mut()) {
        // The ranks that split a sequence shard.
        context.push_str(&sharding(strategy));
    }
    let split = match axes.as_slice() {
        [] => "one device holds the whole model".to_owned(),
        [only] => only.clone(),
        [several @ .., last] => format!("{} and {last}", several.join(", ")),
    };
    let some = some_recompute(strategy, stages);
    let some = some.map_or(String::new(), |(some, blocks)| format!(" in {some} of {blocks} blocks"));
    let recompute = match strategy.recompute {
        Recompute::None => "nothing is recomputed".to_owned(),
        Recompute::Selective => format!("the attention core is recomputed{some}"),
        Recompute::Full if some.is_empty() => "whole blocks are recomputed".to_owned(),
        Recompute::Full => format!("everything is recomputed{some}"),
    };
    let batches = plural(u64::from(micro_batches), "micro-batch");
    let sequences = plural(u64::from(strategy.micro_batch), "sequence");
    format!("{split}; {batches} of {sequences} per step and replica; {recompute}")
}

fn sharding(strategy: &ParallelStrategy) -> String {
    let what = match strategy.zero_stage {
        0 => return String::new(),
        1 => "optimizer state",
        2 => "optimizer state and gradients",
        _ => "optimizer state, gradients and parameters",
    };
    let group = if strategy.shards() == strategy.replicas() {
        String::new()
    } else {
        format!(" over groups of {}", strategy.shards())
    };
    format!(" (ZeRO-{}: {what} sharded{group})", strategy.zero_stage)
}

/// The certificate of the search, which is for its first choice: left out if a measurement has `beaten` that.
pub(crate) fn search(plan: &Plan, beaten: bool, verbose: bool) -> String {
    let search = &plan.search;
    if !beaten {
        return if verbose { certificate(plan) } else { claim(search) };
    }
    let counted = format!("{} explored, {} simulated", count(search.explored), count(search.simulated));
    match &plan.measured {
        Some(measured) if !measured.first_choice.is_empty() => format!(
            "{counted}; the measurement changed the order: the planner's first choice was {}",
            clean(&measured.first_choice)
        ),
        _ => format!("{counted}; the measurement refutes what it chose"),
    }
}

/// How another number of devices compares, with its plan.
pub(crate) fn device_choice(choice: &DeviceChoice) -> String {
    let DeviceChoice { other_devices, other_plan, other_step_time_s, reason, .. } = choice;
    match (other_plan, other_step_time_s) {
        (Some(plan), Some(time)) => format!("{reason}; {time} on {other_devices}: {plan}"),
        _ => reason.clone(),
    }
}

/// What the search minimised, if that is not the step time.
pub(crate) fn objective(plan: &Plan) -> Option<String> {
    let lossy = plan.job.allow.is_lossy();
    match plan.job.objective {
        Objective::TimeToLoss => Some(format!(
            "time to a loss: step time x cost in steps{}",
            if lossy {
                ", because lossy codecs are allowed (`--objective step-time` for the step time alone)"
            } else {
                ""
            }
        )),
        Objective::StepTime if lossy => Some(
            "step time alone, without the cost of lossy codecs in steps; unverified ones are not chosen"
                .to_owned(),
        ),
        Objective::StepTime => None,
    }
}

/// How far the plan may be from the best of its space.
fn claim(search: &SearchReport) -> String {
    match search.stop_reason {
        StopReason::Given => "none: the strategy was given".to_owned(),
        // The choice may be a simpler plan than the fastest, or one that surely fits.
        StopReason::Optimal if search.gap > 5e-4 => {
            format!(
                "complete: under this cost model the fastest plan of the space is {} faster",
                percent(search.gap / (1.0 + search.gap))
            )
        }
        StopReason::Optimal => {
            format!("optimal in its space under this cost model, gap {}", percent(search.gap))
        }
        StopReason::TimeLimit => {
            format!("stopped by the time limit, at most {} from optimal", percent(search.gap))
        }
        StopReason::SimulationLimit => {
            format!("stopped by the simulation limit, at most {} from optimal", percent(search.gap))
        }
    }
}

pub(crate) fn certificate(plan: &Plan) -> String {
    let search = &plan.search;
    if search.stop_reason == StopReason::Given {
        return format!("{}; its lower bound is {}", claim(search), search.lower_bound_s);
    }
    // Of a plan with a cost in steps, the bound is not that of a step time.
    let unit = match (plan.job.objective, &plan.estimate.slowdown) {
        (Objective::TimeToLoss, Some(slowdown)) => {
            let merit = Seconds(plan.estimate.step_time_s.0 * slowdown.factor);
            format!(" for step time x cost in steps, which is {merit} for this plan")
        }
        _ => String::new(),
    };
    format!(
        "{}; {} explored, {} pruned, {} simulated; the lower bound of the space is {}{unit}",
        claim(search),
        plural(search.explored, "strategy"),
        count(search.pruned),
        count(search.simulated),
        search.lower_bound_s
    )
}

/// Why the fastest plan of the document is not its choice; empty if it is.
pub(crate) fn why_not_the_fastest(plan: &Plan) -> String {
    let faster = plan.alternatives.iter().zip(2..).filter(|(other, _)| {
        plan.measured.is_none() && other.estimate.step_time_s < plan.estimate.step_time_s
    });
    let fastest = faster
        .min_by(|(one, _), (other, _)| one.estimate.step_time_s.0.total_cmp(&other.estimate.step_time_s.0));
    let Some((other, number)) = fastest else { return String::new() };
    match other.reason.split_once("; ") {
        Some((_, why)) => format!("; plan {number}, the fastest below: {}", clean(why)),
        None => String::new(),
    }
}

/// The short form, for a headline.
pub(crate) fn stop_reason(reason: StopReason) -> &'static str {
    match reason {
        StopReason::Optimal => "optimal",
        StopReason::TimeLimit => "time limit",
        StopReason::SimulationLimit => "simulation limit",
        StopReason::Given => "given",
    }
}

/// `1.25 times`.
fn times(factor: f64) -> String {
    format!("{factor:.2} times")
}

/// The placement of ranks on nodes, and its quality.
pub(crate) fn placement(strategy: &ParallelStrategy, report: &PlacementReport) -> String {
    let placement = &strategy.communication.placement;
    let devices: Vec<String> = placement.iter().map(u32::to_string).collect();
    let which = match placement.is_empty() {
        true => "rank r on device r".to_owned(),
        false => format!("ranks in order on devices {}", devices.join(", ")),
    };
    let tried = plural(u64::from(report.tried), "placement");
    let optimal = match report.above_bound {
        None => format!("the best of {tried}, and no other loads the links less in any kind of traffic"),
        Some(above) => {
            format!("the best of {tried} found by swaps, at most {} above the least load", percent(above))
        }
    };
    let other = match placement.is_empty() {
        true => String::new(),
        false => format!(
            "; with rank r on device r the busiest links would be loaded {} as long",
            times(1.0 + report.in_order)
        ),
    };
    format!("{which}: {optimal}{other}")
}

/// `x 1.02 ± 0.05 (measured)`; a slowdown without measurement is unverified.
pub(crate) fn slowdown(slowdown: &Slowdown) -> String {
    match slowdown.provenance {
        Provenance::Measured => measured_steps(slowdown.factor, slowdown.noise),
        _ => format!("x {:.3} (prior, unverified)", slowdown.factor),
    }
}

/// The cost in steps that a probe measured. Fewer bytes do not save steps, so a factor below 1 is noise.
pub(crate) fn measured_steps(factor: f64, noise: Option<f64>) -> String {
    let known = noise.map_or_else(|| "noise not known".to_owned(), |noise| format!("± {}", percent(noise)));
    if factor <= 1.0 + noise.unwrap_or(0.0) {
        return format!("no cost seen ({known})");
    }
    let spread = noise.map(|noise| format!(" ± {noise:.3}")).unwrap_or_default();
    format!("x {factor:.3}{spread} (measured)")
}

/// `602 strategies: 422 duplicate of another plan, …`.
pub(crate) fn refused(rejected: &[Rejection]) -> String {
    let all = rejected.iter().map(|rejection| rejection.count).sum();
    let mut rules: Vec<&Rejection> = rejected.iter().collect();
    rules.sort_by_key(|rejection| std::cmp::Reverse(rejection.count));
    let rules: Vec<String> = rules
        .iter()
        .map(|rejection| format!("{} {}", count(rejection.count), clean(&rejection.rule)))
        .collect();
    format!("{} ({})", plural(all, "strategy"), rules.join(", "))
}

/// How good the simplest plan is, in a sentence.
pub(crate) fn plain_data_parallelism(agreement: &Agreement) -> Option<String> {
    let regret = agreement.data_parallel_regret?;
    Some(match percent(regret).as_str() {
        "0.0 %" => "plain data parallelism is as fast as any plan that ran".to_owned(),
        slower => format!("plain data parallelism ran {slower} slower than the fastest"),
    })
}

pub(crate) fn agreement(agreement: &Agreement) -> String {
    let plain = agreement
        .data_parallel_regret
        .map(|regret| format!(", of plain data parallelism {}", percent(regret)))
        .unwrap_or_default();
    format!(
        "p95 |error| {}, Kendall's tau {:.2}; the slowest plan takes {} more than the fastest; regret of a random plan \
         {}{plain}, of a constant rate of FLOPs {}",
        percent(agreement.p95_error),
        agreement.kendall_tau,
        percent(agreement.spread),
        percent(agreement.random_regret),
        percent(agreement.constant_flops_regret)
    )
}

/// The regret of the planner's choice; not defined if the choice did not run, or was the only run.
pub(crate) fn regret(validation: &Validation) -> String {
    let plans = plural(validation.runs.len() as u64, "plan");
    match validation.regret {
        None => "unknown: the planner's choice did not run".to_owned(),
        Some(_) if validation.runs.len() == 1 => "unknown: no other plan ran".to_owned(),
        Some(regret) if regret <= 0.0 => {
            format!("the planner's choice was the fastest of the {plans} that ran")
        }
        Some(regret) => format!(
            "the planner's choice ran {} slower than the fastest of the {plans} that ran",
            percent(regret)
        ),
    }
}

/// The kernels of a plan without a profile: where one was given, or attention is not fused; or `all`.
pub(crate) fn kernels(plan: &Plan, all: bool) -> Option<String> {
    let reference = plan.cost_source.catalogue()?;
    let kernels = reference.kernels.as_ref()?;
    let unfused = kernels.attention == "unfused";
    let eager = kernels.blocks == "eager";
    if !(all || unfused || eager || kernels.attention_given || kernels.loss_given) {
        return None;
    }
    let of = |given, flag: &str| {
        if given {
            "as given".to_owned()
        } else {
            format!("assumed: {}'s default, {flag} changes it", clean(&reference.trainer))
        }
    };
    let attention = match kernels.attention.as_str() {
        "unfused" => "unfused attention",
        "cudnn" => "cuDNN's fused attention",
        _ => "flash attention",
    };
    let mut text = format!("{attention} ({})", of(kernels.attention_given, "--attention"));
    if all || kernels.loss_given {
        let loss = if kernels.loss == "fused" { "a fused loss" } else { "a loss of whole logits" };
        text += &format!("; {loss} ({})", of(kernels.loss_given, "--loss"));
    }
    match kernels.blocks.as_str() {
        "eager" => text += "; eager blocks, each operation a kernel of its own",
        "fused" => text += "; fused norms and activations",
        _ => {}
    }
    Some(text)
}

/// The source of a plan's profile.
pub(crate) fn profile_source(plan: &Plan) -> String {
    match &plan.cost_source {
        CostSource::Catalogue(CatalogueReference { trainer, calibration, .. }) => format!(
            "none: priced for {} from published figures of devices and links, and efficiencies fitted to {}",
            clean(trainer),
            clean(calibration)
        ),
        CostSource::Profile(profile) | CostSource::Mixed(profile) => {
            let beyond = if matches!(plan.cost_source, CostSource::Mixed(_)) {
                ", extrapolated to this cluster"
            } else {
                ""
            };
            let corrected = profile.correction.as_ref().map_or(String::new(), |one| {
                format!(", corrected by {}: {:.2} times its times", clean(&one.fitted_to), one.factor)
            });
            format!(
                "{}, fingerprint {}{beyond}{corrected}",
                clean(&profile.path),
                clean(&profile.fingerprint)
            )
        }
    }
}

/// The basis of the error bar of plans with a corrected profile.
pub(crate) fn corrected_bar(correction: &ProfileCorrection) -> String {
    let runs = if correction.runs == 1 { "one run".to_owned() } else { format!("{} runs", correction.runs) };
    format!("nine of ten runs like the {runs} of the calibration are expected within this error")
}

/// `2 devices on 1 node (cpu)`.
pub(crate) fn devices(plan: &Plan) -> String {
    let cluster = &plan.cluster;
    let mut names: Vec<String> = cluster.nodes.iter().map(|group| clean(&group.device.name)).collect();
    names.dedup();
    format!(
        "{} on {} ({})",
        plural(u64::from(cluster.device_count()), "device"),
        plural(u64::from(cluster.node_count()), "node"),
        names.join(", ")
    )
}

/// The upper end of the peak's interval, and what it means; `None` if hardly any device would be too small.
pub(crate) fn memory_risk(estimate: &Estimate) -> Option<String> {
    let (spread, risk) = (estimate.peak_memory_spread_bytes?, estimate.memory_risk?);
    if risk < 0.01 {
        return None;
    }
    let most = estimate.peak_memory_bytes + spread;
    Some(format!("nineteen of twenty runs need less than {most}; {}", estimate::memory_risk(risk)))
}

/// What plans need of their nodes' hosts, and whether these have it; `None` if they keep nothing there.
pub(crate) fn host_memory(plan: &Plan) -> Option<String> {
    let needs = plan.estimate.host_memory_bytes?;
    let sizes = plan.cluster.nodes.iter().map(|group| group.host.as_ref()?.memory_bytes);
    let sizes: Option<Vec<autodist_spec::Bytes>> = sizes.collect();
    let of = match sizes.and_then(|sizes| sizes.into_iter().min()) {
        Some(has) if needs > has => format!("of {has}: NOT enough"),
        Some(has) => format!("of {has}"),
        None => "; how much it has is not known: `host.memory_bytes` of a cluster file says it".to_owned(),
    };
    let sign = if of.starts_with(';') { "" } else { " " };
    Some(format!("keeps {needs} in the memory of each node's host{sign}{of}"))
}

/// `80.0 GiB per device`; of several kinds of devices, the smallest of the pipeline rank with the peak.
pub(crate) fn device_memory(plan: &Plan) -> String {
    let Some(smallest) = fullest_device(plan) else { return String::new() };
    let kinds = plan.cluster.node_kinds();
    let alike = kinds.iter().all(|kind| kind.group.device.memory_bytes == smallest.memory_bytes);
    let whose = if alike { "per device".to_owned() } else { format!("({})", clean(&smallest.name)) };
    format!("{} {whose}", smallest.memory_bytes)
}

/// The device with the least memory on the pipeline rank with the peak.
pub(crate) fn fullest_device(plan: &Plan) -> Option<Device> {
    let kinds = plan.cluster.node_kinds();
    let peak = |rank: &usize| plan.estimate.stages[*rank].memory.total();
    let fullest = (0..plan.estimate.stages.len()).rev().max_by_key(peak).unwrap_or(0);
    let own = kinds.get(classes_of_rank(plan, fullest).iter()).unwrap_or_default();
    own.iter().map(|kind| &kind.group.device).min_by_key(|device| device.memory_bytes).cloned()
}

fn classes_of_rank(plan: &Plan, pipeline_rank: usize) -> ClassRange {
    DeviceClasses::of(&plan.cluster).of_stage(&plan.strategy, pipeline_rank)
}

/// The devices of a pipeline rank; `None` if all devices of the cluster are alike.
pub(crate) fn devices_of_rank(plan: &Plan, pipeline_rank: usize) -> Option<String> {
    let kinds = plan.cluster.node_kinds();
    if kinds.len() < 2 {
        return None;
    }
    let mut names: Vec<_> = kinds[classes_of_rank(plan, pipeline_rank).iter()]
        .iter()
        .map(|kind| clean(&kind.group.device.name))
        .collect();
    names.dedup();
    Some(names.join(", "))
}

pub(crate) fn optimizer(optimizer: Optimizer) -> String {
    match optimizer {
        Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
            format!("AdamW (betas {beta1} and {beta2}, epsilon {epsilon:e}, weight decay {weight_decay})")
        }
        Optimizer::Sgd { momentum, weight_decay } => {
            format!("SGD (momentum {momentum}, weight decay {weight_decay})")
        }
    }
}

/// A note on the tensors that stay in fp32, which the name does not contain.
pub(crate) fn precision(precision: Precision) -> &'static str {
    match precision {
        Precision::Fp32 => "fp32",
        Precision::Tf32 => "tf32 in GEMMs, fp32 in everything else",
        Precision::Fp16 => "fp16; master weights and optimizer state in fp32",
        Precision::Bf16 => "bf16; master weights, gradients and optimizer state in fp32",
        Precision::Fp8 => {
            "FP8 in GEMMs of linear layers, bf16 elsewhere; master weights and optimizer state in fp32"
        }
    }
}

/// The difference between two runs of one plan.
pub(crate) fn noise(profile: &Profile) -> String {
    profile.noise().map_or_else(|| "not known (one round)".to_owned(), percent)
}

/// The same as a sentence.
pub(crate) fn repeats(profile: &Profile) -> String {
    match profile.noise() {
        Some(noise) => format!("two runs of one plan differ by {}", percent(noise)),
        None => "how far two runs of one plan differ is not known, because there was one round".to_owned(),
    }
}

/// Caption of the GEMMs of a profile.
pub(crate) const PRODUCTS: &str = "each m x k by k x n, alone on the device";

/// Caption of the copies of a profile.
pub(crate) const COPIES: &str =
    "within the device every byte is read and written, so that its rate is 2 x bytes / time";

/// Explanation of the fastest GEMM of a profile.
pub(crate) const FASTEST_GEMM: &str = "fastest GEMM of this model's shapes, one rank; no peak of the device";

/// `, peak 989 TFLOP/s (bf16, published)`; for an emulated device its configured FLOP/s; empty if unknown.
pub(crate) fn peak(device: &Device, precision: Precision, emulated: bool) -> String {
    match (device.published_peak(precision.name()), device.peak_flops_per_s) {
        (_, Some(rate)) if emulated => format!(", emulated at {rate}"),
        (Some(peak), _) => format!(", peak {peak}"),
        (None, Some(rate)) if device.measured_rate().is_none() => format!(", peak {rate} (given)"),
        _ => String::new(),
    }
}

pub(crate) fn copy(kind: CopyKind) -> &'static str {
    match kind {
        CopyKind::Device => "within the device",
        CopyKind::HostToDevice => "host to device",
        CopyKind::DeviceToHost => "device to host",
    }
}

pub(crate) fn operation(kind: OperationKind) -> &'static str {
    match kind {
        OperationKind::Forward => "forward",
        OperationKind::Backward => "backward",
        OperationKind::Receive => "receive",
        OperationKind::Send => "send",
        OperationKind::Reduce => "reduce",
        OperationKind::Gather => "gather",
        OperationKind::Optimizer => "optimizer",
    }
}

pub(crate) fn stream(stream: Stream) -> &'static str {
    match stream {
        Stream::Compute => "compute",
        Stream::Communication => "communication",
        Stream::Host => "host",
    }
}

/// Day and time in UTC, from seconds since 1970 (days to civil date after Howard Hinnant).
pub(crate) fn date(unix_s: u64) -> String {
    if unix_s == 0 {
        return "unknown".to_owned();
    }
    let (days, seconds) = (unix_s / 86_400, unix_s % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

/// `LoRA rank 16 on q, v: 6.8 M of 8.0 B parameters`.
pub(crate) fn trained(plan: &Plan) -> String {
    let (trainable, model) = (&plan.job.trainable, &plan.model);
    let all = model.total_parameters();
    let count = parameters(trainable.trained_parameters(model));
    format!("{}: {count} of {} parameters", trainable.label(), parameters(all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_grouped_and_dates_are_civil() {
        assert_eq!([count(7), count(1234), count(1_234_567)], ["7", "1,234", "1,234,567"]);
        assert_eq!(date(1_709_210_096), "2024-02-29 12:34 UTC");
    }

    #[test]
    fn layers_and_recomputation_are_told_in_ranges() {
        let model = autodist_spec::catalog::model("gpt3-175b").unwrap();
        let policy = |layer: u32| if (1..=3).contains(&layer) { Recompute::Full } else { Recompute::None };
        let stage = Stage { first_layer: 0, end_layer: 6, recompute: (0..6).map(policy).collect() };
        assert_eq!(layers(&model, &stage), "embedding, blocks 1-5");
        assert_eq!(recompute(&model, &stage), "blocks 1-3 full, blocks 4-5 none");
        let last = Stage { first_layer: 96, end_layer: 98, recompute: vec![Recompute::None; 2] };
        assert_eq!(layers(&model, &last), "block 96, head");
        assert_eq!(recompute(&model, &last), "none");
    }

    #[test]
    fn a_strategy_reads_as_a_sentence() {
        let mut given = ParallelStrategy::data_parallel(4, 2);
        given.pipeline = 2;
        given.zero_stage = 1;
        given.shard = 2;
        assert_eq!(
            strategy(&given, &[], 4),
            "a pipeline of 2 stages (1F1B) and 4-way data parallelism (ZeRO-1: optimizer state sharded over groups \
             of 2); 4 micro-batches of 2 sequences per step and replica; nothing is recomputed"
        );
    }
}
