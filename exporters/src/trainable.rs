//! What of a model is trained, in the files of Hugging Face's trainers and of those that take their arguments: TRL,
//! LLaMA-Factory, ms-swift and others. Their training scripts make the adapters, by PEFT.

use crate::document::{Document, plain};
use crate::row::{FieldMapping, UnsupportedField, instead, refuse};
use crate::settings::Field;
use crate::unsupported::{KeyRule, ignored, refused, refused_unless};
use autodist_spec::{BaseBits, InputError, Lora, LoraTarget, LoraTargets, Trainable};
use serde_json::Value;

/// A trainer whose files have no adapters and no frozen parts.
pub const NO_TRAINABLE: UnsupportedField = refuse(
    Field::Trainable,
    "its files have neither adapters nor frozen parts",
    "plan without --lora-rank, --base-bits and --freeze, or export to transformers, accelerate or deepspeed",
);

/// A trainer that trains what the script gives it.
pub const BY_SCRIPT: UnsupportedField =
    instead(Field::Trainable, "the training script freezes the weights and adds the adapters, e.g. by PEFT");

/// Hugging Face's trainers, by the arguments of TRL, LLaMA-Factory and ms-swift.
pub const TRANSFORMERS: FieldMapping = FieldMapping {
    field: Field::Trainable,
    theirs: "use_peft, lora_r, lora_target_modules, load_in_4bit, load_in_8bit; by LLaMA-Factory finetuning_type, \
             lora_rank, lora_target, quantization_bit; by ms-swift train_type, target_modules, quant_bits",
    write: |_, draft| draft.unsupported(&BY_SCRIPT),
    read: |document, settings| {
        if settings.overridden(Field::Trainable) {
            ALL_KEYS.iter().for_each(|key| {
                document.get(key);
            });
            return Ok(true);
        }
        let Some(source) = source(document)? else { return Ok(true) };
        settings.trainable = source.trainable(document)?;
        Ok(true)
    },
};

/// Megatron's arguments as ms-swift extends them; Megatron itself has none, and is not written with them.
pub const MEGATRON: FieldMapping = FieldMapping {
    field: Field::Trainable,
    theirs: "by ms-swift train_type, tuner_type, lora_rank, target_modules",
    write: |_, draft| draft.unsupported(&NO_TRAINABLE),
    read: TRANSFORMERS.read,
};

/// The keys of the row.
const ALL_KEYS: [&str; 22] = [
    "use_peft",
    "use_lora",
    "lora_enable",
    "lora",
    "use_qlora",
    "q_lora",
    "finetuning_type",
    "train_type",
    "tuner_type",
    "sft_type",
    "lora_r",
    "lora_rank",
    "lora_target_modules",
    "lora_target",
    "target_modules",
    "load_in_4bit",
    "load_in_8bit",
    "quantization_bit",
    "quant_bits",
    "use_bnb_nested_quant",
    "double_quantization",
    "bnb_4bit_use_double_quant",
];

/// Whose arguments they are, which decides what is meant by an absent one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Trl,
    LlamaFactory,
    Swift,
    /// A script that names its switch `use_lora` or similarly.
    Other,
}

const HOW: &str = "give what is trained by `--lora-rank` and `--lora-targets`, or `--freeze`";

/// Whose arguments ask for adapters; `None` if the whole model is trained.
fn source(document: &Document) -> Result<Option<Source>, InputError> {
    let refused = |key: &str, value: String, problem: &str| {
        Err(InputError::new(key, value, problem.to_owned()).hint(HOW.to_owned()))
    };
    let kinds = [
        ("finetuning_type", Source::LlamaFactory),
        ("train_type", Source::Swift),
        ("tuner_type", Source::Swift),
        ("sft_type", Source::Swift),
    ];
    for (key, source) in kinds {
        match document.text(key).as_deref() {
            None => {}
            Some("lora" | "qlora") => return Ok(Some(source)),
            Some("full") => return Ok(None),
            Some("freeze") => {
                return refused(key, "freeze".to_owned(), "freezes blocks, which the file does not number");
            }
            Some(other) => {
                return refused(key, other.to_owned(), "is not known: expected full or lora");
            }
        }
    }
    if let Some(on) = document.flag("use_peft")? {
        return Ok(on.then_some(Source::Trl));
    }
    for key in ["use_lora", "lora_enable", "lora", "use_qlora", "q_lora"] {
        if document.flag(key)? == Some(true) {
            return Ok(Some(Source::Other));
        }
    }
    let switched = ["use_lora", "lora_enable", "lora"].into_iter().any(|key| document.has(key));
    match document.size("lora_r")?.or(document.size("lora_rank")?) {
        Some(_) if switched => Ok(None),
        // LLaMA-Factory and ms-swift train adapters unless they are told otherwise.
        Some(_) if document.has("lora_target") => Ok(Some(Source::LlamaFactory)),
        Some(_) if document.has("target_modules") || document.has("lora_rank") => Ok(Some(Source::Swift)),
        Some(rank) => {
            let problem = "is the rank of adapters, but whether there are any is not said";
            Err(InputError::new("lora_r", rank, problem)
                .hint("add `use_peft: true` or false to the file, or give `--lora-rank`"))
        }
        None => Ok(None),
    }
}

impl Source {
    fn trainable(self, document: &Document) -> Result<Trainable, InputError> {
        let given = document.size("lora_r")?.or(document.size("lora_rank")?);
        let rank = match (given, self) {
            (Some(rank), _) => rank,
            (None, Self::Trl) => 16,
            (None, Self::LlamaFactory | Self::Swift) => 8,
            (None, Self::Other) => {
                let problem = "is not in the file, and scripts differ in their default";
                return Err(InputError::new("lora_rank", "", problem)
                    .hint("give it by `--lora-rank`, e.g. `--lora-rank 16`"));
            }
        };
        let lora = Some(Lora { rank, targets: self.targets(document)? });
        Ok(Trainable { lora, base_bits: base_bits(document)?, ..Trainable::default() })
    }

    fn targets(self, document: &Document) -> Result<LoraTargets, InputError> {
        let keys = ["lora_target_modules", "lora_target", "target_modules"];
        let Some(key) = keys.into_iter().find(|key| document.get(key).is_some()) else {
            return match self {
                // PEFT's own for Llama and models like it.
                Self::Trl => Ok(LoraTargets::default()),
                Self::LlamaFactory | Self::Swift => Ok(LoraTargets::from_iter([LoraTarget::AllLinear])),
                Self::Other => {
                    let problem = "is not in the file, and scripts differ in their default";
                    Err(InputError::new("lora_target_modules", "", problem)
                        .hint("give the layers by `--lora-targets`, e.g. `--lora-targets all-linear`"))
                }
            };
        };
        let value = document.get(key).cloned().unwrap_or_default();
        let names: Vec<String> = match &value {
            Value::Array(list) => list.iter().map(plain).collect(),
            other => plain(other).split([',', ' ', ';']).map(str::to_owned).collect(),
        };
        let mut targets = Vec::new();
        for name in names.iter().map(|name| name.trim_matches(['[', ']', '\'', '"'])) {
            if name.is_empty() {
                continue;
            }
            let Some(known) = layers_of(name) else {
                let problem = format!("contains {name}, which is no linear layer of a block that is known");
                return Err(InputError::new(key, plain(&value), problem)
                    .hint("give the layers by `--lora-targets`: q, k, v, o, gate, up, down, or all-linear"));
            };
            targets.extend_from_slice(known);
        }
        Ok(targets.into_iter().collect())
    }
}

/// The linear layers that a module of a model in `transformers` is.
fn layers_of(module: &str) -> Option<&'static [LoraTarget]> {
    use LoraTarget::{AllLinear, Down, Gate, K, O, Q, Up, V};
    Some(match module.rsplit('.').next().unwrap_or(module) {
        "all-linear" | "all_linear" | "all" | "ALL" | "auto" => &[AllLinear],
        "q_proj" | "q" | "wq" | "query" | "q_a_proj" | "q_b_proj" => &[Q],
        "k_proj" | "k" | "wk" | "key" => &[K],
        "v_proj" | "v" | "wv" | "value" => &[V],
        "kv_a_proj_with_mqa" | "kv_b_proj" => &[K, V],
        "o_proj" | "out_proj" | "wo" | "dense" | "o" => &[O],
        "qkv_proj" | "query_key_value" | "c_attn" | "Wqkv" | "W_pack" => &[Q, K, V],
        "gate_proj" | "w1" | "gate" => &[Gate],
        "up_proj" | "w3" | "fc1" | "c_fc" | "dense_h_to_4h" | "up" => &[Up],
        "gate_up_proj" => &[Gate, Up],
        "down_proj" | "w2" | "fc2" | "dense_4h_to_h" | "down" => &[Down],
        // GPT-2 names the last matrix of both the attention and the MLP so.
        "c_proj" => &[O, Down],
        _ => return None,
    })
}

/// Of the frozen weights.
fn base_bits(document: &Document) -> Result<BaseBits, InputError> {
    let mut double = None;
    for key in ["use_bnb_nested_quant", "double_quantization", "bnb_4bit_use_double_quant"] {
        double = double.or(document.flag(key)?);
    }
    let four = |usual: bool| {
        if double.unwrap_or(usual) { BaseBits::Four } else { BaseBits::FourSingle }
    };
    // Of these LLaMA-Factory and ms-swift quantise the scales, too, unless they are told otherwise.
    for key in ["quantization_bit", "quant_bits"] {
        match document.text(key).as_deref() {
            None => {}
            Some("4") => return Ok(four(true)),
            Some("8") => return Ok(BaseBits::Eight),
            Some(other) => {
                return Err(InputError::new(key, other, "is not a number of bits that is priced: 4 or 8")
                    .hint("give `--base-bits` and `--lora-rank`"));
            }
        }
    }
    let qlora = document.flag("use_qlora")?.unwrap_or(false) || document.flag("q_lora")?.unwrap_or(false);
    Ok(if document.flag("load_in_4bit")? == Some(true) || qlora {
        four(qlora)
    } else if document.flag("load_in_8bit")? == Some(true) {
        BaseBits::Eight
    } else {
        BaseBits::Whole
    })
}

/// The other keys of adapters and frozen parts.
pub static RULES: &[KeyRule] = &[
    refused(
        &["use_dora", "lora_use_dora"],
        &["false"],
        "is DoRA, whose norms of whole weights have no price",
        "set it to false in the file: LoRA is priced",
    ),
    refused_unless(
        Field::Trainable,
        &[
            "modules_to_save",
            "lora_modules_to_save",
            "additional_target",
            "trainable_parameters",
            "freeze_parameters",
            "freeze_trainable_layers",
        ],
        "trains or freezes modules by their names, which is not read",
        "remove it from the file, or give what is trained by `--freeze` or `--lora-targets`",
    ),
    ignored(&[
        "lora_alpha",
        "merge_lora",
        "lora_fan_in_fan_out",
        "lora_dropout",
        "lora_bias",
        "lora_task_type",
        "lora_weight_path",
        "lora_dtype",
        "lora_model_dir",
        "lorap_lr_ratio",
        "loraplus_*",
        "use_rslora",
        "init_weights",
        "init_lora_weights",
        "bnb_4bit_*",
        "bnb_nested_quant_type",
        "quantization_method",
        "quant_method",
    ]),
];
