//! The arrows between crates are those of ARCHITECTURE.md, and no others.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Each crate and the crates of this workspace that it uses.
const EDGES: [(&str, &str); 17] = [
    ("spec", ""),
    ("collectives", "spec"),
    ("codecs", "collectives spec"),
    ("program", "collectives spec"),
    ("hardware", "spec"),
    ("analytic", "hardware spec"),
    ("cost-model", "codecs collectives program spec"),
    ("planner", "collectives cost-model program spec"),
    ("compute", "spec"),
    ("cuda", "codecs compute spec"),
    ("communication", "collectives spec"),
    ("executor", "codecs communication compute cuda program spec"),
    ("profiler", "codecs collectives communication compute executor program spec"),
    ("reports", "spec"),
    ("exporters", "spec"),
    (
        "autodist",
        "analytic compute cost-model executor exporters hardware planner profiler program reports spec",
    ),
    ("software-gpu", ""),
];

fn table() -> Edges {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect();
    EDGES.iter().map(|(name, uses)| ((*name).to_owned(), words(uses))).collect()
}

/// Lines `crate -> dep dep` of the block that begins with ```` ```edges ````.
fn documented(text: &str) -> Edges {
    let lines = text.lines().skip_while(|line| line.trim() != "```edges").skip(1);
    lines
        .take_while(|line| line.trim() != "```")
        .filter_map(|line| line.split_once("->"))
        .map(|(name, uses)| (name.trim().to_owned(), uses.split_whitespace().map(str::to_owned).collect()))
        .collect()
}

/// `cargo metadata`, normal dependencies inside the workspace only.
fn actual() -> Edges {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let short = |name: &Value| name.as_str().unwrap().trim_start_matches("autodist-").to_owned();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<String> = packages.iter().map(|package| short(&package["name"])).collect();
    let uses = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        dependencies
            .filter(|d| d["kind"].is_null() && d["path"].is_string())
            .map(|d| short(&d["name"]))
            .collect()
    };
    let edges: Edges = packages.iter().map(|package| (short(&package["name"]), uses(package))).collect();
    assert!(edges.values().flatten().all(|name| names.contains(name)));
    edges
}

#[test]
fn the_crates_use_each_other_as_documented() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md");
    let text = std::fs::read_to_string(path).unwrap();
    assert_eq!(actual(), table(), "Cargo.toml and this test");
    assert_eq!(documented(&text), table(), "ARCHITECTURE.md and this test");
}

/// A crate stands only on those that come before it in the table.
#[test]
fn there_is_no_way_back() {
    let mut seen = BTreeSet::new();
    for (name, uses) in EDGES {
        for used in uses.split_whitespace() {
            assert!(seen.contains(used), "{name} -> {used}");
        }
        seen.insert(name);
    }
}
