//! Tables that the page and the terminal share.

use crate::circumstances::{self, device_kind};
use crate::table::{
    Align::{Left, Right},
    Table,
};
use crate::words::{
    self, count, parameters, percent, plural, share, signed_percent, tokens_per_second, with_spread,
};
use autodist_spec::profile::{CopyCost, CopyKind};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{
    Bytes, BytesPerSecond, CostBreakdown, DeviceKind, MemoryBreakdown, ParallelStrategy, Plan, Profile,
    Provenance, RunRecord, Sample, Seconds, ValidatedRun, Validation,
};

pub(crate) fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// `[1.20 ms, 1.31 ms]`.
fn interval(sample: &Sample) -> String {
    format!("[{}, {}]", sample.low_s, sample.high_s)
}

pub(crate) fn strategy(strategy: &ParallelStrategy, micro_batches: u32) -> Table {
    let mut table = Table::new(&[("setting", Left), ("value", Left)]);
    let zero = match (strategy.zero_stage, strategy.shard) {
        (0, _) => "0: nothing sharded".to_owned(),
        (stage, _) => format!("{stage}, sharded over {}", plural(u64::from(strategy.shards()), "rank")),
    };
    let schedule = if strategy.pipeline > 1 {
        words::schedule(strategy.schedule).to_owned()
    } else {
        "none: there is one pipeline stage".to_owned()
    };
    for (name, value) in [
        ("data parallel (dp)", strategy.data.to_string()),
        ("tensor parallel (tp)", strategy.tensor.to_string()),
        ("pipeline parallel (pp)", strategy.pipeline.to_string()),
        ("context parallel (cp)", strategy.context.to_string()),
        ("expert parallel (ep)", strategy.expert.to_string()),
        ("ZeRO stage", zero),
        ("sequence parallel", yes(strategy.sequence_parallel)),
        ("schedule", schedule),
        ("virtual stages per pipeline rank", strategy.virtual_stages.to_string()),
        ("micro-batch", plural(u64::from(strategy.micro_batch), "sequence")),
        ("micro-batches per step and replica", micro_batches.to_string()),
        ("recompute", strategy.recompute.name().to_owned()),
        ("gradient bucket", strategy.bucket_bytes.to_string()),
    ] {
        table.row([name.to_owned(), value]);
    }
    table
}

/// Chunks that a table shows before the last one, if there are many.
const SHOWN: usize = 12;

pub(crate) fn stages(plan: &Plan) -> Table {
    let few = plan.stages.len() <= SHOWN + 2;
    let mixed = words::devices_of_rank(plan, 0).is_some();
    let mut columns = vec![
        ("chunk", Right),
        ("pipeline rank", Right),
        ("layers", Left),
        ("recompute", Left),
        ("peak memory", Right),
    ];
    columns.extend(mixed.then_some(("devices", Left)));
    let mut table = Table::new(&columns);
    for (chunk, stage) in plan.stages.iter().enumerate() {
        let rank = plan.strategy.rank_of(chunk);
        let memory =
            plan.estimate.stages.get(rank).map_or("unknown".to_owned(), |s| s.memory.total().to_string());
        if few || chunk < SHOWN || chunk + 1 == plan.stages.len() {
            let cells = [
                chunk.to_string(),
                rank.to_string(),
                words::layers(&plan.model, stage),
                words::recompute(&plan.model, stage),
                memory,
            ];
            table.row(cells.into_iter().chain(words::devices_of_rank(plan, rank)));
        } else if chunk == SHOWN {
            let like = if mixed { "more chunks" } else { "chunks like these" };
            let others = format!("{} {like}: see --json", plan.stages.len() - SHOWN - 1);
            let empty = vec![String::new(); 2 + usize::from(mixed)];
            table.row(["...".to_owned(), String::new(), others].into_iter().chain(empty));
        }
    }
    table
}

pub(crate) fn alternatives(plan: &Plan) -> Table {
    let mut table = Table::new(&[
        ("#", Right),
        ("strategy", Left),
        ("step time", Right),
        ("peak memory", Right),
        ("provenance", Left),
        ("against the first", Left),
    ]);
    let best = (label(&plan.strategy, &plan.stages), &plan.estimate, "chosen");
    let others = plan
        .alternatives
        .iter()
        .map(|other| (label(&other.strategy, &other.stages), &other.estimate, other.reason.as_str()));
    for (index, (label, estimate, reason)) in std::iter::once(best).chain(others).enumerate() {
        table.row([
            (index + 1).to_string(),
            label,
            with_spread(estimate.step_time_s, estimate.step_time_spread_s),
            estimate.peak_memory_bytes.to_string(),
            estimate.provenance.to_string(),
            reason.to_owned(),
        ]);
    }
    table.chosen = Some(0);
    table
}

/// The same for a decision: without the origin of the numbers.
pub(crate) fn runners_up(plan: &Plan) -> Table {
    let mut table = alternatives(plan);
    table.leave_out("provenance");
    table
}

pub(crate) fn rejected(plan: &Plan) -> Table {
    let mut table = Table::new(&[("strategies", Right), ("rule", Left), ("on one of them", Left)]);
    for rejection in &plan.rejected {
        table.row([count(rejection.count), rejection.rule.clone(), rejection.example.clone()]);
    }
    table
}

/// Parts of a step with their shares; the last row is the total.
pub(crate) fn cost(cost: &CostBreakdown) -> Table {
    let mut table = Table::new(&[("time goes to", Left), ("time", Right), ("share", Right), ("", Left)]);
    let total = cost.total();
    for (name, part) in cost.parts().into_iter().filter(|(_, part)| part.0 != 0.0) {
        let share = share(part.0, total.0);
        table.row([name.to_owned(), part.to_string(), percent(share), bar(share)]);
    }
    table.row(["total".to_owned(), total.to_string(), percent(share(total.0, total.0)), String::new()]);
    table
}

/// Parts of the peak with their shares; the last row is the total.
pub(crate) fn memory(memory: &MemoryBreakdown) -> Table {
    let mut table = Table::new(&[("memory holds", Left), ("size", Right), ("share", Right), ("", Left)]);
    let total = memory.total();
    for (name, part) in memory.parts().into_iter().filter(|(_, part)| *part > Bytes::ZERO) {
        let share = share(part.as_f64(), total.as_f64());
        table.row([name.to_owned(), part.to_string(), percent(share), bar(share)]);
    }
    let whole = share(total.as_f64(), total.as_f64());
    table.row(["total".to_owned(), total.to_string(), percent(whole), String::new()]);
    table
}

fn bar(share: f64) -> String {
    "#".repeat((share.clamp(0.0, 1.0) * 40.0).round() as usize)
}

/// Columns of the page's widest tables.
const RANK_NAMES: [&str; 8] =
    ["rank 0", "rank 1", "rank 2", "rank 3", "rank 4", "rank 5", "rank 6", "rank 7"];

/// A note on figures that the tables per rank leave out; `None` for most plans.
pub(crate) fn ranks_left_out(plan: &Plan) -> Option<String> {
    let (shown, all) = (RANK_NAMES.len(), plan.estimate.stages.len());
    (all > shown).then(|| format!("The first {shown} of {all} pipeline ranks"))
}

fn per_rank_columns(plan: &Plan, first: &'static str, whole: &'static str) -> Table {
    let mut columns = vec![(first, Left), (whole, Right)];
    columns.extend(RANK_NAMES.iter().take(plan.estimate.stages.len()).map(|name| (*name, Right)));
    Table::new(&columns)
}

/// Cost of the step and of each pipeline rank, side by side; the page shows at most eight ranks.
pub(crate) fn cost_per_rank(plan: &Plan) -> Table {
    let mut table = per_rank_columns(plan, "part", "busiest");
    let all: Vec<&CostBreakdown> = std::iter::once(&plan.estimate.cost)
        .chain(plan.estimate.stages.iter().map(|stage| &stage.cost).take(RANK_NAMES.len()))
        .collect();
    for (index, (name, _)) in plan.estimate.cost.parts().iter().enumerate() {
        let parts = all.iter().map(|cost| cost.parts()[index].1.to_string());
        table.row(std::iter::once((*name).to_owned()).chain(parts));
    }
    table.row(std::iter::once("total".to_owned()).chain(all.iter().map(|cost| cost.total().to_string())));
    table
}

/// Memory of the fullest device and of each pipeline rank, side by side.
pub(crate) fn memory_per_rank(plan: &Plan) -> Table {
    let mut table = per_rank_columns(plan, "part", "fullest");
    let all: Vec<&MemoryBreakdown> = std::iter::once(&plan.estimate.memory)
        .chain(plan.estimate.stages.iter().map(|stage| &stage.memory).take(RANK_NAMES.len()))
        .collect();
    for (index, (name, _)) in plan.estimate.memory.parts().iter().enumerate() {
        let parts = all.iter().map(|memory| memory.parts()[index].1.to_string());
        table.row(std::iter::once((*name).to_owned()).chain(parts));
    }
    table.row(std::iter::once("total".to_owned()).chain(all.iter().map(|memory| memory.total().to_string())));
    table
}

/// The fastest first, like the plans of the document after a validation.
fn measured_order(validation: &Validation) -> impl Iterator<Item = &ValidatedRun> {
    let mut runs: Vec<&ValidatedRun> = validation.runs.iter().collect();
    runs.sort_by(|a, b| a.regret.total_cmp(&b.regret));
    runs.into_iter()
}

pub(crate) fn validation(validation: &Validation) -> Table {
    let mut table = Table::new(&[
        ("#", Right),
        ("plan", Left),
        ("measured step", Right),
        ("speed", Right),
        ("at profile speed", Right),
        ("predicted step", Right),
        ("error", Right),
        ("regret", Right),
        ("verdict", Left),
    ]);
    for (index, run) in measured_order(validation).enumerate() {
        table.row([
            (index + 1).to_string(),
            run.label.clone(),
            run.measured.step_time_s.to_string(),
            format!("{:.2}", run.measured.machine_speed),
            with_spread(run.measured.adjusted_step_time_s, run.measured.adjusted_step_time_spread_s),
            with_spread(run.predicted.step_time_s, run.predicted.step_time_spread_s),
            signed_percent(run.adjusted_error),
            signed_percent(run.regret),
            run.verdict.map_or("", Verdict::name).to_owned(),
        ]);
    }
    table.chosen = (!table.rows.is_empty()).then_some(0);
    table
}

/// The same for a decision: times at profile speed, without the regret.
pub(crate) fn validated(validation: &Validation) -> Table {
    let mut table = self::validation(validation);
    for column in ["measured step", "speed", "regret"] {
        table.leave_out(column);
    }
    table.rename("at profile speed", "measured step");
    table
}

pub(crate) fn validation_memory(validation: &Validation) -> Table {
    let mut table = Table::new(&[
        ("#", Right),
        ("plan", Left),
        ("measured peak", Right),
        ("predicted peak", Right),
        ("error", Right),
        ("measured steps", Right),
        ("last loss", Right),
        ("prediction from", Left),
    ]);
    for (index, run) in measured_order(validation).enumerate() {
        table.row([
            (index + 1).to_string(),
            run.label.clone(),
            run.measured.peak_memory_bytes.to_string(),
            run.predicted.peak_memory_bytes.to_string(),
            signed_percent(run.peak_memory_error),
            run.measured.steps.to_string(),
            format!("{:.4}", run.measured.final_loss),
            run.predicted.provenance.to_string(),
        ]);
    }
    table
}

pub(crate) fn failed(validation: &Validation) -> Table {
    let mut table = Table::new(&[("plan", Left), ("why it failed", Left)]);
    let choice = validation.choice_failed().map(|failed| &failed.label);
    for run in &validation.failed {
        let whose = if Some(&run.label) == choice { " (the planner's choice)" } else { "" };
        table.row([format!("{}{whose}", run.label), run.reason.clone()]);
    }
    table
}

pub(crate) fn runs(runs: &[RunRecord]) -> Table {
    let mut table = Table::new(&[
        ("run", Left),
        ("steps", Right),
        ("median step", Right),
        ("95 % interval", Right),
        ("loss", Right),
        ("peak memory", Right),
        ("on", Left),
    ]);
    for run in runs {
        table.row([
            run.label.clone(),
            steps(run),
            run.step_time.median_s.to_string(),
            interval(&run.step_time),
            losses(run),
            run.peak_memory().to_string(),
            circumstances::devices(run),
        ]);
    }
    table
}

/// `22 in 5 rounds (2 warm-up)`.
fn steps(run: &RunRecord) -> String {
    let rounds = match run.rounds().count() {
        0 | 1 => String::new(),
        several => format!(" in {several} rounds"),
    };
    format!("{}{rounds} ({} warm-up)", run.steps.len(), run.warmup_steps)
}

/// Losses of the first round of the record: later rounds start again.
pub(crate) fn losses(run: &RunRecord) -> String {
    let rounds = run.rounds().count();
    let Some((first, last)) = run.rounds().next().and_then(|round| round.first().zip(round.last())) else {
        return "no step".to_owned();
    };
    let which = if rounds > 1 { format!(", first of {rounds} rounds") } else { String::new() };
    format!("{:.4} at step {} to {:.4} at step {}{which}", first.loss, first.step, last.loss, last.step)
}

/// One row per rank of a run.
pub(crate) fn ranks(run: &RunRecord) -> Table {
    let mut table = Table::new(&[("rank", Right), ("peak memory", Right), ("sent per step", Right)]);
    for rank in &run.ranks {
        table.row([
            rank.rank.to_string(),
            rank.peak_memory_bytes.to_string(),
            rank.bytes_sent_per_step.to_string(),
        ]);
    }
    table
}

/// The fitted lines, with the bandwidth that corresponds to the slope.
pub(crate) fn fits(profile: &Profile) -> Table {
    let mut table = Table::new(&[
        ("link", Left),
        ("group", Right),
        ("stride", Right),
        ("alpha", Right),
        ("beta (s per byte)", Right),
        ("1 / beta", Right),
        ("median residual", Right),
    ]);
    for fit in &profile.fits {
        let rate = if fit.beta_s_per_byte > 0.0 {
            BytesPerSecond(1.0 / fit.beta_s_per_byte).to_string()
        } else {
            "unbounded".to_owned()
        };
        table.row([
            fit.what.clone(),
            fit.group.to_string(),
            fit.stride.to_string(),
            fit.alpha_s.to_string(),
            format!("{:.3e}", fit.beta_s_per_byte),
            rate,
            percent(fit.residual),
        ]);
    }
    table
}

/// The measurements of the links: collectives first, then send/recv.
pub(crate) fn links(profile: &Profile) -> Table {
    let mut table = Table::new(&[
        ("what", Left),
        ("group", Right),
        ("stride", Right),
        ("size", Right),
        ("median", Right),
        ("95 % interval", Right),
        ("times", Right),
        ("provenance", Left),
    ]);
    let mut row = |what: &str, group: String, stride: u32, bytes: autodist_spec::Bytes, time: &Sample| {
        table.row([
            what.to_owned(),
            group,
            stride.to_string(),
            bytes.to_string(),
            time.median_s.to_string(),
            interval(time),
            time.count.to_string(),
            time.provenance.to_string(),
        ]);
    };
    for cell in &profile.collectives {
        row(cell.kind.name(), cell.group.to_string(), cell.stride, cell.bytes, &cell.time);
    }
    for cell in &profile.messages {
        row("send/recv", "2".to_owned(), cell.stride, cell.bytes, &cell.time);
    }
    table
}

pub(crate) fn segments(profile: &Profile) -> Table {
    let mut table = Table::new(&[
        ("segment", Left),
        ("pass", Left),
        ("tp", Right),
        ("sp", Left),
        ("micro-batch", Right),
        ("recompute", Left),
        ("median", Right),
        ("95 % interval", Right),
        ("times", Right),
        ("growth", Right),
        ("peak", Right),
        ("provenance", Left),
    ]);
    for cell in &profile.segments {
        table.row([
            cell.segment.name().to_owned(),
            cell.pass.name().to_owned(),
            cell.tensor.to_string(),
            yes(cell.sequence_parallel),
            cell.micro_batch.to_string(),
            cell.recompute.name().to_owned(),
            cell.time.median_s.to_string(),
            interval(&cell.time),
            cell.time.count.to_string(),
            signed_bytes(cell.growth_bytes),
            cell.peak_bytes.to_string(),
            cell.time.provenance.to_string(),
        ]);
    }
    table
}

fn signed_bytes(bytes: i64) -> String {
    let size = autodist_spec::Bytes(bytes.unsigned_abs());
    if bytes < 0 { format!("-{size}") } else { format!("+{size}") }
}

/// GEMMs `m x k` by `k x n`.
pub(crate) fn products(profile: &Profile) -> Table {
    let mut table = Table::new(&[("m", Right), ("n", Right), ("k", Right), ("time", Right), ("rate", Right)]);
    for product in &profile.hardware.products {
        table.row([
            product.m.to_string(),
            product.n.to_string(),
            product.k.to_string(),
            product.time.median_s.to_string(),
            product.flops_per_s.to_string(),
        ]);
    }
    table
}

/// On CPU cores the host is the device, so copies between the two are not shown.
pub(crate) fn shown_copies(profile: &Profile) -> impl Iterator<Item = &CopyCost> {
    let cpu = profile.environment.devices == DeviceKind::Cpu;
    profile.hardware.copies.iter().filter(move |copy| !cpu || copy.kind == CopyKind::Device)
}

pub(crate) fn copies(profile: &Profile) -> Table {
    let mut table = Table::new(&[("copy", Left), ("bytes", Right), ("time", Right), ("rate", Right)]);
    for copy in shown_copies(profile) {
        table.row([
            words::copy(copy.kind).to_owned(),
            copy.bytes.to_string(),
            copy.time.median_s.to_string(),
            copy_rate(copy).map_or("unknown".to_owned(), |rate| rate.to_string()),
        ]);
    }
    table
}

/// Bytes per second of a copy: within a device every byte is read and written, and counts twice.
pub(crate) fn copy_rate(copy: &CopyCost) -> Option<BytesPerSecond> {
    let moves = if copy.kind == CopyKind::Device { 2 } else { 1 };
    (copy.time.median_s > Seconds::ZERO).then(|| copy.bytes * moves / copy.time.median_s)
}

/// Costs in the profile other than segments and links.
pub(crate) fn other_costs(profile: &Profile) -> Table {
    let mut table = Table::new(&[("what", Left), ("value", Left), ("spread", Left), ("provenance", Left)]);
    let mut sample = |what: String, time: &Sample| {
        let spread = format!("{} over {}", interval(time), plural(u64::from(time.count), "timing"));
        table.row([what, time.median_s.to_string(), spread, time.provenance.to_string()]);
    };
    for cell in &profile.optimizer {
        sample(format!("optimizer update, {} elements", count(cell.elements)), &cell.update);
        sample(format!("gradient norm and zeroing, {} elements", count(cell.elements)), &cell.norm);
    }
    sample("hand-over to the communication stream and back".to_owned(), &profile.stream_handover);
    sample("step overhead: data, bookkeeping, barrier".to_owned(), &profile.step_overhead);
    if let Some(sharding) = &profile.sharding {
        sample("the engine's work around a transfer of a shard".to_owned(), sharding);
    }
    for cell in &profile.pipelining {
        let schedule = cell.schedule.name();
        sample(format!("the engine's work around a pass of a chunk, {schedule}"), &cell.time);
    }
    let slow = &profile.interference;
    let measured = Provenance::Measured.to_string();
    let (noise, unavoidable) = match profile.noise() {
        Some(_) => (measured.clone(), "no prediction can be more precise than this"),
        None => (Provenance::Assumed.to_string(), "it is not part of the intervals"),
    };
    for (what, value, spread, provenance) in [
        (
            "compute overlapped with communication",
            format!("{:.3} times as long", slow.compute_slowdown),
            "",
            slow.provenance.to_string(),
        ),
        (
            "communication overlapped with compute",
            format!("{:.3} times as long", slow.communication_slowdown),
            "",
            slow.provenance.to_string(),
        ),
        ("memory of a rank without a model", profile.baseline_bytes.to_string(), "", measured.clone()),
        ("staging of one communicator", profile.staging_bytes.to_string(), "", measured.clone()),
        ("two runs of one plan differ by", words::noise(profile), unavoidable, noise),
    ] {
        table.row([what.to_owned(), value, spread.to_owned(), provenance]);
    }
    table
}

/// The inputs of the plan and the provenance of its numbers.
pub(crate) fn provenance(plan: &Plan) -> Table {
    let (job, estimate) = (&plan.job, &plan.estimate);
    let mut table = Table::new(&[("what", Left), ("value", Left)]);
    let kinds = words::kinds_of_blocks(&plan.model);
    let mlp = kinds.unwrap_or_else(|| format!("MLP {}", plan.model.ffn));
    let model = format!(
        "{}: {} parameters, {}, hidden {}, {} heads ({} key/value), {mlp}, vocabulary {}",
        plan.model.name,
        parameters(plan.model.total_parameters()),
        plural(u64::from(plan.model.layers), "block"),
        plan.model.hidden,
        plan.model.heads,
        plan.model.kv_heads,
        count(u64::from(plan.model.vocab)),
    );
    let batch = format!(
        "{} of {} tokens = {} tokens a step",
        plural(u64::from(job.global_batch), "sequence"),
        count(u64::from(job.seq_len)),
        count(job.tokens())
    );
    let rate = job.learning_rate;
    let learning = format!(
        "{} after {} warm-up steps, down to {} of it at step {}",
        rate.peak, rate.warmup_steps, rate.final_fraction, rate.total_steps
    );
    for (what, value) in [
        ("step time", with_spread(estimate.step_time_s, estimate.step_time_spread_s)),
        ("provenance of the step time", format!("{} (its least trusted part)", estimate.provenance)),
        ("throughput", tokens_per_second(estimate.tokens_per_s)),
        ("lower bound of this plan", estimate.lower_bound_s.to_string()),
        ("profile", words::profile_source(plan)),
        ("model", model),
        ("cluster", format!("{}: {}", plan.cluster.name, words::devices(plan))),
        ("batch", batch),
        ("precision", words::precision(job.precision).to_owned()),
        ("optimizer", words::optimizer(job.optimizer)),
        ("learning rate", learning),
        (
            "gradient clip",
            if job.gradient_clip > 0.0 { job.gradient_clip.to_string() } else { "off".to_owned() },
        ),
        ("seed", job.seed.to_string()),
        ("memory kept free", percent(job.memory_reserve)),
        ("plan file", format!("schema version {}", plan.schema_version)),
    ] {
        table.row([what.to_owned(), value]);
    }
    for group in &plan.cluster.nodes {
        let device = &group.device;
        let source = device.source.as_deref().map(|s| format!(" ({s})")).unwrap_or_default();
        let peak = words::peak(device, job.precision, plan.cost_source.is_emulated());
        table.row([
            "device".to_owned(),
            format!("{}: {}{peak}; {}{source}", device.name, device.memory_bytes, device.provenance),
        ]);
    }
    table
}

/// Where and how the profile was measured.
pub(crate) fn environment(profile: &Profile) -> Table {
    let environment = &profile.environment;
    let mut table = Table::new(&[("what", Left), ("value", Left)]);
    let mut row = |what: &str, value: &str| {
        let value = if value.is_empty() { "unknown" } else { value };
        table.row([what.to_owned(), value.to_owned()]);
    };
    row("host", &environment.host);
    row("processor", &environment.processor);
    row("cores", &environment.cores.to_string());
    match circumstances::realtime(environment) {
        Some(true) => row("priority of the ranks", "real-time: other load cannot interrupt them"),
        Some(false) => row("priority of the ranks", "ordinary: all measurements include other load"),
        None => {}
    }
    row("devices", device_kind(environment.emulated));
    if let Some(engine) = circumstances::engine(environment) {
        row("engine", engine);
    }
    for (what, value) in circumstances::gpus(environment) {
        row(&what, &value);
    }
    row("precision", words::precision(profile.precision));
    if let Some(rate) = profile.fastest_gemm() {
        row(words::FASTEST_GEMM, &rate.to_string());
    }
    row("began", &words::date(environment.started_unix_s));
    row("autodist", &environment.autodist_version);
    table
}
