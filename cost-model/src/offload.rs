//! Activations of blocks that are in the host's memory between forward and backward pass. On the device are those of
//! the block that runs, and of one more, which is copied meanwhile.

use crate::memory::Account;
use autodist_program::BodyKind;
use autodist_spec::{LayerKind, ModelSpec};

/// Live activations when each layer of a body begins.
#[derive(Default)]
pub(crate) struct Begins(Vec<(usize, i64)>);

impl Begins {
    pub fn note(&mut self, layer: usize, account: &mut Account) {
        self.0.push((layer, *account.activations()));
    }

    /// By how many bytes each layer changes the live activations; nothing for embedding and head, whose activations
    /// stay. `end` are those after the body.
    pub fn growths(self, model: &ModelSpec, end: i64) -> Vec<i64> {
        let ends = self.0.iter().skip(1).map(|(_, bytes)| *bytes).chain([end]);
        let of_block = |layer: usize| i64::from(model.kind(layer) == LayerKind::Block);
        self.0.iter().zip(ends).map(|((layer, begin), end)| of_block(*layer) * (end - begin)).collect()
    }
}

/// Copies between device and host while a body runs.
pub(crate) struct Copied<'a> {
    forward: bool,
    growths: &'a [i64],
    /// Layers that have begun.
    begun: usize,
}

impl<'a> Copied<'a> {
    pub fn of(kind: BodyKind, growths: &'a [i64]) -> Self {
        Self { forward: matches!(kind, BodyKind::Forward { .. }), growths, begun: 0 }
    }

    fn growth(&self, index: usize) -> i64 {
        self.growths.get(index).copied().unwrap_or(0)
    }

    /// The next layer begins.
    pub fn enter(&mut self, account: &mut Account) {
        let index = self.begun;
        self.begun += 1;
        *account.activations() -= match (self.forward, index) {
            // Those of the block before the last one have left.
            (true, 0 | 1) => 0,
            (true, _) => self.growth(index - 2),
            // Its own and the next one's have arrived.
            (false, 0) => self.growth(0) + self.growth(1),
            (false, _) => self.growth(index + 1),
        };
    }

    /// After a forward pass, those of the last two layers leave, too.
    pub fn finish(&self, account: &mut Account) {
        if self.forward {
            let last = self.growths.len().saturating_sub(2);
            *account.activations() -= self.growths[last..].iter().sum::<i64>();
        }
    }
}
