//! `autodist profile`

use crate::cli::{DevicesArg, ProfileArgs, RanksArgs};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{input, output, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_profiler::Request;
use autodist_reports::terminal;
use autodist_spec::{InputError, Job, ModelSpec, Profile, to_json};
use std::path::Path;

pub const DEFAULT_BATCH: u32 = 8;
pub const DEFAULT_SEQ_LEN: u32 = 128;

pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    if args.devices == DevicesArg::Cuda {
        let error =
            InputError::new("--devices", "cuda", "this release runs on CPUs only: it has no CUDA backend");
        return Err(error.hint("use --devices cpu").into());
    }
    let model = input::model(&args.model.model)?;
    let job = input::job(&args.job, Some(DEFAULT_BATCH), Some(DEFAULT_SEQ_LEN.min(model.max_seq_len)))?;
    let request = request(model, job, &args.ranks, args.budget, args.precision)?;
    let options = train::options(&args.run)?;
    output::check_writable(&args.output)?;
    let profile = obtain(&request, &options, &args.output, args.fresh)?;
    output::print(&if args.json { to_json(&profile) } else { terminal::profile_summary(&profile) })?;
    output::note(&format!("wrote {}", args.output.display()));
    Ok(())
}

pub fn request(
    model: ModelSpec,
    job: Job,
    ranks: &RanksArgs,
    budget: f64,
    precision: f64,
) -> Result<Request, Failure> {
    let cores = autodist_executor::host::cores().len() as u32;
    let oversubscribe = ranks.oversubscribe;
    let ranks = ranks.ranks.unwrap_or(cores);
    autodist_spec::error::in_range("--ranks", u64::from(ranks), 1, 64)?;
    if ranks > cores && !oversubscribe {
        let problem = format!(
            "is more than the {cores} cores that this process may use: ranks that share a core wait for \
             each other's turns, and predicted step times would not hold"
        );
        let hint = format!("use --ranks {cores}, or --oversubscribe to try plans out all the same");
        return Err(InputError::new("--ranks", ranks, problem).hint(hint).into());
    }
    for (flag, value) in [("--budget", budget), ("--precision", precision)] {
        autodist_spec::error::positive(flag, value)?;
    }
    if job.seq_len > model.max_seq_len {
        let problem = format!("is more than the {} positions of {}", model.max_seq_len, model.name);
        let hint = format!("use --seq-len {} or less, or a model with more positions", model.max_seq_len);
        return Err(InputError::new("--seq-len", job.seq_len, problem).hint(hint).into());
    }
    // Ranks train for real: the data must suit the model before anything starts.
    train::data(None, &model, &job)?;
    Ok(Request { model, job, ranks, budget_s: budget, precision })
}

/// The profile of `request`: the one in `path` if it is of this model on this machine, gone on with if it is
/// unfinished, or a new one. It is saved after every piece.
pub fn obtain(
    request: &Request,
    options: &LaunchOptions,
    path: &Path,
    fresh: bool,
) -> Result<Profile, Failure> {
    let mut earlier = None;
    if path.exists() && !fresh {
        match input::profile(path) {
            Err(failure) => output::warn(&format!("measuring again: {failure}")),
            Ok(profile) => match autodist_profiler::matches(&profile, request) {
                Err(difference) => output::note(&format!(
                    "{} is another profile ({difference}): measuring again",
                    path.display()
                )),
                Ok(()) if profile.complete && autodist_profiler::covers(&profile, request) => {
                    output::note(&format!(
                        "{} is a profile of this model on this machine: reused",
                        path.display()
                    ));
                    return Ok(profile);
                }
                Ok(()) => {
                    output::note(&format!("{} is unfinished: going on with it", path.display()));
                    earlier = Some(profile);
                }
            },
        }
    }
    let mut progress = Progress::new("profile");
    let mut unsaved = None;
    let profile = autodist_profiler::profile(
        request,
        options,
        earlier,
        |at| progress.at(at.done, at.of, at.what),
        |partial| unsaved = output::write(path, to_json(partial).as_bytes()).err(),
    )?;
    drop(progress);
    if let Some(failure) = unsaved {
        return Err(failure);
    }
    output::write(path, to_json(&profile).as_bytes())?;
    profile.environment.warnings.iter().for_each(|warning| output::warn(warning));
    Ok(profile)
}
