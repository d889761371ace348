//! One measured run: its configuration, its step time, and its prediction.

use crate::cli::{FigureArgs, MeasuredRunArgs, PriceArgs, SoftwareArgs};
use crate::commands::catalogue::{Figures, Software};
use crate::commands::estimate_unmeasured::Asked;
use crate::commands::from_trainer::FlagsAndFile;
use crate::commands::refused;
use crate::failure::Failure;
use crate::{input, output};
use autodist_analytic::table::TableRow;
use autodist_analytic::{FreeParameters, StepWork, Trainer, fit};
use autodist_exporters::logs::{self, LoggedJob, StepTime};
use autodist_planner::{MemoryShortfall, Planner};
use autodist_spec::{InputError, Plan, Seconds, Utilisation};

/// A run, the plan of which is priced again after the fit.
pub struct OwnRun<'a> {
    pub measured_s: f64,
    /// How the time was taken from a log.
    pub log: Option<StepTime>,
    pub before_s: f64,
    /// For the fit.
    pub row: TableRow,
    figures: Figures,
    asked: Described<'a>,
}

/// What was run.
enum Described<'a> {
    Flags(Box<Asked<'a>>),
    Plan(Box<Plan>, Software),
}

impl Described<'_> {
    fn software(&self) -> &Software {
        match self {
            Self::Flags(asked) => &asked.software,
            Self::Plan(_, software) => software,
        }
    }

    /// # Errors
    /// The plan cannot be priced.
    fn plan(&self, figures: &Figures) -> Result<(Plan, Option<MemoryShortfall>), Failure> {
        match self {
            Self::Flags(asked) => asked.plan(figures),
            Self::Plan(given, software) => {
                let (costs, reference) = figures.costs(&given.model, &given.job, software);
                let planner =
                    Planner::of_catalogue(&given.model, &given.cluster, &given.job, costs, &reference);
                let priced = planner.priced(&given.strategy, Some(&given.stages));
                priced.map_err(|error| refused(&given.strategy, error))
            }
        }
    }
}

impl<'a> OwnRun<'a> {
    /// # Errors
    /// The run is not described, has no time, or cannot be predicted.
    pub fn of(
        id: &str,
        args: &'a MeasuredRunArgs,
        figures: &FigureArgs,
        middle: &FreeParameters,
    ) -> Result<Self, Failure> {
        let (figures, asked) = match &args.plan_file {
            Some(path) => Self::of_plan(&input::nth_plan(path, args.number)?, figures, middle)?,
            None => Self::of_flags(args, figures, middle)?,
        };
        let (plan, shortfall) = asked.plan(&figures)?;
        if shortfall.is_some() {
            output::note(&format!(
                "{id}: by the prediction this run does not fit in memory, though it ran: see that the configuration is the one that was measured"
            ));
        }
        let (measured_s, log) = time(id, args, &plan, Some(asked.software().trainer))?;
        let before_s = plan.estimate.step_time_s.0;
        plausible(id, &plan, measured_s)?;
        let row = row(id, &figures, asked.software(), &plan, measured_s, middle)?;
        Ok(Self { measured_s, log, before_s, row, figures, asked })
    }

    fn of_flags(
        args: &'a MeasuredRunArgs,
        figures: &FigureArgs,
        middle: &FreeParameters,
    ) -> Result<(Figures, Described<'a>), Failure> {
        let Some(cluster) = &args.cluster else {
            let error =
                InputError::new("--cluster", "", "is required: on which machines was the time measured?");
            return Err(error
                .hint("e.g. `--cluster 2x8xh100-80gb-sxm@8x400gbps`, or `--profile` for the machine of a profile")
                .into());
        };
        if args.model.is_none() && args.from.is_empty() {
            let error = InputError::new("--model", "", "is required without --from and --plan-file");
            return Err(error.hint("e.g. `--model llama3-8b`, or the path of a config.json").into());
        }
        let price = PriceArgs { profile: None, cluster: None, device_memory: None, price: None };
        let figures = fitted(Figures::of(cluster, figures, &price)?, middle);
        let request = FlagsAndFile {
            from: &args.from,
            model: args.model.as_deref(),
            job: &args.job,
            strategy: &args.strategy,
            search: false,
        };
        let software = SoftwareArgs { trainer: args.trainer, ..SoftwareArgs::default() };
        let asked = Asked::of(request, software, &figures)?;
        Ok((figures, Described::Flags(Box::new(asked))))
    }

    fn of_plan(
        plan: &Plan,
        figures: &FigureArgs,
        middle: &FreeParameters,
    ) -> Result<(Figures, Described<'a>), Failure> {
        let found = Figures::of_plan(plan, figures)?;
        let (figures, software) = found.ok_or_else(|| {
            let problem = "was made from a profile, but other runs of this command have none";
            InputError::new("--plan-file", &plan.cluster.name, problem)
                .hint("give that profile for all runs with `--profile`, or calibrate with this run alone")
        })?;
        Ok((fitted(figures, middle), Described::Plan(Box::new(plan.clone()), software)))
    }

    /// The prediction with other efficiencies.
    ///
    /// # Errors
    /// The plan cannot be priced.
    pub fn predicted_s(&self, parameters: &FreeParameters) -> Result<f64, Failure> {
        let mut figures = self.figures.clone();
        figures.parameters = *parameters;
        Ok(self.asked.plan(&figures)?.0.estimate.step_time_s.0)
    }
}

/// Every run is predicted by the efficiencies that are being fitted.
fn fitted(mut figures: Figures, middle: &FreeParameters) -> Figures {
    figures.parameters = *middle;
    figures.calibration.own = None;
    figures
}

/// How many times as long as predicted, or as short, a step may take: more is another unit, or another run.
const MOST: f64 = 5.0;

/// # Errors
/// A time that the devices cannot reach, or that is far from any prediction.
pub fn plausible(id: &str, plan: &Plan, measured_s: f64) -> Result<(), InputError> {
    let all = Utilisation::of(&plan.model, &plan.job, &plan.cluster, Seconds(measured_s));
    let predicted = plan.estimate.step_time_s;
    let times = measured_s / predicted.0;
    let problem = if times < 1.0 / MOST {
        format!("is less than a fifth of the predicted {predicted}")
    } else if all.contradiction().is_some() {
        format!("is faster than the peak of the devices allows: {all}; predicted {predicted}")
    } else if times > MOST {
        format!("is {times:.0} times the predicted {predicted}")
    } else {
        return Ok(());
    };
    Err(InputError::new("--measured", Seconds(measured_s), problem)
        .hint("check the unit (`412ms`, `41.2s`), and that model, batch, devices and strategy are those of the run")
        .in_file(id))
}

/// The measured time: given, or from a log.
///
/// # Errors
/// There is none, the log cannot be read, or it is of another run.
pub fn time(
    id: &str,
    args: &MeasuredRunArgs,
    plan: &Plan,
    trainer: Option<Trainer>,
) -> Result<(f64, Option<StepTime>), Failure> {
    let Some(path) = &args.log else {
        let Some(measured) = args.measured else {
            let error = InputError::new("--measured", "", "is required: how long did a step take?");
            return Err(error.hint("e.g. `--measured 41.2s`, or `--log train.log`").into());
        };
        if !(1e-6..=1e6).contains(&measured) {
            let error = InputError::new(
                "--measured",
                measured,
                "is not the time of a step: expected 1e-6 to 1e6 seconds",
            );
            return Err(error.hint("e.g. `--measured 41.2s` or `--measured 412ms`").into());
        }
        return Ok((measured, None));
    };
    let file = path.display().to_string();
    // A single run is named by its log.
    let of = if id == file { String::new() } else { format!("{id}: ") };
    let content = input::bytes(path, "log")?;
    let log = logs::read(&content, args.log_format).map_err(|error| error.in_file(&file))?;
    let job = LoggedJob {
        global_batch: plan.job.global_batch,
        seq_len: plan.job.seq_len,
        devices: plan.cluster.device_count(),
    };
    let time = log.step_time(&job).map_err(|error| error.in_file(&file))?;
    let spread = time.spread.map_or(String::new(), |spread| format!(" ± {:.1} %", 100.0 * spread));
    let dropped: Vec<String> = time.dropped.iter().map(|one| format!("{} {}", one.lines, one.why)).collect();
    let dropped =
        if dropped.is_empty() { String::new() } else { format!("; not counted: {}", dropped.join(", ")) };
    output::note(&format!(
        "{of}{file} is a log of {}: median step time {}{spread} of {} lines{dropped}",
        log.format.words(),
        Seconds(time.seconds),
        time.lines
    ));
    log.notes.iter().for_each(|note| output::note(&format!("{id}: {note}")));
    if let Some(trainer) = trainer.filter(|trainer| !log.format.may_be_of(trainer.name())) {
        output::warn(&format!(
            "{of}{file} is a log of {}, but the run is described as one of {trainer}: see that both are of the same run",
            log.format.words()
        ));
    }
    compare_memory(id, log.memory, plan);
    Ok((time.seconds, Some(time)))
}

/// Says what the log's memory was predicted as: of a run that was predicted with half of it, something else is wrong.
fn compare_memory(id: &str, memory: logs::PeakMemory, plan: &Plan) {
    let predicted = plan.estimate.peak_memory_bytes;
    let said = [("allocated", memory.allocated), ("reserved", memory.reserved)];
    let parts: Vec<String> =
        said.iter().filter_map(|(name, bytes)| Some(format!("{} {name}", (*bytes)?))).collect();
    if !parts.is_empty() {
        output::note(&format!("{id}: peak memory in the log: {}; predicted {predicted}", parts.join(", ")));
        let more =
            said.iter().filter_map(|(_, bytes)| *bytes).max().unwrap_or_default().saturating_sub(predicted);
        if more.as_f64() > 0.1 * predicted.as_f64() {
            output::warn(&format!(
                "{id}: the run needed {more} more than predicted, which the calibration does not correct: plan with that much less \
                 `--device-memory`"
            ));
        }
    }
}

/// The row of the fit. Its closed form is not the simulation of the plan, so the time is scaled by what the two differ:
/// after the fit the simulation has the measured time.
fn row(
    id: &str,
    figures: &Figures,
    software: &Software,
    plan: &Plan,
    measured_s: f64,
    middle: &FreeParameters,
) -> Result<TableRow, Failure> {
    let run = figures.run_of(plan, software).ok_or_else(|| {
        InputError::new(
            "--cluster",
            &plan.cluster.name,
            "has several kinds of nodes, which a fit cannot tell apart",
        )
        .hint("calibrate with runs on nodes of one kind")
    })?;
    let closed = fit::seconds(&run, &StepWork::of(&run), middle);
    let row = TableRow {
        id: id.to_owned(),
        group: "own".to_owned(),
        source: String::new(),
        device: run.machine.device_name.clone(),
        precision: run.dtype.name().to_owned(),
        dense: run.block.experts.is_none(),
        quality: "A".to_owned(),
        measured_s: Some(measured_s * closed / plan.estimate.step_time_s.0),
        measured_memory_gb: None,
        run: Ok(run),
    };
    if !row.is_for_fitting() {
        let what = if row.dense { row.precision.as_str() } else { "a model of experts" };
        let problem = "cannot be calibrated: only runs of dense models in bf16, fp16 or fp8 have a fit";
        return Err(InputError::new("the run", what, problem).hint("give a run of such a model").into());
    }
    Ok(row)
}
