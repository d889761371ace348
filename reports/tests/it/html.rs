//! The page: well-formed, complete, self-contained, and safe for any model name.

use crate::fixture;

use autodist_reports::{ReportInput, html};
use autodist_spec::DeviceKind;
use fixture::{gpu_world, world};

/// The page's text without its markup; fails when the markup is not well-formed.
fn text_of(page: &str) -> String {
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document =
        roxmltree::Document::parse_with_options(page, options).expect("the page is well-formed XML");
    let texts = document.descendants().filter(|node| node.is_text()).filter_map(|node| node.text());
    texts.collect::<Vec<_>>().join(" ")
}

fn check(input: &ReportInput<'_>, expected: &[&str], absent: &[&str]) {
    let text = text_of(&html(input).expect("a page"));
    for word in expected {
        assert!(text.contains(word), "`{word}` is missing");
    }
    for word in absent {
        assert!(!text.contains(word), "`{word}` should not be there");
    }
}

#[test]
fn the_page_shows_every_number_of_its_inputs() {
    let world = world();
    check(
        &world.input(),
        &[
            "gpt2-nano on laptop",
            "dp2 tp1 pp2 mb2 1f1b recompute=selective",
            "412 ms ± 9.07 ms",
            "9,935",
            "FLOP/s per device",
            "116 MiB",
            "1,412 strategies explored, 1,333 pruned, 79 simulated",
            "embedding, blocks 1-4",
            "recomputes what fits in memory anyway",
            "heads divide by tp",
            "tensor communication",
            "optimizer state",
            "predicted: 412 ms ± 9.07 ms (interpolated)",
            "rank 3 (stage 1)",
            "420 ms ± 5.04 ms",
            "-1.8 %",
            "+31.1 %",
            "the planner's choice was the fastest of the 6 plans that ran",
            "rank 3 ended with signal 9 (killed) in step 4",
            "8.3000 at step 0 to 5.2878 at step",
            "2 of 214 timings spread by more than 10 %",
            "AMD EPYC 7763",
            "9.200e-10",
            "fingerprint 5f1c9a0d2b7e4c68",
        ],
        &["emulated", "GPU", "NVLink", "NCCL", "GEMMs", "Copies", "MFU"],
    );
}

#[test]
fn the_page_tells_of_gpus_by_name() {
    let mut world = gpu_world();
    world.runs[1].environment.collectives = "the host's memory: libnccl.so.2 is missing".to_owned();
    let host =
        format!("Collectives through the host's memory: libnccl.so.2 is missing ({})", world.runs[1].label);
    check(
        &world.input(),
        &[
            "2 devices on 1 node (NVIDIA H100 80GB HBM3)",
            "2 x NVIDIA H100 80GB HBM3",
            "GPU 1",
            "clock 1215 of 1980 MHz, held back by its temperature, PCIe 5.0 x16, 18 NVLinks",
            "NVLink between GPUs 0 and 1",
            "Collectives through NCCL 2.21.5 (",
            &host,
            "bf16; master weights, gradients and optimizer state in fp32",
            "GEMMs",
            "537 TFLOP/s",
            "Within the device every byte is read and written",
            "2.68 TB/s",
        ],
        &["priority", "real-time"],
    );
}

#[test]
fn a_plan_alone_makes_a_page_without_empty_sections() {
    let world = world();
    check(
        &world.plan_only(),
        &["The plan", "Where the time goes"],
        &["The runs", "The profile", "Predicted against"],
    );
}

#[test]
fn emulated_measurements_are_labelled() {
    let mut world = world();
    world.runs[0].environment.emulated = true;
    check(&world.input(), &["Measured on emulated devices", "of 420 ms, emulated devices"], &[]);
}

#[test]
fn foreign_text_stays_text() {
    let mut world = world();
    let hostile = "<script>alert('x')</script> & \"quotes\" \u{1b}[31m\u{0}";
    world.plan.model.name = hostile.to_owned();
    world.plan.cluster.name = hostile.to_owned();
    world.plan.alternatives[0].reason = hostile.to_owned();
    world.plan.rejected[0].example = hostile.to_owned();
    world.plan.name_profile(hostile);
    world.validation.runs[0].label = hostile.to_owned();
    for run in &mut world.runs {
        run.label = hostile.to_owned();
        run.environment.warnings.push(hostile.to_owned());
    }
    world.profile.environment.processor = hostile.to_owned();
    world.profile.fits[0].what = hostile.to_owned();
    world.profile.environment.devices = DeviceKind::Cuda;
    world.profile.environment.collectives = hostile.to_owned();
    let page = html(&world.input()).unwrap();
    assert!(!page.contains("<script"));
    assert!(!page.contains('\u{1b}') && !page.contains('\u{0}'));
    assert!(text_of(&page).contains("<script>alert('x')</script> & \"quotes\""));
}

#[test]
fn the_page_loads_nothing() {
    let page = html(&world().input()).unwrap();
    let options = roxmltree::ParsingOptions { allow_dtd: true, ..Default::default() };
    let document = roxmltree::Document::parse_with_options(&page, options).unwrap();
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        let name = node.tag_name().name();
        assert!(!["script", "link", "img", "iframe", "object", "use", "image"].contains(&name), "<{name}>");
        for attribute in node.attributes() {
            assert_ne!(attribute.name(), "src");
            assert!(
                attribute.name() != "href" || attribute.value().starts_with('#'),
                "{}",
                attribute.value()
            );
        }
    }
    for loading in ["url(", "@import", "@font-face"] {
        assert!(!page.contains(loading), "{loading}");
    }
    // XML namespaces are not addresses to load from.
    let addresses = page.match_indices("http").filter(|(at, _)| !page[..*at].ends_with("xmlns=\"")).count();
    assert_eq!(addresses, 0);
}

#[test]
fn links_of_the_page_lead_to_its_sections() {
    let page = html(&world().input()).unwrap();
    for part in page.split("href=\"#").skip(1) {
        let id = part.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}
