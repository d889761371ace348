//! What a prediction rests on that may be wrong, in sentences: for users who ask how sure it is.

use crate::basis::Basis;
use crate::calibration::Calibration;
use crate::estimate::time;
use crate::parameters::FreeParameters;
use crate::run::TrainingRun;
use crate::trainer::AttentionKind;
use crate::work::{StepWork, attention_shape};
use autodist_spec::{Precision, Segment};

/// Kernels without measurements that are named.
const NAMED: usize = 3;

impl Calibration {
    /// What widens the error bar of a prediction, or may.
    pub fn doubts(&self, run: &TrainingRun, parameters: &FreeParameters) -> Vec<String> {
        let bases = self.bases_of(run, parameters);
        let bars = self.bars();
        let known = self.own.as_ref().is_some_and(|_| self.applies_to(run));
        let mut doubts: Vec<String> = Vec::new();
        for basis in &bases {
            let bar = match bars.of.get(basis) {
                // The bar of own runs is not that of others.
                _ if known => String::new(),
                Some(bar) => format!("; runs {} are predicted to ± {:.1} %", basis.words(), 100.0 * bar),
                None => format!("; too few runs {} were measured to know how well", basis.words()),
            };
            doubts.push(reason(*basis, run, parameters) + &bar);
        }
        doubts.extend(run.kernels_out_of_range());
        doubts
    }
}

/// How a basis comes about in a run.
fn reason(basis: Basis, run: &TrainingRun, parameters: &FreeParameters) -> String {
    let device = &run.machine.device_name;
    match basis {
        Basis::ExtrapolatedDevice => {
            format!(
                "no kernels were measured on {device} or a device of its generation: they are extrapolated"
            )
        }
        Basis::OtherTrainer => format!("{} was not fitted: no run of it is in the fit", run.trainer.name()),
        Basis::EightBits => "GEMMs in FP8 scatter more than those in 16 bits".to_owned(),
        Basis::Experts => "how evenly tokens are routed to experts is not predicted".to_owned(),
        Basis::HostBound => {
            let parts = time(run, &StepWork::of(run), parameters);
            format!(
                "host-bound: for {:.0} % of the step devices wait for the host, the speed of which is a usual one",
                100.0 * parts.host_s / parts.total()
            )
        }
        Basis::AssumedFacts => {
            let facts = match run.assumptions.len() {
                1 => "1 fact was".to_owned(),
                count => format!("{count} facts were"),
            };
            format!("{facts} assumed, not given: {}", run.assumptions.join("; "))
        }
    }
}

impl TrainingRun {
    /// GEMMs and attention of sizes beyond those that were measured.
    fn kernels_out_of_range(&self) -> Option<String> {
        let device = &self.machine.device;
        let dtype = if self.dtype.is_mixed() { self.dtype } else { Precision::Bf16 };
        let [attention, mlp] = self.kernels();
        let mut found: Vec<String> = Vec::new();
        for (kernels, part) in [(&attention, Segment::Attention), (&mlp, Segment::Mlp)] {
            for layer in kernels.linear.iter().filter(|layer| layer.count > 0.0) {
                let [m, n, k] = [layer.rows, layer.out, layer.into].map(|size| size.ceil() as u64);
                if !device.covers_gemm(dtype, m, n, k) {
                    found.push(format!("a GEMM of {m} x {n} x {k} ({})", part.name()));
                }
            }
        }
        if let Some(core) = attention.core.as_ref().filter(|_| self.attention != AttentionKind::Unfused) {
            let shape = attention_shape(self, core);
            if !device.covers_attention(&shape) {
                let (heads, width, keys) = (shape.heads, shape.head_dim, shape.keys);
                found.push(format!("attention with {heads} heads of {width} over {keys} tokens"));
            }
        }
        if found.is_empty() {
            return None;
        }
        found.dedup();
        let more = match found.len().saturating_sub(NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Some(format!(
            "kernels out of the range that was measured, extrapolated from others: {}{more}",
            found[..found.len().min(NAMED)].join(", ")
        ))
    }
}
