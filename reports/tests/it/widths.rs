//! Views at several widths, with and without colour. Marks of emphasis are shown as `<`, a letter, and `>`.

use crate::fixture::{gpu_world, world};
use autodist_reports::{END, Style, TerminalView, terminal};
use autodist_spec::Seconds;
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use std::collections::BTreeSet;

/// Every view of made-up documents.
fn views(view: &TerminalView) -> Vec<String> {
    let (world, gpus) = (world(), gpu_world());
    vec![
        answer(view),
        refuted(view),
        terminal::plan_summary(&world.plan, None, view),
        terminal::validation_table(&world.validation, view),
        terminal::profile_summary(&world.profile, None, view),
        terminal::profile_summary(&gpus.profile, None, view),
        terminal::run_summary(&world.runs[0], view),
        terminal::run_summary(&gpus.runs[0], view),
    ]
}

/// The top of `tune` and `validate`.
fn answer(view: &TerminalView) -> String {
    let mut world = world();
    world.validation.runs[0].label = label(&world.plan.strategy, &world.plan.stages);
    let files = [("next", "autodist train autodist-tune/plan.json".to_owned())];
    terminal::answer(&world.plan, &world.validation, &files, view)
}

/// The same, and the table, where another plan is faster than the planner's choice.
fn refuted(view: &TerminalView) -> String {
    let mut world = world();
    let choice = world.validation.runs[0].label.clone();
    let faster = &mut world.validation.runs[1];
    faster.label = label(&world.plan.strategy, &world.plan.stages);
    (faster.measured.adjusted_step_time_s, faster.regret) = (Seconds(0.3), -0.3);
    world.validation.beaten_by = Some(faster.label.clone());
    world.validation.runs[0].verdict = Some(Verdict::Refuted);
    world.validation.verdict = Some(Verdict::Refuted);
    let text = terminal::answer(&world.plan, &world.validation, &[], view)
        + &terminal::validation_table(&world.validation, view);
    assert!(text.contains("REFUTED") && text.replace('\n', " ").contains(choice.split(' ').next().unwrap()));
    text
}

fn shown(text: &str) -> String {
    let letter = |style: Style| match style {
        Style::Strong => "<s>",
        Style::Good => "<g>",
        Style::Bad => "<b>",
        Style::Caution => "<c>",
    };
    text.chars()
        .map(|c| match Style::of_mark(c) {
            Some(style) => letter(style).to_owned(),
            None if c == END => "</>".to_owned(),
            None => c.to_string(),
        })
        .collect()
}

#[test]
fn the_answer_of_measurements() {
    let mut settings = insta::Settings::clone_current();
    settings.set_omit_expression(true);
    settings.set_prepend_module_to_snapshot(false);
    settings.set_snapshot_path("snapshots");
    for (name, colour) in [("answer", false), ("answer_colour", true)] {
        let texts: Vec<String> = [60, 80, 100, 160]
            .into_iter()
            .map(|width| {
                let view = TerminalView::new(width, colour, false);
                let table = terminal::validation_table(&world().validation, &view);
                format!("{}\n{}\n{table}\n{}", "=".repeat(width), answer(&view), refuted(&view))
            })
            .collect();
        settings.bind(|| insta::assert_snapshot!(name, shown(&texts.join("\n"))));
    }
}

#[test]
fn no_line_is_too_long_and_no_word_is_broken() {
    let plain = |width, verbose| views(&TerminalView::new(width, false, verbose)).concat();
    for verbose in [false, true] {
        let all = plain(TerminalView::WIDEST, verbose);
        let words: BTreeSet<&str> = all.split_whitespace().collect();
        for width in TerminalView::NARROWEST..TerminalView::WIDEST {
            let text = plain(width, verbose);
            for line in text.lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert_eq!(line, line.trim_end(), "no blanks at the end");
            }
            let broken: Vec<_> = (text.split_whitespace())
                .filter(|word| !word.starts_with(['-', '#']) && !words.contains(word))
                .collect();
            assert!(broken.is_empty(), "{width}: {broken:?}");
        }
    }
}

#[test]
fn emphasis_changes_no_text_and_hostile_text_has_none() {
    let unmarked = |text: &str| text.chars().filter(|c| *c == '\n' || !c.is_control()).collect::<String>();
    for width in [60, 80, 160] {
        let coloured = views(&TerminalView::new(width, true, true));
        let plain = views(&TerminalView::new(width, false, true));
        assert!(coloured.concat().contains(END));
        for (coloured, plain) in coloured.iter().zip(plain) {
            assert_eq!(unmarked(coloured), plain);
        }
    }
    let mut world = world();
    world.plan.model.name = "a\u{1}b\u{5}\u{1b}[2J".to_owned();
    let text = terminal::plan_summary(&world.plan, None, &TerminalView::new(80, true, false));
    assert!(text.contains("a\u{fffd}b\u{fffd}\u{fffd}[2J") && !text.contains('\u{1b}'), "{text}");
}
