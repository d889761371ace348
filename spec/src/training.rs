//! A whole training: how long it takes and what it costs at a plan's step time.

use crate::cluster::Cluster;
use crate::error::{InputError, in_range, not_negative, positive};
use crate::job::Job;
use crate::units::Seconds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most tokens of a training.
const MOST_TOKENS: u64 = 1 << 60;

/// Most dollars that a device costs per hour.
const DEAREST: f64 = 1e6;

/// Time and cost of a training of a number of tokens. All devices are paid for all of the time; failures, restarts,
/// checkpoints and evaluations are not included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Training {
    /// Tokens of the training, as given.
    pub tokens: u64,
    /// Optimizer steps, the last one not always full.
    pub steps: u64,
    pub time_s: Seconds,
    /// Half-width of the interval, in proportion to that of the step time.
    pub time_spread_s: Seconds,
    /// Hours of all devices together.
    pub device_hours: f64,
    /// In US dollars; absent if a device has no price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_usd: Option<f64>,
    /// Half-width of the interval of `cost_usd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost_spread_usd: Option<f64>,
}

impl Training {
    /// The training of a job's `training_tokens` with steps that take `step ± step_spread`; `None` if the job does not
    /// give them.
    pub fn of(job: &Job, cluster: &Cluster, step: Seconds, step_spread: Seconds) -> Option<Self> {
        let tokens = job.training_tokens?;
        let steps = tokens.div_ceil(job.tokens().max(1));
        let time_s = step * steps as f64;
        let spread = step_spread / step;
        let hours = time_s.0 / 3600.0;
        let cost_usd = cluster.usd_per_hour().map(|usd| usd * hours);
        Some(Self {
            tokens,
            steps,
            time_s,
            time_spread_s: time_s * spread,
            device_hours: hours * f64::from(cluster.device_count()),
            cost_usd,
            cost_spread_usd: cost_usd.map(|usd| usd * spread),
        })
    }

    pub(crate) fn check(&self) -> Result<(), InputError> {
        check_tokens("tokens", self.tokens)?;
        positive("time_s", self.time_s.0)?;
        not_negative("time_spread_s", self.time_spread_s.0)?;
        positive("device_hours", self.device_hours)?;
        for (field, usd) in [("cost_usd", self.cost_usd), ("cost_spread_usd", self.cost_spread_usd)] {
            usd.map_or(Ok(()), |usd| not_negative(field, usd).map(drop))?;
        }
        Ok(())
    }
}

/// # Errors
/// Not a number of tokens that a training can have.
pub(crate) fn check_tokens(field: &str, tokens: u64) -> Result<(), InputError> {
    in_range(field, tokens, 1, MOST_TOKENS)
}

/// # Errors
/// Not a price in dollars.
pub(crate) fn check_price(field: &str, usd: f64) -> Result<(), InputError> {
    if (0.0..=DEAREST).contains(&usd) {
        return Ok(());
    }
    Err(InputError::new(field, usd, "must be a price in US dollars from 0 to 1,000,000 per device and hour")
        .hint("give the price of one device for one hour, e.g. 2.5"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_devices_and_money_follow_the_steps() {
        let mut cluster = Cluster::from_short_form("2x8xh100-80gb-sxm@8x400gbps").unwrap();
        let mut job = Job::new(512, 4096);
        let of = |job: &Job, cluster: &Cluster| Training::of(job, cluster, Seconds(10.0), Seconds(1.0));
        assert_eq!(of(&job, &cluster), None);
        // 360 full steps and a part of one.
        job.training_tokens = Some(360 * 512 * 4096 + 1);
        let training = of(&job, &cluster).unwrap();
        assert_eq!((training.steps, training.time_s), (361, Seconds(3610.0)));
        assert_eq!(training.time_spread_s, Seconds(361.0));
        assert!((training.device_hours - 16.0 * 3610.0 / 3600.0).abs() < 1e-9);
        assert_eq!(training.cost_usd, None);
        cluster.nodes[0].usd_per_device_hour = Some(2.5);
        let training = of(&job, &cluster).unwrap();
        assert!((training.cost_usd.unwrap() - 2.5 * training.device_hours).abs() < 1e-9);
        assert!((training.cost_spread_usd.unwrap() - 0.1 * training.cost_usd.unwrap()).abs() < 1e-9);
    }
}
