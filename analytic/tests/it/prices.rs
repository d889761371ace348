//! Programs priced from the catalogue, compared with the closed form that was fitted to published runs.

use autodist_analytic::{CataloguePrices, FreeParameters, Shape, Trainer, TrainingRun, even_blocks, table};
use autodist_hardware::{Catalogue, Dtype};
use autodist_program::{Program, stages};
use autodist_spec::{
    Activation, Bytes, Job, ModelSpec, Norm, ParallelStrategy, Positions, Precision, ScheduleKind, catalog,
};

fn model(shape: &Shape, seq_len: u32) -> ModelSpec {
    ModelSpec {
        layers: shape.layers,
        hidden: shape.hidden,
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        head_dim: shape.head_dim,
        ffn: shape.ffn,
        vocab: shape.vocab,
        max_seq_len: seq_len.max(shape.position_rows),
        positions: if shape.position_rows > 0 { Positions::Learned } else { Positions::Rotary { theta: 1e4 } },
        norm: Norm::LayerNorm,
        activation: if shape.gated { Activation::SwiGlu } else { Activation::Gelu },
        tied_embeddings: shape.tied_embeddings,
        ..catalog::model("tiny-llama").unwrap()
    }
}

/// Step time and memory of the program, and of the closed form.
fn both(run: &TrainingRun) -> Result<(f64, f64, f64, f64), String> {
    let layout = &run.layout;
    let supported = matches!(run.trainer, Trainer::MegatronCore | Trainer::Nemo | Trainer::Fsdp2);
    if !supported || run.dtype != Dtype::Bf16 || layout.context > 1 || run.shape.experts.is_some() {
        return Err("another kind".to_owned());
    }
    let model = model(&run.shape, run.seq_len);
    let job = Job { precision: Precision::Bf16, ..Job::new(run.global_batch, run.seq_len) };
    let strategy = ParallelStrategy {
        tensor: layout.tensor,
        pipeline: layout.pipeline,
        zero_stage: if layout.data > 1 { layout.zero_stage } else { 0 },
        shard: if layout.zero_stage > 0 && layout.data > 1 { layout.shard } else { 1 },
        virtual_stages: layout.virtual_stages,
        schedule: if layout.virtual_stages > 1 { ScheduleKind::Interleaved } else { ScheduleKind::OneFOneB },
        sequence_parallel: layout.sequence_parallel,
        recompute: run.recompute,
        bucket_bytes: Bytes(160_000_000),
        ..ParallelStrategy::data_parallel(layout.data, run.micro_batch)
    };
    let chunks = strategy.chunks();
    let (each, missing) = even_blocks(run.shape.layers, chunks).ok_or("uneven")?;
    let inner = (1..chunks).map(|chunk| (1 + chunk * each - missing) as usize);
    let ends: Vec<usize> =
        [0].into_iter().chain(inner).chain([run.shape.layers as usize + 2]).collect();
    let stages = stages::from_ends(&model, &ends, strategy.recompute);
    let program = Program::compile(&model, &job, layout.devices(), &strategy, &stages)
        .map_err(|illegal| illegal.to_string())?;
    let parameters = FreeParameters::shipped();
    let costs = CataloguePrices::new(run, layout.devices(), parameters).cost_model(&model, &job, 0.1);
    let priced = costs.price(&program).map_err(|unpriced| unpriced.to_string())?;
    let memory = priced.memory().iter().map(|memory| memory.total().as_f64()).fold(0.0, f64::max);
    let estimate = run.estimate(parameters, 0.1);
    Ok((priced.simulate().step_time_s.0, estimate.step.0, memory, estimate.memory.total()))
}

#[test]
fn published_runs() {
    let catalogue = Catalogue::shipped();
    let mut ratios = Vec::new();
    let mut errors = [Vec::new(), Vec::new()];
    for name in ["training_runs", "later_runs"] {
        let path = format!("{}/../catalog/published/{name}.csv", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read(&path).unwrap();
        for row in table::read(&text, &path, &catalogue).unwrap() {
            let Ok(run) = &row.run else { continue };
            match both(run) {
                Ok((program, closed, memory, other)) => {
                    let l = &run.layout;
                    println!(
                        "{:>10} {:<14} tp{} pp{} v{} dp{} z{} mb{} sp{} {:?} time {:.3} {:.3} ratio {:.3} memory ratio {:.3} measured {:.3?}",
                        row.id, run.trainer, l.tensor, l.pipeline, l.virtual_stages, l.data, l.zero_stage, run.micro_batch, l.sequence_parallel, run.recompute,
                        program, closed, program / closed, memory / other, row.measured_s
                    );
                    ratios.push(program / closed);
                    if let Some(measured) = row.measured_s {
                        errors[0].push((program / measured).ln().abs());
                        errors[1].push((closed / measured).ln().abs());
                    }
                }
                Err(why) => if why != "another kind" { println!("{:>10} {why}", row.id) },
            }
        }
    }
    let quantile = |list: &mut Vec<f64>, at: f64| {
        list.sort_by(f64::total_cmp);
        list[(at * (list.len() - 1) as f64) as usize]
    };
    println!("{} rows; ratio 5 % {:.3} median {:.3} 95 % {:.3}", ratios.len(), quantile(&mut ratios, 0.05), quantile(&mut ratios, 0.5), quantile(&mut ratios, 0.95));
    for (name, list) in ["program", "closed"].iter().zip(&mut errors) {
        println!("{name}: median {:.4} p90 {:.4} of {}", quantile(list, 0.5), quantile(list, 0.9), list.len());
    }
}
