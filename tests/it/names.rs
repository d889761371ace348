//! Files and messages have the same names of things: serde writes the former, strum the latter.

use autodist_analytic::Trainer;
use autodist_spec::{
    Collective, DeviceKind, Engine, Hyperparameter, Pass, Precision, Provenance, Recompute, ScheduleKind,
};
use serde::Serialize;
use strum::VariantArray;

fn check<T: VariantArray + Serialize + Copy, N: AsRef<str>>(name: fn(T) -> N) {
    assert!(!T::VARIANTS.is_empty());
    for value in T::VARIANTS {
        // Some collectives are not in files.
        if let Ok(written) = serde_json::to_value(value) {
            assert_eq!(written, name(*value).as_ref());
        }
    }
}

#[test]
fn values_are_called_in_messages_as_in_files() {
    check(Collective::key);
    check(DeviceKind::name);
    check(Engine::name);
    check(Hyperparameter::name);
    check(Pass::name);
    check(Precision::name);
    check(|provenance: Provenance| provenance.to_string());
    check(Recompute::name);
    check(ScheduleKind::name);
    check(Trainer::name);
}
