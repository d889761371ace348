//! Tables for spreadsheets and scripts: comma-separated, one header line, the unit in the column's name.

use crate::{tables, words};
use autodist_spec::run::Verdict;
use autodist_spec::{
    Alternative, Bytes, Estimate, ParallelStrategy, Plan, Profile, Sample, Seconds, Stage, TimelineEvent,
    Utilisation, Validation, printable,
};
use std::borrow::Cow;

/// Rows of text cells under a header.
struct Sheet(csv::Writer<Vec<u8>>);

impl Sheet {
    fn new<S: AsRef<str>>(header: &[S]) -> Self {
        let mut sheet = Self(csv::WriterBuilder::new().flexible(true).from_writer(Vec::new()));
        sheet.row(header);
        sheet
    }

    fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        let cells = cells.iter().map(|cell| inert(cell.as_ref()));
        self.0
            .write_record(cells.map(|cell| cell.as_bytes().to_vec()))
            .expect("writing to memory cannot fail");
    }

    fn finish(self) -> String {
        let bytes = self.0.into_inner().expect("writing to memory cannot fail");
        String::from_utf8(bytes).expect("every cell is text")
    }
}

/// A cell that a spreadsheet shows as text: if it could be a formula it gets an apostrophe, as in
/// spreadsheets themselves; control characters, which may hide one, are shown. Numbers are unchanged.
fn inert(cell: &str) -> Cow<'_, str> {
    let is_number = cell.parse::<f64>().is_ok_and(f64::is_finite);
    let shown = printable(cell);
    let begins = ['=', '+', '-', '@', '＝', '＋', '－', '＠'];
    if !is_number && (cell.starts_with(['\t', '\r', '\n']) || cell.trim_start().starts_with(begins)) {
        Cow::Owned(format!("'{shown}"))
    } else if shown == cell {
        Cow::Borrowed(cell)
    } else {
        Cow::Owned(shown)
    }
}

fn seconds(value: Seconds) -> String {
    value.0.to_string()
}

fn bytes(value: Bytes) -> String {
    value.0.to_string()
}

/// `optimizer state` as a column in seconds or bytes: `optimizer_state_bytes`.
fn column(prefix: &str, part: &str, unit: &str) -> String {
    format!("{prefix}{}_{unit}", part.replace(' ', "_"))
}

/// The chosen plan and its alternatives, best first.
pub fn csv_plans(plan: &Plan) -> String {
    let mut header: Vec<String> = [
        "rank",
        "label",
        "data",
        "tensor",
        "pipeline",
        "context",
        "expert",
        "zero_stage",
        "shard",
        "micro_batch",
        "virtual_stages",
        "sequence_parallel",
        "recompute",
        "schedule",
        "bucket_bytes",
        "stage_layers",
        "step_time_s",
        "step_time_spread_s",
        "tokens_per_s",
        "flops_per_s_per_device",
        "mfu",
        "peak_memory_bytes",
        "lower_bound_s",
        "provenance",
    ]
    .map(str::to_owned)
    .to_vec();
    // Columns are named like the fields of the plan document.
    let field = |part: &str| if part == "contention" { "interference".to_owned() } else { part.to_owned() };
    header.extend(plan.estimate.cost.parts().iter().map(|(part, _)| column("", &field(part), "s")));
    header.extend(plan.estimate.memory.parts().iter().map(|(part, _)| column("memory_", part, "bytes")));
    header.push("reason".to_owned());
    let mut sheet = Sheet::new(&header);
    let rate = |estimate: &Estimate| plan.utilisation(estimate);
    let own = &plan.estimate;
    sheet.row(&plan_row(1, &plan.strategy, &plan.stages, own, rate(own), "chosen"));
    for (index, Alternative { strategy, stages, estimate, reason }) in plan.alternatives.iter().enumerate() {
        sheet.row(&plan_row(index + 2, strategy, stages, estimate, rate(estimate), reason));
    }
    sheet.finish()
}

fn plan_row(
    rank: usize,
    strategy: &ParallelStrategy,
    stages: &[Stage],
    estimate: &Estimate,
    utilisation: Option<Utilisation>,
    reason: &str,
) -> Vec<String> {
    let layers: Vec<String> = stages.iter().map(|s| format!("{}..{}", s.first_layer, s.end_layer)).collect();
    let mut row = vec![
        rank.to_string(),
        strategy.label(),
        strategy.data.to_string(),
        strategy.tensor.to_string(),
        strategy.pipeline.to_string(),
        strategy.context.to_string(),
        strategy.expert.to_string(),
        strategy.zero_stage.to_string(),
        strategy.shard.to_string(),
        strategy.micro_batch.to_string(),
        strategy.virtual_stages.to_string(),
        strategy.sequence_parallel.to_string(),
        strategy.recompute.name().to_owned(),
        strategy.schedule.name().to_owned(),
        bytes(strategy.bucket_bytes),
        layers.join(" "),
        seconds(estimate.step_time_s),
        seconds(estimate.step_time_spread_s),
        estimate.tokens_per_s.to_string(),
        utilisation.map(|all| all.achieved.0.to_string()).unwrap_or_default(),
        utilisation.and_then(|all| all.mfu()).map(|mfu| mfu.to_string()).unwrap_or_default(),
        bytes(estimate.peak_memory_bytes),
        seconds(estimate.lower_bound_s),
        estimate.provenance.to_string(),
    ];
    row.extend(estimate.cost.parts().iter().map(|(_, part)| seconds(*part)));
    row.extend(estimate.memory.parts().iter().map(|(_, part)| bytes(*part)));
    row.push(reason.to_owned());
    row
}

/// One row per plan that ran; plans that could not run have their reason and no numbers.
pub fn csv_validation(validation: &Validation) -> String {
    let mut sheet = Sheet::new(&[
        "label",
        "measured_step_time_s",
        "measured_step_time_spread_s",
        "machine_speed",
        "adjusted_step_time_s",
        "predicted_step_time_s",
        "predicted_step_time_spread_s",
        "step_time_error",
        "adjusted_error",
        "measured_peak_memory_bytes",
        "predicted_peak_memory_bytes",
        "peak_memory_error",
        "regret",
        "verdict",
        "bar_s",
        "final_loss",
        "steps",
        "provenance",
        "failure",
    ]);
    for run in &validation.runs {
        sheet.row(&[
            run.label.clone(),
            seconds(run.measured.step_time_s),
            seconds(run.measured.step_time_spread_s),
            run.measured.machine_speed.to_string(),
            seconds(run.measured.adjusted_step_time_s),
            seconds(run.predicted.step_time_s),
            seconds(run.predicted.step_time_spread_s),
            run.step_time_error.to_string(),
            run.adjusted_error.to_string(),
            bytes(run.measured.peak_memory_bytes),
            bytes(run.predicted.peak_memory_bytes),
            run.peak_memory_error.to_string(),
            run.regret.to_string(),
            run.verdict.map_or("", Verdict::name).to_owned(),
            seconds(run.bar_s),
            run.measured.final_loss.to_string(),
            run.measured.steps.to_string(),
            run.predicted.provenance.to_string(),
            String::new(),
        ]);
    }
    for failed in &validation.failed {
        let mut row = vec![String::new(); 19];
        row[0] = failed.label.clone();
        row[18] = failed.reason.clone();
        sheet.row(&row);
    }
    sheet.finish()
}

/// One row per operation.
pub fn csv_timeline(events: &[TimelineEvent]) -> String {
    let mut sheet = Sheet::new(&["rank", "stream", "operation", "chunk", "micro_batch", "start_s", "end_s"]);
    for event in events {
        sheet.row(&[
            event.rank.to_string(),
            words::stream(event.stream).to_owned(),
            words::operation(event.operation).to_owned(),
            event.chunk.to_string(),
            event.micro_batch.to_string(),
            seconds(event.start_s),
            seconds(event.end_s),
        ]);
    }
    sheet.finish()
}

fn sample(time: &Sample) -> [String; 5] {
    [
        seconds(time.median_s),
        seconds(time.low_s),
        seconds(time.high_s),
        time.count.to_string(),
        time.provenance.to_string(),
    ]
}

/// One row per measured segment.
pub fn csv_segments(profile: &Profile) -> String {
    let mut sheet = Sheet::new(&[
        "segment",
        "pass",
        "tensor",
        "sequence_parallel",
        "micro_batch",
        "recompute",
        "median_s",
        "low_s",
        "high_s",
        "count",
        "provenance",
        "growth_bytes",
        "peak_bytes",
    ]);
    for cell in &profile.segments {
        let mut row = vec![
            cell.segment.name().to_owned(),
            cell.pass.name().to_owned(),
            cell.tensor.to_string(),
            cell.sequence_parallel.to_string(),
            cell.micro_batch.to_string(),
            cell.recompute.name().to_owned(),
        ];
        row.extend(sample(&cell.time));
        row.extend([cell.growth_bytes.to_string(), bytes(cell.peak_bytes)]);
        sheet.row(&row);
    }
    sheet.finish()
}

/// One row per GEMM `m x k` by `k x n`.
pub fn csv_products(profile: &Profile) -> String {
    let mut sheet =
        Sheet::new(&["m", "n", "k", "median_s", "low_s", "high_s", "count", "provenance", "flops_per_s"]);
    for cell in &profile.hardware.products {
        let mut row = vec![cell.m.to_string(), cell.n.to_string(), cell.k.to_string()];
        row.extend(sample(&cell.time));
        row.push(cell.flops_per_s.0.to_string());
        sheet.row(&row);
    }
    sheet.finish()
}

/// One row per copy. The bandwidth of a copy within the device counts bytes read and bytes written; it is
/// empty if the copy took no time.
pub fn csv_copies(profile: &Profile) -> String {
    let mut sheet = Sheet::new(&[
        "copy",
        "size_bytes",
        "median_s",
        "low_s",
        "high_s",
        "count",
        "provenance",
        "bytes_per_s",
    ]);
    for cell in tables::shown_copies(profile) {
        let mut row = vec![words::copy(cell.kind).to_owned(), bytes(cell.bytes)];
        row.extend(sample(&cell.time));
        row.push(tables::copy_rate(cell).map(|rate| rate.0.to_string()).unwrap_or_default());
        sheet.row(&row);
    }
    sheet.finish()
}

/// One row per measured size of each collective and send/recv, then one per fitted line.
pub fn csv_links(profile: &Profile) -> String {
    let mut sheet = Sheet::new(&[
        "row",
        "what",
        "group",
        "stride",
        "size_bytes",
        "median_s",
        "low_s",
        "high_s",
        "count",
        "provenance",
        "alpha_s",
        "beta_s_per_byte",
        "residual",
    ]);
    let blank = String::new;
    let collectives = profile
        .collectives
        .iter()
        .map(|cell| (cell.kind.name(), cell.group, cell.stride, cell.bytes, &cell.time));
    let messages = profile.messages.iter().map(|cell| ("message", 2, cell.stride, cell.bytes, &cell.time));
    for (what, group, stride, size, time) in collectives.chain(messages) {
        let mut row =
            vec!["timing".to_owned(), what.to_owned(), group.to_string(), stride.to_string(), bytes(size)];
        row.extend(sample(time));
        row.extend([blank(), blank(), blank()]);
        sheet.row(&row);
    }
    for fit in &profile.fits {
        let mut row = vec!["fit".to_owned(), fit.what.clone(), fit.group.to_string(), fit.stride.to_string()];
        row.extend(std::iter::repeat_with(blank).take(6));
        row.extend([seconds(fit.alpha_s), fit.beta_s_per_byte.to_string(), fit.residual.to_string()]);
        sheet.row(&row);
    }
    sheet.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_is_a_formula() {
        for text in
            ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "＝1", "-", "-inf"]
        {
            let cell = inert(text);
            assert!(cell.starts_with('\'') && !cell.contains('\r'), "{text}: {cell}");
        }
        for number in ["-1.5", "+2", "1e-7", "-3e5", "0"] {
            assert_eq!(inert(number), number);
        }
        assert_eq!(inert("dp2 tp1"), "dp2 tp1");
        assert_eq!(inert("a\u{1b}b"), "a\\u{1b}b");
        let mut sheet = Sheet::new(&["a"]);
        sheet.row(&["=A2", "-1", "x, y"]);
        assert_eq!(sheet.finish(), "a\n'=A2,-1,\"x, y\"\n");
    }
}
