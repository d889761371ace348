//! Models by the names that people use: `meta-llama/Llama-3.1-8B-Instruct`, `llama-2-7b-hf`, `DeepSeek-R1`.

use crate::catalog::closest;

/// Other names of the same architectures, and sizes that are the only ones of their family, without hyphens.
const SAME: [(&str, &str); 28] = [
    ("llama3.370b", "llama3.1-70b"),
    ("llama3.1405b", "llama3-405b"),
    ("llama417b128e", "llama4-maverick"),
    ("llama4maverick17b128e", "llama4-maverick"),
    ("deepseekr1", "deepseek-v3"),
    ("mistralnemo", "mistral-nemo-12b"),
    ("phi4", "phi4-14b"),
    ("phi3mini4k", "phi3-mini"),
    ("phi3mini128k", "phi3-mini"),
    ("bloom", "bloom-176b"),
    ("gptj6b", "gpt-j-6b"),
    ("olmo211247b", "olmo2-7b"),
    ("olmo2112413b", "olmo2-13b"),
    ("olmo310257b", "olmo3-7b"),
    ("starcoder", "starcoder-15b"),
    ("granite3.18b", "granite3-8b"),
    ("c4aicommandrv01", "command-r-35b"),
    ("llama4scout17b16e", "llama4-scout"),
    ("llama417b16e", "llama4-scout"),
    ("llama3.1nemotron70b", "llama3.1-70b"),
    ("deepseekr1distillqwen7b", "qwen2.5-7b"),
    ("deepseekr1distillqwen14b", "qwen2.5-14b"),
    ("deepseekr1distillqwen32b", "qwen2.5-32b"),
    ("deepseekr1distillllama8b", "llama3.1-8b"),
    ("deepseekr1distillllama70b", "llama3.1-70b"),
    ("mistral7bv0.1", "mistral-7b"),
    ("mixtral8x7bv0.1", "mixtral-8x7b"),
    ("mixtral8x22bv0.1", "mixtral-8x22b"),
];

/// Words after a name that change neither the shape nor the size: how a model was tuned, when, and how its checkpoint is
/// stored.
const TUNED: [&str; 20] = [
    "instruct", "chat", "base", "hf", "it", "pt", "bf16", "2407", "2507", "original", "v1", "thinking",
    "unsloth", "bnb", "4bit", "8bit", "gptq", "awq", "int4", "int8",
];

/// The name without what does not matter for the architecture: `llama3.18b` of `meta-llama/Llama-3.1-8B-Instruct`.
fn plain(written: &str) -> String {
    let lower = written.trim().to_lowercase();
    let last = lower.rsplit('/').next().unwrap_or_default();
    let mut words: Vec<&str> = last.split(['-', '_', ' ', ':']).filter(|word| !word.is_empty()).collect();
    if words.len() > 1 && words[0] == "meta" {
        words.remove(0);
    }
    // `Mixtral-8x7B-Instruct-v0.1`
    words.retain(|word| !TUNED.contains(word));
    words.concat()
}

/// The known model that has exactly the architecture of the written one.
pub fn understand<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let known: Vec<&str> = known.collect();
    if let Some(exact) = known.iter().find(|name| **name == written) {
        return Some(exact);
    }
    let plain = plain(written);
    if plain.is_empty() {
        return None;
    }
    let same = SAME.iter().find(|(name, _)| *name == plain).map(|(_, name)| *name);
    known.iter().find(|name| same == Some(**name) || self::plain(name) == plain).copied()
}

/// Models that the user may mean or may use instead, as a phrase: of the same family and the nearest size.
pub fn suggestion(written: &str, known: &[(&str, f64)]) -> String {
    const SHOWN: usize = 3;
    let own = plain(written);
    let family = family(&own);
    let size = size(written);
    let mut relatives: Vec<&(&str, f64)> =
        known.iter().filter(|(name, _)| !family.is_empty() && self::family(&plain(name)) == family).collect();
    let distance = |other: f64| size.map_or(0.0, |size| (other / size).ln().abs());
    relatives.sort_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
    let quoted = |models: &[&(&str, f64)]| {
        let names: Vec<String> = models.iter().take(SHOWN).map(|(name, _)| format!("`{name}`")).collect();
        names.join(", ")
    };
    if !relatives.is_empty() {
        // A misspelt version is nearer by its letters than by its size.
        if size.is_none() {
            relatives
                .sort_by(|a, b| strsim::jaro_winkler(&own, b.0).total_cmp(&strsim::jaro_winkler(&own, a.0)));
        }
        return format!("did you mean {}?", quoted(&relatives));
    }
    let nearest = closest(written, known.iter().map(|(name, _)| *name));
    let spelling = known.iter().map(|(name, _)| strsim::jaro_winkler(&own, &plain(name))).fold(0.0, f64::max);
    match size {
        // Another family, of which only the size says something.
        Some(_) if spelling < 0.9 => {
            let mut all: Vec<&(&str, f64)> = known.iter().collect();
            all.sort_by(|a, b| distance(a.1).total_cmp(&distance(b.1)));
            format!("the catalogue has no model of this family; {} are nearest in size.", quoted(&all))
        }
        _ => format!("did you mean {nearest}?"),
    }
}

/// The letters at the beginning; `gptneox` and `gptoss` are not one family.
fn family(plain: &str) -> &str {
    let end = plain.find(|c: char| !c.is_alphabetic()).unwrap_or(plain.len());
    &plain[..end]
}

/// The number of parameters in the name, a word such as `70b`, `8x7b` or `350m`; the last one.
fn size(written: &str) -> Option<f64> {
    let lower = written.to_lowercase();
    let of_word = |word: &str| {
        let (number, scale) = [('b', 1e9), ('m', 1e6), ('t', 1e12)]
            .iter()
            .find_map(|(unit, scale)| word.strip_suffix(*unit).map(|number| (number, *scale)))?;
        let (experts, number) = number.split_once('x').unwrap_or(("1", number));
        let parsed = experts.parse::<f64>().ok()? * number.parse::<f64>().ok()?;
        (parsed > 0.0).then_some(parsed * scale)
    };
    lower.split(['-', '_', '/', ' ', ':']).filter_map(of_word).next_back()
}

#[cfg(test)]
mod tests {
    use crate::catalog::model;

    #[test]
    fn names_of_the_hub_are_those_of_the_catalogue() {
        for (written, expected) in [
            ("llama3.1-70b", "llama3.1-70b"),
            ("Llama-3.1-70B-Instruct", "llama3.1-70b"),
            ("meta-llama/Llama-3.1-8B", "llama3.1-8b"),
            ("meta-llama/Meta-Llama-3-8B", "llama3-8b"),
            ("meta-llama/Llama-2-7b-hf", "llama2-7b"),
            ("llama-2-70b-chat-hf", "llama2-70b"),
            ("meta-llama/Llama-3.3-70B-Instruct", "llama3.1-70b"),
            ("Llama-3.1-405B", "llama3-405b"),
            ("Qwen/Qwen2.5-7B", "qwen2.5-7b"),
            ("Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"),
            ("Qwen/Qwen3-30B-A3B", "qwen3-30b-a3b"),
            ("Qwen3_8B", "qwen3-8b"),
            ("mistralai/Mistral-7B-v0.1", "mistral-7b"),
            ("mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b"),
            ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
            ("mistralai/Mistral-Nemo-Base-2407", "mistral-nemo-12b"),
            ("google/gemma-2-9b-it", "gemma2-9b"),
            ("deepseek-ai/DeepSeek-V3", "deepseek-v3"),
            ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
            ("openai/gpt-oss-20b", "gpt-oss-20b"),
            ("openai-community/gpt2-xl", "gpt2-xl"),
            ("microsoft/phi-4", "phi4-14b"),
            ("unsloth/Qwen2.5-7B-Instruct-bnb-4bit", "qwen2.5-7b"),
            ("unsloth/llama-3-8b-bnb-4bit", "llama3-8b"),
            ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "qwen2.5-7b"),
            ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
            ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "qwen2.5-32b"),
            ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "llama3.1-8b"),
            ("GPT3-175B", "gpt3-175b"),
        ] {
            assert_eq!(model(written).map(|model| model.name), Ok(expected.to_owned()), "{written}");
        }
    }

    #[test]
    fn other_models_are_not_taken_for_known_ones_and_the_nearest_of_the_family_are_named() {
        for (written, expected) in [
            // Its attention has no window, and v0.3 has another vocabulary.
            ("mistralai/Mistral-7B-v0.3", "`mistral-7b`"),
            ("llama-70b", "`llama3-70b`"),
            ("llama3-90b", "`llama3.1-70b`"),
            ("mixtral", "`mixtral-8x7b`"),
            ("qwen", "`qwen"),
            ("Qwen/Qwen2-7B", "`qwen2.5-7b`"),
            ("EleutherAI/pythia-2.8b", "`pythia-6.9b`"),
            ("lama2-7b", "`llama2-7b`"),
            ("gemma-3n-E4B-it", "`gemma"),
            ("deepseek-r2", "`deepseek-"),
            ("mystery", "did you mean"),
        ] {
            let error = model(written).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("config.json"), "{written}: {error}");
        }
    }
}
