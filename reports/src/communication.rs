//! Tables of communication: collectives, and codecs.

use crate::table::{
    Align::{Left, Right},
    Table,
};
use crate::tables::yes;
use crate::words::{self, percent, signed_percent};
use autodist_spec::{Plan, Validation};

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
        ("of", Left),
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
            verdict.coded.name().to_owned(),
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
        ("of", Left),
        ("codec", Left),
        ("steps", Right),
        ("exact loss", Right),
        ("its loss", Right),
        ("steps to the exact loss", Right),
    ]);
    for probe in &validation.probes {
        table.row([
            probe.coded.name().to_owned(),
            probe.codec.name(),
            probe.steps.to_string(),
            format!("{:.4}", probe.exact_loss),
            format!("{:.4}", probe.loss),
            match probe.reached {
                true => words::measured_steps(probe.factor(), probe.noise),
                false => format!("more than x {:.3}", probe.slowdown),
            },
        ]);
    }
    table
}
