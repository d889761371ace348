//! Fitted efficiencies in words: what is faster or slower on this cluster than on the published ones.

use autodist_analytic::{FreeParameters, Generation};
use serde::Serialize;

/// Smaller changes than this are none.
const NOTABLE: f64 = 0.02;
/// From this slowdown of attention on, another kernel is the usual cause.
const OTHER_KERNEL: f64 = 0.9;

/// What a parameter is of.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A rate: larger is faster.
    Rate,
    /// A time: larger is slower.
    Time,
    /// Memory traffic or an exposed part: larger is slower.
    Amount,
}

/// One finding.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub text: String,
    /// New speed over old speed; nothing for times and amounts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub speed: Option<f64>,
}

/// Names of parameters in words. Those of GEMMs, attention and links on a device are told together.
const WORDS: [(&str, Kind, &str); 24] = [
    ("classic_library", Kind::Rate, "GEMMs of libraries from before 2023"),
    ("unaligned", Kind::Rate, "GEMMs with dimensions that are not a multiple of 64"),
    ("unaligned_heads", Kind::Rate, "attention with head sizes that are not a multiple of 8"),
    ("memory_efficiency", Kind::Rate, "memory-bound kernels"),
    ("score_bytes", Kind::Amount, "memory traffic of unfused attention scores"),
    ("apart_score_bytes", Kind::Amount, "memory traffic of an unfused softmax"),
    ("apart_host", Kind::Time, "host time of an unfused softmax"),
    ("eight_bits", Kind::Rate, "FP8 GEMMs"),
    ("eight_bits_blackwell", Kind::Rate, "FP8 GEMMs on Blackwell"),
    ("cast_bytes", Kind::Amount, "memory traffic of casts to FP8"),
    ("elementwise", Kind::Amount, "memory traffic of norms, activations and residuals"),
    ("eager", Kind::Amount, "memory traffic of eager (not fused) kernels"),
    ("logit_bytes", Kind::Amount, "memory traffic of the loss"),
    ("skew_s", Kind::Time, "waiting in tensor-parallel collectives"),
    ("tensor_drag", Kind::Amount, "slowdown of GEMMs that overlap tensor-parallel collectives"),
    ("message_exposed", Kind::Amount, "exposed part of send/recv between pipeline stages"),
    ("message_s", Kind::Time, "latency of send/recv between pipeline stages"),
    ("reduce_exposed", Kind::Amount, "exposed part of the gradient reduction"),
    ("gather_drag", Kind::Amount, "slowdown of compute that overlaps ZeRO-3's transfers"),
    ("update_gather", Kind::Time, "all-gather of updated parameters"),
    ("jitter", Kind::Amount, "slowdown by stragglers"),
    ("host_megatron_s", Kind::Time, "host time of a block in Megatron"),
    ("host_deepspeed_s", Kind::Time, "host time of a block in DeepSpeed"),
    ("host_eager_s", Kind::Time, "host time of a block in PyTorch FSDP"),
];

/// Those without a line of their own above: small parts of a step.
const REST: [(&str, Kind, &str); 3] = [
    ("optimizer", Kind::Amount, "memory traffic of the optimizer"),
    ("step_s", Kind::Time, "time per step outside the layers (data, logging)"),
    ("broadcast_s", Kind::Time, "broadcast of updated parameters"),
];

/// The rate of GEMMs on a generation of devices.
fn gemms(of: &FreeParameters, generation: Generation) -> f64 {
    let factor = match generation {
        Generation::Volta => of.volta,
        Generation::Ampere => of.ampere,
        Generation::Hopper => of.hopper,
        Generation::Blackwell => of.blackwell,
        Generation::BlackwellUltra => of.blackwell_ultra,
        Generation::Other => of.other_device,
    };
    of.gemm_efficiency * factor
}

fn attention(of: &FreeParameters, generation: Generation) -> f64 {
    let young = matches!(generation, Generation::Hopper | Generation::Blackwell | Generation::BlackwellUltra);
    of.flash * if young { of.young_flash } else { 1.0 }
}

/// What changed, the compute of each kind of devices first. `devices` are those of the runs.
pub fn findings(
    before: &FreeParameters,
    after: &FreeParameters,
    devices: &[(String, Generation)],
    nodes: bool,
) -> Vec<Finding> {
    let mut found = Vec::new();
    for (name, generation) in devices {
        let of = |rate: fn(&FreeParameters, Generation) -> f64| {
            rate(after, *generation) / rate(before, *generation)
        };
        found.push(rate(&format!("GEMMs on {name}"), of(gemms)));
        let speed = of(attention);
        let mut finding = rate(&format!("attention on {name}"), speed);
        if speed < OTHER_KERNEL {
            finding.text += match generation {
                Generation::Volta | Generation::Other => ": is it fused?",
                Generation::Ampere => ": is it FlashAttention-1, or not fused?",
                _ => ": is it FlashAttention-2, or not fused?",
            };
        }
        found.push(finding);
    }
    found.push(rate("links inside nodes (NVLink, PCIe)", after.link / before.link));
    if nodes {
        found.push(rate("network between nodes", after.network / before.network));
    }
    let (was, is) = (before.to_table(), after.to_table());
    for (name, kind, words) in WORDS.iter().chain(&REST) {
        let (Some(was), Some(is)) = (was.get(*name), is.get(*name)) else { continue };
        let ratio = is / was;
        if (ratio - 1.0).abs() <= NOTABLE {
            continue;
        }
        found.push(match kind {
            Kind::Rate => rate(words, ratio),
            Kind::Time => Finding { text: format!("{words}: {}", longer(ratio)), speed: None },
            Kind::Amount => Finding { text: format!("{words}: {}", more(ratio)), speed: None },
        });
    }
    found
}

/// How steps of a trainer differ from those that a profile predicts.
pub fn of_profile(factor: f64, file: &str) -> Finding {
    let percent = 100.0 * (factor - 1.0).abs();
    let causes = "data loading, logging, other kernels or other load are not in the profile";
    let text = match factor {
        factor if (factor - 1.0).abs() <= NOTABLE => format!("steps take as long as {file} predicts"),
        factor if factor >= 2.0 => {
            format!("steps take {factor:.1} times as long as {file} predicts: {causes}")
        }
        factor if factor > 1.0 => format!("steps take {percent:.0} % longer than {file} predicts: {causes}"),
        _ => format!("steps take {percent:.0} % less time than {file} predicts"),
    };
    Finding { text, speed: Some(1.0 / factor) }
}

fn rate(what: &str, ratio: f64) -> Finding {
    let change = 100.0 * (ratio - 1.0).abs();
    let text = match ratio {
        ratio if (ratio - 1.0).abs() <= NOTABLE => format!("{what}: as before"),
        ratio if ratio < 1.0 => format!("{what}: {change:.0} % slower than before"),
        _ => format!("{what}: {change:.0} % faster than before"),
    };
    Finding { text, speed: Some(ratio) }
}

fn longer(ratio: f64) -> String {
    match ratio {
        ratio if ratio >= 2.0 => format!("{ratio:.1} times as long as before"),
        ratio if ratio > 1.0 => format!("{:.0} % longer than before", 100.0 * (ratio - 1.0)),
        ratio => format!("{:.0} % shorter than before", 100.0 * (1.0 - ratio)),
    }
}

fn more(ratio: f64) -> String {
    match ratio {
        ratio if ratio >= 2.0 => format!("{ratio:.1} times as much as before"),
        ratio if ratio > 1.0 => format!("{:.0} % more than before", 100.0 * (ratio - 1.0)),
        ratio => format!("{:.0} % less than before", 100.0 * (1.0 - ratio)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use autodist_analytic::PRIORS;

    #[test]
    fn every_parameter_has_words() {
        // Told by device: GEMMs, attention, links and networks; or of generations that have words above.
        let together = [
            "gemm_efficiency",
            "volta",
            "volta_memory",
            "volta_links",
            "ampere",
            "hopper",
            "first_hopper",
            "blackwell",
            "blackwell_ultra",
            "other_device",
            "classic_waves",
            "flash",
            "first_flash",
            "young_flash",
            "older_flash",
            "cudnn_attention",
            "early_stop",
            "link",
            "network",
            "omni_path",
            "host_tensor",
        ];
        let told: Vec<&str> = WORDS.iter().chain(&REST).map(|(name, ..)| *name).chain(together).collect();
        let mut known: Vec<&str> = PRIORS.iter().map(|prior| prior.name).collect();
        let mut told = told;
        told.sort_unstable();
        known.sort_unstable();
        assert_eq!(told, known);
    }

    #[test]
    fn what_changed_is_said_without_names_of_parameters() {
        let before = FreeParameters::shipped();
        let after = FreeParameters {
            hopper: before.hopper * 0.87,
            young_flash: before.young_flash * 0.8,
            skew_s: before.skew_s * 3.0,
            logit_bytes: before.logit_bytes * 0.9,
            ..*before
        };
        let devices = [("H100".to_owned(), Generation::Hopper)];
        let found: Vec<String> =
            findings(before, &after, &devices, true).into_iter().map(|one| one.text).collect();
        assert_eq!(
            found,
            [
                "GEMMs on H100: 13 % slower than before",
                "attention on H100: 20 % slower than before: is it FlashAttention-2, or not fused?",
                "links inside nodes (NVLink, PCIe): as before",
                "network between nodes: as before",
                "memory traffic of the loss: 10 % less than before",
                "waiting in tensor-parallel collectives: 3.0 times as long as before",
            ]
        );
    }
}
