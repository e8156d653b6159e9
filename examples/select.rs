//! Chooses a third of the training images of a run, as `train` leaves one, by Adv-GRAD-MATCH under its weights.
//!
//! `cargo run --release --example select -- runs/example`

use std::path::PathBuf;

use secateur::engine::{DeviceChoice, open};
use secateur::progress::Silent;
use secateur::prune::SelectionRun;
use secateur::recipe::Recipe;
use secateur::train::trained;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or("runs/example".into()));
    let selection = ["method=adv-grad-match", "fraction=0.33", "every=20"];
    let selection = selection.map(|set| format!("selection.{set}"));
    let recipe = Recipe::load(folder.join("recipe.toml"), &selection)?;
    let data = recipe.data.open(None)?;
    let weights = trained::weights(&folder, &Silent)?;

    let mut engine = open(DeviceChoice::Cpu, weights.network, recipe.batch)?;
    let mut run = SelectionRun::start(&mut engine, &weights.weights, &recipe, &data, recipe.seed)?;
    let chosen = run.run(&Silent)?;

    let subset = &chosen.subset;
    println!("{} of {} images: {}", subset.len(), chosen.candidates, chosen.diagnosis);
    let mut weighted: Vec<_> = subset.samples.iter().zip(&subset.weights).collect();
    weighted.sort_by(|a, b| b.1.total_cmp(a.1));
    for (sample, weight) in weighted.into_iter().take(5) {
        let class = data.train.labels[*sample as usize] as usize;
        println!("image {sample} ({}), weight {weight:.2}", data.class_names[class]);
    }
    std::fs::write(folder.join("subset.safetensors"), chosen.to_bytes())?;
    Ok(())
}
