//! 1-bit Adam (Tang et al., 2102.02888, algorithm 1): an uncompressed all-reduce while the second moments
//! settle, then signs of the *momentum*, which is the same on all members before and after each step.
//!
//! The codec keeps the momentum itself and returns the gradient that gives the optimizer the agreed momentum:
//! `m' = b m + (1 - b) g` solved for `g`. Rounding differences of the optimizer's copy shrink by `b` every
//! step.

use crate::arithmetic::{Arithmetic, Part, PartMut};
use crate::host::vectorised;
use crate::signs::Signs;
use crate::{CodingQuality, Exchange};

pub(crate) struct Adam<A: Arithmetic> {
    /// First steps, whose gradients are sent uncompressed.
    warmup_steps: u64,
    steps: u64,
    /// The optimizer's beta1.
    decay: f32,
    momentum: A::Owned,
    signs: Signs<A>,
}

impl<A: Arithmetic> Adam<A> {
    pub fn new(on: &A, elements: usize, warmup_steps: u32) -> Self {
        Self {
            warmup_steps: u64::from(warmup_steps),
            steps: 0,
            decay: 0.9,
            momentum: on.zeros(elements),
            signs: Signs::new(on, elements),
        }
    }

    pub fn set_decay(&mut self, decay: f32) {
        self.decay = decay;
    }

    pub fn end_warmup(&mut self) {
        self.steps = self.warmup_steps;
    }

    pub fn state(&self) -> usize {
        Part::<A>::whole(&self.momentum).len() + self.signs.state()
    }

    pub fn kept(&self) -> &A::Owned {
        self.signs.kept()
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        on: &A,
        mut gradient: PartMut<'_, A>,
        exchange: &mut X,
        memory: bool,
    ) -> Result<CodingQuality, X::Error> {
        let (decay, rest) = (self.decay, 1.0 - self.decay);
        self.steps += 1;
        if self.steps <= self.warmup_steps {
            on.on_host(gradient.again(), |values| exchange.sum(values))?;
            on.mix(rest, gradient.read(), decay, PartMut::whole(&mut self.momentum));
            return Ok(CodingQuality::LOSSLESS);
        }
        // Each member's part of the new momentum; the all-reduce adds them up.
        on.mix(decay / exchange.size() as f32, Part::whole(&self.momentum), rest, gradient.again());
        let report = self.signs.reduce(on, gradient.again(), exchange, memory)?;
        on.agree(decay, gradient, PartMut::whole(&mut self.momentum));
        Ok(report)
    }
}

/// Turns a new momentum into the gradient that leads there from the old one.
pub(crate) fn agree(decay: f32, gradient: &mut [f32], momentum: &mut [f32]) {
    let inverse = 1.0 / (1.0 - decay);
    vectorised(|| {
        for (g, m) in gradient.iter_mut().zip(momentum) {
            // Elements without a gradient in the whole warm-up have no second moment to divide by: they stay
            // unchanged.
            let agreed = if *m == 0.0 { 0.0 } else { *g };
            *g = (agreed - decay * *m) * inverse;
            *m = agreed;
        }
    });
}
