//! The pictures: they decode, have content, and survive unusual numbers.

use crate::fixture;

use autodist_reports::{ReportInput, figures, html};
use autodist_spec::{Bytes, Estimate, Seconds, TimelineEvent};
use fixture::{World, world};
use std::collections::BTreeSet;

fn names(input: &ReportInput<'_>) -> Vec<String> {
    figures(input).expect("pictures").into_iter().map(|(name, _)| name).collect()
}

#[test]
fn pictures_decode_and_are_not_blank() {
    for (name, bytes) in figures(&world().input()).unwrap() {
        let mut reader = png::Decoder::new(bytes.as_slice()).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.width, 1200, "{name}");
        assert!((400..1500).contains(&info.height), "{name}: {}", info.height);
        let colors: BTreeSet<&[u8]> = pixels.chunks(3).collect();
        let inked = pixels.chunks(3).filter(|pixel| *pixel != [255, 255, 255]).count();
        assert!(colors.len() > 50, "{name}: {} colours", colors.len());
        assert!(inked > pixels.len() / 3 / 100, "{name}: {inked} pixels");
    }
}

#[test]
fn there_is_a_picture_for_what_is_known() {
    let world = world();
    let all = [
        "memory_vs_time.png",
        "cost.png",
        "memory.png",
        "timeline.png",
        "predicted_vs_measured.png",
        "loss.png",
        "links.png",
    ];
    assert_eq!(names(&world.input()), all);
    assert_eq!(names(&world.plan_only()), all[..3]);
    let mut alone = fixture::world();
    alone.plan.alternatives.clear();
    assert_eq!(names(&alone.plan_only()), all[1..3], "one layout is no landscape");
}

#[test]
fn pictures_are_the_same_every_time() {
    assert_eq!(figures(&world().input()).unwrap(), figures(&world().input()).unwrap());
}

/// Checks that both kinds of figure can be drawn.
fn check(change: impl FnOnce(&mut World)) {
    let mut world = world();
    change(&mut world);
    figures(&world.input()).expect("pictures");
    html(&world.input()).expect("a page");
}

fn flatten(estimate: &mut Estimate) {
    estimate.step_time_s = Seconds::ZERO;
    estimate.step_time_spread_s = Seconds::ZERO;
    estimate.cost = Default::default();
    estimate.memory = Default::default();
    estimate.stages.clear();
}

#[test]
fn zeros_everywhere_are_drawn() {
    check(|world| {
        flatten(&mut world.plan.estimate);
        world.plan.alternatives.iter_mut().for_each(|other| flatten(&mut other.estimate));
        for run in &mut world.validation.runs {
            flatten(&mut run.predicted);
            run.measured.step_time_s = Seconds::ZERO;
            run.measured.step_time_spread_s = Seconds::ZERO;
        }
        world.profile.collectives.iter_mut().for_each(|cell| cell.bytes = Bytes::ZERO);
        world.profile.messages.iter_mut().for_each(|cell| cell.time.median_s = Seconds::ZERO);
        world.runs.iter_mut().flat_map(|run| &mut run.steps).for_each(|step| step.loss = 0.0);
        world.plan.cluster.nodes.clear();
        world.plan.stages.clear();
    });
}

#[test]
fn numbers_that_are_none_are_left_out() {
    check(|world| {
        world.runs[0].steps[3].loss = f64::NAN;
        world.runs[1].steps.iter_mut().for_each(|step| step.loss = f64::INFINITY);
        world.validation.runs[0].measured.step_time_s = Seconds(f64::NAN);
        world.plan.estimate.cost.compute_s = Seconds(f64::NAN);
        world.plan.estimate.step_time_spread_s = Seconds(f64::INFINITY);
        world.predicted[0].end_s = Seconds(f64::NAN);
        world.profile.fits[0].beta_s_per_byte = f64::NAN;
        world.profile.collectives[0].time.high_s = Seconds(f64::INFINITY);
    });
}

#[test]
fn step_times_of_all_sizes_are_drawn() {
    check(|world| {
        for (index, run) in world.validation.runs.iter_mut().enumerate() {
            let size = 10f64.powi(index as i32 - 3);
            run.measured.step_time_s = Seconds(size);
            run.predicted.step_time_s = Seconds(size * 1.3);
        }
    });
}

/// Lines of the page's loss figure: the points of each.
fn loss_lines(world: &World) -> Vec<Vec<(f64, f64)>> {
    let page = html(&world.input()).unwrap();
    let (_, runs) = page.split_once("id=\"runs\"").unwrap();
    let (figure, _) = runs.split_once("</svg>").unwrap();
    let lines = figure.split("<polyline").skip(1).filter(|line| line.contains("stroke-width"));
    let points = lines.map(|line| line.split("points=\"").nth(1).unwrap().split('"').next().unwrap());
    let point = |text: &str| {
        let (x, y) = text.split_once(',').unwrap();
        (x.parse().unwrap(), y.parse().unwrap())
    };
    points.map(|points| points.split_whitespace().map(point).collect()).collect()
}

#[test]
fn no_line_of_a_loss_goes_back_in_time() {
    let mut world = world();
    world.runs.truncate(1);
    let one = loss_lines(&world).into_iter().filter(|line| line.len() > 3).count();
    // As in the rounds of `validate`, and in a training that continued from an earlier step.
    let steps = world.runs[0].steps.clone();
    for _ in 0..3 {
        world.runs[0].steps.extend_from_slice(&steps[2..]);
    }
    let lines = loss_lines(&world);
    assert_eq!(lines.iter().filter(|line| line.len() > 3).count(), one + 3, "a line for each round");
    for line in lines {
        assert!(line.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{line:?}");
    }
    // Rounds of one step.
    world.runs[0].steps = vec![steps[0].clone(), steps[0].clone(), steps[0].clone()];
    figures(&world.input()).unwrap();
}

#[test]
fn a_single_point_is_drawn() {
    check(|world| {
        world.validation.runs.truncate(1);
        world.runs.truncate(1);
        world.runs[0].steps.truncate(1);
        world.profile.collectives.truncate(1);
        world.profile.messages.clear();
        world.plan.alternatives.clear();
    });
}

#[test]
fn a_large_plan_stays_a_picture() {
    let mut world = world();
    let stage = world.plan.estimate.stages[0].clone();
    world.plan.estimate.stages = vec![stage; 64];
    world.predicted = fixture::timeline(64, 1, 1.0);
    let many: Vec<TimelineEvent> = (0..2000)
        .flat_map(|n| {
            world.predicted.iter().take(4).map(move |event| {
                let shift = Seconds(f64::from(n) * 0.2);
                TimelineEvent { start_s: event.start_s + shift, end_s: event.end_s + shift, ..event.clone() }
            })
        })
        .collect();
    world.predicted.extend(many);
    world.validation.runs = world.validation.runs.iter().cycle().take(40).cloned().collect();
    world.runs = world.runs.iter().cycle().take(20).cloned().collect();
    for (name, bytes) in figures(&world.input()).unwrap() {
        let info = png::Decoder::new(bytes.as_slice()).read_info().unwrap().info().size();
        assert!(info.1 < 1600, "{name}: {info:?}");
    }
    assert!(html(&world.input()).unwrap().len() < 4_000_000);
}
