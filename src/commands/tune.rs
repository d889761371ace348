//! `autodist tune`: profile → plan → validate → report, repeated if the measurement refutes the plan.

use super::profile::Obtained;
use super::validate::Validated;
use super::{next, plan as plan_command, profile as profile_command, report, validate};
use crate::cli::{SelectionArgs, TuneArgs};
use crate::failure::Failure;
use crate::rounds::{Earlier, MOST_STEPS};
use crate::{devices, engine, handover, input, interrupt, look, output, train};
use autodist_executor::launcher::LaunchOptions;
use autodist_planner::SearchLimits;
use autodist_profiler::Request;
use autodist_reports::terminal;
use autodist_spec::error::in_range;
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{Alternative, ParallelStrategy, Plan, Profile, RunRecord, Validation, to_json};
use serde::Serialize;
use std::path::Path;

/// The stable shape of `tune --json`.
#[derive(Serialize)]
struct Tuned<'a> {
    profile: &'a Profile,
    best: &'a Plan,
    validated: &'a Validation,
}

/// Target accuracy of the medians by default; more would take minutes.
const INTERVAL: f64 = 0.05;

/// Maximum number of times that the cells of a refuted plan are measured again and the search and training
/// repeated: a prediction that is still refuted then is not a single wrong measurement.
const REPEATS: usize = 2;

pub fn run(args: &TuneArgs) -> Result<(), Failure> {
    let model = input::model(&args.model.model)?;
    let seq_len = profile_command::DEFAULT_SEQ_LEN.min(model.max_seq_len);
    let job = input::job(&args.job, Some(profile_command::DEFAULT_BATCH), Some(seq_len), None)?;
    let devices = devices::choose(args.ranks.kind(), devices::FLAG)?;
    let engine = engine::asked_for(&args.run);
    let mut request =
        profile_command::request(model, job, &args.ranks, &devices, engine, args.budget, INTERVAL)?;
    super::check_own_engines(&args.strategy)?;
    super::check_experts(&request.model, &args.strategy.ep)?;
    input::narrow(&mut request.job, &args.strategy, request.ranks)?;
    // Profiling takes long, so all inputs are checked before it starts.
    in_range("--top", args.top as u64, 1, 100_000)?;
    in_range("--steps", u64::from(args.steps), 2, MOST_STEPS)?;
    input::check_data_file(args.data.as_ref())?;
    train::data(args.data.as_ref(), &request.model, &request.job)?;
    let options = train::options(&args.run, engine, devices.kind, request.emulated.as_ref())?;
    output::check_writable(&args.output.join("plan.json"))?;
    let _claim = output::claim(&args.output.join("plan.json"))?;
    distrust(&args.output)?;

    let (round, refuted) = rounds(args, &request, &options)?;
    let Round { profile, plan, validation, records, mut failure } = round;
    let (profile, plan, validation) = (&profile, &plan, &validation);
    let folder = &args.output;
    let mut page = None;
    // After an interruption, no report is written.
    if !matches!(failure, Some(Failure::Interrupted)) {
        let costs = report::costs_of(profile, plan);
        let commands = next::commands(plan, &folder.join("plan.json"), 1);
        let views =
            report::Views { plan, commands: &commands, costs: costs.as_ref(), profile: Some(profile) };
        match report::write(views, Some(validation), &records, &folder.join("report")) {
            Ok(written) => page = Some(written),
            Err(other) if failure.is_some() => output::error(&other),
            Err(other) => failure = Some(other),
        }
    }
    let outcome = || failure.map_or_else(|| handover::outcome(validation), Err);
    if args.json {
        output::print(&to_json(&Tuned { profile, best: plan, validated: validation }))?;
        return outcome();
    }
    let mut notes: Vec<(&str, String)> = refuted.into_iter().map(|before| ("before", before)).collect();
    let order = "the fastest measured plan comes first";
    notes.push(("next", format!("autodist train {}: {order}", folder.join("plan.json").display())));
    notes.extend(page.map(|page| ("report", page.display().to_string())));
    let view = look::view();
    output::show(&terminal::answer(plan, validation, &notes, &view))?;
    output::show(&format!("\n{}", terminal::validation_table(validation, &view)))?;
    if view.verbose {
        let file = folder.join("plan.json");
        output::show(&format!("\n{}", terminal::plan_summary(plan, Some(&file), &view)))?;
        output::show(&format!("\n{}", terminal::profile_summary(profile, None, &view)))?;
    }
    outcome()
}

/// A profile, its plans, and their measured times; the fastest measured plan is the document's choice.
struct Round {
    profile: Profile,
    plan: Plan,
    validation: Validation,
    records: Vec<RunRecord>,
    /// The reason for an early end of the round, or the file that could not be written.
    failure: Option<Failure>,
}

/// Profiles, searches, trains and orders the plans, until the measurement does not refute the search's choice
/// or the repeats are used up. Also returns earlier refutations, as text.
fn rounds(
    args: &TuneArgs,
    request: &Request,
    options: &LaunchOptions,
) -> Result<(Round, Vec<String>), Failure> {
    let folder = &args.output;
    let (profile_path, plan_path) = (folder.join("profile.json"), folder.join("plan.json"));
    let Obtained { mut profile, mut unwritten } =
        profile_command::obtain(request, options, &profile_path, false)?;
    let (mut trained, mut refuted) = (Vec::<Alternative>::new(), Vec::new());
    loop {
        let limits = SearchLimits { top: args.top, ..SearchLimits::default() };
        let planner = super::planner(&request.model, &profile.cluster, &request.job, &profile).limits(limits);
        let mut plan = interrupt::promptly(|| planner.plan())??;
        plan.name_profile("profile.json");
        let mut candidates = train::candidates(&plan);
        // Plans of earlier repeats are trained again, in turn with the new plans.
        let again = trained.iter().filter_map(|old| {
            let plan = planner.given(&old.strategy, Some(&old.stages)).ok()?;
            let reason = "trained before".to_owned();
            Some(Alternative {
                strategy: plan.strategy,
                stages: plan.stages,
                estimate: plan.estimate,
                reason,
            })
        });
        for old in again {
            // Records and verdicts identify plans by their labels.
            let same =
                |new: &Alternative| label(&new.strategy, &new.stages) == label(&old.strategy, &old.stages);
            if !candidates.iter().any(same) {
                candidates.push(old);
            }
        }
        if refuted.is_empty() {
            // Written early, so that an interruption leaves a plan; later it is replaced by a measured one.
            unwritten = go_on(plan_command::write(&plan, Some(&plan_path))).or(unwritten);
        }
        let selection =
            SelectionArgs { top: args.top, all: false, steps: args.steps, data: args.data.clone() };
        let runs = folder.join("runs");
        let Validated { validation, records, failure } = validate::validate(
            &plan,
            &candidates,
            &selection,
            None,
            options,
            &runs,
            Earlier::ResumeUnfinished,
        )?;
        let measured = (&validation, records.as_slice());
        let plan = handover::measured_first(&plan, &candidates, measured, Some(&profile), candidates.len());
        unwritten = go_on(plan_command::write(&plan, Some(&plan_path))).or(unwritten);
        if failure.is_none() && validation.verdict == Some(Verdict::Refuted) && refuted.len() < REPEATS {
            let doubtful = plan.measured.as_ref().map(|m| m.refuted.as_slice()).unwrap_or_default();
            if forget(&mut profile, doubtful, &profile_path)? {
                let verdict = terminal::verdict(&validation);
                output::note(&format!(
                    "{verdict}\nmeasuring again what the predictions of these plans are based on, repeat {} of {REPEATS}: {}",
                    refuted.len() + 1,
                    labels(doubtful)
                ));
                refuted.push(verdict);
                keep(&runs)?;
                trained = candidates;
                let again = profile_command::obtain(request, options, &profile_path, false)?;
                profile = again.profile;
                unwritten = again.unwritten.or(unwritten);
                continue;
            }
        }
        return Ok((Round { profile, plan, validation, records, failure: failure.or(unwritten) }, refuted));
    }
}

/// Reports a write error, and continues.
fn go_on(written: Result<(), Failure>) -> Option<Failure> {
    let failure = written.err()?;
    output::warn(&format!("{failure}; continuing without it"));
    Some(failure)
}

fn labels(strategies: &[ParallelStrategy]) -> String {
    strategies.iter().map(ParallelStrategy::label).collect::<Vec<_>>().join(", ")
}

/// Drops the cells that these plans depend on and writes the profile, which is then unfinished; false if the
/// profile has no such cells.
fn forget(profile: &mut Profile, plans: &[ParallelStrategy], path: &Path) -> Result<bool, Failure> {
    let dropped = autodist_profiler::forget(profile, plans);
    if dropped > 0 {
        output::write(path, to_json(profile).as_bytes())?;
    }
    Ok(dropped > 0)
}

/// Drops cells of a profile that led to a refuted plan, according to the plan document in the folder.
fn distrust(folder: &Path) -> Result<(), Failure> {
    let path = folder.join("profile.json");
    let (Ok(plan), Ok(mut profile)) = (input::plan(&folder.join("plan.json")), input::profile(&path)) else {
        // No earlier run, or not one of autodist: errors in the profile are reported when it is used.
        return Ok(());
    };
    let refuted = plan.measured.map(|measured| measured.refuted).unwrap_or_default();
    let same = plan.cost_source.profile().is_some_and(|own| own.fingerprint == profile.fingerprint());
    if same && forget(&mut profile, &refuted, &path)? {
        output::note(&format!(
            "{} led to plans that the measurement refuted: measuring again what their predictions are based on: {}",
            path.display(),
            labels(&refuted)
        ));
    }
    Ok(())
}

/// Keeps the records that refuted a plan next to those of the next repeat.
fn keep(runs: &Path) -> Result<(), Failure> {
    let beside = |number: usize| runs.with_file_name(format!("runs-refuted-{number}"));
    let free = (1..).map(beside).find(|folder| !folder.exists());
    let Some(kept) = free else { return Ok(()) };
    std::fs::rename(runs, &kept).map_err(|source| Failure::Write { path: kept, source })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use autodist_cost_model::synthetic::SyntheticMachine;
    use autodist_spec::{Job, Recompute, Segment, SegmentCost, catalog};

    fn profile() -> Profile {
        SyntheticMachine::new(2).profile(&catalog::model("tiny-llama").unwrap(), &Job::new(8, 64))
    }

    #[test]
    fn exactly_the_cells_that_a_refuted_plan_stands_on_are_measured_again() {
        let before = profile();
        let strategy =
            ParallelStrategy { tensor: 2, data: 1, micro_batch: 2, ..ParallelStrategy::data_parallel(1, 2) };
        let mut after = before.clone();
        let dropped = autodist_profiler::forget(&mut after, std::slice::from_ref(&strategy));
        assert!(dropped > 0 && !after.complete);
        let of_it = |cell: &&SegmentCost| {
            let of_block = !matches!(
                cell.segment,
                Segment::Embedding
                    | Segment::FinalNorm
                    | Segment::Logits
                    | Segment::Normalizer
                    | Segment::Loss
            );
            (cell.tensor, cell.sequence_parallel, cell.micro_batch) == (2, false, 2)
                && (cell.recompute == Recompute::None || !of_block)
        };
        let kept: Vec<SegmentCost> = before.segments.iter().filter(|cell| !of_it(cell)).cloned().collect();
        assert!(kept.len() < before.segments.len());
        assert_eq!(after.segments, kept);
        assert!(after.collectives.is_empty() && after.messages.is_empty(), "links are measured in one piece");
        assert_eq!((&after.optimizer, &after.hardware), (&before.optimizer, &before.hardware));
        // If no plan depends on any cell, the profile stays unchanged.
        let mut again = after.clone();
        assert_eq!(autodist_profiler::forget(&mut again, &[]), 0);
        assert_eq!(again, after);
    }

    #[test]
    fn a_micro_batch_that_was_not_measured_stands_on_its_neighbours() {
        let mut profile = profile();
        profile.segments.retain(|cell| cell.micro_batch != 2);
        let micro_batches = |profile: &Profile| {
            let mut all: Vec<u32> =
                profile.segments.iter().filter(|c| c.tensor == 1).map(|c| c.micro_batch).collect();
            all.sort_unstable();
            all.dedup();
            all
        };
        let full: Vec<u32> = micro_batches(&profile);
        let strategy = ParallelStrategy::data_parallel(2, 2);
        // If two plans depend on the same cells, the second must not drop others instead.
        autodist_profiler::forget(&mut profile, &[strategy.clone(), strategy]);
        let left = profile.segments.iter().filter(|c| c.tensor == 1 && c.recompute == Recompute::None);
        let left: std::collections::BTreeSet<u32> = left.map(|cell| cell.micro_batch).collect();
        let expected: std::collections::BTreeSet<u32> =
            full.into_iter().filter(|micro_batch| ![1, 4].contains(micro_batch)).collect();
        assert_eq!(left, expected);
    }
}
