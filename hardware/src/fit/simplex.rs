//! Minimises a function of few parameters by the Nelder-Mead simplex (argmin's).

use argmin::core::{CostFunction, Error, Executor};
use argmin::solver::neldermead::NelderMead;

struct Cost<F>(F);

impl<F: Fn(&[f64]) -> f64> CostFunction for Cost<F> {
    type Param = Vec<f64>;
    type Output = f64;

    fn cost(&self, at: &Self::Param) -> Result<f64, Error> {
        Ok((self.0)(at))
    }
}

/// Minimises `cost` near `start`; the result is deterministic. Each round restarts around the last result,
/// because simplices collapse.
pub(super) fn minimise(cost: impl Fn(&[f64]) -> f64, start: &[f64], rounds: u64, steps: u64) -> Vec<f64> {
    let mut best = start.to_vec();
    for round in 0..rounds {
        let reach = 0.6 / (1 + round) as f64;
        let mut corners = vec![best.clone()];
        for axis in 0..best.len() {
            let mut corner = best.clone();
            corner[axis] += reach;
            corners.push(corner);
        }
        let found = Executor::new(Cost(&cost), NelderMead::new(corners))
            .configure(|state| state.max_iters(steps))
            .run()
            .ok()
            .and_then(|result| result.state.best_param);
        if let Some(found) = found.filter(|found| cost(found) < cost(&best)) {
            best = found;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valley_is_found() {
        let valley = |x: &[f64]| (1.0 - x[0]).powi(2) + 100.0 * (x[1] - x[0] * x[0]).powi(2);
        let found = minimise(valley, &[-1.0, 1.0], 3, 300);
        assert!((found[0] - 1.0).abs() < 1e-3 && (found[1] - 1.0).abs() < 1e-3, "{found:?}");
    }
}
