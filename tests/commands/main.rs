//! The command line, and the scripts around it.

#[path = "../common/mod.rs"]
mod common;

mod bench;
mod bench_speedup;
mod bench_versus;
mod cli;
mod devices;
mod extra_data;

mod model_prediction;
mod nvtx;
mod profile;
#[cfg(target_os = "linux")]
mod qualify_gpu;
mod report;
