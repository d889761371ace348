//! Tables of older releases, in which facts of the software stood in prose: read once into the columns that have them now.

use crate::fields::Fields;
use crate::trainer::Trainer;
use crate::words;
use autodist_hardware::Catalogue;

/// Columns of the software. A table with one of them says nothing in prose.
pub(crate) const SOFTWARE_COLUMNS: [&str; 5] = ["trainer_year", "attention", "loss", "compiled", "overlap"];

/// Columns with prose.
pub(crate) const PROSE: [&str; 3] = ["source", "url_or_repo_path", "notes"];

/// What the prose of a line says, by column.
pub(crate) fn columns(fields: &Fields, catalogue: &Catalogue) -> Vec<(&'static str, String)> {
    let prose = PROSE.map(|name| fields.text(name).unwrap_or_default()).join(" ").to_ascii_lowercase();
    let mut found = Vec::new();
    let mut say = |column, value: Option<String>| found.extend(value.map(|value| (column, value)));
    let year = year(&prose);
    say("trainer_year", year.map(|year| year.to_string()));
    if fields.text("trainer").is_none() {
        let device = fields.text("gpu").and_then(|gpu| words::device(catalogue, gpu).ok());
        let young = device.is_some_and(|(name, _)| !(name.starts_with("v100") || name.starts_with("a100")));
        let trainer = match named(&prose) {
            Some(Trainer::Megatron) if young || is_of_2022(fields, &prose) => Some(Trainer::MegatronCore),
            trainer => trainer,
        };
        say("trainer", trainer.map(|trainer| trainer.name().to_owned()));
    }
    let attention = match () {
        () if named_unfused(&prose) => Some("unfused"),
        () if prose.contains("flash") => Some("flash"),
        () => None,
    };
    say("attention", attention.map(str::to_owned));
    let fused = prose.contains("cross-entropy fusion") || prose.contains("fused cross");
    say("loss", fused.then(|| "fused".to_owned()));
    say("compiled", prose.contains("compile").then(|| "yes".to_owned()));
    say("overlap", prose.contains("no overlap").then(|| "no".to_owned()));
    if fields.text("shard").is_none() {
        say("shard", number_after(&prose, "shard group ").map(|size| size.to_string()));
    }
    found
}

/// Whether the source's text dates the Megatron version to Megatron-Core, or names software of that time.
fn is_of_2022(fields: &Fields, prose: &str) -> bool {
    year(prose).is_some_and(|year| year >= 2022)
        || fields.text("sequence_parallel") == Some("yes")
        || fields.text("recompute") == Some("selective")
        || prose.contains("flash")
}

/// The trainer named in a source's text: the first of these phrases that occurs in it.
fn named(words: &str) -> Option<Trainer> {
    let known = [
        ("oneflow;", Trainer::Oneflow),
        ("internevo", Trainer::Internevo),
        ("megatron-deepspeed", Trainer::MegatronDeepspeed),
        ("megatron deepspeed", Trainer::MegatronDeepspeed),
        ("bigscience", Trainer::MegatronDeepspeed),
        ("megatron-bridge", Trainer::Nemo),
        ("megatron bridge", Trainer::Nemo),
        ("dgxc-benchmarking", Trainer::Nemo),
        ("nemo", Trainer::Nemo),
        ("torchtitan", Trainer::Fsdp2),
        ("fsdp2", Trainer::Fsdp2),
        ("llm-foundry", Trainer::Fsdp),
        ("fsdp", Trainer::Fsdp),
        ("megatron-core", Trainer::MegatronCore),
        ("mcore", Trainer::MegatronCore),
        ("simumax", Trainer::MegatronCore),
        ("megascale", Trainer::MegatronCore),
        ("megatron", Trainer::Megatron),
        ("deepspeed", Trainer::Deepspeed),
    ];
    known.into_iter().find(|(phrase, _)| words.contains(phrase)).map(|(_, trainer)| trainer)
}

/// The year of a source, from its text: of its arXiv number, or the first year named.
fn year(words: &str) -> Option<u32> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut named = None;
    let mut at = 0;
    while let Some(found) = words[at..].find(|c: char| c.is_ascii_digit()) {
        let rest = &words[at + found..];
        let long = digits(rest);
        let fraction = rest[long..].strip_prefix('.').map_or(0, digits);
        let (head, month) = (rest[..long.min(4)].parse().unwrap_or(0), rest[..long.min(4)].get(2..4));
        let is_month = month.and_then(|m| m.parse::<u32>().ok()).is_some_and(|m| (1..=12).contains(&m));
        if long == 4 && matches!(fraction, 4 | 5) && is_month {
            return Some(2000 + head / 100);
        }
        if long == 4 && fraction == 0 && (2018..=2035).contains(&head) {
            named = named.or(Some(head));
        }
        at += found + long;
    }
    named
}

/// Whether the text names unfused attention.
fn named_unfused(words: &str) -> bool {
    ["unfused", "non-flash", "no flash", "not flash", "without flash", "core attention"]
        .iter()
        .any(|w| words.contains(w))
}

/// The integer that follows the phrase.
fn number_after(words: &str, phrase: &str) -> Option<u32> {
    let rest = &words[words.find(phrase)? + phrase.len()..];
    rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn years_are_read_from_arxiv_numbers_and_dates() {
        for (words, expected) in [
            ("narayanan et al., 2104.04473, table 1", Some(2021)),
            ("arxiv 2401.10241 / openreview tuztn0eio5", Some(2024)),
            ("korthikanti et al. 2022 reducing activation recomputation arxiv 2205.05198", Some(2022)),
            ("dlperf gpt report 2021-05-12 dlperf_gpt_test_report_210512.md", Some(2021)),
            ("vtrain (micro-57), seq 2048, 4096 wide, 1600.5 tokens", None),
            ("9999.12345", None),
        ] {
            assert_eq!(year(words), expected, "{words}");
        }
    }
}
