//! Compares optimizers with sequences computed by hand from PyTorch's formulas.

use autodist_compute::optimizer::{AdamW, Sgd};
use autodist_compute::{Backend, Cpu, Region, RegionMut};

/// p = 1, gradients 0.5 then -0.25, learning rate 0.1.
///
/// Step 1: p ← 1 · (1 - 0.1 · 0.01) = 0.999; m = 0.05, v = 0.00025; m̂ = 0.5, v̂ = 0.25, so p ← 0.999 - 0.1.
/// Step 2: p ← 0.899 · 0.999 = 0.898101; m = 0.045 - 0.025 = 0.02, m̂ = 0.02 / 0.19;
/// v = 0.00024975 + 0.0000625 = 0.00031225, v̂ = v / 0.001999; p ← p - 0.1 m̂ / sqrt(v̂).
#[test]
fn adamw_follows_the_hand_worked_sequence() {
    let device = Cpu::<f64>::new();
    let adamw = AdamW { beta1: 0.9, beta2: 0.999, epsilon: 1e-8, weight_decay: 0.01, frozen_after: None };
    let (mut parameter, mut first, mut second) =
        (device.upload(&[7.0, 1.0]), device.zeros(2), device.zeros(2));
    // The gradient arrives doubled and is halved by its scale; element 0 is outside the region.
    for (step, gradient, expected) in [
        (1, 1.0, 0.899 + 2e-9),
        (2, -0.5, 0.898101 - 0.1 * (0.02 / 0.19) / (0.00031225f64 / 0.001999).sqrt()),
    ] {
        let gradient = device.upload(&[gradient]);
        adamw.step(
            &device,
            1,
            step,
            0.1,
            0.5,
            Region::start(&gradient),
            RegionMut::new(&mut parameter, 1),
            RegionMut::new(&mut first, 1),
            RegionMut::new(&mut second, 1),
            None,
        );
        assert!((parameter[1] - expected).abs() < 1e-8, "step {step}: {} is not {expected}", parameter[1]);
    }
    assert!((first[1] - 0.02).abs() < 1e-15 && (second[1] - 0.00031225).abs() < 1e-15);
    assert_eq!((parameter[0], first[0], second[0]), (7.0, 0.0, 0.0));
}

/// p = 2, gradient 1, momentum 0.9, decay 0.1, rate 0.5:
/// v = 1 + 0.2 = 1.2, p = 1.4; v = 1.08 + 1 + 0.14 = 2.22, p = 0.29.
#[test]
fn sgd_follows_the_hand_worked_sequence() {
    let device = Cpu::<f64>::new();
    let sgd = Sgd { momentum: 0.9, weight_decay: 0.1 };
    let (gradient, mut parameter, mut momentum) =
        (device.upload(&[1.0]), device.upload(&[2.0]), device.zeros(1));
    for expected in [1.4, 0.29] {
        sgd.step(
            &device,
            1,
            0.5,
            1.0,
            Region::start(&gradient),
            RegionMut::start(&mut parameter),
            RegionMut::start(&mut momentum),
            None,
        );
        assert!((parameter[0] - expected).abs() < 1e-12);
    }
}
