//! Compares predictions with measurements.

use crate::basis::{Basis, StatedBar};
use crate::memory::{Memory, Reserve};
use crate::run::TrainingRun;
use crate::sets::{self, Choice, ChoiceSet, Timing};
use crate::statistics::{mean, quantile};
use crate::table::TableRow;
use serde::Serialize;
use std::collections::BTreeMap;

/// The result for one row.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub id: String,
    pub group: String,
    pub device: String,
    /// Whether the model has no experts.
    pub dense: bool,
    pub measured_s: Option<f64>,
    #[serde(flatten)]
    pub answer: Answer,
}

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Answer {
    Predicted {
        predicted_s: f64,
        /// Predicted / measured - 1; absent without a measurement.
        error: Option<f64>,
        /// Relative: nine of ten rows are expected to be within it.
        error_bar: f64,
        /// What the prediction stands on beyond the usual runs of the fit.
        bases: Vec<Basis>,
        /// Baseline: the prediction by one utilisation for all rows of the same device and precision, fitted
        /// to the same rows.
        constant_mfu_s: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        measured_memory_gib: Option<f64>,
        predicted_memory_gib: f64,
        #[serde(skip_serializing_if = "Option::is_none")]
        memory_error: Option<f64>,
        assumptions: Vec<String>,
    },
    Refused {
        reason: String,
    },
}

/// Errors of the rows of one group, device and precision.
#[derive(Debug, Clone, Serialize)]
pub struct AccuracySlice {
    pub group: String,
    pub device: String,
    pub precision: String,
    pub rows: usize,
    pub refused: usize,
    pub errors: Option<ErrorStatistics>,
    pub constant_mfu: Option<ErrorStatistics>,
}

/// Relative errors: `bias` is their median, the rest of their sizes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct ErrorStatistics {
    pub rows: usize,
    pub bias: f64,
    pub median: f64,
    pub mean: f64,
    pub p90: f64,
    pub max: f64,
}

#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// How the evaluated rows were held out of the fit.
    pub mode: String,
    pub parts: Vec<AccuracySlice>,
    /// All measured rows.
    pub all: AccuracySlice,
    /// Fraction of the measured rows within their error bars.
    pub covered: Option<f64>,
    /// The same by what predictions stand on; a row may stand on several.
    pub covered_by: Vec<Coverage>,
    pub memory: Option<MemoryErrors>,
    /// Memory errors with the reserve fitted to the other groups; absent if no group was left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_left_out: Option<MemoryErrors>,
    pub choices: Option<Choices>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Coverage {
    /// Absent for rows that stand on none.
    pub basis: Option<Basis>,
    pub rows: usize,
    /// Fraction of the rows within their error bars.
    pub covered: f64,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct MemoryErrors {
    #[serde(flatten)]
    pub errors: ErrorStatistics,
    /// The largest under-prediction: the lowest error.
    pub lowest: f64,
    pub more_than_5_percent_under: usize,
}

#[derive(Debug, Clone, Serialize)]
pub struct Choices {
    pub sets: Vec<Choice>,
    pub mean_regret: f64,
    pub max_regret: f64,
    /// Absent if no set has an order.
    pub mean_kendall_tau: Option<f64>,
    /// Median over the sets of the scatter of errors inside one set.
    pub median_scatter: f64,
}

/// The whole document.
#[derive(Debug, Clone, Serialize)]
pub struct Backtest {
    pub rows: Vec<Outcome>,
    pub summary: Summary,
}

/// Compares `predicted` seconds of the rows, with their error bars, and their memory with the measurements;
/// `left_out` are the reserves fitted without the groups of the rows.
pub fn backtest(
    rows: &[TableRow],
    predicted: &[Option<f64>],
    left_out: Option<&[Reserve]>,
    bars: &[StatedBar],
    sets: &[ChoiceSet],
    mode: &str,
) -> Backtest {
    let constant = constant_mfu(rows);
    let outcomes: Vec<Outcome> = rows
        .iter()
        .zip(predicted)
        .zip(&constant)
        .zip(bars)
        .map(|(((row, predicted), constant), bar)| outcome(row, *predicted, *constant, bar))
        .collect();
    let mut summary = summary(rows, &outcomes, sets, mode);
    summary.memory_left_out = left_out.and_then(|reserves| {
        let errors = rows.iter().zip(reserves).filter_map(|(row, reserve)| memory_error(row, reserve));
        memory(&errors.collect::<Vec<_>>())
    });
    Backtest { rows: outcomes, summary }
}

/// Memory of the fullest device in GiB, as the trainer reports it to its users.
fn memory_gib(run: &TrainingRun, reserve: &Reserve) -> f64 {
    Memory::with(run, reserve).as_reported(run.trainer) / f64::from(1 << 30)
}

/// Whether time and memory are finite and plausible.
fn sound(run: &TrainingRun, predicted_s: f64) -> bool {
    (1e-9..=1e15).contains(&predicted_s) && (0.0..=1e12).contains(&memory_gib(run, &Reserve::SHIPPED))
}

fn memory_error(row: &TableRow, reserve: &Reserve) -> Option<f64> {
    Some(memory_gib(row.run.as_ref().ok()?, reserve) / row.measured_memory_gb? - 1.0)
}

fn outcome(row: &TableRow, predicted: Option<f64>, constant_mfu_s: Option<f64>, bar: &StatedBar) -> Outcome {
    let answer = match (&row.run, predicted) {
        (Ok(run), Some(predicted_s)) if sound(run, predicted_s) => {
            let predicted_memory_gib = memory_gib(run, &Reserve::SHIPPED);
            Answer::Predicted {
                predicted_s,
                error: row.measured_s.map(|measured| predicted_s / measured - 1.0),
                error_bar: bar.relative,
                bases: bar.bases.clone(),
                constant_mfu_s,
                measured_memory_gib: row.measured_memory_gb,
                predicted_memory_gib,
                memory_error: memory_error(row, &Reserve::SHIPPED),
                assumptions: run.assumptions.clone(),
            }
        }
        (Err(reason), _) => Answer::Refused { reason: reason.clone() },
        (Ok(_), Some(_)) => Answer::Refused {
            reason: "the predicted time or memory is implausible: check this row's sizes and timings"
                .to_owned(),
        },
        (Ok(_), None) => Answer::Refused { reason: "no prediction was made".to_owned() },
    };
    let text = |text: &str| text.to_owned();
    Outcome {
        id: text(&row.id),
        group: text(&row.group),
        device: text(&row.device),
        dense: row.dense,
        measured_s: row.measured_s,
        answer,
    }
}

/// Baseline seconds by one utilisation for each device and precision: its median over the evaluated rows.
fn constant_mfu(rows: &[TableRow]) -> Vec<Option<f64>> {
    let ideal = |row: &TableRow| {
        let run = row.run.as_ref().ok()?;
        let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
        let flops = tokens * run.model.step_flops(1, run.seq_len.into()).0;
        Some(flops / (f64::from(run.layout.devices()) * run.machine.peak_flops_per_s))
    };
    let mut utilisations: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for row in rows {
        if let (Some(ideal), Some(measured)) = (ideal(row), row.measured_s) {
            utilisations.entry((&row.device, &row.precision)).or_default().push(ideal / measured);
        }
    }
    let medians: BTreeMap<_, f64> =
        utilisations.into_iter().map(|(key, mut values)| (key, quantile(&mut values, 0.5))).collect();
    rows.iter()
        .map(|row| Some(ideal(row)? / medians.get(&(row.device.as_str(), row.precision.as_str()))?))
        .collect()
}

impl ErrorStatistics {
    /// Statistics of relative errors; `None` without any.
    pub fn of(errors: impl Iterator<Item = f64>) -> Option<Self> {
        let mut signed: Vec<f64> = errors.collect();
        if signed.is_empty() {
            return None;
        }
        let bias = quantile(&mut signed, 0.5);
        let mut sizes: Vec<f64> = signed.iter().map(|error| error.abs()).collect();
        let mean = mean(&sizes);
        let [median, p90, max] = [0.5, 0.9, 1.0].map(|part| quantile(&mut sizes, part));
        Some(Self { rows: sizes.len(), bias, median, mean, p90, max })
    }
}

impl Outcome {
    pub fn error(&self) -> Option<f64> {
        match &self.answer {
            Answer::Predicted { error, .. } => *error,
            Answer::Refused { .. } => None,
        }
    }

    fn memory_error(&self) -> Option<f64> {
        match self.answer {
            Answer::Predicted { memory_error, .. } => memory_error,
            Answer::Refused { .. } => None,
        }
    }

    fn constant_error(&self) -> Option<f64> {
        match &self.answer {
            Answer::Predicted { constant_mfu_s, .. } => Some((*constant_mfu_s)? / self.measured_s? - 1.0),
            Answer::Refused { .. } => None,
        }
    }
}

fn part(key: [&str; 3], dense: bool, outcomes: &[&Outcome]) -> AccuracySlice {
    let [group, device, precision] = key.map(str::to_owned);
    let group = if dense { group } else { format!("{group}, experts") };
    let refused = outcomes.iter().filter(|o| matches!(o.answer, Answer::Refused { .. })).count();
    AccuracySlice {
        group,
        device,
        precision,
        rows: outcomes.len(),
        refused,
        errors: ErrorStatistics::of(outcomes.iter().filter_map(|o| o.error())),
        constant_mfu: ErrorStatistics::of(outcomes.iter().filter_map(|o| o.constant_error())),
    }
}

fn summary(rows: &[TableRow], outcomes: &[Outcome], sets: &[ChoiceSet], mode: &str) -> Summary {
    let mut parts: BTreeMap<(bool, [&str; 3]), Vec<&Outcome>> = BTreeMap::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        let key = [&row.group, &row.device, &row.precision].map(String::as_str);
        parts.entry((!row.dense, key)).or_default().push(outcome);
    }
    let all: Vec<&Outcome> = outcomes.iter().collect();
    let within: Vec<(&[Basis], bool)> = outcomes
        .iter()
        .filter_map(|outcome| match &outcome.answer {
            Answer::Predicted { error: Some(error), error_bar, bases, .. } => {
                Some((bases.as_slice(), error.abs() <= *error_bar))
            }
            _ => None,
        })
        .collect();
    let share = |of: &dyn Fn(&[Basis]) -> bool| {
        let of: Vec<bool> = within.iter().filter(|(bases, _)| of(bases)).map(|(_, within)| *within).collect();
        let covered = of.iter().filter(|&&within| within).count() as f64 / of.len().max(1) as f64;
        (of.len(), covered)
    };
    let covered = (!within.is_empty()).then(|| share(&|_| true).1);
    let covered_by = [None]
        .into_iter()
        .chain(Basis::ALL.iter().copied().map(Some))
        .map(|basis| {
            let (rows, covered) =
                share(&|bases| basis.map_or(bases.is_empty(), |basis| bases.contains(&basis)));
            Coverage { basis, rows, covered }
        })
        .filter(|coverage| coverage.rows > 0)
        .collect();
    Summary {
        mode: mode.to_owned(),
        parts: parts.into_iter().map(|((sparse, key), outcomes)| part(key, !sparse, &outcomes)).collect(),
        all: part(["all", "", ""], true, &all),
        covered,
        covered_by,
        memory: memory(&outcomes.iter().filter_map(Outcome::memory_error).collect::<Vec<_>>()),
        memory_left_out: None,
        choices: choices(rows, outcomes, sets),
    }
}

fn memory(errors: &[f64]) -> Option<MemoryErrors> {
    Some(MemoryErrors {
        errors: ErrorStatistics::of(errors.iter().copied())?,
        lowest: errors.iter().copied().fold(f64::INFINITY, f64::min),
        more_than_5_percent_under: errors.iter().filter(|&&error| error < -0.05).count(),
    })
}

fn choices(rows: &[TableRow], outcomes: &[Outcome], sets: &[ChoiceSet]) -> Option<Choices> {
    let mut timings: BTreeMap<&str, Timing> = BTreeMap::new();
    for (row, outcome) in rows.iter().zip(outcomes) {
        if let (Ok(run), Answer::Predicted { predicted_s, .. }, Some(measured)) =
            (&row.run, &outcome.answer, outcome.measured_s)
        {
            let timing = Timing { group: &row.group, job: run.job(), measured, predicted: *predicted_s };
            timings.insert(&row.id, timing);
        }
    }
    let judged = sets::judge(sets, &timings);
    if judged.is_empty() {
        return None;
    }
    let regrets: Vec<f64> = judged.iter().map(|choice| choice.regret).collect();
    let taus: Vec<f64> = judged.iter().filter_map(|choice| choice.kendall_tau).collect();
    Some(Choices {
        mean_regret: mean(&regrets),
        max_regret: regrets.iter().copied().fold(0.0, f64::max),
        mean_kendall_tau: (!taus.is_empty()).then(|| mean(&taus)),
        median_scatter: quantile(&mut judged.iter().map(|choice| choice.scatter).collect::<Vec<_>>(), 0.5),
        sets: judged,
    })
}
