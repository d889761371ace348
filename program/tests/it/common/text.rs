//! A program as text: everything that its interpreters read, in the order in which they read it, independent
//! of its representation in memory. Equal parts are printed once; nothing is left out.
//!
//! All structs are destructured and all enums are matched in full: a new field or variant does not compile
//! before it is printed.

use autodist_program::{
    Body, BodyKind, Bucket, BucketLayer, BucketParameter, Instruction, Mesh, Message, MessageKind, Op,
    Operand, Program, RankClass, RankProgram, Residence, TensorCollective, Transfer, View,
};
use autodist_spec::{
    Activation, Algorithm, BlockRun, BucketReduction, Codec, Coded, Communication, Experts, Job, Latent,
    LayerTraining, ModelSpec, Norm, Optimizer, ParallelStrategy, Pass, Positions, Precision, Recompute,
    Reduction, ScheduleKind, Segment, Stage,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Display, Write};

/// The inputs of compilation that are not fields of the program.
pub fn of_job(job: &Job) -> String {
    let optimizer = match job.optimizer {
        Optimizer::AdamW { beta1, beta2, epsilon, weight_decay } => {
            format!("adamw, betas {beta1} {beta2}, epsilon {epsilon:e}, weight decay {weight_decay}")
        }
        Optimizer::Sgd { momentum, weight_decay } => {
            format!("sgd, momentum {momentum}, weight decay {weight_decay}")
        }
    };
    let clip = match job.gradient_clip {
        0.0 => "gradients not clipped".to_owned(),
        norm => format!("gradients clipped at {norm}"),
    };
    format!("job: {} sequences of {} tokens; {optimizer}; {clip}\n", job.global_batch, job.seq_len)
}

pub fn of_program(program: &Program) -> String {
    let Program {
        model,
        training,
        base_bits,
        strategy,
        stages,
        mesh,
        seq_len,
        micro_batches,
        precision,
        ranks,
    } = program;
    let Mesh { pipeline, replicate, shard, context, tensor } = mesh;
    let (data, shards) = (replicate * shard * context, shards(program));
    let precision = match precision {
        Precision::Fp32 => "fp32",
        Precision::Tf32 => "tf32",
        Precision::Fp16 => "fp16",
        Precision::Bf16 => "bf16",
        Precision::Fp8 => "fp8",
    };
    let mut out = of_model(model) + &of_strategy(strategy) + &of_communication(&strategy.communication);
    let split = if *context > 1 { format!(" in groups of {context} per sequence") } else { String::new() };
    line(&mut out, format!("mesh: pp {pipeline}, dp {data}{split}, tp {tensor}; shards of {shards}"));
    let rows = program.local_tokens();
    line(
        &mut out,
        format!("step: {micro_batches} micro-batches, {seq_len} tokens, {rows} rows, {precision}"),
    );
    for (layer, one) in training.iter().enumerate().filter(|(_, one)| **one != LayerTraining::WHOLE) {
        line(&mut out, format!("layer {layer}: {one:?}"));
    }
    if !base_bits.is_whole() {
        line(&mut out, format!("quantised weights: {} bits", base_bits));
    }
    for (chunk, stage) in stages.iter().enumerate() {
        let Stage { first_layer, end_layer, recompute } = stage;
        let recompute = words(recompute.iter().map(|r| of_recompute(*r)));
        line(&mut out, format!("chunk {chunk}: layers {first_layer}..{end_layer}, recompute {recompute}"));
    }
    let mut told = Told::default();
    for rank in ranks {
        out += &of_rank(program, rank, &mut told);
    }
    out
}

fn of_model(model: &ModelSpec) -> String {
    let ModelSpec {
        name,
        layers,
        hidden,
        heads,
        kv_heads,
        head_dim,
        ffn,
        vocab,
        max_seq_len,
        positions,
        norm,
        norm_epsilon,
        activation,
        bias,
        tied_embeddings,
        window,
        latent,
        experts,
        blocks,
        additions,
    } = model;
    let positions = match positions {
        Positions::Learned => "learned".to_owned(),
        Positions::Alibi => "by linear biases".to_owned(),
        Positions::Rotary { theta } => format!("rotary by {theta}"),
    };
    let norm = match norm {
        Norm::LayerNorm => "layer norm",
        Norm::RmsNorm => "rms norm",
    };
    let activation = match activation {
        Activation::Gelu => "gelu",
        Activation::SwiGlu => "swiglu",
    };
    let mut differ = String::new();
    for part in [window.map(|window| format!(", window {window}")), latent.map(of_latent)] {
        differ += &part.unwrap_or_default();
    }
    differ += &experts.map(of_experts).unwrap_or_default();
    for run in blocks {
        differ += &of_blocks(run);
    }
    for addition in additions {
        differ += &format!(", {}", addition.name());
    }
    format!(
        "model: {name}, {layers} blocks, hidden {hidden}, {heads} heads and {kv_heads} key/value heads of {head_dim}, \
         mlp {ffn} {activation}, vocabulary {vocab}, {max_seq_len} positions {positions}, {norm} {norm_epsilon:e}, \
         bias {}, tied {}{differ}\n",
        yes(*bias),
        yes(*tied_embeddings)
    )
}

fn of_experts(Experts { count, active, shared_ffn }: Experts) -> String {
    let shared = if shared_ffn > 0 { format!(" and a shared mlp {shared_ffn}") } else { String::new() };
    format!(", {active} of {count} experts{shared}")
}

fn of_latent(Latent { query_rank, kv_rank, rope_dim, value_dim }: Latent) -> String {
    let queries = query_rank.map(|rank| format!("queries of rank {rank}, ")).unwrap_or_default();
    format!(", {queries}keys and values of rank {kv_rank}, {rope_dim} rotary, values of {value_dim}")
}

fn of_blocks(run: &BlockRun) -> String {
    let BlockRun { count, heads, kv_heads, head_dim, window, ffn, experts } = run;
    let mut text = format!("; {} blocks", count.map_or("run of".to_owned(), |count| count.to_string()));
    let sizes =
        [("heads", heads), ("key/value heads", kv_heads), ("of", head_dim), ("window", window), ("mlp", ffn)];
    for (what, size) in sizes {
        text += &size.map(|size| format!(", {what} {size}")).unwrap_or_default();
    }
    text + &experts.map(of_experts).unwrap_or_default()
}

fn of_strategy(strategy: &ParallelStrategy) -> String {
    let ParallelStrategy {
        data,
        tensor,
        pipeline,
        context,
        expert,
        zero_stage,
        shard,
        micro_batch,
        virtual_stages,
        sequence_parallel,
        recompute,
        schedule,
        bucket_bytes,
        communication: _, // a line of its own
    } = strategy;
    let schedule = match schedule {
        ScheduleKind::GPipe => "gpipe",
        ScheduleKind::OneFOneB => "1f1b",
        ScheduleKind::Interleaved => "interleaved",
    };
    format!(
        "strategy: dp {data}, tp {tensor}, pp {pipeline}, cp {context}, ep {expert}; zero {zero_stage} in shards of \
         {shard}; micro-batch {micro_batch}; {schedule} v{virtual_stages}; sp {}; recompute {}; buckets of {} B\n",
        yes(*sequence_parallel),
        of_recompute(*recompute),
        bucket_bytes.0
    )
}

fn of_communication(communication: &Communication) -> String {
    let Communication { placement, tensor, gather, parameters, activations, reduce, buckets } = communication;
    let rings =
        *tensor == Algorithm::Ring && *gather == Algorithm::Ring && reduce.algorithm == Algorithm::Ring;
    let coded = [*parameters, *activations, reduce.codec].iter().any(|codec| *codec != Codec::None);
    if rings && !coded && placement.is_empty() && buckets.is_empty() {
        return "communication: rings, no codecs, rank by rank\n".to_owned();
    }
    let placement = if placement.is_empty() { "rank by rank".to_owned() } else { words(placement) };
    let mut out = format!(
        "communication: tensor {}; gather {}; reduce {}; parameters {}; activations {}; devices {placement}\n",
        of_algorithm(*tensor),
        of_algorithm(*gather),
        of_reduction(*reduce),
        of_codec(*parameters),
        of_codec(*activations)
    );
    for BucketReduction { pipeline_rank, bucket, reduction } in buckets {
        let reduction = of_reduction(*reduction);
        line(&mut out, format!("  but rank {pipeline_rank} bucket {bucket}: reduce {reduction}"));
    }
    out
}

fn of_rank(program: &Program, rank: &RankProgram, told: &mut Told) -> String {
    let RankProgram { pipeline_rank, chunks, classes: _, bodies, ops } = rank;
    let labels = body_labels(bodies);
    let mut out = format!("\nrank {pipeline_rank}: chunks {}\n", words(chunks));
    out += &of_groups(program, rank);
    out += &of_buckets(program, rank);
    let mut whole: Vec<(&Body, &str)> = Vec::new();
    for (body, label) in bodies.iter().zip(&labels) {
        let Body { kind: _, instructions } = body;
        let run = ops.iter().any(|op| matches!(op, Op::Run { body, .. } if labels.get(*body) == Some(label)));
        let never = if run { "" } else { ", never run" };
        match whole.iter().find(|(other, _)| other.instructions == *instructions) {
            Some((_, other)) => line(&mut out, format!("  {label}{never}: as {other}")),
            None => {
                line(&mut out, format!("  {label}{never}:"));
                out += &of_instructions(program, instructions, label, told);
            }
        }
        whole.push((body, label));
    }
    line(&mut out, "  steps:");
    let mut slot: Vec<String> = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        slot.push(of_op(op, &labels));
        // A line ends when nothing more is sent.
        let ends = match ops.get(index + 1) {
            Some(Op::Send(_)) => false,
            Some(Op::Run { .. } | Op::Receive(_)) => !matches!(op, Op::Receive(_)),
            None => true,
        };
        if ends {
            line(&mut out, format!("    {}", slot.join("; ")));
            slot.clear();
        }
    }
    out
}

/// The devices of the rank's replicas, and the groups of its instructions.
fn of_groups(program: &Program, rank: &RankProgram) -> String {
    let (mesh, pipeline) = (program.mesh, rank.pipeline_rank);
    let replicas = pipeline * mesh.stage()..(pipeline + 1) * mesh.stage();
    // Every replica's own list of its group, in the order of the group.
    let all = |group: &dyn Fn(usize) -> Vec<usize>| {
        let groups: Vec<String> = replicas.clone().map(|me| words(program.devices(&group(me)))).collect();
        let times = |same: &[String]| match same.len() {
            1 => same[0].clone(),
            several => format!("{} of {several} replicas", same[0]),
        };
        groups.chunk_by(|a, b| a == b).map(times).collect::<Vec<_>>().join(" | ")
    };
    let groups = |groups: Vec<Vec<usize>>| groups.iter().map(words).collect::<Vec<_>>().join(" | ");
    let mut out = String::new();
    line(&mut out, format!("  devices: {}", all(&|me| vec![me])));
    let instructions = || rank.bodies.iter().flat_map(|body| &body.instructions);
    if instructions().any(|i| matches!(i, Instruction::Tensor { .. } | Instruction::SumReplicated { .. })) {
        line(&mut out, format!("  tensor groups: {}", groups(program.tensor_groups(pipeline))));
    }
    let apart = |view: View| (view.size(), view.stride());
    for (what, view) in [("context", program.context_view()), ("expert", program.expert_view())] {
        let (size, stride) = apart(view);
        if size > 1 {
            line(&mut out, format!("  {what} groups: {size} devices, {stride} apart"));
        }
    }
    let transfers: BTreeSet<Transfer> = transfers(rank).into_values().flatten().collect();
    for transfer in transfers {
        // Of each kind of bucket.
        let mut sizes: Vec<(usize, usize)> =
            rank.buckets().iter().map(|bucket| apart(program.transfer_view(transfer, bucket))).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let sizes = words(sizes.iter().map(|(size, stride)| format!("{size} devices, {stride} apart")));
        let name = of_transfer(transfer);
        let groups = groups(program.transfer_groups(pipeline, transfer));
        line(&mut out, format!("  {name} groups: {sizes}: {groups}"));
    }
    line(&mut out, format!("  norm groups: {}", all(&|me| program.model_view().group(me))));
    if instructions().any(|i| matches!(i, Instruction::SumTied { .. })) {
        line(&mut out, format!("  tied groups: {}", all(&|me| mesh.ends(mesh.coordinates(me)))));
    }
    out
}

/// The transfers of each bucket.
fn transfers(rank: &RankProgram) -> BTreeMap<usize, BTreeSet<Transfer>> {
    let mut found: BTreeMap<usize, BTreeSet<Transfer>> = BTreeMap::new();
    for instruction in rank.bodies.iter().flat_map(|body| &body.instructions) {
        if let Instruction::Start { transfer, bucket } | Instruction::Wait { transfer, bucket } = instruction
        {
            found.entry(*bucket).or_default().insert(*transfer);
        }
    }
    found
}

/// The buckets of tensor rank 0, and of the others if they differ.
fn of_buckets(program: &Program, rank: &RankProgram) -> String {
    let mut transfers = transfers(rank);
    let mut out = String::new();
    let of_tensor_rank = |tensor: usize| -> Vec<String> {
        let RankClass { tensor: _, buckets } = rank.class(tensor);
        buckets.iter().map(|bucket| of_bucket(program, bucket, tensor)).collect()
    };
    let own = of_tensor_rank(0);
    for (index, bucket) in rank.buckets().iter().enumerate() {
        out += &format!("  bucket {index}: {}", own[index]);
        for transfer in transfers.remove(&index).unwrap_or_default() {
            let (kind, elements) = program.transfer_work(transfer, bucket);
            let kind = kind.name();
            let coded = match program.coded(transfer) {
                Coded::Gradients => "gradients",
                Coded::GradientShards => "gradient shards",
                Coded::Parameters => "parameters",
                Coded::Activations => "activations",
            };
            let bytes = program.transfer_bytes(transfer, bucket).0;
            let how = of_reduction(program.reduction(rank.pipeline_rank, transfer, index));
            let name = of_transfer(transfer);
            line(&mut out, format!("    {name}: {kind} {elements} ({bytes} B) of {coded}, {how}"));
        }
    }
    for tensor in 1..program.mesh.tensor {
        let others = of_tensor_rank(tensor);
        if others == own {
            line(&mut out, format!("  tensor rank {tensor}: the same buckets"));
            continue;
        }
        line(&mut out, format!("  tensor rank {tensor}: {} buckets", others.len()));
        for (index, other) in others.iter().enumerate() {
            let same = own.get(index) == Some(other);
            let text = if same { "the same\n" } else { other };
            out += &format!("  bucket {index} there: {text}");
        }
    }
    out
}

fn of_bucket(program: &Program, bucket: &Bucket, tensor_rank: usize) -> String {
    let Bucket { chunk, layers, elements, padded, trained, quantised, tied, copy, expert, residence, shard } =
        bucket;
    let mut out = format!("chunk {chunk}, {elements} elements, padded {padded}");
    let own = bucket.shard_elements();
    let replicated = bucket.replicated();
    out += &format!(", shard {own}, replicated {replicated}");
    let unusual = (*residence != program.residence()).then(|| format!(", {}", of_residence(*residence)));
    out += &unusual.unwrap_or_default();
    out += &if *shard == shards(program) { String::new() } else { format!(", over {shard} ranks") };
    out += &if *expert == 1 { String::new() } else { format!(", of experts on {expert} ranks") };
    out += &if trained == elements { String::new() } else { format!(", trained {trained}") };
    out += &if *quantised == 0 { String::new() } else { format!(", quantised {quantised}") };
    out += if *tied { ", tied" } else { "" };
    out += if *copy { ", copy\n" } else { "\n" };
    for BucketLayer { layer, offset, elements, replicated } in layers {
        let end = offset + elements;
        line(&mut out, format!("    layer {layer}: {offset}..{end}, replicated {replicated}"));
    }
    let parameters = bucket.parameters(&program.model, tensor_rank, program.strategy.tensor as usize);
    let shape =
        |BucketParameter { offset, rows, columns }: &BucketParameter| format!("{offset}:{rows}x{columns}");
    line(&mut out, format!("    parameters {}", words(parameters.iter().map(shape))));
    out
}

/// Ranks of a shard group.
fn shards(program: &Program) -> usize {
    program.mesh.view(program.residence().shard_axes()).size()
}

fn of_residence(residence: Residence) -> &'static str {
    match residence {
        Residence::Whole => "whole",
        Residence::ShardedState => "sharded state",
        Residence::ShardedGradients => "sharded gradients",
        Residence::Sharded => "sharded",
    }
}

/// By kind and chunk, and by number where one kind has several.
fn body_labels(bodies: &[Body]) -> Vec<String> {
    let kind = |body: &Body| match body.kind {
        BodyKind::Forward { chunk } => format!("forward c{chunk}"),
        BodyKind::Backward { chunk } => format!("backward c{chunk}"),
        BodyKind::Optimizer => "optimizer".to_owned(),
    };
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let label = |kind: String| {
        let count = seen.entry(kind.clone()).or_default();
        *count += 1;
        if *count == 1 { kind } else { format!("{kind} ({count})") }
    };
    bodies.iter().map(kind).map(label).collect()
}

/// The printed layers: the text of a line, and where it was first printed.
#[derive(Default)]
struct Told {
    by_text: BTreeMap<String, String>,
    places: BTreeSet<String>,
}

impl Told {
    /// `text`, or a reference to its first occurrence if it was printed before.
    fn tell(&mut self, place: String, text: &str) -> String {
        if text.len() <= 2 * place.len() {
            return text.to_owned();
        }
        if let Some(earlier) = self.by_text.get(text) {
            return format!("as {earlier}");
        }
        if self.places.insert(place.clone()) {
            self.by_text.insert(text.to_owned(), place);
        }
        text.to_owned()
    }
}

/// Consecutive instructions of one layer share a line, and so do equal layers; a line's verbs apply until the
/// next.
fn of_instructions(program: &Program, instructions: &[Instruction], body: &str, told: &mut Told) -> String {
    let place = Instruction::layer;
    let runs = instructions.chunk_by(|a, b| place(a) == place(b));
    let runs: Vec<_> = runs.map(|run| (place(&run[0]), of_run(program, run))).collect();
    let mut out = String::new();
    for same in runs.chunk_by(|a, b| a.0.is_some() && b.0.is_some() && a.1 == b.1) {
        let (layer, text) = &same[0];
        match layer {
            Some(first) => {
                let layers = words(same.iter().filter_map(|(layer, _)| *layer));
                let text = told.tell(format!("layer {first} of {body}"), text);
                line(&mut out, format!("    layer {layers}: {text}"));
            }
            None => line(&mut out, format!("    {text}")),
        }
    }
    out
}

fn of_run(program: &Program, instructions: &[Instruction]) -> String {
    let mut text = String::new();
    let mut last = String::new();
    for instruction in instructions {
        let (verb, object) = of_instruction(program, instruction);
        if !text.is_empty() {
            text += ", ";
        }
        if verb != last {
            text += &format!("{verb} ");
        }
        text += &object;
        last = verb;
    }
    text
}

/// The operation and its operand.
fn of_instruction(program: &Program, instruction: &Instruction) -> (String, String) {
    let (verb, object) = match *instruction {
        Instruction::Segment { layer: _, segment, pass, recompute } => {
            let pass = match pass {
                Pass::Forward => "forward",
                Pass::Recompute => "again",
                Pass::Backward => "backward",
            };
            let verb = match recompute {
                Recompute::None => pass.to_owned(),
                other => format!("{pass} ({})", of_recompute(other)),
            };
            return (verb, of_segment(segment).to_owned());
        }
        Instruction::Tensor { layer: _, segment, collective, operand, elements } => {
            let verb = match collective {
                TensorCollective::SumAll => "all-reduce",
                TensorCollective::MaxAll => "all-reduce-max",
                TensorCollective::ReduceScatter => "reduce-scatter",
                TensorCollective::AllGather => "all-gather",
            };
            let operand = match operand {
                Operand::Flow => "",
                Operand::SavedInput => " saved input",
            };
            let bytes = program.tensor_bytes(segment, collective, elements).0;
            (verb, format!("{}{operand} {elements} ({bytes} B)", of_segment(segment)))
        }
        Instruction::Context { layer: _, pass, elements } => {
            return (format!("exchange {}", pass.name()), elements.to_string());
        }
        Instruction::Experts { layer: _, pass, elements } => {
            return (format!("route {}", pass.name()), elements.to_string());
        }
        Instruction::SumReplicated { bucket, elements } => {
            ("sum-replicated", format!("b{bucket}: {elements}"))
        }
        Instruction::Start { transfer, bucket } => {
            return (format!("start {}", of_transfer(transfer)), format!("b{bucket}"));
        }
        Instruction::Wait { transfer, bucket } => {
            return (format!("wait {}", of_transfer(transfer)), format!("b{bucket}"));
        }
        Instruction::Release { bucket } => ("release", format!("b{bucket}")),
        Instruction::SumTied { bucket, elements } => ("sum-tied", format!("b{bucket}: {elements}")),
        Instruction::GradientNorm { elements } => ("gradient-norm", format!("of {elements}")),
        Instruction::Update { bucket, elements } => ("update", format!("b{bucket}: {elements}")),
    };
    (verb.to_owned(), object)
}

fn of_op(op: &Op, labels: &[String]) -> String {
    match *op {
        Op::Receive(message) => of_message("receive", "from", message),
        Op::Run { body, micro_batch } => {
            let label = labels.get(body).map_or("a body that is not there", String::as_str);
            format!("{label} m{micro_batch}")
        }
        Op::Send(message) => of_message("send", "to", message),
    }
}

fn of_message(verb: &str, direction: &str, message: Message) -> String {
    let Message { kind, peer, chunk, micro_batch, elements } = message;
    let kind = match kind {
        MessageKind::Activation => "activation",
        MessageKind::Gradient => "gradient",
    };
    format!("{verb} {kind} c{chunk} m{micro_batch} {direction} {peer}, {elements}")
}

fn of_segment(segment: Segment) -> &'static str {
    match segment {
        Segment::Embedding => "embedding",
        Segment::AttentionNorm => "attention-norm",
        Segment::Attention => "attention",
        Segment::MlpNorm => "mlp-norm",
        Segment::Mlp => "mlp",
        Segment::FinalNorm => "final-norm",
        Segment::Logits => "logits",
        Segment::Normalizer => "normalizer",
        Segment::Loss => "loss",
    }
}

fn of_transfer(transfer: Transfer) -> &'static str {
    match transfer {
        Transfer::Reduce => "reduce",
        Transfer::ReduceReplicas => "reduce-replicas",
        Transfer::Gather => "gather",
    }
}

fn of_recompute(recompute: Recompute) -> &'static str {
    match recompute {
        Recompute::None => "none",
        Recompute::Selective => "selective",
        Recompute::Full => "full",
    }
}

fn of_reduction(Reduction { algorithm, codec }: Reduction) -> String {
    match codec {
        Codec::None => of_algorithm(algorithm),
        lossy => format!("{} as {}", of_algorithm(algorithm), of_codec(lossy)),
    }
}

fn of_algorithm(algorithm: Algorithm) -> String {
    match algorithm {
        Algorithm::Ring => "ring".to_owned(),
        Algorithm::DoubleBinaryTree => "double binary tree".to_owned(),
        Algorithm::HalvingDoubling => "halving-doubling".to_owned(),
        Algorithm::Hierarchical { inner } => format!("hierarchy of {inner}"),
        Algorithm::Torus { columns } => format!("torus of {columns} columns"),
    }
}

/// All options of a codec, including those that its label does not contain.
fn of_codec(codec: Codec) -> String {
    match codec {
        Codec::None => "it is".to_owned(),
        Codec::Fp16 => "fp16".to_owned(),
        Codec::Bf16 => "bf16".to_owned(),
        Codec::Int8 { block } => format!("int8 in blocks of {block}"),
        Codec::PowerSgd { rank, start_step } => format!("powersgd of rank {rank} from step {start_step}"),
        Codec::PowerSgdHalf { rank, start_step } => {
            format!("half powersgd of rank {rank} from step {start_step}")
        }
        Codec::TopK { per_mille } => format!("top {per_mille} of a thousand"),
        Codec::Dgc { per_mille, start_step } => {
            format!("dgc {per_mille} of a thousand from step {start_step}")
        }
        Codec::OneBit => "one bit".to_owned(),
        Codec::Qsgd { levels, bucket } => format!("qsgd {levels} levels in buckets of {bucket}"),
        Codec::TernGrad => "terngrad".to_owned(),
        Codec::OneBitAdam { warmup_steps } => format!("one-bit adam from step {warmup_steps}"),
    }
}

fn yes(it_is: bool) -> &'static str {
    if it_is { "yes" } else { "no" }
}

fn words<T: Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(" ")
}

fn line(out: &mut String, text: impl Display) {
    writeln!(out, "{text}").expect("a String takes any text");
}
