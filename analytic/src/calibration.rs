//! Parameters fitted to runs, with their accuracy, as stored in files.

use crate::basis::{Basis, ErrorBars, Judged, StatedBar};
use crate::few;
use crate::fit::{self, Fold};
use crate::parameters::FreeParameters;
use crate::run::TrainingRun;
use crate::table::TableRow;
use crate::trainer::Trainer;
use autodist_spec::{Check, InputError, SCHEMA_VERSION, parse};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// Fraction of the held-out runs that the error bar covers.
pub const COVERAGE: f64 = 0.9;

/// Larger errors do not describe a usable prediction.
pub(crate) const LARGEST_ERROR: f64 = 10.0;

/// A calibration as stored in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub schema_version: u32,
    /// The data of the fit.
    pub fitted_to: String,
    /// Number of runs in the fit.
    pub runs: usize,
    /// Relative error that nine of ten usual held-out runs stayed within, with a margin for the next group.
    pub error_bar: f64,
    /// Median relative error of held-out runs.
    pub median_error: f64,
    /// Trainers with runs in the fit; absent where predictions of all trainers count as equally certain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trainers: Option<Vec<String>>,
    /// Error bars of predictions that stand on less; absent where too few such runs were measured.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub error_bars: BTreeMap<Basis, f64>,
    /// Own runs with which the error bar is smaller; the error bars above are those of all other runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own: Option<OwnRuns>,
    /// By name; a missing parameter keeps its prior.
    pub parameters: BTreeMap<String, f64>,
}

/// The user's runs to which a calibration was fitted. Its error bar holds for these devices, trainers and precisions only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OwnRuns {
    pub runs: usize,
    pub error_bar: f64,
    pub devices: Vec<String>,
    pub trainers: Vec<String>,
    pub precisions: Vec<String>,
}

impl OwnRuns {
    fn cover(&self, run: &TrainingRun) -> bool {
        let has = |list: &[String], name: &str| list.iter().any(|known| known == name);
        has(&self.devices, &run.machine.device_name)
            && has(&self.trainers, run.trainer.name())
            && has(&self.precisions, run.dtype.name())
            && run.block.experts.is_none()
    }
}

static SHIPPED: LazyLock<(FreeParameters, Calibration)> = LazyLock::new(|| {
    let text = include_str!("../../catalog/training.toml");
    let calibration: Calibration = toml::from_str(text).expect("the shipped calibration is TOML");
    let parameters = FreeParameters::from_table(&calibration.parameters).expect("and has the right names");
    (parameters, calibration)
});

impl Check for Calibration {
    const WHAT: &'static str = "calibration";

    fn check(&self) -> Result<(), InputError> {
        let usual =
            [("error_bar".to_owned(), self.error_bar), ("median_error".to_owned(), self.median_error)];
        let of = self.error_bars.iter().map(|(basis, bar)| (format!("error_bars: {}", basis.words()), *bar));
        let own = self.own.as_ref().map(|own| ("own.error_bar".to_owned(), own.error_bar));
        for (field, error) in usual.into_iter().chain(of).chain(own) {
            if !(0.0..=LARGEST_ERROR).contains(&error) {
                let problem = format!("must be a relative error from 0 to {LARGEST_ERROR}");
                return Err(InputError::new(field, error, problem)
                    .hint("create the file again with `autodist calibrate`"));
            }
        }
        FreeParameters::from_table(&self.parameters).map(drop)
    }
}

impl Calibration {
    /// The shipped calibration.
    pub fn shipped() -> &'static Self {
        &SHIPPED.1
    }

    /// The error bar of a run, and what it is the error of, in words.
    pub fn error_bar_of(&self, run: &TrainingRun, parameters: &FreeParameters) -> (f64, String) {
        if let Some(own) = self.own.as_ref().filter(|own| own.cover(run)) {
            let runs = if own.runs == 1 { "one run".to_owned() } else { format!("{} runs", own.runs) };
            let words =
                format!("nine of ten runs like the {runs} of the calibration are expected within this error");
            return (own.error_bar, words);
        }
        let bars = self.bars();
        let (bar, basis) = bars.widest(&self.bases_of(run, parameters));
        let words = match basis {
            Some(basis) if !bars.of.contains_key(&basis) => format!(
                "the widest error bar of the calibration, which has too few runs {} for one of their own",
                basis.words()
            ),
            _ => format!(
                "nine of ten runs {}that were left out of the fit are within this error",
                basis.map_or(String::new(), |basis| format!("{} ", basis.words()))
            ),
        };
        (bar, words)
    }

    /// Whether the calibration is used for a run. A calibration by the user's own runs is used for their devices,
    /// trainers and precisions only; all others keep the shipped efficiencies.
    pub fn applies_to(&self, run: &TrainingRun) -> bool {
        self.own.as_ref().is_none_or(|own| own.cover(run))
    }

    /// The error bars of rows that are predicted with this calibration.
    pub fn error_bars_of(&self, rows: &[TableRow], parameters: &FreeParameters) -> Vec<StatedBar> {
        let bars = self.bars();
        let stated = |row: &TableRow| {
            let bases = row.run.as_ref().map_or(Vec::new(), |run| self.bases_of(run, parameters));
            let own = self.own.as_ref().filter(|own| row.run.as_ref().is_ok_and(|run| own.cover(run)));
            StatedBar { relative: own.map_or_else(|| bars.widest(&bases).0, |own| own.error_bar), bases }
        };
        rows.iter().map(stated).collect()
    }

    pub(crate) fn bars(&self) -> ErrorBars {
        ErrorBars { usual: self.error_bar, of: self.error_bars.clone() }
    }

    pub(crate) fn bases_of(&self, run: &TrainingRun, parameters: &FreeParameters) -> Vec<Basis> {
        let known = |trainer: Trainer| {
            self.trainers.as_ref().is_none_or(|all| all.iter().any(|name| name == trainer.name()))
        };
        run.bases(parameters, known)
    }

    /// Reads a file that `autodist calibrate` wrote.
    ///
    /// # Errors
    /// The file has another format, version or set of names.
    pub fn read(file: &str, text: &[u8]) -> Result<(Self, FreeParameters), InputError> {
        let calibration: Self = parse::toml(file, text)?;
        let parameters =
            FreeParameters::from_table(&calibration.parameters).map_err(|error| error.in_file(file))?;
        Ok((calibration, parameters))
    }

    /// # Panics
    /// Never: it contains only numbers and strings by name.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers and texts by name")
    }

    /// Fits all usable runs; `predicted` are predictions of the rows by parameters fitted without them.
    pub fn of(
        rows: &[TableRow],
        middle: &FreeParameters,
        predicted: &[Option<f64>],
        fitted_to: &str,
    ) -> Self {
        let samples = fit::samples(rows);
        let parameters = fit::fit(&samples.iter().collect::<Vec<_>>(), middle);
        let bars = ErrorBars::of(&judged(rows, predicted, &bases(rows, &parameters)));
        let trainers: BTreeSet<&str> = rows
            .iter()
            .filter(|row| row.is_for_fitting())
            .filter_map(|row| Some(row.run.as_ref().ok()?.trainer.name()))
            .collect();
        let errors = errors(rows, predicted, TableRow::is_for_fitting);
        let mut sizes: Vec<f64> = errors.iter().map(|(_, error)| error.abs()).collect();
        Self {
            schema_version: SCHEMA_VERSION,
            fitted_to: fitted_to.to_owned(),
            runs: samples.len(),
            error_bar: rounded(bars.usual),
            trainers: Some(trainers.into_iter().map(str::to_owned).collect()),
            error_bars: bars.of.into_iter().map(|(basis, bar)| (basis, rounded(bar))).collect(),
            median_error: rounded(crate::statistics::quantile(&mut sizes, 0.5)),
            own: None,
            parameters: rounded_table(&parameters),
        }
    }

    /// A calibration by few runs, each of which may be another job on the same cluster: `self` corrected by them.
    /// `left_out` are logarithms of predicted over measured times, each predicted by a fit to the other runs.
    #[must_use]
    pub fn with_own_runs(
        &self,
        rows: &[TableRow],
        middle: &FreeParameters,
        left_out: &[f64],
        fitted_to: &str,
    ) -> Self {
        let samples = fit::samples(rows);
        let parameters = fit::fit(&samples.iter().collect::<Vec<_>>(), middle);
        let runs = || rows.iter().filter(|row| row.is_for_fitting()).filter_map(|row| row.run.as_ref().ok());
        let named = |name: &dyn Fn(&TrainingRun) -> String| -> Vec<String> {
            runs().map(name).collect::<BTreeSet<_>>().into_iter().collect()
        };
        let known = |trainer: Trainer| {
            self.trainers.as_ref().is_none_or(|all| all.iter().any(|name| name == trainer.name()))
        };
        // What the shipped fit would say of these runs; the widest, so that the bar holds for each.
        let bars = self.bars();
        let stated =
            runs().map(|run| bars.widest(&run.bases(middle, known)).0).fold(self.error_bar, f64::max);
        let own = OwnRuns {
            runs: samples.len(),
            error_bar: rounded(few::bar_of_own_runs(stated, left_out)),
            devices: named(&|run| run.machine.device_name.clone()),
            trainers: named(&|run| run.trainer.name().to_owned()),
            precisions: named(&|run| run.dtype.name().to_owned()),
        };
        let mut sizes: Vec<f64> = left_out.iter().map(|error| error.exp_m1().abs()).collect();
        Self {
            fitted_to: fitted_to.to_owned(),
            runs: samples.len(),
            median_error: rounded(crate::statistics::quantile(&mut sizes, 0.5)),
            own: Some(own),
            parameters: rounded_table(&parameters),
            ..self.clone()
        }
    }
}

fn rounded_table(parameters: &FreeParameters) -> BTreeMap<String, f64> {
    parameters.to_table().into_iter().map(|(name, value)| (name, rounded(value))).collect()
}

/// Four significant digits: more would be noise.
fn rounded(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

impl FreeParameters {
    /// The shipped parameters.
    pub fn shipped() -> &'static Self {
        &SHIPPED.0
    }
}

/// Groups and relative errors of the selected rows.
pub fn errors<'a>(
    rows: &'a [TableRow],
    predicted: &[Option<f64>],
    of: impl Fn(&TableRow) -> bool,
) -> Vec<(&'a str, f64)> {
    let judged = rows.iter().zip(predicted).filter(|(row, _)| of(row));
    judged
        .filter_map(|(row, predicted)| Some((row.group.as_str(), (*predicted)? / row.measured_s? - 1.0)))
        .collect()
}

/// The relative error that [`COVERAGE`] of the runs stay within, weighted equally per group or per run,
/// whichever gives the larger error bar.
pub fn error_bar(errors: &[(&str, f64)]) -> f64 {
    let mut sizes: BTreeMap<&str, f64> = BTreeMap::new();
    errors.iter().for_each(|(group, _)| *sizes.entry(group).or_default() += 1.0);
    let bar = |weight: &dyn Fn(&str) -> f64| {
        let mut sorted: Vec<(f64, f64)> =
            errors.iter().map(|(group, error)| (error.abs(), weight(group))).collect();
        sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all: f64 = sorted.iter().map(|entry| entry.1).sum();
        let mut below = 0.0;
        let reached = sorted.iter().find(|(_, weight)| {
            below += weight;
            below >= COVERAGE * all
        });
        reached.map_or(1.0, |entry| entry.0)
    };
    bar(&|group| 1.0 / sizes[group]).max(bar(&|_| 1.0))
}

/// The default hold-out: group by group, or job by job if there is only one group.
pub fn usual_fold(rows: &[TableRow]) -> Fold {
    let groups: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    if groups.len() > 1 { Fold::Group } else { Fold::Jobs(5) }
}

/// What the prediction of each row by a fit to the other groups stands on; nothing for rows that are not
/// understood.
fn bases(rows: &[TableRow], parameters: &FreeParameters) -> Vec<Vec<Basis>> {
    let mut groups: BTreeMap<Trainer, BTreeSet<&str>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.is_for_fitting()) {
        if let Ok(run) = &row.run {
            groups.entry(run.trainer).or_default().insert(&row.group);
        }
    }
    let of = |row: &TableRow| {
        let elsewhere = |trainer: Trainer| {
            groups.get(&trainer).is_some_and(|groups| groups.iter().any(|group| *group != row.group))
        };
        row.run.as_ref().map_or(Vec::new(), |run| run.bases(parameters, elsewhere))
    };
    rows.iter().map(of).collect()
}

fn judged<'a>(rows: &'a [TableRow], predicted: &[Option<f64>], bases: &[Vec<Basis>]) -> Vec<Judged<'a>> {
    let of = |((row, predicted), bases): ((&'a TableRow, &Option<f64>), &Vec<Basis>)| {
        let error = (*predicted)? / row.measured_s? - 1.0;
        (row.quality != "R").then(|| Judged { group: &row.group, error, bases: bases.clone() })
    };
    rows.iter().zip(predicted).zip(bases).filter_map(of).collect()
}

/// The error bar of each row, from the errors of the other groups: as it would have been stated before the
/// row's group was known.
pub fn left_out_bars(
    rows: &[TableRow],
    predicted: &[Option<f64>],
    parameters: &FreeParameters,
) -> Vec<StatedBar> {
    let bases = bases(rows, parameters);
    let judged = judged(rows, predicted, &bases);
    let groups: BTreeSet<&str> = rows.iter().map(|row| row.group.as_str()).collect();
    let bars: BTreeMap<&str, ErrorBars> =
        groups.into_iter().map(|group| (group, ErrorBars::without(&judged, group))).collect();
    let stated = |(row, bases): (&TableRow, Vec<Basis>)| StatedBar {
        relative: bars[row.group.as_str()].widest(&bases).0,
        bases,
    };
    rows.iter().zip(bases).map(stated).collect()
}
