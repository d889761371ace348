//! The output of every command: its exit code, standard output, standard error, and the files that it writes,
//! compared with `tests/it/snapshots/`. To accept a difference, run `INSTA_UPDATE=always scripts/test.sh
//! snapshots::` and look at `git diff tests/it/snapshots`.
//!
//! Measured values differ at every run, and have placeholders ([`MEASURED`]); floats of many digits are
//! rounded (`common/shown.rs`); the version is left out. Everything else is shown unchanged. Searches have
//! the same result with any number of threads; commands that measure are given the number of ranks, which
//! would otherwise be the machine's number of cores.

use crate::common;

use autodist_cost_model::synthetic::SyntheticMachine;
use autodist_spec::to_json;
use common::shown::{files, head_of_table, shown, shown_each, text_of_page};
use common::{folder, line, small_job, small_model, write};
use std::path::Path;

/// Values that differ between runs and between machines, if something is measured. They are applied in turn.
const MEASURED: &[(&str, &str)] = &[
    // The number of these lines depends on the duration.
    (r"(?m)^(profile|train|validate|selftest) .*\d+ s used.*\n", "[progress of $1]\n"),
    (r"(\[progress of [a-z]+\]\n)+", "$1"),
    // The ends of lines and cells depend on the widths of measured values.
    (r"\n {6,}", " "),
    (r"-{2,}", "--"),
    (r"(?m)(%) +#+$", "$1"),
    (r" {2,}", "  "),
    (r"(?m)^(\S[^\n]*?)(  [^\n]*)\n((?:[\d,]+ )?[a-z]+(?: [a-z]+)*)$", "$1 $3$2"),
    // Whether a measurement is doubtful depends on the machine's load.
    (r"(?m)^warning:( +ranks had no real-time priority)", "[warning]$1"),
    (r"(?m)^(warning:|doubt  ).*\n", ""),
    (r"\[warning\]", "warning:"),
    // So do wide intervals.
    (r"(?m)^margin  .*\n", ""),
    (r"cpu \([^)]*\)", "cpu ([processor])"),
    (r"\b\d[\d.,]* (s|ms|µs)\b", "[time]"),
    (r"\b\d[\d.,]* (TB|GB|MB|kB|TFLOP|GFLOP|MFLOP)/s", "[rate]"),
    (r"\b\d[\d,]* tokens/s", "[rate] tokens/s"),
    (r"[+-]?\b\d+\.\d %", "[percent]"),
    (r"[+-]?\b\d\.\d{4}( at step|  )", "[loss]$1"),
];

/// Memory peaks, of ranks and in the table of a validation's only run. The number of sent bytes does not
/// vary, so it is shown.
const PEAKS: &[(&str, &str)] = &[
    (r"(?m)^(memory  )[\d.]+ [KMG]iB", "$1[size]"),
    (r"(?m)^(  \d+  )[\d.]+ [KMG]iB", "$1[size]"),
    (r"(?m)^(1  dp[^\n]*?  )[\d.]+ [KMG]iB", "$1[size]"),
];

/// Parts of a profile about its machine.
const MACHINE: &[(&str, &str)] = &[
    (r"\bon [\w.-]+: (\d+ devices)", "on [host]: $1"),
    (r"(\[processor\]\)): [\d.]+ [KMGT]iB", "$1: [size]"),
    (r"(?m)^processor  .*, \d+ cores?", "processor  [processor], [cores] cores"),
    (r"(?m)^taken  .*", "taken  [date] on [host]"),
    (r"\d+\.\d{3} times", "[ratio] times"),
    (r"\d\.\d+e-?\d+  (unbounded|\[rate\])", "[seconds per byte]  [rate]"),
    (r"\d+ timings", "[count] timings"),
    (r"(a rank without a model|one communicator)  [\d.]+ [KMG]iB", "$1  [size]"),
    (r"(?m)^repeats  .*", "repeats  [how far two runs of one plan differ]"),
    (
        r"(two runs of one plan differ by ) ?(\[percent\]|not known \(one round\)).*",
        "$1[percent, or not known]",
    ),
];

/// Additional output of `tune`: its plan depends on a measured profile, and may be refuted.
const TUNED: &[(&str, &str)] = &[
    ("exit code [05]", "exit code 0, or 5 where the plan is refuted"),
    // The profile of a refuted plan is measured again, and all later steps repeated.
    (r"(?s)(\nwrote 1 run record,[^\n]*\n).*\nwrote 1 run record,[^\n]*\n", "$1"),
    (r"(?m)^before  .*\n", ""),
    (r"(?m)^error: REFUTED.*\n", ""),
    (r"(\[time\]  )\d+\.\d\d(  \[time\])", "$1[speed]$2"),
    (r"(?m)^search  .*", "search  [what the search or the measurement says]"),
    (r"(?m)^verdict  .*", "verdict  [verdict]"),
    (r"(?m)(holds|within noise|REFUTED)$", "[verdict]"),
    (r"fingerprint [0-9a-f]{16}", "fingerprint [fingerprint]"),
    (r"of [\d.]+ [KMGT]iB per device", "of [size] per device"),
    (r"(?m)^(0  0  .*  |.*\[size\]  |reserve  |total  |communication buffers  )[\d.]+ [KMGT]iB", "$1[size]"),
];

/// Compares the output with the snapshot of that name.
#[track_caller]
fn snapshot(name: &str, text: &str) {
    held(name, text, &[]);
}

#[track_caller]
fn held(name: &str, text: &str, filters: &[(&str, &str)]) {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    for (pattern, replacement) in filters {
        settings.add_filter(pattern, *replacement);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}

#[test]
fn help() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let version = (env!("CARGO_PKG_VERSION"), "[version]");
    // What a machine builds with is its own.
    let built = [
        ("commit .*", "commit    [commit]"),
        ("features .*", "features  [features]"),
        ("target .*", "target    [target]"),
    ];
    held("version", &shown(folder, "--version"), &[[version].as_slice(), &built].concat());
    snapshot("help", &shown_each(folder, &["--help", "-h", ""]));
    // Every subcommand that the program lists.
    let list = line(folder, "-h").ok();
    let (_, list) = list.split_once("Commands:\n").unwrap();
    let (list, _) = list.split_once("\n\n").unwrap();
    let names = list.lines().filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names: Vec<_> = names.map(|line| line.split_whitespace().next().unwrap()).collect();
    assert!(names.contains(&"plan"), "{names:?}");
    for name in names.into_iter().filter(|name| *name != "help") {
        snapshot(&format!("help_{name}"), &shown(folder, &format!("{name} --help")));
    }
}

const SEARCH: &str = "plan --profile profile.json --model model.json --job job.toml --threads 1";
const GIVEN: &str = "estimate --profile profile.json --model model.json --job job.toml";

#[test]
fn plan() {
    let folder = folder(4);
    for (name, flags) in [
        ("plan", ""),
        ("plan_top", "--top 2 -o plan.json"),
        ("plan_json", "--top 2 --json"),
        ("plan_restricted", "--tp 2 --zero 1 --recompute none --device-memory 2097152"),
        ("plan_compression", "--allow compression --objective time-to-loss --top 3"),
    ] {
        snapshot(name, &shown(folder.path(), format!("{SEARCH} {flags}").trim_end()));
    }
}

#[test]
fn explain() {
    let folder = folder(4);
    line(folder.path(), &format!("{SEARCH} --top 3 -o plan.json")).ok();
    line(folder.path(), &format!("{GIVEN} --tp 2 --pp 2 -o other.json")).ok();
    for (name, flags) in [
        ("explain", ""),
        ("explain_second", "--plan 2"),
        ("explain_against", "--against other.json"),
        ("explain_json", "--json"),
    ] {
        snapshot(name, &shown(folder.path(), format!("explain plan.json {flags}").trim_end()));
    }
}

#[test]
fn estimate_of_a_profile() {
    let folder = folder(4);
    for (name, flags) in [
        ("estimate", "--tp 2 --sp --micro-batch 2 -o plan.json"),
        ("estimate_pipeline", "--pp 2 --vpp 2 --zero 1 --recompute selective"),
        ("estimate_json", "--zero 3 --micro-batch 2 --json"),
    ] {
        snapshot(name, &shown(folder.path(), &format!("{GIVEN} {flags}")));
    }
    snapshot("estimate_plan", &shown(folder.path(), "estimate plan.json"));
}

/// A job on a cluster without a profile.
const GPT3: &str =
    "estimate --model gpt3-175b --cluster 64x8xa100-80gb-sxm@8x200gbps --global-batch 1536 --seq-len 2048";

#[test]
fn estimate_without_a_profile() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let layout = "--tp 8 --pp 8 --vpp 3 --dp 8 --micro-batch 1";
    for (name, flags) in [
        ("estimate_unmeasured", layout.to_owned()),
        ("estimate_unmeasured_json", format!("{layout} --trainer megatron --recompute full --json")),
        ("estimate_unmeasured_too_large", "--tp 8 --recompute none".to_owned()),
        ("estimate_best", "--tp 8 --best 3 -o plan.json".to_owned()),
        ("estimate_best_json", "--tp 8 --pp 8 --best 2 --json".to_owned()),
    ] {
        // Differences of nearly equal times are rounding errors.
        let rounding = (r"\d[\d.]*e-1\d\b", "[rounding]");
        held(name, &shown(folder, &format!("{GPT3} {flags}")), &[rounding]);
    }
    let in_8_bits = "estimate --model llama3-70b --cluster 32x8xh100-80gb-sxm@8x400gbps --global-batch 1024 --seq-len 8192 \
                     --trainer nemo --precision fp8 --tp 4 --pp 4 --cp 2";
    snapshot("estimate_fp8", &shown(folder, in_8_bits));
    let experts = "estimate --model mixtral-8x7b --cluster 4x8xh100-80gb-sxm@8x400gbps --global-batch 256 --seq-len 4096 \
                   --ep 8 --zero 1";
    snapshot("estimate_experts", &shown(folder, experts));
    write(
        folder,
        "mine.toml",
        "[[device]]\nname = \"mine\"\nmemory_bytes = 103079215104\npeak_flops_per_s = 8.0e14\n\
         memory_bytes_per_s = 2.4e12\nlink_bytes_per_s = 4.5e11\nsource = \"its data sheet\"\n",
    );
    let own = "estimate --devices mine.toml --model gpt2-xl --cluster 2x8xmine@8x400gbps --global-batch 64 --seq-len 1024";
    snapshot("estimate_own_device", &shown(folder, own));
}

/// Trainers, and a layout that each supports.
const TRAINERS: [(&str, &str); 9] = [
    ("megatron", HYBRID),
    ("megatron-bridge", HYBRID),
    ("torchtitan", HYBRID),
    ("deepspeed", SHARDED),
    ("accelerate", WHOLE),
    ("transformers", WHOLE),
    ("nanotron", HYBRID),
    ("galvatron", HYBRID),
    ("maxtext", HYBRID),
];
const HYBRID: &str = "--tp 2 --pp 2 --sp --micro-batch 2 --recompute full";
const SHARDED: &str = "--zero 3 --micro-batch 2 --learning-rate 0.0002 --seed 1";
/// FSDP of these trainers needs GPUs.
const WHOLE: &str = "--zero 0 --micro-batch 2 --learning-rate 0.0002 --seed 1";

/// Files of an export. A plan document is compared with the exported one instead of shown.
fn exported(folder: &Path, file: &str, content: &[u8]) -> String {
    let content = String::from_utf8(content.to_vec()).unwrap();
    let plan = std::fs::read_to_string(folder.join("plan.json")).unwrap();
    if file == "plan.json" {
        assert_eq!(content, plan);
        return "(the plan document)\n".to_owned();
    }
    // A manifest contains it as a string.
    content.replace(&serde_json::to_string(&plan).unwrap(), "\"(the plan document)\"")
}

#[test]
fn export_and_estimate_from_each_trainer() {
    for (trainer, layout) in TRAINERS {
        let folder = folder(4);
        let folder = folder.path();
        line(folder, &format!("{GIVEN} {layout} -o plan.json")).ok();
        let mut text = shown(folder, &format!("export plan.json --to {trainer} -o out"));
        let out = folder.join("out");
        text += &files(&out, |name, content| exported(folder, name, content));
        snapshot(&format!("export_{trainer}"), &text);
        // The configuration is the file that is not executable; some trainers have only a script.
        let names: Vec<_> =
            std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let names: Vec<_> = names.iter().map(|name| name.to_str().unwrap()).collect();
        let own = ["training_args.json"].into_iter().find(|name| names.contains(name));
        let config = own
            .or(names.iter().copied().find(|name| ![".sh", ".py"].iter().any(|end| name.ends_with(end))))
            .unwrap_or(names[0]);
        let back = format!(
            "estimate --from {trainer} out/{config} --profile profile.json --model model.json --global-batch 8 --seq-len 16"
        );
        snapshot(&format!("estimate_from_{trainer}"), &shown(folder, &back));
    }
}

#[test]
fn export_to_launchers() {
    let folder = folder(4);
    let folder = folder.path();
    line(folder, &format!("{GIVEN} {HYBRID} -o plan.json")).ok();
    line(folder, "export plan.json --to megatron -o slurm_script").ok();
    for (name, flags) in [
        ("slurm", "--to slurm"),
        ("slurm_script", "--to slurm --script slurm_script/megatron.sh"),
        ("kubernetes", "--to kubernetes --image registry/image:1"),
        ("json", "--to maxtext --json"),
    ] {
        let mut text = shown(folder, &format!("export plan.json {flags} -o {name}"));
        if folder.join(name).exists() {
            text += &files(&folder.join(name), |file, content| exported(folder, file, content));
        }
        snapshot(&format!("export_{name}"), &text);
    }
}

#[test]
fn report() {
    let folder = folder(2);
    let folder = folder.path();
    write(folder, "plan.json", to_json(&common::plan()));
    write(folder, "run.json", to_json(&common::run_record()));
    write(folder, "validation.json", to_json(&common::validation()));
    let mut text = shown(folder, "report plan.json run.json validation.json -o report");
    text += &files(&folder.join("report"), |name, content| match name.rsplit_once('.').unwrap().1 {
        "html" => text_of_page(std::str::from_utf8(content).unwrap()),
        "csv" => head_of_table(std::str::from_utf8(content).unwrap()),
        // Drawn with floating-point functions of the C library; other tests check the pictures.
        "png" => "(a picture)\n".to_owned(),
        kind => format!("({kind})\n"),
    });
    snapshot("report", &text);
    snapshot("report_json", &shown(folder, "report plan.json -o other --json"));
}

const RUNS: &str = "id,group,source,layers,hidden,heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,precision,tp,pp,dp,\
                    recompute,micro_batch,global_batch,iteration_s,peak_mem_gb\n";

/// Runs of two groups, slower than the built-in calibration predicts.
fn runs() -> String {
    let mut table = RUNS.to_owned();
    for (at, (group, layers, micro_batch)) in
        [("mine", 12, 1), ("mine", 16, 2), ("mine", 24, 4), ("theirs", 12, 2), ("theirs", 20, 4)]
            .into_iter()
            .enumerate()
    {
        let seconds = 0.07 * f64::from(layers);
        table += &format!(
            "run-{at},{group},Megatron-LM,{layers},4096,32,16384,51200,2048,A100-80GB-SXM,8,8,bf16,8,1,1,full,{micro_batch},32,\
             {seconds:.2},{}\n",
            if at == 0 { "20" } else { "" }
        );
    }
    table
}

#[test]
fn backtest_and_calibrate() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let bad = "strange,mine,Megatron-LM,12,4096,32,16384,51200,2048,Z9,8,8,bf16,8,1,1,full,1,32,1.0,\n\
               unmeasured,mine,,12,4096,,,,2048,H100-80GB-SXM,8,,,8,1,,,,32,,\n";
    write(folder, "runs.csv", runs() + bad);
    write(folder, "sets.csv", "set_id,ids_best_first\none,run-0 run-1 run-2\n");
    for (name, flags) in
        [("backtest", ""), ("backtest_json", "--json"), ("backtest_left_out", "--leave-one-group-out")]
    {
        snapshot(name, &shown(folder, format!("backtest runs.csv {flags}").trim_end()));
    }
    write(folder, "runs.csv", runs());
    let mut text = shown(folder, "calibrate runs.csv -o mine.toml");
    std::fs::create_dir(folder.join("out")).unwrap();
    std::fs::rename(folder.join("mine.toml"), folder.join("out/mine.toml")).unwrap();
    text += &files(&folder.join("out"), |_, content| String::from_utf8(content.to_vec()).unwrap());
    text += "\n";
    text += &shown(folder, "backtest runs.csv --calibration out/mine.toml");
    snapshot("calibrate", &text);
}

#[test]
fn backtest_of_measured_layers() {
    let folder = tempfile::tempdir().unwrap();
    let plans = concat!(env!("CARGO_MANIFEST_DIR"), "/catalog/published/measured_plans.json");
    std::fs::copy(plans, folder.path().join("plans.json")).unwrap();
    snapshot("backtest_measured_plans", &shown(folder.path(), "backtest --measured-plans plans.json"));
}

#[test]
fn catalogue_and_schema() {
    let folder = tempfile::tempdir().unwrap();
    snapshot("catalog", &shown(folder.path(), "catalog"));
    snapshot("catalog_json", &shown(folder.path(), "catalog --json"));
    // The others are schemas/*.schema.json.
    snapshot("schema_job", &shown(folder.path(), "schema job"));
}

/// Ranks use no real-time priority, so that they do not block other tests, and a dead rank is detected soon.
const RANKS: &str = "--no-realtime --timeout 30";

#[test]
fn train() {
    let folder = folder(2);
    line(folder.path(), &format!("{GIVEN} --micro-batch 2 -o plan.json")).ok();
    let text = shown(folder.path(), &format!("train plan.json --steps 4 {RANKS}"));
    held("train", &text, &[MEASURED, PEAKS].concat());
}

#[test]
fn validate() {
    // A step is predicted to take ten seconds instead of milliseconds, so the verdict is the same under any
    // load.
    let machine = SyntheticMachine { overhead_s: 10.0, ..SyntheticMachine::new(2) };
    let folder = folder(2);
    write(folder.path(), "profile.json", to_json(&machine.profile(&small_model(), &small_job())));
    line(folder.path(), &format!("{SEARCH} --top 2 -o plan.json")).ok();
    let text = shown(folder.path(), &format!("validate plan.json --steps 4 {RANKS}"));
    // Predictions do not vary between runs; the times next to them do.
    let hidden = (r"10\.0 s ± ([\d.]+) (m?s)\b", "10.0 [s] ± $1 [$2]");
    let seen = (r"\[(m?s)\]", "$1");
    held("validate", &text, &[&[hidden], MEASURED, PEAKS, &[seen]].concat());
}

/// A job with one legal plan, so that the best plan does not depend on measurements.
const ONE_PLAN: &str = "schema_version = 1\nglobal_batch = 4\nseq_len = 16\n[allow]\ntensor = [1]\npipeline = [1]\n\
                        data = [2]\nmicro_batch = [2]\nzero_stage = [0]\nrecompute = [\"none\"]\n\
                        sequence_parallel = [false]\n";

#[test]
fn profile() {
    let folder = folder(2);
    write(folder.path(), "job.toml", ONE_PLAN);
    // An interval that is wide enough on any machine: one round of measurements.
    let flags = "--devices cpu --ranks 2 --budget 0.1 --interval 1000 -o measured.json";
    let args = format!("profile --model model.json --job job.toml {flags} {RANKS}");
    let text = shown(folder.path(), &args) + "\n" + &shown(folder.path(), &args);
    held("profile", &text, &[MEASURED, MACHINE].concat());
}

#[test]
fn tune() {
    let folder = folder(2);
    write(folder.path(), "job.toml", ONE_PLAN);
    let flags = "--devices cpu --ranks 2 --budget 0.1 --top 1 --steps 2 -o tuned";
    let text = shown(folder.path(), &format!("tune --model model.json --job job.toml {flags} {RANKS}"));
    held("tune", &text, &[MEASURED, PEAKS, MACHINE, TUNED].concat());
}

#[test]
fn selftest() {
    let folder = tempfile::tempdir().unwrap();
    let error = [(r"(?m)^(  \S+ +\d+ +)\d\.\de-?\d+", "$1[error]")];
    held("selftest", &shown(folder.path(), "selftest --device cpu"), &[&error, MEASURED].concat());
}

#[test]
fn refusals() {
    let folder = folder(4);
    let folder = folder.path();
    line(folder, &format!("{GIVEN} {HYBRID} -o plan.json")).ok();
    write(folder, "misspelt.toml", "schema_version = 1\nglobal_bach = 8\n");
    write(folder, "negative.toml", "schema_version = 1\nglobal_batch = -8\n");
    write(folder, "broken.json", "{\"schema_version\": 1,");
    write(folder, "old.json", "{\"schema_version\": 99}");
    let refused = |name: &str, commands: &[&str]| {
        snapshot(name, &shown_each(folder, commands));
    };
    refused(
        "refused_files",
        &[
            "plan --profile none.json",
            "plan --profile broken.json",
            "plan --profile old.json",
            "plan --profile model.json",
            "plan --profile profile.json --model model.json --job misspelt.toml",
            "plan --profile profile.json --model model.json --job negative.toml",
            "explain none.json",
            "explain profile.json",
            "estimate --from megatron none.sh --cluster 1x4xh100-80gb-sxm",
            "backtest none.csv",
            "report plan.json none.json",
        ],
    );
    let given = |flags: &str| format!("{GIVEN} {flags}");
    let search = |flags: &str| format!("{SEARCH} {flags}");
    let unmeasured = |flags: &str| format!("{GPT3} {flags}");
    let (degree, chunks, tensor) = (given("--tp 3"), given("--pp 2 --vpp 7"), search("--tp 3"));
    let (zero, layouts, layout) = (given("--zero 4"), unmeasured("--tp 5 --best"), unmeasured("--tp 3"));
    refused(
        "refused_flags",
        &[
            &degree,
            &chunks,
            &tensor,
            &zero,
            &layouts,
            &layout,
            "estimate --tp two",
            "plan --profile profile.json --model llama",
            "plan --profile profile.json --model gpt2 --global-batch 8",
            "plan --profile profile.json --model model.json",
            "plan --cluster 1x8xh100-80gb-sxm --model gpt2 --global-batch 8 --seq-len 1024 --zero 3",
            "estimate --cluster 1x8xh101 --model gpt2 --global-batch 8",
            "estimate --cluster eight --model gpt2 --global-batch 8",
            "explain plan.json --plan 9",
            "export plan.json --to abacus",
            "export plan.json --to megatron --script start.sh",
            "train plan.json --steps 0",
            "plam",
        ],
    );
    let little = search("--device-memory 1048576 --tp 1 --pp 1 --zero 0");
    let smallest = unmeasured("--tp 8 --device-memory 4000000000 --best");
    refused(
        "refused_infeasible",
        &[&little, &smallest, "export plan.json --to accelerate", "export plan.json --to deepspeed"],
    );
}
