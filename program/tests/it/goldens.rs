//! The text of programs: one file for each strategy, and cases for all options of a strategy.
//!
//! `UPDATE=1 scripts/test.sh goldens::` writes the files.

use crate::common;

use autodist_program::{Flows, Instruction, Op, Operand, Program, TensorCollective, Transfer};
use autodist_spec::{
    Activation, Algorithm, Codec, Collective, Job, LayerKind, Norm, Optimizer, Pass, Positions, Precision,
    Recompute, ScheduleKind, Segment,
};
use common::cases::{self, ALGORITHMS, Case, MOVED, ROLES, Role};
use common::{every, text, variant, variants};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

fn golden(case: &Case) -> String {
    let program = case.program();
    text::of_job(&case.job) + &text::of_program(&program) + &traffic(&program)
}

/// The traffic between ranks in a step, which placements are based on.
fn traffic(program: &Program) -> String {
    let mut out = "\ntraffic:\n".to_owned();
    let names = ["tensor", "shards", "replicas", "messages"];
    for (name, Flows { edges, bytes }) in names.iter().zip(program.traffic()) {
        let edges: Vec<String> = edges.iter().map(|(from, to)| format!(" {from}>{to}")).collect();
        if !edges.is_empty() || bytes > 0.0 {
            out += &format!("  {name}: {bytes} bytes along{}\n", edges.concat());
        }
    }
    out
}

/// The text of every file. If cases share one, the first is printed in full, and for the others only the
/// lines that differ.
fn files() -> BTreeMap<String, String> {
    let mut first: BTreeMap<String, (String, String)> = BTreeMap::new();
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut names = BTreeSet::new();
    for case in cases::all() {
        let (file, variant) = case.name.split_once('/').unwrap_or((&case.name, ""));
        let text = golden(&case);
        assert!(names.insert(case.name.clone()), "two cases are called {}", case.name);
        let heading = if variant.is_empty() { String::new() } else { format!("== {variant}\n") };
        let told = match first.get(file) {
            Some((name, base)) => variation(name, base, &text),
            None => {
                first.insert(file.to_owned(), (variant.to_owned(), text.clone()));
                text
            }
        };
        *files.entry(format!("{file}.txt")).or_default() += &(heading + &told);
    }
    files
}

/// The difference of `text` from the lines of `base`.
fn variation(name: &str, base: &str, text: &str) -> String {
    if base.lines().count() != text.lines().count() {
        return text.to_owned();
    }
    let lines = base.lines().zip(text.lines()).enumerate().filter(|(_, (old, new))| old != new);
    let lines: Vec<String> = lines.map(|(index, (_, new))| format!("line {}: {new}\n", index + 1)).collect();
    format!("as {name}, but\n{}", lines.concat())
}

/// The first line in which two texts differ, from each.
fn difference(kept: &str, made: &str) -> String {
    let lines = kept.lines().count().max(made.lines().count());
    let (mut kept, mut made) = (kept.lines(), made.lines());
    let mut number = 1;
    while let (Some(one), Some(other)) = (kept.next(), made.next()) {
        if one != other {
            return format!("line {number} of {lines} is\n  {one}\nin the file, but compiles to\n  {other}");
        }
        number += 1;
    }
    format!("one of the two ends before line {number} of {lines}")
}

#[test]
fn programs_are_what_the_golden_files_say() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    let expected = files();
    for (file, made) in &expected {
        let path = folder().join(file);
        if update {
            std::fs::create_dir_all(folder()).unwrap();
            std::fs::write(&path, made).unwrap();
        }
        let kept = std::fs::read_to_string(&path).unwrap_or_default();
        if kept != *made {
            wrong.push(format!("{file}: {}", difference(&kept, made)));
        }
    }
    let found = std::fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap());
    for strange in found.filter(|entry| !expected.contains_key(entry.file_name().to_string_lossy().as_ref()))
    {
        wrong.push(format!("{}: no case makes this file; delete it", strange.path().display()));
    }
    let how = "UPDATE=1 scripts/test.sh goldens::";
    assert!(wrong.is_empty(), "{} files differ (if rightly: {how})\n{}", wrong.len(), wrong.join("\n"));
}

fn codec_names() -> Vec<&'static str> {
    variants!(
        Codec: None, Fp16, Bf16, Int8, PowerSgd, PowerSgdHalf, TopK, Dgc, OneBit, Qsgd, TernGrad, OneBitAdam
    )
}

fn algorithm_names() -> Vec<&'static str> {
    variants!(Algorithm: Ring, DoubleBinaryTree, HalvingDoubling, Hierarchical, Torus)
}

/// Which variants of which enums occur.
#[derive(Default)]
struct Seen(BTreeMap<&'static str, BTreeSet<String>>);

impl Seen {
    fn add(&mut self, what: &'static str, value: &impl Debug) {
        self.0.entry(what).or_default().insert(variant(value));
    }

    #[track_caller]
    fn check(&mut self, what: &'static str, all: &[&str]) {
        let seen = self.0.remove(what).unwrap_or_default();
        let missing: Vec<&&str> = all.iter().filter(|name| !seen.contains(**name)).collect();
        assert!(missing.is_empty(), "no case has {what} {missing:?}");
    }

    fn add_case(&mut self, case: &Case) {
        let Case { name: _, model, job, strategy, stages } = case;
        self.add("positions", &model.positions);
        self.add("norm", &model.norm);
        self.add("activation", &model.activation);
        self.add("precision", &job.precision);
        self.add("optimizer", &job.optimizer);
        self.add("schedule", &strategy.schedule);
        self.add("ZeRO stage", &strategy.zero_stage);
        self.add("policy", &strategy.recompute);
        for recompute in stages.iter().flat_map(|stage| &stage.recompute) {
            self.add("recompute", recompute);
        }
        for reduction in strategy.communication.reductions() {
            self.add("codec of gradients", &reduction.codec);
            self.add("algorithm of gradients", &reduction.algorithm);
        }
        for (what, on) in [
            ("bias", model.bias),
            ("experts", model.experts.is_some()),
            ("tied table", model.tied_embeddings),
            ("sequence parallelism", strategy.sequence_parallel),
            ("clipping", job.gradient_clip > 0.0),
            ("hybrid sharding", strategy.shard > 1 && strategy.shard < strategy.data),
            ("placement", !strategy.communication.placement.is_empty()),
            ("exceptions by bucket", !strategy.communication.buckets.is_empty()),
        ] {
            self.add(what, &on);
        }
    }

    fn add_program(&mut self, program: &Program) {
        for rank in &program.ranks {
            for op in &rank.ops {
                self.add("operation", op);
                if let Op::Send(message) | Op::Receive(message) = op {
                    self.add("message", &message.kind);
                }
            }
            for body in &rank.bodies {
                self.add("body", &body.kind);
                for instruction in &body.instructions {
                    self.add_instruction(program, instruction);
                }
            }
        }
    }

    fn add_instruction(&mut self, program: &Program, instruction: &Instruction) {
        self.add("instruction", instruction);
        match instruction {
            Instruction::Segment { segment, pass, recompute, layer } => {
                self.add("segment", segment);
                self.add("pass", pass);
                self.add("recompute of a segment", recompute);
                self.add("layer", &program.model.kind(*layer));
            }
            Instruction::Tensor { collective, operand, .. } => {
                self.add("tensor collective", collective);
                self.add("operand", operand);
            }
            Instruction::Start { transfer, bucket } => {
                self.add("start of", transfer);
                let bucket = program.ranks.iter().find_map(|rank| rank.buckets().get(*bucket));
                self.add("collective", &program.transfer_work(*transfer, bucket.expect("a bucket")).0);
            }
            Instruction::Wait { transfer, .. } => self.add("wait for", transfer),
            Instruction::Context { pass, .. } => self.add("exchange in", pass),
            Instruction::Experts { pass, .. } => self.add("route in", pass),
            _ => {}
        }
    }
}

#[test]
fn cases_have_every_variant_of_what_a_strategy_says_and_a_program_does() {
    use autodist_program::{BodyKind, MessageKind};
    let mut seen = Seen::default();
    for case in cases::all() {
        seen.add_case(&case);
        seen.add_program(&case.program());
    }
    seen.check("positions", &variants!(Positions: Learned, Rotary, Alibi));
    seen.check("norm", &variants!(Norm: LayerNorm, RmsNorm));
    seen.check("activation", &variants!(Activation: Gelu, SwiGlu));
    seen.check("precision", &variants!(Precision: Fp32, Tf32, Fp16, Bf16, Fp8));
    seen.check("optimizer", &variants!(Optimizer: AdamW, Sgd));
    seen.check("schedule", &variants!(ScheduleKind: GPipe, OneFOneB, Interleaved));
    for what in ["policy", "recompute", "recompute of a segment"] {
        seen.check(what, &variants!(Recompute: None, Selective, Full));
    }
    seen.check("codec of gradients", &codec_names());
    seen.check("algorithm of gradients", &algorithm_names());
    let stages: Vec<String> = Job::new(1, 1).allow.zero_stage.iter().map(u8::to_string).collect();
    seen.check("ZeRO stage", &stages.iter().map(String::as_str).collect::<Vec<_>>());
    seen.check("operation", &variants!(Op: Receive, Run, Send));
    seen.check("message", &variants!(MessageKind: Activation, Gradient));
    seen.check("body", &variants!(BodyKind: Forward, Backward, Optimizer));
    let instructions = variants!(
        Instruction: Segment, Tensor, Context, Experts, SumReplicated, Start, Wait, Release, SumTied, GradientNorm, Update
    );
    seen.check("instruction", &instructions);
    let segments = variants!(
        Segment: Embedding, AttentionNorm, Attention, MlpNorm, Mlp, FinalNorm, Logits, Normalizer, Loss
    );
    seen.check("segment", &segments);
    seen.check("pass", &variants!(Pass: Forward, Recompute, Backward));
    for what in ["exchange in", "route in"] {
        seen.check(what, &variants!(Pass: Forward, Recompute, Backward));
    }
    seen.check("layer", &variants!(LayerKind: Embedding, Block, Head));
    let collectives = variants!(TensorCollective: SumAll, MaxAll, ReduceScatter, AllGather);
    seen.check("tensor collective", &collectives);
    seen.check("operand", &variants!(Operand: Flow, SavedInput));
    for what in ["start of", "wait for"] {
        seen.check(what, &variants!(Transfer: Reduce, ReduceReplicas, Gather));
    }
    // No program uses the other collectives yet.
    let collectives =
        [Collective::AllReduce, Collective::ReduceScatter, Collective::AllGather].map(|kind| variant(&kind));
    seen.check("collective", &collectives.each_ref().map(String::as_str));
    for what in [
        "bias",
        "experts",
        "tied table",
        "sequence parallelism",
        "clipping",
        "hybrid sharding",
        "placement",
        "exceptions by bucket",
    ] {
        seen.check(what, &["false", "true"]);
    }
    assert!(seen.0.is_empty(), "nobody asks for {:?}", seen.0.keys());
}

/// Codecs and algorithms in every role that the rules allow.
#[test]
fn lists_of_codecs_and_algorithms_are_complete_and_every_role_is_taken() {
    let (codecs, algorithms) = (codec_names(), algorithm_names());
    assert_eq!(Codec::DEFAULTS.map(|codec| variant(&codec)).to_vec(), codecs);
    assert_eq!(ALGORITHMS.map(|algorithm| variant(&algorithm)).to_vec(), algorithms);
    let legal = |role: Role| -> Vec<String> {
        let codecs = Codec::DEFAULTS.into_iter().filter(|codec| cases::coded(role, *codec).check().is_ok());
        codecs.map(|codec| variant(&codec)).collect()
    };
    for role in ROLES {
        let expected: &[&str] = match role {
            Role::Gradients(0) => &codecs,
            Role::Gradients(_) | Role::Parameters => &["None", "Fp16", "Bf16", "Int8"],
            Role::Activations => &["None", "Fp16", "Bf16"],
        };
        assert_eq!(legal(role), expected, "{role:?}");
    }
    for what in MOVED {
        let legal = ALGORITHMS.iter().filter(|algorithm| cases::moved(what, **algorithm).check().is_ok());
        let legal: Vec<String> = legal.map(variant).collect();
        let whole = matches!(what, cases::Moved::Gradients | cases::Moved::Tensors);
        let expected = algorithms.iter().filter(|name| whole || **name != "DoubleBinaryTree");
        assert_eq!(legal, expected.copied().collect::<Vec<_>>(), "{what:?}");
    }
}

/// Each option is on and off under every schedule and at every ZeRO stage where it is allowed.
#[test]
fn schedules_and_zero_stages_meet_what_changes_their_instructions() {
    let list = cases::all();
    let mut missing = Vec::new();
    for schedule in every!(ScheduleKind: GPipe, OneFOneB, Interleaved) {
        for stage in 0..=3 {
            let found = list.iter().any(|case| {
                let strategy = &case.strategy;
                strategy.pipeline > 1 && strategy.schedule == schedule && strategy.zero_stage == stage
            });
            if !found {
                missing.push(format!("{} with zero={stage}", schedule.name()));
            }
        }
    }
    for stage in 0..=3 {
        let having = |what: &str, test: &dyn Fn(&Case) -> bool| {
            let found = list.iter().any(|case| case.strategy.zero_stage == stage && test(case));
            (!found).then(|| format!("zero={stage} with {what}"))
        };
        missing.extend(having("one micro-batch", &|c| c.program().micro_batches == 1));
        missing.extend(having("several micro-batches", &|c| c.program().micro_batches > 1));
        missing.extend(having("sequence parallelism", &|c| c.strategy.sequence_parallel));
        missing.extend(having("recomputation", &|c| c.strategy.recompute == Recompute::Full));
        missing.extend(having("a tied table in one rank", &|c| {
            c.model.tied_embeddings && c.strategy.pipeline == 1
        }));
        missing.extend(having("a tied table at both ends", &|c| {
            c.model.tied_embeddings && c.strategy.pipeline > 1
        }));
        missing.extend(having("replicas of shards", &|c| {
            stage == 0 || c.strategy.shard > 1 && c.strategy.shard < c.strategy.data
        }));
        missing.extend(having("padding", &|c| {
            let program = c.program();
            let mut buckets = program.ranks.iter().flat_map(|rank| rank.buckets());
            stage == 0 || buckets.any(|bucket| bucket.padded > bucket.elements)
        }));
    }
    assert!(missing.is_empty(), "no case has {}", missing.join(", nor "));
}
