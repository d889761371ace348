//! Optimizers over regions of flat buffers; the caller chooses the region (a ZeRO shard, the matrices only).
//! Both follow PyTorch's semantics. On a mixed-precision device, `working` receives the updated parameters in
//! working precision.

use crate::backend::{AdamWStep, Backend, Region, RegionMut, SgdStep};

/// AdamW with decoupled weight decay (Loshchilov and Hutter, 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub epsilon: f64,
    pub weight_decay: f64,
    /// Update after which the second moments and their bias correction are frozen (1-bit Adam, 2102.02888).
    /// The authors do not correct bias at all. Frozen at its last value, the correction does not jump, and
    /// after a warm-up much longer than `1 / (1 - beta2)` it is 1. The bias correction of the momentum
    /// continues.
    pub frozen_after: Option<u64>,
}

impl AdamW {
    /// Update number `step` (the first is 1) of `len` elements, with gradients times `gradient_scale`.
    pub fn step<B: Backend>(
        &self,
        device: &B,
        len: usize,
        step: u64,
        learning_rate: f64,
        gradient_scale: f64,
        gradient: Region<'_, B>,
        parameter: RegionMut<'_, B>,
        first_moment: RegionMut<'_, B>,
        second_moment: RegionMut<'_, B>,
        working: Option<RegionMut<'_, B>>,
    ) {
        let correction = |beta: f64, step: u64| 1.0 - beta.powf(step as f64);
        let frozen = self.frozen_after.filter(|last| step > *last);
        let coefficients = AdamWStep {
            gradient_scale,
            beta1: self.beta1,
            beta2: if frozen.is_some() { 1.0 } else { self.beta2 },
            decay: 1.0 - learning_rate * self.weight_decay,
            rate: learning_rate / correction(self.beta1, step),
            root: correction(self.beta2, frozen.unwrap_or(step)).sqrt().recip(),
            epsilon: self.epsilon,
        };
        device.adamw_step(len, coefficients, gradient, parameter, first_moment, second_moment, working);
    }
}

/// Stochastic gradient descent with heavy-ball momentum; weight decay is added to the gradient.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sgd {
    pub momentum: f64,
    pub weight_decay: f64,
}

impl Sgd {
    /// One update of `len` elements; `momentum` starts at zero, so no step number is needed.
    pub fn step<B: Backend>(
        &self,
        device: &B,
        len: usize,
        learning_rate: f64,
        gradient_scale: f64,
        gradient: Region<'_, B>,
        parameter: RegionMut<'_, B>,
        momentum: RegionMut<'_, B>,
        working: Option<RegionMut<'_, B>>,
    ) {
        let coefficients = SgdStep {
            gradient_scale,
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            rate: learning_rate,
        };
        device.sgd_momentum_step(len, coefficients, gradient, parameter, momentum, working);
    }
}
