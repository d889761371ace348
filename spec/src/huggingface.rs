//! Reads a Hugging Face `config.json`: GPT-2, and the families of `families`.

mod blocks;
mod config;
mod families;

use crate::block::{Addition, BlockSpec};
use crate::error::{InputError, in_range};
use crate::model::{Activation, MOST_BLOCKS, ModelSpec, Norm, Positions};
use crate::parse::{Check, json_value};
use config::Config;
use families::{ExpertKeys, FAMILIES, Family, Windows};
use serde_json::Value;

fn supported() -> String {
    let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    format!("supported values of model_type: gpt2, {}", names.join(", "))
}

/// Reads a `config.json`; `name` names the model, `file` the file in errors.
///
/// # Errors
/// Text that is not a JSON object, an unsupported family, missing fields, values out of range.
pub fn model_from_config(file: &str, name: &str, bytes: &[u8]) -> Result<ModelSpec, InputError> {
    let root = json_value(file, bytes, "model configuration")?;
    let config = Config { file, root: &root };
    if !root.is_object() {
        return Err(InputError::new("", "", "expected one JSON object").hint(supported()).in_file(file));
    }
    let Some(text) = root.get("text_config").filter(|value| !value.is_null()) else {
        return read(&config, name);
    };
    // Gemma 3 and Llama 4 of text and images.
    let family = config.word("model_type")?.map(|family| format!("{family}_text"));
    if family.is_none() || text.get("model_type").and_then(Value::as_str) != family.as_deref() {
        let problem = "is a part of a model of more than text, which is not supported";
        return Err(config.error("text_config", problem, "give its content as the file"));
    }
    read(&Config { file, root: text }, name).map_err(|error| error.under("text_config"))
}

fn read(config: &Config<'_>, name: &str) -> Result<ModelSpec, InputError> {
    let family =
        config.word("model_type")?.ok_or_else(|| config.error("model_type", "is missing", &supported()))?;
    let known = FAMILIES.iter().find(|known| known.name == family);
    let spec = match known {
        _ if family == "gpt2" => gpt2(config, name)?,
        Some(family) => llama(config, family, name)?,
        None => return Err(config.error("model_type", "is not a supported model family", &supported())),
    };
    spec.check().map_err(|error| in_own_words(error, known, &spec).in_file(config.file))?;
    Ok(spec)
}

/// Replaces the field's name by its name in the configuration; GPT-2's without a family.
fn in_own_words(mut error: InputError, family: Option<&Family>, spec: &ModelSpec) -> InputError {
    // A block of a list has the keys of the model.
    let (run, ours) = error.field.rsplit_once("].").unwrap_or(("", &error.field));
    let run = run.strip_prefix("blocks[").and_then(|index| spec.blocks.get(index.parse::<usize>().ok()?));
    let sparse = spec.experts.or(run.and_then(|run| run.experts)).is_some();
    let keys = family.map_or(ExpertKeys::None, |family| family.experts);
    let names = [
        ("layers", "n_layer", "num_hidden_layers"),
        ("hidden", "n_embd", "hidden_size"),
        ("heads", "n_head", "num_attention_heads"),
        ("kv_heads", "n_head", "num_key_value_heads"),
        ("ffn", "n_inner", if sparse { keys.width() } else { keys.dense() }),
        ("vocab", "vocab_size", "vocab_size"),
        ("max_seq_len", "n_positions", "max_position_embeddings"),
        ("norm_epsilon", "layer_norm_epsilon", "rms_norm_eps"),
        ("positions.theta", "rope_theta", "rope_theta"),
        ("window", "sliding_window", "sliding_window"),
        ("heads x head_dim", "n_embd", "num_attention_heads x head_dim"),
        ("latent.query_rank", "q_lora_rank", "q_lora_rank"),
        ("latent.kv_rank", "kv_lora_rank", "kv_lora_rank"),
        ("latent.rope_dim", "qk_rope_head_dim", "qk_rope_head_dim"),
        ("latent.value_dim", "v_head_dim", "v_head_dim"),
        ("experts.count", "num_experts", keys.count()),
        ("experts.active", "num_experts_per_tok", "num_experts_per_tok"),
        ("experts.shared_ffn", "n_shared_experts", keys.shared()),
    ];
    if let Some((_, of_gpt2, of_others)) = names.iter().find(|(name, _, _)| *name == ours) {
        error.field = (if family.is_none() { *of_gpt2 } else { *of_others }).to_owned();
    }
    error
}

fn gpt2(config: &Config<'_>, name: &str) -> Result<ModelSpec, InputError> {
    let (hidden, heads) = (config.required("n_embd")?, config.required("n_head")?);
    config.one_of("activation_function", &["gelu_new", "gelu_pytorch_tanh"])?;
    for field in ["add_cross_attention", "scale_attn_by_inverse_layer_idx"] {
        config.absent(field, &[], "set it to false: only the architecture of GPT-2 itself is supported")?;
    }
    Ok(ModelSpec {
        name: name.to_owned(),
        head_dim: config.head_dim(hidden, heads, "n_head")?,
        ffn: config.optional("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
        vocab: config.required("vocab_size")?,
        max_seq_len: match config.optional("n_positions")? {
            Some(positions) => positions,
            None => config.required("n_ctx")?,
        },
        norm_epsilon: config.real("layer_norm_epsilon", 1e-5)?,
        tied_embeddings: config.flag("tie_word_embeddings", true)?,
        ..ModelSpec::gpt(config.required("n_layer")?, hidden, heads, 0, 0)
    })
}

fn llama(config: &Config<'_>, family: &Family, name: &str) -> Result<ModelSpec, InputError> {
    let (hidden, heads) = (config.required("hidden_size")?, config.required("num_attention_heads")?);
    let layers = config.required("num_hidden_layers")?;
    in_range("num_hidden_layers", layers.into(), 1, MOST_BLOCKS).map_err(|e| e.in_file(config.file))?;
    check_arithmetic(config, family)?;
    let (theta, scaled) = rotary(config)?;
    let mut additions = family.additions.to_vec();
    additions.extend(scaled.then_some(Addition::ScaledPositions));
    let latent = if family.latent { Some(blocks::latent(config)?) } else { None };
    let head_dim = match (latent, config.optional("head_dim")?.or(family.head_dim)) {
        (Some((_, head_dim)), _) | (None, Some(head_dim)) => head_dim,
        (None, None) => config.head_dim(hidden, heads, "num_attention_heads")?,
    };
    let kv_heads = config.optional("num_key_value_heads")?.unwrap_or(heads);
    let ffn = config.required(family.experts.dense())?;
    let usual = BlockSpec {
        heads,
        kv_heads: if family.latent { heads } else { kv_heads },
        head_dim,
        window: None,
        latent: latent.map(|(latent, _)| latent),
        ffn,
        experts: None,
    };
    let blocks = blocks::of(config, family, layers, usual)?;
    let longest = config.optional("max_position_embeddings")?.unwrap_or(2048);
    // Inside a chunk, attention is the same as without chunks.
    let chunk =
        if family.windows == Windows::Chunks { config.optional("attention_chunk_size")? } else { None };
    let model = ModelSpec {
        name: name.to_owned(),
        kv_heads,
        head_dim,
        ffn,
        vocab: config.required("vocab_size")?,
        max_seq_len: longest.min(chunk.unwrap_or(u32::MAX)),
        positions: Positions::Rotary { theta },
        norm: Norm::RmsNorm,
        norm_epsilon: config.real("rms_norm_eps", 1e-6)?,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: config.flag("tie_word_embeddings", family.tied)?,
        additions,
        ..ModelSpec::gpt(layers, hidden, heads, 0, 0)
    };
    Ok(model.with_blocks(&blocks))
}

/// Refuses what changes the parameters or the arithmetic in a way that the family does not have.
fn check_arithmetic(config: &Config<'_>, family: &Family) -> Result<(), InputError> {
    let gelu = family.additions.contains(&Addition::GeluGate);
    for field in ["hidden_act", "hidden_activation"] {
        config.one_of(field, if gelu { &["gelu_pytorch_tanh"] } else { &["silu"] })?;
    }
    for (field, part) in [
        ("attention_bias", Addition::OutputBias),
        ("qkv_bias", Addition::QkvBias),
        ("mlp_bias", Addition::ExpertBias),
    ] {
        let has = family.additions.contains(&part);
        if config.flag(field, has)? != has {
            let (problem, hint) = match has {
                true => ("the biases of this family cannot be left out", "set it to true"),
                false => (
                    "biases on only some of the linear layers are not supported",
                    "use a model whose linear layers have no bias",
                ),
            };
            return Err(config.error(field, problem, hint));
        }
    }
    config.absent("clip_qkv", &[], "set it to null: clipped queries, keys and values are not supported")?;
    let hint = "set it to 0 to plan for the model without multi-token prediction";
    config.absent("num_nextn_predict_layers", &[0.0], hint)
}

/// The base of rotary positions, and whether their angles are scaled.
fn rotary(config: &Config<'_>) -> Result<(f64, bool), InputError> {
    // Newer and older configurations spell it differently.
    let rope = ["rope_parameters", "rope_scaling"].map(|field| (field, config.root.get(field)));
    let rope = rope.map(|(field, value)| (field, value.filter(|value| !value.is_null())));
    for (field, parameters) in rope {
        if parameters.is_some_and(|parameters| !parameters.is_object()) {
            let hint = "copy the value from the model's config.json on Hugging Face";
            return Err(config.error(field, "must be an object", hint));
        }
    }
    let inside = |name: &str| rope.map(|(field, parameters)| (field, parameters.and_then(|p| p.get(name))));
    let partial = "partial_rotary_factor";
    for (field, value) in inside(partial).into_iter().chain([(partial, config.root.get(partial))]) {
        config.neutral(field, value, &[1.0], "set partial_rotary_factor to 1: all of a head is rotated")?;
    }
    let theta = match inside("rope_theta").into_iter().find_map(|(field, value)| Some((field, value?))) {
        Some((field, value)) => value.as_f64().ok_or_else(|| {
            config.error(
                field,
                "rope_theta must be a number",
                "copy the value from the model's config.json on Hugging Face",
            )
        }),
        None => config.real("rope_theta", 10_000.0),
    }?;
    Ok((theta, rope.iter().any(|(_, parameters)| parameters.is_some_and(is_scaled))))
}

/// Whether `rope_parameters` or `rope_scaling` change the angles of rotary positions.
fn is_scaled(parameters: &Value) -> bool {
    match parameters.get("rope_type").or_else(|| parameters.get("type")) {
        Some(kind) => kind != "default",
        // Without a type, a factor is the older spelling of linear scaling.
        None => parameters.get("factor").is_some(),
    }
}

#[cfg(test)]
mod tests {
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
        let gpt2 = r#"{"model_type":"gpt2","n_embd":768,"n_head":12,"n_layer":12,"n_positions":1024,"vocab_size":50257"#;
        let llama = r#"{"model_type":"llama","hidden_size":4096,"num_attention_heads":32,"num_hidden_layers":32,
            "intermediate_size":14336,"vocab_size":128256"#;
        for (start, field, bad, good) in [
            (llama, "rope_scaling", "8", "null"),
            (llama, "rope_parameters", r#"["yarn"]"#, "{}"),
            (llama, "rope_scaling", r#"{"partial_rotary_factor":0.5}"#, r#"{"partial_rotary_factor":1.0}"#),
            (llama, "rope_parameters", r#"{"partial_rotary_factor":0.5}"#, r#"{"partial_rotary_factor":1}"#),
            (llama, "partial_rotary_factor", "0.5", "1.0"),
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
        assert_eq!(refused("gemma3", "gemma3_text", ""), "text_config.vocab_size");
        assert_eq!(refused("gemma3", "gemma3_text", r#","vocab_size":0"#), "text_config.vocab_size");
        assert_eq!(refused("gemma3", "gemma3_text", r#","vocab_size":100000000"#), "text_config.vocab_size");
        assert_eq!(refused("mamba", "mamba_text", ""), "text_config.model_type");
        assert_eq!(refused("gemma3", "llama", ""), "text_config");
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
        assert_eq!(model.additions, [Addition::QkvBias, Addition::SharedGate]);
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
        let keys =
            r#""q_lora_rank":24,"kv_lora_rank":16,"qk_nope_head_dim":8,"qk_rope_head_dim":4,"v_head_dim":8"#;
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
            ("qwen3_moe", r#""num_experts":8"#.to_owned(), "num_experts_per_tok"),
            (
                "qwen3_moe",
                moe.replace("\"num_experts_per_tok\":2", "\"num_experts_per_tok\":9"),
                "num_experts_per_tok",
            ),
            ("qwen2", r#""use_sliding_window":true"#.to_owned(), "sliding_window"),
            ("gemma2", r#""layer_types":["full_attention"]"#.to_owned(), "layer_types"),
            ("gemma2", format!(r#""layer_types":[{}"linear"]"#, r#""linear","#.repeat(5)), "layer_types"),
            ("gemma2", r#""hidden_activation":"gelu""#.to_owned(), "hidden_activation"),
            ("gpt_oss", r#""attention_bias":false"#.to_owned(), "attention_bias"),
            ("deepseek_v3", r#""kv_lora_rank":16"#.to_owned(), "qk_rope_head_dim"),
            ("deepseek", r#""num_nextn_predict_layers":1"#.to_owned(), "num_nextn_predict_layers"),
            ("llama", r#""num_experts":8"#.to_owned(), "num_experts"),
            ("llama", r#""clip_qkv":8"#.to_owned(), "clip_qkv"),
            ("mamba", r#""x":8"#.to_owned(), "model_type"),
            // Values that only the model's own check refuses.
            ("qwen3_moe", moe.replace(":8", ":5000"), "num_experts"),
            ("qwen3_moe", moe.replace(":32", ":5000000"), "moe_intermediate_size"),
            (
                "qwen3_moe",
                moe.replace(":32", ":5000000") + r#","mlp_only_layers":[0]"#,
                "moe_intermediate_size",
            ),
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
            (
                "mixtral",
                moe.replace("num_experts\"", "num_local_experts\"").replace(":8", ":5000"),
                "num_local_experts",
            ),
            ("mistral", r#""sliding_window":100000000"#.to_owned(), "sliding_window"),
            ("deepseek_v3", latent.replace("24", "5000000"), "q_lora_rank"),
            ("deepseek_v3", latent.replace("16", "5000000"), "kv_lora_rank"),
            ("deepseek_v3", latent.replace("99", "5000000"), "v_head_dim"),
        ] {
            let error = read(family, &keys).err().unwrap_or_else(|| panic!("{family}: {keys} was taken"));
            assert!(error.field == field && !error.hint.is_empty(), "{error}");
        }
    }
}
