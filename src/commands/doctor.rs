//! `autodist doctor`: what this machine has, and what each command would do here.

use crate::cli::DoctorArgs;
use crate::commands::profile::{DEFAULT_BATCH, DEFAULT_SEQ_LEN};
use crate::failure::Failure;
use crate::{engine, input, look, output};
use autodist_executor::{External, Reference, cuda, host};
use autodist_reports::terminal;
use autodist_reports::training::duration;
use autodist_spec::{Bytes, FlopsPerSecond, Job, ModelSpec, Seconds, to_json};
use serde::Serialize;
use std::path::Path;

/// The stable shape of `doctor --json`.
#[derive(Serialize)]
struct Findings {
    findings: Vec<Finding>,
}

/// What was found out about one thing.
#[derive(Serialize)]
struct Finding {
    /// The thing, in a word or two.
    what: &'static str,
    /// `ok`, `note` (something is absent that only some users need), or `problem`.
    state: State,
    says: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Ok,
    Note,
    Problem,
}

/// Plans that `tune` trains by default, and steps of each.
const TUNED: (f64, f64) = (5.0, 20.0);

/// Seconds of measuring that `profile` takes by default.
const BUDGET: f64 = 60.0;

/// Load per core above which measured times are noisy.
const BUSY: f64 = 0.3;

pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let model = input::model(args.model.as_deref().unwrap_or(super::DEFAULT_MODEL))?;
    let seq_len = DEFAULT_SEQ_LEN.min(model.max_seq_len);
    let job = input::job(&args.job, Some(DEFAULT_BATCH), Some(seq_len), None)?;
    let mut findings = Vec::new();
    let mut say = |what, state, says: String| findings.push(Finding { what, state, says });
    let cores = host::cores().len();
    let memory = Bytes(host::available_memory());
    say(
        "processor",
        State::Ok,
        format!("{cores} cores for ranks ({}), {memory} of memory free", host::processor()),
    );
    let rate = match gpus() {
        Ok(text) => {
            say("GPUs", State::Ok, text);
            None
        }
        Err(absent) => {
            let text = format!("none: {absent}; ranks compute on CPU cores");
            say("GPUs", State::Note, text);
            Some(core_rate())
        }
    };
    say_load(&mut say, cores);
    let realtime = host::has_realtime();
    let (state, text) = if realtime {
        (State::Ok, "ranks get real-time priority, so that other load does not slow them".to_owned())
    } else {
        let advice = "run as root, or allow RLIMIT_RTPRIO of 21 or more; --no-realtime turns the request off";
        (State::Note, format!("ranks get none: measured times include other load ({advice})"))
    };
    say("priority", state, text);
    let (state, text) = match engine::find_torch(args.python.as_ref()) {
        Ok(text) => (State::Ok, text),
        Err(why) => (State::Note, format!("not usable: {why}; only `--engine torch` needs it")),
    };
    say("PyTorch", state, text);
    say("transports", State::Ok, transports());
    if let Some(external) = External::from_environment()? {
        let text = format!(
            "{} has started this process as rank {} of {}",
            external.launcher, external.rank, external.world
        );
        say("launcher", State::Ok, text);
    }
    let (state, text) = match output::check_writable(Path::new("autodist-doctor")) {
        Ok(()) => (State::Ok, files()),
        Err(failure) => (State::Problem, format!("results cannot be written here: {failure}")),
    };
    say("folder", state, text);
    for (what, text) in durations(&model, &job, rate, cores) {
        say(what, State::Ok, text);
    }
    let problem = findings.iter().find(|one| one.state == State::Problem).map(|one| one.says.clone());
    let text = if args.json {
        to_json(&Findings { findings })
    } else {
        let line = |one: &Finding| {
            let mark = match one.state {
                State::Ok => "",
                State::Note => "note: ",
                State::Problem => "PROBLEM: ",
            };
            (one.what, format!("{mark}{}", one.says))
        };
        terminal::labelled(&findings.iter().map(line).collect::<Vec<_>>(), &look::view())
    };
    output::print_with(&text, problem.map_or(Ok(()), |problem| Err(Failure::Run(problem))))
}

/// The GPUs of this machine, or why there are none.
fn gpus() -> Result<String, String> {
    let found = cuda::survey().map_err(|absent| absent.brief.clone())?.accelerators;
    let name = |gpu: &autodist_spec::profile::Accelerator| {
        format!("{} ({}, driver {})", gpu.name, gpu.memory_bytes, gpu.driver)
    };
    Ok(format!("{}: {}", found.len(), found.iter().map(name).collect::<Vec<_>>().join(", ")))
}

/// The rate of one core's GEMMs, from the benchmark that runs beside every measured step.
fn core_rate() -> FlopsPerSecond {
    let mut reference = Reference::new();
    // The first one warms the caches.
    reference.seconds();
    let seconds = (0..3).map(|_| reference.seconds()).fold(f64::INFINITY, f64::min);
    FlopsPerSecond(Reference::FLOPS / seconds)
}

fn say_load(say: &mut impl FnMut(&'static str, State, String), cores: usize) {
    let load = std::fs::read_to_string("/proc/loadavg").ok();
    let Some(load) = load.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()) else {
        return;
    };
    let (state, verdict) = if load > BUSY * cores as f64 {
        (State::Note, "other programs run: measured times will vary, and intervals be wide")
    } else {
        (State::Ok, "quiet enough to measure")
    };
    say("load", state, format!("{load:.2} on {cores} cores: {verdict}"));
}

/// How ranks can communicate.
fn transports() -> String {
    let mpi = match (cfg!(feature = "mpi"), host::find_program(Path::new("mpirun"))) {
        (true, Ok(path)) => format!("MPI with {}", path.display()),
        (true, Err(_)) => "MPI is built in, but there is no mpirun".to_owned(),
        (false, _) => "no MPI (build with `--features mpi`)".to_owned(),
    };
    let have = |name: &str| host::find_program(Path::new(name)).is_ok();
    let starters: Vec<&str> = ["ssh", "torchrun", "srun"].into_iter().filter(|name| have(name)).collect();
    format!(
        "TCP; {mpi}; programs that start ranks on other machines: {}",
        if starters.is_empty() { "none".to_owned() } else { starters.join(", ") }
    )
}

/// What this folder holds already.
fn files() -> String {
    let of = |name: &str| -> Option<String> {
        let path = Path::new(name);
        let document = path.exists().then(|| input::any_document(path))?;
        Some(match document {
            Ok(input::AnyDocument::Profile(profile)) => {
                let state = if profile.complete { "" } else { ", unfinished" };
                format!(
                    "{name} (of {} at {} tokens on {}{state})",
                    profile.model.name, profile.seq_len, profile.environment.host
                )
            }
            Ok(input::AnyDocument::Plan(plan)) => {
                format!("{name} (for {} on {})", plan.model.name, plan.cluster.name)
            }
            Ok(input::AnyDocument::Run(run)) => format!("{name} (of {})", run.label),
            Err(failure) => format!("{name} (cannot be read: {failure})"),
        })
    };
    let names = ["profile.json", "plan.json", "run.json", "autodist-tune/plan.json"];
    let found: Vec<String> = names.into_iter().filter_map(of).collect();
    if found.is_empty() { "can be written; no results yet".to_owned() } else { found.join("; ") }
}

/// What the commands that measure would do, and the least time that they need.
fn durations(
    model: &ModelSpec,
    job: &Job,
    core: Option<FlopsPerSecond>,
    cores: usize,
) -> Vec<(&'static str, String)> {
    let flops = model.step_flops(job.tokens(), u64::from(job.seq_len));
    let (batch, length) = (job.global_batch, job.seq_len);
    let what = format!("{} with {batch} sequences of {length} tokens per step", model.name);
    let Some(rate) = core else {
        return vec![(
            "profile",
            format!("would measure {what} on the GPUs for about {BUDGET} s (--budget)"),
        )];
    };
    let step = flops / FlopsPerSecond(rate.0 * cores as f64);
    let trained = step * (TUNED.0 * TUNED.1);
    let at_least = |time: Seconds| format!("at least {}", duration(time));
    vec![
        (
            "a step",
            format!(
                "{what}: {} on {cores} cores, at the {rate} of a core's GEMMs (measured now)",
                at_least(step)
            ),
        ),
        (
            "profile",
            format!(
                "would measure its layers for about {} (--budget), longer if one round takes longer",
                duration(Seconds(BUDGET))
            ),
        ),
        ("plan", "would search for seconds, with the profile or with --cluster".to_owned()),
        (
            "validate",
            format!("would train {} plans for {} steps each: {}", TUNED.0, TUNED.1, at_least(trained)),
        ),
        ("tune", format!("would do all three: {}", at_least(trained + Seconds(BUDGET)))),
    ]
}
