//! The search over the orders of the kinds of nodes of a mixed cluster.

use super::catalogue::Figures;
use crate::failure::Failure;
use crate::output;
use autodist_planner::{Infeasible, SearchLimits};
use autodist_spec::{Plan, SearchReport, StopReason};

/// The best of the plans for every order of the nodes, with a note if it is not the given order. Once the time of
/// `limits` is over and there is a plan, orders are left out.
///
/// # Errors
/// No order has a plan: the refusal of the given one.
pub fn search(
    given: &Figures,
    limits: SearchLimits,
    plan: impl Fn(&Figures) -> Result<Plan, Infeasible>,
) -> Result<Plan, Failure> {
    let orders = given.orders();
    let (mut plans, mut refusals) = (Vec::new(), Vec::new());
    let mut unsearched = 0;
    for (order, figures) in orders.iter().enumerate() {
        if !plans.is_empty() && limits.deadline.is_some_and(|expired| expired()) {
            unsearched += 1;
            continue;
        }
        match plan(figures) {
            Ok(plan) => plans.push((order, plan)),
            Err(refusal) => refusals.push(refusal),
        }
    }
    unsearched += refusals.iter().filter(|refusal| refusal.stop_reason != StopReason::Optimal).count();

    let searches: Vec<SearchReport> = plans.iter().map(|(_, plan)| plan.search.clone()).collect();
    let as_given = plans.first().filter(|(order, _)| *order == 0).map(|(_, plan)| plan.estimate.step_time_s);
    let merit = |(_, plan): &(usize, Plan)| plan.search.merit().0;
    let best = plans.into_iter().min_by(|a, b| merit(a).total_cmp(&merit(b)));
    let Some((order, mut best)) = best else { return Err(refusals.swap_remove(0).into()) };
    best.search = SearchReport::of_all(&searches);
    if unsearched > 0 {
        leave_out(&mut best, unsearched, orders.len());
    }
    if order > 0 {
        let [given, chosen] = [given, &orders[order]].map(|figures| figures.order_in(given));
        let step = best.estimate.step_time_s;
        let instead = match as_given {
            Some(other) => format!("in the given order ({given}) it takes {other}"),
            None => format!("in the given order ({given}) no plan was found"),
        };
        output::note(&format!(
            "the order of the nodes is changed to {chosen}: a step takes {step}; {instead}"
        ));
    }
    Ok(best)
}

/// Weakens the bound of a search to what holds for orders that were not searched, too.
fn leave_out(best: &mut Plan, unsearched: usize, orders: usize) {
    let merit = best.search.merit();
    best.search.stop_reason = StopReason::TimeLimit;
    if let Some(least) = best.cluster.least_step(&best.model, &best.job) {
        best.search.lower_bound_s = best.search.lower_bound_s.min(least);
    }
    best.search.gap = merit / best.search.lower_bound_s - 1.0;
    output::note(&format!(
        "the time limit left {unsearched} of {orders} orders of the nodes unsearched; give more time by `--time-limit`"
    ));
}
