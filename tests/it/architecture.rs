//! The dependencies between crates match ARCHITECTURE.md, and each public type has a unique name.

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

type Edges = BTreeMap<String, BTreeSet<String>>;

/// Each crate and the crates of this workspace that it uses.
const EDGES: [(&str, &str); 18] = [
    ("spec", ""),
    ("collectives", "spec"),
    ("codecs", "collectives spec"),
    ("program", "collectives spec"),
    ("hardware", "spec"),
    ("cost-model", "codecs collectives program spec"),
    ("analytic", "cost-model hardware program spec"),
    ("planner", "collectives cost-model program spec"),
    ("compute", "spec"),
    ("cuda", "codecs compute spec"),
    ("communication", "collectives spec"),
    ("executor", "codecs communication compute cuda program spec"),
    ("profiler", "codecs collectives communication compute executor program spec"),
    ("reports", "spec"),
    ("exporters", "program spec"),
    (
        "autodist",
        "analytic compute cost-model executor exporters hardware planner profiler program reports spec",
    ),
    ("fuzz", "analytic communication executor exporters hardware spec"),
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

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The folder of each crate's sources.
fn source_folders() -> Vec<PathBuf> {
    let metadata = metadata();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages.map(|p| Path::new(p["manifest_path"].as_str().unwrap()).with_file_name("src")).collect()
}

/// Normal dependencies inside the workspace only.
fn actual() -> Edges {
    let metadata = metadata();
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

/// A crate depends only on those before it in the table.
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

/// Rust files below a folder, without tests and examples: only public names of crates must be distinct.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.map(|entry| entry.unwrap().path()) {
        if entry.is_dir() {
            sources(&entry, found);
        } else if entry.extension().is_some_and(|extension| extension == "rs") {
            found.push(entry);
        }
    }
}

/// The name of a type that a line declares public.
fn public_type(line: &str) -> Option<&str> {
    let declared = line.trim_start().strip_prefix("pub ")?;
    let declared = declared.strip_prefix("unsafe ").unwrap_or(declared);
    let (kind, rest) = declared.split_once(' ')?;
    let name = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()?;
    (["struct", "enum", "trait", "type", "union"].contains(&kind) && !name.is_empty()).then_some(name)
}

#[test]
fn a_line_that_declares_a_public_type_is_known_by_its_beginning() {
    assert_eq!(public_type("pub struct Plan {"), Some("Plan"));
    assert_eq!(public_type("    pub enum Op<'a> {"), Some("Op"));
    assert_eq!(public_type("pub unsafe trait Raw: Send {"), Some("Raw"));
    assert_eq!(public_type("pub type Result<T> = std::result::Result<T, E>;"), Some("Result"));
    for other in
        ["pub(crate) struct Plan;", "struct Plan;", "pub fn plan() {}", "// pub struct Plan", "pub struct"]
    {
        assert_eq!(public_type(other), None, "{other}");
    }
}

/// A file may use several crates, where a name with two meanings would mislead, or need its path.
#[test]
fn no_two_public_types_of_the_workspace_share_a_name() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for folder in source_folders() {
        let mut files = Vec::new();
        sources(&folder, &mut files);
        assert!(!files.is_empty(), "{} has no sources", folder.display());
        files.sort();
        for file in files {
            let text = std::fs::read_to_string(&file).unwrap();
            for (index, line) in text.lines().enumerate() {
                let Some(name) = public_type(line) else { continue };
                let place = format!("{}:{}", file.strip_prefix(root).unwrap().display(), index + 1);
                places.entry(name.to_owned()).or_default().push(place);
            }
        }
    }
    let twice: Vec<String> = places
        .into_iter()
        .filter(|(_, places)| places.len() > 1)
        .map(|(name, places)| format!("{name}: {}", places.join(", ")))
        .collect();
    assert!(twice.is_empty(), "give each type the field's own word for it:\n{}", twice.join("\n"));
}
