//! All plans in one table: those of the document and those that were trained, with every figure once.

use crate::ReportInput;
use crate::table::{
    Align::{Left, Right},
    Table,
};
use crate::words::{signed_percent, with_spread};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{Estimate, ValidatedRun};

/// A plan with what is known of it.
struct Row<'a> {
    label: String,
    predicted: &'a Estimate,
    run: Option<&'a ValidatedRun>,
    why: &'a str,
}

/// The plans in the document's order; then those that only the validation has.
fn rows<'a>(input: &ReportInput<'a>) -> Vec<Row<'a>> {
    let plan = input.plan;
    let runs: &[ValidatedRun] = input.validation.map_or(&[], |validation| &validation.runs);
    let run_of = |label: &str| runs.iter().find(|run| run.label == label);
    let own = label(&plan.strategy, &plan.stages);
    let mut rows = vec![Row { run: run_of(&own), label: own, predicted: &plan.estimate, why: "this plan" }];
    for other in &plan.alternatives {
        let label = label(&other.strategy, &other.stages);
        rows.push(Row { run: run_of(&label), label, predicted: &other.estimate, why: &other.reason });
    }
    for run in runs {
        if rows.iter().all(|row| row.label != run.label) {
            rows.push(Row { label: run.label.clone(), predicted: &run.predicted, run: Some(run), why: "" });
        }
    }
    rows
}

pub(super) fn table(input: &ReportInput<'_>) -> Table {
    let rows = rows(input);
    let measured = rows.iter().any(|row| row.run.is_some());
    let mut columns = vec![("#", Right), ("plan", Left), ("predicted step", Right)];
    if measured {
        columns.extend([("measured step", Right), ("error", Right), ("regret", Right), ("verdict", Left)]);
    }
    columns.push(("predicted peak", Right));
    if measured {
        columns.extend([
            ("measured peak", Right),
            ("error of peak", Right),
            ("step as timed", Right),
            ("speed", Right),
            ("steps", Right),
            ("last loss", Right),
        ]);
    }
    columns.extend([("against the first", Left), ("prediction from", Left)]);
    let mut table = Table::new(&columns);
    for (index, row) in rows.iter().enumerate() {
        let mut cells = vec![
            (index + 1).to_string(),
            row.label.clone(),
            with_spread(row.predicted.step_time_s, row.predicted.step_time_spread_s),
        ];
        let of_run = |cell: fn(&ValidatedRun) -> String| row.run.map(cell).unwrap_or_default();
        if measured {
            cells.extend([
                of_run(|run| {
                    with_spread(run.measured.adjusted_step_time_s, run.measured.adjusted_step_time_spread_s)
                }),
                of_run(|run| signed_percent(run.adjusted_error)),
                of_run(|run| signed_percent(run.regret)),
                of_run(|run| run.verdict.map_or("", Verdict::name).to_owned()),
            ]);
        }
        cells.push(row.predicted.peak_memory_bytes.to_string());
        if measured {
            cells.extend([
                of_run(|run| run.measured.peak_memory_bytes.to_string()),
                of_run(|run| signed_percent(run.peak_memory_error)),
                of_run(|run| run.measured.step_time_s.to_string()),
                of_run(|run| format!("{:.2}", run.measured.machine_speed)),
                of_run(|run| run.measured.steps.to_string()),
                of_run(|run| format!("{:.4}", run.measured.final_loss)),
            ]);
        }
        cells.extend([row.why.to_owned(), row.predicted.provenance.to_string()]);
        table.row(cells);
    }
    table
}
