//! What a path stands for that leads to weights: a file, a run or one of its checkpoints; and the images to evaluate them on.

use std::io;
use std::path::{Path, PathBuf};

use super::checkpoint::{self, CheckpointError};
use super::run_folder::RunFolder;
use crate::data::{DataError, DataSet, SetKind};
use crate::files::is_file;
use crate::model::{Weights, WeightsError, WeightsFile};
use crate::progress::{Event, ProgressSink};
use crate::recipe::{Recipe, RecipeError};

/// Why there are no weights, or no images for them.
#[derive(Debug, thiserror::Error)]
pub enum TrainedError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    #[error(transparent)]
    Data(#[from] DataError),
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("{}: neither a weights file, a run with weights nor a checkpoint", path.display())]
    NoWeights { path: PathBuf },
    #[error("{}: weights for {classes} classes, and {set} has {}{hint}", weights.display(), set.classes())]
    Classes { weights: PathBuf, classes: usize, set: SetKind, hint: &'static str },
    #[error("{}: weights for {classes} classes, and {} holds {actual}", weights.display(), folder.display())]
    OtherSet { weights: PathBuf, classes: usize, folder: PathBuf, actual: SetKind },
    #[error(
        "{}: trained on generated images, which are in no files; leave out --data {}", weights.display(), folder.display()
    )]
    Generated { weights: PathBuf, folder: PathBuf },
}

type Result<T> = std::result::Result<T, TrainedError>;

/// The weights at `path`: a file or pipe, a run folder (its best weights, those so far of a run under way) or a checkpoint folder.
/// Checkpoints that are passed over are warnings.
///
/// # Errors
/// [`TrainedError::NoWeights`]; those of files.
pub fn weights(path: &Path, progress: &dyn ProgressSink) -> Result<WeightsFile> {
    if !path.is_dir() {
        return Ok(WeightsFile::read(path)?);
    }
    let (file, bytes) = file_in_folder(path, progress)?;
    Ok(WeightsFile::from_bytes(&file, &bytes)?)
}

/// The file of a run or checkpoint whose weights are evaluated, and its bytes.
fn file_in_folder(path: &Path, progress: &dyn ProgressSink) -> Result<(PathBuf, Vec<u8>)> {
    if present(&path.join("manifest.json"))? {
        return Ok(checkpoint::weights_to_evaluate(path)?);
    }
    for file in ["best.safetensors", "last.safetensors"].map(|name| path.join(name)) {
        if present(&file)? {
            let bytes = Weights::read_bytes(&file)?;
            return Ok((file, bytes));
        }
    }
    // A run under way: its best epoch so far, or the newest.
    let folder = RunFolder::open(path).checkpoints();
    let warn = &mut |error: &CheckpointError| progress.event(Event::Warning(&error.to_string()));
    let Some((newest, state)) = checkpoint::load_newest(&folder, warn)? else {
        return Err(TrainedError::NoWeights { path: path.into() });
    };
    if let Some(best) = state.progress.best {
        match checkpoint::weights_to_evaluate(folder.folder(checkpoint::name(best.epoch, 0))) {
            Err(error @ CheckpointError::Damaged { .. }) => {
                progress.event(Event::Warning(&format!("the newest weights and not the best: {error}")))
            }
            best => return Ok(best?),
        }
    }
    Ok(checkpoint::weights_to_evaluate(&newest)?)
}

/// The images to evaluate weights of `classes` classes on: those of the weights' own run where they lie in one, else what `folder`
/// must hold. Where neither says which, they are the generated ones.
///
/// # Errors
/// [`TrainedError::Classes`], [`TrainedError::OtherSet`], [`TrainedError::Generated`]; those of data sets.
pub fn images(weights: &Path, folder: Option<&Path>, classes: usize) -> Result<DataSet> {
    let recipe = recipe_of(weights)?;
    let (set, limits) = if let Some(recipe) = &recipe {
        let data = Recipe::load(recipe, &[])?.data;
        (data.set, (data.train_limit, data.test_limit))
    } else {
        let set = match (folder, classes) {
            (None, _) => SetKind::Generated,
            (Some(_), 100) => SetKind::Cifar100,
            (Some(_), _) => SetKind::Cifar10,
        };
        (set, (None, None))
    };
    let weights = weights.to_path_buf();
    if set.classes() != classes {
        let hint = if folder.is_none() && recipe.is_none() { "; give --data" } else { "" };
        return Err(TrainedError::Classes { weights, classes, set, hint });
    }
    DataSet::open(set, folder, limits.0, limits.1).map_err(|error| match error {
        DataError::WrongSet { folder, actual, .. } => {
            TrainedError::OtherSet { weights, classes, folder, actual }
        }
        DataError::Unwanted { folder } => TrainedError::Generated { weights, folder },
        other => other.into(),
    })
}

/// The recipe of the run that weights belong to: in their folder, or in the one around its `checkpoints`.
fn recipe_of(weights: &Path) -> Result<Option<PathBuf>> {
    let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(weights) };
    // "." has parents only by its whole path.
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
    let around = whole.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "checkpoints"));
    let folders = [Some(folder), around.and_then(Path::parent)];
    for path in folders.into_iter().flatten().map(|folder| folder.join("recipe.toml")) {
        if present(&path)? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn present(path: &Path) -> Result<bool> {
    is_file(path).map_err(|source| TrainedError::Io { path: path.into(), source })
}
