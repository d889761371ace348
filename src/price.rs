//! `--price`: what devices cost per hour.

use crate::cli::JobArgs;
use crate::failure::Failure;
use crate::{input, output};
use autodist_hardware::Catalogue;
use autodist_spec::{Check, Cluster, InputError, NodeGroup, catalog, parse, quantity};
use std::collections::BTreeMap;
use std::path::Path;

/// Sets the prices of a cluster's devices from the text of `--price`: one number for all devices, `device=number`
/// for each, separated by commas, or the path of a TOML file with a table of them. Devices of the cluster that the
/// text does not name keep the price of the cluster file.
///
/// # Errors
/// Text that is none of these, or names no device of the cluster.
pub fn set(cluster: &mut Cluster, text: &str, catalogue: &Catalogue) -> Result<(), Failure> {
    if let Ok(usd) = quantity::money(text) {
        cluster.nodes.iter_mut().for_each(|group| group.usd_per_device_hour = Some(usd));
    } else {
        let prices = if text.contains('=') { of_list(text, catalogue)? } else { of_file(text)? };
        let of = |group: &NodeGroup| {
            let own = &group.device.name;
            let read =
                |name: &str| catalog::device_of(catalogue.devices(), name).map(|(device, _)| device.name);
            let is = |name: &str| name == own || read(name).is_ok_and(|read| read == *own);
            let exact = prices.get(own);
            exact.or_else(|| prices.iter().find(|(name, _)| is(name)).map(|(_, usd)| usd)).copied()
        };
        let found: Vec<_> = cluster.nodes.iter().map(of).collect();
        if found.iter().all(Option::is_none) {
            let devices: Vec<_> = cluster.nodes.iter().map(|group| group.device.name.as_str()).collect();
            let names: Vec<_> = prices.keys().map(String::as_str).collect();
            let problem =
                format!("has prices of {}, but the cluster has {}", names.join(", "), devices.join(", "));
            return Err(InputError::new("--price", text, problem)
                .hint(format!("give the price of one device for one hour, e.g. `--price {}=2.5`", devices[0]))
                .into());
        }
        for (group, usd) in cluster.nodes.iter_mut().zip(found) {
            group.usd_per_device_hour = usd.or(group.usd_per_device_hour);
        }
    }
    cluster.check().map_err(|error| InputError { field: "--price".to_owned(), ..error })?;
    Ok(())
}

/// `h100=2.5,b200=4`.
fn of_list(text: &str, catalogue: &Catalogue) -> Result<BTreeMap<String, f64>, Failure> {
    let entry = |part: &str| {
        let (name, usd) = part.split_once('=')?;
        Some((name.trim().to_owned(), quantity::money(usd).ok()?))
    };
    let mut list = BTreeMap::new();
    for part in text.split(',') {
        let (name, usd) = entry(part).ok_or_else(|| wrong(text))?;
        if list.insert(name.clone(), usd).is_some() {
            let error = InputError::new("--price", text, format!("has two prices of {name}"));
            return Err(error.hint("give each device one price").into());
        }
        catalog::device_of(catalogue.devices(), &name)
            .map_err(|error| InputError { field: "--price".to_owned(), ..error })?;
    }
    Ok(list)
}

/// A TOML file of lines such as `"h100-80gb-sxm" = 2.5`.
fn of_file(text: &str) -> Result<BTreeMap<String, f64>, Failure> {
    let path = Path::new(text);
    if !path.exists() && !text.ends_with(".toml") {
        return Err(wrong(text).into());
    }
    let value = parse::toml_value(text, &input::bytes(path, "price")?, "price")?;
    let entries = value.as_object().into_iter().flatten();
    let list: Result<_, InputError> = entries
        .map(|(name, usd)| {
            let usd = usd.as_f64().ok_or_else(|| {
                InputError::new(name, usd, "must be a number: US dollars for one device and hour")
                    .hint("write a line for each device, e.g. `\"h100-80gb-sxm\" = 2.5`")
                    .in_file(text)
            })?;
            Ok((name.clone(), usd))
        })
        .collect();
    Ok(list?)
}

fn wrong(text: &str) -> InputError {
    InputError::new("--price", text, "is not a price").hint(
        "give US dollars for one device and hour: `2.5`, `h100=2.5,b200=4`, or a TOML file with such lines",
    )
}

/// Says that a price has no effect on a job without the tokens of its training.
pub fn note_without_tokens(price: Option<&String>, job: &JobArgs) {
    if price.is_some() && job.tokens.is_none() && job.job.is_none() {
        output::note("--price has no effect without --tokens: it is for the cost of a whole training");
    }
}
