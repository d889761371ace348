//! `autodist train`

use crate::cli::TrainArgs;
use crate::failure::Failure;
use crate::{engine, external, input, output, train};
use autodist_executor::{DataSource, SyntheticLanguage, Task};
use autodist_reports::terminal;
use autodist_spec::{InputError, to_json};

pub fn run(args: &TrainArgs) -> Result<(), Failure> {
    let plan = input::plan(&args.plan)?;
    if args.steps == 0 {
        return Err(InputError::new("--steps", 0, "must be at least 1")
            .hint("200 show what is learnt")
            .into());
    }
    input::check_data_file(args.data.as_ref())?;
    let data = train::data(args.data.as_ref(), &plan.model, &plan.job)?;
    let engine = engine::of_plan(&args.run, &plan);
    engine::check(engine, &plan, &plan.strategy, "strategy")?;
    let options = train::options(&args.run, engine, plan.profile.devices, plan.emulated())?;
    output::check_writable(&args.output)?;
    external::compare_machines(&plan)?;
    let codec_warmup = plan.strategy.communication.warmup_steps();
    let warmup = train::WARMUP_STEPS.max(codec_warmup).min(args.steps - 1);
    let task = Task::of_plan(&plan, data.clone(), args.steps, warmup);
    let record = train::run(&task, &options)?;
    output::write(&args.output, to_json(&record).as_bytes())?;
    output::note(&format!("wrote {}", args.output.display()));
    if args.json {
        output::print(&to_json(&record))?;
        return Ok(());
    }
    output::print(&terminal::run_summary(&record))?;
    if data == DataSource::Synthetic {
        let floor = SyntheticLanguage::new(plan.model.vocab).entropy();
        output::print(&format!(
            "The synthetic language's entropy is {floor:.4} nats a token: but for the scatter of single batches, no model's loss lies below it"
        ))?;
    }
    Ok(())
}
