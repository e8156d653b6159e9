//! What `secateur eval` judges: the weights that an argument names, and the images to judge them on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::console::Console;
use crate::data::{DataError, DataSet, SetKind};
use crate::recipe::Recipe;
use crate::train::checkpoint;
use crate::train::run_folder::RunFolder;

/// The file that stands for what `--weights` names.
pub fn weights_file(path: &Path, console: &Console) -> anyhow::Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    if path.join("manifest.json").is_file() {
        checkpoint::load(path)?;
        return Ok(checkpoint::weights_to_judge(path));
    }
    for name in ["best.safetensors", "last.safetensors"] {
        if path.join(name).is_file() {
            return Ok(path.join(name));
        }
    }
    // A run under way: its best epoch so far, or the newest.
    let folder = RunFolder::open(path).checkpoints();
    let warn = &mut |error: &checkpoint::CheckpointError| console.note(format!("warning: {error}"));
    let (newest, state) = checkpoint::load_newest(&folder, warn)?.with_context(|| {
        format!("{}: neither a weights file, a run with weights nor a checkpoint", path.display())
    })?;
    let best = state.progress.best.map(|best| folder.path().join(checkpoint::name(best.epoch, 0)));
    let chosen = best.filter(|best| checkpoint::load(best).is_ok()).unwrap_or(newest);
    Ok(checkpoint::weights_to_judge(&chosen))
}

/// The images to judge on: those of the run's recipe where there is one, else what `--data` must hold.
pub fn images(weights: &Path, folder: Option<&Path>, classes: usize) -> anyhow::Result<DataSet> {
    let recipe = weights.join("recipe.toml");
    let (kind, limits) = if recipe.is_file() {
        let data = Recipe::load(&recipe, &[])?.data;
        (data.set, (data.train_limit, data.test_limit))
    } else {
        let kind = match (folder, classes) {
            (None, _) => SetKind::Generated,
            (Some(_), 100) => SetKind::Cifar100,
            (Some(_), _) => SetKind::Cifar10,
        };
        (kind, (None, None))
    };
    if kind.classes() != classes {
        let what = if folder.is_none() { "; give --data" } else { "" };
        bail!(
            "{}: weights for {classes} classes, and {kind} has {}{what}",
            weights.display(),
            kind.classes()
        );
    }
    DataSet::open(kind, folder, limits.0, limits.1).map_err(|error| match error {
        DataError::WrongSet { folder, met, .. } => {
            let (weights, folder) = (weights.display(), folder.display());
            anyhow::anyhow!("{weights}: weights for {classes} classes, and {folder} holds {met}")
        }
        other => other.into(),
    })
}
