//! `autodist train`

use crate::cli::TrainArgs;
use crate::failure::Failure;
use crate::keep::{self, Kept};
use crate::progress::Progress;
use crate::step_log::StepLog;
use crate::{devices, engine, external, input, look, output, train};
use autodist_executor::{DataSource, SyntheticLanguage, Task};
use autodist_reports::{terminal, tokens_per_second};
use autodist_spec::{InputError, Plan, RunRecord, to_json};

pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let plan = input::nth_plan(&args.plan, args.number)?;
    if args.steps == 0 {
        return Err(InputError::new("--steps", 0, "must be at least 1")
            .hint("give a number of steps such as 200")
            .into());
    }
    input::check_data_file(args.data.as_ref())?;
    let data = train::data(args.data.as_ref(), &plan.model, &plan.job)?;
    let engine = engine::of_plan(&args.run, &plan);
    engine::check(engine, &plan, &plan.strategy, "strategy")?;
    devices::check_precision_of(&plan)?;
    let options = train::options(&args.run, engine, plan.cost_source.devices(), plan.emulated())?;
    output::check_no_input(&args.output)?;
    output::check_writable(&args.output)?;
    let _claim = output::claim(&args.output)?;
    external::compare_machines(&plan)?;
    let codec_warmup = plan.strategy.communication.warmup_steps();
    let warmup = train::WARMUP_STEPS.max(codec_warmup).min(args.steps - 1);
    let task = Task::of_plan(&plan, data.clone(), args.steps, warmup);
    let mut kept = Kept::for_output(&args.output)?;
    let mut log = args.log.as_ref().map(|path| StepLog::create(path, &args.output, &plan.job)).transpose()?;
    let mut progress = Progress::new("train");
    let trained = train::run(&task, &options, |growing| {
        if let Some(last) = growing.last() {
            let rate = tokens_per_second(plan.job.tokens() as f64 / last.time_s.0);
            let what = format!("loss {:.4}, {rate}, {} per step", last.loss, last.time_s);
            progress.at(growing.done() as usize, args.steps as usize, &what);
        }
        if let Some(log) = &mut log {
            log.add(growing.news(), &progress);
        }
        kept.grow(&progress, || growing.record(train::environment(growing, &options), Some(keep::UNDER_WAY)));
    });
    progress.end(trained.failure.is_none());
    let logged = log.map_or(Ok(()), StepLog::end);
    let Some(record) = trained.record else {
        return Err(trained
            .failure
            .unwrap_or_else(|| Failure::Run("no rank has completed a step".to_owned())));
    };
    let written = match &trained.failure {
        None => output::write(&args.output, to_json(&record).as_bytes()).map(|()| {
            kept.remove();
            output::note(&format!("wrote {}", args.output.display()));
        }),
        Some(_) => kept.end_early(&args.output, &record).map(|path| {
            let done = record.ended.as_ref().map_or(0, |ended| ended.step);
            output::note(&format!(
                "wrote the measurements of {done} of {} steps to {}",
                args.steps,
                path.display()
            ));
        }),
    };
    let text = if args.json { to_json(&record) } else { summary(&record, &plan, &data) };
    let shown = output::print_with(&text, written.and(logged));
    match trained.failure {
        None => shown,
        // The reason for the end matters more than a missing file, but both are reported.
        Some(failure) => {
            shown.unwrap_or_else(|other| output::error(&other));
            Err(failure)
        }
    }
}

fn summary(record: &RunRecord, plan: &Plan, data: &DataSource) -> String {
    let mut text = terminal::run_summary(record, &look::view());
    if *data == DataSource::Synthetic {
        let floor = SyntheticLanguage::new(plan.model.vocab).entropy();
        let floor = format!(
            "The synthetic language's entropy is {floor:.4} nats per token: apart from noise between batches, no model \
             reaches a lower loss"
        );
        text += &terminal::wrapped(&floor, &look::view());
    }
    text
}
