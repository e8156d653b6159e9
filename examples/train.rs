//! Trains a small network adversarially on generated images; a second call continues a run that was broken off.
//!
//! `cargo run --release --example train -- runs/example`

use std::path::PathBuf;

use secateur::engine::{DeviceChoice, open};
use secateur::progress::{Event, ProgressSink};
use secateur::recipe::Recipe;
use secateur::train::{TrainingRun, TrainingSetup, network};

/// What is not said here has a default; `secateur recipes NAME` shows every key.
const RECIPE: &str = r#"
    epochs = 3
    batch = 50
    [data]
    set = "generated"
    train_limit = 600
    test_limit = 100
    validation = 100
    [model]
    width = 16
    [attack]
    steps = 2
    [optimizer]
    learning_rate = 0.05
    [schedule]
    kind = "one-cycle"
"#;

/// Prints the results as they come, and ignores the rest.
struct Printer;

impl ProgressSink for Printer {
    fn event(&self, event: Event) {
        if let Event::Result(line) | Event::Warning(line) = event {
            println!("{line}");
        }
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or("runs/example".into()));
    let recipe = Recipe::parse("example", RECIPE, &[])?;
    let data = recipe.data.open(None)?;
    let mut engine = open(DeviceChoice::Cpu, network(&recipe), recipe.batch)?;

    let setup = TrainingSetup { recipe: &recipe, data: &data, data_path: None };
    let mut run = TrainingRun::start_or_resume(&mut engine, setup, &folder)?;
    let summary = run.run(&Printer)?;

    for row in &summary.test {
        println!("{} weights, {}: {:.1} % of {}", row.weights, row.protocol, 100.0 * row.accuracy, row.total);
    }
    Ok(())
}
