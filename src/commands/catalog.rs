//! `autodist catalog`

use crate::cli::JsonArgs;
use crate::failure::Failure;
use crate::{look, output};
use autodist_hardware::Catalogue;
use autodist_reports::{Align, Screen, Table};
use autodist_spec::{Device, Link, catalog, to_json};

/// Narrower views leave out the sources of models.
const WITH_SOURCES: usize = 100;

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
        let nodes: Vec<_> = Catalogue::shipped()
            .machines()
            .map(|node| {
                serde_json::json!({
                    "name": node.name, "device": node.device, "devices": node.devices, "nics": node.nics,
                    "nic_bytes_per_s": node.nic_bytes_per_s, "fabric": node.fabric, "source": node.source,
                })
            })
            .collect();
        let all = serde_json::json!({ "models": models, "devices": devices, "nodes": nodes });
        return output::print(&to_json(&all));
    }
    let view = look::view();
    let mut screen = Screen::new(&view);
    screen.paragraph("Models");
    let mut models = models();
    if !view.verbose && view.width < WITH_SOURCES {
        models.leave_out("source");
    }
    screen.table(&models);
    if !view.verbose && view.width < WITH_SOURCES {
        screen.paragraph("--verbose shows their sources");
    }
    screen.section("Devices (published figures; dense bf16 or fp16 peak)", &of_devices(&devices));
    screen.section("Nodes, as in `--cluster 2xp5.48xlarge`", &nodes());
    output::show(&screen.finish())
}

fn models() -> Table {
    let mut table = Table::new(&[
        ("model", Align::Left),
        ("size", Align::Right),
        ("layers", Align::Right),
        ("hidden", Align::Right),
        ("experts", Align::Right),
        ("source", Align::Left),
    ]);
    for entry in catalog::models() {
        let m = &entry.spec;
        let size = m.total_parameters() as f64;
        let (size, unit) = if size >= 1e9 { (size / 1e9, "B") } else { (size / 1e6, "M") };
        let experts = m.block_kinds().find_map(|block| block.experts);
        table.row([
            m.name.clone(),
            format!("{size:.1}{unit}"),
            m.layers.to_string(),
            m.hidden.to_string(),
            experts.map_or_else(String::new, |experts| experts.count.to_string()),
            entry.source.clone(),
        ]);
    }
    table
}

fn of_devices(devices: &[(Device, Option<Link>)]) -> Table {
    let mut table = Table::new(&[
        ("device", Align::Left),
        ("memory", Align::Right),
        ("peak", Align::Right),
        ("memory bandwidth", Align::Right),
        ("link", Align::Right),
    ]);
    for (device, link) in devices {
        table.row([
            device.name.clone(),
            device.memory_bytes.to_string(),
            device.peak_flops_per_s.map(|rate| rate.to_string()).unwrap_or_default(),
            device.memory_bytes_per_s.map(|rate| rate.to_string()).unwrap_or_default(),
            link.as_ref().map(|link| link.bytes_per_s.to_string()).unwrap_or_default(),
        ]);
    }
    table
}

fn nodes() -> Table {
    let mut table = Table::new(&[
        ("node", Align::Left),
        ("devices", Align::Right),
        ("device", Align::Left),
        ("NICs", Align::Right),
        ("rate of each", Align::Right),
        ("network", Align::Left),
    ]);
    for node in Catalogue::shipped().machines() {
        table.row([
            node.name.clone(),
            node.devices.to_string(),
            node.device.clone(),
            node.nics.to_string(),
            format!("{} Gb/s", node.nic_bytes_per_s.0 * 8.0 / 1e9),
            node.fabric.clone(),
        ]);
    }
    table
}
