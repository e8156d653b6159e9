//! What `secateur eval` evaluates: the weights that an argument names, and the images to evaluate them on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::at;
use crate::console::Console;
use crate::data::{DataError, DataSet, SetKind};
use crate::digest::sha256;
use crate::files::is_file;
use crate::model::{ResNet, Weights};
use crate::recipe::Recipe;
use crate::train::checkpoint::{self, CheckpointError};
use crate::train::run_folder::RunFolder;

/// Weights, and the digest of the very bytes that they were read from.
pub struct NamedWeights {
    pub file: PathBuf,
    pub sha256: String,
    pub network: ResNet,
    pub weights: Weights,
}

/// The weights that `--weights` names: a file or pipe, a run folder or a checkpoint folder.
pub fn weights(path: &Path, console: &Console) -> anyhow::Result<NamedWeights> {
    let (file, bytes) = weights_file(path, console)?;
    let (network, weights) = Weights::network_in_file(&file, &bytes)?;
    Ok(NamedWeights { sha256: sha256(&bytes), file, network, weights })
}

/// The file that stands for `path`, and its bytes.
fn weights_file(path: &Path, console: &Console) -> anyhow::Result<(PathBuf, Vec<u8>)> {
    if !path.is_dir() {
        return Ok((path.into(), Weights::read_bytes(path)?));
    }
    let present = |name: &str| at(&path.join(name), is_file(&path.join(name)));
    if present("manifest.json")? {
        return Ok(checkpoint::weights_to_evaluate(path)?);
    }
    for name in ["best.safetensors", "last.safetensors"] {
        if present(name)? {
            return Ok((path.join(name), Weights::read_bytes(&path.join(name))?));
        }
    }
    // A run under way: its best epoch so far, or the newest.
    let folder = RunFolder::open(path).checkpoints();
    let warn = &mut |error: &CheckpointError| console.note(format!("warning: {error}"));
    let (newest, state) = checkpoint::load_newest(&folder, warn)?.with_context(|| {
        format!("{}: neither a weights file, a run with weights nor a checkpoint", path.display())
    })?;
    if let Some(best) = state.progress.best {
        match checkpoint::weights_to_evaluate(folder.folder(checkpoint::name(best.epoch, 0))) {
            Err(error @ CheckpointError::Damaged { .. }) => {
                console.note(format!("warning: the newest weights and not the best: {error}"));
            }
            best => return Ok(best?),
        }
    }
    Ok(checkpoint::weights_to_evaluate(&newest)?)
}

/// The recipe of the run that weights belong to: in their folder, or in the one around its `checkpoints`.
fn recipe_of(weights: &Path) -> anyhow::Result<Option<PathBuf>> {
    let folder = if weights.is_dir() { weights } else { weights.parent().unwrap_or(weights) };
    // "." has parents only by its whole path.
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.into());
    let around = whole.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "checkpoints"));
    let folders = [Some(folder), around.and_then(Path::parent)];
    for path in folders.into_iter().flatten().map(|folder| folder.join("recipe.toml")) {
        if at(&path, is_file(&path))? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// The images to evaluate on: those of the weights' own run where they lie in one, else what `--data` must hold. Where neither says
/// which, they are the generated ones.
pub fn images(weights: &Path, folder: Option<&Path>, classes: usize) -> anyhow::Result<DataSet> {
    let recipe = recipe_of(weights)?;
    let (kind, limits) = if let Some(recipe) = &recipe {
        let data = Recipe::load(recipe, &[])?.data;
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
