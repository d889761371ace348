//! Estimates, searches, tables of runs and exports agree on which strategies a trainer takes.

use crate::common;

use autodist_analytic::{
    CataloguePrices, FreeParameters, NodeModel, ParallelDims, Trainer, TrainingRun, software,
};
use autodist_exporters::{Options, Target, export};
use autodist_hardware::Catalogue;
use autodist_planner::{PlanError, Planner, SearchLimits};
use autodist_program::{framework, rules};
use autodist_spec::{
    Bytes, CatalogueReference, Cluster, Job, ModelSpec, ParallelStrategy, Precision, Recompute, ScheduleKind,
    catalog,
};
use common::{line, write};
use std::sync::Arc;

const DEVICES: u32 = 8;

/// Small strategies of eight devices, legal and not.
fn strategies(job: &Job) -> Vec<ParallelStrategy> {
    let mut list = Vec::new();
    for tensor in [1, 2, 8] {
        for pipeline in [1, 2, 4, 8] {
            for (schedule, virtual_stages) in
                [(ScheduleKind::OneFOneB, 1), (ScheduleKind::Interleaved, 2), (ScheduleKind::Interleaved, 3)]
            {
                for (zero_stage, grouped) in [(0, false), (1, false), (2, false), (3, false), (3, true)] {
                    for (micro_batch, sequence_parallel) in [(1, false), (2, true)] {
                        if tensor * pipeline > DEVICES {
                            continue;
                        }
                        let data = DEVICES / tensor / pipeline;
                        let shard = if grouped { (data / 2).max(1) } else { data };
                        list.push(ParallelStrategy {
                            tensor,
                            pipeline,
                            virtual_stages,
                            schedule,
                            zero_stage,
                            shard: if zero_stage == 0 { 1 } else { shard },
                            sequence_parallel,
                            bucket_bytes: software::BUCKET,
                            ..ParallelStrategy::data_parallel(data, micro_batch)
                        });
                    }
                }
            }
        }
    }
    // As a search, which has one schedule without pipelines.
    list.retain(|s| s.pipeline > 1 || s.virtual_stages == 1);
    list.retain(|s| s.micro_batches(job.global_batch) > 0);
    list
}

/// A job whose search has this strategy alone.
fn only(job: &Job, strategy: &ParallelStrategy) -> Job {
    let mut job = job.clone();
    let allow = &mut job.allow;
    allow.tensor = Some(vec![strategy.tensor]);
    allow.pipeline = Some(vec![strategy.pipeline]);
    allow.data = Some(vec![strategy.data]);
    allow.context = Some(vec![1]);
    allow.shard = (strategy.zero_stage > 0).then(|| vec![strategy.shard]);
    allow.zero_stage = vec![strategy.zero_stage];
    allow.schedule = vec![strategy.schedule];
    allow.virtual_stages = Some(vec![strategy.virtual_stages]);
    allow.micro_batch = Some(vec![strategy.micro_batch]);
    allow.sequence_parallel = vec![strategy.sequence_parallel];
    allow.recompute = vec![Recompute::None];
    allow.partial_recompute = false;
    allow.bucket_bytes = vec![strategy.bucket_bytes];
    job
}

fn reference(trainer: &str) -> CatalogueReference {
    CatalogueReference {
        trainer: trainer.to_owned(),
        calibration: String::new(),
        fingerprint: String::new(),
        devices: String::new(),
        error_bar_of: String::new(),
        kernels: None,
    }
}

/// A dense model and one of tied embeddings, with eight blocks.
fn models() -> Vec<ModelSpec> {
    let small = |name: &str| {
        let whole = catalog::model(name).unwrap();
        let blocks: Vec<_> = (1..=8).map(|layer| whole.block(layer)).collect();
        whole.with_blocks(&blocks)
    };
    vec![small("llama3-8b"), ModelSpec { heads: 16, kv_heads: 16, ..small("gpt2-large") }]
}

#[test]
fn all_who_ask_get_the_same_answer() {
    let mut cluster = Cluster::from_short_form("1x8xa100-80gb-sxm").unwrap();
    cluster.nodes[0].device.memory_bytes = Bytes(1 << 50);
    let machine = Arc::new(NodeModel::of_nodes(&cluster, 0, &Catalogue::shipped()).unwrap());
    let (mut legal, mut asked) = (0, 0);
    for (model, global_batch) in models().iter().flat_map(|model| [6, 16].map(|batch| (model, batch))) {
        let job = Job { precision: Precision::Bf16, ..Job::new(global_batch, 1024) };
        for trainer in Trainer::ALL.iter().copied() {
            let run = TrainingRun {
                seq_len: job.seq_len,
                global_batch,
                ..TrainingRun::new(model, Arc::clone(&machine), ParallelDims::default(), trainer)
            };
            let costs =
                CataloguePrices::new(&run, DEVICES, FreeParameters::shipped()).cost_model(model, &job, 0.1);
            let reference = reference(trainer.name());
            let planner = Planner::of_catalogue(model, &cluster, &job, costs.clone(), &reference);
            for strategy in strategies(&job) {
                let about = format!("{trainer}, {}, batch {global_batch}: {}", model.name, strategy.label());
                let general = rules::check_strategy(model, &job, DEVICES, &strategy).is_ok();
                let own = framework::check(trainer.framework(), model, &job, &strategy);
                let truth = general && own.is_ok();
                (asked, legal) = (asked + 1, legal + u32::from(truth));

                let priced = planner.priced(&strategy, None);
                assert!(matches!(&priced, Ok(_) | Err(PlanError::Illegal(_))), "{about}: {priced:?}");
                assert_eq!(priced.is_ok(), truth, "estimate: {about}: {own:?}");

                let layout = ParallelDims {
                    tensor: strategy.tensor,
                    context: 1,
                    data: strategy.data,
                    pipeline: strategy.pipeline,
                    virtual_stages: strategy.virtual_stages,
                    expert: 1,
                    sequence_parallel: strategy.sequence_parallel,
                    zero_stage: strategy.zero_stage,
                    shard: strategy.shard,
                };
                let described = TrainingRun { layout, micro_batch: strategy.micro_batch, ..run.clone() };
                // A table's ZeRO stage of a single replica is stage 0.
                if strategy.zero_stage == 0 || strategy.shards() > 1 {
                    assert_eq!(described.check(false).is_ok(), truth, "backtest: {about}");
                }

                // A search has fewer options: those that are usual.
                let mut one = only(&job, &strategy);
                if software::narrow(&mut one, trainer).is_ok() {
                    let limits = SearchLimits { top: 1, threads: 1, ..SearchLimits::default() };
                    let search = Planner::of_catalogue(model, &cluster, &one, costs.clone(), &reference);
                    let found = search.limits(limits).plan().is_ok();
                    // A search leaves out sequence parallelism without tensor parallelism, and shard groups of one rank.
                    assert_eq!(found, truth, "plan: {about}");
                }
            }
        }
    }
    assert!(legal > 200 && asked > 2 * legal, "{legal} of {asked} strategies are legal");
}

/// What a trainer refuses at start is not exported to it, whichever trainer it was planned for.
#[test]
fn an_exported_plan_keeps_the_rules_of_its_target() {
    let cluster = Cluster::from_short_form("1x8xa100-80gb-sxm").unwrap();
    let machine = Arc::new(NodeModel::of_nodes(&cluster, 0, &Catalogue::shipped()).unwrap());
    let options = Options { checkpoint_interval: None, script: None, image: String::new() };
    let (mut refused, mut written) = (0, 0);
    for model in models() {
        let job = Job { precision: Precision::Bf16, ..Job::new(6, 1024) };
        let run = TrainingRun {
            seq_len: 1024,
            ..TrainingRun::new(&model, Arc::clone(&machine), ParallelDims::default(), Trainer::MegatronCore)
        };
        let costs =
            CataloguePrices::new(&run, DEVICES, FreeParameters::shipped()).cost_model(&model, &job, 0.1);
        // A plan of nobody's rules but those of every strategy.
        let nobody = reference("");
        let planner = Planner::of_catalogue(&model, &cluster, &job, costs, &nobody);
        for strategy in strategies(&job) {
            let Ok((plan, _)) = planner.priced(&strategy, None) else { continue };
            for (target, framework) in Target::ALL.iter().filter_map(|one| Some((*one, one.framework()?))) {
                let broken: Vec<_> = framework::broken(framework, &model, &job, &strategy).collect();
                let exported = export(&plan, target, &options);
                let about = format!("{} to {}", strategy.label(), target.name());
                assert!(broken.is_empty() || exported.is_err(), "{about}: {broken:?}");
                refused += u32::from(!broken.is_empty());
                written += u32::from(exported.is_ok());
            }
        }
    }
    assert!(refused > 20 && written > 20, "{refused} refused, {written} written");
}

/// The commands answer with the same rule, its values and a way out.
#[test]
fn commands_name_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    let job = "--model llama3-8b --cluster 2x8xh100-80gb-sxm@8x400gbps --seq-len 4096 --global-batch 8";
    let pipeline = "--tp 1 --pp 8 --dp 2 --zero 0 --micro-batch 1 --recompute full";
    let words = "has more stages than the 4 micro-batches of a step, which PyTorch's 1F1B refuses";
    line(folder.path(), &format!("estimate {job} {pipeline} -o plan.json")).ok();
    let header = "id,model_family,layers,hidden,heads,kv_heads,ffn,vocab,seq_len,gpu,gpus_total,gpus_per_node,inter_link,\
                  precision,tp,pp,dp,zero_stage,micro_batch,global_batch,recompute,trainer";
    let run =
        "a,llama,32,4096,32,8,14336,128256,4096,h100-80gb-sxm,16,8,8x400Gb/s,bf16,1,8,2,0,1,8,full,fsdp2";
    write(folder.path(), "runs.csv", format!("{header}\n{run}\n"));
    for (command, code) in [
        (format!("estimate {job} {pipeline} --trainer torchtitan"), 2),
        ("export plan.json --to torchtitan -o out".to_owned(), 2),
        ("backtest runs.csv".to_owned(), 0),
    ] {
        let run = line(folder.path(), &command);
        assert_eq!(run.code, Some(code), "{command}: {}", run.err);
        // Tables are wrapped.
        let told = (run.err + &run.out).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(told.contains(words), "{command}: {told}");
    }
    assert!(!folder.path().join("out").exists());
    // Whose rule it is, if nobody named the trainer.
    let interleaved = "--tp 1 --pp 8 --vpp 2 --dp 2 --zero 0 --micro-batch 1";
    let run = line(folder.path(), &format!("estimate {job} {interleaved}"));
    assert_eq!(run.code, Some(2), "{}", run.out);
    assert!(
        run.err.contains("the interleaved schedule refuses")
            && run.err.contains("use a smaller --micro-batch")
    );
    assert!(run.err.contains("a rule of megatron-core, which is assumed without `--trainer`"), "{}", run.err);
    // Rounds of more micro-batches than stages are legal for Megatron-Core, if it is told.
    let six =
        job.replace("--global-batch 8", "--global-batch 6").replace("2x8x", "1x4x").replace("@8x400gbps", "");
    line(folder.path(), &format!("estimate {six} --pp 4 --vpp 2 --micro-batch 1 -o six.json")).ok();
    line(folder.path(), "export six.json --to megatron -o out").ok();
    let script = std::fs::read_to_string(folder.path().join("out/megatron.sh")).unwrap();
    assert!(script.contains("--microbatch-group-size-per-virtual-pipeline-stage 6"), "{script}");
}
