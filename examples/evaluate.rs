//! Evaluates the weights of a run, as `train` leaves one, under three protocols. Broken off, it goes on where it was.
//!
//! `cargo run --release --example evaluate -- runs/example`

use std::path::PathBuf;

use secateur::config::Fraction;
use secateur::engine::{DeviceChoice, open};
use secateur::evaluate::{EvaluatedImages, Evaluation, EvaluationPlan, Protocol, sanity};
use secateur::files::Place;
use secateur::progress::Silent;
use secateur::train::trained;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = PathBuf::from(std::env::args_os().nth(1).unwrap_or("runs/example".into()));
    let weights = trained::weights(&folder, &Silent)?;
    let data = trained::images(&folder, None, weights.network.classes)?;

    let plan = EvaluationPlan {
        images: EvaluatedImages::test(&data, 50),
        protocols: ["clean", "pgd10", "apgd-ce"]
            .map(str::parse::<Protocol>)
            .into_iter()
            .collect::<Result<_, _>>()?,
        epsilon: Fraction::parse("8/255").ok_or("not a fraction")?,
        seed: 0,
        batch: 50,
        dumped: None,
    };
    let mut engine = open(DeviceChoice::Cpu, weights.network, plan.batch)?;
    let state = Place::from(&folder.join("evaluation.state"));
    let mut evaluation = Evaluation::resume(&mut engine, &weights, plan, state)?;
    // `false` where the sink asks to stop, which this one does not.
    evaluation.run(&Silent)?;

    let outcomes: Vec<_> = evaluation.outcomes().collect();
    for (protocol, outcome) in &outcomes {
        println!("{protocol}: {} of {} images", outcome.correct(), outcome.robust.len());
    }
    for alarm in sanity::alarms(&outcomes) {
        println!("{alarm}");
    }
    Ok(evaluation.close()?)
}
