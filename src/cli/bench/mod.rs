//! `secateur bench`: how long a training step, an attack, an evaluation or each kernel takes, and whether two measurements,
//! or two builds, differ.
//!
//! The device block first, then a table of medians. `measure` samples, `select` samples selections in parts, `compare` compares two
//! files and `versus` two builds, `selection-error` compares the gradients of subsets, `model` predicts without a device; `speedup` trains whole
//! recipes and their controls.

mod compare;
mod executable;
mod measure;
mod model;
mod options;
mod select;
mod selection_error;
mod speedup;
mod versus;

use super::console::Console;
use measure::{Options, measure};

/// Measure how long the work of training takes, and compare two measurements or two builds
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// A whole training step of each recipe
    Step(Options),
    /// The attack of one batch by each recipe
    Attack(Options),
    /// PGD-20 of one batch, as an evaluation does it
    Eval(Options),
    /// Each kernel, in each shape that a training step has
    Kernels(Options),
    /// One selection of training samples by each recipe or method: attack, gradients and algorithm apart
    #[command(mut_arg("recipe", |arg| arg.default_value(select::RECIPES)))]
    Select(select::Args),
    /// How far the gradient of each method's subset is from that of all samples, on the images it was chosen by and on fresh
    /// draws of augmentation and attack
    SelectionError(selection_error::Args),
    /// Train recipes and their controls under the same seeds: one table of seconds, speed-ups and accuracies
    Speedup(speedup::Args),
    /// The least that a step of each recipe can take, by the roofline, layer by layer; no device is needed
    Model(model::Args),
    /// Say of each row of two JSON files whether it became faster or slower; exit code 1 where one is slower
    Compare(compare::Args),
    /// Run two builds in turns on the same bench and compare them; exit code 1 where a row of it is slower
    Versus(versus::Args),
}

pub fn run(args: Args, console: &Console) -> anyhow::Result<()> {
    match args.what {
        What::Step(options) => measure("step", &options, console),
        What::Attack(options) => measure("attack", &options, console),
        What::Eval(options) => measure("eval", &options, console),
        What::Kernels(options) => measure("kernels", &options, console),
        What::Select(args) => select::run(&args, console),
        What::SelectionError(args) => selection_error::run(&args, console),
        What::Speedup(args) => speedup::run(&args, console),
        What::Model(args) => model::run(&args, console),
        What::Compare(args) => compare::run(&args, console),
        What::Versus(args) => versus::run(args, console),
    }
}
