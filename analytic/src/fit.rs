//! Fits the free parameters to runs, and evaluates the fit on held-out runs.
//!
//! The fit minimises, over the logarithms of the numbers, pseudo-Huber losses of the logarithms of predicted
//! over measured times, and the squared distance from every prior. Each group of runs counts as its size to
//! the power 0.4: a thousand runs of one cluster do not outweigh ten of another. Gauss-Newton's method with a
//! line search (argmin).

use crate::estimate::time;
use crate::parameters::{FreeParameters, PRIORS, Prior};
use crate::run::TrainingRun;
use crate::table::TableRow;
use crate::work::StepWork;
use argmin::core::{Error, Executor, Jacobian, Operator, State};
use argmin::solver::gaussnewton::GaussNewtonLS;
use argmin::solver::linesearch::{BacktrackingLineSearch, condition::ArmijoCondition};
use nalgebra::{DMatrix, DVector};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// The loss is quadratic for errors below this, and linear above.
const ORDINARY_ERROR: f64 = 0.06;
/// Scatter between runs that even a correct model leaves: servers of the same kind differ by 2 to 12 %.
const SCATTER: f64 = 0.05;
/// A group of `n` runs has the weight `n` to this power.
const GROUP_POWER: f64 = 0.4;
const ROUNDS: u64 = 40;

/// A run with its work and its measured time.
pub struct FitSample<'a> {
    pub group: &'a str,
    run: &'a TrainingRun,
    work: StepWork,
    measured: f64,
}

impl FitSample<'_> {
    /// Logarithm of predicted / measured.
    pub fn error(&self, parameters: &FreeParameters) -> f64 {
        (seconds(self.run, &self.work, parameters) / self.measured).ln()
    }
}

/// Predicted step time in seconds.
pub fn seconds(run: &TrainingRun, work: &StepWork, parameters: &FreeParameters) -> f64 {
    time(run, work, parameters).total()
}

/// The runs among `rows` that may be used for a fit.
pub fn samples<'a>(rows: impl IntoIterator<Item = &'a TableRow>) -> Vec<FitSample<'a>> {
    let usable = rows.into_iter().filter(|row| row.is_for_fitting());
    let sample = |row: &'a TableRow| {
        let run = row.run.as_ref().ok()?;
        Some(FitSample { group: &row.group, run, work: StepWork::of(run), measured: row.measured_s? })
    };
    usable.filter_map(sample).collect()
}

struct Problem<'a> {
    /// Logarithms of the medians of the priors.
    middle: Vec<f64>,
    samples: &'a [&'a FitSample<'a>],
    /// Square roots of the weights.
    weights: Vec<f64>,
}

impl Problem<'_> {
    fn residuals(&self, logarithms: &[f64]) -> Vec<f64> {
        let parameters = of_logarithms(logarithms);
        let data = self.samples.iter().zip(&self.weights).map(|(sample, weight)| {
            let error = sample.error(&parameters);
            // Pseudo-Huber as a residual: its square is twice the loss.
            let ratio = error / ORDINARY_ERROR;
            let loss = 2.0 * ORDINARY_ERROR.powi(2) * ((1.0 + ratio * ratio).sqrt() - 1.0);
            weight * error.signum() * loss.sqrt() / SCATTER
        });
        let prior = PRIORS
            .iter()
            .zip(&self.middle)
            .zip(logarithms)
            .map(|((prior, middle), value)| (value - middle) / prior.spread);
        data.chain(prior).collect()
    }
}

impl Operator for Problem<'_> {
    type Param = DVector<f64>;
    type Output = DVector<f64>;

    fn apply(&self, at: &Self::Param) -> Result<Self::Output, Error> {
        Ok(DVector::from_vec(self.residuals(at.as_slice())))
    }
}

impl Jacobian for Problem<'_> {
    type Param = DVector<f64>;
    type Jacobian = DMatrix<f64>;

    fn jacobian(&self, at: &Self::Param) -> Result<Self::Jacobian, Error> {
        const STEP: f64 = 1e-4;
        let columns: Vec<Vec<f64>> = (0..FreeParameters::COUNT)
            .into_par_iter()
            .map(|index| {
                let moved = |by: f64| {
                    let mut at = at.clone();
                    at[index] += by;
                    self.residuals(at.as_slice())
                };
                let (up, down) = (moved(STEP), moved(-STEP));
                up.iter().zip(&down).map(|(up, down)| (up - down) / (2.0 * STEP)).collect()
            })
            .collect();
        Ok(DMatrix::from_fn(columns[0].len(), columns.len(), |row, column| columns[column][row]))
    }
}

fn of_logarithms(logarithms: &[f64]) -> FreeParameters {
    let mut values = [0.0; FreeParameters::COUNT];
    values.iter_mut().zip(logarithms).for_each(|(value, logarithm)| *value = logarithm.exp());
    FreeParameters::from_array(&values)
}

/// Host time of a block, by trainer.
const HOSTS: [&str; 3] = ["host_megatron_s", "host_deepspeed_s", "host_eager_s"];

/// The parameters that fit the runs best, with priors around `middle`; without runs, `middle` itself. Where
/// devices never wait for the host of `middle`, its speed has no gradient, and so the fit starts with the
/// slowness of hosts that explains the runs best.
pub fn fit(samples: &[&FitSample], middle: &FreeParameters) -> FreeParameters {
    let mut sizes: BTreeMap<&str, f64> = BTreeMap::new();
    samples.iter().for_each(|sample| *sizes.entry(sample.group).or_default() += 1.0);
    // Times ten, so that a group of ten runs weighs as much as ten priors.
    let weight = |sample: &&FitSample| (10.0 * sizes[sample.group].powf(GROUP_POWER - 1.0)).sqrt();
    let middle: Vec<f64> = middle.to_array().iter().map(|value| value.ln()).collect();
    let problem = Problem { middle: middle.clone(), samples, weights: samples.iter().map(weight).collect() };
    let with_hosts = |slowness: f64| -> Vec<f64> {
        let of = |(value, prior): (&f64, &Prior)| {
            value + if HOSTS.contains(&prior.name) { slowness.ln() } else { 0.0 }
        };
        middle.iter().zip(PRIORS).map(of).collect()
    };
    let cost = |at: &[f64]| problem.residuals(at).iter().map(|residual| residual * residual).sum::<f64>();
    let starts = [1.0, 2.0, 4.0, 8.0].map(with_hosts);
    let start = starts.iter().min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(&middle).clone();
    of_logarithms(minimum(problem, DVector::from_vec(start)).as_slice())
}

/// The minimum that is reached from `start`; `start` itself where the solver fails.
fn minimum(problem: Problem, start: DVector<f64>) -> DVector<f64> {
    let condition = ArmijoCondition::new(1e-4).expect("a constant between 0 and 1");
    let search: BacktrackingLineSearch<DVector<f64>, DVector<f64>, _, f64> =
        BacktrackingLineSearch::new(condition);
    let solver: GaussNewtonLS<_, f64> = GaussNewtonLS::new(search);
    let found = Executor::new(problem, solver)
        .configure(|state| state.param(start.clone()).max_iters(ROUNDS))
        .ctrlc(false)
        .run();
    found.ok().and_then(|result| result.state.get_best_param().cloned()).unwrap_or(start)
}

/// Which runs are held out together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fold {
    /// All runs of the evaluated run's group.
    Group,
    /// The given number of parts of the evaluated run's group, job by job: a job is the same model on the
    /// same number of devices with the same batch.
    Jobs(usize),
}

/// Predicted seconds of every row that can be predicted, by parameters fitted without it.
pub fn cross_validated(
    rows: &[TableRow],
    middle: &FreeParameters,
    fold: impl Fn(&str) -> Fold + Sync,
) -> Vec<Option<f64>> {
    let all = samples(rows);
    let part = |group: &str, run: &TrainingRun| match fold(group) {
        Fold::Group => 0,
        Fold::Jobs(parts) => job(run) % parts.max(1),
    };
    let mut held_out: BTreeMap<(&str, usize), Vec<(usize, &TrainingRun)>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        if let Ok(run) = &row.run {
            held_out.entry((&row.group, part(&row.group, run))).or_default().push((index, run));
        }
    }
    let answers: Vec<(usize, f64)> = held_out
        .into_par_iter()
        .flat_map_iter(|((group, left_out), judged)| {
            let seen = |sample: &&FitSample| sample.group != group || part(group, sample.run) != left_out;
            let parameters = fit(&all.iter().filter(seen).collect::<Vec<_>>(), middle);
            judged.into_iter().map(move |(index, run)| (index, seconds(run, &StepWork::of(run), &parameters)))
        })
        .collect();
    let mut predicted = vec![None; rows.len()];
    answers.into_iter().for_each(|(index, seconds)| predicted[index] = Some(seconds));
    predicted
}

/// A hash that is equal for runs of the same job.
fn job(run: &TrainingRun) -> usize {
    let model = &run.model;
    let job = [model.layers, model.hidden, model.heads, run.seq_len, run.layout.devices(), run.global_batch];
    // FNV-1a; the high bits are mixed best.
    let hash = job.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &value| {
        (hash ^ u64::from(value)).wrapping_mul(0x0100_0000_01b3)
    });
    (hash >> 32) as usize
}
