//! Reads a Hugging Face `config.json`: the GPT-2, Llama and Mixtral families.

use crate::error::{InputError, in_range};
use crate::model::{Activation, Experts, ModelSpec, Norm, Positions};
use crate::parse::{Check, json_value};
use serde_json::Value;

const FAMILIES: &str = "supported values of model_type: gpt2, llama, mistral, mixtral";

/// One config, with errors that name the field.
struct Config<'a> {
    file: &'a str,
    root: &'a Value,
}

impl Config<'_> {
    fn error(&self, field: &str, problem: &str, hint: &str) -> InputError {
        let value = self.root.get(field).map(ToString::to_string).unwrap_or_default();
        InputError::new(field, value, problem).hint(hint).in_file(self.file)
    }

    fn optional(&self, field: &str) -> Result<Option<u32>, InputError> {
        match self.root.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let number = value.as_u64().ok_or_else(|| {
                    self.error(
                        field,
                        "must be a whole number",
                        "copy the value from the model's config.json on Hugging Face",
                    )
                })?;
                in_range(field, number, 1, u64::from(u32::MAX)).map_err(|e| e.in_file(self.file))?;
                Ok(Some(number as u32))
            }
        }
    }

    fn required(&self, field: &str) -> Result<u32, InputError> {
        self.optional(field)?
            .ok_or_else(|| self.error(field, "is missing", "give the complete config.json of the model"))
    }

    fn real(&self, field: &str, default: f64) -> Result<f64, InputError> {
        match self.root.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_f64().ok_or_else(|| {
                self.error(
                    field,
                    "must be a number",
                    "copy the value from the model's config.json on Hugging Face",
                )
            }),
        }
    }

    fn flag(&self, field: &str, default: bool) -> Result<bool, InputError> {
        match self.root.get(field) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| {
                self.error(
                    field,
                    "must be true or false",
                    "set it to true or false, or remove it for the default",
                )
            }),
        }
    }

    fn word(&self, field: &str) -> Result<Option<&str>, InputError> {
        match self.root.get(field) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| {
                self.error(
                    field,
                    "must be a string",
                    "copy the value from the model's config.json on Hugging Face",
                )
            }),
        }
    }

    fn one_of(&self, field: &str, accepted: &[&str]) -> Result<(), InputError> {
        match self.word(field)? {
            Some(word) if !accepted.contains(&word) => {
                Err(self.error(field, "is not supported", &format!("supported: {}", accepted.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Refuses a value that changes the model: any but those without effect, null and false.
    fn absent(&self, field: &str, neutral: &[f64], hint: &str) -> Result<(), InputError> {
        self.neutral(field, self.root.get(field), neutral, hint)
    }

    /// Like `absent`, for a value inside `field`.
    fn neutral(
        &self,
        field: &str,
        value: Option<&Value>,
        neutral: &[f64],
        hint: &str,
    ) -> Result<(), InputError> {
        match value {
            None | Some(Value::Null | Value::Bool(false)) => Ok(()),
            Some(value) if value.as_f64().is_some_and(|number| neutral.contains(&number)) => Ok(()),
            Some(_) => Err(self.error(field, "changes the model in a way that is not supported", hint)),
        }
    }

    fn head_dim(&self, hidden: u32, heads: u32, field: &str) -> Result<u32, InputError> {
        if !hidden.is_multiple_of(heads) {
            return Err(self.error(
                field,
                &format!("does not divide the hidden size {hidden}"),
                "choose a number of heads that divides the hidden size",
            ));
        }
        Ok(hidden / heads)
    }
}

/// Reads a `config.json`; `name` names the model, `file` the file in errors.
///
/// # Errors
/// Text that is not a JSON object, an unsupported family, missing fields, values out of range.
pub fn model_from_config(file: &str, name: &str, bytes: &[u8]) -> Result<ModelSpec, InputError> {
    let root = json_value(file, bytes, "model configuration")?;
    let config = Config { file, root: &root };
    if !root.is_object() {
        return Err(InputError::new("", "", "expected one JSON object").hint(FAMILIES).in_file(file));
    }
    let family =
        config.word("model_type")?.ok_or_else(|| config.error("model_type", "is missing", FAMILIES))?;
    for field in ["text_config", "quantization_config"] {
        config.absent(field, &[], "give the config.json of a model of text in full precision")?;
    }
    let spec = match family {
        "gpt2" => gpt2(&config, name)?,
        "llama" | "mistral" | "mixtral" => llama(&config, family, name)?,
        _ => return Err(config.error("model_type", "is not a supported model family", FAMILIES)),
    };
    spec.check().map_err(|e| in_own_words(e, family == "gpt2").in_file(file))?;
    Ok(spec)
}

/// Replaces the field's name by its name in the configuration.
fn in_own_words(mut error: InputError, gpt2: bool) -> InputError {
    const NAMES: [(&str, &str, &str); 11] = [
        ("layers", "n_layer", "num_hidden_layers"),
        ("hidden", "n_embd", "hidden_size"),
        ("heads", "n_head", "num_attention_heads"),
        ("kv_heads", "n_head", "num_key_value_heads"),
        ("ffn", "n_inner", "intermediate_size"),
        ("vocab", "vocab_size", "vocab_size"),
        ("max_seq_len", "n_positions", "max_position_embeddings"),
        ("norm_epsilon", "layer_norm_epsilon", "rms_norm_eps"),
        ("positions.theta", "rope_theta", "rope_theta"),
        ("experts.count", "num_local_experts", "num_local_experts"),
        ("experts.active", "num_experts_per_tok", "num_experts_per_tok"),
    ];
    if let Some((_, of_gpt2, of_llama)) = NAMES.iter().find(|(ours, _, _)| *ours == error.field) {
        error.field = (if gpt2 { *of_gpt2 } else { *of_llama }).to_owned();
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
        layers: config.required("n_layer")?,
        hidden,
        heads,
        kv_heads: heads,
        head_dim: config.head_dim(hidden, heads, "n_head")?,
        ffn: config.optional("n_inner")?.unwrap_or(hidden.saturating_mul(4)),
        vocab: config.required("vocab_size")?,
        max_seq_len: match config.optional("n_positions")? {
            Some(positions) => positions,
            None => config.required("n_ctx")?,
        },
        positions: Positions::Learned,
        norm: Norm::LayerNorm,
        norm_epsilon: config.real("layer_norm_epsilon", 1e-5)?,
        activation: Activation::Gelu,
        bias: true,
        tied_embeddings: config.flag("tie_word_embeddings", true)?,
        experts: None,
    })
}

fn llama(config: &Config<'_>, family: &str, name: &str) -> Result<ModelSpec, InputError> {
    let (hidden, heads) = (config.required("hidden_size")?, config.required("num_attention_heads")?);
    config.one_of("hidden_act", &["silu"])?;
    for field in ["attention_bias", "mlp_bias"] {
        if config.flag(field, false)? {
            return Err(config.error(
                field,
                "biases on only some of the linear layers are not supported",
                "use a model whose linear layers have no bias",
            ));
        }
    }
    // Newer and older configurations spell it differently.
    let rope = ["rope_parameters", "rope_scaling"].map(|field| (field, config.root.get(field)));
    let rope = rope.map(|(field, value)| (field, value.filter(|value| !value.is_null())));
    for (field, parameters) in rope {
        if parameters.is_some_and(is_scaled) {
            return Err(config.error(
                field,
                "scaled rotary positions are not supported: the model would train differently",
                "set its rope_type to default to plan and train with plain rotary positions, which cost the same",
            ));
        }
    }
    let inside = |name: &str| rope.map(|(field, parameters)| (field, parameters.and_then(|p| p.get(name))));
    let partial = "partial_rotary_factor";
    for (field, value) in inside(partial).into_iter().chain([(partial, config.root.get(partial))]) {
        config.neutral(field, value, &[1.0], "set partial_rotary_factor to 1: all of a head is rotated")?;
    }
    let experts = if family == "mixtral" {
        let (count, active) =
            (config.required("num_local_experts")?, config.required("num_experts_per_tok")?);
        Some(Experts { count, active })
    } else {
        let hint = "models of experts are those with `model_type` mixtral, and of the catalogue (`autodist catalog`)";
        for field in ["num_local_experts", "num_experts", "n_routed_experts"] {
            config.absent(field, &[0.0, 1.0], hint)?;
        }
        None
    };
    let head_dim = match config.optional("head_dim")? {
        Some(head_dim) => head_dim,
        None => config.head_dim(hidden, heads, "num_attention_heads")?,
    };
    let base = inside("rope_theta").into_iter().find_map(|(field, value)| Some((field, value?)));
    let theta = match base {
        Some((field, value)) => value.as_f64().ok_or_else(|| {
            config.error(
                field,
                "rope_theta must be a number",
                "copy the value from the model's config.json on Hugging Face",
            )
        })?,
        None => config.real("rope_theta", 10_000.0)?,
    };
    Ok(ModelSpec {
        name: name.to_owned(),
        layers: config.required("num_hidden_layers")?,
        hidden,
        heads,
        kv_heads: config.optional("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: config.required("intermediate_size")?,
        vocab: config.required("vocab_size")?,
        // Inside a sliding window, attention is the same as without one.
        max_seq_len: config
            .optional("max_position_embeddings")?
            .unwrap_or(2048)
            .min(config.optional("sliding_window")?.unwrap_or(u32::MAX)),
        positions: Positions::Rotary { theta },
        norm: Norm::RmsNorm,
        norm_epsilon: config.real("rms_norm_eps", 1e-6)?,
        activation: Activation::SwiGlu,
        bias: false,
        tied_embeddings: config.flag("tie_word_embeddings", false)?,
        experts,
    })
}

/// Whether `rope_parameters` or `rope_scaling` change the angles of rotary positions.
fn is_scaled(parameters: &Value) -> bool {
    match parameters.get("rope_type").or_else(|| parameters.get("type")) {
        Some(kind) => kind != "default",
        // Without a type, a factor is the older spelling of linear scaling.
        None => !parameters.is_object() || parameters.get("factor").is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (llama, "rope_scaling", r#"{"rope_type":"yarn","factor":8}"#, "null"),
            (llama, "rope_parameters", r#"{"rope_type":"yarn","factor":8}"#, r#"{"rope_type":"default"}"#),
            (llama, "rope_parameters", r#"{"type":"llama3","factor":8}"#, r#"{"rope_theta":5e5}"#),
            (llama, "rope_scaling", r#"{"type":"linear","factor":8}"#, r#"{"type":"default"}"#),
            (llama, "rope_scaling", r#"{"factor":8}"#, r#"{"rope_type":"default","rope_theta":5e5}"#),
            (llama, "rope_parameters", r#"{"factor":8}"#, "{}"),
            (llama, "rope_scaling", r#"{"partial_rotary_factor":0.5}"#, r#"{"partial_rotary_factor":1.0}"#),
            (llama, "rope_parameters", r#"{"partial_rotary_factor":0.5}"#, r#"{"partial_rotary_factor":1}"#),
            (llama, "partial_rotary_factor", "0.5", "1.0"),
            (llama, "num_local_experts", "8", "1"),
            (llama, "quantization_config", r#"{"bits":4}"#, "null"),
            (llama, "text_config", r#"{"hidden_size":64}"#, "null"),
            (gpt2, "quantization_config", r#"{"bits":4}"#, "null"),
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
}
