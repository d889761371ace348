//! No input makes a parser panic, and parsed values are checked: using them does not panic either.

use crate::common;

use autodist_cost_model::CostModel;
use autodist_planner::Planner;
use autodist_program::Program;
use autodist_spec::parse::{self, Check};
use autodist_spec::{
    Cluster, Job, ModelSpec, ParallelStrategy, Plan, Profile, RunRecord, Validation, huggingface, to_json,
};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::sync::LazyLock;

static PLAN: LazyLock<Plan> = LazyLock::new(common::plan);
static PROFILE: LazyLock<Profile> = LazyLock::new(|| common::profile(2));

/// Valid documents, one for each parser.
static DOCUMENTS: LazyLock<Vec<(Kind, Value)>> = LazyLock::new(|| {
    let of = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let config = json!({"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 16,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "rope_parameters": {"rope_theta": 1e4}});
    let gpt2 = json!({"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 16, "n_inner": null,
        "vocab_size": 64, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5});
    vec![
        (Kind::Plan, of(to_json(&*PLAN))),
        (Kind::Profile, of(to_json(&*PROFILE))),
        (Kind::Run, of(to_json(&common::run_record()))),
        (Kind::Validation, of(to_json(&common::validation()))),
        (Kind::Model, of(to_json(&common::small_model()))),
        (Kind::Cluster, of(to_json(&PROFILE.cluster))),
        (Kind::Job, of(to_json(&common::small_job()))),
        (Kind::HuggingFace, config),
        (Kind::HuggingFace, gpt2),
    ]
});

#[derive(Debug, Clone, Copy)]
enum Kind {
    Plan,
    Profile,
    Run,
    Validation,
    Model,
    Cluster,
    Job,
    HuggingFace,
}

const KINDS: [Kind; 8] = [
    Kind::Plan,
    Kind::Profile,
    Kind::Run,
    Kind::Validation,
    Kind::Model,
    Kind::Cluster,
    Kind::Job,
    Kind::HuggingFace,
];

/// A parsed value passes its check, and survives a round trip through its file format.
fn checked<T: Check + serde::Serialize + serde::de::DeserializeOwned>(value: &T) {
    value.check().unwrap();
    let text = to_json(value);
    let again: T = parse::json("again", text.as_bytes()).unwrap_or_else(|error| panic!("{error}\n{text}"));
    assert_eq!(to_json(&again), text);
}

fn use_plan(plan: &Plan) {
    checked(plan);
    let devices = plan.cluster.device_count();
    let _ = Program::compile(&plan.model, &plan.job, devices, &plan.strategy, &plan.stages);
    let planner = Planner::new(&plan.model, &plan.cluster, &plan.job, &PROFILE);
    let _ = planner.given(&plan.strategy, Some(&plan.stages)).map_err(|error| error.to_string());
    let _ = plan.strategy.label();
}

fn use_profile(profile: &Profile) {
    checked(profile);
    let (model, job) = (common::small_model(), common::small_job());
    let _ = CostModel::new(profile).check(&model, &job);
    let planner = Planner::new(&model, &profile.cluster, &job, profile);
    for strategy in [
        ParallelStrategy::data_parallel(2, 4),
        ParallelStrategy { tensor: 2, sequence_parallel: true, ..ParallelStrategy::data_parallel(1, 2) },
        ParallelStrategy { pipeline: 2, ..ParallelStrategy::data_parallel(1, 2) },
        ParallelStrategy { zero_stage: 3, shard: 2, ..ParallelStrategy::data_parallel(2, 1) },
    ] {
        if let Ok(plan) = planner.given(&strategy, None) {
            checked(&plan);
        }
    }
}

fn use_model(model: &ModelSpec) {
    checked(model);
    let _ = model.total_parameters();
    let _ = model.step_flops(1 << 30, u64::from(model.max_seq_len));
    let strategy = ParallelStrategy::data_parallel(1, 1);
    let stages = autodist_program::stages::even(model, &strategy);
    let _ = Program::compile(model, &Job::new(1, 1), 1, &strategy, &stages);
}

/// Parses, and uses the result.
fn feed(kind: Kind, bytes: &[u8]) {
    match kind {
        Kind::Plan => drop(parse::json::<Plan>("f", bytes).map(|plan| use_plan(&plan))),
        Kind::Profile => drop(parse::json::<Profile>("f", bytes).map(|profile| use_profile(&profile))),
        Kind::Run => drop(parse::json::<RunRecord>("f", bytes).map(|run| checked(&run))),
        Kind::Validation => {
            drop(parse::json::<Validation>("f", bytes).map(|validation| checked(&validation)))
        }
        Kind::Model => drop(parse::json::<ModelSpec>("f", bytes).map(|model| use_model(&model))),
        Kind::Cluster => drop(parse::toml::<Cluster>("f", bytes).map(|cluster| {
            checked(&cluster);
            (cluster.device_count(), cluster.node_count(), cluster.homogeneous())
        })),
        Kind::Job => drop(parse::toml::<Job>("f", bytes).map(|job| {
            checked(&job);
            (job.tokens(), job.learning_rate.at(u32::MAX))
        })),
        Kind::HuggingFace => {
            drop(huggingface::model_from_config("f", "m", bytes).map(|model| use_model(&model)));
        }
    }
}

/// The document in its file format.
fn text(kind: Kind, document: &Value) -> String {
    match kind {
        // TOML has no null: such fields are left out.
        Kind::Cluster | Kind::Job => toml_text(document),
        _ => document.to_string(),
    }
}

fn toml_text(document: &Value) -> String {
    let map = document.as_object().into_iter().flatten();
    map.filter(|(_, value)| !value.is_null())
        .map(|(key, value)| format!("{key:?} = {}\n", toml_value(value)))
        .collect()
}

fn toml_value(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(toml_value).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<_> =
                fields.map(|(key, value)| format!("{key:?} = {}", toml_value(value))).collect();
            format!("{{ {} }}", fields.join(", "))
        }
        other => other.to_string(),
    }
}

/// Pointers (RFC 6901) to all values inside.
fn pointers(value: &Value, at: &str, list: &mut Vec<String>) {
    let inside: Vec<(String, &Value)> = match value {
        Value::Array(items) => items.iter().enumerate().map(|(i, v)| (i.to_string(), v)).collect(),
        Value::Object(map) => map.iter().map(|(k, v)| (k.clone(), v)).collect(),
        _ => Vec::new(),
    };
    for (key, value) in inside {
        let at = format!("{at}/{key}");
        pointers(value, &at, list);
        list.push(at);
    }
}

/// Values at the limits of ranges and types.
fn edge() -> impl Strategy<Value = Value> {
    prop_oneof![
        any::<u64>().prop_map(|n| json!(n)),
        any::<i64>().prop_map(|n| json!(n)),
        any::<f64>().prop_map(|x| json!(x)),
        (0_u32..64).prop_map(|power| json!(1_u64 << power)),
        (0_u32..64).prop_map(|power| json!((1_u64 << power) - 1)),
        (0_i64..20).prop_map(|n| json!(n)),
        (-320_i32..308).prop_map(|power| json!(10_f64.powi(power))),
        Just(json!(u32::MAX)),
        Just(json!(i64::MIN)),
        Just(json!(f64::MAX)),
        Just(json!(-0.0)),
        Just(json!(null)),
        any::<bool>().prop_map(|b| json!(b)),
        ".{0,8}".prop_map(|text| json!(text)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([[[]]])),
    ]
}

/// A profile has many similar cells, so paths are drawn by their shape first: `/segments/7/time` is
/// `/segments/*/time`.
fn a_pointer(document: &Value, shape: prop::sample::Index, one: prop::sample::Index) -> String {
    let mut all = Vec::new();
    pointers(document, "", &mut all);
    let star = |pointer: &String| {
        let parts = pointer.split('/').map(|part| if part.parse::<usize>().is_ok() { "*" } else { part });
        parts.collect::<Vec<_>>().join("/")
    };
    let mut shapes: Vec<String> = all.iter().map(star).collect();
    shapes.sort_unstable();
    shapes.dedup();
    let shape = shape.get(&shapes);
    let alike: Vec<&String> = all.iter().filter(|pointer| star(pointer) == *shape).collect();
    (*one.get(&alike)).clone()
}

fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases(200))]

    #[test]
    fn any_bytes(bytes in vec(any::<u8>(), 0..200)) {
        KINDS.iter().for_each(|kind| feed(*kind, &bytes));
    }

    #[test]
    fn any_text(text in "\\PC{0,80}") {
        KINDS.iter().for_each(|kind| feed(*kind, text.as_bytes()));
        let _ = Cluster::from_short_form(&text);
    }

    #[test]
    fn almost_json(text in r#"[\[\]{}:,"0-9a-z.eE+\- \\]{0,60}"#) {
        KINDS.iter().for_each(|kind| feed(*kind, text.as_bytes()));
    }

    #[test]
    fn almost_a_short_form(text in r"([0-9]{1,12}x){0,3}(a100-80gb-sxm|h100-80gb-sxm|[a-z0-9]{0,5})(@[0-9]{0,12}x[0-9.e]{0,6}[tgm]?(bps|bit)?)?") {
        if let Ok(cluster) = Cluster::from_short_form(&text) {
            checked(&cluster);
            prop_assert!(cluster.device_count() > 0);
        }
    }
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn a_right_document_with_wrong_bytes(
        which in any::<prop::sample::Index>(),
        changes in vec((any::<prop::sample::Index>(), any::<u8>(), 0_u8..3), 1..6),
    ) {
        let (kind, document) = which.get(&DOCUMENTS);
        let mut bytes = text(*kind, document).into_bytes();
        for (at, byte, change) in changes {
            let at = at.index(bytes.len());
            match change {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                _ => drop(bytes.remove(at)),
            }
        }
        feed(*kind, &bytes);
    }

    #[test]
    fn a_right_document_cut_off(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let (kind, document) = which.get(&DOCUMENTS);
        let text = text(*kind, document);
        feed(*kind, &text.as_bytes()[..at.index(text.len())]);
    }
}

/// Values to change: where (a shape of pointers, and one of that shape), and to what; `None` removes them.
type Changes = Vec<(prop::sample::Index, prop::sample::Index, Option<Value>)>;

fn changes() -> impl Strategy<Value = Changes> {
    let value = prop::option::weighted(0.95, edge());
    vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), value), 1..3)
}

fn feed_with_other_values(which: prop::sample::Index, changes: Changes) {
    let (kind, document) = which.get(&DOCUMENTS);
    let mut document = document.clone();
    for (shape, one, value) in changes {
        let pointer = a_pointer(&document, shape, one);
        document = common::edited(&document, &pointer, value);
        if document.as_object().is_none_or(|map| map.is_empty()) {
            break;
        }
    }
    feed(*kind, text(*kind, &document).as_bytes());
}

proptest! {
    #![proptest_config(cases(1500))]

    #[test]
    fn a_right_document_with_other_values(which in any::<prop::sample::Index>(), changes in changes()) {
        feed_with_other_values(which, changes);
    }
}

proptest! {
    #![proptest_config(cases(4000))]

    #[test]
    fn a_right_document_with_other_values_at_length(
        which in any::<prop::sample::Index>(),
        changes in changes(),
    ) {
        feed_with_other_values(which, changes);
    }
}

/// Checks the documents of these tests.
#[test]
fn every_right_document_parses() {
    for (kind, document) in DOCUMENTS.iter() {
        let text = text(*kind, document);
        let error = match kind {
            Kind::Plan => parse::json::<Plan>("f", text.as_bytes()).err(),
            Kind::Profile => parse::json::<Profile>("f", text.as_bytes()).err(),
            Kind::Run => parse::json::<RunRecord>("f", text.as_bytes()).err(),
            Kind::Validation => parse::json::<Validation>("f", text.as_bytes()).err(),
            Kind::Model => parse::json::<ModelSpec>("f", text.as_bytes()).err(),
            Kind::Cluster => parse::toml::<Cluster>("f", text.as_bytes()).err(),
            Kind::Job => parse::toml::<Job>("f", text.as_bytes()).err(),
            Kind::HuggingFace => huggingface::model_from_config("f", "m", text.as_bytes()).err(),
        };
        assert!(error.is_none(), "{kind:?}: {error:?}\n{text}");
        feed(*kind, text.as_bytes());
    }
}
