//! Speed of devices in a training step, relative to published figures.

use crate::cluster::Cluster;
use crate::job::Job;
use crate::model::ModelSpec;
use crate::units::{FlopsPerSecond, Seconds};
use std::fmt;

/// Published peak of dense GEMMs of one kind of number.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Peak {
    /// Dense operations per second of one device.
    pub rate: FlopsPerSecond,
    /// Kind of number, as "bf16".
    pub arithmetic: &'static str,
}

impl fmt::Display for Peak {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, published)", self.rate, self.arithmetic)
    }
}

/// Model FLOPs of a step per second and device, and the published peak that they are a part of.
///
/// Model FLOPs are those of the model's GEMMs, forward and backward, without recomputation (Narayanan et al.,
/// SC'21, appendix). Attention's GEMMs count in full, even if a causal kernel skips half of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Utilisation {
    /// The rate that one device achieved.
    pub achieved: FlopsPerSecond,
    /// Absent if no peak is published for this device and precision.
    pub peak: Option<Peak>,
}

impl Utilisation {
    /// The utilisation of a job on a cluster with a step time of `step`.
    pub fn of(model: &ModelSpec, job: &Job, cluster: &Cluster, step: Seconds) -> Self {
        let flops = job.step_flops(model);
        let achieved = FlopsPerSecond((flops / step).0 / f64::from(cluster.device_count().max(1)));
        Self { achieved, peak: cluster.published_peak(job.precision.name()) }
    }

    /// Model FLOPs utilisation (Chowdhery et al., PaLM, 2204.02311, appendix B), from 0 to 1. `None` if the
    /// peak is unknown, or if the ratio is above 1, which no device reaches.
    pub fn mfu(&self) -> Option<f64> {
        self.share().filter(|share| (0.0..=1.0).contains(share))
    }

    fn share(&self) -> Option<f64> {
        Some(self.achieved / self.peak?.rate)
    }

    /// The warning if the rate is above the peak.
    pub fn contradiction(&self) -> Option<String> {
        let peak = self.peak.filter(|_| self.share().is_some_and(|share| share > 1.0))?;
        Some(format!(
            "{} per device exceeds the peak of the device, {peak}: one of the two is wrong, so no MFU is given",
            self.achieved
        ))
    }
}

/// Formats as "11.6 TFLOP/s per device, 1.2 % of its 989 TFLOP/s (bf16, published): MFU with attention GEMMs
/// counted in full".
impl fmt::Display for Utilisation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} per device", self.achieved)?;
        match (self.mfu(), self.peak) {
            (Some(mfu), Some(peak)) => {
                write!(f, ", {:.1} % of its {peak}: MFU with attention GEMMs counted in full", 100.0 * mfu)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(achieved: f64, peak: Option<f64>) -> Utilisation {
        let peak = peak.map(|rate| Peak { rate: FlopsPerSecond(rate), arithmetic: "bf16" });
        Utilisation { achieved: FlopsPerSecond(achieved), peak }
    }

    #[test]
    fn a_share_has_a_published_peak_and_is_never_above_it() {
        assert_eq!(
            of(11.6e12, Some(989e12)).to_string(),
            "11.6 TFLOP/s per device, 1.2 % of its 989 TFLOP/s (bf16, published): MFU with attention GEMMs counted in full"
        );
        assert_eq!(of(2e9, None).to_string(), "2.00 GFLOP/s per device");
        assert_eq!((of(2e9, None).mfu(), of(2e9, None).contradiction()), (None, None));
        let above = of(1.2e15, Some(989e12));
        assert_eq!((above.mfu(), above.to_string().as_str()), (None, "1.20 PFLOP/s per device"));
        let warning = above.contradiction().unwrap();
        assert!(warning.contains("1.20 PFLOP/s") && warning.contains("989 TFLOP/s"), "{warning}");
        assert_eq!(of(f64::INFINITY, Some(1.0)).mfu(), None);
    }
}
