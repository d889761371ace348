use super::shape::{ParameterLayout, Sizes};
use crate::backend::{Backend, Region, RegionMut, TableShape};
use autodist_spec::model::{ModelSpec, share};
use std::ops::Range;

/// Token embedding with this rank's share of the vocabulary, and learned positions if the model has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    tokens: usize,
    micro_batch: usize,
    table: TableShape,
    /// Offsets in the layer's parameters.
    token_table: usize,
    position_table: Option<usize>,
    /// Rows in which this rank's `out` includes the positions.
    contributed_rows: Range<usize>,
    /// Rows over which this rank sums the positions' gradient.
    position_rows: Range<usize>,
}

impl Embedding {
    pub(super) fn new(model: &ModelSpec, sizes: &Sizes, layout: &ParameterLayout) -> Self {
        Self {
            tokens: sizes.tokens,
            micro_batch: sizes.micro_batch,
            table: vocabulary_share(model, sizes),
            token_table: layout.offset("embedding.weight"),
            position_table: layout.find("position.weight"),
            contributed_rows: sizes.contributed_rows.clone(),
            position_rows: sizes.rows.clone(),
        }
    }

    /// This rank's partial sum of the embedded tokens, `[tokens, hidden]`; ids are in the order of the rows.
    pub fn forward<B: Backend>(
        &self,
        device: &B,
        parameters: Region<'_, B>,
        tokens: &B::Indices,
    ) -> B::Buffer {
        let mut out = device.uninitialised(self.tokens * self.table.width);
        device.gather_rows(self.table, tokens, parameters.skip(self.token_table), RegionMut::start(&mut out));
        if let Some(table) = self.position_table {
            let rows = &self.contributed_rows;
            device.add_positions(
                rows.len() / self.micro_batch,
                self.micro_batch,
                self.table.width,
                parameters.skip(table + self.position_offset(rows)),
                RegionMut::new(&mut out, rows.start * self.table.width),
            );
        }
        out
    }

    /// Adds the tables' gradients; `dy` has all rows.
    pub fn backward<B: Backend>(
        &self,
        device: &B,
        mut gradients: RegionMut<'_, B>,
        tokens: &B::Indices,
        dy: &B::Buffer,
    ) {
        device.scatter_add_rows(self.table, tokens, Region::start(dy), gradients.skip(self.token_table));
        if let Some(table) = self.position_table {
            let rows = &self.position_rows;
            device.sum_positions(
                rows.len() / self.micro_batch,
                self.micro_batch,
                self.table.width,
                Region::new(dy, rows.start * self.table.width),
                gradients.skip(table + self.position_offset(rows)),
            );
        }
    }

    /// Offset of the first row's position in the position table.
    fn position_offset(&self, rows: &Range<usize>) -> usize {
        rows.start / self.micro_batch * self.table.width
    }
}

/// The rows of a vocabulary-parallel table that this rank holds.
pub(super) fn vocabulary_share(model: &ModelSpec, sizes: &Sizes) -> TableShape {
    let rows = share(model.vocab.into(), sizes.shard.rank.into(), sizes.shard.degree.into());
    TableShape { first: rows.start as usize, rows: (rows.end - rows.start) as usize, width: sizes.hidden }
}
