//! Trains plans in rounds. The measurements of each round are saved before the next starts, so that an
//! interrupted validation loses only the current training, and can be resumed.

use crate::compare::measured_steps;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{input, output, train};
use autodist_executor::launcher::{LaunchError, LaunchOptions, News, launch};
use autodist_executor::{DataSource, Growing, LONGEST_RECORD, Task};
use autodist_profiler::Assignment;
use autodist_spec::profile::Sample;
use autodist_spec::run::{Ended, Rounds};
use autodist_spec::strategy::label;
use autodist_spec::{Alternative, InputError, Plan, RunRecord, fingerprint, to_json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Rounds over all plans: the speed of a shared machine changes for seconds at a time, so every plan is
/// measured many times for a short while, in turn with the others, instead of once for a long time.
const ROUNDS: u32 = 5;
const EMULATED_ROUNDS: u32 = 2;
/// Maximum steps of a validation, whose records hold every step.
pub const MOST_STEPS: u64 = LONGEST_RECORD as u64;

/// The treatment of records that an earlier validation has left in the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Earlier {
    /// Overwrite them.
    Replace,
    /// Continue them; records of another validation are refused.
    Resume,
    /// Continue them if they belong to this validation and it was not finished.
    ResumeUnfinished,
}

/// The training of some plans in rounds.
pub struct Session<'a> {
    pub folder: &'a Path,
    /// Measured steps of a round.
    pub per_round: u32,
    pub rounds: u32,
    fingerprint: String,
    pub plans: Vec<Trial>,
    /// The error that ended it before all rounds were done.
    pub ended: Option<Failure>,
}

/// One plan and its training so far.
pub struct Trial {
    pub label: String,
    file: PathBuf,
    task: Task,
    pub record: Option<RunRecord>,
    /// Why its training stopped.
    pub failed: Option<String>,
    /// The last attempt to write its record failed.
    unsaved: bool,
}

impl Trial {
    fn done(&self) -> u32 {
        self.record.as_ref().and_then(|record| record.rounds.as_ref()).map_or(0, |rounds| rounds.done)
    }
}

impl<'a> Session<'a> {
    /// # Errors
    /// Earlier records that should be continued belong to another validation.
    pub fn new(
        plan: &Plan,
        candidates: &[Alternative],
        data: &DataSource,
        steps: u32,
        options: &LaunchOptions,
        folder: &'a Path,
        earlier: Earlier,
    ) -> Result<Self, Failure> {
        // The speed of an emulated device is constant.
        let rounds = if options.network.is_some() { EMULATED_ROUNDS } else { ROUNDS }.min(steps);
        let per_round = steps.div_ceil(rounds);
        let earlier_files = records(folder);
        let trial = |(index, candidate): (usize, &Alternative)| {
            // The prediction is for the steps after a codec's warm-up.
            let warmup = train::WARMUP_STEPS.max(candidate.strategy.communication.warmup_steps());
            let label = label(&candidate.strategy, &candidate.stages);
            let name = label.replace(['=', '/'], "-").replace(' ', "_");
            // The order of plans may have changed: after a validation it is the measured order.
            let known =
                earlier_files.iter().find(|(_, plan, _)| *plan == name).map(|(.., file)| file.clone());
            Trial {
                file: known.unwrap_or_else(|| folder.join(format!("{index:03}-{name}.json"))),
                label,
                task: Task {
                    strategy: candidate.strategy.clone(),
                    stages: candidate.stages.clone(),
                    ..Task::of_plan(plan, data.clone(), warmup + per_round, warmup)
                },
                record: None,
                failed: None,
                unsaved: false,
            }
        };
        let mut session = Self {
            folder,
            per_round,
            rounds,
            fingerprint: fingerprint(&(&plan.model, &plan.job, plan.cost_source.fingerprint(), data)),
            plans: candidates.iter().enumerate().map(trial).collect(),
            ended: None,
        };
        session.take_up(options, earlier)?;
        Ok(session)
    }

    fn take_up(&mut self, options: &LaunchOptions, earlier: Earlier) -> Result<(), Failure> {
        let mut found = Vec::new();
        if earlier == Earlier::Resume {
            self.refuse_others()?;
        }
        for (index, trial) in self.plans.iter().enumerate() {
            if !trial.file.exists() {
                continue;
            }
            let record = input::run(&trial.file).and_then(|record| {
                self.belongs(trial, &record, options).map(|()| record).map_err(Failure::from)
            });
            match (record, earlier) {
                (Ok(record), _) => found.push((index, record)),
                (Err(failure), Earlier::Resume) => return Err(failure),
                (Err(_), _) => {}
            }
        }
        let finished = |record: &RunRecord| {
            record.ended.is_none() && record.rounds.as_ref().is_some_and(|rounds| rounds.done >= self.rounds)
        };
        let all = found.len() == self.plans.len() && found.iter().all(|(_, record)| finished(record));
        let folder = self.folder.display();
        match earlier {
            Earlier::Resume if found.is_empty() => output::note(&format!(
                "{folder} holds no record of these plans: there is nothing to resume, so all plans are trained"
            )),
            Earlier::Replace if !found.is_empty() && !all => output::warn(&format!(
                "{folder} holds an unfinished validation of these plans, which is now overwritten; use --resume to continue one"
            )),
            _ => {}
        }
        if found.is_empty() || earlier == Earlier::Replace || (all && earlier == Earlier::ResumeUnfinished) {
            return Ok(());
        }
        let rounds: u32 = found.iter().filter_map(|(_, record)| Some(record.rounds.as_ref()?.done)).sum();
        output::note(&format!(
            "{folder} holds {rounds} of {} trainings of these plans: continuing with the rest",
            self.rounds as usize * self.plans.len()
        ));
        for (index, record) in found {
            // Failed plans are tried again.
            self.plans[index].record = Some(RunRecord { ended: None, ..record });
        }
        Ok(())
    }

    /// Refuses a folder in which a record has the path of one of this session's records, but another plan.
    fn refuse_others(&self) -> Result<(), InputError> {
        for (number, _, path) in records(self.folder) {
            if let Some(trial) = self.plans.get(number)
                && !self.plans.iter().any(|trial| trial.file == path)
            {
                let problem =
                    format!("is the record of another plan than this validation's, {}", trial.label);
                return Err(InputError::new("--resume", path.display(), problem)
                    .hint("give the plan and the flags of the validation to resume, or another folder with `--output`"));
            }
        }
        Ok(())
    }

    /// Whether a record is one of this session's.
    fn belongs(&self, trial: &Trial, record: &RunRecord, options: &LaunchOptions) -> Result<(), InputError> {
        let differs = |field: &str, theirs: String, ours: String| {
            let error = InputError::new(field, theirs, format!("differs from this validation's, {ours}"));
            Err(error
                .in_file(&trial.file.display().to_string())
                .hint("give the plan and the flags of the validation to resume, or remove `--resume` to start again"))
        };
        if (&record.strategy, &record.stages) != (&trial.task.strategy, &trial.task.stages) {
            return differs("strategy", record.label.clone(), trial.label.clone());
        }
        let (theirs, ours) = (record.environment.engine.name(), options.engine.name());
        if theirs != ours {
            return differs("environment.engine", theirs.to_owned(), ours.to_owned());
        }
        let (theirs, ours) = (record.environment.devices.name(), options.devices.name());
        if theirs != ours {
            return differs("environment.devices", theirs.to_owned(), ours.to_owned());
        }
        if record.environment.emulated != options.network.is_some() {
            let theirs = record.environment.emulated.to_string();
            return differs("environment.emulated", theirs, options.network.is_some().to_string());
        }
        let Some(rounds) = &record.rounds else {
            return differs("rounds", "absent".to_owned(), "which trains in rounds".to_owned());
        };
        if rounds.fingerprint != self.fingerprint {
            let ours = format!("{}: its model, job, profile or data differ", self.fingerprint);
            return differs("rounds.fingerprint", rounds.fingerprint.clone(), ours);
        }
        if (rounds.steps, rounds.of) != (self.per_round, self.rounds) {
            let theirs = format!("{} in each of {} rounds", rounds.steps, rounds.of);
            let ours = format!("{} in each of {} (--steps)", self.per_round, self.rounds);
            return differs("rounds.steps", theirs, ours);
        }
        if measured_steps(record).len() as u64 != u64::from(rounds.done) * u64::from(rounds.steps) {
            let ours = format!("{} steps in each of {} rounds", rounds.steps, rounds.done);
            return differs("steps", measured_steps(record).len().to_string(), ours);
        }
        Ok(())
    }

    /// Trains every plan in rounds, every second one in reverse order. `round_done` is called after each.
    pub fn train(&mut self, options: &LaunchOptions, mut round_done: impl FnMut(&Self)) {
        let mut progress = Progress::new("validate");
        for round in 0..self.rounds {
            let mut order: Vec<usize> = (0..self.plans.len()).collect();
            if round % 2 == 1 {
                order.reverse();
            }
            order.retain(|index| self.plans[*index].failed.is_none() && self.plans[*index].done() <= round);
            if order.is_empty() {
                continue;
            }
            if let Err(error) = self.train_round(round, &order, options, &mut progress) {
                self.ended = Some(error.into());
                break;
            }
            round_done(self);
        }
        progress.end(self.ended.is_none());
        // The disk may have space again.
        for index in 0..self.plans.len() {
            if self.plans[index].unsaved {
                let _ = self.save(index);
            }
        }
    }

    /// Trains the plans of `order`, in one launch if there are no failures. A plan whose ranks fail is
    /// marked, and the others continue with new ranks.
    fn train_round(
        &mut self,
        round: u32,
        order: &[usize],
        options: &LaunchOptions,
        progress: &mut Progress,
    ) -> Result<(), LaunchError> {
        let mut left = order.to_vec();
        while let Some(first) = left.first().copied() {
            let assignments: Vec<_> = left
                .iter()
                .map(|index| {
                    let trial = &self.plans[*index];
                    // Memory is the same in every round.
                    let task = Task { count_memory: trial.record.is_none(), ..trial.task.clone() };
                    serde_json::json!(Assignment::Train(Box::new(task)))
                })
                .collect();
            let mut answered = 0;
            let mut growing: BTreeMap<usize, Growing> = BTreeMap::new();
            self.show(progress, round, Some(first));
            let result = launch(self.plans[first].task.world(), &assignments, options, |news| {
                let (News::Progress { assignment, .. } | News::Done { assignment, .. }) = news;
                // Ignores other assignments.
                let Some(index) = left.get(assignment).copied() else { return };
                let task = &self.plans[index].task;
                let done = matches!(news, News::Done { .. });
                let record = growing.entry(assignment).or_insert_with(|| Growing::new(task));
                let heard = train::hear(record, task, news);
                if !done {
                    self.show(progress, round, Some(index));
                    return;
                }
                answered = assignment + 1;
                match (heard, growing.remove(&assignment)) {
                    (Ok(()), Some(growing)) => {
                        let record = growing.record(train::environment(&growing, options), None);
                        self.take_round(index, record, progress);
                    }
                    (Err(error), _) => self.fail(index, round, &error.to_string(), progress),
                    (Ok(()), None) => {}
                }
                self.show(progress, round, left.get(answered).copied());
            });
            match result {
                Ok(()) => return Ok(()),
                Err(error) if error.ends_all() => return Err(error),
                Err(error) => {
                    // Answers arrive in order: the plan after the last answer is the one that failed.
                    if let Some(failed) = left.get(answered).copied() {
                        self.fail(failed, round, &error.to_string(), progress);
                    }
                    left.drain(..(answered + 1).min(left.len()));
                }
            }
        }
        Ok(())
    }

    fn show(&self, progress: &mut Progress, round: u32, under_way: Option<usize>) {
        let done: u32 = self.plans.iter().map(Trial::done).sum();
        // Failed plans take no more time.
        let of: u32 =
            self.plans.iter().map(|p| if p.failed.is_some() { p.done() } else { self.rounds }).sum();
        let plan = under_way.map_or("", |index| self.plans[index].label.as_str());
        progress.at(done as usize, of as usize, &format!("{plan}, round {} of {}", round + 1, self.rounds));
    }

    fn take_round(&mut self, index: usize, new: RunRecord, progress: &Progress) {
        let (of, steps, fingerprint) = (self.rounds, self.per_round, self.fingerprint.clone());
        let trial = &mut self.plans[index];
        match &mut trial.record {
            Some(known) => add_round(known, &new),
            none => {
                *none = Some(RunRecord { rounds: Some(Rounds { done: 1, of, steps, fingerprint }), ..new });
            }
        }
        self.save_or_warn(index, progress);
    }

    fn fail(&mut self, index: usize, round: u32, reason: &str, progress: &Progress) {
        let rounds = self.rounds;
        let trial = &mut self.plans[index];
        let kept = match trial.done() {
            0 => String::new(),
            done => format!("; the measurements of its first {done} rounds are kept"),
        };
        progress.warn(&format!(
            "{} failed in round {} of {rounds}: {reason}{kept}; the other plans continue",
            trial.label,
            round + 1
        ));
        trial.failed = Some(format!("in round {} of {rounds}: {reason}", round + 1));
        if let Some(record) = &mut trial.record {
            let step = record.steps.len() as u32;
            record.ended = Some(Ended { step, reason: reason.to_owned() });
            self.save_or_warn(index, progress);
        }
    }

    fn save_or_warn(&mut self, index: usize, progress: &Progress) {
        let known = self.plans.iter().any(|trial| trial.unsaved);
        if let Err(failure) = self.save(index)
            && !known
        {
            progress.warn(&format!("{failure}; the validation continues, and prints its results"));
        }
    }

    fn save(&mut self, index: usize) -> Result<(), Failure> {
        let trial = &mut self.plans[index];
        let Some(record) = &trial.record else { return Ok(()) };
        let last = trial.failed.is_some() || trial.done() >= self.rounds;
        let write = if last { output::write } else { output::write_growing };
        let written = write(&trial.file, to_json(record).as_bytes());
        trial.unsaved = written.is_err();
        written
    }

    /// The first record that could not be written.
    pub fn unsaved(&mut self) -> Result<(), Failure> {
        match self.plans.iter().position(|trial| trial.unsaved) {
            Some(index) => self.save(index),
            None => Ok(()),
        }
    }
}

/// The files of a folder with names of records, `003-dp2_tp1_pp1_mb4.json`: number, plan, path. Empty if the
/// folder does not exist.
fn records(folder: &Path) -> Vec<(usize, String, PathBuf)> {
    let named = |path: PathBuf| {
        let (number, plan) = path.file_name()?.to_str()?.strip_suffix(".json")?.split_once('-')?;
        Some((number.parse().ok()?, plan.to_owned(), path.clone()))
    };
    std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| named(entry.ok()?.path())).collect()
}

fn add_round(record: &mut RunRecord, second: &RunRecord) {
    record.steps.extend_from_slice(measured_steps(second));
    record.step_time = Sample::of(&measured_steps(record).iter().map(|s| s.time_s.0).collect::<Vec<_>>());
    for (rank, again) in record.ranks.iter_mut().zip(&second.ranks) {
        rank.peak_memory_bytes = rank.peak_memory_bytes.max(again.peak_memory_bytes);
    }
    // Every round trains from the start, so the first one represents all, except for the worst values of
    // each.
    for (bucket, again) in record.compression.iter_mut().zip(&second.compression) {
        bucket.contraction_lowest = bucket.contraction_lowest.min(again.contraction_lowest);
        bucket.error_growth = bucket.error_growth.max(again.error_growth);
        bucket.fallback = bucket.fallback.or(again.fallback);
    }
    if let Some(rounds) = &mut record.rounds {
        rounds.done += 1;
    }
}
