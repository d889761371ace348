//! The search over parts of a cluster: more devices are not always faster.
//!
//! A part is chosen if it is faster than all devices, or as fast: then the others are free for something else. If it
//! is a little slower, or if all devices must be used, the plan says how it compares.

use crate::failure::Failure;
use crate::output;
use autodist_planner::{Infeasible, SearchLimits};
use autodist_spec::strategy::label;
use autodist_spec::{Cluster, ClusterPart, DeviceChoice, Job, ModelSpec, Plan, Seconds};

/// Plans whose times differ by less are as fast.
const TIE: f64 = 0.01;

/// The most that a part may be slower to be named, even if the error bar is wider.
const LITTLE: f64 = 0.1;

/// What is searched.
pub struct FewerDevices<'a> {
    pub model: &'a ModelSpec,
    pub job: &'a Job,
    pub cluster: &'a Cluster,
    pub limits: SearchLimits<'a>,
    /// Whether the plan must use every device.
    pub all_devices: bool,
}

impl FewerDevices<'_> {
    /// `whole`, or the plan of a part of the cluster that is as fast. `plan` searches a part.
    ///
    /// # Errors
    /// There is neither a plan of the whole cluster nor of a part: the refusal of the whole.
    pub fn choose(
        &self,
        whole: Result<Plan, Failure>,
        plan: impl Fn(&ClusterPart, SearchLimits) -> Result<Plan, Infeasible>,
    ) -> Result<Plan, Failure> {
        // A refusal of the input itself is not one of the number of devices.
        if !matches!(whole, Ok(_) | Err(Failure::Infeasible(_))) || self.job.allow.placements.is_some() {
            return whole;
        }
        if whole.is_err() && self.all_devices {
            return whole;
        }
        let mut found = self.parts(whole.as_ref().ok(), plan);
        // A plan that can be trusted is not replaced by one that cannot.
        let doubtful = |plan: &Plan| plan.estimate.is_risky() || plan.estimate.is_unverified();
        if whole.as_ref().is_ok_and(|whole| !doubtful(whole)) {
            found.retain(|part| !doubtful(part));
        }
        let least = found.iter().chain(whole.as_ref().ok()).map(merit).fold(f64::INFINITY, f64::min);
        // The fewest devices of those that are as fast, and of equally many the fastest.
        let fast = found.iter().filter(|part| merit(part) <= least * (1.0 + TIE));
        let fewest = fast
            .min_by(|one, other| devices(one).cmp(&devices(other)).then(merit(one).total_cmp(&merit(other))));
        let mut whole = match (whole, fewest) {
            (Err(refusal), None) => return Err(refusal),
            (Err(refusal), Some(part)) => return Ok(self.instead(part.clone(), None, &refusal.to_string())),
            (Ok(whole), Some(part)) if !self.all_devices => {
                return Ok(self.instead(part.clone(), Some(&whole), ""));
            }
            (Ok(whole), _) => whole,
        };
        // The fastest if it wins, otherwise the one with the fewest device hours.
        let time = merit(&whole);
        let wins = found.iter().filter(|part| merit(part) * (1.0 + TIE) < time);
        let fastest = wins.min_by(|a, b| merit(a).total_cmp(&merit(b)));
        let hours = |plan: &&Plan| merit(plan) * f64::from(devices(plan));
        let cheapest = || found.iter().min_by(|a, b| hours(a).total_cmp(&hours(b)));
        if let Some(part) = fastest.or_else(cheapest) {
            whole.device_choice = Some(self.compared(&whole, part));
        }
        Ok(whole)
    }

    /// The plans of the parts that are not slower than `whole` by more than its interval.
    fn parts(
        &self,
        whole: Option<&Plan>,
        plan: impl Fn(&ClusterPart, SearchLimits) -> Result<Plan, Infeasible>,
    ) -> Vec<Plan> {
        let within = |plan: &Plan| {
            let bar = plan.estimate.step_time_spread_s / plan.estimate.step_time_s;
            Seconds(merit(plan) * (1.0 + bar.clamp(TIE, LITTLE)))
        };
        let mut at_most = whole.map(within);
        let (mut found, mut unsearched) = (Vec::new(), 0);
        for part in self.cluster.parts() {
            let least = part.cluster.least_step(self.model, self.job);
            if at_most.zip(least).is_some_and(|(most, least)| least > most) {
                continue;
            }
            if self.limits.deadline.is_some_and(|expired| expired()) {
                unsearched += 1;
                continue;
            }
            let plan = plan(&part, SearchLimits { at_most, ..self.limits }).ok();
            if let Some(plan) = plan.filter(|plan| at_most.is_none_or(|most| merit(plan) <= most.0)) {
                at_most = at_most.into_iter().chain([within(&plan)]).reduce(Seconds::min);
                found.push(plan);
            }
        }
        if unsearched > 0 {
            output::note(&format!(
                "the time limit left plans on fewer devices unsearched ({unsearched} parts of the cluster); give more time by \
                 `--time-limit`"
            ));
        }
        found
    }

    /// The plan of a part, chosen over that of all devices.
    fn instead(&self, mut part: Plan, whole: Option<&Plan>, refusal: &str) -> Plan {
        let (used, all) = (devices(&part), self.cluster.device_count());
        let reason = match whole {
            None => {
                let why = refusal.lines().find(|line| line.contains("strategies:")).unwrap_or(refusal);
                let why = why.lines().next().unwrap_or_default().trim_start_matches([' ', '├', '╰', '─']);
                format!("no plan uses all {all} devices ({why}): {} left off", others(all - used))
            }
            Some(whole) => {
                let speed = merit(whole) / merit(&part);
                let how = if speed > 1.0 + TIE {
                    format!("{} {speed:.2} times as fast as {}", are(used, all), together(all))
                } else {
                    format!("{} as fast as {}", are(used, all), together(all))
                };
                let hours = share(&part, whole);
                format!("{how}, for {hours:.0} % of the device hours: {} left off", others(all - used))
            }
        };
        part.device_choice = Some(DeviceChoice {
            cluster: self.cluster.name.clone(),
            devices: all,
            other_devices: all,
            other_plan: whole.map(|whole| label(&whole.strategy, &whole.stages)),
            other_step_time_s: whole.map(|whole| whole.estimate.step_time_s),
            reason,
        });
        part
    }

    /// How a part compares with the plan of all devices, which is used.
    fn compared(&self, whole: &Plan, part: &Plan) -> DeviceChoice {
        let (used, all) = (devices(part), self.cluster.device_count());
        let speed = merit(whole) / merit(part);
        let how = if speed > 1.0 + TIE {
            format!("{speed:.2} times as fast as {}", together(all))
        } else if speed > 1.0 - TIE {
            format!("as fast as {}", together(all))
        } else {
            format!(
                "{:.0} % slower than {}, which is within the error bar",
                100.0 * (1.0 / speed - 1.0),
                together(all)
            )
        };
        let hours = share(part, whole);
        let chosen = if speed > 1.0 - TIE { ": `--fewer-devices` plans for it" } else { "" };
        let name = &part.cluster.name;
        let reason =
            format!("{} {how}, for {hours:.0} % of the device hours ({name}){chosen}", are(used, all));
        DeviceChoice {
            cluster: self.cluster.name.clone(),
            devices: all,
            other_devices: used,
            other_plan: Some(label(&part.strategy, &part.stages)),
            other_step_time_s: Some(part.estimate.step_time_s),
            reason,
        }
    }
}

fn merit(plan: &Plan) -> f64 {
    plan.search.merit().0
}

fn devices(plan: &Plan) -> u32 {
    plan.cluster.device_count()
}

/// Device hours of a part, in percent of those of the whole.
fn share(part: &Plan, whole: &Plan) -> f64 {
    let hours = |plan: &Plan| plan.estimate.step_time_s.0 * f64::from(devices(plan));
    100.0 * hours(part) / hours(whole)
}

fn are(used: u32, all: u32) -> String {
    format!("{used} of {all} devices {}", if used == 1 { "is" } else { "are" })
}

fn together(all: u32) -> String {
    if all == 2 { "both".to_owned() } else { format!("all {all}") }
}

fn others(count: u32) -> String {
    if count == 1 { "the other is".to_owned() } else { format!("the other {count} are") }
}
