//! `autodist estimate --best` of mixture-of-experts models: the fastest layouts, by the closed form.

use super::estimate_experts::{document, sound, text as text_of, utilisation};
use super::estimate_unmeasured::Asked;
use crate::failure::Failure;
use autodist_analytic::{Fixed, Found, FreeParameters, TrainingRun, search};
use autodist_spec::error::in_range;
use autodist_spec::{Bytes, InputError, to_json};
use std::fmt::Write;

/// The fastest layouts and their output.
pub struct Best {
    found: Found,
    devices: u32,
}

impl Best {
    /// The fastest layouts that the flags leave open.
    pub fn of(
        run: &TrainingRun,
        asked: &Asked,
        devices: u32,
        parameters: &FreeParameters,
        error_bar: impl Fn(&TrainingRun) -> (f64, String),
        keep: usize,
    ) -> Result<Self, Failure> {
        let flags = &asked.flags;
        for (flag, given) in [
            ("--shard", flags.shard.map(u64::from)),
            ("--bucket-bytes", flags.bucket_bytes),
            ("--schedule", flags.schedule.map(|_| 0)),
        ] {
            if let Some(value) = given {
                let error = InputError::new(flag, value, "has no effect with `--best`");
                return Err(error.hint(format!("remove `{flag}`, or remove `--best`")).into());
            }
        }
        for (flag, degree) in [("--tp", flags.tp), ("--cp", flags.cp), ("--pp", flags.pp), ("--dp", flags.dp)]
        {
            if let Some(value) = degree.filter(|degree| *degree == 0 || !devices.is_multiple_of(*degree)) {
                let error = InputError::new(flag, value, format!("must divide the {devices} devices"));
                return Err(error
                    .hint(format!("use a divisor of {devices}, or remove `{flag}` to search it"))
                    .into());
            }
        }
        for (flag, value) in [("--vpp", flags.vpp), ("--ep", flags.ep), ("--micro-batch", flags.micro_batch)]
        {
            in_range(flag, u64::from(value.unwrap_or(1)), 1, 1 << 20)?;
        }
        let fixed = Fixed {
            tensor: flags.tp,
            context: flags.cp,
            pipeline: flags.pp,
            data: flags.dp,
            virtual_stages: flags.vpp,
            expert: flags.ep,
            zero_stage: flags.zero,
            micro_batch: flags.micro_batch,
            recompute: asked.recompute(),
            sequence_parallel: flags.sp,
        };
        let found = search(run, devices, &fixed, parameters, error_bar, keep);
        found.best.iter().try_for_each(|(run, estimate)| sound(run, estimate))?;
        if !found.best.is_empty() {
            return Ok(Self { found, devices });
        }
        let memory = run.machine.memory;
        let error = match found.least_memory {
            Some(least) => {
                let problem = format!(
                    "is too small for all {} layouts; the smallest layout needs {}",
                    found.considered,
                    Bytes(least as u64)
                );
                InputError::new("usable memory of a device", memory, problem).hint(
                    "use more devices, or devices with more memory, or remove flags that restrict the layout",
                )
            }
            None => {
                let problem = "no layout satisfies these flags".to_owned();
                let batch = run.global_batch;
                InputError::new("number of devices", devices, problem).hint(format!(
                    "degrees must divide the devices, heads and blocks, and the global batch of {batch}: remove flags, or change `--global-batch`"
                ))
            }
        };
        Err(Failure::Infeasible(error.to_string()))
    }

    pub fn json(&self, source: &str) -> String {
        let layouts: Vec<_> = self
            .found
            .best
            .iter()
            .map(|(run, estimate)| {
                let mut document = document(run, estimate, source);
                document["flags"] = flags(run).into();
                document
            })
            .collect();
        to_json(&serde_json::json!({
            "best": layouts, "considered": self.found.considered, "too_large": self.found.too_large,
        }))
    }

    pub fn text(&self, source: &str) -> String {
        let found = &self.found;
        let (best, estimate) = &found.best[0];
        let peak = utilisation(best, estimate).peak;
        let peak = peak.map(|peak| format!(" (MFU relative to {peak})")).unwrap_or_default();
        let mut text = format!(
            "{} layouts of {} devices were priced, of which {} do not fit in memory; the fastest{}:\n\n{:>10}  {:>9}  {:>7}  {:>9}  flags\n",
            found.considered, self.devices, found.too_large, peak, "step", "tokens/s", "MFU", "memory"
        );
        for (run, estimate) in &found.best {
            let tokens = f64::from(run.global_batch) * f64::from(run.seq_len);
            let mfu = utilisation(run, estimate).mfu();
            let mfu = mfu.map_or_else(|| "-".to_owned(), |mfu| format!("{:.1} %", 100.0 * mfu));
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "{:>10}  {:>9.0}  {:>7}  {:>9}  {}",
                estimate.step.to_string(),
                tokens / estimate.step.0 / f64::from(self.devices),
                mfu,
                Bytes(estimate.memory.total() as u64).to_string(),
                flags(run)
            );
        }
        let near = found.best.iter().filter(|(_, e)| e.step.0 <= estimate.step.0 * NEAR).count();
        if near > 1 {
            let _ = writeln!(
                text,
                "\n{near} of these are within {:.0} % of the first, which is less than the scatter of predictions for one job (docs/validation.md)",
                100.0 * (NEAR - 1.0)
            );
        }
        let _ = write!(text, "\nthe fastest\n{}", text_of(best, estimate, source));
        text
    }
}

/// Scatter of errors inside a set of layouts of one job, as printed by `autodist backtest
/// --leave-one-group-out`.
const NEAR: f64 = 1.02;

/// The flags that describe a run's layout.
fn flags(run: &TrainingRun) -> String {
    let layout = &run.layout;
    let mut text = String::new();
    let mut degree = |name: &str, value: u32, usual: u32| {
        if value != usual {
            let _ = write!(text, "--{name} {value} ");
        }
    };
    degree("tp", layout.tensor, 1);
    degree("cp", layout.context, 1);
    degree("pp", layout.pipeline, 1);
    degree("vpp", layout.virtual_stages, 1);
    degree("dp", layout.data, 0);
    degree("ep", layout.expert, 1);
    degree("micro-batch", run.micro_batch, 0);
    let sequence = if layout.sequence_parallel { "--sp " } else { "" };
    let recompute = format!("{:?}", run.recompute).to_lowercase();
    let _ = write!(text, "--zero {} {sequence}--recompute {recompute}", layout.zero_stage);
    text
}
