//! What configurations of each family are read as.

use super::*;
use crate::block::Latent;

#[test]
fn a_gpt2_configuration_gives_the_catalogue_model() {
    let text = br#"{"model_type":"gpt2","n_embd":768,"n_head":12,"n_layer":12,"n_positions":1024,
        "vocab_size":50257,"activation_function":"gelu_new","layer_norm_epsilon":1e-5}"#;
    assert_eq!(
        model_from_config("config.json", "gpt2", text).unwrap(),
        crate::catalog::model("gpt2").unwrap()
    );
}

#[test]
fn a_llama_configuration_gives_the_catalogue_model() {
    let text = br#"{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_key_value_heads":8,
        "num_hidden_layers":32,"intermediate_size":14336,"vocab_size":128256,"max_position_embeddings":8192,
        "rms_norm_eps":1e-5,"rope_theta":500000.0,"hidden_act":"silu","tie_word_embeddings":false}"#;
    let spec = model_from_config("config.json", "llama3-8b", text).unwrap();
    assert_eq!(spec, crate::catalog::model("llama3-8b").unwrap());
}

#[test]
fn what_changes_the_model_is_refused_by_name() {
    let gpt2 =
        r#"{"model_type":"gpt2","n_embd":768,"n_head":12,"n_layer":12,"n_positions":1024,"vocab_size":50257"#;
    let llama = r#"{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_hidden_layers":32,
        "intermediate_size":14336,"vocab_size":128256"#;
    for (start, field, bad, good) in [
        (llama, "rope_scaling", "8", "null"),
        (llama, "rope_parameters", r#"["yarn"]"#, "{}"),
        (llama, "rope_scaling", r#"{"partial_rotary_factor":"half"}"#, r#"{"partial_rotary_factor":1.0}"#),
        (llama, "partial_rotary_factor", "\"half\"", "0.5"),
        (llama, "mamba_d_state", "16", "null"),
        (llama, "n_shared_experts", "1", "0"),
        (llama, "use_linear_attn", "true", "false"),
        (gpt2, "q_lora_rank", "64", "null"),
        (llama, "num_local_experts", "8", "1"),
        (llama, "text_config", r#"{"hidden_size":64}"#, "null"),
        (gpt2, "add_cross_attention", "true", "false"),
        (gpt2, "scale_attn_by_inverse_layer_idx", "true", "false"),
    ] {
        let read = |value: &str| {
            let text = format!("{start},\"{field}\":{value}}}");
            model_from_config("config.json", "model", text.as_bytes())
        };
        let error = read(bad).err().unwrap_or_else(|| panic!("{field} = {bad} was taken"));
        assert!(error.field == field && !error.hint.is_empty(), "{error}");
        read(good).unwrap();
    }
}

fn read(family: &str, keys: &str) -> Result<ModelSpec, InputError> {
    let text = format!(
        r#"{{"model_type":"{family}","hidden_size":64,"num_attention_heads":4,"num_key_value_heads":2,
        "head_dim":16,"num_hidden_layers":6,"intermediate_size":96,"vocab_size":128,{keys}}}"#
    );
    model_from_config("config.json", "model", text.as_bytes())
}

#[test]
fn positions_are_scaled_by_the_keys_that_say_so() {
    for (keys, scaled) in [
        (r#""rope_scaling":{"rope_type":"yarn","factor":8}"#, true),
        (r#""rope_parameters":{"type":"llama3","factor":8}"#, true),
        (r#""rope_scaling":{"factor":8}"#, true),
        (r#""rope_scaling":null"#, false),
        (r#""rope_scaling":{"rope_type":"default","rope_theta":5e5}"#, false),
        (r#""rope_scaling":{"type":"default"}"#, false),
        (r#""rope_parameters":{"rope_theta":5e5}"#, false),
        (r#""rope_parameters":{}"#, false),
    ] {
        let model = read("llama", keys).unwrap();
        let expected = if scaled { vec![Addition::ScaledPositions] } else { Vec::new() };
        assert_eq!(model.additions, expected, "{keys}");
        let plain = ModelSpec { additions: Vec::new(), ..model.clone() };
        assert_eq!(model.total_parameters(), plain.total_parameters());
    }
}

#[test]
fn checkpoints_and_models_of_text_and_images_are_read() {
    let plain = read("gpt_oss", r#""num_local_experts":8,"num_experts_per_tok":2"#).unwrap();
    let stored =
        r#""num_local_experts":8,"num_experts_per_tok":2,"quantization_config":{"quant_method":"mxfp4"}"#;
    assert_eq!(read("gpt_oss", stored).unwrap(), plain);
    let inner = r#""hidden_size":64,"num_attention_heads":4,"head_dim":16,"num_hidden_layers":6,
        "intermediate_size":96,"sliding_window":64,"rope_scaling":{"factor":8,"rope_type":"linear"}"#;
    let read = |outer: &str, family: &str, keys: &str| {
        let text = format!(
            r#"{{"model_type":"{outer}","vision_config":{{"hidden_size":8}},
            "text_config":{{"model_type":"{family}",{inner}{keys}}}}}"#
        );
        model_from_config("config.json", "model", text.as_bytes())
    };
    let model = read("gemma3", "gemma3_text", r#","vocab_size":128"#).unwrap();
    assert_eq!((model.hidden, model.layers, blocks(&model)[5].3), (64, 6, None));
    assert!(model.additions.contains(&Addition::ScaledPositions));
    let refused = |outer, family, keys| read(outer, family, keys).unwrap_err().field;
    // An absent key means what it means in transformers.
    assert_eq!(read("gemma3", "gemma3_text", "").unwrap().vocab, 262_208);
    assert_eq!(refused("gemma3", "gemma3_text", r#","vocab_size":0"#), "text_config.vocab_size");
    assert_eq!(refused("gemma3", "gemma3_text", r#","vocab_size":100000000"#), "text_config.vocab_size");
    assert_eq!(refused("mamba", "mamba_text", ""), "text_config.model_type");
    assert_eq!(read("llava", "llama", "").unwrap().vocab, 32_000);
    assert_eq!(refused("llama", "llama", ""), "text_config");
}

/// Of each block: the width of its MLP or of one expert, its experts, the shared ones, and its window.
fn blocks(model: &ModelSpec) -> Vec<(u32, u32, u32, Option<u32>)> {
    let of = |layer| {
        let block = model.block(layer);
        let shared = block.experts.map_or(0, |experts| experts.shared_ffn);
        (block.ffn, block.experts.map_or(0, |experts| experts.count), shared, block.window)
    };
    (1..=model.layers as usize).map(of).collect()
}

#[test]
fn families_with_experts_in_some_blocks_give_these_blocks() {
    let (dense, sparse) = ((96, 0, 0, None), (32, 8, 0, None));
    let qwen = r#""num_experts":8,"num_experts_per_tok":2,"moe_intermediate_size":32"#;
    let model = read("qwen3_moe", &format!(r#"{qwen},"decoder_sparse_step":2,"mlp_only_layers":[3]"#));
    assert_eq!(blocks(&model.unwrap()), [dense, sparse, dense, dense, dense, sparse]);
    let shared = (32, 8, 48, None);
    let model = read("qwen2_moe", &format!(r#"{qwen},"shared_expert_intermediate_size":48"#)).unwrap();
    assert_eq!(blocks(&model), [shared; 6]);
    assert_eq!(model.additions, [Addition::SharedGate, Addition::QkvBias]);
    // Without experts in the first two blocks, and from there on in every second one.
    let deepseek = r#""n_routed_experts":8,"n_shared_experts":2,"num_experts_per_tok":2,"moe_intermediate_size":32,
        "first_k_dense_replace":2,"moe_layer_freq":2"#;
    let shared = (32, 8, 64, None);
    let model = read("deepseek", deepseek).unwrap();
    assert_eq!(blocks(&model), [dense, dense, shared, dense, shared, dense]);
    let llama4 = r#""num_local_experts":8,"num_experts_per_tok":1,"intermediate_size_mlp":192"#;
    let (dense, shared) = ((192, 0, 0, None), (96, 8, 96, None));
    for pattern in [r#""interleave_moe_layer_step":2"#, r#""moe_layers":[1,3,5]"#] {
        let model = read("llama4_text", &format!("{llama4},{pattern}")).unwrap();
        assert_eq!(blocks(&model), [dense, shared, dense, shared, dense, shared]);
    }
    let olmoe = read("olmoe", r#""num_experts":8,"num_experts_per_tok":2"#).unwrap();
    assert_eq!((blocks(&olmoe)[0], olmoe.blocks.len()), ((96, 8, 0, None), 0));
}

#[test]
fn families_with_windows_give_these_blocks() {
    let windows = |family, keys: &str| -> Vec<Option<u32>> {
        let keys = format!(r#""max_position_embeddings":512,"sliding_window":64{keys}"#);
        let model = read(family, &keys).unwrap();
        assert_eq!(model.max_seq_len, 512);
        blocks(&model).into_iter().map(|(_, _, _, window)| window).collect()
    };
    let (local, global) = (Some(64), None);
    assert_eq!(windows("mistral", ""), [local; 6]);
    assert_eq!(windows("gemma2", ""), [local, global, local, global, local, global]);
    assert_eq!(windows("gemma3_text", ""), [local, local, local, local, local, global]);
    assert_eq!(
        windows("gemma3_text", r#","sliding_window_pattern":3"#),
        [local, local, global, local, local, global]
    );
    assert_eq!(windows("qwen2", r#","use_sliding_window":false,"max_window_layers":4"#), [global; 6]);
    let used = r#","use_sliding_window":true,"max_window_layers":4"#;
    assert_eq!(windows("qwen2", used), [global, global, global, global, local, local]);
    let kinds = ["full", "sliding", "full", "full", "full", "full"];
    let kinds: Vec<String> = kinds.iter().map(|kind| format!("\"{kind}_attention\"")).collect();
    let listed = format!(r#","layer_types":[{}]"#, kinds.join(","));
    assert_eq!(windows("gemma2", &listed), [global, local, global, global, global, global]);
}

#[test]
fn latent_attention_is_read() {
    let keys = r#""num_experts_per_tok":2,"q_lora_rank":24,"kv_lora_rank":16,"qk_nope_head_dim":8,"qk_rope_head_dim":4,"v_head_dim":8"#;
    let model = read("deepseek_v3", keys).unwrap();
    let latent = Latent { query_rank: Some(24), kv_rank: 16, rope_dim: 4, value_dim: 8 };
    assert_eq!((model.latent, model.head_dim, model.kv_heads), (Some(latent), 12, 4));
    let direct = read("deepseek_v2", &keys.replace("24", "null")).unwrap();
    assert_eq!(direct.latent, Some(Latent { query_rank: None, ..latent }));
}

#[test]
fn keys_of_blocks_are_refused_by_name() {
    let moe = r#""num_experts":8,"num_experts_per_tok":2,"moe_intermediate_size":32"#;
    let latent =
        r#""q_lora_rank":24,"kv_lora_rank":16,"qk_nope_head_dim":8,"qk_rope_head_dim":4,"v_head_dim":99"#;
    for (family, keys, field) in [
        ("qwen3_moe", format!(r#"{moe},"mlp_only_layers":[6]"#), "mlp_only_layers"),
        ("qwen3_moe", format!(r#"{moe},"mlp_only_layers":"x""#), "mlp_only_layers"),
        ("qwen3_moe", format!(r#"{moe},"decoder_sparse_step":0"#), "decoder_sparse_step"),
        ("deepseek_v2", r#""n_routed_experts":8"#.to_owned(), "num_experts_per_tok"),
        (
            "qwen3_moe",
            moe.replace("\"num_experts_per_tok\":2", "\"num_experts_per_tok\":9"),
            "num_experts_per_tok",
        ),
        ("qwen2", r#""use_sliding_window":true"#.to_owned(), "sliding_window"),
        ("gemma2", r#""layer_types":["full_attention"]"#.to_owned(), "layer_types"),
        ("gemma2", format!(r#""layer_types":[{}"linear"]"#, r#""linear","#.repeat(5)), "layer_types"),
        ("gpt_oss", r#""attention_bias":false"#.to_owned(), "attention_bias"),
        ("deepseek_v3", r#""qk_rope_head_dim":null"#.to_owned(), "qk_rope_head_dim"),
        ("llama", r#""num_experts":8"#.to_owned(), "num_experts"),
        ("gemma2", r#""hidden_activation":"sinus""#.to_owned(), "hidden_activation"),
        ("mamba", r#""x":8"#.to_owned(), "model_type"),
        // Values that only the model's own check refuses.
        ("qwen3_moe", moe.replace(":8", ":5000"), "num_experts"),
        ("qwen3_moe", moe.replace(":32", ":5000000"), "moe_intermediate_size"),
        ("qwen3_moe", moe.replace(":32", ":5000000") + r#","mlp_only_layers":[0]"#, "moe_intermediate_size"),
        (
            "qwen2_moe",
            format!(r#"{moe},"shared_expert_intermediate_size":5000000"#),
            "shared_expert_intermediate_size",
        ),
        (
            "deepseek",
            moe.replace("num_experts\"", "n_routed_experts\"").replace(":8", ":5000"),
            "n_routed_experts",
        ),
        ("mixtral", r#""num_local_experts":5000,"num_experts_per_tok":2"#.to_owned(), "num_local_experts"),
        ("mistral", r#""sliding_window":100000000"#.to_owned(), "sliding_window"),
        ("deepseek_v3", latent.replace("24", "5000000"), "q_lora_rank"),
        ("deepseek_v3", latent.replace("16", "5000000"), "kv_lora_rank"),
        ("deepseek_v3", latent.replace("99", "5000000"), "v_head_dim"),
    ] {
        let error = read(family, &keys).err().unwrap_or_else(|| panic!("{family}: {keys} was taken"));
        assert!(error.field == field && !error.hint.is_empty(), "{error}");
    }
}

/// Dimensions of public configurations, and the parameters that transformers 5.23.0 counts for them (on the meta
/// device, without modules that predict further tokens).
#[test]
fn public_models_have_as_many_parameters_as_transformers_counts() {
    let mut wrong = Vec::new();
    for line in include_str!("counts.jsonl").lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        let (name, parameters) = (row["name"].as_str().unwrap(), row["parameters"].as_u64().unwrap());
        match model_from_config("config.json", name, row["config"].to_string().as_bytes()) {
            // ERNIE counts 64 values of each router, which are not trained.
            Ok(model) if model.total_parameters().abs_diff(parameters) <= parameters / 10_000_000 => {}
            Ok(model) => {
                let more = model.total_parameters() as i64 - parameters as i64;
                wrong.push(format!("{name}: {} parameters, {more:+}", model.total_parameters()));
            }
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
