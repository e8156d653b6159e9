//! Every layer of the network on every variant of the convolution kernels: what each takes, and what it should take on an H200.
//!
//! `cargo bench --bench ablation -- --device cuda`; with `--dry-run` the predictions alone, without a device. The slower variants are
//! kernels of `kernels/extra/ablation/`, which the program does not hold.

#[path = "bench.rs"] // its modules are its neighbours, from tests/kernels/ablation.rs as well
mod bench;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match bench::run(&bench::Args::parse(), &mut |line| println!("{line}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
