//! `autodist compare`: which of several clusters is the best for a job, and how each grows.

use super::catalogue::{Figures, Software};
use super::{check_experts, plan};
use crate::cli::{CompareArgs, PriceArgs};
use crate::failure::Failure;
use crate::progress::Progress;
use crate::{input, look, output, price};
use autodist_planner::SearchLimits;
use autodist_reports::comparison;
use autodist_spec::{
    ClusterComparison, ComparedCluster, Difference, InputError, Job, ModelSpec, SCHEMA_VERSION, to_json,
};
use std::collections::BTreeSet;

pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    if args.clusters.len() < 2 && args.scale.is_none() {
        let error = InputError::new("CLUSTER", &args.clusters[0], "is the only cluster");
        return Err(error
            .hint("give two or more clusters to compare, or `--scale 8..1024` for several sizes of one")
            .into());
    }
    let model = input::model(&args.model)?;
    check_experts(&model, &args.strategy.ep)?;
    let prices = PriceArgs { profile: None, cluster: None, device_memory: None, price: args.price.clone() };
    let given: Vec<Figures> = args
        .clusters
        .iter()
        .map(|text| Figures::of(text, &args.figures, &prices))
        .collect::<Result<_, _>>()?;
    let mut all: Vec<Figures> = Vec::new();
    for (text, figures) in args.clusters.iter().zip(given) {
        match args.scale {
            None => all.push(figures),
            Some((from, to)) => {
                let doubled = std::iter::successors(Some(from), |size| size.checked_mul(2));
                for size in doubled.take_while(|size| *size <= to) {
                    all.push(figures.of_size(text, &args.figures, size)?);
                }
            }
        }
    }
    let software = Software::of(args.software);
    if args.software.trainer.is_none() {
        output::note(&format!("assumed: trainer {}: --trainer not given", software.trainer));
    }
    price::note_without_tokens(args.price.as_ref(), &args.job);
    let mut progress = Progress::new("compare");
    let mut clusters = Vec::new();
    let mut job = None;
    for (index, figures) in all.iter().enumerate() {
        progress.at(index, all.len(), &figures.cluster.name);
        let (used, compared) = best_on(args, figures, &model, &software)?;
        job.get_or_insert(used);
        clusters.push(compared);
    }
    drop(progress);
    if clusters.iter().all(|one| one.best.is_none()) {
        let reasons: Vec<String> = clusters
            .iter()
            .map(|one| format!("{}: {}", one.cluster, one.refused.as_deref().unwrap_or_default()))
            .collect();
        return Err(Failure::Infeasible(format!("no cluster has a plan\n{}", reasons.join("\n"))));
    }
    let assumed: BTreeSet<&String> = all.iter().flat_map(|figures| &figures.assumptions).collect();
    assumed.iter().for_each(|assumption| output::note_once(&format!("assumed: {assumption}")));
    let (faster, cheaper) = match args.scale {
        None => (Difference::of_time(&clusters), Difference::of_cost(&clusters)),
        Some(_) => (Vec::new(), Vec::new()),
    };
    let priced = |one: &ComparedCluster| one.best.as_ref().and_then(|best| best.training?.cost_usd);
    if clusters.iter().any(|one| priced(one).is_some()) {
        for one in clusters.iter().filter(|one| one.best.is_some() && priced(one).is_none()) {
            output::note_once(&format!(
                "{} has no price, so it is not known which cluster is the cheapest: give `--price {}=…`",
                one.cluster, one.device
            ));
        }
    }
    let document = ClusterComparison {
        schema_version: SCHEMA_VERSION,
        model: model.name.clone(),
        job: job.expect("there is at least one cluster"),
        clusters,
        faster,
        cheaper,
    };
    let text = if args.json {
        to_json(&document)
    } else {
        comparison::text(&document, args.scale.is_some(), &look::view())
    };
    let written = args.figure.as_ref().map_or(Ok(()), |path| {
        output::check_no_input(path)?;
        let figure = comparison::figure(&document);
        let figure = figure.map_err(|error| Failure::Run(format!("drawing the curves: {error}")))?;
        output::write(path, &figure)?;
        output::note(&format!("wrote {}", path.display()));
        Ok(())
    });
    output::print_with(&text, written)
}

/// The job as it is on a cluster, and its best plan there.
fn best_on(
    args: &CompareArgs,
    figures: &Figures,
    model: &ModelSpec,
    software: &Software,
) -> Result<(Job, ComparedCluster), Failure> {
    let mut job = input::job(&args.job, None, None, Some(figures.precision_for(&args.job)?))?;
    job.trainable.check_model(model).map_err(|error| input::blame_trainable(error, &args.job))?;
    let limits = SearchLimits { top: 1, ..SearchLimits::default() };
    // Degrees that do not divide one size of a cluster may divide another.
    let plan = input::narrow(&mut job, &args.strategy, figures.cluster.device_count())
        .and_then(|()| plan::fastest(figures, model, job.clone(), software, limits));
    let compared = match plan {
        Ok(plan) => ComparedCluster::of(&figures.cluster, Ok(&plan)),
        Err(Failure::Infeasible(why)) => ComparedCluster::of(&figures.cluster, Err(why)),
        Err(Failure::Input(error)) if args.scale.is_some() => {
            ComparedCluster::of(&figures.cluster, Err(error.to_string()))
        }
        Err(failure) => return Err(failure),
    };
    Ok((job, compared))
}
