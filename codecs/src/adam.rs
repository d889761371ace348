//! 1-bit Adam (Tang et al., 2102.02888, algorithm 1): the sum as it is while the second moments settle, then signs of the
//! *momentum*, which is the same on all members before and after each step.
//!
//! The codec keeps the momentum itself and hands on the gradient that makes an optimizer's momentum the agreed one:
//! `m' = b m + (1 - b) g` solved for `g`. Whatever rounding the optimizer's copy differs by shrinks by `b` every step.

use crate::signs::Signs;
use crate::{Exchange, Report, vectorised};

#[derive(Debug)]
pub(crate) struct Adam {
    /// First steps, whose gradients travel as they are.
    warmup_steps: u64,
    steps: u64,
    /// The optimizer's beta1.
    decay: f32,
    momentum: Vec<f32>,
    signs: Signs,
}

impl Adam {
    pub fn new(elements: usize, warmup_steps: u32) -> Self {
        Self {
            warmup_steps: u64::from(warmup_steps),
            steps: 0,
            decay: 0.9,
            momentum: vec![0.0; elements],
            signs: Signs::new(elements),
        }
    }

    pub fn set_decay(&mut self, decay: f32) {
        self.decay = decay;
    }

    pub fn end_warmup(&mut self) {
        self.steps = self.warmup_steps;
    }

    pub fn state(&self) -> usize {
        self.momentum.len() + self.signs.state()
    }

    pub fn kept(&self) -> &[f32] {
        self.signs.kept()
    }

    pub fn reduce<X: Exchange>(
        &mut self,
        gradient: &mut [f32],
        exchange: &mut X,
        memory: bool,
    ) -> Result<Report, X::Error> {
        let (decay, rest) = (self.decay, 1.0 - self.decay);
        self.steps += 1;
        if self.steps <= self.warmup_steps {
            exchange.sum(gradient)?;
            vectorised(|| {
                self.momentum.iter_mut().zip(&*gradient).for_each(|(m, g)| *m = decay * *m + rest * g);
            });
            return Ok(Report::LOSSLESS);
        }
        // Every member's part of the new momentum: they add up to it.
        let own = decay / exchange.size() as f32;
        vectorised(|| {
            gradient.iter_mut().zip(&self.momentum).for_each(|(g, m)| *g = own * m + rest * *g);
        });
        let report = self.signs.reduce(gradient, exchange, memory)?;
        let inverse = 1.0 / rest;
        vectorised(|| {
            for (g, m) in gradient.iter_mut().zip(&mut self.momentum) {
                // What had no gradient in all of the warm-up has no second moment to be divided by: it stays.
                let agreed = if *m == 0.0 { 0.0 } else { *g };
                *g = (agreed - decay * *m) * inverse;
                *m = agreed;
            }
        });
        Ok(report)
    }
}
