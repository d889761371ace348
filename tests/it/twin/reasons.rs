//! Why the two models differ where they differ much: every reason says to which layouts it applies, and how much the
//! program's figure exceeds the closed form's by it.

use super::cells::Cells;
use super::{Figure, Pair, parameters};
use autodist_program::Transfer;
use autodist_spec::{Bytes, Collective, LayerKind};

pub struct Reason {
    pub name: &'static str,
    pub figure: Figure,
    pub applies: fn(&Pair) -> bool,
    /// Seconds or bytes.
    pub amount: fn(&Pair) -> f64,
}

pub const REASONS: [Reason; 6] = [
    // A program scatters fp32 gradients. The closed form takes a scatter for as long as a gather, which is in 16 bits.
    Reason {
        name: "ZeRO-3 scatters gradients in fp32",
        figure: Figure::Time,
        applies: |pair| zero(pair, 3) && !piped(pair),
        amount: |pair| {
            let block = Block::of(pair);
            let fp32 = block.backward.max(block.gather + block.scatter);
            let narrow = block.backward.max(2.0 * block.gather);
            pair.run.micro_batches() * blocks(pair) * (fp32 - narrow)
        },
    },
    // A program gathers the embedding before its first layer and scatters its gradient after its last one, with nothing
    // beside them. The closed form moves blocks alone, the first and the last of them exposed once a step.
    Reason {
        name: "ZeRO-3 moves the embedding in every micro-batch",
        figure: Figure::Time,
        applies: |pair| zero(pair, 3) && !piped(pair),
        amount: |pair| {
            let table = Bytes(
                pair.case.model.layer_parameters(LayerKind::Embedding) / u64::from(pair.run.layout.tensor),
            );
            let seconds = transfer(pair, Collective::AllGather, table * 2)
                + transfer(pair, Collective::ReduceScatter, table * 4);
            pair.run.micro_batches() * seconds - 2.0 * Block::of(pair).gather
        },
    },
    // In a program every backward pass of a chunk ends with its last scatter, and so later ranks of the pipeline wait.
    // The closed form scatters after the last micro-batch.
    Reason {
        name: "ZeRO-2 and 3 scatter in every pass of a pipeline",
        figure: Figure::Time,
        applies: |pair| zero(pair, 2) && piped(pair),
        amount: |pair| {
            let Block { gather, scatter, backward, .. } = Block::of(pair);
            let beside = if zero(pair, 3) { gather } else { 0.0 };
            let exposed = scatter + (blocks(pair) - 1.0) * (scatter + beside - backward).max(0.0);
            passes(pair) * exposed
        },
    },
    // A program gathers a chunk's parameters for every pass. The closed form keeps them until the last micro-batch.
    Reason {
        name: "ZeRO-3 gathers in every pass of a pipeline",
        figure: Figure::Time,
        applies: |pair| zero(pair, 3) && piped(pair),
        amount: |pair| {
            let Block { gather, forward, .. } = Block::of(pair);
            let exposed = 2.0 * gather + (blocks(pair) - 1.0) * (gather - forward).max(0.0);
            passes(pair) * exposed - pair.analytic.gather_s
        },
    },
    // A program holds the whole fp32 gradients of two blocks, one that is written and one that is scattered. The
    // closed form has one of FSDP's in 16 bits, or in a pipeline all of them and all parameters; of Megatron's none.
    Reason {
        name: "two blocks' whole gradients in fp32",
        figure: Figure::Memory,
        applies: |pair| zero(pair, 2),
        amount: |pair| {
            let held = 2.0 * 4.0 * block_elements(pair);
            let closed = match (zero(pair, 3), piped(pair)) {
                (false, _) => 0.0,
                (true, false) => 2.0 * block_elements(pair),
                // Both hold two gathered blocks at least.
                (true, true) => pair.analytic_memory.buffers - 4.0 * block_elements(pair),
            };
            held - closed
        },
    },
    // The closed form adds logits to what a block's backward pass holds. A program frees them before, so that the
    // larger of the two counts.
    Reason {
        name: "logits and a block's backward pass at one moment",
        figure: Figure::Memory,
        applies: |pair| pair.analytic_memory.logits > 0.0,
        amount: |pair| -pair.analytic_memory.logits.min(cells(pair).passing()),
    },
];

fn zero(pair: &Pair, stage: u8) -> bool {
    pair.run.layout.zero_stage >= stage
}

fn piped(pair: &Pair) -> bool {
    pair.run.layout.pipeline > 1
}

fn cells(pair: &Pair) -> Cells<'_> {
    Cells { run: &pair.run, parameters: parameters() }
}

/// Blocks of a pipeline rank.
fn blocks(pair: &Pair) -> f64 {
    pair.run.blocks().0
}

/// Passes, each way, between the first and the last of a step that follow each other.
fn passes(pair: &Pair) -> f64 {
    pair.run.micro_batches() + f64::from(pair.run.layout.pipeline) - 1.0
}

fn block_elements(pair: &Pair) -> f64 {
    let shape = &pair.run.shape;
    (shape.attention_parameters() + shape.mlp_parameters()) / f64::from(pair.run.layout.tensor)
}

fn transfer(pair: &Pair, kind: Collective, bytes: Bytes) -> f64 {
    let (group, stride) = pair.program.transfer_group(Transfer::Reduce);
    cells(pair).collective(kind, group, stride, bytes)
}

/// Seconds of one block's passes and transfers.
struct Block {
    forward: f64,
    backward: f64,
    gather: f64,
    scatter: f64,
}

impl Block {
    fn of(pair: &Pair) -> Self {
        let (forward, backward) = cells(pair).block();
        let elements = block_elements(pair) as u64;
        Self {
            forward,
            backward,
            gather: transfer(pair, Collective::AllGather, Bytes(2 * elements)),
            scatter: transfer(pair, Collective::ReduceScatter, Bytes(4 * elements)),
        }
    }
}
