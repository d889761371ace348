//! `autodist catalog`

use crate::cli::JsonArgs;
use crate::failure::Failure;
use crate::output;
use autodist_hardware::Catalogue;
use autodist_spec::{catalog, to_json};
use std::fmt::Write;

pub fn run(args: &JsonArgs) -> Result<(), Failure> {
    let devices: Vec<_> =
        catalog::device_names().into_iter().filter_map(|name| catalog::device(name).ok()).collect();
    if args.json {
        let models: Vec<_> = catalog::models()
            .iter()
            .map(|m| serde_json::json!({ "model": m.spec, "source": m.source }))
            .collect();
        let devices: Vec<_> = devices
            .iter()
            .map(|(device, link)| serde_json::json!({ "device": device, "link": link }))
            .collect();
        output::print(&to_json(&serde_json::json!({ "models": models, "devices": devices })))?;
        return Ok(());
    }
    let mut text = String::from("Models\n");
    for entry in catalog::models() {
        let m = &entry.spec;
        let size = m.total_parameters() as f64;
        let (size, unit) = if size >= 1e9 { (size / 1e9, "B") } else { (size / 1e6, "M") };
        let experts = m.block_kinds().find_map(|block| block.experts);
        let experts = experts.map(|experts| format!(", {} experts", experts.count)).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:<16} {size:>6.1}{unit}  {:>3} layers, hidden {:>5}{}  {}",
            m.name, m.layers, m.hidden, experts, entry.source
        );
    }
    text.push_str("\nDevices (published figures; dense bf16 or fp16 peak)\n");
    for (device, link) in devices {
        let rate = device.peak_flops_per_s.map(|f| f.to_string()).unwrap_or_default();
        let memory = device.memory_bytes_per_s.map(|b| b.to_string()).unwrap_or_default();
        let link = link.map(|l| l.bytes_per_s.to_string()).unwrap_or_default();
        let _ = writeln!(
            text,
            "  {:<16} {:>10}  {rate:>13}  memory {memory:>10}  link {link:>10}",
            device.name,
            device.memory_bytes.to_string()
        );
    }
    text.push_str("\nNodes, as in `--cluster 2xp5.48xlarge` (rates of each NIC)\n");
    for node in Catalogue::shipped().machines() {
        let _ = writeln!(
            text,
            "  {:<18} {:>2} x {:<14} {:>2} NICs of {:>4} Gb/s  {}",
            node.name,
            node.devices,
            node.device,
            node.nics,
            node.nic_bytes_per_s.0 * 8.0 / 1e9,
            node.fabric
        );
    }
    output::print(&text)?;
    Ok(())
}
