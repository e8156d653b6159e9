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
    let best = state.progress.best.map(|best| folder.join(checkpoint::name(best.epoch, 0)));
    let chosen = best.filter(|best| checkpoint::load(best).is_ok()).unwrap_or(newest);
    Ok(checkpoint::weights_to_judge(&chosen))
}

/// The recipe of the run that weights belong to: in their folder, or in the one around its `checkpoints`.
fn recipe_of(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    // "." has parents only by its whole path.
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
    let around = whole.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "checkpoints"));
    let folders = [Some(folder), around.and_then(Path::parent)];
    folders.into_iter().flatten().map(|folder| folder.join("recipe.toml")).find(|path| path.is_file())
}

/// The images to evaluate on: those of the weights' own run where they lie in one, else what `--data` must hold. Where neither says
/// which, they are the generated ones.
pub fn images(weights: &Path, folder: Option<&Path>, classes: usize) -> anyhow::Result<DataSet> {
    let recipe = recipe_of(weights);
    let (kind, limits) = if let Some(recipe) = &recipe {
        let data = Recipe::load(&recipe.to_string_lossy(), &[])?.data;
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
        let what = if folder.is_none() && recipe.is_none() { "; give --data" } else { "" };
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
        DataError::Unwanted { folder } => {
            let (weights, folder) = (weights.display(), folder.display());
            anyhow::anyhow!(
                "{weights}: trained on generated images, which are in no files; leave out --data {folder}"
            )
        }
        other => other.into(),
    })
}
