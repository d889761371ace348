//! What was understood of a trainer's file, before the answer: each setting with its value, and who said it.

use super::from_trainer::{FlagsAndFile, Given, is_given};
use crate::{look, output};
use autodist_exporters::Field;
use autodist_reports::plural;
use autodist_spec::{Optimizer, Plan};
use std::collections::BTreeMap;

/// Who said a setting, in the order of the lines.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    File,
    Default,
    Flag,
    Cluster,
    Assumed,
}

const FIELDS: [Field; 16] = [
    Field::Model,
    Field::Data,
    Field::Tensor,
    Field::Pipeline,
    Field::Context,
    Field::Expert,
    Field::VirtualStages,
    Field::SequenceParallel,
    Field::ZeroStage,
    Field::Shard,
    Field::MicroBatch,
    Field::GlobalBatch,
    Field::SeqLen,
    Field::Recompute,
    Field::Precision,
    Field::Optimizer,
];

/// Prints a line for each origin; with `--verbose` also the keys, and what has its usual value.
pub fn note(given: &Given, request: FlagsAndFile, plan: &Plan) {
    let verbose = look::view().verbose;
    let mut all: BTreeMap<Origin, Vec<String>> = BTreeMap::new();
    for field in FIELDS {
        let Some((words, usual)) = described(field, plan) else { continue };
        let (origin, key) = origin(given, request, field);
        // What is not used needs no word, unless the file has one.
        if usual && !verbose && origin != Origin::File {
            continue;
        }
        let keys = key.filter(|_| verbose).map_or(String::new(), |key| format!(" (`{key}`)"));
        all.entry(origin).or_default().push(format!("{words}{keys}"));
    }
    all.entry(Origin::Cluster).or_default().insert(0, plural(plan.cluster.device_count().into(), "device"));
    for (origin, settings) in all {
        let who = match origin {
            Origin::File => format!("{} says", given.file()),
            Origin::Default => format!("defaults of {}", given.version()),
            Origin::Flag => "flags say".to_owned(),
            Origin::Cluster => "from the cluster".to_owned(),
            Origin::Assumed => "assumed".to_owned(),
        };
        output::note(&format!("{who}: {}", settings.join(", ")));
    }
}

fn origin<'a>(given: &'a Given, request: FlagsAndFile, field: Field) -> (Origin, Option<&'a str>) {
    let (known, key) = (given.knows(field), given.keys(field));
    if is_given(request, field) || (field == Field::Model && request.model.is_some()) {
        return (Origin::Flag, field.flag());
    }
    match (known, key) {
        (true, Some(key)) => (Origin::File, Some(key)),
        (true, None) => (Origin::Default, None),
        (false, _) if matches!(field, Field::Data | Field::Shard) => (Origin::Cluster, None),
        (false, _) => (Origin::Assumed, None),
    }
}

/// The setting of the plan in words, and whether it is the usual one, which changes nothing.
fn described(field: Field, plan: &Plan) -> Option<(String, bool)> {
    let (strategy, job) = (&plan.strategy, &plan.job);
    let degree = |name: &str, degree: u32| (format!("{name} {degree}"), degree == 1);
    Some(match field {
        Field::Model => (format!("model {}", plan.model.name), false),
        Field::Data => (format!("dp {}", strategy.data), false),
        Field::Tensor => degree("tp", strategy.tensor),
        Field::Pipeline => degree("pp", strategy.pipeline),
        Field::Context => degree("cp", strategy.context),
        Field::Expert => degree("ep", strategy.expert),
        Field::VirtualStages => degree("vpp", strategy.virtual_stages),
        Field::SequenceParallel => {
            let on = if strategy.sequence_parallel { "on" } else { "off" };
            (format!("sequence parallelism {on}"), !strategy.sequence_parallel)
        }
        Field::ZeroStage => (format!("ZeRO stage {}", strategy.zero_stage), false),
        Field::Shard => (format!("shard group {}", strategy.shard), strategy.zero_stage == 0),
        Field::MicroBatch => (format!("micro-batch {}", strategy.micro_batch), false),
        Field::GlobalBatch => (format!("global batch {}", job.global_batch), false),
        Field::SeqLen => (format!("sequences of {}", plural(job.seq_len.into(), "token")), false),
        Field::Recompute => {
            let modes = plan.stages.iter().flat_map(|stage| &stage.recompute);
            let most = modes.copied().max().unwrap_or_default();
            (format!("recomputation {}", most.name()), false)
        }
        Field::Precision => (format!("precision {}", job.precision), false),
        Field::Optimizer => {
            let name = if matches!(job.optimizer, Optimizer::Sgd { .. }) { "sgd" } else { "adamw" };
            (format!("optimizer {name}"), false)
        }
        _ => return None,
    })
}
