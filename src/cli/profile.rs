//! `secateur profile`: what the kernels cost, launch by launch in some training steps, or (`--static`) as they were built.
//!
//! A step is one of the recipe on generated images. On a GPU launches are timed by events, without root; on the emulated
//! device by the clock, where calls, operations and bytes are exact and seconds say nothing about a GPU. NVIDIA's tools see the
//! step, its phases, its passes and each launch as NVTX ranges. Checked by `tests/profile.rs` and `tests/nvtx.rs`.

use std::path::PathBuf;

use anyhow::bail;

use super::{at, kernel_table, recipe_for, writable};
use crate::console::Console;
use crate::engine::DeviceChoice;
use crate::files::{Existing, write_atomic};
use crate::measure::ceilings::Ceilings;
use crate::measure::document::Document;
use crate::measure::profile;
use crate::measure::trace::trace;
use crate::measure::workload::{Bench, Work};

/// Print what each kernel costs in training steps of a recipe, or what it takes of a GPU
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["build_time", "recipe"])))]
pub struct Args {
    /// Block size, shared memory, registers and spills, known since the build; no device is needed
    #[arg(long = "static")]
    build_time: bool,
    /// A built-in recipe's name or a TOML file; runs its training steps
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
    /// Only kernels whose symbol holds this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    kernel: String,
    /// Training steps, behind one that warms a GPU up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
    /// cuda, cuda:N, emulated, or auto: cuda if there is one, else emulated
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// Folder of the CIFAR binary files, for the recipe's own images [default: generated ones]
    #[arg(long, value_name = "DIR", requires = "recipe")]
    data: Option<PathBuf>,
    /// Width of the network [default: the recipe's]
    #[arg(long, value_name = "N", requires = "recipe")]
    width: Option<usize>,
    /// Images a batch [default: the recipe's]
    #[arg(long, value_name = "N", requires = "recipe")]
    batch: Option<usize>,
    /// Change a value of the recipe: --set attack.steps=1
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
    /// Write a trace for chrome://tracing or ui.perfetto.dev
    #[arg(long, value_name = "FILE", requires = "recipe")]
    trace: Option<PathBuf>,
    /// Write the table as JSON
    #[arg(long, value_name = "FILE", requires = "recipe")]
    json: Option<PathBuf>,
    /// Print the command line that profiles these steps with NVIDIA's tool, and do nothing else
    #[arg(long, value_name = "TOOL", requires = "recipe")]
    print_command: Option<Tool>,
}

/// NVIDIA's profilers; both look at the steps alone, between cuProfilerStart and cuProfilerStop.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Tool {
    /// Nsight Compute: every counter of every kernel
    Ncu,
    /// Nsight Systems: the time line
    Nsys,
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    let Some(name) = &args.recipe else {
        kernel_table::print(&args.kernel, console);
        return Ok(());
    };
    let recipe = recipe_for(name, args.width, args.batch, &args.set)?;
    if let Some(tool) = args.print_command {
        let program = std::env::current_exe()?.display().to_string();
        console.line(command(tool, &program, std::env::args().skip(1)));
        return Ok(());
    }
    if args.device.is_cpu() {
        bail!(
            "--device cpu: the CPU engine launches no kernels; use --device emulated or cuda, or secateur bench step"
        );
    }
    for path in args.trace.iter().chain(&args.json) {
        writable(path)?;
    }
    let steps = usize::from(args.steps);
    let mut bench = Bench::open(args.device, true, &recipe, steps)?;
    if let Some(folder) = &args.data {
        bench.use_images(folder)?;
    }
    if bench.engine.device().kind == "cuda" {
        bench.run(&Work::Step, 1)?;
    }
    let ceilings = Ceilings::measure(bench.engine.as_mut())?;
    let mut record = bench.record(&Work::Step, steps)?;
    record.launches.retain(|launch| launch.kernel.contains(&args.kernel));

    let mut document =
        Document::new("profile", bench.engine.as_ref(), vec![recipe.name.clone()], recipe.batch, &ceilings);
    document.images = bench.images().to_string();
    document.kernels = profile::kernels(&record, &ceilings, &bench.engine.device().code);
    for line in document.device_block() {
        console.line(line);
    }
    console.line(profile::total_line(&record, steps));
    for line in profile::lines(&document.kernels, bench.engine.device().kind) {
        console.line(line);
    }
    if bench.engine.device().kind == "emulated" {
        console.note("the emulated device: calls, FLOP and bytes are exact, seconds are those of a simulation on the CPU");
    }
    if let Some(path) = &args.json {
        at(path, write_atomic(path, &document.to_json()?, Existing::Replace))?;
    }
    if let Some(path) = &args.trace {
        let trace = trace(&record, &format!("{} on {}", recipe.name, bench.engine.device().name));
        at(path, write_atomic(path, &serde_json::to_vec(&trace)?, Existing::Replace))?;
    }
    Ok(())
}

/// The line that profiles `program` with these arguments, less `--print-command`, in a shell.
fn command(tool: Tool, program: &str, args: impl Iterator<Item = String>) -> String {
    let tool = match tool {
        Tool::Ncu => {
            "ncu --profile-from-start off --nvtx --set full --export secateur-profile --force-overwrite"
        }
        Tool::Nsys => {
            "nsys profile --trace=cuda,nvtx --capture-range=cudaProfilerApi --capture-range-end=stop \
             --output=secateur-profile --force-overwrite=true"
        }
    };
    let mut words = vec![tool.to_string(), quoted(program)];
    let mut args = args;
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--print-command" => drop(args.next()),
            arg if arg.starts_with("--print-command=") => {}
            arg => words.push(quoted(arg)),
        }
    }
    words.join(" ")
}

/// A word as a shell reads it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.into(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_survives_a_shell() {
        let args = ["profile", "--recipe", "my recipe.toml", "--print-command", "ncu", "--set", "name=it's"];
        let line = command(Tool::Nsys, "secateur", args.iter().map(ToString::to_string));
        let wanted = r"secateur profile --recipe 'my recipe.toml' --set 'name=it'\''s'";
        assert!(line.starts_with("nsys profile ") && line.ends_with(wanted), "{line}");
        let line =
            command(Tool::Ncu, "secateur", ["profile", "--print-command=ncu"].map(String::from).into_iter());
        assert!(
            line.starts_with("ncu --profile-from-start off ") && line.ends_with("secateur profile"),
            "{line}"
        );
    }
}
