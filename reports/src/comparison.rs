//! Clusters compared: text, and the curves of their sizes.

use crate::ReportError;
use crate::figures::scaling;
use crate::screen::Screen;
use crate::table::{Align, Table};
use crate::training::{cost, rounded, time, tokens};
use crate::view::{Rich, Style, TerminalView};
use crate::words::{count, percent, with_spread};
use autodist_spec::{BestOn, ClusterComparison, ComparedCluster, Difference};

/// Twice the devices that are not this many times as fast are hardly worth it.
const WORTH: f64 = 1.5;

/// The answer, and a row for each cluster; with `sizes`, for each of its sizes.
pub fn text(comparison: &ClusterComparison, sizes: bool, view: &TerminalView) -> String {
    let mut screen = Screen::new(view);
    if sizes {
        growth(&mut screen, comparison);
        bars(&mut screen, comparison);
    } else {
        differences(&mut screen, &comparison.faster, ["fastest", "takes", "as long", "faster"]);
        differences(&mut screen, &comparison.cheaper, ["cheapest", "costs", "as much", "cheaper"]);
        bars(&mut screen, comparison);
    }
    networks(&mut screen, comparison, sizes);
    let job = &comparison.job;
    let trained =
        if job.trainable.is_all() { String::new() } else { format!(" ({})", job.trainable.label()) };
    screen.line(
        "for",
        format!(
            "{}{trained} in {}: {} sequences of {} tokens per step",
            comparison.model,
            job.precision,
            count(job.global_batch.into()),
            count(job.seq_len.into())
        ),
    );
    if sizes {
        for curve in comparison.clusters.chunk_by(|one, next| one.devices < next.devices) {
            screen.section(&name(comparison, &curve[0]), &table(curve, true));
        }
    } else {
        screen.blank();
        screen.table(&table(&comparison.clusters, false));
    }
    refused(&mut screen, comparison);
    screen.finish()
}

/// `fastest    a: b takes 1.12 times as long (0.91 to 1.38, …): …`.
fn differences(screen: &mut Screen, list: &[Difference], [label, verb, much, better]: [&str; 4]) {
    for (index, one) in list.iter().enumerate() {
        let mut text = Rich::paint(Style::Strong, &one.cluster);
        let verdict = if one.is_clear() {
            format!("{} is {better}", one.cluster)
        } else {
            "the predictions cannot tell them apart".to_owned()
        };
        text += format!(
            ": {} {verb} {:.2} times {much} ({:.2} to {:.2} with the error bars of both): {verdict}",
            one.than, one.times, one.times_low, one.times_high
        )
        .as_str();
        screen.line(if index == 0 { label } else { "" }, text);
    }
}

/// The basis of the error bars, once if it is the same.
fn bars(screen: &mut Screen, comparison: &ClusterComparison) {
    let of = |one: &BestOn| {
        let bar = percent(one.step_time_spread_s / one.step_time_s);
        format!("± {bar}: {}", one.error_bar_of)
    };
    let mut all: Vec<(&str, String)> = comparison
        .clusters
        .iter()
        .filter_map(|one| Some((one.device.as_str(), of(one.best.as_ref()?))))
        .collect();
    all.dedup();
    let same = all.iter().all(|(_, bar)| *bar == all[0].1);
    all.truncate(if same { 1 } else { all.len() });
    for (index, (device, bar)) in all.iter().enumerate() {
        let sentence = if same { bar.clone() } else { format!("{device}: {bar}") };
        screen.line(if index == 0 { "error bar" } else { "" }, sentence);
    }
}

/// The networks between nodes, of each cluster or of all its sizes.
fn networks(screen: &mut Screen, comparison: &ClusterComparison, sizes: bool) {
    let name = |one: &ComparedCluster| if sizes { one.device.clone() } else { one.cluster.clone() };
    let of = |one: &ComparedCluster| Some((name(one), one.network.clone()?));
    let mut all: Vec<(String, String)> = comparison.clusters.iter().filter_map(of).collect();
    all.dedup();
    for (index, (device, network)) in all.iter().enumerate() {
        screen.line(if index == 0 { "network" } else { "" }, format!("{device}: {network}"));
    }
}

/// How the throughput of a device changes from the smallest to the largest size, by kind of devices.
fn growth(screen: &mut Screen, comparison: &ClusterComparison) {
    for (name, sizes) in curves(comparison) {
        let (Some(first), Some(last)) = (sizes.first(), sizes.last()) else { continue };
        let part = last.1.tokens_per_s_per_device / first.1.tokens_per_s_per_device;
        let mut sentence = format!(
            "{name}: {} tokens/s per device on {}, {} on {}: {}",
            rounded(first.1.tokens_per_s_per_device),
            count(first.0.into()),
            rounded(last.1.tokens_per_s_per_device),
            count(last.0.into()),
            percent(part)
        );
        let little = |pair: &&[(u32, &BestOn)]| pair[1].1.step_time_s.0 > pair[0].1.step_time_s.0 / WORTH;
        if let Some(pair) = sizes.windows(2).find(little) {
            let gain = pair[0].1.step_time_s / pair[1].1.step_time_s;
            sentence += &format!(
                "; {} devices are only {gain:.2} times as fast as {}",
                count(pair[1].0.into()),
                count(pair[0].0.into())
            );
        }
        screen.line("scaling", sentence);
    }
}

/// The device of a cluster whose sizes are compared, or the cluster where another one has the same device.
fn name(comparison: &ClusterComparison, first: &ComparedCluster) -> String {
    let curves = comparison.clusters.chunk_by(|one, next| one.devices < next.devices);
    let alike = curves.filter(|curve| curve[0].device == first.device).count();
    if alike > 1 { first.cluster.clone() } else { first.device.clone() }
}

/// The sizes of each kind of cluster that have a plan, with its name. Sizes of one cluster rise.
pub(crate) fn curves(comparison: &ClusterComparison) -> Vec<(String, Vec<(u32, &BestOn)>)> {
    let mut curves = Vec::new();
    for curve in comparison.clusters.chunk_by(|one, next| one.devices < next.devices) {
        let sizes = curve.iter().filter_map(|one| Some((one.devices, one.best.as_ref()?))).collect();
        curves.push((name(comparison, &curve[0]), sizes));
    }
    curves
}

/// A row for each cluster; `sizes` of one cluster are named by their numbers of devices alone.
fn table(clusters: &[ComparedCluster], sizes: bool) -> Table {
    let trainings = || clusters.iter().filter_map(|one| one.best.as_ref()?.training);
    let (trained, priced) = (trainings().next().is_some(), trainings().any(|one| one.cost_usd.is_some()));
    let mut columns = vec![("devices", Align::Right)];
    if !sizes {
        columns.insert(0, ("cluster", Align::Left));
    }
    columns.push(("step time", Align::Right));
    columns.push(("tokens/s/device", Align::Right));
    columns.push(("memory", Align::Right));
    if trained {
        columns.push(("time", Align::Right));
    }
    if priced {
        columns.push(("cost", Align::Right));
    }
    columns.push(("strategy", Align::Left));
    let mut table = Table::new(&columns);
    for one in clusters {
        let mut row = if sizes { Vec::new() } else { vec![one.cluster.clone()] };
        row.push(count(one.devices.into()));
        match &one.best {
            None => row.resize(columns.len(), "-".to_owned()),
            Some(best) => {
                row.push(with_spread(best.step_time_s, best.step_time_spread_s));
                row.push(rounded(best.tokens_per_s_per_device));
                row.push(best.peak_memory_bytes.to_string());
                let training = best.training;
                if trained {
                    row.push(training.map_or_else(String::new, |t| time(t.time_s, t.time_spread_s)));
                }
                if priced {
                    let usd = training.and_then(|t| Some(cost(t.cost_usd?, t.cost_spread_usd?)));
                    row.push(usd.unwrap_or_default());
                }
                row.push(best.strategy.clone());
            }
        }
        table.row(row);
    }
    table
}

/// Why clusters have no plan.
fn refused(screen: &mut Screen, comparison: &ClusterComparison) {
    let reasons = comparison.clusters.iter().filter_map(|one| Some((one, one.refused.as_ref()?)));
    for (index, (_, why)) in reasons.enumerate() {
        if index == 0 {
            screen.blank();
        }
        let why: Vec<&str> = why.lines().filter(|line| !line.starts_with("hint: ")).take(3).collect();
        screen.line(if index == 0 { "no plan" } else { "" }, crate::words::clean(&why.join(" ")));
    }
}

/// The curves of the sizes: tokens per second and device, against the number of devices (PNG).
///
/// # Errors
/// A fault of the drawing library.
pub fn figure(comparison: &ClusterComparison) -> Result<Vec<u8>, ReportError> {
    let trained = comparison.job.training_tokens.map(tokens);
    scaling::png(&comparison.model, trained.as_deref(), &curves(comparison))
}
