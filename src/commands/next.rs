//! The commands that go on from a plan document, for the reader of a report.

use crate::engine;
use autodist_exporters::quoted;
use autodist_exporters::{Options, Target, export};
use autodist_reports::NextCommand;
use autodist_spec::{Engine, Plan};
use std::path::Path;

/// What can be done with plan `number` of the document at `path`.
pub fn commands(plan: &Plan, path: &Path, number: usize) -> Vec<NextCommand> {
    let path = quoted(&path.display().to_string());
    let plan_flag = if number > 1 { format!(" --plan {number}") } else { String::new() };
    let command = |purpose: &str, text: String| NextCommand { purpose: purpose.to_owned(), text };
    let mut all = Vec::new();
    // A plan of published figures is for a cluster that autodist has not measured, and does not train itself.
    let own = plan.cost_source.profile().is_some();
    let trains = plan.cost_source.engine() != Engine::Native
        || engine::check(Engine::Native, plan, &plan.strategy, "strategy").is_ok();
    if own && trains {
        all.push(command("Train it", format!("autodist train {path}{plan_flag}")));
        all.push(command(
            "Train it and its runners-up, and compare them with their predictions",
            format!("autodist validate {path} -o runs"),
        ));
    }
    let options = Options { checkpoint_interval: None, script: None, image: String::new() };
    let mut targets: Vec<Target> = Target::ALL.iter().copied().filter(|target| target.is_trainer()).collect();
    let priced_for = plan.cost_source.catalogue().map_or("", |catalogue| catalogue.trainer.as_str());
    // The trainer that the plan was priced for comes first.
    targets.sort_by_key(|target| Some(*target) != exported_as(priced_for));
    let mut exported = targets.into_iter().filter_map(|target| {
        let files = export(plan, target, &options).ok()?.files;
        Some((target, files))
    });
    let Some((target, files)) = exported.next() else { return all };
    let name = target.name();
    let others: Vec<&str> = exported.map(|(target, _)| target.name()).collect();
    let purpose = match others.as_slice() {
        [] => format!("Write the files of {name}"),
        others => format!("Write the files of {name} (also: {})", others.join(", ")),
    };
    all.push(command(&purpose, format!("autodist export {path}{plan_flag} --to {name} -o {name}")));
    for file in files {
        all.push(command(&format!("What {} holds", file.name), file.content.trim_end().to_owned()));
    }
    all
}

/// The target with the files of a trainer of the catalogue.
fn exported_as(trainer: &str) -> Option<Target> {
    match trainer {
        "megatron-core" | "megatron" => Some(Target::Megatron),
        "nemo" => Some(Target::MegatronBridge),
        "fsdp2" => Some(Target::Torchtitan),
        "fsdp" => Some(Target::Accelerate),
        "deepspeed" => Some(Target::DeepSpeed),
        _ => None,
    }
}
