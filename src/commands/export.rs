//! `autodist export`

use crate::cli::ExportArgs;
use crate::failure::Failure;
use crate::{engine, input, output};
use autodist_exporters::{Exported, File, NotGiven, Options, Target, export};
use autodist_spec::strategy::label;
use autodist_spec::{Engine, InputError, to_json};
use std::fmt::Write;
use std::path::Path;

pub fn run(args: &ExportArgs) -> Result<(), Failure> {
    let plan = input::nth_plan(&args.plan, args.number)?;
    if args.script.is_some() && args.to.is_trainer() {
        let script = args.script.as_deref().unwrap_or_default();
        let problem = format!("has no effect with `--to {}`, which writes its own script", args.to.name());
        let error = InputError::new("--script", script, problem);
        return Err(error.hint("remove `--script`, or use it with `--to slurm` or `--to kubernetes`").into());
    }
    for (flag, value) in [("--script", args.script.as_deref()), ("--image", Some(args.image.as_str()))] {
        value.map_or(Ok(()), |value| input::check_flag(flag, value))?;
    }
    if !args.to.is_trainer() && args.script.is_none() {
        // The job starts autodist itself.
        engine::check(Engine::Native, &plan, &plan.strategy, "strategy")
            .map_err(|error| error.hint("give the trainer's own script by `--script`"))?;
    }
    let options = Options {
        checkpoint_interval: args.checkpoint_interval,
        script: script(args)?,
        image: args.image.clone(),
    };
    let Exported { files, notes, not_given } = export(&plan, args.to, &options)
        .map_err(|refusals| refused(&args.plan.display().to_string(), args.to, &refusals))?;
    // A launcher's files contain the plan, which may be the very file that was read.
    files.iter().try_for_each(|file| {
        let path = args.output.join(&file.name);
        let same = std::fs::read(&path).is_ok_and(|content| content == file.content.as_bytes());
        if same { Ok(()) } else { output::check_no_input(&path) }
    })?;
    for file in &files {
        let path = args.output.join(&file.name);
        let write = if file.executable { output::write_script } else { output::write };
        write(&path, file.content.as_bytes())?;
    }
    if args.json {
        let files: Vec<_> = files.iter().map(|file| args.output.join(&file.name)).collect();
        let notes: Vec<_> = notes
            .iter()
            .map(|note| serde_json::json!({ "field": note.field.name(), "value": note.value, "instead": note.instead }))
            .collect();
        let not_given: Vec<_> = not_given
            .iter()
            .map(|one| serde_json::json!({ "field": one.what.name(), "asked_as": one.asked_as }))
            .collect();
        return output::print(&to_json(&serde_json::json!({
            "target": args.to.name(), "files": files, "instead": notes, "not_given": not_given,
        })));
    }
    let mut text = format!(
        "{} for {} ({})\n",
        label(&plan.strategy, &plan.stages),
        args.to.name(),
        args.to.exporter().version()
    );
    for File { name, executable, .. } in &files {
        let starts = if *executable { ", which starts it" } else { "" };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "wrote {}{starts}", args.output.join(name).display());
    }
    if !notes.is_empty() {
        text += "\nnot expressed in these files, with what the trainer does instead:\n";
        for note in &notes {
            let _ = writeln!(text, "  {note}");
        }
    }
    text += &of_nobody(&not_given);
    output::print(&text)
}

/// The script to start, as the job in the output folder finds it. For Kubernetes it is a path in the image.
fn script(args: &ExportArgs) -> Result<Option<String>, Failure> {
    let Some(given) = args.script.as_deref() else { return Ok(None) };
    if args.to != Target::Slurm || Path::new(given).is_absolute() {
        return Ok(Some(given.to_owned()));
    }
    let wrong = |problem: String| {
        InputError::new("--script", given, problem).hint(
            "give a script that is in this folder or below it, or the absolute path that it has on the nodes",
        )
    };
    let absolute = |path: &Path| std::path::absolute(path).map_err(|error| wrong(error.to_string()));
    let (path, folder) = (absolute(Path::new(given))?, absolute(&args.output)?);
    if !path.is_file() {
        return Err(wrong("is not a file".to_owned()).into());
    }
    // The job is submitted in its folder.
    let path = path.strip_prefix(&folder).unwrap_or(&path);
    Ok(Some(path.display().to_string()))
}

/// A note on hyperparameters that are in no file, because they were not given.
fn of_nobody(not_given: &[NotGiven]) -> String {
    let (asked, left): (Vec<_>, Vec<_>) = not_given.iter().partition(|one| !one.asked_as.is_empty());
    let mut text = String::new();
    if !not_given.is_empty() {
        text += "\nnot in these files, because neither a flag nor a job file gave it:\n";
    }
    for one in asked {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {}: not given; the script asks for {}",
            one.what.name(),
            one.asked_as.join(" and ")
        );
    }
    if !left.is_empty() {
        let names: Vec<_> = left.iter().map(|one| one.what.name()).collect();
        let _ = writeln!(text, "  {}: not given; the trainer's defaults apply", names.join(", "));
    }
    text
}

/// All obstacles to an export in one error.
fn refused(file: &str, target: Target, refusals: &[InputError]) -> Failure {
    let mut problem = format!("{} cannot train this plan", target.name());
    for refusal in refusals {
        problem += &format!("\n  {} {}: {}; {}", refusal.field, refusal.value, refusal.problem, refusal.hint);
    }
    InputError::new("", "", problem)
        .hint("plan again with these restrictions, or export to another target")
        .in_file(file)
        .into()
}
