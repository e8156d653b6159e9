//! `secateur bench model`: the roofline prediction of a training step, layer by layer, and its time on several GPUs; no device is
//! needed.
//!
//! The step is launched on a driver that runs nothing, so the launches are those of a GPU.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::bail;

use super::super::console::Console;
use super::super::{inputs, recipes_for, write_json};
use crate::measure::document::VERSION;
use crate::measure::model::{Prediction, Roof, part_lines, predict, total_lines};
use crate::measure::scaling::{assumptions, scaled_steps, scaling_lines};
use crate::measure::workload::{Bench, Work};
use crate::recipe::Recipe;
use crate::text::command_line;

#[derive(clap::Args)]
pub struct Args {
    /// Built-in recipes or TOML files
    #[arg(
        long,
        value_name = "NAME|FILE",
        value_delimiter = ',',
        default_value = "cifar10-pgd-at,cifar10-trades,cifar10-mart"
    )]
    recipe: Vec<OsString>,
    /// Width of the network
    #[arg(long, value_name = "N", default_value_t = 64)]
    width: usize,
    /// Images a batch
    #[arg(long, value_name = "N", default_value_t = 128)]
    batch: usize,
    /// Change a value of the recipes: --set attack.steps=1
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// The device whose rates count
    #[arg(long, value_name = "NAME", default_value = "h200")]
    device_spec: Spec,
    /// Operations a second in place of the device's: 989e12, or inf
    #[arg(long, value_name = "RATE", value_parser = rate)]
    flops: Option<f64>,
    /// Bytes a second in place of the device's: 4.8e12, or inf
    #[arg(long, value_name = "RATE", value_parser = rate)]
    bytes: Option<f64>,
    /// Model the step on 1 to N H200s that share the batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    gpus: Option<u32>,
    /// Write everything as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Spec {
    /// 790 TFLOP/s and 4.3 TB/s, measured
    H200,
    /// 764 TFLOP/s, the fastest public GEMM, and 3.35 TB/s, the data sheet's
    H100,
}

fn rate(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|rate| *rate > 0.0).ok_or("expected a number above 0, such as 790e12".into())
}

pub fn run(args: &Args, console: &Console) -> anyhow::Result<()> {
    let recipes = recipes_for(&args.recipe, args.width, args.batch, &args.set)?;
    let json_file = inputs(&args.recipe, None)?.may_write("--json", args.json.as_ref())?;
    let spec = match args.device_spec {
        Spec::H200 => Roof::H200,
        Spec::H100 => Roof::H100,
    };
    let roof = Roof { flops: args.flops.unwrap_or(spec.flops), bytes: args.bytes.unwrap_or(spec.bytes) };
    let predictions =
        recipes.iter().map(|recipe| predicted(recipe, roof)).collect::<anyhow::Result<Vec<Prediction>>>()?;

    console.line(format!(
        "roof     {:.0} TFLOP/s, {:.2} TB/s; width {}, batch {}; every operand from memory once a launch",
        roof.flops / 1e12,
        roof.bytes / 1e12,
        args.width,
        args.batch
    ));
    for prediction in &predictions {
        console.line("");
        console.line(&prediction.recipe);
        console.lines(part_lines(prediction));
    }
    console.line("");
    console.lines(total_lines(&predictions));
    let mut scaling = serde_json::Map::new();
    if let Some(gpus) = args.gpus {
        console.line("");
        console.lines(assumptions());
        for recipe in &recipes {
            let [divided, grown] = scaled_steps(recipe, gpus as usize)?;
            for (what, steps) in [("the batch divided", &divided), ("the batch a GPU", &grown)] {
                console.line("");
                console.lines(scaling_lines(&format!("{}, {what}", recipe.name), steps));
            }
            scaling.insert(recipe.name.clone(), serde_json::json!([divided, grown]));
        }
    }
    if let Some(file) = &json_file {
        let json = serde_json::json!({
            "secateur_measure": VERSION,
            "kind": "bench model",
            "command": command_line(),
            "width": args.width,
            "batch": args.batch,
            "ceiling_flops": roof.flops,
            "ceiling_bytes": roof.bytes,
            "steps": predictions,
            "scaling": scaling,
        });
        write_json(file, &json)?;
    }
    Ok(())
}

fn predicted(recipe: &Recipe, roof: Roof) -> anyhow::Result<Prediction> {
    if recipe.accelerate.method.row().groups {
        bail!(
            "{}: whom it attacks depends on losses that only a device computes; predict its base with --set accelerate.method=none",
            recipe.name
        );
    }
    let mut bench = Bench::dry(recipe)?;
    let record = bench.record(&Work::Step, 1)?;
    let network = bench.engine.network();
    Ok(predict(&record, &recipe.name, network, recipe.batch, roof))
}
