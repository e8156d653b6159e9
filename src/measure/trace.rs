//! A record as a trace that chrome://tracing and ui.perfetto.dev open: one row of phases, one of kernels.
//!
//! The format is the Trace Event Format's JSON object: complete events ("ph": "X") with microseconds.

use serde_json::{Value, json};

use crate::engine::{Phase, Record};

const PHASES: u32 = 1;
const KERNELS: u32 = 2;

/// The trace of a record; `title` names the process.
pub fn trace(record: &Record, title: &str) -> Value {
    let named = |what: &str, tid: u32, name: &str| json!({ "ph": "M", "pid": 1, "tid": tid, "name": what, "args": { "name": name } });
    let mut events = vec![
        named("process_name", 0, title),
        named("thread_name", PHASES, "phases"),
        named("thread_name", KERNELS, "kernels"),
    ];
    let microseconds = |seconds: f64| seconds * 1e6;
    for (phase, start, end) in phases(record) {
        events.push(json!({
            "ph": "X", "pid": 1, "tid": PHASES, "name": phase.to_string(), "cat": "phase",
            "ts": microseconds(start), "dur": microseconds(end - start),
        }));
    }
    for launch in &record.launches {
        events.push(json!({
            "ph": "X", "pid": 1, "tid": KERNELS, "name": launch.kernel, "cat": "kernel",
            "ts": microseconds(launch.start), "dur": microseconds(launch.seconds),
            "args": { "grid": launch.grid, "flops": launch.flops, "bytes": launch.bytes },
        }));
    }
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

/// Neighbouring launches of one phase: from the start of the first to the end of the last.
fn phases(record: &Record) -> Vec<(Phase, f64, f64)> {
    let mut phases: Vec<(Phase, f64, f64)> = Vec::new();
    for launch in &record.launches {
        let end = launch.start + launch.seconds;
        match phases.last_mut() {
            Some((phase, _, last)) if *phase == launch.phase => *last = end,
            _ => phases.push((launch.phase, launch.start, end)),
        }
    }
    phases
}
