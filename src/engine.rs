//! Selects the training engine: autodist's own executor, or PyTorch.

use crate::cli::{RunArgs, TransportArg};
use crate::failure::Failure;
use crate::output;
use autodist_executor::launcher::Torch;
use autodist_program::engine;
use autodist_spec::{DeviceKind, Engine, InputError, Job, ParallelStrategy, Plan, Recompute};
use std::path::{Path, PathBuf};

const BESIDE: &str = ".venv/bin/python";
const INSTALL: &str = "python3 -m venv .venv && .venv/bin/pip install ./executor/torch";
/// The version of PyTorch that this release is tested with.
const TESTED: &str = "2.15.";

/// The engine for new measurements.
pub fn asked_for(run: &RunArgs) -> Engine {
    run.engine.unwrap_or_default()
}

/// The engine for training a plan: the plan's own, unless another is requested.
pub fn of_plan(run: &RunArgs, plan: &Plan) -> Engine {
    run.engine.unwrap_or(plan.cost_source.engine())
}

/// Finds PyTorch, or fails.
///
/// # Errors
/// The missing part, where it was searched for, and how to get it; or an option that it does not support.
pub fn torch(run: &RunArgs, emulated: bool) -> Result<Torch, Failure> {
    let refused = |problem: &str, hint: &str| {
        Err(Failure::from(InputError::new("--engine", "torch", problem).hint(hint)))
    };
    if emulated {
        return refused("cannot emulate other devices and links", "use --engine native, or remove --emulate");
    }
    if run.transport == TransportArg::Mpi {
        return refused("communicates over Gloo or NCCL, not over MPI", "remove `--transport mpi`");
    }
    let python = python(run);
    let torch = Torch::find(&python).map_err(|problem| {
        let value = python.display().to_string();
        let named = run.python.is_some() || std::env::var_os("AUTODIST_PYTHON").is_some();
        let unasked = if run.engine.is_none() && !named && Path::new(BESIDE).exists() {
            ", or give --engine torch to use .venv/bin/python, which is not run if only a plan asks for PyTorch"
        } else {
            ""
        };
        InputError::new("--python", value, format!("cannot run engine torch: {problem}")).hint(format!(
            "install it with `{INSTALL}`, or set --python or AUTODIST_PYTHON to a Python that has it{unasked}"
        ))
    })?;
    if !torch.version().starts_with(TESTED) {
        output::warn(&format!("PyTorch {}: this release is tested with {TESTED}x", torch.version()));
    }
    Ok(torch)
}

/// PyTorch's version and its interpreter, for advice. As for a plan that asks for PyTorch, no interpreter of the working
/// folder is run unless it is given.
///
/// # Errors
/// What is missing, and how to get it.
pub fn find_torch(given: Option<&PathBuf>) -> Result<String, String> {
    let python = interpreter(given, false);
    match Torch::find(&python) {
        Ok(torch) => Ok(format!("{} with {}", torch.version(), python.display())),
        Err(problem) if given.is_none() && Path::new(BESIDE).exists() => {
            Err(format!("{}: {problem}; `--python {BESIDE}` looks in this folder", python.display()))
        }
        Err(problem) => Err(format!("{}: {problem}; install it with `{INSTALL}`", python.display())),
    }
}

/// The interpreter of the ranks.
pub fn python(run: &RunArgs) -> PathBuf {
    interpreter(run.python.as_ref(), run.engine == Some(Engine::Torch))
}

/// The given interpreter; that of the working folder's environment only if the command line itself requests
/// the engine, because a plan may come from an untrusted folder.
fn interpreter(given: Option<&PathBuf>, requested: bool) -> PathBuf {
    let beside = Path::new(BESIDE);
    match (given, std::env::var_os("AUTODIST_PYTHON")) {
        (Some(path), _) => path.clone(),
        (None, Some(path)) => path.into(),
        (None, None) if requested && beside.exists() => beside.to_owned(),
        (None, None) => PathBuf::from("python3"),
    }
}

/// # Errors
/// The part of the strategy that the engine does not support.
pub fn check(
    engine: Engine,
    plan: &Plan,
    strategy: &ParallelStrategy,
    field: &str,
) -> Result<(), InputError> {
    engine::check(engine, &plan.model, &plan.job, strategy).map_err(|broken| {
        InputError::new(field, strategy.label(), broken.reason)
            .hint("plan with a profile of that engine (`autodist profile --engine torch`): such plans use only what it supports")
    })
}

/// # Errors
/// The engine does not support profiling on such devices.
pub fn check_devices(engine: Engine, devices: DeviceKind) -> Result<(), InputError> {
    if (engine, devices) == (Engine::Torch, DeviceKind::Cuda) {
        let problem = "can be profiled only on CPUs: on a GPU its kernels are queued, so that the host's clock cannot time segments";
        return Err(InputError::new("--engine", "torch", problem)
            .hint("use --devices cpu, or profile with --engine native: such plans train on GPUs with `train --engine torch`"));
    }
    Ok(())
}

/// Removes options from the search that make no difference to an engine: PyTorch's attention stores no
/// scores, so it always behaves as with selective recomputation.
pub fn leave_out(engine: Engine, job: &mut Job) {
    let recompute = &mut job.allow.recompute;
    if engine == Engine::Torch && recompute.contains(&Recompute::None) {
        recompute.retain(|policy| *policy != Recompute::Selective);
    }
}
