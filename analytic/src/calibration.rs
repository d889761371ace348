//! Parameters fitted to runs, with their accuracy, as stored in files.

use crate::fit::{self, Fold};
use crate::parameters::FreeParameters;
use crate::table::TableRow;
use autodist_spec::{Check, InputError, SCHEMA_VERSION, parse};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

/// With fewer runs, an error bar is not meaningful.
const FEW: usize = 10;
/// Fraction of the held-out runs that the error bar covers.
pub const COVERAGE: f64 = 0.9;

/// Larger errors do not describe a usable prediction.
const LARGEST_ERROR: f64 = 10.0;

/// A calibration as stored in a file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    pub schema_version: u32,
    /// The data of the fit.
    pub fitted_to: String,
    /// Number of runs in the fit.
    pub runs: usize,
    /// Relative error that nine of ten held-out runs stayed within.
    pub error_bar: f64,
    /// Error bar of mixture-of-experts models, which are not part of the fit; absent if too few of them were
    /// measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_bar_experts: Option<f64>,
    /// Median relative error of held-out runs.
    pub median_error: f64,
    /// By name; a missing parameter keeps its prior.
    pub parameters: BTreeMap<String, f64>,
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
        for (field, error) in [
            ("error_bar", self.error_bar),
            ("error_bar_experts", self.error_bar_experts.unwrap_or_default()),
            ("median_error", self.median_error),
        ] {
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

    /// The error bar of a dense model or of a mixture-of-experts model.
    pub fn error_bar_of(&self, dense: bool) -> f64 {
        if dense {
            self.error_bar
        } else {
            self.error_bar_experts.unwrap_or(self.error_bar).max(self.error_bar)
        }
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
        let experts = errors(rows, predicted, |row| !row.dense);
        let errors = errors(rows, predicted, TableRow::is_for_fitting);
        let bar = error_bar(&errors);
        let mut sizes: Vec<f64> = errors.iter().map(|(_, error)| error.abs()).collect();
        Self {
            schema_version: SCHEMA_VERSION,
            fitted_to: fitted_to.to_owned(),
            runs: samples.len(),
            error_bar: rounded(bar),
            error_bar_experts: (experts.len() >= FEW).then(|| rounded(error_bar(&experts))),
            median_error: rounded(crate::statistics::quantile(&mut sizes, 0.5)),
            parameters: parameters
                .to_table()
                .into_iter()
                .map(|(name, value)| (name, rounded(value)))
                .collect(),
        }
    }
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

/// The error bar of each group from the errors of the others: as it would have been stated before the group
/// was known.
pub fn cross_validated_bars<'a>(errors: &[(&'a str, f64)]) -> impl Fn(&str) -> f64 + use<'a> {
    let groups: BTreeSet<&str> = errors.iter().map(|(group, _)| *group).collect();
    let without = |left_out: &str| {
        let others: Vec<(&str, f64)> =
            errors.iter().filter(|(group, _)| *group != left_out).copied().collect();
        error_bar(if others.is_empty() { errors } else { &others })
    };
    let bars: BTreeMap<&str, f64> = groups.into_iter().map(|group| (group, without(group))).collect();
    let all = error_bar(errors);
    move |group| bars.get(group).copied().unwrap_or(all)
}
