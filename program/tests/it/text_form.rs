//! The text of a program is complete: any change of a program changes its text.

use crate::common;

use autodist_program::{
    Body, BodyKind, Bucket, BucketLayer, Instruction, Mesh, Message, MessageKind, Op, Operand, Program,
    RankClass, RankProgram, Residence, TensorCollective, Transfer,
};
use autodist_spec::{
    Activation, Addition, Algorithm, BaseBits, BlockRun, BucketReduction, Bytes, Codec, Communication,
    Experts, Latent, LayerTraining, ModelSpec, Norm, ParallelStrategy, Pass, Positions, Precision, Recompute,
    Reduction, ScheduleKind, Segment, Stage,
};
use common::cases::{self, ALGORITHMS};
use common::{every, text, variant, variants};
use std::collections::BTreeSet;

/// The programs in which everything is changed; together they have every instruction. (The others pass as
/// well, but take half a minute.)
const CHANGED: [&str; 8] = [
    "ep2-cp2-dp2-zero1-recompute-full",
    "cp2-recompute-full",
    "dp4-tp2-pp2-hybrid-everything",
    "zero1-hybrid",
    "tied-tp2-pp2-sp",
    "tp2-uneven-vocabulary",
    "pp2-interleaved-v2-m4",
    "codec-by-bucket",
];

/// A value with each of the given fields changed, one at a time. All fields must be named, unchanged ones
/// after `;`.
macro_rules! changes {
    ($kind:ident { $($field:ident => $others:expr),* $(; $($kept:ident),*)? } of $value:expr) => {{
        let value = $value.to_owned();
        let mut list = Vec::new();
        {
            let $kind { $($field: _,)* $($($kept: _,)*)? } = &value;
        }
        $(for other in $others {
            let mut changed = value.clone();
            changed.$field = other;
            list.push((stringify!($field).to_owned(), changed));
        })*
        list
    }};
}

/// Changes of one value: a description, and the changed value.
type Changes<T> = Vec<(String, T)>;

/// All values of a list but that one.
fn but<T: PartialEq>(values: impl IntoIterator<Item = T>, one: &T) -> Vec<T> {
    values.into_iter().filter(|value| value != one).collect()
}

/// Turns changes of a field's value into changes of the struct that holds it.
fn within<T: Clone, U>(what: &str, whole: &T, changes: Changes<U>, put: impl Fn(&mut T, U)) -> Changes<T> {
    let changed = changes.into_iter().map(|(name, part)| {
        let mut changed = whole.clone();
        put(&mut changed, part);
        (format!("{what}.{name}"), changed)
    });
    changed.collect()
}

/// A list with an item removed, an item doubled, two neighbours swapped; and with changes of each item.
fn of_list<T: Clone + PartialEq>(list: &[T], change: impl Fn(&T) -> Changes<T>) -> Changes<Vec<T>> {
    let mut changes = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let mut without = list.to_vec();
        without.remove(index);
        changes.push((format!("[{index}] gone"), without));
        let mut twice = list.to_vec();
        twice.insert(index, item.clone());
        changes.push((format!("[{index}] twice"), twice));
        if list.get(index + 1).is_some_and(|next| next != item) {
            let mut exchanged = list.to_vec();
            exchanged.swap(index, index + 1);
            changes.push((format!("[{index}] after the next"), exchanged));
        }
        changes.extend(within(&format!("[{index}]"), &list.to_vec(), change(item), |list, item| {
            list[index] = item;
        }));
    }
    changes
}

fn numbers(list: &[usize]) -> Changes<Vec<usize>> {
    of_list(list, |number| vec![("number".to_owned(), number + 1)])
}

fn recomputes(one: Recompute) -> Vec<Recompute> {
    but(every!(Recompute: None, Selective, Full), &one)
}

fn algorithms(one: Algorithm) -> Vec<Algorithm> {
    let sizes = [Algorithm::Hierarchical { inner: 9 }, Algorithm::Torus { columns: 9 }];
    but(ALGORITHMS.into_iter().chain(sizes), &one)
}

/// Every codec, and every codec with one option changed.
fn codecs(one: Codec) -> Vec<Codec> {
    let other_numbers = |codec| match codec {
        Codec::Int8 { block } => vec![Codec::Int8 { block: block + 1 }],
        Codec::PowerSgd { rank, start_step } => vec![
            Codec::PowerSgd { rank: rank + 1, start_step },
            Codec::PowerSgd { rank, start_step: start_step + 1 },
        ],
        Codec::PowerSgdHalf { rank, start_step } => vec![
            Codec::PowerSgdHalf { rank: rank + 1, start_step },
            Codec::PowerSgdHalf { rank, start_step: start_step + 1 },
        ],
        Codec::TopK { per_mille } => vec![Codec::TopK { per_mille: per_mille + 1 }],
        Codec::Dgc { per_mille, start_step } => vec![
            Codec::Dgc { per_mille: per_mille + 1, start_step },
            Codec::Dgc { per_mille, start_step: start_step + 1 },
        ],
        Codec::Qsgd { levels, bucket } => {
            vec![Codec::Qsgd { levels: levels + 1, bucket }, Codec::Qsgd { levels, bucket: bucket + 1 }]
        }
        Codec::OneBitAdam { warmup_steps } => vec![Codec::OneBitAdam { warmup_steps: warmup_steps + 1 }],
        Codec::None | Codec::Fp16 | Codec::Bf16 | Codec::OneBit | Codec::TernGrad => Vec::new(),
    };
    but(Codec::DEFAULTS.into_iter().chain(Codec::DEFAULTS.into_iter().flat_map(other_numbers)), &one)
}

fn reduction(one: Reduction) -> Changes<Reduction> {
    changes!(Reduction {
        algorithm => algorithms(one.algorithm),
        codec => codecs(one.codec)
    } of one)
}

fn reductions(one: Reduction) -> Vec<Reduction> {
    reduction(one).into_iter().map(|(_, reduction)| reduction).collect()
}

fn bucket_reduction(one: &BucketReduction) -> Changes<BucketReduction> {
    changes!(BucketReduction {
        pipeline_rank => [one.pipeline_rank + 7],
        bucket => [one.bucket + 7],
        reduction => reductions(one.reduction)
    } of one)
}

fn communication(one: &Communication) -> Changes<Communication> {
    let mut list = changes!(Communication {
        tensor => algorithms(one.tensor),
        gather => algorithms(one.gather),
        parameters => codecs(one.parameters),
        activations => codecs(one.activations),
        reduce => reductions(one.reduce);
        placement, buckets
    } of one);
    let exceptions = of_list(&one.buckets, bucket_reduction);
    list.extend(within("buckets", one, exceptions, |whole, part| whole.buckets = part));
    list.extend((0..4).map(|shift| {
        let placement = (0..16).map(|device| (device + shift + 1) % 16).collect();
        ("placement".to_owned(), Communication { placement, ..one.clone() })
    }));
    list
}

fn strategy(one: &ParallelStrategy) -> Changes<ParallelStrategy> {
    let mut list = changes!(ParallelStrategy {
        data => [one.data + 1],
        tensor => [one.tensor + 1],
        pipeline => [one.pipeline + 1],
        context => [one.context + 1],
        expert => [one.expert + 1],
        zero_stage => but(0..=3, &one.zero_stage),
        shard => [one.shard + 1],
        micro_batch => [one.micro_batch + 1],
        virtual_stages => [one.virtual_stages + 1],
        sequence_parallel => [!one.sequence_parallel],
        recompute => recomputes(one.recompute),
        schedule => but(every!(ScheduleKind: GPipe, OneFOneB, Interleaved), &one.schedule),
        bucket_bytes => [Bytes(one.bucket_bytes.0 + 1)];
        communication
    } of one);
    let changes = communication(&one.communication);
    list.extend(within("communication", one, changes, |whole, part| whole.communication = part));
    list
}

fn run(change: impl FnOnce(&mut BlockRun)) -> Vec<BlockRun> {
    let mut run = BlockRun::default();
    change(&mut run);
    vec![run]
}

fn model(one: &ModelSpec) -> Changes<ModelSpec> {
    let rotary = [1e4, 1e5].map(|theta| Positions::Rotary { theta });
    let positions = [Positions::Learned].into_iter().chain(rotary);
    changes!(ModelSpec {
        name => ["another".to_owned()],
        layers => [one.layers + 1],
        hidden => [one.hidden + 1],
        heads => [one.heads + 1],
        kv_heads => [one.kv_heads + 1],
        head_dim => [one.head_dim + 1],
        ffn => [one.ffn + 1],
        vocab => [one.vocab + 1],
        max_seq_len => [one.max_seq_len + 1],
        positions => but(positions, &one.positions),
        norm => but(every!(Norm: LayerNorm, RmsNorm), &one.norm),
        norm_epsilon => [one.norm_epsilon * 2.0],
        activation => but(every!(Activation: Gelu, SwiGlu), &one.activation),
        bias => [!one.bias],
        tied_embeddings => [!one.tied_embeddings],
        experts => [(2, 0), (3, 0), (2, 8)].map(|(active, shared_ffn)| Some(Experts { count: 6, active, shared_ffn })),
        window => [Some(7), Some(8)],
        latent => [1, 2].map(|kv_rank| Some(Latent { query_rank: None, kv_rank, rope_dim: 2, value_dim: 2 })),
        additions => [vec![Addition::QkvBias], vec![Addition::PostNorm]],
        blocks => [run(|run| run.count = Some(2)), run(|run| run.heads = Some(2)), run(|run| run.kv_heads = Some(2)),
            run(|run| run.head_dim = Some(4)), run(|run| run.window = Some(4)), run(|run| run.ffn = Some(4)),
            run(|run| run.experts = Some(Experts { count: 6, active: 2, shared_ffn: 0 }))]
    } of one)
}

fn stage(one: &Stage) -> Changes<Stage> {
    let mut list = changes!(Stage {
        first_layer => [one.first_layer + 1],
        end_layer => [one.end_layer + 1];
        recompute
    } of one);
    let policies = of_list(&one.recompute, |policy| {
        recomputes(*policy).into_iter().map(|other| ("policy".to_owned(), other)).collect()
    });
    list.extend(within("recompute", one, policies, |whole, part| whole.recompute = part));
    list
}

fn mesh(one: Mesh) -> Changes<Mesh> {
    changes!(Mesh {
        pipeline => [one.pipeline + 1],
        replicate => [one.replicate + 1],
        shard => [one.shard + 1],
        context => [one.context + 1],
        tensor => [one.tensor + 1]
    } of one)
}

fn bucket_layer(one: &BucketLayer) -> Changes<BucketLayer> {
    changes!(BucketLayer {
        layer => [one.layer + 1],
        offset => [one.offset + 1],
        elements => [one.elements + 1],
        replicated => [one.replicated + 1]
    } of one)
}

fn bucket(one: &Bucket) -> Changes<Bucket> {
    let mut list = changes!(Bucket {
        chunk => [one.chunk + 1],
        elements => [one.elements + 1],
        padded => [one.padded + 1],
        trained => [one.trained + 1],
        quantised => [one.quantised + 1],
        tied => [!one.tied],
        copy => [!one.copy],
        expert => [one.expert + 1],
        residence => but(
            every!(Residence: Whole, ShardedState, ShardedGradients, Sharded),
            &one.residence
        ),
        shard => [one.shard + 1];
        layers
    } of one);
    let layers = of_list(&one.layers, bucket_layer);
    list.extend(within("layers", one, layers, |whole, part| whole.layers = part));
    list
}

fn message(one: Message) -> Changes<Message> {
    changes!(Message {
        kind => but(every!(MessageKind: Activation, Gradient), &one.kind),
        peer => [one.peer + 1],
        chunk => [one.chunk + 1],
        micro_batch => [one.micro_batch + 1],
        elements => [one.elements + 1]
    } of one)
}

/// `bodies` is the number of bodies that the operation can run.
fn op(one: Op, bodies: usize) -> Changes<Op> {
    match one {
        Op::Receive(of) => {
            let mut list = within("receive", &one, message(of), |op, part| *op = Op::Receive(part));
            list.push(("a send".to_owned(), Op::Send(of)));
            list
        }
        Op::Send(of) => within("send", &one, message(of), |op, part| *op = Op::Send(part)),
        Op::Run { body, micro_batch } => {
            let mut list: Changes<Op> = but(0..bodies, &body)
                .into_iter()
                .map(|body| ("body".to_owned(), Op::Run { body, micro_batch }))
                .collect();
            list.push(("micro_batch".to_owned(), Op::Run { body, micro_batch: micro_batch + 1 }));
            list
        }
    }
}

fn instruction(one: &Instruction) -> Changes<Instruction> {
    use Instruction as I;
    let others: Vec<I> = match *one {
        I::Segment { layer, segment, pass, recompute } => {
            let segments = every!(
                Segment: Embedding, AttentionNorm, Attention, MlpNorm, Mlp, FinalNorm, Logits, Normalizer, Loss
            );
            let passes = every!(Pass: Forward, Recompute, Backward);
            let mut list = vec![I::Segment { layer: layer + 1, segment, pass, recompute }];
            list.extend(segments.map(|segment| I::Segment { layer, segment, pass, recompute }));
            list.extend(passes.map(|pass| I::Segment { layer, segment, pass, recompute }));
            let policies = recomputes(recompute).into_iter();
            list.extend(policies.map(|recompute| I::Segment { layer, segment, pass, recompute }));
            list
        }
        I::Tensor { layer, segment, collective, operand, elements } => {
            let collectives = every!(TensorCollective: SumAll, MaxAll, ReduceScatter, AllGather);
            let operands = every!(Operand: Flow, SavedInput);
            let mut list = vec![
                I::Tensor { layer: layer + 1, segment, collective, operand, elements },
                I::Tensor { layer, segment: Segment::FinalNorm, collective, operand, elements },
                I::Tensor { layer, segment, collective, operand, elements: elements + 1 },
                I::Segment { layer, segment, pass: Pass::Forward, recompute: Recompute::None },
            ];
            list.extend(collectives.map(|collective| I::Tensor {
                layer,
                segment,
                collective,
                operand,
                elements,
            }));
            list.extend(operands.map(|operand| I::Tensor { layer, segment, collective, operand, elements }));
            list
        }
        I::Context { layer, pass, elements } => {
            let passes = every!(Pass: Forward, Recompute, Backward);
            let mut list = passes.map(|pass| I::Context { layer, pass, elements }).to_vec();
            list.extend([
                I::Context { layer: layer + 1, pass, elements },
                I::Context { layer, pass, elements: elements + 1 },
            ]);
            list
        }
        I::Experts { layer, pass, elements } => {
            let passes = every!(Pass: Forward, Recompute, Backward);
            let mut list = passes.map(|pass| I::Experts { layer, pass, elements }).to_vec();
            list.extend([
                I::Experts { layer: layer + 1, pass, elements },
                I::Experts { layer, pass, elements: elements + 1 },
            ]);
            list
        }
        I::SumReplicated { bucket, elements } => vec![
            I::SumReplicated { bucket: bucket + 1, elements },
            I::SumReplicated { bucket, elements: elements + 1 },
            I::SumTied { bucket, elements },
            I::Update { bucket, elements },
        ],
        I::Start { transfer, bucket } => {
            let transfers = every!(Transfer: Reduce, ReduceReplicas, Gather);
            let mut list = transfers.map(|transfer| I::Start { transfer, bucket }).to_vec();
            list.extend([I::Start { transfer, bucket: bucket + 1 }, I::Wait { transfer, bucket }]);
            list
        }
        I::Wait { transfer, bucket } => {
            let transfers = every!(Transfer: Reduce, ReduceReplicas, Gather);
            let mut list = transfers.map(|transfer| I::Wait { transfer, bucket }).to_vec();
            list.extend([I::Wait { transfer, bucket: bucket + 1 }, I::Release { bucket }]);
            list
        }
        I::Release { bucket } => vec![I::Release { bucket: bucket + 1 }],
        I::SumTied { bucket, elements } => vec![
            I::SumTied { bucket: bucket + 1, elements },
            I::SumTied { bucket, elements: elements + 1 },
            I::SumReplicated { bucket, elements },
        ],
        I::GradientNorm { elements } => vec![I::GradientNorm { elements: elements + 1 }],
        I::Update { bucket, elements } => {
            vec![I::Update { bucket: bucket + 1, elements }, I::Update { bucket, elements: elements + 1 }]
        }
    };
    but(others, one).into_iter().map(|other| (format!("is {other:?}"), other)).collect()
}

fn body(one: &Body) -> Changes<Body> {
    let kinds = match one.kind {
        BodyKind::Forward { chunk } => vec![
            BodyKind::Forward { chunk: chunk + 9 },
            BodyKind::Backward { chunk: chunk + 9 },
            BodyKind::Optimizer,
        ],
        BodyKind::Backward { chunk } => vec![
            BodyKind::Backward { chunk: chunk + 9 },
            BodyKind::Forward { chunk: chunk + 9 },
            BodyKind::Optimizer,
        ],
        BodyKind::Optimizer => {
            vec![BodyKind::Forward { chunk: 0 }, BodyKind::Backward { chunk: 0 }]
        }
    };
    let mut list = changes!(Body { kind => kinds; instructions } of one);
    let instructions = of_list(&one.instructions, instruction);
    list.extend(within("instructions", one, instructions, |whole, part| whole.instructions = part));
    list
}

/// The text has a class's tensor ranks by printing its buckets for each of them.
fn class(one: &RankClass) -> Changes<RankClass> {
    let RankClass { tensor: _, buckets } = one;
    within("buckets", one, of_list(buckets, bucket), |whole, part| whole.buckets = part)
}

fn rank(one: &RankProgram) -> Changes<RankProgram> {
    let mut list = changes!(RankProgram {
        pipeline_rank => [one.pipeline_rank + 1];
        chunks, classes, bodies, ops
    } of one);
    list.extend(within("chunks", one, numbers(&one.chunks), |whole, part| whole.chunks = part));
    for (index, of_class) in one.classes.iter().enumerate() {
        list.extend(within("classes", one, class(of_class), |whole, part| whole.classes[index] = part));
    }
    list.extend(within("bodies", one, of_list(&one.bodies, body), |whole, part| whole.bodies = part));
    let ops = of_list(&one.ops, |of| op(*of, one.bodies.len()));
    list.extend(within("ops", one, ops, |whole, part| whole.ops = part));
    list
}

/// The first layer is frozen.
fn frozen(training: &[LayerTraining]) -> Vec<LayerTraining> {
    let mut changed = training.to_vec();
    changed[0].weights = false;
    changed
}

fn program(one: &Program) -> Changes<Program> {
    let mut list = changes!(Program {
        seq_len => [one.seq_len + 1],
        micro_batches => [one.micro_batches + 1],
        base_bits => [BaseBits::Four],
        training => [frozen(&one.training)],
        precision => but(every!(Precision: Fp32, Tf32, Fp16, Bf16, Fp8), &one.precision);
        model, strategy, stages, mesh, ranks
    } of one);
    list.extend(within("model", one, model(&one.model), |whole, part| whole.model = part));
    list.extend(within("strategy", one, strategy(&one.strategy), |whole, part| whole.strategy = part));
    // A model has at least one chunk: `buckets` counts from the last.
    let stages = of_list(&one.stages, stage).into_iter().filter(|(_, stages)| !stages.is_empty()).collect();
    list.extend(within("stages", one, stages, |whole, part| whole.stages = part));
    list.extend(within("mesh", one, mesh(one.mesh), |whole, part| whole.mesh = part));
    list.extend(within("ranks", one, of_list(&one.ranks, rank), |whole, part| whole.ranks = part));
    list
}

#[test]
fn whatever_is_changed_changes_the_text() {
    let list = cases::all();
    let mut seen = BTreeSet::new();
    for name in CHANGED {
        let case = list.iter().find(|case| case.name == name);
        let whole = case.unwrap_or_else(|| panic!("no case is called {name}")).program();
        let before = text::of_program(&whole);
        for (what, other) in program(&whole) {
            assert!(other != whole, "{name}: {what} changes nothing");
            assert!(text::of_program(&other) != before, "{name}: {what} is not in the text");
        }
        let instructions =
            whole.ranks.iter().flat_map(|rank| &rank.bodies).flat_map(|body| &body.instructions);
        seen.extend(instructions.map(variant));
    }
    let all = variants!(
        Instruction: Segment, Tensor, Context, Experts, SumReplicated, Start, Wait, Release, SumTied, GradientNorm, Update
    );
    assert_eq!(seen, all.into_iter().map(str::to_owned).collect(), "programs that are changed");
}

#[test]
fn different_programs_have_different_texts() {
    let programs: Vec<_> = cases::all().iter().map(|case| (case.name.clone(), case.program())).collect();
    let texts: Vec<String> = programs.iter().map(|(_, program)| text::of_program(program)).collect();
    for (index, (name, program)) in programs.iter().enumerate() {
        for (other, (other_name, other_program)) in programs.iter().enumerate().skip(index + 1) {
            assert_eq!(program == other_program, texts[index] == texts[other], "{name} and {other_name}");
        }
    }
}
