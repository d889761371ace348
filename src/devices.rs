//! Selects the devices of the ranks.

use crate::cli::DevicesArg;
use crate::failure::Failure;
use crate::output;
use autodist_executor::{Absent, cuda, host};
use autodist_spec::{DeviceKind, InputError, Job, Plan, Precision, Recompute};

/// Flag of `profile` and `tune` that selects the devices.
pub const FLAG: &str = "--devices";

/// The devices that the flag selects on this machine.
pub struct Devices {
    pub kind: DeviceKind,
    pub count: u32,
}

/// GPUs if `flag` requests them, or if the machine has any.
///
/// # Errors
/// GPUs are requested but cannot be used: the missing part, where it was searched for, how to get it.
pub fn choose(arg: DevicesArg, flag: &str) -> Result<Devices, Failure> {
    let cores = Devices { kind: DeviceKind::Cpu, count: host::cores().len() as u32 };
    match arg {
        DevicesArg::Cpu => Ok(cores),
        DevicesArg::Cuda => gpus().map_err(|absent| refused(&absent, flag)),
        DevicesArg::Auto => Ok(gpus().unwrap_or_else(|absent| {
            output::note(&format!("ranks compute on CPU cores: {}", absent.brief));
            cores
        })),
    }
}

/// Whether this machine has the kind of devices that a plan needs.
///
/// # Errors
/// As for [`choose`].
pub fn check(kind: DeviceKind) -> Result<(), Failure> {
    match kind {
        DeviceKind::Cpu => Ok(()),
        DeviceKind::Cuda => gpus().map(|_| ()).map_err(|absent| {
            let problem = format!("cannot be used here: {}\n{}", absent.brief, absent.details);
            InputError::new("cost_source.profile.devices", "cuda", problem)
                .hint(
                    "plan for CPU cores, from `autodist profile --devices cpu`, or install what is missing; \
                     `autodist selftest --device cuda` checks it",
                )
                .into()
        }),
    }
}

/// # Errors
/// CPUs compute in fp32 only, and GPUs in what autodist trains.
pub fn check_precision(kind: DeviceKind, precision: Precision, flag: &str) -> Result<(), Failure> {
    if !precision.is_own() {
        let problem = "is not a precision of autodist's own engines";
        let error = InputError::new("--precision", precision.name(), problem);
        return Err(error.hint("use --precision bf16 or fp32, or train with another trainer").into());
    }
    if kind == DeviceKind::Cpu && precision != Precision::Fp32 {
        let problem = "needs a GPU: CPU ranks support only fp32";
        let error = InputError::new("--precision", precision.name(), problem);
        let hint = format!("use --precision fp32, or {flag} cuda where there is a GPU");
        return Err(error.hint(hint).into());
    }
    Ok(())
}

/// # Errors
/// As for [`check_precision`], for the job of a plan.
pub fn check_precision_of(plan: &Plan) -> Result<(), Failure> {
    let flag = "a plan from a profile with --devices";
    check_precision(plan.cost_source.devices(), plan.job.precision, flag).map_err(|failure| match failure {
        Failure::Input(error) => Failure::Input(InputError { field: "job.precision".to_owned(), ..error }),
        other => other,
    })
}

/// Removes options from the search that make no difference on these devices: GPUs never store attention
/// scores, so they always behave as with selective recomputation.
pub fn leave_out(kind: DeviceKind, job: &mut Job) {
    let recompute = &mut job.allow.recompute;
    if kind == DeviceKind::Cuda && recompute.contains(&Recompute::None) {
        recompute.retain(|policy| *policy != Recompute::Selective);
    }
}

/// The display name of device `ordinal` of `selftest`.
///
/// # Errors
/// There is no such GPU.
pub fn name(kind: DeviceKind, ordinal: usize) -> Result<String, Failure> {
    if kind == DeviceKind::Cpu {
        return Ok(format!("cpu ({})", host::processor()));
    }
    let found = cuda::survey().map_err(|absent| refused(&absent, "--device"))?.accelerators;
    let gpu = found.get(ordinal).ok_or_else(|| {
        let problem = format!("must be below {}, the number of GPUs of this machine", found.len());
        InputError::new("--ordinal", ordinal, problem).hint("GPUs are numbered from 0")
    })?;
    Ok(format!("{} (GPU {ordinal}, compute capability {}, driver {})", gpu.name, gpu.capability, gpu.driver))
}

fn gpus() -> Result<Devices, Absent> {
    let count = cuda::survey()?.accelerators.len() as u32;
    Ok(Devices { kind: DeviceKind::Cuda, count })
}

fn refused(absent: &Absent, flag: &str) -> Failure {
    InputError::new(flag, "cuda", format!("cannot be used here: {}\n{}", absent.brief, absent.details))
        .hint(format!(
            "use {flag} cpu, or install what is missing; `autodist selftest --device cuda` checks it"
        ))
        .into()
}
