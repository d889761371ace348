//! Accuracy of the shipped parameters on held-out measurements (tests/data/README.md).

use autodist_hardware::fit::{FitErrors, LeftOut, Measurements, check, compare, kernels};
use autodist_hardware::{Catalogue, DeviceModel, KernelParameters};
use autodist_spec::Precision;

const GEMM: &str = include_str!("../data/gemm.csv");
const ATTENTION: &str = include_str!("../data/attention.csv");
const COLLECTIVES: &str = include_str!("../data/collectives.csv");

/// Errors over the rows of all devices, for one kind of kernel.
fn errors(of: &str, parameters: &KernelParameters) -> FitErrors {
    let (gemm, attention, collectives) = match of {
        "gemm" => (GEMM, "", ""),
        "attention" => ("", ATTENTION, ""),
        _ => ("", "", COLLECTIVES),
    };
    let catalogue = Catalogue::shipped();
    let rows = Measurements::read(&catalogue, gemm, attention, collectives).unwrap();
    // Each device has a line; the assertions are on all rows together.
    let lines = compare(&rows, parameters);
    let whole = lines.iter().filter(|line| line.kernel == of || line.kernel.starts_with("gemm"));
    let weighed: Vec<(f64, usize, f64)> =
        whole.map(|line| (line.errors.median, line.errors.count, line.errors.p90)).collect();
    let count: usize = weighed.iter().map(|(_, count, _)| count).sum();
    let mean = |pick: &dyn Fn(&(f64, usize, f64)) -> f64| {
        weighed.iter().map(|entry| pick(entry) * entry.1 as f64).sum::<f64>() / count as f64
    };
    FitErrors { count, median: mean(&|entry| entry.0), p90: mean(&|entry| entry.2), bias: 0.0 }
}

#[test]
fn products_are_foretold_to_a_few_per_cent() {
    let errors = errors("gemm", KernelParameters::shipped());
    assert_eq!(errors.count, 400);
    assert!(errors.median < 0.04 && errors.p90 < 0.12, "{errors:?}");
}

#[test]
fn attention_is_foretold_to_a_few_per_cent() {
    let errors = errors("attention", KernelParameters::shipped());
    assert_eq!(errors.count, 250);
    assert!(errors.median < 0.06 && errors.p90 < 0.20, "{errors:?}");
}

#[test]
fn collectives_are_foretold_to_a_few_per_cent() {
    let errors = errors("collectives", KernelParameters::shipped());
    assert_eq!(errors.count, 140);
    assert!(errors.median < 0.06, "{errors:?}");
}

#[test]
fn the_fit_is_the_same_every_time_and_survives_its_file() {
    // Only the header: no collectives.
    let fit = || kernels(GEMM, ATTENTION, "gpu,op,dtype,gpus,bytes,time_us\n").unwrap();
    let parameters = fit();
    assert_eq!(parameters, fit());
    let read = KernelParameters::read(&parameters.write()).unwrap();
    assert_eq!(read, parameters);
    // A few hundred rows of nine devices give a poor fit, but it must predict its own rows roughly.
    let errors = errors("gemm", &read);
    assert!(errors.median < 0.1, "{errors:?}");
}

#[test]
fn what_is_left_out_is_judged_and_not_fitted() {
    let rows = Measurements::read(&Catalogue::shipped(), GEMM, ATTENTION, COLLECTIVES).unwrap();
    let left_out = LeftOut::Part { part: 0.3, seed: 5 };
    let (kept, left) = rows.split(left_out);
    let lines =
        |rows: &Measurements| rows.write().map(|table| table.lines().count() - 1).iter().sum::<usize>();
    assert_eq!(lines(&kept) + lines(&left), lines(&rows));
    let (parameters, errors) = check(&rows, left_out);
    assert_eq!(parameters, autodist_hardware::fit::fit(&kept));
    let judged: usize =
        errors.iter().filter(|line| line.kernel.starts_with("gemm")).map(|line| line.errors.count).sum();
    assert_eq!(judged, left.write()[0].lines().count() - 1);
}

#[test]
fn bad_tables_are_refused_with_their_column() {
    let bad = |gemm: &str| kernels(gemm, "", "").unwrap_err().to_string();
    assert!(
        bad("gpu,dtype,m\nh100_sxm,bf16,1\n").contains("missing field"),
        "{}",
        bad("gpu,dtype,m\nh100_sxm,bf16,1\n")
    );
    let text = bad("gpu,dtype,m,n,k,median_ms\nabacus,bf16,1,1,1,1\n");
    assert!(text.contains("abacus") && text.contains("measured_as"), "{text}");
    let text = bad("gpu,dtype,m,n,k,median_ms\nh100_sxm,bf16,1,1,1,0\n");
    assert!(text.contains("median_ms"), "{text}");
    let text = bad("gpu,dtype,m,n,k,median_ms\nh100_sxm,roman,1,1,1,1\n");
    assert!(text.contains("roman") && text.contains("fp8"), "{text}");
    assert!(KernelParameters::read("source = 1").is_err());
    // Parameters without GEMMs are rejected with an error.
    let empty = KernelParameters::read("source = \"nothing\"").unwrap();
    let h100 = Catalogue::shipped().device("h100-80gb-sxm").unwrap().clone();
    assert!(DeviceModel::new(&h100, &empty).unwrap_err().to_string().contains("gemm"));
    assert!(
        DeviceModel::new(&h100, KernelParameters::shipped()).unwrap().gemm(Precision::Bf16, 1, 1, 1).time.0
            > 0.0
    );
}
