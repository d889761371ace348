//! Every plan that a search proposes for a trainer can be exported to it, the first ten of several jobs.

use crate::common;

use common::line;
use serde_json::Value;

/// Trainers of searches, and the targets that write their files.
const TRAINERS: [(&str, &str); 6] = [
    ("megatron-core", "megatron"),
    ("megatron", "megatron"),
    ("nemo", "megatron-bridge"),
    ("fsdp", "torchtitan"),
    ("fsdp2", "torchtitan"),
    ("deepspeed", "deepspeed"),
];

/// The refusals of the plans of a search, one for each that cannot be exported.
fn refusals(folder: &std::path::Path, job: &str, trainer: &str, target: &str) -> Vec<String> {
    let command = format!("plan {job} --trainer {trainer} --top 10 --json -o plan.json");
    let plan: Value = line(folder, &command).json();
    let count = 1 + plan["alternatives"].as_array().unwrap().len();
    let export = |number: usize| {
        let run = line(folder, &format!("export plan.json --plan {number} --to {target} -o out"));
        match run.code {
            Some(0) => None,
            code => {
                assert_eq!(code, Some(2), "{command}: {}", run.err);
                Some(run.err)
            }
        }
    };
    (1..=count).filter_map(export).collect()
}

#[test]
fn what_a_search_proposes_is_exported_to_its_trainer() {
    let folder = tempfile::tempdir().unwrap();
    for job in [
        "--model gpt2-xl --cluster 1x8xa100-40gb-sxm --global-batch 64 --seq-len 1024",
        "--model llama2-13b --cluster 2x8xa100-80gb-sxm@8x200gbps --global-batch 64 --seq-len 4096",
        "--model llama3-8b --cluster 3x8xh100-80gb-sxm@8x400gbps --global-batch 96 --seq-len 16384",
        "--model llama2-7b --cluster 1x8xh100-80gb-sxm+1x8xa100-40gb-sxm@8x400gbps --global-batch 64 --seq-len 4096",
    ] {
        for (trainer, target) in TRAINERS {
            let refused = refusals(folder.path(), job, trainer, target);
            assert!(refused.is_empty(), "{job} for {trainer}: {}", refused.join("\n"));
        }
    }
}

/// Files that describe the model name what they cannot describe of it; those whose script builds it take it.
#[test]
fn models_whose_blocks_differ_are_exported_or_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let job = |model: &str| {
        format!("--model {model} --cluster 4x8xh100-80gb-sxm@8x400gbps --global-batch 128 --seq-len 4096")
    };
    for model in ["mixtral-8x7b", "deepseek-v2-lite", "gemma2-9b"] {
        for (trainer, target) in
            [("megatron-core", "megatron-bridge"), ("nemo", "megatron-bridge"), ("fsdp2", "torchtitan")]
        {
            let refused = refusals(folder.path(), &job(model), trainer, target);
            assert!(refused.is_empty(), "{model} for {trainer}: {}", refused.join("\n"));
        }
        let refused = refusals(folder.path(), &job(model), "fsdp2", "maxtext");
        let named = format!("model.name {model}: has ");
        assert!(!refused.is_empty() && refused.iter().all(|one| one.contains(&named)), "{refused:?}");
        assert!(refused.iter().all(|one| one.contains("export to megatron")), "{refused:?}");
    }
}
