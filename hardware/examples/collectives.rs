//! Compares predicted collectives with a table of published ones, and prints the errors by source and group.
//!
//! ```text
//! cargo run --release -p autodist-hardware --example collectives -- collectives.csv
//! ```
//!
//! Columns: `source,gpu,nodes,gpus,op,bytes,time_us,busbw_gb_s` and others. Rows without bytes are taken as 1
//! GiB; rows with an unknown number of NICs per node are left out.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use autodist_hardware::{Catalogue, GroupShape, Interconnect, KernelParameters, fit::FitErrors};
use autodist_spec::{Bytes, Collective};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::process::ExitCode;

#[derive(Deserialize)]
struct Line {
    source: String,
    gpu: String,
    nodes: u32,
    gpus: Option<u32>,
    op: String,
    bytes: Option<u64>,
    time_us: Option<f64>,
    busbw_gb_s: Option<f64>,
}

fn main() -> ExitCode {
    match std::env::args().nth(1).ok_or("write: collectives.csv".to_owned()).and_then(|path| run(&path)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn device(gpu: &str) -> Option<&'static str> {
    Some(match gpu {
        "A100" => "a100-80gb-sxm",
        "V100" => "v100-32gb-sxm",
        "A100-80GB-PCIe" => "a100-80gb-pcie",
        "H200-141GB-SXM" => "h200-141gb-sxm",
        "B200-180GB-SXM" => "b200-180gb-sxm",
        "MI300X" => "mi300x",
        _ => return None,
    })
}

fn run(path: &str) -> Result<(), String> {
    let catalogue = Catalogue::shipped();
    let mut reader = csv::Reader::from_path(path).map_err(|error| format!("{path}: {error}"))?;
    let mut groups: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for line in reader.deserialize::<Line>() {
        let line = line.map_err(|error| format!("{path}: {error}"))?;
        let kind = match line.op.as_str() {
            "all_reduce" => Collective::AllReduce,
            "reduce_scatter" => Collective::ReduceScatter,
            "all_gather" => Collective::AllGather,
            "all2all" => Collective::AllToAll,
            _ => continue,
        };
        let (Some(device), Some(gpus), 1) = (device(&line.gpu), line.gpus, line.nodes) else { continue };
        let bytes = line.bytes.unwrap_or(1 << 30);
        let part = f64::from(gpus - 1) / f64::from(gpus);
        let sent = if kind == Collective::AllReduce { 2.0 * part } else { part } * bytes as f64;
        let measured =
            line.time_us.map(|micro| micro * 1e-6).or(line.busbw_gb_s.map(|rate| sent / (rate * 1e9)));
        let Some(measured) = measured else { continue };
        let figures = catalogue.device(device).map_err(|error| error.to_string())?;
        let links = Interconnect::of_device(figures, KernelParameters::shipped());
        let predicted = links.collective(kind, Bytes(bytes), GroupShape::in_one_node(gpus)).time.0;
        let name = format!("{} | {device} | {} | {gpus}", line.source, line.op);
        groups.entry(name).or_default().push((predicted, measured));
    }
    println!("| source | device | collective | devices | rows | median error | p90 | bias |");
    println!("|---|---|---|--:|--:|--:|--:|--:|");
    for (name, pairs) in groups {
        let Some(errors) = FitErrors::of(&pairs) else { continue };
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let (median, p90, bias) = (percent(errors.median), percent(errors.p90), percent(errors.bias));
        println!("| {name} | {} | {median} | {p90} | {bias} |", errors.count);
    }
    Ok(())
}
