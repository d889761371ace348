//! The kernels that a trainer's file names, or that its trainer has by default.

use crate::document::Document;
use autodist_spec::InputError;

/// In the words of `autodist estimate`: `--attention`, `--loss` and `--blocks`. What is not named is the default of the
/// trainer that is priced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KernelNames {
    pub attention: Option<&'static str>,
    pub loss: Option<&'static str>,
    pub blocks: Option<&'static str>,
    /// Whether the file says nothing of the blocks, so that they are as its trainer has them by default.
    pub blocks_by_default: bool,
}

/// Keys of `transformers` and of those that pass arguments on to it.
const IMPLEMENTATIONS: [&str; 4] =
    ["attn_implementation", "attn_impl", "attention_implementation", "flash_attn"];
const LIGER: [&str; 4] = ["use_liger_kernel", "use_liger", "enable_liger_kernel", "use_liger_loss"];

/// Of Hugging Face's trainers.
///
/// # Errors
/// An implementation of attention that is not known.
pub fn of_transformers(document: &Document) -> Result<KernelNames, InputError> {
    let mut names = KernelNames { blocks: Some("eager"), blocks_by_default: true, ..KernelNames::default() };
    for key in IMPLEMENTATIONS {
        let Some(name) = document.text(key) else { continue };
        names.attention = match name.to_ascii_lowercase().as_str() {
            "eager" => Some("unfused"),
            // PyTorch chooses the kernel.
            "sdpa" | "auto" | "true" | "false" | "disabled" | "flex_attention" => names.attention,
            // xFormers computes attention in one kernel, too.
            "fa2" | "fa3" | "flash_attn" | "xformers" => Some("flash"),
            // Also kernels of the hub: `kernels-community/flash-attn3`.
            other if other.contains("flash") => Some("flash"),
            _ => {
                let problem = "is no implementation of attention that is priced";
                return Err(InputError::new(key, name, problem).hint(
                    "expected eager, sdpa or flash_attention_2; or remove it, and give `--attention`",
                ));
            }
        };
    }
    if document.flag("use_flash_attn")? == Some(true) {
        names.attention = Some("flash");
    }
    // Liger's norms, activations and loss are one kernel each.
    for key in LIGER {
        if document.flag(key)? == Some(true) {
            names.loss = Some("fused");
            (names.blocks, names.blocks_by_default) = (Some("fused"), false);
        }
    }
    for key in ["cut_cross_entropy", "liger_fused_linear_cross_entropy"] {
        if document.flag(key)? == Some(true) {
            names.loss = Some("fused");
        }
    }
    let own = [document.flag("liger_rms_norm")?, document.flag("liger_glu_activation")?];
    if own == [Some(true); 2] {
        (names.blocks, names.blocks_by_default) = (Some("fused"), false);
    }
    let compiled = document.flag("torch_compile")? == Some(true);
    let backend = document.text("dynamo_config.dynamo_backend").or(document.text("dynamo_backend"));
    if compiled || backend.is_some_and(|backend| !backend.eq_ignore_ascii_case("no")) {
        (names.blocks, names.blocks_by_default) = (Some("fused"), false);
    }
    Ok(names)
}

/// Of torchtitan, which compiles nothing by default.
///
/// # Errors
/// A value that is neither true nor false.
pub fn of_torchtitan(document: &Document) -> Result<KernelNames, InputError> {
    let said = document.flag("compile.enable")?.or(document.flag("training.compile")?);
    // Without the model among them, only the loss is compiled.
    let components = document.text("compile.components").is_none_or(|parts| parts.contains("model"));
    let blocks = if said == Some(true) && components { "fused" } else { "eager" };
    Ok(KernelNames { blocks: Some(blocks), blocks_by_default: said.is_none(), ..KernelNames::default() })
}

/// Of Megatron.
///
/// # Errors
/// A backend of attention that is not known.
pub fn of_megatron(document: &Document) -> Result<KernelNames, InputError> {
    let words = [
        ("auto", None),
        ("flash", Some("flash")),
        ("fused", Some("cudnn")),
        ("unfused", Some("unfused")),
        ("local", Some("unfused")),
    ];
    let mut attention = document.choice("attention-backend", &words)?.flatten();
    if attention.is_none() && document.flag("use-flash-attn")? == Some(true) {
        attention = Some("flash");
    }
    let fused = document.flag("cross-entropy-loss-fusion")? == Some(true);
    Ok(KernelNames { attention, loss: fused.then_some("fused"), ..KernelNames::default() })
}
