//! Cases that people met in practice: their model, machine, trainer and layout, and what happened. Each stands for a kind
//! of question; the inputs are written for these tests. The ids only tell cases apart.

use crate::common;

use common::{line, write};
use serde_json::Value;
use std::path::Path;

const GIB: f64 = (1_u64 << 30) as f64;

/// What is known of a case.
#[derive(Debug, Clone, Copy)]
enum Known {
    /// It fits, or ran out of memory.
    Fits(bool),
    /// Seconds of a step, within the error bar of the prediction.
    Step(f64),
    /// Seconds of a step, from and to: where the report leaves facts open.
    Between(f64, f64),
    /// GiB at the peak, from and to.
    Peak(f64, f64),
    /// A field of the document (`strategy.shard`) and its value.
    Is(&'static str, &'static str),
    /// It cannot be: the exit code, and what the message names.
    Refused(i32, &'static str),
}

use Known::{Between, Fits, Is, Peak, Refused, Step};

fn at<'a>(plan: &'a Value, path: &str) -> &'a Value {
    path.split('.').fold(plan, |value, key| match key.parse::<usize>() {
        Ok(index) => &value[index],
        Err(_) => &value[key],
    })
}

fn number(plan: &Value, path: &str) -> f64 {
    at(plan, path).as_f64().unwrap_or_else(|| panic!("{path} is {}", at(plan, path)))
}

/// What an answer has against what is known.
fn mistake(plan: &Value, known: Known) -> Option<String> {
    let step = number(plan, "estimate.step_time_s");
    let peak = number(plan, "estimate.peak_memory_bytes");
    let limit = number(plan, "estimate.memory_limit_bytes");
    let fits = plan["fits"].as_bool().unwrap();
    if fits != (peak <= limit) {
        return Some(format!("fits is {fits}, but {peak} bytes of {limit}"));
    }
    let wrong = match known {
        Fits(expected) => fits != expected,
        Step(seconds) => (step - seconds).abs() > number(plan, "estimate.step_time_spread_s"),
        Between(from, to) => !(from..=to).contains(&step),
        Peak(from, to) => !(from..=to).contains(&(peak / GIB)),
        Is(path, value) => at(plan, path).to_string().trim_matches('"') != value,
        Refused(..) => true,
    };
    wrong.then(|| format!("{known:?}: {step} s, {:.1} GiB, fits {fits}, {}", peak / GIB, plan["strategy"]))
}

/// Answers all cases, and lists the mistakes.
fn check(folder: &Path, cases: &[(&str, &str, &[Known])]) {
    let mut mistakes = Vec::new();
    for (id, command, known) in cases {
        let run = line(folder, &format!("{command} --json"));
        for known in *known {
            if let Refused(code, words) = known {
                if run.code != Some(*code) || !run.err.contains(words) {
                    mistakes.push(format!("{id}: {:?}, {}", run.code, run.err));
                }
                continue;
            }
            let Ok(plan) = serde_json::from_str::<Value>(&run.out) else {
                mistakes.push(format!("{id}: {:?}, {}", run.code, run.err));
                break;
            };
            // Exit code 3 if and only if it does not fit.
            let code = if plan["fits"] == true { 0 } else { 3 };
            if run.code != Some(code) {
                mistakes.push(format!("{id}: exit code {:?}, fits {}", run.code, plan["fits"]));
            }
            mistakes.extend(mistake(&plan, *known).map(|mistake| format!("{id}: {mistake}")));
        }
    }
    assert!(mistakes.is_empty(), "{}", mistakes.join("\n"));
}

const EIGHT_H100: &str =
    "--cluster 1x8xh100-80gb-sxm --global-batch 8 --seq-len 2048 --micro-batch 1 --recompute full";

fn accelerate(strategy: &str, processes: &str) -> String {
    format!(
        "distributed_type: FSDP\nfsdp_config:\n  fsdp_sharding_strategy: {strategy}\n  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP\n\
         mixed_precision: bf16\nnum_machines: 1\n{processes}"
    )
}

const MEGATRON_FLAGS: &str = "--tensor-model-parallel-size $TP --pipeline-model-parallel-size 2 --num-layers 24 --hidden-size 2048 \
                              --num-attention-heads 16 --seq-length 2048 --max-position-embeddings 2048 --micro-batch-size 4 \
                              --global-batch-size 64 --vocab-size 50304 --bf16";

const MIXTRAL: &str = "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --num-layers 32 --hidden-size 4096 --ffn-hidden-size 14336 \
                       --num-attention-heads 32 --group-query-attention --num-query-groups 8 --seq-length 4096 \
                       --max-position-embeddings 32768 --position-embedding-type rope --swiglu --normalization RMSNorm \
                       --disable-bias-linear --untie-embeddings-and-output-weights --vocab-size 32000 --num-experts 8 \
                       --moe-router-topk 2 --micro-batch-size 1 --global-batch-size 128 --bf16 --sequence-parallel \
                       --use-distributed-optimizer --tensor-model-parallel-size 2";

/// The files of trainers.
fn files(folder: &Path) {
    write(folder, "no_shard.yaml", accelerate("NO_SHARD", "num_processes: 8\n"));
    write(folder, "full_shard.yaml", accelerate("FULL_SHARD", "num_processes: 8\n"));
    write(folder, "launcher.yaml", accelerate("FULL_SHARD", ""));
    let context =
        "parallelism_config:\n  parallelism_config_cp_size: 8\n  parallelism_config_dp_shard_size: 1\n";
    let second = accelerate("FULL_SHARD", "num_processes: 8\n").replace(
        "  fsdp_sharding_strategy: FULL_SHARD\n",
        "  fsdp_version: 2\n  fsdp_reshard_after_forward: true\n",
    );
    write(folder, "context.yaml", second + context);
    let auto = r#"{ "train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto", "train_batch_size": "auto",
                    "bf16": { "enabled": "auto" }, "zero_optimization": { "stage": 3 } }"#;
    write(folder, "auto.json", auto);
    let half = r#"{ "train_batch_size": 64, "train_micro_batch_size_per_gpu": 1, "fp16": { "enabled": true },
                    "zero_optimization": { "stage": 2 } }"#;
    write(folder, "fp16.json", half);
    let quoted = format!(
        "TP=2\nGPT_ARGS=\"\n    {MEGATRON_FLAGS}\n\"\ntorchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py $GPT_ARGS\n"
    );
    write(folder, "quoted.sh", quoted);
    let defaults =
        format!("TP=${{TP:-2}}\ntorchrun --nproc_per_node ${{GPUS:-8}} pretrain_gpt.py {MEGATRON_FLAGS}\n");
    write(folder, "defaults.sh", defaults);
    let one_node = "NODES=1\ntorchrun --nproc_per_node 8 --nnodes $NODES pretrain_gpt.py --tensor-model-parallel-size 8 \
                    --pipeline-model-parallel-size 16 --num-layers 96 --hidden-size 12288 --num-attention-heads 96 --seq-length 2048 \
                    --max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 1536 --vocab-size 50304 --bf16\n";
    write(folder, "one_node.sh", one_node);
    write(folder, "mixtral.sh", MIXTRAL);
    write(folder, "mixtral_ep8.sh", format!("{MIXTRAL} --expert-model-parallel-size 8"));
    let rest = "torchrun --nproc_per_node 8 -m torchtitan.train --parallelism.data_parallel_shard_degree=-1 \
                --training.local_batch_size=1 --training.seq_len=8192 --activation_checkpoint.mode=selective\n";
    write(folder, "rest.sh", rest);
    let nanotron = "model:\n  dtype: bfloat16\n  model_config:\n    hidden_act: silu\n    hidden_size: 4096\n    intermediate_size: 14336\n    \
                    is_llama_config: true\n    max_position_embeddings: 8192\n    num_attention_heads: 32\n    num_hidden_layers: 32\n    \
                    num_key_value_heads: 8\n    tie_word_embeddings: false\n    vocab_size: 128256\noptimizer:\n  \
                    accumulate_grad_in_fp32: true\n  zero_stage: 1\nparallelism: { dp: 8, tp: 1, pp: 1, pp_engine: 1f1b }\n\
                    tokens: { micro_batch_size: 1, batch_accumulation_per_replica: 4, sequence_length: 8192, train_steps: 100 }\n";
    write(folder, "nanotron.yaml", nanotron);
}

/// What a trainer's file decides, of itself or by its trainer's defaults.
#[test]
fn files_of_trainers() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let from = |format: &str, file: &str| format!("estimate --from {format} {file}");
    let eight = |file| format!("{} --model llama3-8b {EIGHT_H100}", from("accelerate", file));
    let (h100, two) = ("--cluster 1x8xh100-80gb-sxm", "--cluster 2x8xh100-80gb-sxm@8x400gbps");
    let sharded: &[Known] =
        &[Fits(true), Peak(20.0, 40.0), Is("strategy.zero_stage", "3"), Is("strategy.shard", "8")];
    check(
        folder.path(),
        &[
            (
                "C2",
                &eight("no_shard.yaml"),
                &[Fits(false), Peak(130.0, 160.0), Is("strategy.zero_stage", "0")],
            ),
            ("C4", &eight("launcher.yaml"), sharded),
            ("C37", &eight("full_shard.yaml"), &[Is("cost_source.catalogue.trainer", "fsdp2")]),
            (
                "C5",
                &format!(
                    "{} --model llama3-8b {h100} --global-batch 1 --micro-batch 1 --seq-len 131072 --recompute full",
                    from("accelerate", "context.yaml")
                ),
                &[Fits(true), Is("strategy.context", "8"), Is("strategy.zero_stage", "3")],
            ),
            (
                "C7",
                &format!(
                    "{} --model llama3-8b {h100} --global-batch 64 --micro-batch 2 --seq-len 4096 --precision bf16",
                    from("deepspeed", "auto.json")
                ),
                &[
                    Is("strategy.zero_stage", "3"),
                    Is("strategy.shard", "8"),
                    Is("strategy.micro_batch", "2"),
                    Is("job.global_batch", "64"),
                    Is("cost_source.catalogue.trainer", "deepspeed"),
                ],
            ),
            (
                "C8",
                &format!("{} {two}", from("megatron", "mixtral.sh")),
                &[Fits(false), Is("model.experts.count", "8")],
            ),
            (
                "C9",
                &format!("{} {two}", from("megatron", "mixtral_ep8.sh")),
                &[Step(5.45), Is("strategy.expert", "8")],
            ),
            (
                "C42",
                &format!("{} --model mixtral-8x7b {two}", from("megatron", "mixtral_ep8.sh")),
                &[Step(5.45), Fits(true), Is("strategy.tensor", "2")],
            ),
            (
                "C11",
                &format!("{} {h100}", from("megatron", "quoted.sh")),
                &[Is("strategy.tensor", "2"), Is("strategy.data", "2"), Is("strategy.micro_batch", "4")],
            ),
            (
                "C12",
                &format!("{} {h100} --tp 2 --pp 2 --dp 2", from("megatron", "defaults.sh")),
                &[Is("strategy.tensor", "2"), Is("model.hidden", "2048"), Is("job.global_batch", "64")],
            ),
            (
                "C13",
                &format!("{} --cluster 16x8xh100-80gb-sxm@8x400gbps --dp 1", from("megatron", "one_node.sh")),
                &[Is("strategy.pipeline", "16"), Is("strategy.data", "1")],
            ),
            (
                "C16",
                &format!(
                    "{} --model llama3-8b --cluster 1x8xa100-80gb-sxm --global-batch 8",
                    from("torchtitan", "rest.sh")
                ),
                &[
                    Is("strategy.shard", "8"),
                    Is("strategy.zero_stage", "3"),
                    Is("strategy.recompute", "selective"),
                ],
            ),
            (
                "C31",
                &format!("{} --model llama3-8b {h100} --seq-len 2048", from("deepspeed", "fp16.json")),
                &[Is("job.precision", "fp16"), Is("strategy.zero_stage", "2")],
            ),
            ("G1", &format!("{} {h100}", from("nanotron", "nanotron.yaml")), &[Fits(false)]),
        ],
    );
}

/// Layouts that no trainer starts, and those that one of them does not.
#[test]
fn layouts_that_do_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let thirteen = "estimate --model llama2-13b --cluster 184x8xh100-80gb-sxm@8x400gbps --tp 8 --pp 8 --dp 23 --micro-batch 1 \
                    --global-batch 32 --seq-len 4096";
    let few = "estimate --model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps --trainer torchtitan --tp 1 --pp 8 --dp 2 --zero 0 \
               --micro-batch 1 --global-batch 8 --seq-len 4096 --recompute full";
    let chunks = "estimate --model llama3-8b --cluster 1x4xh100-80gb-sxm --tp 1 --pp 4 --vpp 16 --dp 1 --micro-batch 1 \
                  --global-batch 16 --seq-len 4096";
    check(
        folder.path(),
        &[
            ("C17", thirteen, &[Refused(2, "does not divide the global batch of 32")]),
            ("C18", few, &[Refused(2, "the 4 micro-batches of a step, which PyTorch's 1F1B refuses")]),
            ("C19", chunks, &[Refused(2, "64 chunks, but there are only 34 layers")]),
        ],
    );
}

const SEVEN: &str = "estimate --model llama2-7b --cluster 1x8xa100-80gb-sxm";

/// Whether it fits, and how much memory it takes.
#[test]
fn memory_of_given_layouts() {
    let folder = tempfile::tempdir().unwrap();
    let h800 = "estimate --model llama2-7b --cluster 1x8xh800-80gb-sxm --zero 1 --global-batch 64 --seq-len 2048 --recompute none";
    let fsdp = format!(
        "{SEVEN} --trainer fsdp --tp 1 --pp 1 --dp 8 --micro-batch 4 --global-batch 32 --seq-len 4096"
    );
    let gpt2 = "estimate --model gpt2-large --cluster 1x1xv100-32gb-sxm --tp 1 --pp 1 --dp 1 --micro-batch 4 --global-batch 4 \
                --seq-len 1024 --recompute none";
    let forty = "estimate --model llama2-7b --cluster 1x8xa100-40gb-sxm --global-batch 64 --seq-len 4096";
    let long = "estimate --model llama3-8b --cluster 1x4xa800-80gb-sxm --trainer fsdp --zero 3 --tp 1 --pp 1 --dp 4 --micro-batch 1 \
                --global-batch 4 --seq-len 65536 --recompute full";
    let two = "estimate --model llama2-70b --cluster 16x8xh100-80gb-sxm@8x400gbps --tp 8 --pp 2 --dp 8 --zero 0 --micro-batch 1 \
               --global-batch 256 --seq-len 4096 --recompute full";
    check(
        folder.path(),
        &[
            ("G4", &format!("{h800} --tp 1 --pp 1 --dp 8 --micro-batch 2"), &[Peak(61.5, 76.0)]),
            ("G4, tp 2", &format!("{h800} --tp 2 --pp 1 --dp 4 --micro-batch 4"), &[Peak(49.6, 61.3)]),
            ("G4, pp 2", &format!("{h800} --tp 1 --pp 2 --dp 4 --micro-batch 2"), &[Peak(44.3, 54.8)]),
            ("G4, tp 8", &format!("{h800} --tp 8 --pp 1 --dp 1 --micro-batch 4"), &[Peak(25.6, 31.7)]),
            ("G5, ZeRO-0", &format!("{fsdp} --zero 0 --recompute full"), &[Fits(false)]),
            ("G5, ZeRO-2", &format!("{fsdp} --zero 2 --recompute none"), &[Fits(false)]),
            ("G5, ZeRO-2, full", &format!("{fsdp} --zero 2 --recompute full"), &[Fits(true)]),
            ("G5, ZeRO-3, full", &format!("{fsdp} --zero 3 --recompute full"), &[Fits(true)]),
            (
                "G12",
                &format!("{forty} --tp 1 --pp 1 --dp 8 --zero 0 --micro-batch 1 --recompute none"),
                &[Fits(false)],
            ),
            ("G12, best", &format!("{forty} --best 1"), &[Fits(true)]),
            ("G13, TP8 PP2", two, &[Fits(false)]),
            ("G14", gpt2, &[Fits(false)]),
            ("G17", long, &[Fits(false)]),
        ],
    );
}

/// How long a step takes.
#[test]
fn times_of_given_layouts() {
    let folder = tempfile::tempdir().unwrap();
    let deepspeed = format!(
        "{SEVEN} --trainer megatron-deepspeed --zero 1 --tp 1 --pp 2 --dp 4 --micro-batch 8 --global-batch 512 --seq-len 4096 \
         --recompute full"
    );
    let slow = "estimate --model llama2-7b --cluster 2x8xa100-80gb-sxm@1x10gbps --pp 1 --micro-batch 1 --global-batch 16 --seq-len 2048";
    let seventy = "estimate --model llama2-70b --cluster 16x8xh100-80gb-sxm@8x400gbps --tp 8 --pp 8 --dp 2 --zero 1 --micro-batch 1 \
                   --global-batch 256 --seq-len 4096 --recompute full";
    let thirteen = "estimate --model llama2-13b --cluster 1x8xa100-80gb-sxm --trainer nemo --tp 4 --sp --pp 1 --dp 2 --zero 1 \
                    --micro-batch 1 --global-batch 128 --seq-len 4096 --recompute selective";
    let large = "estimate --model llama3-405b --cluster 16x8xh100-96gb-sxm@8x400gbps --trainer fsdp2 --zero 3 --tp 8 --sp --pp 1 \
                 --dp 16 --micro-batch 2 --global-batch 32 --seq-len 8192 --recompute full";
    let fms = "estimate --model llama2-7b --cluster 8x8xa100-80gb-sxm@2x100gbps --trainer fsdp --zero 3 --tp 1 --pp 1 --dp 64 \
               --micro-batch 2 --global-batch 128 --seq-len 4096 --recompute none";
    let grace = "estimate --model llama3-8b --cluster 8x4xgh200-96gb@4x200gbps --tp 2 --sp --pp 1 --dp 16 --zero 1 --micro-batch 1 \
                 --global-batch 256 --seq-len 4096 --recompute none";
    let network = "--trainer fsdp2 --zero 3 --tp 1 --pp 1 --dp 32 --micro-batch 1 --global-batch 32 --seq-len 8192 --recompute full";
    let link =
        |rate: &str| format!("estimate --model llama3-70b --cluster 4x8xh200-141gb-sxm@{rate} {network}");
    check(
        folder.path(),
        &[
            // Flash attention is not that trainer's default; what ran had it.
            ("C30", &deepspeed, &[Between(110.0, 150.0), Fits(false)]),
            ("C30, flash", &format!("{deepspeed} --attention flash"), &[Step(84.6), Fits(true)]),
            ("G9", &format!("{slow} --tp 8 --dp 2"), &[Between(10.0, 25.0)]),
            ("G9, tp 16", &format!("{slow} --tp 16 --dp 1"), &[Between(40.0, 90.0)]),
            (
                "G10",
                "estimate --model llama2-7b --cluster 1x128xh100-80gb-sxm --global-batch 1048576 --seq-len 2048 --micro-batch 1 \
                 --dp 128 --zero 1",
                &[Fits(true)],
            ),
            // 296.5 TFLOP/s for each device.
            ("G13", seventy, &[Step(12.3), Fits(true)]),
            // A blog's 2357 tokens a second for each device.
            ("G15", thirteen, &[Step(27.8)]),
            // 109 tokens a second for each device, at the edge of the bar.
            ("G18", large, &[Between(13.0, 20.0)]),
            ("G19", fms, &[Step(2.2)]),
            ("G20", grace, &[Step(3.98)]),
            // About 200 tokens a second for each device: as of one slow link.
            ("G22", &link("1x100gbps"), &[Step(41.0)]),
            ("G22, eight links", &link("8x400gbps"), &[Between(7.0, 12.0)]),
        ],
    );
}

/// Searches: is there a plan, and is it at least as good as what somebody knows.
#[test]
fn searches() {
    let folder = tempfile::tempdir().unwrap();
    let kinds = |first: &str, second: &str| {
        let node = |device: &str| {
            format!(
                "[[nodes]]\ncount = 1\ndevices = 2\ndevice = \"{device}\"\nlink = {{ bytes_per_s = 15e9, latency_s = 1e-5 }}\n"
            )
        };
        let network = "[network]\nbytes_per_s = 1.25e9\nlatency_s = 5e-5\n";
        format!("schema_version = 1\nname = \"two kinds\"\n{}{}{network}", node(first), node(second))
    };
    write(folder.path(), "fast_first.toml", kinds("rtx4090", "a10g"));
    write(folder.path(), "slow_first.toml", kinds("a10g", "rtx4090"));
    let mixed = "--global-batch 16 --seq-len 2048";
    let hybrid = "estimate --model llama3.2-1b --cluster 4x4xa100-40gb-sxm@1x100gbps --trainer fsdp --global-batch 64 --seq-len 2048";
    let long = "estimate --model llama3-70b --global-batch 16 --best 1";
    check(
        folder.path(),
        &[
            (
                "C29",
                "estimate --model mixtral-8x7b --cluster 2x8xh100-80gb-sxm@8x400gbps --global-batch 64 --seq-len 4096 --best 1",
                &[Fits(true)],
            ),
            (
                "C44",
                &format!("estimate --model llama2-7b --cluster fast_first.toml {mixed} --best"),
                &[Refused(3, "no plan fits")],
            ),
            (
                "G6",
                &format!("{long} --cluster 4x8xl40s@1x100gbps --seq-len 131072"),
                &[Refused(3, "no plan fits")],
            ),
            (
                "G7",
                "estimate --model llama3-8b --cluster 8x4xa100-40gb-sxm@1x100gbps --global-batch 32 --seq-len 2048 --best 1",
                &[Fits(true)],
            ),
            (
                "G8",
                "estimate --model llama2-13b --cluster 1x8xa800-80gb-sxm --global-batch 64 --seq-len 2048 --best 1",
                &[Fits(true)],
            ),
            (
                "G11",
                &format!("{long} --cluster 16x8xh100-80gb-sxm@8x400gbps --seq-len 262144"),
                &[Fits(true)],
            ),
        ],
    );
    // C35: what is found is at least as fast as any layout given by hand.
    let step = |flags: &str| {
        number(&line(folder.path(), &format!("{hybrid} {flags} --json")).json(), "estimate.step_time_s")
    };
    let best = step("--best 1");
    for by_hand in ["--shard 4", "--shard 16", "--shard 8"] {
        let given = step(&format!("--zero 3 --dp 16 --micro-batch 4 {by_hand}"));
        assert!(best <= given * 1.01, "C35, {by_hand}: {best} {given}");
    }
    // C36: one cluster has one answer, whatever the order of its nodes.
    let order = |cluster: &str| {
        let command = format!(
            "estimate --model llama2-7b --cluster {cluster} {mixed} --tp 1 --pp 4 --dp 1 --micro-batch 1 --recompute full --json"
        );
        let run = line(folder.path(), &command);
        number(&serde_json::from_str(&run.out).unwrap(), "estimate.step_time_s")
    };
    let (fast, slow) = (order("fast_first.toml"), order("slow_first.toml"));
    assert!((fast / slow - 1.0).abs() < 0.15, "C36: {fast} {slow}");
}

/// Configurations of models as hubs have them, and the answer's own words.
#[test]
fn models_and_answers() {
    let folder = tempfile::tempdir().unwrap();
    let config = r#"{ "model_type": "MODEL", "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28,
        "num_key_value_heads": 4, "num_hidden_layers": 28, "vocab_size": 152064, "max_position_embeddings": 32768,
        "tie_word_embeddings": false, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1000000.0 SCALING }"#;
    write(folder.path(), "qwen.json", config.replace("MODEL", "qwen2").replace("SCALING", ""));
    let scaled = r#", "rope_scaling": { "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192 }"#;
    write(folder.path(), "scaled.json", config.replace("MODEL", "llama").replace("SCALING", scaled));
    let job = "--cluster 1x8xh100-80gb-sxm --global-batch 64 --seq-len 4096 --micro-batch 1 --dp 8 --zero 3";
    check(
        folder.path(),
        &[
            ("C40", &format!("estimate --model qwen.json {job}"), &[Fits(true), Is("model.kv_heads", "4")]),
            ("C41", &format!("estimate --model Qwen/Qwen2.5-7B {job}"), &[Fits(true)]),
            ("G3", &format!("estimate --model scaled.json {job}"), &[Fits(true)]),
            // C43: what was understood is in the document.
            (
                "C43",
                &format!("estimate --model llama3-8b {job}"),
                &[
                    Is("fits", "true"),
                    Is("job.precision", "bf16"),
                    Is("job.global_batch", "64"),
                    Is("strategy.micro_batch", "1"),
                    Is("strategy.zero_stage", "3"),
                    Is("strategy.shard", "8"),
                    Is("strategy.data", "8"),
                    Is("cost_source.catalogue.kernels.attention", "flash"),
                ],
            ),
        ],
    );
    let text = line(folder.path(), &format!("estimate --model llama3-8b {job}")).ok();
    for words in
        ["dp8 tp1 pp1 mb1 zero3", "fits: ", "usable", "(bf16, published)", "assumed    trainer megatron-core"]
    {
        assert!(text.contains(words), "C43, {words}: {text}");
    }
}

/// A given strategy, a search, a comparison and a trainer's file: exit code 3 where nothing fits, and the limit in the
/// document.
#[test]
fn whether_it_fits_is_a_field_and_an_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    files(folder.path());
    let job = "--model llama3-8b --global-batch 8 --seq-len 2048";
    let compared = line(folder.path(), &format!("compare 1x8xh100 1x1xh100 {job} --json")).json();
    let (whole, one) = (&compared["clusters"][0], &compared["clusters"][1]);
    assert_eq!((&whole["fits"], &one["fits"]), (&Value::Bool(true), &Value::Bool(false)), "{compared}");
    let bytes = |name: &str| whole["best"][name].as_u64().unwrap();
    assert!(bytes("peak_memory_bytes") <= bytes("memory_limit_bytes"));
    assert_eq!(bytes("memory_limit_bytes"), (80.0 * GIB * 0.96) as u64);
    for (command, code) in [
        (format!("plan --cluster 1x1xh100 {job}"), 3),
        (format!("estimate --cluster 1x1xh100 {job} --best"), 3),
        (format!("estimate --cluster 1x1xh100 {job}"), 3),
        (format!("compare 1x1xh100 1x1xa100-40gb-sxm {job}"), 3),
        (format!("estimate --from accelerate no_shard.yaml --model llama3-8b {EIGHT_H100}"), 3),
        (format!("plan --from accelerate no_shard.yaml --model llama3-8b {EIGHT_H100}"), 0),
    ] {
        let run = line(folder.path(), &command);
        assert_eq!(run.code, Some(code), "{command}: {}{}", run.out, run.err);
    }
    let beside = line(
        folder.path(),
        &format!("plan --from accelerate no_shard.yaml --model llama3-8b {EIGHT_H100} --json"),
    )
    .json();
    assert_eq!((&beside["fits"], &beside["given"]["fits"]), (&Value::Bool(true), &Value::Bool(false)));
    let [limit, peak] =
        ["memory_limit_bytes", "peak_memory_bytes"].map(|name| number(&beside["given"]["estimate"], name));
    assert!(limit < peak, "{limit} {peak}");
}
