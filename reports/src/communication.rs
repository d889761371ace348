//! Tables of what ranks say to each other: links, collectives, and gradients in fewer bytes.

use crate::table::{
    Align::{Left, Right},
    Table,
};
use crate::tables::yes;
use crate::words::{self, percent, signed_percent};
use autodist_spec::{Network, Plan, Seconds, Validation};

pub(crate) fn collectives(plan: &Plan) -> Table {
    let mut table = Table::new(&[
        ("what", Left),
        ("collective", Left),
        ("ranks", Right),
        ("size", Right),
        ("time", Right),
        ("lower bound", Right),
        ("reached", Right),
    ]);
    for share in &plan.collectives {
        table.row([
            share.what.clone(),
            share.pattern.name(),
            share.group.to_string(),
            share.bytes.to_string(),
            share.time_s.to_string(),
            share.lower_bound_s.to_string(),
            percent(share.share()),
        ]);
    }
    table
}

pub(crate) fn codecs(plan: &Plan) -> Table {
    let mut table = Table::new(&[
        ("codec", Left),
        ("helps", Left),
        ("step time", Right),
        ("without", Right),
        ("ratio", Right),
        ("coding", Right),
        ("steps to a loss", Right),
        ("why", Left),
    ]);
    for verdict in &plan.codecs {
        table.row([
            verdict.codec.name(),
            yes(verdict.helps),
            verdict.step_time_s.to_string(),
            verdict.exact_step_time_s.to_string(),
            format!("{:.1}", verdict.ratio),
            verdict.coding_s.to_string(),
            words::slowdown(&verdict.slowdown),
            verdict.reason.clone(),
        ]);
    }
    table
}

pub(crate) fn gains(validation: &Validation) -> Table {
    let mut table = Table::new(&[
        ("codec", Left),
        ("plan", Left),
        ("predicted gain", Right),
        ("measured gain", Right),
        ("noise", Right),
        ("agree", Left),
    ]);
    for gain in &validation.gains {
        let tie = gain.measured.abs() <= gain.noise;
        table.row([
            gain.codec.name(),
            gain.label.clone(),
            signed_percent(gain.predicted),
            signed_percent(gain.measured),
            percent(gain.noise),
            if tie { "tie".to_owned() } else { yes(gain.agrees) },
        ]);
    }
    table
}

pub(crate) fn probes(validation: &Validation) -> Table {
    let mut table = Table::new(&[
        ("codec", Left),
        ("steps", Right),
        ("exact loss", Right),
        ("its loss", Right),
        ("steps to the exact loss", Right),
    ]);
    for probe in &validation.probes {
        let beyond = if probe.reached { "" } else { "more than " };
        table.row([
            probe.codec.name(),
            probe.steps.to_string(),
            format!("{:.4}", probe.exact_loss),
            format!("{:.4}", probe.loss),
            format!("{beyond}x {:.3}", probe.slowdown),
        ]);
    }
    table
}

pub(crate) fn network_links(network: &Network) -> Table {
    let mut table =
        Table::new(&[("link", Left), ("rate", Right), ("latency of its paths", Right), ("provenance", Left)]);
    for (index, link) in network.links.iter().enumerate() {
        let paths = network.paths.iter().flatten().filter(|path| path.links.contains(&(index as u32)));
        let latencies: Vec<f64> = paths.map(|path| path.latency_s.0).collect();
        let least = latencies.iter().copied().fold(f64::INFINITY, f64::min);
        let most = latencies.iter().copied().fold(0.0, f64::max);
        let latency = match latencies.len() {
            0 => "none".to_owned(),
            1 => Seconds(most).to_string(),
            _ => format!("{} to {}", Seconds(least), Seconds(most)),
        };
        table.row([link.name.clone(), link.bytes_per_s.to_string(), latency, link.provenance.to_string()]);
    }
    table
}

pub(crate) fn patterns(network: &Network) -> Table {
    let mut table = Table::new(&[
        ("collective of all devices", Left),
        ("size", Right),
        ("time", Right),
        ("spread", Right),
    ]);
    for timing in &network.patterns {
        table.row([
            timing.pattern.name(),
            timing.bytes.to_string(),
            timing.time.median_s.to_string(),
            format!("[{}, {}]", timing.time.low_s, timing.time.high_s),
        ]);
    }
    table
}
