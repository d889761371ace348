//! The stable JSON output for other programs.

use crate::common;

use common::{edited, line, write};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const SEARCH: &str = "plan --model model.json --job job.toml --json";

/// Paths of all fields of an object, `[]` for the items of its lists.
fn fields(value: &Value, at: &str, list: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let at = format!("{at}.{key}");
                fields(value, &at, list);
                list.insert(at);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| fields(item, &format!("{at}[]"), list)),
        _ => {}
    }
}

fn fields_of(value: &Value) -> BTreeSet<String> {
    let mut list = BTreeSet::new();
    fields(value, "", &mut list);
    list
}

#[track_caller]
fn number(document: &Value, pointer: &str) -> f64 {
    document.pointer(pointer).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number at {pointer}"))
}

fn sum(document: &Value, pointer: &str) -> f64 {
    document.pointer(pointer).unwrap().as_object().unwrap().values().map(|v| v.as_f64().unwrap()).sum()
}

/// The guaranteed fields of every plan document.
#[track_caller]
fn check_plan(document: &Value) {
    for field in ["step_time_s", "tokens_per_s", "peak_memory_bytes", "lower_bound_s", "step_time_spread_s"] {
        assert!(number(document, &format!("/estimate/{field}")) >= 0.0);
    }
    for field in ["explored", "pruned", "simulated", "lower_bound_s", "gap"] {
        assert!(number(document, &format!("/search/{field}")) >= 0.0);
    }
    assert!(document["search"]["stop_reason"].is_string());
    for field in
        ["data", "tensor", "pipeline", "context", "expert", "zero_stage", "micro_batch", "virtual_stages"]
    {
        assert!(document["strategy"][field].is_u64(), "strategy.{field}");
    }
    assert!(document["strategy"]["sequence_parallel"].is_boolean());
    for field in ["recompute", "schedule"] {
        assert!(document["strategy"][field].is_string(), "strategy.{field}");
    }
    let alternatives = document["alternatives"].as_array().unwrap();
    for estimate in std::iter::once(&document["estimate"]).chain(alternatives.iter().map(|a| &a["estimate"]))
    {
        let (cost, time) = (sum(estimate, "/cost"), number(estimate, "/step_time_s"));
        assert!((cost / time - 1.0).abs() < 1e-9, "the parts sum to {cost}, the step takes {time}");
        assert_eq!(sum(estimate, "/memory"), number(estimate, "/peak_memory_bytes"));
        assert!(number(estimate, "/lower_bound_s") <= time * (1.0 + 1e-9));
    }
    let tokens = number(document, "/job/global_batch") * number(document, "/job/seq_len");
    let speed = number(document, "/estimate/tokens_per_s") * number(document, "/estimate/step_time_s");
    assert!((speed / tokens - 1.0).abs() < 1e-9);
}

#[test]
fn a_plan_is_one_document_that_adds_up() {
    for devices in [1, 2, 4] {
        let folder = common::folder(devices);
        let found = line(folder.path(), SEARCH);
        assert_eq!(found.err, "", "nothing to say beside the result");
        let document: Value = serde_json::from_str(&found.ok()).unwrap();
        check_plan(&document);
        assert_eq!(document["search"]["stop_reason"], "optimal");
        assert_eq!(number(&document, "/search/gap"), 0.0);
        let counted = number(&document, "/search/pruned") + number(&document, "/search/simulated");
        assert_eq!(counted, number(&document, "/search/explored"));
    }
}

#[test]
fn the_plan_does_not_depend_on_threads_and_runs() {
    let folder = common::folder(4);
    let one = line(folder.path(), &format!("{SEARCH} --threads 1")).ok();
    assert_eq!(line(folder.path(), &format!("{SEARCH} --threads 2")).ok(), one);
    assert_eq!(line(folder.path(), &format!("{SEARCH} --threads 2 -o plan.json")).ok(), one);
    assert_eq!(
        std::fs::read_to_string(folder.path().join("plan.json")).unwrap(),
        one,
        "the file is what is printed"
    );
}

#[test]
fn an_estimate_is_a_plan_document_with_the_strategy_as_given() {
    let folder = common::folder(4);
    let searched = line(folder.path(), &format!("{SEARCH} --top 1")).json();
    assert!(searched["priced"].as_array().unwrap().len() > 2);
    // What a search compares is not in the document of one strategy.
    let searched = edited(&searched, "/rejected", Some(json!([])));
    let all = fields_of(&edited(&edited(&searched, "/device_choice", None), "/priced", None));
    for (flags, expected) in [
        (
            "--dp 4 --micro-batch 2",
            json!({"data": 4, "tensor": 1, "pipeline": 1, "micro_batch": 2, "zero_stage": 0}),
        ),
        ("--tp 2 --sp", json!({"data": 2, "tensor": 2, "sequence_parallel": true, "micro_batch": 1})),
        (
            "--pp 2 --schedule gpipe",
            json!({"data": 2, "pipeline": 2, "schedule": "gpipe", "virtual_stages": 1}),
        ),
        (
            "--pp 2 --vpp 2 --tp 2",
            json!({"data": 1, "tensor": 2, "schedule": "interleaved", "virtual_stages": 2}),
        ),
        ("--zero 3 --recompute full", json!({"data": 4, "zero_stage": 3, "shard": 4, "recompute": "full"})),
        (
            "--zero 1 --shard 2 --recompute selective",
            json!({"zero_stage": 1, "shard": 2, "recompute": "selective"}),
        ),
        (
            "--tp 1 --pp 1 --dp 4 --cp 1 --ep 1 --vpp 1 --zero 2 --recompute none --micro-batch 1 --schedule 1f1b",
            json!({"data": 4, "context": 1, "expert": 1, "zero_stage": 2, "recompute": "none", "schedule": "1f1b"}),
        ),
        ("--bucket-bytes 1024", json!({"bucket_bytes": 1024, "data": 4})),
    ] {
        let document =
            line(folder.path(), &format!("estimate --model model.json --job job.toml --json {flags}")).json();
        check_plan(&document);
        for (field, value) in expected.as_object().unwrap() {
            assert_eq!(document["strategy"][field], *value, "{flags}: {field}");
        }
        assert_eq!(document["search"]["stop_reason"], "given");
        assert_eq!(fields_of(&document), all, "{flags}");
    }
}

#[test]
fn the_estimate_of_a_plan_is_the_plans_own() {
    let folder = common::folder(4);
    let plan = line(folder.path(), &format!("{SEARCH} -o plan.json")).json();
    let again = line(folder.path(), "estimate plan.json --json -o again.json").json();
    for field in ["estimate", "strategy", "stages", "model", "cluster", "job", "profile", "micro_batches"] {
        assert_eq!(again[field], plan[field], "{field}");
    }
    assert_eq!(line(folder.path(), "estimate again.json --json").json(), again, "a fixed point");
    for (index, alternative) in plan["alternatives"].as_array().unwrap().iter().enumerate() {
        let mut other = plan.clone();
        for field in ["strategy", "stages", "estimate"] {
            other[field] = alternative[field].clone();
        }
        write(folder.path(), "other.json", other.to_string());
        let estimated = line(folder.path(), "estimate other.json --json").json();
        assert_eq!(estimated["estimate"], alternative["estimate"], "alternative {index}");
    }
}

#[test]
fn every_result_is_one_json_document() {
    let folder = common::folder(2);
    let folder = folder.path();
    line(folder, &format!("{SEARCH} -o plan.json")).ok();
    for args in
        ["explain plan.json --json", "report plan.json --json", "catalog --json", "estimate plan.json --json"]
    {
        assert!(line(folder, args).json().is_object(), "{args}");
    }
}

const SCHEMAS: [&str; 7] = ["model", "cluster", "job", "profile", "plan", "run", "validation"];

/// `UPDATE=1 cargo test --test it contract::` writes the files.
#[test]
fn the_schema_files_are_what_the_program_prints() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    for what in SCHEMAS {
        let path = folder.join(format!("{what}.schema.json"));
        let printed = line(Path::new("."), &format!("schema {what}")).ok();
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, &printed).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            kept == printed,
            "{} is out of date: UPDATE=1 cargo test --test it contract::",
            path.display()
        );
    }
}

/// The part of JSON Schema (2020-12) that schemars writes for our types.
fn conforms(value: &Value, schema: &Value, root: &Value) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("{value} {what} {schema}"));
    if schema == &json!(true) {
        return Ok(());
    }
    if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
        conforms(value, root.pointer(name.trim_start_matches('#')).unwrap(), root)?;
    }
    for key in ["oneOf", "anyOf"] {
        let Some(choices) = schema.get(key).and_then(Value::as_array) else { continue };
        let fitting = choices.iter().filter(|choice| conforms(value, choice, root).is_ok()).count();
        if fitting == 0 || (key == "oneOf" && fitting > 1) {
            return wrong(&format!("fits {fitting} of {key}"));
        }
    }
    if schema.get("const").is_some_and(|constant| constant != value) {
        return wrong("is not");
    }
    if schema.get("enum").is_some_and(|list| !list.as_array().unwrap().contains(value)) {
        return wrong("is none of");
    }
    let is = |kind: &str| match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "null" => value.is_null(),
        other => panic!("unknown type {other}"),
    };
    match schema.get("type") {
        Some(Value::String(kind)) if !is(kind) => return wrong("is of another type than"),
        Some(Value::Array(kinds)) if !kinds.iter().any(|kind| is(kind.as_str().unwrap())) => {
            return wrong("is no");
        }
        _ => {}
    }
    if schema
        .get("minimum")
        .and_then(Value::as_f64)
        .is_some_and(|least| value.as_f64().is_some_and(|v| v < least))
    {
        return wrong("is below the minimum of");
    }
    if let Value::Object(map) = value {
        for name in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
            if !map.contains_key(name.as_str().unwrap()) {
                return wrong(&format!("lacks {name} of"));
            }
        }
        for (key, item) in map {
            match schema.get("properties").and_then(|properties| properties.get(key)) {
                Some(property) => conforms(item, property, root)?,
                None if schema.get("additionalProperties") == Some(&json!(false)) => {
                    return Err(format!("`{key}` is not in the schema"));
                }
                None => {}
            }
        }
    }
    if let (Value::Array(items), Some(schema)) = (value, schema.get("items")) {
        items.iter().try_for_each(|item| conforms(item, schema, root))?;
    }
    Ok(())
}

#[test]
fn documents_conform_to_their_schemas() {
    let folder = common::folder(4);
    let folder = folder.path();
    let plan = line(folder, SEARCH).json();
    let of = |text: String| serde_json::from_str::<Value>(&text).unwrap();
    let named = edited(&plan["cluster"], "/nodes/0/device", Some(json!("a100-80gb-sxm")));
    let documents = [
        ("cluster", named),
        ("plan", plan.clone()),
        ("model", plan["model"].clone()),
        ("cluster", plan["cluster"].clone()),
        ("job", plan["job"].clone()),
        ("profile", of(autodist_spec::to_json(&common::profile(2)))),
        ("run", of(autodist_spec::to_json(&common::run_record()))),
        ("validation", of(autodist_spec::to_json(&common::validation()))),
    ];
    for (what, document) in documents {
        let schema = line(folder, &format!("schema {what}")).json();
        conforms(&document, &schema, &schema).unwrap_or_else(|error| panic!("{what}: {error}"));
        // All fields of documents are documented, and undocumented fields are refused.
        let mut strange = document.clone();
        strange["surprise"] = json!(1);
        assert!(conforms(&strange, &schema, &schema).is_err(), "{what}");
    }
}
