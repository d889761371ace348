//! What the format of a trainer's file cannot express of a strategy that is proposed instead of the file's own one.

use autodist_exporters::{Exported, Options, Target, export};
use autodist_spec::{ParallelStrategy, Plan, Stage};

/// Obstacles and substitutes of an export, in sentences.
fn lacks(plan: &Plan, target: Target) -> Vec<String> {
    let options = Options { checkpoint_interval: None, script: None, image: String::new() };
    match export(plan, target, &options) {
        Ok(Exported { files, notes, .. }) => {
            // What the configuration cannot say, a program of the export does.
            let programs = files.iter().filter(|file| file.name.ends_with(".py")).map(|file| {
                format!(
                    "`autodist export` writes {}, which does what the configuration cannot say",
                    file.name
                )
            });
            let notes = notes.iter().filter(|note| note.field.is_layout()).map(ToString::to_string);
            notes.chain(programs).collect()
        }
        Err(refusals) => refusals
            .iter()
            .map(|one| {
                let value = if one.value.is_empty() { String::new() } else { format!(" {}", one.value) };
                format!("{}{value}: {}; {}", one.field, one.problem, one.hint)
            })
            .collect(),
    }
}

/// The file's own strategy, and what its format lacks for others.
pub struct OwnFormat<'a> {
    given: &'a Plan,
    target: Target,
    /// What the format lacks for the file's own strategy: the user has settled that.
    settled: Vec<String>,
}

impl<'a> OwnFormat<'a> {
    pub fn new(given: &'a Plan, target: Target) -> Self {
        Self { given, target, settled: lacks(given, target) }
    }

    /// What has to be done by hand for a strategy on the same devices.
    pub fn by_hand(&self, strategy: &ParallelStrategy, stages: &[Stage]) -> Vec<String> {
        let mut plan = self.given.clone();
        plan.strategy = strategy.clone();
        plan.stages = stages.to_vec();
        plan.micro_batches = strategy.micro_batches(plan.job.global_batch);
        self.of(&plan)
    }

    /// What has to be done by hand for a plan.
    pub fn of(&self, plan: &Plan) -> Vec<String> {
        lacks(plan, self.target).into_iter().filter(|one| !self.settled.contains(one)).collect()
    }
}
