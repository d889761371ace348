//! Devices by the names that people use: `h100`, `H100-SXM5-80GB`, `NVIDIA A100 80GB PCIe`, `4090`.

use crate::catalog::DeviceFigures;

/// Names that several devices of the catalogue could have, and the most common of them.
const USUAL: [(&str, &str); 3] =
    [("a100", "a100-80gb-sxm"), ("v100", "v100-32gb-sxm"), ("h100", "h100-80gb-sxm")];

/// The device that `written` means, and the names of the others of its family; `None` if a part of the name is not
/// that of a device here, so that an unknown variant never becomes a known one.
pub fn understand<'a>(
    devices: &'a [DeviceFigures],
    written: &str,
) -> Option<(&'a DeviceFigures, Vec<&'a str>)> {
    if let Some(exact) = devices.iter().find(|device| device.is_called(written)) {
        return Some((exact, Vec::new()));
    }
    let lower = written.to_lowercase();
    let same = |device: &&DeviceFigures| {
        device.name.to_lowercase() == lower
            || device.driver_names.iter().any(|name| name.to_lowercase() == lower)
    };
    if let Some(device) = devices.iter().find(same) {
        return Some((device, Vec::new()));
    }
    let parts = parts(&lower);
    let (family, details) = parts.split_first()?;
    let of_family: Vec<&DeviceFigures> = devices.iter().filter(|device| head(device) == *family).collect();
    let has = |device: &&&DeviceFigures| {
        let own = self::parts(&device.name.to_lowercase());
        details.iter().all(|detail| own.contains(detail))
    };
    let usual = USUAL.iter().find(|(name, _)| name == family).map(|(_, device)| *device);
    let mut fitting: Vec<&DeviceFigures> = of_family.iter().filter(has).copied().collect();
    // The usual one first; otherwise the order is the catalogue's.
    fitting.sort_by_key(|device| Some(device.name.as_str()) != usual);
    let device = *fitting.first()?;
    let others = fitting.iter().skip(1).map(|other| other.name.as_str()).collect();
    Some((device, others))
}

fn head(device: &DeviceFigures) -> String {
    parts(&device.name.to_lowercase()).into_iter().next().unwrap_or_default()
}

/// The parts of a lower-case name that tell devices apart, the family first: `h100`, `sxm`, `80gb`.
fn parts(lower: &str) -> Vec<String> {
    let words = lower.split([' ', '-', '_', '/', '(', ')']).filter(|word| !word.is_empty());
    let mut parts: Vec<String> = Vec::new();
    for word in words {
        match word {
            "nvidia" | "amd" | "tesla" | "geforce" | "instinct" | "gpu" | "oam" | "tensor" | "core"
            | "hbm2" | "hbm2e" | "hbm3" | "hbm3e" | "edition" | "blackwell" => {}
            "sxm2" | "sxm3" | "sxm4" | "sxm5" | "sxm6" => parts.push("sxm".to_owned()),
            // `RTX 4090` and `4090` are rtx4090, `RTX PRO 6000` is one family.
            "pro" if parts == ["rtx"] => parts = vec!["rtxpro".to_owned()],
            "6000" if parts == ["rtxpro"] => parts = vec!["rtxpro6000".to_owned()],
            "a6000" if parts.is_empty() || parts == ["rtx"] => parts = vec!["rtxa6000".to_owned()],
            _ if word.len() == 4 && is_number(word) && (parts.is_empty() || parts == ["rtx"]) => {
                parts = vec![format!("rtx{word}")];
            }
            _ if word.strip_suffix('g').is_some_and(is_number) => parts.push(format!("{word}b")),
            _ if word.strip_suffix("gib").is_some_and(is_number) => {
                parts.push(format!("{}gb", word.trim_end_matches("gib")));
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use crate::catalog::devices;

    #[test]
    fn people_and_vendors_names_are_those_of_the_catalogue() {
        for (written, expected) in [
            ("h100-80gb-sxm", "h100-80gb-sxm"),
            ("h100", "h100-80gb-sxm"),
            ("H100", "h100-80gb-sxm"),
            ("H100-SXM5-80GB", "h100-80gb-sxm"),
            ("NVIDIA H100 80GB HBM3", "h100-80gb-sxm"),
            ("h100-pcie", "h100-80gb-pcie"),
            ("NVIDIA H100 PCIe", "h100-80gb-pcie"),
            ("a100", "a100-80gb-sxm"),
            ("A100-SXM4-40GB", "a100-40gb-sxm"),
            ("a100-40g", "a100-40gb-sxm"),
            ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"),
            ("a100_pcie", "a100-80gb-pcie"),
            ("v100", "v100-32gb-sxm"),
            ("V100-16GB", "v100-16gb-sxm"),
            ("Tesla V100-SXM2-32GB", "v100-32gb-sxm"),
            ("h200", "h200-141gb-sxm"),
            ("b200", "b200-180gb-sxm"),
            ("B300", "b300-288gb-sxm"),
            ("gb200", "gb200-186gb"),
            ("gh200", "gh200-96gb"),
            ("mi300x", "mi300x"),
            ("AMD Instinct MI300X OAM", "mi300x"),
            ("L40S", "l40s"),
            ("4090", "rtx4090"),
            ("RTX 4090", "rtx4090"),
            ("rtx-4090", "rtx4090"),
            ("NVIDIA GeForce RTX 4090", "rtx4090"),
            ("rtx-pro-6000", "rtx-pro-6000-server"),
            ("3090", "rtx3090"),
            ("RTX 5090", "rtx5090"),
            ("A6000", "rtx-a6000"),
            ("NVIDIA RTX A6000", "rtx-a6000"),
            ("RTX 6000 Ada", "rtx-6000-ada"),
            ("H100 NVL", "h100-94gb-nvl"),
            ("Tesla T4", "t4"),
            ("tpu-v5e", "tpu-v5e"),
        ] {
            let understood = super::understand(devices(), written);
            assert_eq!(understood.map(|(device, _)| device.name.as_str()), Some(expected), "{written}");
        }
    }

    #[test]
    fn a_variant_that_the_catalogue_lacks_is_not_taken_for_another() {
        for written in [
            "",
            "h",
            "h1",
            "h100-64gb",
            "A100-SXM-64GB",
            "A100-PCIE-40GB",
            "2080",
            "80gb",
            "sxm",
            "rtx",
            "tpu-v3",
        ] {
            assert_eq!(
                super::understand(devices(), written).map(|(device, _)| &device.name),
                None,
                "{written}"
            );
        }
        let (_, others) = super::understand(devices(), "h100").unwrap();
        assert_eq!(others, ["h100-96gb-sxm", "h100-80gb-pcie", "h100-94gb-nvl"]);
        assert!(super::understand(devices(), "h100-96gb").unwrap().1.is_empty());
    }
}
