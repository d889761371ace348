//! Configurations as people keep them, one of each kind, and what is understood of them. Files of launchers have neither
//! the model nor the batch, which are given by flags; nine of ten files have to be understood.

use crate::common;

use common::{line, write};
use serde_json::Value;

struct Kept {
    trainer: &'static str,
    file: &'static str,
    text: &'static str,
    /// What a person adds after the first answer; `--cluster` is everybody's.
    flags: &'static str,
    /// Settings with their values, of which each must be among those that were understood.
    understood: &'static [(&'static str, &'static str)],
}

const MEGATRON_SIZES: &str = "--num-layers 32 --hidden-size 4096 --ffn-hidden-size 11008 --num-attention-heads 32 --seq-length 4096 \
     --max-position-embeddings 4096 --vocab-size 32000 --swiglu --disable-bias-linear --normalization RMSNorm \
     --position-embedding-type rope --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0";

const KEPT: [Kept; 21] = [
    Kept {
        trainer: "megatron",
        file: "pretrain.sh",
        text: "#!/bin/bash\nTP=${TP:-2}\nPP=2\nMODEL_ARGS=(\n  SIZES\n)\nBATCH=\"--micro-batch-size 1 --global-batch-size $((PP * 64))\"\n\
               torchrun --nproc_per_node 8 pretrain_gpt.py ${MODEL_ARGS[@]} $BATCH --bf16 --use-distributed-optimizer \\\n  \
               --tensor-model-parallel-size $TP --pipeline-model-parallel-size ${PP}\n",
        flags: "",
        understood: &[
            ("tensor", "tp 2"),
            ("pipeline", "pp 2"),
            ("global_batch", "global batch 128"),
            ("data", "dp 2"),
        ],
    },
    Kept {
        trainer: "megatron",
        file: "by_size.sh",
        text: "#!/bin/bash\nSIZE=$1\nif [ \"$SIZE\" = small ]; then MB=1; else MB=2; fi\n\
               torchrun --nproc_per_node 8 pretrain_gpt.py SIZES --micro-batch-size $MB --global-batch-size 64 --bf16 \
               --recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n",
        flags: "--micro-batch 2",
        understood: &[("micro_batch", "micro-batch 2"), ("recompute", "recomputation full")],
    },
    Kept {
        trainer: "megatron",
        file: "unfused.sh",
        text: "torchrun --nproc_per_node 8 pretrain_gpt.py SIZES --micro-batch-size 1 --global-batch-size 32 --bf16 \
               --attention-backend unfused --cross-entropy-loss-fusion\n",
        flags: "",
        understood: &[("attention", "unfused attention"), ("loss", "fused loss")],
    },
    Kept {
        trainer: "megatron",
        file: "adapters.sh",
        text: "megatron sft SIZES --train_type lora --lora_rank 8 --target_modules all-linear --micro-batch-size 1 --global-batch-size 16 \
               --bf16 true --tensor-model-parallel-size 2\n",
        flags: "",
        understood: &[("trainable", "trained: LoRA rank 8 on all-linear"), ("tensor", "tp 2")],
    },
    Kept {
        trainer: "deepspeed",
        file: "ds.json",
        text: r#"{"train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto", "bf16": {"enabled": "auto"},
                  "zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}"#,
        flags: "--model llama3-8b --micro-batch 1 --global-batch 64 --seq-len 4096 --precision bf16",
        understood: &[("zero_stage", "ZeRO stage 3"), ("shard", "shard group 8")],
    },
    Kept {
        trainer: "deepspeed",
        file: "ds2.json",
        text: r#"{"train_batch_size": 256, "gradient_accumulation_steps": 8, "fp16": {"enabled": true},
                  "zero_optimization": {"stage": 2}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}}}"#,
        flags: "--model llama2-7b --seq-len 2048",
        understood: &[("micro_batch", "micro-batch 4"), ("precision", "precision fp16")],
    },
    Kept {
        trainer: "torchtitan",
        file: "llama.toml",
        text: "[model]\nname = \"llama3\"\nflavor = \"8B\"\n[training]\nlocal_batch_size = 1\nseq_len = 8_192\n[parallelism]\n\
               data_parallel_shard_degree = -1\ntensor_parallel_degree = 2\n[compile]\nenable = true\n\
               [activation_checkpoint]\nmode = \"selective\"\n",
        flags: "",
        understood: &[
            ("tensor", "tp 2"),
            ("shard", "shard group 4"),
            ("blocks", "fused blocks"),
            ("seq_len", "sequences of 8,192 tokens"),
        ],
    },
    Kept {
        trainer: "torchtitan",
        file: "old.toml",
        text: "[model]\nname = \"llama3\"\nflavor = \"8B\"\n[training]\nbatch_size = 2\nseq_len = 4096\ntensor_parallel_degree = 1\n\
               [experimental]\npipeline_parallel_degree = 1\n[activation_checkpoint]\nmode = \"full\"\n",
        flags: "",
        understood: &[
            ("micro_batch", "micro-batch 2"),
            ("recompute", "recomputation full"),
            ("blocks", "eager blocks"),
        ],
    },
    Kept {
        trainer: "accelerate",
        file: "fsdp.yaml",
        text: "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 8\nfsdp_config:\n  \
               fsdp_version: 2\n  fsdp_reshard_after_forward: true\n  fsdp_activation_checkpointing: true\n",
        flags: "--model qwen2.5-7b --seq-len 4096 --micro-batch 1 --global-batch 64",
        understood: &[("zero_stage", "ZeRO stage 3"), ("recompute", "recomputation full"), ("data", "dp 8")],
    },
    Kept {
        trainer: "accelerate",
        file: "zero2.yaml",
        text: "distributed_type: DEEPSPEED\nmixed_precision: bf16\nnum_machines: 1\nnum_processes: 8\ndeepspeed_config:\n  zero_stage: 2\n  \
               gradient_accumulation_steps: 4\n  offload_optimizer_device: none\n",
        flags: "--model llama2-7b --seq-len 2048 --micro-batch 1 --global-batch 32",
        understood: &[("zero_stage", "ZeRO stage 2"), ("trainer", "priced as deepspeed")],
    },
    Kept {
        trainer: "transformers",
        file: "args.json",
        text: r#"{"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "bf16": true, "fsdp": "full_shard auto_wrap",
                  "gradient_checkpointing": true, "attn_implementation": "flash_attention_2", "use_liger_kernel": true}"#,
        flags: "--model llama3-8b --seq-len 4096",
        understood: &[
            ("global_batch", "global batch 64"),
            ("attention", "flash attention"),
            ("loss", "fused loss"),
            ("blocks", "fused blocks"),
        ],
    },
    Kept {
        trainer: "transformers",
        file: "sft.sh",
        text: "#!/bin/bash\nNPROC=8\naccelerate launch --num_processes $NPROC sft.py --model_name_or_path Qwen/Qwen2.5-7B \\\n  \
               --use_peft --lora_r 16 --lora_target_modules q_proj v_proj \\\n  --per_device_train_batch_size 1 --bf16 \
               --max_length 2048\n",
        flags: "",
        understood: &[
            ("model", "model qwen2.5-7b"),
            ("trainable", "trained: LoRA rank 16 on q, v"),
            ("seq_len", "sequences of 2,048 tokens"),
        ],
    },
    Kept {
        trainer: "transformers",
        file: "swift.sh",
        text: "NPROC_PER_NODE=8 swift sft --model Qwen/Qwen2.5-7B-Instruct --train_type lora --lora_rank 8 --target_modules all-linear \\\n  \
               --torch_dtype bfloat16 --bf16 true --per_device_train_batch_size 1 --gradient_accumulation_steps 2 --max_length 2048 \
               --deepspeed zero2\n",
        flags: "--model qwen2.5-7b",
        understood: &[
            ("zero_stage", "ZeRO stage 2"),
            ("trainable", "trained: LoRA rank 8 on all-linear"),
            ("global_batch", "global batch 16"),
        ],
    },
    Kept {
        trainer: "transformers",
        file: "factory.yaml",
        text: "model_name_or_path: meta-llama/Meta-Llama-3-8B-Instruct\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\nlora_target: all\n\
               quantization_bit: 4\ncutoff_len: 2048\nper_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nbf16: true\n\
               flash_attn: auto\nwarmup_ratio: 0.1\nplot_loss: true\n",
        flags: "",
        understood: &[("model", "model llama3-8b"), ("global_batch", "global batch 64")],
    },
    Kept {
        trainer: "transformers",
        file: "axolotl.yml",
        text: "base_model: meta-llama/Llama-3.1-8B\nload_in_8bit: true\nadapter: lora\nlora_r: 32\nlora_target_linear: true\nsequence_len: 4096\n\
               micro_batch_size: 2\ngradient_accumulation_steps: 4\noptimizer: adamw_bnb_8bit\nbf16: auto\ngradient_checkpointing: true\n\
               flash_attention: true\ndatasets:\n  - path: a/b\n",
        flags: "",
        understood: &[
            ("model", "model llama3.1-8b"),
            ("micro_batch", "micro-batch 2"),
            ("attention", "flash attention"),
        ],
    },
    Kept {
        trainer: "nanotron",
        file: "nano.yaml",
        text: "parallelism:\n  dp: 4\n  tp: 2\n  pp: 1\n  tp_mode: REDUCE_SCATTER\n  tp_linear_async_communication: true\n  \
               pp_engine: 1f1b\nmodel:\n  dtype: bfloat16\n  model_config:\n    hidden_size: 2048\n    intermediate_size: 8192\n    \
               num_hidden_layers: 16\n    num_attention_heads: 16\n    num_key_value_heads: 16\n    vocab_size: 49152\n    \
               max_position_embeddings: 2048\n    tie_word_embeddings: true\ntokens:\n  sequence_length: 2048\n  micro_batch_size: 2\n  \
               batch_accumulation_per_replica: 4\noptimizer:\n  zero_stage: 0\n  accumulate_grad_in_fp32: true\n",
        flags: "",
        understood: &[
            ("tensor", "tp 2"),
            ("global_batch", "global batch 32"),
            ("sequence_parallel", "sequence parallelism on"),
        ],
    },
    Kept {
        trainer: "maxtext",
        file: "max.yml",
        text: "model_name: llama3-8b\nper_device_batch_size: 1\nmax_target_length: 8_192\nici_fsdp_parallelism: -1\n\
               remat_policy: full\ndtype: bfloat16\n",
        flags: "",
        understood: &[
            ("model", "model llama3-8b"),
            ("zero_stage", "ZeRO stage 3"),
            ("seq_len", "sequences of 8,192 tokens"),
        ],
    },
    Kept {
        trainer: "megatron-bridge",
        file: "bridge.yaml",
        text: "model:\n  tensor_model_parallel_size: 2\n  pipeline_model_parallel_size: 1\n  seq_length: 8192\n  sequence_parallel: true\ntrain:\n  \
               micro_batch_size: 1\n  global_batch_size: 64\nmixed_precision: bf16_mixed\n",
        flags: "--model llama3-8b",
        understood: &[("tensor", "tp 2"), ("precision", "precision bf16"), ("trainer", "priced as nemo")],
    },
    Kept {
        trainer: "deepspeed",
        file: "nested.json",
        text: r#"{"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 4, "bf16": {"enabled": true},
                  "zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8, "zero_quantized_weights": true},
                  "activation_checkpointing": {"partition_activations": false}}"#,
        flags: "--model llama3-8b --seq-len 4096",
        understood: &[("zero_stage", "ZeRO stage 3"), ("global_batch", "global batch 64")],
    },
    // What is refused, because it has no price: by name.
    Kept {
        trainer: "transformers",
        file: "dora.json",
        text: r#"{"use_peft": true, "use_dora": true, "bf16": true, "per_device_train_batch_size": 1}"#,
        flags: "--model llama3-8b --seq-len 2048",
        understood: &[],
    },
    Kept {
        trainer: "megatron",
        file: "mamba.sh",
        text: "torchrun --nproc_per_node 8 pretrain_mamba.py SIZES --hybrid-override-pattern M-M- --micro-batch-size 1 --global-batch-size 8 --bf16\n",
        flags: "",
        understood: &[],
    },
];

#[test]
fn nine_of_ten_kept_configurations_are_understood() {
    let folder = tempfile::tempdir().unwrap();
    let mut refused = Vec::new();
    for Kept { trainer, file, text, flags, understood } in KEPT {
        write(folder.path(), file, text.replace("SIZES", MEGATRON_SIZES));
        let run = line(
            folder.path(),
            &format!("estimate --from {trainer} {file} --cluster 1x8xh100-80gb-sxm --json {flags}"),
        );
        if understood.is_empty() {
            assert_eq!(run.code, Some(2), "{file}: {}{}", run.out, run.err);
            assert!(run.err.contains(file) && run.err.contains("hint: "), "{file}: {}", run.err);
            refused.push(file);
            continue;
        }
        // Whether it fits is another question.
        assert!([Some(0), Some(3)].contains(&run.code), "{file}: {}", run.err);
        let document: Value = serde_json::from_str(&run.out).unwrap();
        let settings = document["understood"].as_array().unwrap();
        for (name, value) in understood {
            let found = settings.iter().find(|one| one["setting"] == *name);
            let found = found.unwrap_or_else(|| panic!("{file}: {name} is not in {settings:?}"));
            assert_eq!(found["value"], *value, "{file}");
        }
    }
    assert!(10 * refused.len() <= KEPT.len(), "{refused:?}");
}
