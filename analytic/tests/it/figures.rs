//! Checks the statements of docs/validation.md about held-out runs.

use autodist_analytic::backtest::AccuracySlice;
use autodist_analytic::measured::MeasuredPlans;
use autodist_analytic::table::{self, TableRow};
use autodist_analytic::{
    Backtest, Fold, FreeParameters, Memory, StepWork, backtest, errors, fit, left_out_bars, reserve, sets,
};
use autodist_hardware::Catalogue;
use std::sync::LazyLock;

const RUNS: &[u8] = include_bytes!("../../../catalog/published/training_runs.csv");
const H200: &[u8] = include_bytes!("../../../catalog/published/h200_training.csv");
const LATER: &[u8] = include_bytes!("../../../catalog/published/later_runs.csv");
const SETS: &[u8] = include_bytes!("../../../catalog/published/choice_sets.csv");
const PLANS: &[u8] = include_bytes!("../../../catalog/published/measured_plans.json");

static ROWS: LazyLock<Vec<TableRow>> =
    LazyLock::new(|| table::read(RUNS, "training_runs.csv", &Catalogue::shipped()).unwrap());

/// Those rows, and rows that were added later.
static ALL: LazyLock<Vec<TableRow>> = LazyLock::new(|| {
    let mut rows = ROWS.clone();
    rows.extend(table::read(LATER, "later_runs.csv", &Catalogue::shipped()).unwrap());
    rows
});

static LEFT_OUT: LazyLock<Backtest> = LazyLock::new(|| {
    let fold = |group: &str| if group == "vtrain-single" { Fold::Jobs(2) } else { Fold::Group };
    let predicted = fit::cross_validated(&ROWS, &FreeParameters::prior(), fold);
    let bars = left_out_bars(&ROWS, &predicted, FreeParameters::shipped());
    let reserves = reserve::cross_validated(&ROWS);
    backtest(
        &ROWS,
        &predicted,
        Some(&reserves),
        &bars,
        &sets::read(SETS, "choice_sets.csv").unwrap(),
        "left out",
    )
});

fn part(group: &str) -> &'static AccuracySlice {
    LEFT_OUT.summary.parts.iter().find(|part| part.group == group).unwrap()
}

/// Absolute errors of dense 16-bit rows on these devices, without the single-node group.
fn sizes(devices: &[&str]) -> Vec<f64> {
    let judged = ROWS.iter().zip(&LEFT_OUT.rows).filter(|(row, _)| {
        row.is_for_fitting() && row.group != "vtrain-single" && devices.iter().any(|d| row.device.contains(d))
    });
    let mut sizes: Vec<f64> = judged.map(|(_, outcome)| outcome.error().unwrap().abs()).collect();
    sizes.sort_by(f64::total_cmp);
    sizes
}

#[test]
fn unseen_groups_on_a100_and_h100_are_predicted_within_a_few_percent() {
    let sizes = sizes(&["A100", "H100"]);
    let (median, p90) = (sizes[sizes.len() / 2], sizes[sizes.len() * 9 / 10]);
    assert!(median <= 0.05, "median {median:.3}");
    assert!(p90 <= 0.13, "p90 {p90:.3}");
    let sc21 = part("megatron-sc21").errors.unwrap();
    assert!(sc21.mean <= 0.029, "{sc21:?}");
    let single = part("vtrain-single").errors.unwrap();
    assert!(single.mean <= 0.066, "{single:?}");
    let all = LEFT_OUT.summary.all.errors.unwrap();
    assert!(all.median <= 0.051 && all.p90 <= 0.154, "{all:?}");
}

#[test]
fn so_are_groups_of_later_software_in_16_and_8_bits() {
    let fold = |group: &str| if group == "vtrain-single" { Fold::Jobs(2) } else { Fold::Group };
    let predicted = fit::cross_validated(&ALL, &FreeParameters::prior(), fold);
    let of = |keep: &dyn Fn(&TableRow) -> bool| {
        let device = |row: &TableRow| ["A100", "A800", "H100", "H800"].iter().any(|d| row.device.contains(d));
        let judged = errors(&ALL, &predicted, |row| {
            row.is_for_fitting() && row.group != "vtrain-single" && device(row) && keep(row)
        });
        let mut sizes: Vec<f64> = judged.iter().map(|(_, error)| error.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        (sizes.len(), sizes[sizes.len() / 2], sizes[sizes.len() * 9 / 10])
    };
    let (rows, median, p90) = of(&|_| true);
    assert!(rows > 700 && median <= 0.06 && p90 <= 0.14, "{rows} {median:.3} {p90:.3}");
    let eight_bits = |row: &TableRow| row.precision.contains("fp8");
    let (rows, median, p90) = of(&eight_bits);
    assert!(rows > 140 && median <= 0.04 && p90 <= 0.12, "{rows} {median:.3} {p90:.3}");
    let (rows, median, p90) = of(&|row| !eight_bits(row));
    assert!(rows > 550 && median <= 0.065 && p90 <= 0.15, "{rows} {median:.3} {p90:.3}");
}

/// Rows of the H200 in whose steps the GPU was busy all the time, by PyTorch's profiler: the step takes less
/// than 2.5 % longer than its kernels.
const BUSY: [&str; 8] =
    ["h200-12", "h200-14", "h200-16", "h200-20", "h200-22", "h200-24", "h200-26", "h200-28"];

/// Eager PyTorch on one H200, whose host is five times slower than the fit's (docs/gpu.md).
#[test]
fn three_runs_on_a_machine_show_how_fast_its_host_is() {
    let rows = table::read(H200, "h200_training.csv", &Catalogue::shipped()).unwrap();
    let median = |parameters: &FreeParameters, keep: &dyn Fn(&TableRow) -> bool| {
        let mut sizes: Vec<f64> = rows
            .iter()
            .filter(|row| keep(row))
            .map(|row| {
                let run = row.run.as_ref().unwrap();
                (fit::seconds(run, &StepWork::of(run), parameters) / row.measured_s.unwrap() - 1.0).abs()
            })
            .collect();
        sizes.sort_by(f64::total_cmp);
        (sizes[sizes.len() / 2], sizes[sizes.len() - 1])
    };
    let shipped = FreeParameters::shipped();
    for three in [["h200-00", "h200-06", "h200-10"], ["h200-04", "h200-08", "h200-12"]] {
        let known: Vec<TableRow> =
            rows.iter().filter(|row| three.contains(&row.id.as_str())).cloned().collect();
        let samples = fit::samples(&known);
        let fitted = fit::fit(&samples.iter().collect::<Vec<_>>(), shipped);
        assert!(fitted.host_eager_s > 3.0 * shipped.host_eager_s, "{fitted:?}");
        let ((before, worst_before), (after, worst)) =
            (median(shipped, &|_| true), median(&fitted, &|_| true));
        assert!(
            after <= 0.06 && after < before && worst < 0.5 * worst_before,
            "{before:.3} {after:.3} {worst:.3}"
        );
        let (busy, most) = median(&fitted, &|row| BUSY.contains(&row.id.as_str()));
        assert!(busy <= 0.04 && most <= 0.07, "{busy:.3} {most:.3}");
    }
}

/// `peak_allocated_gb` is `torch.cuda.max_memory_allocated`, `peak_mem_gb` what PyTorch's allocator has reserved
/// (GiB both).
#[test]
fn memory_of_pytorch_on_one_gpu_is_counted_tensor_by_tensor() {
    let rows = table::read(H200, "h200_training.csv", &Catalogue::shipped()).unwrap();
    let mut reader = csv::Reader::from_reader(H200);
    let column = reader.headers().unwrap().iter().position(|name| name == "peak_allocated_gb").unwrap();
    let allocated = reader.records().map(|line| line.unwrap()[column].parse::<f64>().unwrap());
    let gib = f64::from(1 << 30);
    let mut errors: Vec<f64> = rows
        .iter()
        .zip(allocated)
        .map(|(row, measured)| Memory::of(row.run.as_ref().unwrap()).allocated() / gib / measured - 1.0)
        .collect();
    assert!(errors.iter().all(|error| *error > -0.05), "{errors:?}");
    errors.iter_mut().for_each(|error| *error = error.abs());
    errors.sort_by(f64::total_cmp);
    assert!(errors[7] <= 0.02 && errors[14] <= 0.08, "{errors:?}");
    let predicted = vec![Some(1.0); rows.len()];
    let bars = left_out_bars(&rows, &predicted, FreeParameters::shipped());
    let reserved = backtest(&rows, &predicted, None, &bars, &[], "").summary.memory.unwrap();
    assert!(reserved.errors.median <= 0.05 && reserved.more_than_5_percent_under <= 1, "{reserved:?}");
}

#[test]
fn a_constant_utilisation_does_worse_on_the_very_rows_that_it_was_fitted_to() {
    let all = &LEFT_OUT.summary.all;
    let (ours, constant) = (all.errors.unwrap(), all.constant_mfu.unwrap());
    assert!(ours.median < 0.5 * constant.median && ours.p90 < 0.5 * constant.p90, "{ours:?} {constant:?}");
}

#[test]
fn the_error_bar_covers_what_it_says() {
    let covered = LEFT_OUT.summary.covered.unwrap();
    assert!(covered >= 0.9, "{covered:.3}");
    for coverage in &LEFT_OUT.summary.covered_by {
        eprintln!("{coverage:?}");
        assert!(coverage.rows < 10 || coverage.covered >= 0.9, "{coverage:?}");
    }
}

#[test]
fn dense_rows_are_predicted_and_others_refused_with_a_reason() {
    let refused = ROWS.iter().filter(|row| row.run.is_err());
    for row in refused {
        assert!(!row.dense, "{}: {:?}", row.id, row.run.as_ref().err());
        assert!(row.run.as_ref().unwrap_err().contains("experts"));
    }
}

#[test]
fn the_predicted_best_of_measured_layouts_costs_little() {
    let choices = LEFT_OUT.summary.choices.as_ref().unwrap();
    assert_eq!(choices.sets.len(), 48, "41 sets, some of two jobs");
    assert!(choices.mean_regret <= 0.02, "{:.4}", choices.mean_regret);
    let tau = choices.mean_kendall_tau.unwrap();
    assert!(tau >= 0.8, "{tau:.3}");
}

#[test]
fn peak_memory_is_close_and_hardly_ever_too_low() {
    let memory = LEFT_OUT.summary.memory.unwrap();
    assert!(memory.errors.rows > 100 && memory.errors.median <= 0.05, "{memory:?}");
    // One row reports less memory with a larger micro-batch, one reports the same memory with more tensor
    // parallelism.
    assert!(memory.more_than_5_percent_under <= 2, "{memory:?}");
    let left_out = LEFT_OUT.summary.memory_left_out.unwrap();
    assert!(left_out.errors.median <= 0.05 && left_out.more_than_5_percent_under <= 15, "{left_out:?}");
}

#[test]
fn so_is_that_of_later_software() {
    let later = table::read(LATER, "later_runs.csv", &Catalogue::shipped()).unwrap();
    let predicted = vec![Some(1.0); later.len()];
    let bars = left_out_bars(&later, &predicted, FreeParameters::shipped());
    let memory = backtest(&later, &predicted, None, &bars, &[], "").summary.memory.unwrap();
    assert!(memory.errors.rows > 70 && memory.errors.median <= 0.05, "{memory:?}");
    // FlagPerf does not document how it measured memory.
    assert!(memory.more_than_5_percent_under <= 7, "{memory:?}");
}

#[test]
fn plans_over_layers_that_others_timed_are_priced() {
    let plans = MeasuredPlans::read("measured_plans.json", PLANS).unwrap().estimate();
    let mut time: Vec<f64> = Vec::new();
    let mut memory: Vec<f64> = Vec::new();
    for plan in &plans {
        let plan = plan.as_ref().unwrap();
        time.push(plan.error.unwrap().abs());
        memory.push(plan.memory_error.unwrap().abs());
    }
    for (name, errors) in [("time", &mut time), ("memory", &mut memory)] {
        errors.sort_by(f64::total_cmp);
        let median = 0.5 * (errors[errors.len() / 2 - 1] + errors[errors.len() / 2]);
        assert!(median <= 0.05, "{name}: {median:.3} of {errors:?}");
    }
}

#[test]
fn the_shipped_calibration_is_the_fit_of_the_shipped_runs() {
    let samples = fit::samples(&*ALL);
    let fitted = fit::fit(&samples.iter().collect::<Vec<_>>(), &FreeParameters::prior());
    for row in ALL.iter().filter(|row| row.is_for_fitting()).step_by(50) {
        let run = row.run.as_ref().unwrap();
        let work = StepWork::of(run);
        let ratio = fit::seconds(run, &work, &fitted) / fit::seconds(run, &work, FreeParameters::shipped());
        assert!((ratio - 1.0).abs() < 0.005, "{}: make catalog/training.toml again ({ratio})", row.id);
    }
}
