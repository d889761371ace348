//! Fits the shipped parameters again, or evaluates such a fit on held-out measurements.
//!
//! ```text
//! cargo run --release -p autodist-hardware --example kernels -- check gemm.csv attention_forward.csv nccl_one_node.csv [seed]
//! cargo run --release -p autodist-hardware --example kernels -- widths gemm.csv attention_forward.csv nccl_one_node.csv
//! cargo run --release -p autodist-hardware --example kernels -- devices gemm.csv attention_forward.csv nccl_one_node.csv
//! cargo run --release -p autodist-hardware --example kernels -- fit gemm.csv attention_forward.csv nccl_one_node.csv
//! cargo run --release -p autodist-hardware --example kernels -- shipped gemm.csv attention_forward.csv nccl_one_node.csv
//! ```
//!
//! `check` holds out a random tenth, `widths` four widths altogether, `devices` each device in turn, which is
//! then predicted from the others. `fit` prints the parameters: catalog/kernels.toml; `shipped` evaluates
//! those on the measurements that their fit held out, which `reserved` prints; a part of these is in
//! tests/data.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program")]

use autodist_hardware::fit::{
    ErrorLine, LeftOut, Measurements, RESERVED, check, check_devices, compare, fit,
};
use autodist_hardware::{Catalogue, KernelParameters};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let usage = "write: check|widths|devices|fit|shipped|reserved gemm.csv attention_forward.csv nccl_one_node.csv [seed]";
    let [verb, gemm, attention, nccl, rest @ ..] = arguments.as_slice() else { return Err(usage.to_owned()) };
    let text = |path: &String| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
    let (gemm, attention, nccl) = (text(gemm)?, text(attention)?, text(nccl)?);
    let measurements = Measurements::read(&Catalogue::shipped(), &gemm, &attention, &nccl)
        .map_err(|error| error.to_string())?;
    let seed = rest.first().map_or(Ok(1), |seed| seed.parse()).map_err(|_| usage.to_owned())?;
    match verb.as_str() {
        "check" => print_table(&check(&measurements, LeftOut::Part { part: 0.1, seed }).1),
        "widths" => print_table(&check(&measurements, LeftOut::Widths).1),
        "devices" => print_table(&check_devices(&measurements, KernelParameters::shipped())),
        "fit" => print!("{}", fit(&measurements.split(RESERVED).0).write()),
        "reserved" => measurements.split(RESERVED).1.write().iter().for_each(|table| println!("{table}")),
        "shipped" => print_table(&compare(&measurements.split(RESERVED).1, KernelParameters::shipped())),
        _ => return Err(usage.to_owned()),
    }
    Ok(())
}

fn print_table(lines: &[ErrorLine]) {
    println!("| kernel | device | left out | median error | p90 | bias |");
    println!("|---|---|--:|--:|--:|--:|");
    for ErrorLine { kernel, device, errors } in lines {
        let percent = |part: f64| format!("{:.1} %", 100.0 * part);
        let (median, p90, bias) = (percent(errors.median), percent(errors.p90), percent(errors.bias));
        println!("| {kernel} | {device} | {} | {median} | {p90} | {bias} |", errors.count);
    }
}
