//! The page: well-formed, complete, self-contained, and safe for any model name.

use crate::fixture;

use autodist_reports::{NextCommand, ReportInput, html};
use autodist_spec::run::Verdict;
use autodist_spec::strategy::label;
use autodist_spec::{Bytes, DeviceKind, PricedOutcome, PricedPoint, Seconds};
use fixture::{gpu_world, world};
use sha2::{Digest, Sha256};

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
        &["The plan", "Where the time goes", "Predicted only"],
        &["The runs", "The profile", "Predicted against", "measured step"],
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
    // Only the page's own.
    assert_eq!(page.matches("<script").count(), 1);
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
        assert!(!["link", "img", "iframe", "object", "use", "image", "form"].contains(&name), "<{name}>");
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
    let addresses =
        page.match_indices("://").filter(|(at, _)| !page[..*at].ends_with("xmlns=\"http")).count();
    assert_eq!(addresses, page.matches("chrome://tracing").count());
}

#[test]
fn browsers_are_told_to_load_nothing_and_to_run_only_the_script_of_the_page() {
    let page = html(&world().input()).unwrap();
    let (_, script) = page.split_once("<script>").unwrap();
    let (script, _) = script.split_once("</script>").unwrap();
    assert!(!script.contains(['<', '&']), "the script is text of XML and of HTML alike");
    for sends in ["fetch(", "XMLHttpRequest", "WebSocket", "import(", "eval(", "innerHTML"] {
        assert!(!script.contains(sends), "{sends}");
    }
    let (_, policy) = page.split_once("Content-Security-Policy\" content=\"").unwrap();
    let (policy, _) = policy.split_once('"').unwrap();
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(policy.contains(&format!("script-src 'sha256-{}'", base64(&Sha256::digest(script)))), "{policy}");
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits =
            chunk.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let letter = char::from(LETTERS[(bits >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

/// The text of the block with the verdict.
fn verdict_of(page: &str) -> (String, String) {
    let (_, block) = page.split_once("<div class=\"verdict ").unwrap();
    let (class, block) = block.split_once('"').unwrap();
    let (_, block) = block.split_once("headline\">").unwrap();
    (class.to_owned(), block.split("</p>").next().unwrap().to_owned())
}

#[test]
fn the_first_screen_has_one_verdict_and_optimal_never_stands_over_a_beaten_plan() {
    let mut world = world();
    let (class, words) = verdict_of(&html(&world.plan_only()).unwrap());
    assert_eq!(
        (class.as_str(), words.as_str()),
        ("predicted", "Predicted only: this plan has not been trained")
    );

    let own = label(&world.plan.strategy, &world.plan.stages);
    world.validation.runs[0].label.clone_from(&own);
    for (verdict, class, words) in [
        (Verdict::Holds, "holds", "Holds: "),
        (Verdict::WithinNoise, "noise", "Within noise: "),
        (Verdict::Refuted, "refuted", "REFUTED: the step does not take what was predicted"),
    ] {
        world.validation.verdict = Some(verdict);
        let page = html(&world.input()).unwrap();
        assert_eq!(verdict_of(&page).0, class);
        assert!(verdict_of(&page).1.starts_with(words), "{}", verdict_of(&page).1);
        assert_eq!(text_of(&page).contains("optimal"), verdict != Verdict::Refuted, "{verdict:?}");
    }
    // Beaten by the first alternative, or by a plan that is not in the document.
    let second = label(&world.plan.alternatives[0].strategy, &world.plan.alternatives[0].stages);
    world.validation.beaten_by = Some(second.clone());
    assert_eq!(verdict_of(&html(&world.input()).unwrap()).1, format!("REFUTED: plan 2 is faster, {second}"));
    world.validation.beaten_by = Some("dp8".to_owned());
    assert_eq!(verdict_of(&html(&world.input()).unwrap()).1, "REFUTED: another plan is faster, dp8");
    // The page of the plan that beat the planner's choice.
    world.validation.beaten_by = Some(own);
    let words = verdict_of(&html(&world.input()).unwrap()).1;
    assert!(words.ends_with("this one was measured to be"), "{words}");
}

#[test]
fn tiles_compare_like_with_like() {
    let mut world = world();
    world.validation.runs[0].label = label(&world.plan.strategy, &world.plan.stages);
    let page = html(&world.input()).unwrap();
    let (_, tiles) = page.split_once("<div class=\"cards\">").unwrap();
    let (tiles, _) = tiles.split_once("<nav>").unwrap();
    let run = &world.validation.runs[0];
    let tokens = world.plan.job.tokens() as f64 / run.measured.adjusted_step_time_s.0;
    // Speed, time and error are all of the same measurement.
    for value in [
        run.measured.adjusted_step_time_s.to_string(),
        format!("{:+.1} %", run.adjusted_error * 100.0),
        "tokens/s, measured".to_owned(),
    ] {
        assert!(tiles.contains(&value), "{value}: {tiles}");
    }
    let shown: String =
        tiles.split("throughput").nth(1).unwrap().chars().filter(char::is_ascii_digit).take(4).collect();
    assert_eq!(shown, format!("{tokens:.0}").chars().take(4).collect::<String>());
}

#[test]
fn commands_are_there_to_copy() {
    let world = world();
    let commands = [
        NextCommand { purpose: "Train it".to_owned(), text: "autodist train 'a & b.json'".to_owned() },
        NextCommand {
            purpose: "What run.sh holds".to_owned(),
            text: "#!/bin/sh\nexec torchrun \\\n    \"$@\"".to_owned(),
        },
    ];
    let page = html(&ReportInput { commands: &commands, ..world.input() }).unwrap();
    let text = text_of(&page);
    for NextCommand { purpose, text: command } in &commands {
        assert!(text.contains(purpose) && text.contains(command), "{purpose}");
    }
    // Buttons do nothing without the script, which shows them.
    assert_eq!(page.matches("class=\"copy\" hidden=\"hidden\"").count(), 2);
}

#[test]
fn every_plan_is_in_one_table_once() {
    let world = world();
    let page = html(&world.input()).unwrap();
    let (_, section) = page.split_once("id=\"alternatives\"").unwrap();
    let (table, _) = section.split_once("</table>").unwrap();
    let cells = |label: &str| table.matches(&format!(">{label}</td>")).count();
    for run in &world.validation.runs {
        assert_eq!(cells(&run.label), 1, "{}", run.label);
    }
    for other in &world.plan.alternatives {
        assert_eq!(cells(&label(&other.strategy, &other.stages)), 1);
    }
    assert!(table.contains("<table class=\"sortable\">"));
}

#[test]
fn every_figure_says_what_it_shows_and_what_it_is_of() {
    let mut world = world();
    world.plan.priced = (1..40)
        .map(|n| PricedPoint {
            label: format!("dp{n}"),
            outcome: [PricedOutcome::Simulated, PricedOutcome::OutOfMemory, PricedOutcome::Bounded][n % 3],
            step_time_s: Seconds(0.4 + 0.01 * n as f64),
            peak_memory_bytes: Bytes((100 + 3 * (n as u64 % 7)) << 20),
        })
        .collect();
    let page = html(&world.input()).unwrap();
    let figures = page.matches("<figure>").count();
    assert_eq!(figures, 7);
    assert_eq!(page.matches("<p class=\"finding\"><strong>").count(), figures);
    let findings: Vec<&str> =
        page.split("<strong>").skip(1).map(|text| text.split("</strong>").next().unwrap()).collect();
    assert!(findings.iter().all(|text| text.contains(|c: char| c.is_ascii_digit())), "{findings:#?}");
    assert!(text_of(&page).contains("not simulated"));
}

#[test]
fn links_of_the_page_lead_to_its_sections() {
    let page = html(&world().input()).unwrap();
    for part in page.split("href=\"#").skip(1) {
        let id = part.split('"').next().unwrap();
        assert!(page.contains(&format!("id=\"{id}\"")), "{id}");
    }
}
