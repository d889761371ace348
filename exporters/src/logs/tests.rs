//! Small logs in the forms that trainers print, written for these tests.

use super::*;
use std::io::Write;

const JOB: LoggedJob = LoggedJob { global_batch: 512, seq_len: 2048, devices: 16 };

fn time(log: &str) -> (LogFormat, f64, usize) {
    let log = read(log.as_bytes(), None).unwrap_or_else(|error| panic!("{error}\n{log}"));
    let time = log.step_time(&JOB).unwrap();
    (log.format, time.seconds, time.lines)
}

fn near(log: &str, format: LogFormat, seconds: f64) {
    let (found, median, _) = time(log);
    assert_eq!(found, format, "{log}");
    assert!((median / seconds - 1.0).abs() < 1e-6, "{median} instead of {seconds}: {log}");
}

fn megatron(times: &[f64]) -> String {
    let line = |(index, ms): (usize, &f64)| {
        format!(
            " [2026-11-30 10:00:{index:02}] iteration {:8}/    5000 | consumed samples: {:12} | elapsed time per \
             iteration (ms): {ms:.1} | throughput per GPU (TFLOP/s/GPU): 401.2 | learning rate: 1.5E-04 | global batch \
             size:   512 | lm loss: 2.31E+00 |\n",
            index + 1,
            512 * (index + 1)
        )
    };
    times.iter().enumerate().map(line).collect()
}

#[test]
fn megatron_in_its_versions() {
    use LogFormat::Megatron;
    let slow_start = [60000.0, 45000.0, 41300.0];
    let usual = [41200.0; 12];
    let pauses = [90000.0, 41200.0, 41100.0];
    let log = megatron(&[&slow_start[..], &usual, &pauses].concat());
    near(&log, Megatron, 41.2);
    let read_log = read(log.as_bytes(), None).unwrap();
    let steps = read_log.step_time(&JOB).unwrap();
    assert_eq!(steps.lines, 14);
    let whys: Vec<(usize, &str)> = steps.dropped.iter().map(|one| (one.lines, one.why.as_str())).collect();
    assert_eq!(whys.len(), 2, "{whys:?}");
    assert!(
        whys[0].0 == 3 && whys[0].1.contains("warm-up") && whys[1].0 == 1 && whys[1].1.contains("checkpoint")
    );
    // The newer form has the recent mean behind the time, forks have underlines.
    near(&log.replace(".0 | throughput", ".0/41321.5 | throughput"), Megatron, 41.2);
    near(
        "iteration=       5/  317892 | elapsed_time_per_iteration_ms=14731.3 | global_batch_size=  512 |\n",
        Megatron,
        14.7313,
    );
    // Prefixes of torchrun, colours, and a last line that is cut within its number.
    let coloured =
        log.replace(" [2026", "[default7]:\u{1b}[32m [2026").replace("512 | lm", "512 |\u{1b}[0m lm");
    near(&(coloured + " iteration 99/ 5000 | elapsed time per iteration (ms): 4"), Megatron, 41.2);
    let memory = "[Rank 0] (after 1 iterations) memory (MB) | allocated: 100.5 | max allocated: 1024.0 | reserved: 1.0 | \
                  max reserved: 3072.0\n[Rank 4] (after 1 iterations) memory (MB) | allocated: 1.0 | max allocated: \
                  2048.0 | reserved: 1 | max reserved: 2050\n";
    let log = read((memory.to_owned() + &log).as_bytes(), None).unwrap();
    assert_eq!(log.memory, PeakMemory { allocated: Some(Bytes(2 << 30)), reserved: Some(Bytes(3 << 30)) });
}

#[test]
fn steps_with_another_batch_do_not_count() {
    let ramp = megatron(&[20000.0; 20]).replace("size:   512", "size:   256");
    let log = ramp.clone() + &megatron(&[41000.0; 20]).replace("] iteration ", "] iteration 1");
    near(&log, LogFormat::Megatron, 41.0);
    let error = read(ramp.as_bytes(), None).unwrap().step_time(&JOB).unwrap_err();
    assert!(error.to_string().contains("256") && error.hint.contains("--global-batch 256"), "{error}");
}

#[test]
fn other_trainers() {
    use LogFormat::{Csv, DeepSpeed, Jsonl, Nanotron, Nemo, Torchtitan, Transformers};
    near(
        "Training epoch 0, iteration 0/249 | lr: 1e-06 | global_batch_size: 512 | global_step: 0 | train_step_timing in s: 9.1\n\
         Training epoch 0, iteration 1/249 | lr: 1e-06 | global_batch_size: 512 | global_step: 1 | train_step_timing in s: 2.5 | consumed_samples: 16\n",
        Nemo,
        5.8,
    );
    near(
        "Epoch 0: : 100%|███| 100/100 [10:48<00:00, global_step=99.00, train_step_timing in s=3.130]\n",
        Nemo,
        3.13,
    );
    let tokens = 512.0 * 2048.0 / 16.0;
    near(
        "[rank0]:[titan] 2026-10-30 14:32:58,897 - root - INFO - \u{1b}[31mstep:  2\u{1b}[0m  loss:  6.1098  memory:  2.50GiB(3.14%)  tps: 32,768  tflops: 96.17  mfu: 9.72%\n",
        Torchtitan,
        tokens / 32768.0,
    );
    near(
        "step: 10  loss: 7.2  memory: 20.00GiB(21.00%)  wps: 16,384  mfu: 30.2%\n",
        Torchtitan,
        tokens / 16384.0,
    );
    near(
        "[default0]:[INFO|DP=0|PP=0|TP=0]: iteration: 3 / 15 | consumed_tokens: 786K | time_per_iteration_ms: 1.21K | tokens_per_sec: 636K | global_batch_size: 512 |\n",
        Nanotron,
        1.21,
    );
    near(
        "iteration: 3 / 15 | elapsed_time_per_iteration_ms: 412 | tokens_per_sec: 6K | global_batch_size: 1.02K |\n",
        Nanotron,
        0.412,
    );
    let speed = "[2026-08-02 00:41:17,936] [INFO] [timer.py:215:stop] epoch=0/micro_step=10/global_step=10, RunningAvgSamplesPerSec=220.6, CurrSamplesPerSec=256.0, MemAllocated=0.07GB, MaxMemAllocated=1.5GB\n";
    near(speed, DeepSpeed, 2.0);
    assert_eq!(read(speed.as_bytes(), None).unwrap().memory.allocated, Some(Bytes(3 << 29)));
    near("0/20, SamplesPerSec=128.0\n", DeepSpeed, 4.0);
    near("steps: 10 loss: 9.5321 iter time (s): 1.250 samples/sec: 409.600\n", DeepSpeed, 1.25);
    near(
        "[Rank 0] time (ms) | fwd_microstep: 9.00 | bwd_microstep: 9.00 | step_microstep: 9.0\n[Rank 0] time (ms) | fwd: 500.00 | bwd: 1000.00 | bwd_inner: 900.00 | bwd_allreduce: 90.00 | step: 250.00\n",
        DeepSpeed,
        1.75,
    );
    near(
        "{'train_runtime': 437.8, 'train_samples_per_second': 25.6, 'train_steps_per_second': 0.05, 'epoch': 3.0}\n",
        Transformers,
        20.0,
    );
    let state = r#"{"global_step": 100, "log_history": [{"loss": 2.0, "step": 50}, {"step": 100, "train_runtime": 250.0}]}"#;
    near(state, Transformers, 2.5);
    near("\"Step\",\"run-7 - perf/step_time\",\"run-7 - loss\"\n1,2.5,9\n2,2.5,8\n", Csv, 2.5);
    near("_step,_runtime,loss\n10,100.0,2.0\n20,135.0,2.0\n30,170.0,1.9\n", Csv, 3.5);
    near(
        "{\"step\": 1, \"step_time_s\": 0.25, \"loss\": 3.0}\n{\"step\": 2, \"step_time_s\": 0.25}\n{\"step\": 3, \"st",
        Jsonl,
        0.25,
    );
}

#[test]
fn traces_plain_and_compressed() {
    let event = |cat: &str, step: u32| {
        format!(
            "{{\"ph\":\"X\",\"cat\":\"{cat}\",\"name\":\"ProfilerStep#{step}\",\"ts\":1,\"dur\":112000.5,\"args\":{{}}}}"
        )
    };
    let events =
        [event("user_annotation", 3), event("gpu_user_annotation", 3), event("user_annotation", 4)].join(",");
    let object =
        format!("{{\"schemaVersion\": 1, \"traceEvents\": [{events}, {{\"ph\": \"M\", \"pid\": \"x\"}}]}}");
    for trace in [object.clone(), format!("[{events}]")] {
        near(&trace, LogFormat::Trace, 0.112_000_5);
    }
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(object.as_bytes()).unwrap();
    let packed = packed.finish().unwrap();
    let log = read(&packed, None).unwrap();
    assert_eq!((log.format, log.lines()), (LogFormat::Trace, 2));
    for cut in [read(&packed[..packed.len() / 2], None), read(&object.as_bytes()[..object.len() / 2], None)] {
        let error = cut.unwrap_err().to_string();
        assert!(
            error.contains("cannot be decompressed") || error.contains("not a whole chrome trace"),
            "{error}"
        );
    }
    let none = read(b"{\"traceEvents\": [{\"name\": \"aten::mm\", \"dur\": 3}]}", None).unwrap_err();
    assert!(none.to_string().contains("prof.step()"), "{none}");
}

#[test]
fn ranks_of_one_step_count_once_and_the_slowest_counts() {
    let line = |rank: u32, step: u32, tps: u32| {
        format!("[rank{rank}]: step: {step}  loss: 5.0  memory: {}.00GiB(3%)  tps: {tps}\n", 10 + rank)
    };
    let log: String = (1..=20).flat_map(|step| [line(0, step, 32768), line(1, step, 16384)]).collect();
    let log = read(log.as_bytes(), None).unwrap();
    let steps = log.step_time(&JOB).unwrap();
    assert_eq!((steps.seconds, steps.lines), (4.0, 17));
    assert!(
        steps.dropped.iter().any(|one| one.lines == 20 && one.why.contains("ranks")),
        "{:?}",
        steps.dropped
    );
    assert_eq!(log.memory.reserved, Some(Bytes(11 << 30)));
}

#[test]
fn numbers_that_no_step_has_are_refused_with_their_line() {
    let good = megatron(&[41200.0; 5]);
    for bad in ["nan", "-41200.0", "0.0", "1e30", "inf"] {
        let log = good.clone() + &megatron(&[41200.0]).replace("41200.0", bad);
        let error = read(log.as_bytes(), None).unwrap_err().to_string();
        assert!(error.contains("line 6") && error.contains("step time from"), "{bad}: {error}");
    }
    for log in [
        "step: 1  loss: 2  tps: -5\n",
        "{'train_samples_per_second': nan}\n",
        "{\"step_time_s\": -1}\n",
        "step,step_time_s\n1,1e99\n",
        "step,step_time_s\n1,fast\n",
        "CurrSamplesPerSec=inf,\n",
        "{\"traceEvents\": [{\"name\": \"ProfilerStep#1\", \"dur\": -4}]}",
    ] {
        assert!(read(log.as_bytes(), None).is_err(), "{log}");
    }
    // Another rank's line in the middle of a number is not a measurement, but no error either.
    let torn = good.replacen("41200.0 |", "4[Rank 3] x |", 1).replacen("(ms): 4[", "(ms): [", 1);
    let log = read(torn.as_bytes(), None).unwrap();
    assert!(log.step_time(&JOB).unwrap().dropped.iter().any(|one| one.why == "cannot be read"));
}

#[test]
fn steps_without_a_typical_time_have_none() {
    let log =
        megatron(&[1000.0, 1000.0, 9000.0, 1000.0, 20000.0, 300.0, 40000.0, 200.0, 50000.0, 60000.0, 4000.0]);
    let error = read(log.as_bytes(), None).unwrap().step_time(&JOB).unwrap_err().to_string();
    assert!(error.contains("no steady state"), "{error}");
}

#[test]
fn unknown_logs_are_told_what_was_looked_for() {
    let error = read(b"epoch 1: loss 3\n", None).unwrap_err().to_string();
    for words in
        ["elapsed time per iteration (ms)", "torchtitan", "ProfilerStep#", "--measured", "step_time_s"]
    {
        assert!(error.contains(words), "{words}: {error}");
    }
    let error = read(b"epoch 1: loss 3\n", Some(LogFormat::Nemo)).unwrap_err().to_string();
    assert!(error.contains("train_step_timing in s"), "{error}");
    assert!(read(b"", None).is_err());
}

#[test]
fn a_run_record_has_its_own_warm_up_and_several_rounds() {
    let step = |step: u32, time: f64| format!(r#"{{"step": {step}, "time_s": {time}, "loss": 1.0}}"#);
    let steps = [step(0, 9.0), step(1, 0.5), step(2, 0.4), step(1, 0.6), step(2, 0.5)].join(", ");
    let record = format!(
        r#"{{"steps": [{steps}], "warmup_steps": 1, "ranks": [{{"peak_memory_bytes": 70, "bytes_sent_per_step": 1}}]}}"#
    );
    let log = read(record.as_bytes(), None).unwrap();
    assert_eq!((log.format, log.lines()), (LogFormat::Record, 4));
    assert_eq!(log.step_time(&JOB).unwrap().seconds, 0.5);
    assert_eq!(log.memory.allocated, Some(Bytes(70)));
}
