//! A step as a trace for Perfetto (<https://ui.perfetto.dev>) and chrome://tracing: the Trace Event Format's
//! complete events, in microseconds.

use crate::words;
use autodist_spec::{Stream, TimelineEvent};
use serde_json::{Value, json};

/// Predicted and measured step as two processes; each rank has one thread per stream.
pub fn chrome_trace(predicted: &[TimelineEvent], measured: &[TimelineEvent]) -> String {
    let mut events = Vec::new();
    process(&mut events, 1, "predicted", "pipeline rank", predicted);
    process(&mut events, 2, "measured", "rank", measured);
    json!({ "traceEvents": events, "displayTimeUnit": "ms" }).to_string()
}

fn process(events: &mut Vec<Value>, pid: u32, name: &str, rank_name: &str, timeline: &[TimelineEvent]) {
    if timeline.is_empty() {
        return;
    }
    let metadata = |what: &str, tid: u64, args: Value| json!({"ph": "M", "pid": pid, "tid": tid, "name": what, "args": args});
    events.push(metadata("process_name", 0, json!({ "name": name })));
    events.push(metadata("process_sort_index", 0, json!({ "sort_index": pid })));
    let mut lanes: Vec<(u32, Stream)> = timeline.iter().map(|event| (event.rank, event.stream)).collect();
    lanes.sort_unstable();
    lanes.dedup();
    for (rank, stream) in lanes {
        let tid = thread(rank, stream);
        events.push(metadata(
            "thread_name",
            tid,
            json!({"name": format!("{rank_name} {rank} {}", words::stream(stream))}),
        ));
        events.push(metadata("thread_sort_index", tid, json!({ "sort_index": tid })));
    }
    events.extend(timeline.iter().map(|event| {
        json!({
            "ph": "X",
            "pid": pid,
            "tid": thread(event.rank, event.stream),
            "name": format!("{} {}", words::operation(event.operation), event.micro_batch),
            "cat": words::operation(event.operation),
            "ts": event.start_s.0 * 1e6,
            "dur": (event.end_s - event.start_s).0 * 1e6,
            "args": {"rank": event.rank, "chunk": event.chunk, "micro_batch": event.micro_batch},
        })
    }));
}

/// Threads count from 1: some viewers hide thread 0.
fn thread(rank: u32, stream: Stream) -> u64 {
    u64::from(rank) * 3 + 1 + stream as u64
}
