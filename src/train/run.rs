//! A training run as a session: started or resumed in its folder, trained to the end of its recipe, saved on the way.

use std::path::{Path, PathBuf};

use super::checkpoint::{self, Checkpoint, CheckpointError};
use super::epoch::{epoch, selected};
use super::result::{self, Summary};
use super::run_folder::{RunFolder, RunFolderError, State};
use super::{Result, TrainError, Trainer, environment, network, tensorboard};
use crate::data::order::Split;
use crate::data::{DataSet, IMAGE_BYTES};
use crate::engine::Engine;
use crate::evaluate::Protocol;
use crate::model::initialise;
use crate::ops::ImageSet;
use crate::progress::watch;
use crate::progress::{Event, ProgressSink, Silent};
use crate::recipe::Recipe;

/// What a run is made of, its device and its folder apart.
#[derive(Clone, Copy, Debug)]
pub struct TrainingSetup<'a> {
    pub recipe: &'a Recipe,
    /// Those of the recipe: [`DataConfig::open`](crate::data::DataConfig::open).
    pub data: &'a DataSet,
    /// Where they were read from, for environment.json; `None` for generated ones.
    pub data_path: Option<&'a Path>,
}

/// A run in its folder, on a device.
pub struct TrainingRun<'a> {
    engine: &'a mut Engine,
    setup: TrainingSetup<'a>,
    folder: RunFolder,
    protocols: Protocols,
    /// Whether an earlier session of the run had another device or build.
    moved: bool,
}

/// What the parts of a run share.
pub(super) struct RunContext<'a> {
    pub recipe: &'a Recipe,
    pub data: &'a DataSet,
    /// Of the training images and the extra ones.
    pub labels: &'a [u32],
    pub folder: &'a RunFolder,
    pub progress: &'a dyn ProgressSink,
}

impl<'a> TrainingRun<'a> {
    /// Starts a run in a folder that is empty, and claims it. `engine` is opened for [`network`] and for batches of the recipe's
    /// size.
    ///
    /// # Errors
    /// [`RunFolderError::NotEmpty`], [`RunFolderError::InUse`]; those of files.
    pub fn start(engine: &'a mut Engine, setup: TrainingSetup<'a>, folder: RunFolder) -> Result<Self> {
        let protocols = Protocols::of_recipe(setup.recipe)?;
        let folder = folder.claim()?;
        folder.start(&setup.recipe.to_toml())?;
        Self::begin_session(engine, setup, folder, protocols)
    }

    /// Continues the run in `folder`, from its newest whole checkpoint if it has any, and claims the folder.
    ///
    /// # Errors
    /// [`RunFolderError::OtherRecipe`], [`RunFolderError::OtherImages`], [`RunFolderError::InUse`]; those of files.
    pub fn resume(engine: &'a mut Engine, setup: TrainingSetup<'a>, folder: RunFolder) -> Result<Self> {
        let protocols = Protocols::of_recipe(setup.recipe)?;
        check_recipe(&folder, setup.recipe)?;
        Self::begin_session(engine, setup, folder.claim()?, protocols)
    }

    /// Starts a run at `path`, or resumes the one that is there.
    ///
    /// # Errors
    /// [`RunFolderError::NotARun`] for a folder that holds something else; those of both.
    pub fn start_or_resume(engine: &'a mut Engine, setup: TrainingSetup<'a>, path: &Path) -> Result<Self> {
        match RunFolder::state(path)? {
            State::Fresh => Self::start(engine, setup, RunFolder::create(path)?),
            State::Unfinished | State::Finished => Self::resume(engine, setup, RunFolder::open(path)),
        }
    }

    /// How far the run of `recipe` at `path` is.
    ///
    /// # Errors
    /// [`RunFolderError::NotARun`] for a folder that holds something else, [`RunFolderError::OtherRecipe`] for another run.
    pub fn state(path: &Path, recipe: &Recipe) -> Result<State> {
        let state = RunFolder::state(path)?;
        if state != State::Fresh {
            check_recipe(&RunFolder::open(path), recipe)?;
        }
        Ok(state)
    }

    fn begin_session(
        engine: &'a mut Engine,
        setup: TrainingSetup<'a>,
        folder: RunFolder,
        protocols: Protocols,
    ) -> Result<Self> {
        let moved = environment::add_session(&folder, &setup, engine)?;
        Ok(Self { engine, setup, folder, protocols, moved })
    }

    pub fn folder(&self) -> &RunFolder {
        &self.folder
    }

    /// The folder, which stays claimed.
    pub fn into_folder(self) -> RunFolder {
        self.folder
    }

    /// Trains to the end of the recipe, then measures the best and the last weights on the test images. Checkpoints are saved as the
    /// recipe has it, and where `progress` stops the run.
    ///
    /// # Errors
    /// [`TrainError::Interrupted`] where it was stopped: everything is saved. [`TrainError::Mismatch`] for a checkpoint of another
    /// recipe.
    pub fn run(&mut self, progress: &dyn ProgressSink) -> Result<Summary> {
        let TrainingSetup { recipe, data, .. } = self.setup;
        let labels = &labels(data);
        let run = &RunContext { recipe, data, labels, folder: &self.folder, progress };
        let engine = &mut *self.engine;
        if self.moved {
            progress.event(Event::Warning(
                "the run was started on another device or build: its bits will differ",
            ));
        }
        let warn = &mut |error: &CheckpointError| {
            progress.event(Event::Warning(&format!("checkpoint passed over: {error}")));
        };
        let resumed = checkpoint::load_newest(self.folder.checkpoints(), warn)?;
        // Every rank goes on from the same one.
        let name = resumed.iter().filter_map(|(path, _)| path.file_name()).next().unwrap_or_default();
        engine.all_gather(CHECKPOINT, name.as_encoded_bytes().to_vec())?;

        let set = upload(engine, data, labels, progress)?;
        let split = recipe.split(data)?;
        let mut trainer = begin(engine, recipe, &set, &split, resumed.as_ref())?;
        if let Some((_, checkpoint)) = &resumed {
            let done = &checkpoint.progress;
            progress.event(Event::Note(&format!("resumed after epoch {}, step {}", done.epoch, done.step)));
            let (before, now) = (done.ranks.unwrap_or(1), trainer.engine.ranks());
            if before != now {
                progress.event(Event::Warning(&format!(
                    "the checkpoint is of {before} rank{}, this run of {now}: batches are shared otherwise, so its bits \
                     will differ",
                    if before == 1 { "" } else { "s" }
                )));
            }
        }
        let mut damaged = vec![self.folder.roll_back_metrics(trainer.progress.epoch)?];
        if recipe.metrics.tensorboard {
            damaged.push(tensorboard::synchronize(&self.folder)?);
        }
        for path in damaged.into_iter().flatten() {
            progress.event(Event::Warning(&format!(
                "{}: a damaged file; what is whole of it is kept",
                path.display()
            )));
        }

        while (trainer.progress.epoch as usize) < trainer.epoch_schedule().epochs() {
            epoch(run, &mut trainer, &split.validation, &self.protocols.best_by)?;
        }
        progress.event(Event::End);
        result::finish(run, trainer, &self.protocols.test)
    }
}

/// What ranks call the name of the checkpoint that they go on from.
const CHECKPOINT: &str = "the checkpoint";

/// Trains as a rank other than the first, whose run in `folder` says what to train from and writes all there is to write; it evaluates
/// while this rank waits. `progress` may ask every rank to stop.
///
/// # Errors
/// [`TrainError::Interrupted`] where a rank was asked to stop; those of training, and of a rank that has ended.
pub fn follow(
    engine: &mut Engine,
    setup: TrainingSetup,
    folder: Option<&Path>,
    progress: &dyn ProgressSink,
) -> Result<()> {
    let TrainingSetup { recipe, data, .. } = setup;
    let folder = folder.unwrap_or(Path::new(""));
    let name = engine.all_gather(CHECKPOINT, Vec::new())?.swap_remove(0);
    let name = String::from_utf8_lossy(&name).into_owned();
    let resumed = match name.is_empty() {
        true => None,
        false => {
            let place = RunFolder::open(folder).checkpoints().folder(&name);
            Some((place.path().to_path_buf(), checkpoint::load(place)?))
        }
    };
    let set = upload(engine, data, &labels(data), &Silent)?;
    let split = recipe.split(data)?;
    let mut trainer = begin(engine, recipe, &set, &split, resumed.as_ref())?;
    let interrupted = || TrainError::Interrupted { folder: folder.into() };
    while (trainer.progress.epoch as usize) < trainer.epoch_schedule().epochs() {
        let number = trainer.progress.epoch + 1;
        let chosen = trainer.begin_epoch(&mut watch(progress, String::new()));
        selected(chosen, number)?.ok_or_else(interrupted)?;
        let outcome = trainer.epoch(&mut |_| !progress.stop())?.ok_or_else(interrupted)?;
        trainer.end_epoch(&outcome);
    }
    Ok(())
}

/// Training at its first step, or where a checkpoint was taken.
fn begin<'a>(
    engine: &'a mut Engine,
    recipe: &'a Recipe,
    set: &'a ImageSet,
    split: &'a Split,
    resumed: Option<&(PathBuf, Checkpoint)>,
) -> Result<Trainer<'a>> {
    engine.load_weights(&initialise(network(recipe), recipe.seed))?;
    let mut trainer = Trainer::new(engine, recipe, set, split)?;
    if let Some((path, checkpoint)) = resumed {
        let mismatch = |reason| TrainError::Mismatch { path: path.clone(), reason };
        trainer.accepts(checkpoint).map_err(mismatch)?;
        trainer.restore(checkpoint)?;
    }
    Ok(trainer)
}

/// Of the training images and the extra ones.
fn labels(data: &DataSet) -> Vec<u32> {
    let extra = data.extra.iter().flat_map(|extra| &extra.labels);
    data.train.labels.iter().chain(extra).copied().collect()
}

/// The training images and after them the extra ones, which come from their files in chunks: the host never holds them all.
fn upload(engine: &Engine, data: &DataSet, labels: &[u32], progress: &dyn ProgressSink) -> Result<ImageSet> {
    let total = labels.len();
    let set = ImageSet::alloc(engine, labels)?;
    set.write(engine, 0, &data.train.pixels)?;
    let mut done = data.train.len();
    if !data.extra.is_empty() {
        progress.event(Event::Begin { task: "extra images", total });
    }
    for file in &data.extra {
        for pixels in file.chunks()? {
            let pixels = pixels?;
            set.write(engine, done, &pixels)?;
            done += pixels.len() / IMAGE_BYTES;
            progress.event(Event::Done(done));
        }
    }
    Ok(set)
}

/// Refuses a run of another recipe.
fn check_recipe(folder: &RunFolder, recipe: &Recipe) -> Result<()> {
    let path = folder.recipe();
    let actual = Recipe::load(&path, &[])?;
    match actual == *recipe {
        true => Ok(()),
        false => Err(RunFolderError::OtherRecipe { path, keys: recipe.differing_keys(&actual) }.into()),
    }
}

/// The protocols that a recipe names.
#[derive(Clone, Debug, PartialEq)]
pub struct Protocols {
    /// Chooses the best epoch on the validation images.
    pub best_by: Protocol,
    /// Measured on the test images at the end.
    pub test: Vec<Protocol>,
}

impl Protocols {
    pub fn of_recipe(recipe: &Recipe) -> Result<Self> {
        let parse = |key, name: &String| name.parse().map_err(|reason| TrainError::Protocol { key, reason });
        let test = recipe.evaluation.protocols.iter().map(|name| parse("evaluation.protocols", name));
        let test = test.collect::<Result<Vec<Protocol>>>()?;
        Protocol::check_list(&test)
            .map_err(|reason| TrainError::Protocol { key: "evaluation.protocols", reason })?;
        Ok(Self { best_by: parse("evaluation.best_by", &recipe.evaluation.best_by)?, test })
    }
}
