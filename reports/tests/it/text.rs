//! Plain text, comma-separated tables and the trace.

use crate::fixture;

use autodist_reports::{
    TerminalView, chrome_trace, csv_copies, csv_links, csv_plans, csv_products, csv_segments, csv_timeline,
    csv_validation, html, terminal,
};
use autodist_spec::profile::{Accelerator, Hardware};
use autodist_spec::run::{BucketCompression, Fallback, FallbackReason};
use autodist_spec::{Codec, DeviceKind, FlopsPerSecond, Precision, Seconds};
use fixture::{World, gpu_world, world};

/// Every table, on a terminal of the usual width.
fn all() -> TerminalView {
    TerminalView::new(TerminalView::USUAL, false, true)
}

fn narrow(text: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= TerminalView::USUAL, "{} columns: {line}", line.chars().count());
        assert_eq!(line, line.trim_end(), "no blanks at the end");
        assert!(!line.contains('\u{1b}'));
    }
    assert!(text.ends_with('\n'));
}

fn check(text: &str, expected: &[&str]) {
    narrow(text);
    for word in expected {
        assert!(text.contains(word), "`{word}` is missing in\n{text}");
    }
}

#[test]
fn the_plan_in_the_terminal() {
    check(
        &terminal::plan_summary(&world().plan, None, &all()),
        &[
            "plan       dp2 tp1 pp2 mb2 1f1b recompute=selective(3/8): a pipeline",
            "step time  412 ms ± 9.07 ms, 9,935 tokens/s; ± 2.2 %: how sure the profile's measurements are\n",
            "verdict    predicted, not measured: `autodist validate` trains it\n",
            "memory     fits: 116 MiB peak of 246 MiB usable, 130 MiB free; 256 MiB per device, 4.0 % kept free\n",
            "FLOP/s per device\n",
            "optimal in its space under this cost model, gap 0.0 %",
            "compute                  280 ms   68.0 %",
            "activations            36.0 MiB   31.0 %",
            "431 ms ± 9.48 ms",
            "1,006  lower bound",
        ],
    );
}

/// Text, page and table that mention utilisation.
fn of_utilisation(world: &World) -> [String; 3] {
    let page = html(&world.input()).unwrap();
    [terminal::plan_summary(&world.plan, None, &all()), page, csv_plans(&world.plan)]
}

/// The cells of a table's column.
fn cells(table: &str, column: &str) -> Vec<String> {
    let mut reader = csv::Reader::from_reader(table.as_bytes());
    let at = reader.headers().unwrap().iter().position(|name| name == column).unwrap();
    reader.records().map(|row| row.unwrap()[at].to_owned()).collect()
}

#[test]
fn utilisation_is_of_the_published_peak_of_that_device_and_arithmetic() {
    let mut world = gpu_world();
    world.plan.cluster.nodes[0].devices = 4;
    // 1.2 % of a device's 989 TFLOP/s in bf16, by the model's own FLOP count.
    let flops = world.plan.model.step_flops(world.plan.job.tokens(), 256).0;
    world.plan.estimate.step_time_s = Seconds(flops / 4.0 / (0.012 * 989e12));
    for (precision, peak) in
        [(Precision::Bf16, "989 TFLOP/s (bf16, published)"), (Precision::Tf32, "(tf32, published)")]
    {
        world.plan.job.precision = precision;
        let [text, page, _] = of_utilisation(&world);
        for text in [text.split_whitespace().collect::<Vec<_>>().join(" "), page] {
            assert!(text.contains("11.9 TFLOP/s per device, ") && text.contains(peak), "{text}");
            assert!(text.contains("attention GEMMs counted in full"), "{text}");
        }
    }
    world.plan.job.precision = Precision::Bf16;
    let text = terminal::plan_summary(&world.plan, None, &all());
    assert!(text.contains("1.2 % of its 989 TFLOP/s"), "{text}");
    let mfu: f64 = cells(&csv_plans(&world.plan), "mfu")[0].parse().unwrap();
    assert!((mfu - 0.012).abs() < 1e-9, "{mfu}");
}

#[test]
fn no_published_peak_is_no_utilisation_whatever_was_measured() {
    let mut world = world();
    // Older plans stored their peak, and the fraction of it, in this form.
    world.plan.cluster.nodes[0].device.peak_flops_per_s = Some(FlopsPerSecond(1e9));
    world.profile.cluster.nodes[0].device.peak_flops_per_s = Some(FlopsPerSecond(114e9));
    world.profile.hardware.fastest_gemm_flops_per_s = None;
    world.plan.estimate.mfu = Some(1.608);
    let [text, page, table] = of_utilisation(&world);
    for text in [&text, &page] {
        assert!(
            !text.contains("MFU") && !text.contains("160.8 %") && !text.contains("peak 1.00 GFLOP/s"),
            "{text}"
        );
    }
    assert!(cells(&table, "mfu").iter().all(String::is_empty), "{table}");
    let text = terminal::profile_summary(&world.profile, None, &all());
    assert!(text.contains("GEMM       114 GFLOP/s: fastest GEMM of this model's shapes"), "{text}");
    assert!(!text.contains(", peak ") && !text.contains("peak unknown"), "{text}");
    world.plan.correct_mfu();
    assert_eq!((world.plan.estimate.mfu, world.plan.cluster.device().peak_flops_per_s), (None, None));
}

#[test]
fn a_share_above_all_of_the_peak_is_left_out_with_both_figures() {
    let mut world = gpu_world();
    world.plan.estimate.step_time_s = Seconds(1e-9);
    world.plan.estimate.mfu = Some(3.732);
    let [text, page, table] = of_utilisation(&world);
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for text in [&text, &page] {
        assert!(
            text.contains("per device exceeds the peak of the device, 989 TFLOP/s (bf16, published)"),
            "{text}"
        );
        assert!(!text.contains("% of its") && !text.contains("373.2 %"), "{text}");
    }
    assert_eq!(cells(&table, "mfu")[0], "");
    world.plan.correct_mfu();
    assert_eq!(world.plan.estimate.mfu, None);
}

#[test]
fn copies_between_host_and_device_are_of_gpus_alone() {
    let mut world = gpu_world();
    assert!(terminal::profile_summary(&world.profile, None, &all()).contains("host to device"));
    world.profile.environment.devices = DeviceKind::Cpu;
    let page = html(&world.input()).unwrap();
    for text in [terminal::profile_summary(&world.profile, None, &all()), csv_copies(&world.profile), page] {
        assert!(text.contains("within the device"), "{text}");
        assert!(!text.contains("host to device") && !text.contains("device to host"), "{text}");
    }
}

#[test]
fn losses_of_several_rounds_are_those_of_the_first() {
    let mut world = world();
    let again = world.runs[0].steps[2..].to_vec();
    let count = world.runs[0].steps.len();
    world.runs[0].steps.extend(again.iter().cloned().chain(again.clone()));
    let text = terminal::run_summary(&world.runs[0], &all()).split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = format!("8.3000 at step 0 to 5.2878 at step {}, first of 3 rounds", count - 1);
    assert!(text.contains(&expected), "{text}");
    let page = html(&world.input()).unwrap();
    assert!(page.contains(&format!("{} in 3 rounds", 3 * count - 4)), "{page}");
}

#[test]
fn the_validation_in_the_terminal() {
    check(
        &terminal::validation_table(&world().validation, &all()),
        &[
            "420 ms ± 5.04 ms  412 ms ± 9.07 ms  -1.8 %",
            "median |error| of the step time 1.8 % over 6 runs (1.8 % as timed)",
            "the planner's choice was the fastest of the 6 plans that ran",
            "+5.9 %",
            "rank 3 ended with signal 9 (killed) in step 4",
        ],
    );
    let mut world = world();
    world.validation.regret = Some(0.013);
    check(
        &terminal::validation_table(&world.validation, &all()),
        &["ran 1.3 % slower than the fastest of the 6 plans"],
    );
    world.validation.runs.clear();
    check(&terminal::validation_table(&world.validation, &all()), &["no plan ran", "Failed"]);
}

#[test]
fn the_profile_in_the_terminal() {
    let mut world = world();
    check(
        &terminal::profile_summary(&world.profile, None, &all()),
        &[
            "4 devices, complete",
            "real-time priority",
            "56 measured",
            "compute takes 1.070 times as long",
            "all_reduce      2       1  41.0 µs",
            "1.09 GB/s            3.8 %",
            "two runs of one plan differ by 0.8 %",
            "warning:   2 of 214 timings",
        ],
    );
    world.profile.environment.realtime = false;
    world.profile.complete = false;
    world.profile.fits.clear();
    check(
        &terminal::profile_summary(&world.profile, None, &all()),
        &["no real-time priority", "unfinished", "none was measured"],
    );
}

#[test]
fn a_run_in_the_terminal() {
    check(
        &terminal::run_summary(&world().runs[0], &all()),
        &[
            "420 ms median, 95 % interval 413 ms to 428 ms",
            "8.3000 at step 0 to 5.2878 at step",
            "28.0 MiB",
            "real devices, 4 ranks",
        ],
    );
}

#[test]
fn compressed_gradients_in_the_terminal() {
    let mut world = world();
    assert_eq!(terminal::compressions(&world.runs, &all()), "");
    let bucket = BucketCompression {
        pipeline_rank: 0,
        bucket: 0,
        codec: Codec::TopK { per_mille: 1 },
        contraction_median: 0.25,
        contraction_lowest: 0.125,
        error_growth: 1.5,
        fallback: None,
    };
    world.runs[0].compression = vec![bucket];
    let expected = "top-k/1: contraction 0.250 (lowest 0.125), error memory 1.50 times that half-way";
    check(&terminal::run_summary(&world.runs[0], &all()), &[&format!("codecs     {expected}\n")]);
    let fallback = Some(Fallback { step: 59, reason: FallbackReason::ErrorGrowth });
    world.runs[0].compression.push(BucketCompression { bucket: 1, fallback, ..bucket });
    let text = terminal::compressions(&world.runs, &all());
    narrow(&text);
    assert!(
        text.split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .contains("1 bucket dense after step 59: its error memory kept growing"),
        "{text}"
    );
}

/// Words that appear only for GPUs.
const OF_GPUS: [&str; 6] = ["GPU", "NVLink", "NCCL", "between  ", "compute capability", "MHz"];

fn absent(text: &str, unwanted: &[&str]) {
    for word in unwanted {
        assert!(!text.contains(word), "`{word}` should not be in\n{text}");
    }
}

#[test]
fn a_profile_of_gpus_in_the_terminal() {
    let mut world = gpu_world();
    let text = terminal::profile_summary(&world.profile, None, &all());
    check(
        &text,
        &[
            "GPU 0      NVIDIA H100 80GB HBM3, 80.0 GiB, 132 multiprocessors, compute capability 9.0, driver\n",
            "clock 1980 of 1980 MHz, PCIe 5.0 x16, 18 NVLinks\n",
            "GPU 1 ",
            "clock 1215 of 1980 MHz, held back by its temperature, PCIe 5.0 x16, 18\n",
            "shared with 2 other processes\n",
            "path       NVLink between GPUs 0 and 1\n",
            "between    collectives through NCCL 2.21.5\n",
            "precision  bf16; master weights",
            "4 cores, real devices\n",
            "GEMMs: each m x k by k x n",
            "fastest GEMM of this model's shapes",
            "2048  4096  1024  32.0 µs  537 TFLOP/s",
            "Copies: within the device every byte is read and written, so that its rate is 2 x bytes / time\n",
            "within the device  256 MiB   200 µs  2.68 TB/s",
            "host to device     256 MiB  5.00 ms  53.7 GB/s",
            "memory of a rank without a model",
            "warning:   GPU 1 is throttled",
        ],
    );
    absent(&text, &["priority"]);

    // Properties that the driver does not report are left out, and large numbers of pairs of GPUs are
    // summarised.
    let environment = &mut world.profile.environment;
    let (gpu, path) = (environment.accelerators[0].clone(), environment.accelerator_paths[0].clone());
    environment.accelerators = (0..4)
        .map(|ordinal| Accelerator {
            ordinal,
            name: gpu.name.clone(),
            memory_bytes: gpu.memory_bytes,
            ..Accelerator::default()
        })
        .collect();
    environment.accelerator_paths = vec![path; 6];
    environment.collectives = "the host's memory: libnccl.so.2 is missing".to_owned();
    world.profile.hardware = Hardware::default();
    let text = terminal::profile_summary(&world.profile, None, &all());
    check(
        &text,
        &[
            "GPU 3      NVIDIA H100 80GB HBM3, 80.0 GiB\n",
            "path       NVLink between every two of the 4 GPUs\n",
            "between    collectives through the host's memory: libnccl.so.2 is missing\n",
        ],
    );
    absent(&text, &["MHz", "PCIe", "GEMMs: ", "Copies"]);
}

#[test]
fn a_run_on_gpus_in_the_terminal() {
    let mut world = gpu_world();
    let text = terminal::run_summary(&world.runs[0], &all());
    check(
        &text,
        &[
            "on         2 x NVIDIA H100 80GB HBM3, 2 ranks, bf16\n",
            "between    collectives through NCCL 2.21.5\n",
        ],
    );
    absent(&text, &["priority", "real devices"]);
    world.runs[0].ranks.truncate(1);
    check(
        &terminal::run_summary(&world.runs[0], &all()),
        &["on         1 x NVIDIA H100 80GB HBM3, 1 rank, bf16\n"],
    );
    world.runs[0].environment.accelerators.clear();
    world.runs[0].environment.emulated = true;
    check(
        &terminal::run_summary(&world.runs[0], &all()),
        &["emulated devices on GPUs of unknown name, 1 rank, bf16\n"],
    );
}

#[test]
fn nothing_is_said_of_gpus_where_ranks_had_cores() {
    let world = world();
    let text = terminal::profile_summary(&world.profile, None, &all());
    check(&text, &["precision  fp32\n", "real-time priority, real devices\n"]);
    absent(&text, &OF_GPUS);
    absent(&text, &["GEMMs: ", "Copies"]);
    absent(&terminal::run_summary(&world.runs[0], &all()), &OF_GPUS);
}

#[test]
fn long_and_hostile_names_stay_in_their_columns() {
    let mut world = world();
    let name = format!("{}\u{1b}[31m\n{}", "long-name-".repeat(30), "words ".repeat(60));
    world.plan.model.name.clone_from(&name);
    world.plan.cluster.name.clone_from(&name);
    world.plan.alternatives[0].reason.clone_from(&name);
    world.plan.name_profile(&name);
    world.validation.runs[0].label.clone_from(&name);
    world.profile.environment.processor.clone_from(&name);
    world.profile.environment.warnings.push(name.clone());
    world.runs[0].label.clone_from(&name);
    let mut gpus = gpu_world();
    let environment = &mut gpus.profile.environment;
    environment.accelerators[0].name.clone_from(&name);
    environment.accelerators[1].throttled.push(name.clone());
    environment.accelerator_paths[0].path.clone_from(&name);
    environment.collectives = name;
    gpus.runs[0].environment = environment.clone();
    narrow(&terminal::profile_summary(&gpus.profile, None, &all()));
    narrow(&terminal::run_summary(&gpus.runs[0], &all()));
    narrow(&terminal::plan_summary(&world.plan, None, &all()));
    narrow(&terminal::validation_table(&world.validation, &all()));
    narrow(&terminal::profile_summary(&world.profile, None, &all()));
    narrow(&terminal::run_summary(&world.runs[0], &all()));
}

/// Reads a sheet back: its header, and one cell.
fn sheet(text: &str) -> (Vec<String>, Vec<csv::StringRecord>) {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().expect("a header").iter().map(str::to_owned).collect();
    (header, reader.records().map(|row| row.expect("a row")).collect())
}

fn cell(text: &str, row: usize, column: &str) -> String {
    let (header, rows) = sheet(text);
    let index = header
        .iter()
        .position(|name| name == column)
        .unwrap_or_else(|| panic!("no `{column}` in {header:?}"));
    rows[row][index].to_owned()
}

#[test]
fn sheets_read_back_with_full_precision() {
    let world = world();
    let plans = csv_plans(&world.plan);
    assert_eq!(sheet(&plans).1.len(), 6);
    assert_eq!(cell(&plans, 0, "step_time_s"), "0.4123");
    assert_eq!(cell(&plans, 0, "memory_optimizer_state_bytes"), (28 << 20).to_string());
    assert_eq!(cell(&plans, 0, "stage_layers"), "0..5 5..10");
    assert_eq!(cell(&plans, 1, "reason"), world.plan.alternatives[0].reason);
    let bubble: f64 = cell(&plans, 0, "bubble_s").parse().unwrap();
    assert_eq!(bubble, world.plan.estimate.cost.bubble_s.0);

    let validation = csv_validation(&world.validation);
    assert_eq!(sheet(&validation).1.len(), 7);
    assert_eq!(cell(&validation, 1, "measured_step_time_s"), "0.4251");
    assert_eq!(cell(&validation, 6, "failure"), world.validation.failed[0].reason);

    let timeline = csv_timeline(&world.predicted);
    assert_eq!(sheet(&timeline).1.len(), world.predicted.len());
    assert_eq!(cell(&timeline, 0, "operation"), "forward");

    let segments = csv_segments(&world.profile);
    assert_eq!(sheet(&segments).1.len(), 36);
    assert_eq!(cell(&segments, 6, "growth_bytes"), "-1310720");

    let links = csv_links(&world.profile);
    assert_eq!(sheet(&links).1.len(), 24);
    assert_eq!(cell(&links, 0, "size_bytes"), "4096");
    assert_eq!(cell(&links, 20, "alpha_s"), "0.000041");

    assert_eq!(sheet(&csv_products(&world.profile)).1.len(), 0);
    assert_eq!(sheet(&csv_copies(&world.profile)).1.len(), 0);
    let mut profile = gpu_world().profile;
    let products = csv_products(&profile);
    assert_eq!(["m", "n", "k"].map(|size| cell(&products, 1, size)), ["2048", "4096", "1024"]);
    assert_eq!(cell(&products, 1, "median_s"), "0.000032");
    assert_eq!(cell(&products, 1, "flops_per_s"), profile.hardware.products[1].flops_per_s.0.to_string());
    let copies = csv_copies(&profile);
    let rate = |row, times: f64, seconds: f64| {
        let bytes_per_s: f64 = cell(&copies, row, "bytes_per_s").parse().unwrap();
        assert_eq!(bytes_per_s, times * f64::from(256 << 20) / seconds);
    };
    rate(0, 2.0, 200e-6);
    rate(1, 1.0, 5e-3);
    assert_eq!(cell(&copies, 2, "copy"), "device to host");
    profile.hardware.copies[0].time.median_s = Seconds::ZERO;
    assert_eq!(cell(&csv_copies(&profile), 0, "bytes_per_s"), "");
}

#[test]
fn the_trace_is_json_with_two_processes_in_microseconds() {
    let world = world();
    let text = chrome_trace(&world.predicted, &world.runs[0].timeline);
    let trace: serde_json::Value = serde_json::from_str(&text).unwrap();
    let events = trace["traceEvents"].as_array().unwrap();
    let complete: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
    assert_eq!(complete.len(), world.predicted.len() + world.runs[0].timeline.len());
    let first = &world.predicted[0];
    assert_eq!(complete[0]["name"], "forward 0");
    assert_eq!(complete[0]["dur"].as_f64().unwrap(), (first.end_s - first.start_s).0 * 1e6);
    let names: Vec<_> =
        events.iter().filter(|e| e["name"] == "process_name").map(|e| &e["args"]["name"]).collect();
    assert_eq!(names, ["predicted", "measured"]);
    assert!(events.iter().any(|e| e["args"]["name"] == "rank 3 communication"));
    assert!(serde_json::from_str::<serde_json::Value>(&chrome_trace(&[], &[])).is_ok());
}

/// The settings that made another plan faster, and which of them was predicted wrongly.
#[test]
fn the_answer_names_what_made_another_plan_faster() {
    let mut world = world();
    let label = autodist_spec::strategy::label(&world.plan.strategy, &world.plan.stages);
    // The planner's first choice is another plan, which took longer than predicted.
    world.validation.runs[0].label.clone_from(&label);
    world.validation.runs.swap(0, 1);
    let first = &mut world.validation.runs[0];
    first.adjusted_error = -0.3;
    let setting = "with ";
    let view = TerminalView::new(160, false, false);
    let text = terminal::answer(&world.plan, &world.validation, &[], &view);
    let why = text.lines().find(|line| line.starts_with("why")).unwrap_or_else(|| panic!("{text}"));
    assert!(why.contains(" -> ") && why.contains("made it faster than the first choice"), "{why}");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(setting) && text.contains("% more time than predicted"), "{text}");
    // If the first choice is the fastest, there is nothing to explain.
    let mut same = crate::fixture::world();
    same.validation.runs[0].label = label;
    assert!(!terminal::answer(&same.plan, &same.validation, &[], &view).contains("\nwhy"));
}
