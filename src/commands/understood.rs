//! What was understood of a trainer's file, before the answer: each setting with its value, and who said it.

use super::from_trainer::{FlagsAndFile, Given, is_given};
use crate::{look, output};
use autodist_cost_model::ParameterBytes;
use autodist_exporters::Field;
use autodist_reports::plural;
use autodist_spec::{CatalogueReference, Optimizer, Plan, Said, UnderstoodSetting};
use std::collections::BTreeMap;

const FIELDS: [Field; 17] = [
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
    Field::Trainable,
    Field::Optimizer,
];

/// Every setting of a plan that a trainer's file describes, what it is priced as, and what each parameter takes.
pub fn settings(
    given: &Given,
    request: FlagsAndFile,
    plan: &Plan,
    each: &ParameterBytes,
) -> Vec<UnderstoodSetting> {
    let of_field = |field: &Field| {
        let (value, _) = described(*field, plan)?;
        let (said, key) = origin(given, request, *field);
        Some(UnderstoodSetting { setting: field.name().to_owned(), value, said, key: key.map(str::to_owned) })
    };
    let mut all: Vec<_> = FIELDS.iter().filter_map(of_field).collect();
    all.extend(software(given, plan, each));
    all
}

/// The software and its kernels, and the bits of the state of each parameter.
fn software(given: &Given, plan: &Plan, each: &ParameterBytes) -> Vec<UnderstoodSetting> {
    let mut all = plan.cost_source.catalogue().map_or_else(Vec::new, |priced| kernels(given, priced));
    let [weight, gradient, state] = [each.weight, each.gradient, each.state].map(|bytes| 8.0 * bytes);
    let words = format!(
        "{weight} bits of weights, {gradient} of gradients and {state} of optimizer state for each parameter"
    );
    let said = if plan.job.states.is_usual() { Said::ByDefault } else { Said::ByFile };
    all.push(setting("states", words, said, None));
    all
}

fn setting(name: &str, value: String, said: Said, flag: Option<&str>) -> UnderstoodSetting {
    let key = flag.filter(|_| said == Said::ByFlag).map(str::to_owned);
    UnderstoodSetting { setting: name.to_owned(), value, said, key }
}

fn kernels(given: &Given, priced: &CatalogueReference) -> Vec<UnderstoodSetting> {
    let own = given.trainer().is_some_and(|trainer| trainer.name() == priced.trainer);
    let trainer = if own { Said::ByFile } else { Said::ByNobody };
    let mut all = vec![setting("trainer", format!("priced as {}", priced.trainer), trainer, None)];
    let Some(kernels) = &priced.kernels else { return all };
    let named = given.named_kernels();
    // A flag overrides what the file names.
    let said = |is_given: bool, named: Option<&str>, value: &str| match (is_given, named) {
        (false, _) => Said::ByDefault,
        (true, Some(name)) if name == value => Said::ByFile,
        (true, _) => Said::ByFlag,
    };
    let attention = said(kernels.attention_given, named.attention, &kernels.attention);
    all.push(setting(
        "attention",
        format!("{} attention", kernels.attention),
        attention,
        Some("--attention"),
    ));
    let loss = said(kernels.loss_given, named.loss, &kernels.loss);
    all.push(setting("loss", format!("{} loss", kernels.loss), loss, Some("--loss")));
    if !kernels.blocks.is_empty() {
        let blocks = match said(true, named.blocks, &kernels.blocks) {
            Said::ByFile if named.blocks_by_default => Said::ByDefault,
            other => other,
        };
        all.push(setting("blocks", format!("{} blocks", kernels.blocks), blocks, Some("--blocks")));
    }
    all
}

/// Prints a line for each origin; with `--verbose` also the keys, and what has its usual value.
pub fn note(given: &Given, plan: &Plan) {
    let verbose = look::view().verbose;
    let mut all: BTreeMap<Said, Vec<String>> = BTreeMap::new();
    for UnderstoodSetting { setting, value, said, key } in &plan.understood {
        let field = FIELDS.iter().find(|field| field.name() == setting);
        let usual = field.and_then(|field| described(*field, plan)).is_some_and(|(_, usual)| usual);
        // What is not used needs no word, unless the file has one.
        if usual && !verbose && *said != Said::ByFile {
            continue;
        }
        let keys = key.as_ref().filter(|_| verbose).map_or(String::new(), |key| format!(" (`{key}`)"));
        all.entry(*said).or_default().push(format!("{value}{keys}"));
    }
    all.entry(Said::ByCluster).or_default().insert(0, plural(plan.cluster.device_count().into(), "device"));
    for (said, settings) in all {
        let who = match said {
            Said::ByFile => format!("{} says", given.file()),
            Said::ByDefault => format!("defaults of {}", given.version()),
            Said::ByFlag => "flags say".to_owned(),
            Said::ByCluster => "from the cluster".to_owned(),
            Said::ByNobody => "assumed".to_owned(),
        };
        output::note(&format!("{who}: {}", settings.join(", ")));
    }
}

fn origin<'a>(given: &'a Given, request: FlagsAndFile, field: Field) -> (Said, Option<&'a str>) {
    let (known, key) = (given.knows(field), given.keys(field));
    if is_given(request, field) || (field == Field::Model && request.model.is_some()) {
        return (Said::ByFlag, field.flag());
    }
    match (known, key) {
        (true, Some(key)) => (Said::ByFile, Some(key)),
        (true, None) => (Said::ByDefault, None),
        (false, _) if matches!(field, Field::Data | Field::Shard) => (Said::ByCluster, None),
        (false, _) => (Said::ByNobody, None),
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
        Field::Trainable => (format!("trained: {}", job.trainable.label()), job.trainable.is_all()),
        Field::Optimizer => {
            let name = if matches!(job.optimizer, Optimizer::Sgd { .. }) { "sgd" } else { "adamw" };
            (format!("optimizer {name}"), false)
        }
        _ => return None,
    })
}
