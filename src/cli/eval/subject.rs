//! What `secateur eval` evaluates: the weights that an argument names, and the images to evaluate them on.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::super::at;
use crate::console::Console;
use crate::data::{DataError, DataSet, SetKind};
use crate::digest::sha256;
use crate::files::is_file;
use crate::model::{ResNet18, Weights};
use crate::recipe::Recipe;
use crate::train::checkpoint::{self, CheckpointError};
use crate::train::run_folder::RunFolder;

/// Weights, and the digest of the very bytes that they were read from.
pub struct NamedWeights {
    pub file: PathBuf,
    pub sha256: String,
    pub network: ResNet18,
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
        match checkpoint::weights_to_evaluate(&folder.join(checkpoint::name(best.epoch, 0))) {
            Err(error @ CheckpointError::Damaged { .. }) => {
                console.note(format!("warning: the newest weights and not the best: {error}"));
            }
            best => return Ok(best?),
        }
    }
    Ok(checkpoint::weights_to_evaluate(&newest)?)
}

/// The images to judge on: those of the run's recipe where there is one, else what `--data` must hold.
pub fn images(weights: &Path, folder: Option<&Path>, classes: usize) -> anyhow::Result<DataSet> {
    let recipe = weights.join("recipe.toml");
    let (kind, limits) = if at(&recipe, is_file(&recipe))? {
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
