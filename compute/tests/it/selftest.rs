//! Runs the self-test on the CPU in single precision.

use autodist_compute::Cpu;
use autodist_compute::selftest::{self, SelftestResult, UnitRoundoff};
use autodist_spec::Precision;
use std::collections::BTreeSet;

fn run(rounding: UnitRoundoff) -> Vec<SelftestResult> {
    let mut seen = Vec::new();
    let checks = selftest::run(&Cpu::<f32>::new(), rounding, |check| seen.push(check.clone()))
        .expect("the CPU does not fail");
    assert_eq!(seen, checks);
    checks
}

/// Every backend method except fused attention, which the CPU lacks, and the layers.
const CHECKED: [&str; 40] = [
    "activation_backward",
    "activation_forward",
    "adamw_step",
    "add",
    "add_positions",
    "add_row",
    "block",
    "causal_softmax",
    "causal_softmax_backward",
    "copy",
    "copy_matrices",
    "cross_entropy",
    "cross_entropy_backward",
    "download",
    "embedding",
    "events",
    "exponentials",
    "fill_zero",
    "gather_rows",
    "head",
    "heads_at_once",
    "host",
    "len",
    "matmul",
    "norm_backward",
    "norm_forward",
    "queue",
    "read",
    "rotary",
    "row_max",
    "scale",
    "scatter_add_rows",
    "sgd_momentum_step",
    "sum_of_squares",
    "sum_positions",
    "sum_rows",
    "upload",
    "wait_for",
    "write",
    "zeros",
];

#[test]
fn single_precision_passes_every_check() {
    let checks = run(UnitRoundoff::of(Precision::Fp32));
    let failed: Vec<&SelftestResult> = checks.iter().filter(|check| !check.passed()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let done: BTreeSet<&str> = checks.iter().map(|check| check.what).collect();
    assert_eq!(done, BTreeSet::from(CHECKED));
    let mut names: Vec<_> = checks.iter().map(|check| (check.what, &check.case)).collect();
    names.sort_unstable();
    names.windows(2).for_each(|pair| assert_ne!(pair[0], pair[1], "two checks of one name"));
}

/// Single precision must fail the tolerances of double precision wherever it rounds.
#[test]
fn single_precision_does_not_pass_for_more() {
    let double = f64::EPSILON / 2.0;
    let checks = run(UnitRoundoff { working: double, product: double });
    let failed: BTreeSet<&str> =
        checks.iter().filter(|check| !check.passed()).map(|check| check.what).collect();
    let exact = [
        "copy",
        "copy_matrices",
        "download",
        "fill_zero",
        "gather_rows",
        "row_max",
        "upload",
        "write",
        "zeros",
    ];
    let in_double = ["cross_entropy", "read", "sum_of_squares"];
    let promises = ["events", "heads_at_once", "host", "len"];
    let passed = [&exact[..], &in_double, &promises].concat().into_iter().collect();
    assert_eq!(failed, &BTreeSet::from(CHECKED) - &passed);
}
