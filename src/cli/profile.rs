//! `secateur profile`: what the kernels cost, launch by launch in some training steps, or (`--static`) as they were built.
//!
//! A step is one of the recipe on generated images. On a GPU launches are timed by events, without root; on the emulated
//! device by the clock, where calls, operations and bytes are exact and seconds say nothing about a GPU. NVIDIA's tools see the
//! step, its phases, its passes and each launch as NVTX ranges.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use anyhow::bail;

use super::console::Console;
use super::{inputs, kernel_table, recipe_for, write, write_json};
use crate::engine::DeviceChoice;
use crate::measure::ceilings::Ceilings;
use crate::measure::document::Document;
use crate::measure::profile;
use crate::measure::trace::trace;
use crate::measure::workload::{Bench, Work};
use crate::text::plain;

/// Print what each kernel costs in training steps of a recipe, or what it takes of a GPU
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["build_time", "recipe"])))]
pub struct Args {
    /// Block size, shared memory, registers and spills, known since the build; no device is needed
    #[arg(long = "static")]
    build_time: bool,
    /// A built-in recipe's name or a TOML file; runs its training steps
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<OsString>,
    /// Only kernels whose symbol holds this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    kernel: String,
    /// Training steps, after one that warms a GPU up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    steps: u16,
    /// cuda, cuda:N, emulated, or auto: cuda if there is one, else emulated
    #[arg(long, default_value = "auto")]
    device: DeviceChoice,
    /// CIFAR files: a folder or an archive, binary or Python version, for the recipe's own images [default: generated ones]
    #[arg(long, value_name = "PATH", requires = "recipe")]
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
        let program = std::env::current_exe()?;
        console.line(command(tool, program.as_os_str(), std::env::args_os().skip(1)));
        return Ok(());
    }
    if args.device.is_cpu() {
        bail!(
            "--device cpu: the CPU engine launches no kernels; use --device emulated or cuda, or secateur bench step"
        );
    }
    let mut files = inputs([name], args.data.as_deref())?;
    let json = files.may_write("--json", args.json.as_ref())?;
    let trace_file = files.may_write("--trace", args.trace.as_ref())?;
    let steps = usize::from(args.steps);
    let mut bench = Bench::open(args.device, true, &recipe, steps)?;
    if let Some(folder) = &args.data {
        bench.use_images(folder)?;
    }
    if bench.engine.device().kind == "cuda" {
        bench.run(&Work::Step, 1)?;
    }
    let ceilings = Ceilings::measure(&mut bench.engine)?;
    let mut record = bench.record(&Work::Step, steps)?;
    record.launches.retain(|launch| launch.kernel.contains(&args.kernel));

    let mut document =
        Document::new("profile", &bench.engine, vec![recipe.name.clone()], recipe.batch, &ceilings);
    document.images = bench.images().to_string();
    document.finished = true;
    document.kernels = profile::kernels(&record, &ceilings, &bench.engine.device().code);
    console.lines(document.device_block());
    console.line(profile::total_line(&record, steps));
    console.lines(profile::lines(&document.kernels, bench.engine.device().kind));
    if bench.engine.device().kind == "emulated" {
        console.note("the emulated device: calls, FLOP and bytes are exact, seconds are those of a simulation on the CPU");
    }
    if let Some(json) = &json {
        write_json(json, &document)?;
    }
    if let Some(file) = &trace_file {
        let trace = trace(&record, &format!("{} on {}", recipe.name, bench.engine.device().name));
        write(file, &serde_json::to_vec(&trace)?)?;
    }
    Ok(())
}

/// The line that profiles `program` with these arguments, less `--print-command`, in a shell.
fn command(tool: Tool, program: &OsStr, args: impl Iterator<Item = OsString>) -> String {
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
        match arg.as_bytes() {
            b"--print-command" => drop(args.next()),
            word if word.starts_with(b"--print-command=") => {}
            _ => words.push(quoted(&arg)),
        }
    }
    words.join(" ")
}

/// A word as a shell reads it; bytes that a terminal could not show as they are become escapes of bash.
fn quoted(word: &OsStr) -> String {
    let Some(text) = word.to_str().filter(|text| *text == plain(text)) else {
        let escaped = word.as_bytes().iter().map(|&byte| match byte {
            b'\'' | b'\\' => format!("\\{}", char::from(byte)),
            b' '..=b'~' => char::from(byte).to_string(),
            _ => format!("\\x{byte:02x}"),
        });
        return format!("$'{}'", escaped.collect::<String>());
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text.into(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_line_survives_a_shell() {
        let args = ["profile", "--recipe", "my recipe.toml", "--print-command", "ncu", "--set", "name=it's"];
        let program = OsStr::new("secateur");
        let line = command(Tool::Nsys, program, args.iter().map(OsString::from));
        let expected = r"secateur profile --recipe 'my recipe.toml' --set 'name=it'\''s'";
        assert!(line.starts_with("nsys profile ") && line.ends_with(expected), "{line}");
        let line =
            command(Tool::Ncu, program, ["profile", "--print-command=ncu"].map(OsString::from).into_iter());
        assert!(
            line.starts_with("ncu --profile-from-start off ") && line.ends_with("secateur profile"),
            "{line}"
        );
        assert_eq!(quoted(OsStr::from_bytes(b"q\xff'\x1b")), r"$'q\xff\'\x1b'");
    }
}
