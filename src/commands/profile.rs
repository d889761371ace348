//! `autodist profile`

use crate::cli::{ProfileArgs, RanksArgs};
use crate::devices::{self, Devices};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{engine, external, input, look, output, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_profiler::Request;
use autodist_program::engine::{Untrained, check_model};
use autodist_reports::terminal;
use autodist_spec::{
    Cluster, DeviceKind, Engine, InputError, Job, ModelSpec, Positions, Profile, doubt, to_json,
};
use std::path::Path;

pub const DEFAULT_BATCH: u32 = 8;
pub const DEFAULT_SEQ_LEN: u32 = 128;

pub fn run(args: &ProfileArgs) -> Result<(), Failure> {
    let model = input::model(&args.model.model)?;
    let seq_len = DEFAULT_SEQ_LEN.min(model.max_seq_len);
    let job = input::job(&args.job, Some(DEFAULT_BATCH), Some(seq_len), None)?;
    let devices = devices::choose(args.ranks.kind(), devices::FLAG)?;
    let engine = engine::asked_for(&args.run);
    let request = request(model, job, &args.ranks, &devices, engine, args.budget, args.interval)?;
    let options = train::options(&args.run, engine, devices.kind, request.emulated.as_ref())?;
    output::check_no_input(&args.output)?;
    output::check_writable(&args.output)?;
    let _claim = output::claim(&args.output)?;
    let Obtained { profile, unwritten } = obtain(&request, &options, &args.output, args.fresh)?;
    let file = Some(args.output.as_path());
    let text =
        if args.json { to_json(&profile) } else { terminal::profile_summary(&profile, file, &look::view()) };
    output::print_with(&text, unwritten.map_or(Ok(()), Err))?;
    output::note(&format!("wrote {}", args.output.display()));
    Ok(())
}

/// A profile, and the write error if it could not be saved.
pub struct Obtained {
    pub profile: Profile,
    pub unwritten: Option<Failure>,
}

pub fn request(
    model: ModelSpec,
    mut job: Job,
    ranks: &RanksArgs,
    devices: &Devices,
    engine: Engine,
    budget: f64,
    interval: f64,
) -> Result<Request, Failure> {
    let emulated = ranks.emulate.as_deref().map(input::emulated).transpose()?;
    if emulated.is_some() && external::world().is_some() {
        let error = InputError::new(
            "--emulate",
            "",
            "emulates several machines on this one, but a launcher has started several processes",
        );
        return Err(error.hint("start autodist without a launcher, or remove `--emulate`").into());
    }
    // Devices that wait most of the time can share a core.
    let oversubscribe = ranks.oversubscribe || emulated.is_some();
    let world = external::world();
    let ranks =
        emulated.as_ref().map(Cluster::device_count).or(ranks.ranks).or(world).unwrap_or(devices.count);
    autodist_spec::error::in_range("--ranks", u64::from(ranks), 1, 64)?;
    if let Some(world) = world.filter(|world| *world != ranks) {
        let error =
            InputError::new("--ranks", ranks, format!("must be the number of started processes, {world}"));
        return Err(error.hint("remove `--ranks`, or start as many processes").into());
    }
    let share = external::share(ranks, devices)?;
    if share.ranks > share.devices && !oversubscribe {
        let what = match devices.kind {
            DeviceKind::Cpu => "cores that this process may use: ranks that share a core",
            DeviceKind::Cuda => "GPUs that this process sees: ranks that share a GPU",
        };
        let problem = format!(
            "is more than the {} {what} wait for each other, so that predicted step times would not apply",
            share.devices
        );
        let fewer = if world.is_some() {
            "start fewer processes per machine".to_owned()
        } else {
            format!("use --ranks {}", share.devices)
        };
        let hint = format!("{fewer}, or add `--oversubscribe` to try plans without valid predictions");
        return Err(InputError::new("--ranks", share.ranks, problem).hint(hint).into());
    }
    devices::check_precision(devices.kind, job.precision, devices::FLAG)?;
    if let Some((field, value)) = job.states.settings().into_iter().next() {
        let problem =
            "is not measured: engines of autodist keep their state in fp32, in the memory of the device";
        let error = InputError::new(field, value, problem);
        return Err(error.hint("remove it, or estimate and plan without a profile, by `--cluster`").into());
    }
    if !job.trainable.is_all() {
        let problem = "is not measured: engines of autodist train whole models";
        let error = InputError::new("trainable", job.trainable.label(), problem);
        return Err(error.hint("remove it, or estimate and plan without a profile, by `--cluster`").into());
    }
    engine::check_devices(engine, devices.kind)?;
    devices::leave_out(devices.kind, &mut job);
    engine::leave_out(engine, &mut job);
    for (flag, value) in [("--budget", budget), ("--interval", interval)] {
        autodist_spec::error::positive(flag, value)?;
    }
    if let Err(Untrained { what, way_out }) = check_model(&model, job.seq_len) {
        let problem = format!("{what}, which autodist's own engines do not train");
        let way_out = way_out.map_or(String::new(), |way_out| format!("{way_out}, or "));
        let hint =
            format!("{way_out}plan it for another trainer, without a profile: `autodist plan --cluster`");
        return Err(InputError::new("--model", &model.name, problem).hint(hint).into());
    }
    if model.positions == Positions::Learned && job.seq_len > model.max_seq_len {
        let problem =
            format!("must be at most {}, the number of positions of {}", model.max_seq_len, model.name);
        let hint = format!("use --seq-len {} or less, or a model with more positions", model.max_seq_len);
        return Err(InputError::new("--seq-len", job.seq_len, problem).hint(hint).into());
    }
    // Ranks train on real data, so check that it suits the model before anything starts.
    train::data(None, &model, &job)?;
    let shared = share.ranks > share.devices;
    let machines = external::machines()?;
    Ok(Request { model, job, ranks, shared, budget_s: budget, interval, emulated, engine, machines })
}

/// Sets a file that no measurement continues aside; returns where it is kept, for a message.
fn kept(path: &Path) -> Result<String, Failure> {
    let kept = output::set_aside(path)?;
    Ok(kept.map_or(String::new(), |kept| format!("; the file is kept as {}", kept.display())))
}

/// The profile for `request`: the one in `path` if it is of this model on this machine, continued if it is
/// unfinished, or a new one. It is saved after every measurement.
pub fn obtain(
    request: &Request,
    options: &LaunchOptions,
    path: &Path,
    fresh: bool,
) -> Result<Obtained, Failure> {
    let mut earlier = None;
    if path.exists() && !fresh {
        match input::profile(path) {
            Err(failure) => {
                let kept = kept(path)?;
                output::warn(&format!("measuring again{kept}: {failure}"));
            }
            Ok(profile) => match autodist_profiler::matches(&profile, request, options) {
                Err(difference) => {
                    // It may have taken hours.
                    let kept = kept(path)?;
                    let path = path.display();
                    output::note(&format!(
                        "{path} is a profile of something else ({difference}): measuring again{kept}"
                    ));
                }
                Ok(()) if profile.complete && autodist_profiler::covers(&profile, request) => {
                    output::note(&format!(
                        "{} is a profile of this model on this machine: reused",
                        path.display()
                    ));
                    return Ok(Obtained { profile, unwritten: None });
                }
                Ok(()) => {
                    let mut judged = profile.clone();
                    autodist_profiler::judge(&mut judged);
                    let path = path.display();
                    if !judged.doubts.is_empty() {
                        output::warn(&format!("{path} holds doubtful measurements: measuring those again"));
                    } else {
                        output::note(&format!("{path} is unfinished: continuing with it"));
                    }
                    for line in doubt::lines(&judged.doubts) {
                        output::warn(&format!("{path}: {line}"));
                    }
                    earlier = Some(profile);
                }
            },
        }
    }
    let mut progress = Progress::new("profile");
    let (mut pieces, mut known, mut warned) = (0, 0, false);
    let profile = autodist_profiler::profile(
        request,
        options,
        earlier,
        |at| {
            pieces += usize::from(at.done > 0);
            let what = format!("{}, {} of {} in round {}", at.what, at.done, at.of, at.round);
            progress.within(at.used_s, at.budget_s, &what);
        },
        |partial| match output::write_growing(path, to_json(partial).as_bytes()) {
            Ok(()) => known += 1,
            Err(failure) if !std::mem::replace(&mut warned, true) => {
                output::warn(&format!("{failure}; measuring continues"));
            }
            Err(_) => {}
        },
    );
    progress.end(profile.is_ok());
    let profile = match profile {
        Ok(profile) => profile,
        Err(error) => {
            if known > 0 {
                output::note(&format!(
                    "{} holds what was measured so far, {pieces} pieces: the same command continues from there",
                    path.display()
                ));
            }
            return Err(error.into());
        }
    };
    let unwritten = output::write(path, to_json(&profile).as_bytes()).err();
    profile.environment.warnings.iter().for_each(|warning| output::warn(warning));
    doubt::lines(&profile.doubts).iter().for_each(|line| output::warn(line));
    Ok(Obtained { profile, unwritten })
}
