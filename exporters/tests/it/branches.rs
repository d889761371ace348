//! Branches of shell scripts whose conditions follow from the script: the same branches are read as bash runs.

use autodist_exporters::{Target, import};
use autodist_spec::catalog;
use proptest::prelude::*;
use std::process::Command;

const RUN: &str = "torchrun --nproc-per-node 8 pretrain_gpt.py --seed 1 --micro-batch-size";

/// The micro-batch that the script gives, as it is read and as bash has it.
fn read_and_run(script: &str) -> (u32, u32) {
    let model = catalog::model("tiny-llama").unwrap();
    let read = import(Target::Megatron, &format!("{script}\n{RUN} $X\n"), Some(model));
    let read = read.unwrap_or_else(|error| panic!("{script}\n{error}")).settings.micro_batch;
    let output = Command::new("bash").args(["-c", &format!("{script}\necho $X")]).output().unwrap();
    let run = String::from_utf8(output.stdout).unwrap();
    (read, run.trim().parse().unwrap_or_else(|_| panic!("{script}\nbash: {run}")))
}

#[test]
fn branches_that_are_known_are_read_as_bash_runs_them() {
    for script in [
        "X=1; if [ \"$X\" = 1 ]; then X=8; else X=4; fi",
        "X=1; if [ $X -gt 1 ]; then X=8; elif [ $X -le 1 ]; then X=2; else X=4; fi",
        "X=1\nif [[ $X == \"1\" && -n \"$X\" ]]\nthen\n  X=8\nfi",
        "X=1; EP=4\nif [[ $EP -gt 1 ]] || false; then X=2; [ $EP -ne 4 ] && X=16; fi",
        "X=1; SP=true; [ \"$SP\" = true ] && X=4 || X=2",
        "X=1; SP=; [ -z \"$SP\" ] || X=16\n[ ! -n \"$SP\" ] && X=2",
        "X=1; SIZE=7B; case $SIZE in\n 1B|3B) X=2 ;;\n 7B | 8B)\n  X=4\n ;;\n *) X=8 ;;\nesac",
        "X=1; SIZE=90B; case \"$SIZE\" in (1B) X=2;; *) if [ x$SIZE = x90B ]; then X=16; fi;; esac",
        "X=1; if ! [ $X = 2 ]; then if test 3 -lt 2; then X=2; else X=32; fi; fi",
        "X=1; if false; then X=2; if true; then X=4; fi; elif [ ]; then X=8; fi",
    ] {
        let (read, run) = read_and_run(script);
        assert_eq!(read, run, "{script}");
    }
}

/// A flag in a branch that is not taken is not the command's.
#[test]
fn commands_of_branches_that_are_not_taken_do_not_count() {
    let script = format!("MODE=8b; if [ $MODE = 70b ]; then\n{RUN} 4 --bf16\nelse\n{RUN} 2\nfi");
    let model = catalog::model("tiny-llama").unwrap();
    assert_eq!(import(Target::Megatron, &script, Some(model)).unwrap().settings.micro_batch, 2);
}

/// Scripts over a few variables, whose conditions are all known.
fn script() -> impl Strategy<Value = String> {
    let name = || prop::sample::select(vec!["X", "Y", "Z"]);
    let assignment = (name(), 1..9_u32).prop_map(|(name, value)| format!("{name}={value}"));
    let condition = (name(), prop::sample::select(vec!["=", "!=", "-lt", "-ge"]), 1..9_u32, any::<bool>())
        .prop_map(|(name, operator, value, double)| {
            let value = format!("\"${name}\" {operator} {value}");
            if double { format!("[[ {value} ]]") } else { format!("[ {value} ]") }
        })
        .boxed();
    let leaf = assignment.boxed();
    leaf.prop_recursive(4, 24, 4, move |inner| {
        let body = prop::collection::vec(inner, 1..4).prop_map(|lines| lines.join("\n"));
        let test =
            (condition.clone(), condition.clone(), 0..4_usize).prop_map(|(one, other, form)| match form {
                0 => format!("{one} && {other}"),
                1 => format!("{one} || {other}"),
                2 => format!("! {one}"),
                _ => one,
            });
        prop_oneof![
            (test.clone(), body.clone(), body.clone())
                .prop_map(|(test, yes, no)| format!("if {test}; then\n{yes}\nelse\n{no}\nfi")),
            (test.clone(), body.clone(), test.clone(), body.clone()).prop_map(
                |(test, yes, other, no)| format!("if {test}\nthen {yes}\nelif {other}; then {no}\nfi")
            ),
            (name(), 1..9_u32, body.clone(), body.clone()).prop_map(|(name, value, yes, no)| {
                format!("case \"${name}\" in\n{value} | 9) {yes} ;;\n*)\n{no}\n;;\nesac")
            }),
            (condition.clone(), name(), 1..9_u32, 1..9_u32)
                .prop_map(|(test, name, yes, no)| { format!("{test} && {name}={yes} || {name}={no}") }),
            body,
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_branches_are_read_as_bash_runs_them(script in script()) {
        let (read, run) = read_and_run(&format!("X=1\nY=2\nZ=3\n{script}"));
        prop_assert_eq!(read, run, "{}", script);
    }
}
