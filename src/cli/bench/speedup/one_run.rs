//! One run of a speed-up table: trained and evaluated, or what of it is left to do.
//!
//! Its folder says how far it is.

use anyhow::bail;

use super::Args;
use crate::cli::console::Console;
use crate::cli::{CheckFailed, Interrupted, open_interruptible, resume_hint};
use crate::data::DataSet;
use crate::engine::Engine;
use crate::evaluate::EvaluatedImages;
use crate::evaluate::state::device_name;
use crate::measure::speedup::document::Run;
use crate::measure::speedup::evaluator::RunEvaluator;
use crate::measure::speedup::plan::Entry;
use crate::recipe::Recipe;
use crate::train::result::TestAccuracy;
use crate::train::run_folder::{RunFolder, State};
use crate::train::{self, TrainError, TrainingRun, TrainingSetup};

/// What all runs share.
pub struct Work<'a> {
    pub args: &'a Args,
    pub console: &'a Console,
}

impl Work<'_> {
    /// Trains and evaluates one run, or what of it is left to do.
    pub fn one(&self, entry: &Entry, seed: u64, data: &DataSet, label: &str) -> anyhow::Result<Run> {
        let (args, console) = (self.args, self.console);
        let recipe = entry.seeded(seed);
        let name = entry.folder(seed);
        let path = args.out.join(&name);
        let state = TrainingRun::state(&path, &recipe)?;
        let epochs = recipe.epoch_schedule().epochs();
        let plural = if epochs == 1 { "" } else { "s" };
        let what = match state {
            State::Fresh => format!("{epochs} epoch{plural}"),
            State::Unfinished => format!("the rest of {epochs} epoch{plural}"),
            State::Finished => "trained already".into(),
        };
        console.line(format!("{label}: {}, seed {seed}: {what}, in {}", recipe.name, path.display()));

        let mut engine = None;
        let folder = match state {
            State::Finished => RunFolder::open(&path).claim()?,
            _ => {
                let engine = engine.insert(self.open(&recipe)?);
                let setup = TrainingSetup { recipe: &recipe, data, data_path: args.data.as_deref() };
                let mut run = TrainingRun::start_or_resume(engine, setup, &path)?;
                match run.run(console) {
                    Ok(_) => run.into_folder(),
                    Err(TrainError::Interrupted { .. }) => bail!(self.interrupted()),
                    Err(error) => {
                        let what = format!("{}, seed {seed}", recipe.name);
                        return Err(anyhow::Error::from(error).context(what));
                    }
                }
            }
        };
        let accuracies = self.evaluate(&recipe, &folder, data, engine)?;
        let best = accuracies.iter().find(|row| row.weights == "best").map(|row| row.epoch);
        let metrics = folder.read_metrics()?;
        if metrics.len() != epochs {
            bail!("{}: {} lines, expected {epochs} epochs", folder.metrics().display(), metrics.len());
        }
        Ok(Run::new(&recipe, name, &metrics, best, &accuracies))
    }

    /// The accuracies of a trained run; the engine is opened only where one is missing.
    fn evaluate(
        &self,
        recipe: &Recipe,
        folder: &RunFolder,
        data: &DataSet,
        engine: Option<Engine>,
    ) -> anyhow::Result<Vec<TestAccuracy>> {
        let samples = self.args.samples.map_or(data.test.len(), |samples| samples as usize);
        let images = &EvaluatedImages::test(data, samples);
        let evaluator = |device| RunEvaluator {
            folder,
            recipe,
            protocols: &self.args.protocol,
            images,
            device,
            progress: self.console,
        };
        let session = folder.sessions()?;
        let trained_on = session.last().and_then(|session| {
            let device = &session["device"];
            Some(device_name(device["kind"].as_str()?, device["code"].as_str()?))
        });
        if let (None, Some(device)) = (&engine, trained_on)
            && let Some(known) = evaluator(device).known()?
        {
            return finite(recipe, known);
        }
        let mut engine = match engine {
            Some(engine) => engine,
            None => self.open(recipe)?,
        };
        let device = device_name(engine.device().kind, &engine.device().code);
        let Some(accuracies) = evaluator(device).evaluate(&mut engine)? else { bail!(self.interrupted()) };
        for weights in ["best", "last"] {
            let rows: Vec<String> = accuracies
                .iter()
                .filter(|row| row.weights == weights)
                .map(|row| format!("{} {:.1} %", row.protocol, 100.0 * row.accuracy))
                .collect();
            if !rows.is_empty() {
                self.console.line(format!("{weights}: {} of {samples} test images", rows.join(", ")));
            }
        }
        finite(recipe, accuracies)
    }

    fn open(&self, recipe: &Recipe) -> anyhow::Result<Engine> {
        open_interruptible(self.args.device, train::network(recipe), recipe.batch, self.console)
    }

    fn interrupted(&self) -> Interrupted {
        Interrupted(Some(resume_hint(&self.args.out)))
    }
}

/// Refuses results of a network whose logits are no numbers.
fn finite(recipe: &Recipe, rows: Vec<TestAccuracy>) -> anyhow::Result<Vec<TestAccuracy>> {
    match rows.iter().find(|row| row.non_finite > 0) {
        None => Ok(rows),
        Some(row) => bail!(CheckFailed(format!(
            "{}, seed {}: {} of {} test images have a logit that is NaN or infinite under {}; training diverged",
            recipe.name, recipe.seed, row.non_finite, row.total, row.protocol
        ))),
    }
}
