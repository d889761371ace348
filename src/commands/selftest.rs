//! `autodist selftest`

use crate::cli::SelftestArgs;
use crate::devices;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{look, output};
use autodist_compute::DeviceError;
use autodist_compute::selftest::{self, SelftestResult, UnitRoundoff};
use autodist_executor::{ExecutionError, TrainingDevice, cuda, devices as opened};
use autodist_reports::{Align, Screen, Table};
use autodist_spec::{DeviceKind, Precision, to_json};
use serde::Serialize;
use std::collections::BTreeMap;

/// The stable shape of `selftest --json`.
#[derive(Serialize)]
struct Report {
    devices: DeviceKind,
    device: String,
    passed: bool,
    precisions: Vec<Results>,
}

#[derive(Serialize)]
struct Results {
    precision: Precision,
    checks: Vec<Outcome>,
}

/// One check; `error` is null where a result is not finite or something was overwritten.
#[derive(Serialize)]
struct Outcome {
    what: &'static str,
    case: String,
    error: f64,
    tolerance: f64,
    passed: bool,
}

pub fn run(args: &SelftestArgs) -> Result<(), Failure> {
    let found = devices::choose(args.device, "--device")?;
    let all: &[Precision] = match found.kind {
        DeviceKind::Cpu => &[Precision::Fp32],
        DeviceKind::Cuda => &Precision::OWN,
    };
    let only = args.precision;
    if let Some(precision) = only {
        devices::check_precision(found.kind, precision, "--device")?;
    }
    let mut report = Report {
        devices: found.kind,
        device: devices::name(found.kind, args.ordinal)?,
        passed: true,
        precisions: Vec::new(),
    };
    for precision in all.iter().copied().filter(|p| only.is_none_or(|only| only == *p)) {
        let checks = match found.kind {
            DeviceKind::Cpu => check(&opened::cpu(precision).map_err(failed)?, precision)?,
            DeviceKind::Cuda => {
                let device = cuda::open(args.ordinal, precision).map_err(failed)?;
                let mut checks = check(&device, precision)?;
                checks.extend(check_by(precision, |seen| cuda::codecs_match(&device, seen))?);
                checks
            }
        };
        report.passed &= checks.iter().all(SelftestResult::passed);
        report.precisions.push(Results { precision, checks: checks.into_iter().map(result).collect() });
    }
    if args.json {
        output::print(&to_json(&report))?;
    } else {
        output::show(&table(&report))?;
    }
    if report.passed {
        return Ok(());
    }
    Err(Failure::Run("the results of the device differ from the CPU's: do not train on it".to_owned()))
}

fn failed(error: ExecutionError) -> Failure {
    Failure::Run(error.to_string())
}

fn check<D: TrainingDevice>(device: &D, precision: Precision) -> Result<Vec<SelftestResult>, Failure> {
    check_by(precision, |seen| selftest::run(device, UnitRoundoff::of(precision), seen))
}

fn check_by(
    precision: Precision,
    checks: impl FnOnce(&mut dyn FnMut(&SelftestResult)) -> Result<Vec<SelftestResult>, DeviceError>,
) -> Result<Vec<SelftestResult>, Failure> {
    let mut progress = Progress::new("selftest");
    let mut done = 0;
    // The number of checks depends on the device.
    let mut seen = |check: &SelftestResult| {
        done += 1;
        progress.counted(done, &format!("{}: {}", precision.name(), check.what));
    };
    let checked = checks(&mut seen).map_err(|error| Failure::Run(error.to_string()));
    progress.end(checked.is_ok());
    checked
}

fn result(check: SelftestResult) -> Outcome {
    let passed = check.passed();
    Outcome { what: check.what, case: check.case, error: check.error, tolerance: check.tolerance, passed }
}

/// One line per operation, its worst check first; every failure in full.
fn table(report: &Report) -> String {
    let codecs = match report.devices {
        DeviceKind::Cpu => "",
        DeviceKind::Cuda => ", and each codec against the host's",
    };
    let view = look::view();
    let mut screen = Screen::new(&view);
    screen.paragraph(format!(
        "{}: each operation and layer against the CPU in double precision{codecs}",
        report.device
    ));
    for Results { precision, checks } in &report.precisions {
        let mut rows: BTreeMap<&str, Vec<&Outcome>> = BTreeMap::new();
        for check in checks {
            rows.entry(check.what).or_default().push(check);
        }
        let mut table = Table::new(&[
            ("operation", Align::Left),
            ("checks", Align::Right),
            ("worst error", Align::Right),
            ("allowed", Align::Right),
            ("result", Align::Left),
        ]);
        for (what, checks) in rows {
            let Some(worst) = checks.iter().max_by(|a, b| used(a).total_cmp(&used(b))) else { continue };
            let verdict = if checks.iter().all(|c| c.passed) { "ok" } else { "WRONG" };
            table.row([
                what.to_owned(),
                checks.len().to_string(),
                format!("{:.1e}", worst.error),
                format!("{:.1e}", worst.tolerance),
                verdict.to_owned(),
            ]);
        }
        screen.section(precision.name(), &table);
        for check in checks.iter().filter(|check| !check.passed) {
            screen.prose(&format!(
                "  WRONG: {}, {}: {:.1e}, allowed {:.1e}",
                check.what, check.case, check.error, check.tolerance
            ));
        }
        let passed = checks.iter().filter(|c| c.passed).count();
        screen.paragraph(format!("{passed} of {} checks passed", checks.len()));
    }
    screen.finish()
}

/// The fraction of its tolerance that a check uses.
fn used(check: &Outcome) -> f64 {
    check.error / check.tolerance
}
