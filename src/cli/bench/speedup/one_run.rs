//! One run of a speed-up table: trained and judged, or what of it is left to do.
//!
//! Its folder says where it stands. Called by the command for each row and seed; checked by `tests/bench_speedup.rs`.

use std::path::Path;

use anyhow::bail;

use super::Args;
use crate::batch::Batch;
use crate::cli::train::{begin_session, differing_keys};
use crate::cli::{CheckFailed, Interrupted, at};
use crate::console::Console;
use crate::data::DataSet;
use crate::engine::{Engine, open};
use crate::evaluate::state::device_name;
use crate::files::is_file;
use crate::measure::speedup::document::Run;
use crate::measure::speedup::judge::{Court, JudgeError};
use crate::measure::speedup::plan::Entry;
use crate::ops::ImageSet;
use crate::recipe::Recipe;
use crate::train::interrupt::Interrupt;
use crate::train::result::TestAccuracy;
use crate::train::run_folder::{RunFolder, State};
use crate::train::{self, TrainError};

/// Where a run stands before the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Fresh,
    BrokenOff,
    Finished,
}

/// What all runs share.
pub struct Work<'a> {
    pub args: &'a Args,
    pub console: &'a Console,
    pub interrupt: &'a Interrupt,
}

/// Where the run in `path` stands; refuses one of another recipe.
pub fn standing(path: &Path, recipe: &Recipe) -> anyhow::Result<Standing> {
    if RunFolder::state(path)? == State::Fresh {
        return Ok(Standing::Fresh);
    }
    let file = path.join("recipe.toml");
    let met = Recipe::load(&file, &[])?;
    if met != *recipe {
        let keys = differing_keys(&recipe.to_toml(), &met.to_toml());
        bail!(
            "{}: a run of another recipe ({keys}); give the same --set and --epochs, or another --out",
            file.display()
        );
    }
    let present = |name: &str| at(&path.join(name), is_file(&path.join(name)));
    let finished = present("result.json")? && present("last.safetensors")?;
    Ok(if finished { Standing::Finished } else { Standing::BrokenOff })
}

impl Work<'_> {
    /// Trains and judges one run, or what of it is left to do.
    pub fn one(&self, entry: &Entry, seed: u64, data: &DataSet, label: &str) -> anyhow::Result<Run> {
        let (args, console) = (self.args, self.console);
        let recipe = entry.seeded(seed);
        let name = entry.folder(seed);
        let path = args.out.join(&name);
        let standing = standing(&path, &recipe)?;
        let epochs = recipe.timeline().epochs();
        let plural = if epochs == 1 { "" } else { "s" };
        let what = match standing {
            Standing::Fresh => format!("{epochs} epoch{plural}"),
            Standing::BrokenOff => format!("the rest of {epochs} epoch{plural}"),
            Standing::Finished => "trained already".into(),
        };
        console.line(format!("{label}: {}, seed {seed}: {what}, in {}", recipe.name, path.display()));

        let mut engine = None;
        let folder = match standing {
            Standing::Fresh => RunFolder::create(&path)?,
            _ => RunFolder::open(&path),
        };
        let folder = folder.claim()?;
        if standing != Standing::Finished {
            let engine = engine.insert(self.open(&recipe)?);
            self.train(&recipe, &folder, standing, data, engine)?;
        }
        let judged = self.judge(&recipe, &folder, data, engine)?;
        let best = judged.iter().find(|row| row.weights == "best").map(|row| row.epoch);
        let metrics = folder.read_metrics()?;
        if metrics.len() != epochs {
            bail!("{}: {} lines, expected {epochs} epochs", folder.metrics().display(), metrics.len());
        }
        Ok(Run::new(&recipe, name, &metrics, best, &judged))
    }

    fn train(
        &self,
        recipe: &Recipe,
        folder: &RunFolder,
        standing: Standing,
        data: &DataSet,
        engine: &mut Engine,
    ) -> anyhow::Result<()> {
        if standing == Standing::Fresh {
            folder.start(&recipe.to_toml())?;
        }
        begin_session(folder, self.args.data.as_deref(), data, engine, self.console)?;
        let stop = || self.interrupt.requested();
        let run = train::Run { recipe, data, folder, console: self.console, stop: &stop };
        match train::run(engine, &run) {
            Ok(_) => Ok(()),
            Err(TrainError::Interrupted { .. }) => bail!(self.interrupted()),
            Err(error) => {
                Err(anyhow::Error::from(error).context(format!("{}, seed {}", recipe.name, recipe.seed)))
            }
        }
    }

    /// The verdicts on a trained run; the engine is opened only where one is missing.
    fn judge(
        &self,
        recipe: &Recipe,
        folder: &RunFolder,
        data: &DataSet,
        engine: Option<Engine>,
    ) -> anyhow::Result<Vec<TestAccuracy>> {
        let samples = self.args.samples.map_or(data.test.len(), |samples| samples as usize);
        let session = folder.sessions()?;
        let trained_on = session.last().and_then(|session| {
            let device = &session["device"];
            Some(device_name(device["kind"].as_str()?, device["code"].as_str()?))
        });
        let images_sha256 = data.test.sha256(samples);
        let stop = || self.interrupt.requested();
        let court = |device| Court {
            folder,
            recipe,
            protocols: &self.args.protocol,
            data: &data.name,
            samples,
            images_sha256: &images_sha256,
            device,
            console: self.console,
            stop: &stop,
        };
        if let (None, Some(device)) = (&engine, trained_on)
            && let Some(known) = court(device).known().map_err(of_judge)?
        {
            return finite(recipe, known);
        }
        let mut engine = match engine {
            Some(engine) => engine,
            None => self.open(recipe)?,
        };
        let engine = &mut engine;
        let device = device_name(engine.device().kind, &engine.device().code);
        let set = ImageSet::upload(&engine, &data.test.pixels, &data.test.labels)?;
        let scratch = Batch::alloc(engine, recipe.batch)?;
        let Some(judged) = court(device).judge(engine, &set, &scratch).map_err(of_judge)? else {
            bail!(self.interrupted())
        };
        for weights in ["best", "last"] {
            let rows: Vec<String> = judged
                .iter()
                .filter(|row| row.weights == weights)
                .map(|row| format!("{} {:.1} %", row.protocol, 100.0 * row.accuracy))
                .collect();
            if !rows.is_empty() {
                self.console.line(format!("{weights}: {} of {samples} test images", rows.join(", ")));
            }
        }
        finite(recipe, judged)
    }

    fn open(&self, recipe: &Recipe) -> anyhow::Result<Engine> {
        let mut engine = open(self.args.device, train::network(recipe), recipe.batch)?;
        engine.stop_on(Some(self.interrupt.flag()));
        Ok(engine)
    }

    fn interrupted(&self) -> Interrupted {
        let out = self.args.out.display();
        Interrupted(Some(format!("what is done is kept in {out}; the same command goes on there")))
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

fn of_judge(error: JudgeError) -> anyhow::Error {
    match error {
        JudgeError::Engine(error) => error.into(),
        error => error.into(),
    }
}
