//! Compares the simulated step and the closed form, both priced by the catalogue: they share the prices of
//! kernels and collectives, and nothing of how a step is composed of them. The table
//! `tests/golden/cross_check.csv` lists the ratios of their step times and memory; large differences have a
//! reason.

use crate::twin;

use std::fmt::Write;
use std::path::Path;
use std::sync::LazyLock;
use twin::reasons::{REASONS, Reason};
use twin::{Case, Figure, Pair};

/// A ratio further from one needs a reason.
const AGREES: f64 = 0.15;
/// A larger difference from the table is a change.
const STAYS: f64 = 0.005;

/// Models of the catalogue with the given numbers of blocks, on one to eight nodes of eight devices.
const LAYOUTS: &str = "
llama3-8b/8 gb8 seq4096 dp8
llama3-8b/8 gb64 seq4096 dp8
llama3-8b/8 gb64 seq4096 dp8 zero1
llama3-8b/8 gb64 seq4096 dp8 zero2
llama3-8b/8 gb64 seq4096 dp8 zero3
llama3-8b/8 gb8 seq4096 dp8 zero3
llama3-8b/8 gb64 seq4096 dp8 mb2 zero1
llama3-8b/8 gb64 seq8192 dp8 mb4 zero1 recompute=full
llama3-8b/8 gb64 seq8192 dp8 mb4 zero1 recompute=selective
llama3-8b/8 gb64 seq4096 dp4 tp2 zero1
llama3-8b/8 gb64 seq4096 dp4 tp2 zero1 sp
llama3-8b/8 gb64 seq4096 dp2 tp4 sp
llama3-8b/8 gb64 seq4096 tp8 mb2
llama3-8b/8 gb64 seq4096 tp8 mb2 sp
llama3-8b/8 gb64 seq4096 dp4 pp2
llama3-8b/8 gb64 seq4096 dp2 pp4
llama3-8b/8 gb64 seq4096 dp2 pp4 v2
llama3-8b/8 gb64 seq4096 dp2 tp2 pp2 sp v2
llama2-7b/16 gb128 seq4096 dp16 zero1
llama2-7b/16 gb128 seq4096 dp16 zero2
llama2-7b/16 gb128 seq4096 dp16 zero3
llama2-7b/16 gb16 seq4096 dp16 zero3
llama2-7b/16 gb128 seq4096 dp16 zero3 recompute=full
llama2-7b/16 gb128 seq4096 dp32 zero1 recompute=full
llama2-7b/16 gb128 seq2048 dp4 tp4 pp2 sp zero1
llama2-7b/16 gb128 seq2048 dp4 tp2 pp4 zero1
llama2-7b/16 gb128 seq2048 dp4 tp2 pp4 zero1 v2
llama2-7b/16 gb128 seq2048 dp4 tp2 pp4 zero1 v4 sp
llama2-7b/16 gb128 seq4096 dp8 tp8 sp zero1
llama2-7b/16 gb128 seq4096 dp2 tp4 pp8 sp zero1
llama2-7b/16 gb128 seq4096 dp2 tp4 pp8 sp zero1 recompute=full
llama2-7b/16 gb128 seq4096 dp8 tp1 pp8 mb1 zero2
llama2-7b/16 gb128 seq4096 dp8 tp1 pp4 mb1 zero3
llama2-7b/16 gb128 seq4096 dp8 tp4 mb2 sp zero3
megatron-3.6b/16 gb64 seq2048 dp8 mb4
megatron-3.6b/16 gb64 seq2048 dp16 mb2 zero1
megatron-3.6b/16 gb64 seq2048 dp4 tp2 mb4 recompute=full
megatron-3.6b/16 gb64 seq2048 dp4 tp2 mb4 sp recompute=selective
megatron-3.6b/16 gb64 seq2048 dp2 tp2 pp4 mb2
megatron-3.6b/16 gb64 seq2048 dp2 tp2 pp4 mb2 v4
megatron-3.6b/16 gb64 seq2048 dp8 pp2 mb1 zero1
megatron-3.6b/16 gb64 seq2048 dp32 mb2 zero3
llama2-70b/8 gb64 seq4096 tp8 pp8 sp
llama2-70b/8 gb64 seq4096 dp2 tp8 pp4 sp zero1 recompute=full
llama2-70b/8 gb64 seq4096 dp8 tp8 sp zero1
llama2-70b/8 gb64 seq4096 dp8 tp8 sp zero1 recompute=full
llama2-70b/8 gb64 seq4096 dp16 tp4 zero1
llama2-70b/8 gb64 seq4096 dp64 zero3
llama2-70b/8 gb64 seq4096 dp64 zero3 recompute=full
llama2-70b/8 gb128 seq4096 dp8 tp4 pp2 sp zero2
gpt2-large/36 gb64 seq1024 dp8 mb8
gpt2-large/36 gb64 seq1024 dp8 mb2 zero1
gpt2-large/36 gb64 seq1024 dp64 mb1 zero1
gpt2-large/36 gb256 seq1024 dp8 tp1 pp4 mb4 v3 zero1
gpt2-large/36 gb256 seq1024 dp8 tp4 pp2 mb8 zero1
gpt2-large/36 gb64 seq1024 dp64 zero3
gpt2-large/36 gb64 seq1024 dp64
gpt2-large/36 gb512 seq1024 dp64 zero2
gpt2-large/36 gb512 seq1024 dp64 zero3
gpt2-large/36 gb32 seq1024 dp16 tp2 mb1 zero1
gpt2-large/36 gb16 seq1024 dp16 tp4 mb1 sp zero1
llama2-7b/16 gb2 seq4096 dp2 tp1 pp8
llama2-7b/16 gb4 seq4096 dp2 tp1 pp8
llama2-7b/16 gb16 seq4096 tp1 pp16
llama2-7b/16 gb8 seq4096 tp4 pp8 sp v2
llama2-7b/16 gb32 seq4096 tp4 pp8 sp v2
llama3-8b/8 gb64 seq8192 dp2 tp1 pp8 mb1
llama3-8b/8 gb8 seq8192 dp8 tp8 sp zero1
llama3-8b/8 gb32 seq4096 dp16 tp2 zero2
llama3-8b/8 gb32 seq4096 dp16 tp2 zero3
llama3-8b/8 gb128 seq4096 dp64 zero3
llama2-7b/16 gb512 seq1024 dp64 zero2
llama2-7b/16 gb64 seq1024 dp64 zero3
llama2-7b/16 gb64 seq512 dp64 zero2
llama2-7b/16 gb64 seq512 dp8 pp8 zero2
llama2-7b/16 gb64 seq512 dp8 pp8 zero3
llama2-7b/16 gb64 seq512 dp8 pp8 zero1
llama2-7b/16 gb256 seq512 dp8 pp8 v2 zero1
llama2-7b/16 gb64 seq1024 dp2 tp8 pp4 sp v4 zero1
llama2-7b/16 gb64 seq1024 dp2 tp8 pp4 v4 zero1
megatron-3.6b/16 gb16 seq2048 dp8 pp4 mb1 zero1
megatron-3.6b/16 gb32 seq2048 dp4 tp8 mb8 recompute=full
megatron-3.6b/16 gb256 seq2048 dp8 tp1 pp8 mb4 zero2 recompute=full
llama3-8b/8 gb64 seq8192 dp8 mb4 zero3 recompute=full
llama3-8b/8 gb64 seq8192 dp2 tp4 mb4 sp zero1 recompute=full
llama3-8b/8 gb64 seq8192 dp8 mb4 zero2 recompute=full
llama3-8b/8 gb128 seq8192 dp8 tp8 mb16 sp zero1 recompute=full
";

static PAIRS: LazyLock<Vec<Pair>> = LazyLock::new(|| {
    LAYOUTS.lines().filter(|line| !line.is_empty()).map(|line| Case::read(line).price()).collect()
});

fn differs(ratio: f64) -> bool {
    (ratio - 1.0).abs() > AGREES
}

/// The ratio after the amounts of the reasons are subtracted from the program's figure.
fn corrected<'a>(pair: &Pair, figure: Figure, reasons: impl IntoIterator<Item = &'a Reason>) -> f64 {
    let (program, closed) = pair.figures(figure);
    let explained: f64 = reasons.into_iter().map(|reason| (reason.amount)(pair)).sum();
    (program - explained) / closed
}

fn applying(pair: &Pair, figure: Figure) -> Vec<&'static Reason> {
    REASONS.iter().filter(|reason| reason.figure == figure && (reason.applies)(pair)).collect()
}

fn relative(a: f64, b: f64) -> f64 {
    (a / b - 1.0).abs()
}

/// Both use the same machine and the same FLOPs, so differences are not caused by inputs.
#[test]
fn arithmetic_takes_both_the_same_time() {
    let mut compared = 0;
    for pair in PAIRS.iter() {
        let closed = &pair.analytic;
        let blocks = closed.linear_s + closed.attention_s + closed.elementwise_s + closed.recompute_s;
        let layout = &pair.run.layout;
        // In the closed form, recomputation includes the tensor-parallel collectives.
        if layout.tensor > 1 && pair.run.recompute == autodist_spec::Recompute::Full {
            continue;
        }
        let (rank, expected) = match layout.pipeline {
            1 => (0, blocks + closed.head_s),
            2 => continue,
            // Neither embedding nor head.
            _ => (1, blocks),
        };
        let program = pair.ranks[rank].compute_s.0 + pair.ranks[rank].recompute_s.0;
        assert!(relative(program, expected) < 1e-9, "{}: {program} s, {expected} s", pair.case.text);
        compared += 1;
    }
    assert!(compared > 30, "{compared}");
}

#[test]
fn a_block_more_takes_both_the_same_memory() {
    for text in [
        "llama2-7b/8 gb8 dp8",
        "llama2-7b/8 gb8 dp8 zero1",
        "llama2-7b/8 gb2 dp2 tp4",
        "llama2-7b/8 gb2 dp2 tp4 sp",
        "llama2-7b/8 gb2 dp2 tp4 sp recompute=selective",
        "llama2-7b/8 gb2 dp2 tp4 sp recompute=full",
        "megatron-3.6b/8 gb4 dp2 tp4 mb2 zero1",
        "megatron-3.6b/8 gb4 dp2 tp4 mb2 sp recompute=full",
    ] {
        let of = |layers: &str| Case::read(&text.replace("/8 ", layers)).price().figures(Figure::Memory);
        let ((program, closed), (more, closed_more)) = (of("/8 "), of("/16 "));
        let (program, closed) = (more - program, closed_more - closed);
        // The closed form leaves out norms and biases.
        assert!(relative(program, closed) < 1e-3, "{text}: {program:.4e} B, {closed:.4e} B");
    }
}

/// `UPDATE=1 cargo test --test it cross_check::` writes the file.
#[test]
fn the_ratios_are_those_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/cross_check.csv");
    let mut table = "layout,time,memory\n".to_owned();
    for pair in PAIRS.iter() {
        let (time, memory) = (pair.ratio(Figure::Time), pair.ratio(Figure::Memory));
        writeln!(table, "{},{time:.4},{memory:.4}", pair.case.text).unwrap();
    }
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &table).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    let of = |line: &str| -> (String, [f64; 2]) {
        let mut cells = line.split(',');
        let mut next = || cells.next().unwrap();
        (next().to_owned(), [next().parse().unwrap(), next().parse().unwrap()])
    };
    let moved: Vec<String> = kept
        .lines()
        .zip(table.lines())
        .skip(1)
        .filter(|(kept, now)| {
            let ((layout, kept), (asked, now)) = (of(kept), of(now));
            layout != asked || (0..2).any(|figure| relative(now[figure], kept[figure]) > STAYS)
        })
        .map(|(kept, now)| format!("{kept} is now {now}"))
        .collect();
    let update = "if that is meant: UPDATE=1 cargo test --test it cross_check::";
    assert_eq!(kept.lines().count(), table.lines().count(), "{} has other layouts; {update}", path.display());
    assert!(
        moved.is_empty(),
        "{} (cost-model over analytic):\n{}\n{update}",
        path.display(),
        moved.join("\n")
    );
}

#[test]
fn what_differs_much_has_a_reason() {
    for pair in PAIRS.iter() {
        for figure in [Figure::Time, Figure::Memory] {
            let ratio = pair.ratio(figure);
            let left = corrected(pair, figure, applying(pair, figure));
            assert!(
                !differs(ratio) || !differs(left),
                "{}: {figure:?} of cost-model over analytic is {ratio:.3}, and {left:.3} without what reasons explain: \
                 {:?}",
                pair.case.text,
                applying(pair, figure).iter().map(|reason| reason.name).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn no_reason_is_idle() {
    for reason in &REASONS {
        let needed = PAIRS.iter().any(|pair| {
            let all = applying(pair, reason.figure);
            let others = all.iter().copied().filter(|other| other.name != reason.name);
            all.len() > others.clone().count()
                && differs(pair.ratio(reason.figure))
                && differs(corrected(pair, reason.figure, others))
        });
        assert!(needed, "`{}` explains nothing: leave it out", reason.name);
    }
}
