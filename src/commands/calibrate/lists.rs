//! Tables of runs that name a model and a cluster: each column or key is a flag of `autodist calibrate`.

use crate::cli::{MeasuredRun, MeasuredRunArgs};
use crate::failure::Failure;
use autodist_spec::{InputError, one_line};
use clap::Parser;
use serde::Deserialize;

/// A line of a table.
pub struct Listed {
    pub id: String,
    /// The file and the line.
    pub place: String,
    pub run: MeasuredRunArgs,
}

impl Listed {
    /// Names the line of a failure.
    pub fn blame(&self, failure: Failure) -> Failure {
        match failure {
            Failure::Input(error) if !self.place.is_empty() => Failure::Input(error.in_file(&self.place)),
            other => other,
        }
    }
}

/// A table that works as it stands; the times of the last column are made up, and are to be replaced.
pub const TEMPLATE: &str = "\
id,model,cluster,trainer,global_batch,seq_len,precision,tp,pp,dp,cp,vpp,zero,sp,recompute,micro_batch,measured
run-1,llama3-8b,2x8xh100-80gb-sxm@8x400gbps,megatron-core,128,8192,bf16,2,1,,1,,1,yes,none,1,7.7s
run-2,llama3-8b,2x8xh100-80gb-sxm@8x400gbps,megatron-core,256,8192,bf16,2,1,,1,,1,yes,none,1,15.2s
run-3,llama3-8b,2x8xh100-80gb-sxm@8x400gbps,megatron-core,128,8192,bf16,4,1,,1,,1,yes,none,1,9.1s
";

/// Columns with remarks, which are no flags.
const REMARKS: [&str; 4] = ["id", "notes", "source", "group"];

/// The flag of a column; tables of sizes have other names for some.
fn flag(column: &str) -> String {
    match column {
        "iteration_s" => "measured".to_owned(),
        "zero_stage" => "zero".to_owned(),
        "sequence_parallel" => "sp".to_owned(),
        other => other.replace('_', "-"),
    }
}

/// Whether this is such a table: it names models and clusters, or plans.
pub fn is_list(content: &[u8]) -> bool {
    let text = String::from_utf8_lossy(content);
    let header = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let names: Vec<&str> = header.split(',').map(|name| name.trim().trim_matches('"')).collect();
    names.contains(&"plan_file")
        || names.contains(&"cluster") && (names.contains(&"model") || names.contains(&"from"))
}

/// Reads a CSV table, each column of which is a flag; an empty field is not given.
pub fn csv(content: &[u8], file: &str) -> Result<Vec<Listed>, InputError> {
    let mut reader = ::csv::ReaderBuilder::new().trim(::csv::Trim::All).from_reader(content);
    let wrong = |error: ::csv::Error| {
        let problem = format!("is not a CSV table: {}", one_line(&error.to_string()));
        InputError::new("", "", problem).hint("`autodist calibrate --template` prints a table").in_file(file)
    };
    let header = reader.headers().map_err(wrong)?.clone();
    let mut listed = Vec::new();
    for record in reader.records() {
        let record = record.map_err(wrong)?;
        let line = record.position().map_or(0, ::csv::Position::line);
        let values = header.iter().zip(&record).filter(|(_, value)| !value.is_empty());
        let mut id = None;
        let mut words = Vec::new();
        for (column, value) in values {
            match (column, flag(column).as_str(), value) {
                ("id", ..) => id = Some(value.to_owned()),
                (column, ..) if REMARKS.contains(&column) => {}
                (_, "sp", "no" | "false" | "0") => {}
                (_, "sp", "yes" | "true" | "1") => words.push("--sp".to_owned()),
                (_, "from", value) => {
                    words.push("--from".to_owned());
                    words.extend(value.split_whitespace().map(str::to_owned));
                }
                (_, flag, value) => words.push(format!("--{flag}={value}")),
            }
        }
        let place = format!("{file}, line {line}");
        listed.push(one(id.unwrap_or_else(|| format!("line {line}")), place, &words)?);
    }
    Ok(listed)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Runs {
    run: Vec<toml::Table>,
}

/// Reads a TOML file with a table `[[run]]` for each run, the keys of which are flags.
pub fn toml(content: &[u8], file: &str) -> Result<Vec<Listed>, InputError> {
    let wrong = |problem: String| {
        InputError::new("", "", problem)
            .hint("write one `[[run]]` for each run, with flags of `autodist calibrate` as keys, e.g. `log = \"train.log\"`")
            .in_file(file)
    };
    let text = std::str::from_utf8(content).map_err(|_| wrong("expected UTF-8 text".to_owned()))?;
    let runs: Runs = ::toml::from_str(text).map_err(|error| wrong(one_line(error.message())))?;
    let mut listed = Vec::new();
    for (index, table) in runs.run.into_iter().enumerate() {
        let mut id = format!("run[{index}]");
        let mut words = Vec::new();
        for (key, value) in table {
            let flag = flag(&key);
            match value {
                ::toml::Value::String(text) if key == "id" => id = text,
                _ if REMARKS.contains(&key.as_str()) => {}
                ::toml::Value::Boolean(true) => words.push(format!("--{flag}")),
                ::toml::Value::Boolean(false) => {}
                ::toml::Value::String(text) => words.push(format!("--{flag}={text}")),
                ::toml::Value::Integer(number) => words.push(format!("--{flag}={number}")),
                ::toml::Value::Float(number) => words.push(format!("--{flag}={number}")),
                ::toml::Value::Array(list) => {
                    words.push(format!("--{flag}"));
                    words.extend(
                        list.iter().map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned)),
                    );
                }
                ::toml::Value::Table(_) | ::toml::Value::Datetime(_) => {
                    return Err(wrong(format!("run[{index}].{key} is not a text, a number or a list")));
                }
            }
        }
        listed.push(one(id, format!("{file}, run[{index}]"), &words)?);
    }
    Ok(listed)
}

fn one(id: String, place: String, words: &[String]) -> Result<Listed, InputError> {
    let run = MeasuredRun::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        // The first line has the flag and the value; the rest is the usage of a command line.
        let said = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        InputError::new("", "", one_line(said))
            .hint("columns and keys are flags of `autodist calibrate`, with `_` for `-`; `autodist calibrate --template` prints a table")
            .in_file(&place)
    })?;
    Ok(Listed { id, place, run: run.run })
}
