//! The readers of all external input, as `libFuzzer` calls them (`scripts/fuzz.sh`): any bytes are accepted,
//! or refused with an error that names the file. An accepted document that is written again is read as the
//! same value.
//!
//! The same kinds of files go through the whole program, a bounded number of times, in
//! `tests/it/mutations.rs`.

use autodist_analytic::measured::MeasuredPlans;
use autodist_analytic::{Calibration, sets, table};
use autodist_executor::hosts;
use autodist_exporters::{Target, import};
use autodist_hardware::Catalogue;
use autodist_spec::parse::{Check, json};
use autodist_spec::{
    Cluster, InputError, Job, ModelSpec, Plan, Profile, RunRecord, Validation, catalog, huggingface, to_json,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt::Debug;

const FILE: &str = "mutant";

/// The error names the file.
fn refused(error: &InputError) {
    let message = error.to_string();
    assert!(message.contains(FILE), "names no file: {message}");
}

fn outcome<T>(read: Result<T, InputError>) -> Option<T> {
    read.map_err(|error| refused(&error)).ok()
}

fn document<T: Check + Serialize + DeserializeOwned + PartialEq + Debug>(bytes: &[u8]) {
    let Some(value) = outcome(json::<T>(FILE, bytes)) else { return };
    let text = to_json(&value);
    assert_eq!(
        json::<T>(FILE, text.as_bytes()).as_ref(),
        Ok(&value),
        "what is written reads as something else"
    );
}

pub fn plan(bytes: &[u8]) {
    document::<Plan>(bytes);
}

pub fn profile(bytes: &[u8]) {
    document::<Profile>(bytes);
}

pub fn run(bytes: &[u8]) {
    document::<RunRecord>(bytes);
}

pub fn validation(bytes: &[u8]) {
    document::<Validation>(bytes);
}

pub fn model(bytes: &[u8]) {
    document::<ModelSpec>(bytes);
}

pub fn hugging_face(bytes: &[u8]) {
    outcome(huggingface::model_from_config(FILE, "model", bytes));
}

pub fn cluster(bytes: &[u8]) {
    outcome(Cluster::read(FILE, bytes, Catalogue::shipped().devices()));
}

pub fn cluster_short_form(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // The caller adds the name of the flag to the error.
    outcome(
        Cluster::from_short_form_with(text, Catalogue::shipped().devices())
            .map_err(|error| error.in_file(FILE)),
    );
}

pub fn job(bytes: &[u8]) {
    outcome(Job::read(FILE, bytes));
}

pub fn devices(bytes: &[u8]) {
    outcome(Catalogue::shipped().with_devices(FILE, bytes));
}

pub fn calibration(bytes: &[u8]) {
    let Some((calibration, _)) = outcome(Calibration::read(FILE, bytes)) else { return };
    let text = calibration.to_toml();
    assert!(Calibration::read(FILE, text.as_bytes()).is_ok(), "what is written cannot be read:\n{text}");
}

pub fn run_table(bytes: &[u8]) {
    outcome(table::read(bytes, FILE, &Catalogue::shipped()));
}

pub fn choice_sets(bytes: &[u8]) {
    outcome(sets::read(bytes, FILE));
}

pub fn measured_plans(bytes: &[u8]) {
    if let Some(plans) = outcome(MeasuredPlans::read(FILE, bytes)) {
        // Each is predicted, or left out with a reason.
        assert!(
            plans.estimate().iter().all(|plan| plan.as_ref().err().is_none_or(|reason| !reason.is_empty()))
        );
    }
}

pub fn hosts(bytes: &[u8]) {
    outcome(hosts::parse(FILE, bytes));
}

/// A trainer's own file, without and with a given model.
pub fn trainer(target: Target, bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for model in [None, catalog::model("tiny-llama").ok()] {
        // The caller adds the name of the file to the error.
        outcome(import(target, text, model).map_err(|error| error.in_file(FILE)));
    }
}

/// Input to a listening rank or launcher, frame by frame.
#[cfg(fuzzing)]
pub fn wire(bytes: &[u8]) {
    autodist_communication::fuzzing::hear(bytes);
}
